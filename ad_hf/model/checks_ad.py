"""What environments return, as tensors; what is malformed is refused by the number of its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

SIZES = {"Discrete": "n", "MultiDiscrete": "nvec", "MultiBinary": "n", "Box": "shape"}


def element_shape(space: dict[str, Any]) -> tuple[int, ...]:
    """Shape of an element of a space that is given as JSON."""
    if space["type"] == "Box":
        return tuple(space["shape"])
    if space["type"] == "MultiBinary":
        return (space["n"],)
    return np.shape(space[SIZES[space["type"]]])


def wrong_elements(values: np.ndarray, space: dict[str, Any]) -> np.ndarray:
    """Which elements (number, ...) are none of a space: numbers that are not finite, or not of its categories."""
    flat: Any = values.reshape(len(values), int(np.prod(values.shape[1:])))  # of no elements, too
    if space["type"] == "Box":
        return ~np.isfinite(flat).all(axis=1) if flat.dtype.kind == "f" else np.zeros(len(flat), dtype=bool)
    sizes = np.asarray(2 if space["type"] == "MultiBinary" else space[SIZES[space["type"]]])
    wrong = ~((flat >= 0) & (flat < sizes))
    if flat.dtype.kind == "f":
        wrong |= flat != np.floor(flat)
    return wrong.any(axis=1)


def as_elements(
    values: Any, space: dict[str, Any], num_envs: int, rows: np.ndarray, name: str = "observations"
) -> torch.Tensor:
    """
    Elements of a space as a tensor.

    Args:
        values (`np.ndarray` of shape `(num_envs, ...)`):
            What environments returned.
        space (`dict`):
            The space as JSON.
        num_envs (`int`):
            How many there must be.
        rows (`np.ndarray` of shape `(num_envs,)`):
            Environments whose elements count; those of others may be anything.
        name (`str`, *optional*, defaults to `"observations"`):
            What to call them in an error.

    Raises:
        ValueError: for elements of a wrong shape or outside of the space, naming the environment.
    """
    array = np.asarray(values)
    expected = (num_envs, *element_shape(space))
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers of shape {expected}, got {array.dtype} of shape {array.shape}")
    wrong = wrong_elements(array, space)
    if wrong.any():
        if (wrong & rows).any():
            env = int(np.argmax(wrong & rows))
            raise ValueError(f"{name} of environment {env} are no element of {space}: {array[env].tolist()}")
        array = np.where(wrong.reshape(-1, *[1] * (array.ndim - 1)), 0, array)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch can do next to nothing with these
        array = array.astype(np.int64)
    return torch.as_tensor(array)


def check_rewards(rewards: Any, num_envs: int, rows: np.ndarray) -> np.ndarray:
    """Rewards (num_envs,) as float32, those of environments outside of rows (num_envs,) as they are or zero."""
    array = np.asarray(rewards)
    if array.shape != (num_envs,) or array.dtype.kind not in "biuf":
        raise ValueError(f"rewards must be numbers of shape ({num_envs},), got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float32)
    wrong = ~np.isfinite(array)
    if wrong.any():
        if (wrong & rows).any():
            env = int(np.argmax(wrong & rows))
            raise ValueError(f"the reward of environment {env} is not finite: {array[env]}")
        array[wrong] = 0.0
    return array


def as_flags(values: Any, num_envs: int, name: str) -> torch.Tensor:
    """Truth values (num_envs,) as a tensor; a `ValueError` for another shape."""
    flags = torch.as_tensor(values, dtype=torch.bool)
    if flags.shape != (num_envs,):
        raise ValueError(
            f"{name} must have shape ({num_envs},), one truth value for each environment, got {tuple(flags.shape)}"
        )
    return flags


__all__ = ["as_elements", "as_flags", "check_rewards", "element_shape", "wrong_elements"]
