"""Spaces as JSON, and the arrays that hold their elements."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from ad_hf.envs.spaces import space_from_json, space_to_json, storage_dtype

SPACES = [
    spaces.Discrete(1),
    spaces.Discrete(5),
    spaces.MultiDiscrete([9, 9]),
    spaces.MultiDiscrete([2, 300, 7]),
    spaces.MultiBinary(4),
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(np.array([-0.1, -5.0]), np.array([0.3, 7.0]), dtype=np.float64),
    spaces.Box(np.float32([-np.inf, 0.0, -4.8]), np.float32([1.0, np.inf, 4.8])),
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32),
    spaces.Box(np.array([-3, 0]), np.array([3, 200]), dtype=np.int16),
    spaces.Box(-2.0, 2.0, (), np.float32),
    spaces.Box(0, 255, (64, 48, 3), np.uint8),
    spaces.Box(0.0, 1.0, (8, 8), np.float32),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_comes_back_from_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    restored = space_from_json(json.loads(text))
    assert restored == space
    assert restored.dtype == space.dtype
    assert restored.shape == space.shape


def test_json_is_the_documented_one():
    assert space_to_json(spaces.Discrete(5)) == {"type": "Discrete", "n": 5}
    assert space_to_json(spaces.MultiDiscrete([9, 9])) == {"type": "MultiDiscrete", "nvec": [9, 9]}
    assert space_to_json(spaces.MultiBinary(3)) == {"type": "MultiBinary", "n": 3}
    bounds = {"low": [-1.0, None], "high": [1.0, None]}
    assert space_to_json(spaces.Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]))) == {
        "type": "Box",
        "shape": [2],
        **bounds,
        "dtype": "float32",
    }


def test_json_of_an_image_stays_small():
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (84, 84, 3), np.uint8)))) < 200


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


@pytest.mark.parametrize("data", [{"type": "Dict", "spaces": {}}, {"n": 5}])
def test_unknown_json_is_refused(data):
    with pytest.raises(ValueError, match="must be a space"):
        space_from_json(data)


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Discrete(1), np.uint8),
        (spaces.Discrete(256), np.uint8),
        (spaces.Discrete(257), np.uint16),
        (spaces.Discrete(70_000), np.uint32),
        (spaces.MultiDiscrete([9, 9]), np.uint8),
        (spaces.MultiDiscrete([2, 300]), np.uint16),
        (spaces.MultiBinary(4), np.uint8),
        (spaces.Box(-1.0, 1.0, (3,), np.float32), np.float32),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), np.uint8),
        (spaces.Box(-1.0, 1.0, (3,), np.float64), np.float64),
    ],
    ids=str,
)
def test_storage_dtype_is_the_smallest_that_holds_every_element(space, dtype):
    assert storage_dtype(space) == dtype
    for element in (space.sample() for _ in range(50)):
        np.testing.assert_array_equal(np.asarray(element).astype(dtype), element)


def test_storage_dtype_of_a_dict_is_refused():
    with pytest.raises(TypeError, match="has no dtype"):
        storage_dtype(spaces.Dict({"position": spaces.Discrete(3)}))
