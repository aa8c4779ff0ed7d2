"""Gymnasium spaces as JSON, and the smallest array types that hold their elements."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from gymnasium import spaces

from ad_hf.settings import excerpt
from ad_hf.structure import check_structure

MOST_CATEGORIES, MOST_ELEMENTS = 2**31 - 1, 2**24  # of a space that may be anyone's: 16 million are an array of 64 MB
MOST_DIMENSIONS = 8
LARGEST = float(np.finfo(np.float32).max)  # models compute in float32
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # part of a bound by which an action may be beyond it


class _Categories(TypedDict):
    n: Annotated[int, range(1, MOST_CATEGORIES + 1)]


class _Bits(TypedDict):
    n: Annotated[int, range(1, MOST_ELEMENTS + 1)]


class _Categoricals(TypedDict):
    nvec: list[Annotated[int, range(1, MOST_CATEGORIES + 1)]]


class _Numbers(TypedDict):
    shape: list[Annotated[int, range(1, MOST_ELEMENTS + 1)]]
    low: list[float | bool | None]
    high: list[float | bool | None]
    dtype: Literal[
        "bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
    ]


STRUCTURES: dict[str, Any] = {
    "Discrete": _Categories,
    "MultiDiscrete": _Categoricals,
    "MultiBinary": _Bits,
    "Box": _Numbers,
}


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    A space as a JSON object, for `metadata.json` and a model's config.

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
        # Of an image one bound stands for all of its pixels. Truth values become 0 and 1.
        count = 1 if len(space.shape) > 1 else None
        low, high = (
            [None if np.isinf(value) else +value for value in np.ravel(bound)[:count].tolist()]
            for bound in (space.low, space.high)
        )
        return {"type": "Box", "shape": list(space.shape), "low": low, "high": high, "dtype": str(space.dtype)}
    raise TypeError(
        f"{space} is not supported: expected a Discrete or MultiDiscrete space that starts at 0, a flat MultiBinary "
        "space or a Box; put Dict and Tuple spaces through gymnasium.wrappers.FlattenObservation"
    )


def space_from_json(data: Any, name: str = "space") -> spaces.Space:
    """
    The inverse of [`space_to_json`]; the data may come from anyone.

    Raises:
        ValueError: with the `name` of the space, for anything else, and for spaces that are too large.
    """
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in STRUCTURES:
        raise ValueError(
            f"{name} must be a space, an object with a type of {', '.join(STRUCTURES)}, got {excerpt(data)}"
        )
    check_structure(data, STRUCTURES[kind], name)
    if kind in ("Discrete", "MultiBinary"):
        return getattr(spaces, kind)(data["n"])
    if kind == "MultiDiscrete":
        if not 0 < len(data["nvec"]) <= MOST_ELEMENTS:
            raise ValueError(f"{name}: nvec must have 1 to {MOST_ELEMENTS:,} numbers, got {len(data['nvec'])}")
        return spaces.MultiDiscrete(data["nvec"])
    shape, dtype, count = tuple(data["shape"]), np.dtype(data["dtype"]), math.prod(data["shape"])
    if count > MOST_ELEMENTS or len(shape) > MOST_DIMENSIONS:
        raise ValueError(
            f"{name}: shape must have at most {MOST_DIMENSIONS} dimensions and {MOST_ELEMENTS:,} elements, got "
            f"{excerpt(data['shape'])}"
        )
    bounds = []
    for bound, limit in (("low", -np.inf), ("high", np.inf)):
        if len(data[bound]) not in (1, count):
            raise ValueError(f"{name}: {bound} must have 1 number or {count}, as shape says, got {len(data[bound])}")
        bounds.append([limit if value is None else value for value in data[bound]])
    try:
        low, high = (np.resize(np.array(bound, dtype), shape) for bound in bounds)
        return spaces.Box(low, high, shape=shape, dtype=dtype.type)
    except (OverflowError, TypeError, ValueError) as error:  # bounds that the dtype does not hold, or no bounds
        raise ValueError(f"{name}: {excerpt(data)} is not a space: {error}") from error


def categories(space: spaces.Space) -> np.ndarray | None:
    """Number of categories of each dimension of a discrete space (dimensions,), `None` for another."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n])
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return space.nvec
    return np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1 else None


def storage_dtype(space: spaces.Space) -> np.dtype:
    """The smallest dtype that holds every element of a space: `uint8` for a cell of a 9 x 9 room."""
    sizes = categories(space)
    if sizes is not None:
        return np.min_scalar_type(int(sizes.max()) - 1)
    if space.dtype is None:
        raise TypeError(f"{space} has no dtype: expected a Discrete, MultiDiscrete, MultiBinary or Box space")
    return space.dtype


class Elements:
    """
    The elements of a space that a model can take; without a space, rewards.

    With `is_bounded`, as for actions, they must lie within the bounds of a Box. Many environments take the bounds of
    their observations lightly: these, as rewards, need only be finite as float32.
    """

    def __init__(self, space: spaces.Space | None = None, is_bounded: bool = False) -> None:
        self.dtype = np.dtype(np.float64) if space is None else storage_dtype(space)
        low: Any = -LARGEST
        high: Any = LARGEST
        if isinstance(space, spaces.Box):
            if is_bounded:
                bounds = np.stack([space.low, space.high]).astype(np.float64)
                sizes = np.abs(np.where(np.isfinite(bounds), bounds, 0.0)).max(axis=0).clip(min=1.0)
                slack = ROUNDING * sizes if self.dtype.kind == "f" else 0.0
                low, high = np.maximum(bounds[0] - slack, low), np.minimum(bounds[1] + slack, high)
            if self.dtype.kind in "iu":
                low, high = np.maximum(low, np.iinfo(self.dtype).min), np.minimum(high, np.iinfo(self.dtype).max)
        elif (sizes := None if space is None else categories(space)) is not None:
            low, high = 0, sizes - 1
        self._low, self._high = low, high
        self._highest_low, self._lowest_high = np.max(low), np.min(high)

    def outside(self, values: np.ndarray) -> np.ndarray:
        """A mask (num_elements,) of the values (num_elements, ...) that are no such elements."""
        # Mostly there are none, as the least and the largest number show; NaN is neither.
        if not values.size or (
            np.minimum.reduce(values, None) >= self._highest_low
            and np.maximum.reduce(values, None) <= self._lowest_high
        ):
            return np.zeros(len(values), dtype=bool)
        return np.asarray(~((values >= self._low) & (values <= self._high)).reshape(len(values), -1).all(axis=1))

    def store(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        A copy of values (num_elements, ...) in the dtype of a dataset, and a mask (num_elements,) of those that are
        outside of the space or change with that dtype.
        """
        wrong = self.outside(values)
        if values.dtype.kind != "f":
            return values.astype(self.dtype), wrong
        with np.errstate(invalid="ignore", over="ignore"):
            elements = values.astype(self.dtype)
        if self.dtype.kind != "f":
            wrong |= (elements != values).reshape(len(values), -1).any(axis=1)
        return elements, wrong


def outside(values: np.ndarray, space: spaces.Space | None = None, is_action: bool = False) -> np.ndarray:
    """A mask (num_elements,) of the values (num_elements, ...) that a model cannot take; see [`Elements`]."""
    return Elements(space, is_action).outside(values)
