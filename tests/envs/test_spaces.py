"""Spaces as JSON, the arrays that hold their elements, and which values are elements."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from ad_hf.envs.spaces import Elements, outside, space_from_json, space_to_json, storage_dtype

SPACES = [
    (spaces.Discrete(1), "uint8"),
    (spaces.Discrete(256), "uint8"),
    (spaces.Discrete(257), "uint16"),
    (spaces.Discrete(70_000), "uint32"),
    (spaces.MultiDiscrete([9, 9]), "uint8"),
    (spaces.MultiDiscrete([2, 300, 7]), "uint16"),
    (spaces.MultiBinary(4), "uint8"),
    (spaces.Box(-1.0, 1.0, (3,), np.float32), "float32"),
    (spaces.Box(np.array([-0.1, -5.0]), np.array([0.3, 7.0]), dtype=np.float64), "float64"),
    (spaces.Box(np.float32([-np.inf, 0.0, -4.8]), np.float32([1.0, np.inf, 4.8])), "float32"),
    (spaces.Box(-np.inf, np.inf, (2,), np.float64), "float64"),
    (spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32), "float32"),
    (spaces.Box(np.array([-3, 0]), np.array([3, 200]), dtype=np.int16), "int16"),
    (spaces.Box(0, 1, (2,), np.bool_), "bool"),
    (spaces.Box(-2.0, 2.0, (), np.float32), "float32"),
    (spaces.Box(0, 255, (64, 48, 3), np.uint8), "uint8"),
    (spaces.Box(0.0, 1.0, (8, 8), np.float32), "float32"),
]


@pytest.mark.parametrize(("space", "dtype"), SPACES, ids=lambda value: str(value))
def test_spaces_come_back_from_json_and_their_elements_from_storage(space, dtype):
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert len(text) < 200  # one bound stands for all of an image's
    restored = space_from_json(json.loads(text))
    assert restored == space
    assert (restored.dtype, restored.shape) == (space.dtype, space.shape)
    assert storage_dtype(space) == dtype
    elements = np.stack([space.sample() for _ in range(50)])
    for is_bounded in (False, True):
        stored, wrong = Elements(space, is_bounded).store(elements)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, elements)
        assert not wrong.any()


def test_json_is_the_documented_one():
    assert space_to_json(spaces.Discrete(5)) == {"type": "Discrete", "n": 5}
    assert space_to_json(spaces.MultiDiscrete([9, 9])) == {"type": "MultiDiscrete", "nvec": [9, 9]}
    assert space_to_json(spaces.MultiBinary(3)) == {"type": "MultiBinary", "n": 3}
    bounds = {"low": [-1.0, None], "high": [1.0, None]}
    expected = {"type": "Box", "shape": [2], **bounds, "dtype": "float32"}
    assert space_to_json(spaces.Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]))) == expected
    of_truth_values = {"type": "Box", "shape": [1], "low": [False], "high": [True], "dtype": "bool"}
    assert space_from_json(of_truth_values) == spaces.Box(0, 1, (1,), np.bool_)  # as once written


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"position": spaces.Discrete(3)}),
        spaces.Tuple([spaces.Discrete(3)]),
        spaces.Text(5),
        spaces.Discrete(5, start=1),
        spaces.MultiDiscrete([3, 3], start=[0, 1]),
        spaces.MultiDiscrete(np.array([[3, 3], [2, 2]])),
        spaces.MultiBinary([2, 2]),
    ],
    ids=str,
)
def test_unsupported_space_is_refused_with_a_way_out(space):
    with pytest.raises(TypeError, match=r"not supported.*FlattenObservation"):
        space_to_json(space)


BOX = {"type": "Box", "shape": [2], "low": [None], "high": [1.0, 2.0], "dtype": "float32"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "must be a space, an object with a type of Discrete"),
        ({"type": "Dict", "spaces": {}}, "must be a space"),
        ({"n": 5}, "must be a space"),
        ({"type": "Discrete", "n": 0}, "n must be from 1"),
        ({"type": "Discrete", "n": 2.5}, "n must be a whole number"),
        ({"type": "MultiDiscrete", "nvec": []}, "nvec must have 1 to"),
        ({"type": "MultiBinary", "n": 2**40}, "n must be from 1"),
        ({**BOX, "shape": [10**5, 10**5]}, "shape must have at most 8 dimensions and 16,777,216 elements"),
        ({**BOX, "shape": [1] * 40}, "shape must have at most"),
        ({**BOX, "shape": [3]}, "high must have 1 number or 3"),
        ({**BOX, "dtype": "object"}, "dtype must be one of"),
        ({**BOX, "low": [3.0]}, "is not a space: Box all low values"),
        ({**BOX, "dtype": "uint8"}, "is not a space"),
    ],
)
def test_other_json_is_refused(data, message):
    with pytest.raises(ValueError, match=f"^the space s:? ?.*{message}"):
        space_from_json(data, "the space s")


LINE = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))


@pytest.mark.parametrize(
    ("values", "space", "is_action", "wrong"),
    [
        ([[1.0, 5.0], [-1.0, 0.0]], LINE, True, [0, 0]),
        ([[1.0000001, 5.0], [-1.0000001, -1e-7]], LINE, True, [0, 0]),
        ([[1.01, 5.0], [0.0, -0.1]], LINE, True, [1, 1]),
        ([[1.01, 5.0], [0.0, -0.1]], LINE, False, [0, 0]),
        ([[np.nan, 5.0], [0.0, np.inf]], LINE, False, [1, 1]),
        ([[0.0, 1e39], [0.0, 1e38]], LINE, True, [1, 0]),
        ([[3], [4]], spaces.Box(-3, 3, (1,), np.int64), True, [0, 1]),
        ([2, 3, -1], spaces.Discrete(3), True, [0, 1, 1]),
        ([[2, 8], [3, 0]], spaces.MultiDiscrete([3, 9]), False, [0, 1]),
        ([1.0, 1e308, -1e308, np.nan, 3.4e38], None, False, [0, 1, 1, 1, 0]),
        (np.zeros((0, 2)), LINE, True, []),
    ],
)
def test_values_that_a_model_cannot_take_are_found(values, space, is_action, wrong):
    assert outside(np.array(values), space, is_action).tolist() == [bool(value) for value in wrong]


@pytest.mark.parametrize(
    ("values", "space", "wrong"),
    [
        ([2, 257, -255], spaces.Discrete(3), [0, 1, 1]),
        ([0.0, 1.0, 1.5, np.nan], spaces.Discrete(3), [0, 0, 1, 1]),
        ([[1.5], [300.0], [7.0]], spaces.Box(0, 255, (1,), np.uint8), [1, 1, 0]),
        ([[1e39], [1.0]], spaces.Box(-1, 1, (1,), np.float32), [1, 0]),
    ],
)
def test_values_that_storing_would_change_are_found(values, space, wrong):
    assert Elements(space).store(np.array(values))[1].tolist() == [bool(value) for value in wrong]
