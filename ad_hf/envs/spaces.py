"""Gymnasium spaces as JSON, and the smallest array types that hold their elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

MOST_NUMBERS = 1 << 30  # in an element of a space


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    A space as a JSON object, as stored in `metadata.json` and in a model's config.

    Raises:
        TypeError: for spaces other than Discrete, MultiDiscrete, MultiBinary and Box (put Dict and Tuple spaces
            through `gymnasium.wrappers.FlattenObservation`), and for discrete spaces that do not start at 0.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return {"type": "Discrete", "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return {"type": "MultiBinary", "n": int(space.n)}  # type: ignore[arg-type]  # an int for one dimension
    if isinstance(space, spaces.Box):
        # JSON has no infinities: bounds are written as null where there are none.
        bounds = {
            name: [None if np.isinf(value) else value for value in np.ravel(array).tolist()]
            for name, array in (("low", space.low), ("high", space.high))
        }
        if len(space.shape) > 1:  # an image: one bound stands for all of its pixels
            bounds = {name: values[:1] for name, values in bounds.items()}
        return {"type": "Box", "shape": list(space.shape), **bounds, "dtype": str(space.dtype)}
    raise TypeError(
        f"{space} is not supported: expected a Discrete or MultiDiscrete space that starts at 0, a flat MultiBinary "
        "space or a Box; put Dict and Tuple spaces through gymnasium.wrappers.FlattenObservation"
    )


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """
    The inverse of [`space_to_json`].

    Raises:
        ValueError: for what is no space, or one with more numbers than an array can hold.
    """
    try:
        if "shape" in data and math.prod(data["shape"]) > MOST_NUMBERS:
            raise ValueError(f"an element has {math.prod(data['shape'])} numbers")
        return _space_from_json(data)
    except (ArithmeticError, AssertionError, AttributeError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise ValueError(
            f"unknown space {data!r}: expected one as JSON, such as {{'type': 'Discrete', 'n': 5}}, with a type of "
            f"Discrete, MultiDiscrete, MultiBinary or Box ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def _space_from_json(data: dict[str, Any]) -> spaces.Space:
    kind = data["type"]
    if kind == "Discrete":
        return spaces.Discrete(data["n"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (
            np.array([limit if value is None else value for value in data[name]], dtype=dtype)
            for name, limit in (("low", -np.inf), ("high", np.inf))
        )
        low, high = (
            bound.reshape(shape) if bound.size == np.prod(shape) else np.broadcast_to(bound, shape)
            for bound in (low, high)
        )
        return spaces.Box(low, high, shape=shape, dtype=dtype.type)
    raise ValueError(f"unknown type {kind!r}")


def storage_dtype(space: spaces.Space) -> np.dtype:
    """The smallest dtype that holds every element of a space: `uint8` for a cell of a 9 x 9 room."""
    if isinstance(space, spaces.Discrete):
        return np.min_scalar_type(int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.min_scalar_type(int(space.nvec.max()) - 1)
    if isinstance(space, spaces.MultiBinary):
        return np.dtype(np.uint8)
    if space.dtype is None:
        raise TypeError(f"{space} has no dtype: expected a Discrete, MultiDiscrete, MultiBinary or Box space")
    return space.dtype
