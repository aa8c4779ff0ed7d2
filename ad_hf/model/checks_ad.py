"""What comes from outside: what environments return, as tensors, and JSON files; what is malformed is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; a `ValueError` that names the file for anything else."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # both of the encoding and of JSON are ValueErrors
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(read).__name__}")
    return read


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def memory() -> int | None:
    """Bytes of this machine's memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_fits(size: int, what: str, available: int | None = None) -> None:
    """Refuse what takes more bytes than are available, by default all memory: a `ValueError` with both numbers."""
    available = memory() if available is None else available
    if available is not None and size > available:
        raise ValueError(f"{what} would take {size:,} bytes, and this machine has {available:,}: make it smaller")


def as_array(values: Any, name: str) -> np.ndarray:
    """Values as an array; a `ValueError` with their name for a ragged sequence."""
    if type(values) is np.ndarray:
        return values
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}: {error}") from error


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
    array = as_array(values, name)
    expected = (num_envs, *element_shape(space))
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers of shape {expected}, got {array.dtype} of shape {array.shape}")
    if not array.dtype.isnative:  # which torch does not take
        array = array.astype(array.dtype.newbyteorder("="))
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
    array = as_array(rewards, "rewards")
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


def fault_of_inputs(
    config: Any,
    observations: torch.Tensor,
    previous_actions: torch.Tensor,
    previous_rewards: torch.Tensor,
    episode_starts: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
) -> str | None:
    """What is wrong with the inputs (batch, time, ...) of a forward pass: shapes that disagree, or no elements."""
    observed, acted = config.observation_space, config.action_space
    more = {name: (np.asarray(acted[name]) + 1).tolist() for name in ("n", "nvec") if name in acted}  # "none"
    given: dict[str, tuple[Any, dict[str, Any] | None]] = {
        **{"observations": (observations, observed), "previous_actions": (previous_actions, {**acted, **more})},
        **{"previous_rewards": (previous_rewards, None), "episode_starts": (episode_starts, None)},
        **{"attention_mask": (attention_mask, None), "labels": (labels, acted)},
    }
    steps = tuple(observations.shape[:2])
    for name, (values, space) in given.items():
        expected = (*steps, *(element_shape(space) if space else ()))
        if values is None:
            continue
        if tuple(values.shape) != expected:
            return f"{name} must have shape {expected}, as observations have {steps}, got {tuple(values.shape)}"
        if space is None or space["type"] == "Box" or values.is_meta:
            continue
        elements = values.detach().cpu().numpy().reshape(-1, *expected[2:])
        wrong = wrong_elements(np.where(elements == -100, 0, elements) if name == "labels" else elements, space)
        if wrong.any():
            row, step = divmod(int(np.argmax(wrong)), steps[1])
            return f"{name} of row {row}, step {step} are no element of {space}: {elements[wrong][0].tolist()}"
    return None


def as_flags(values: Any, num_envs: int, name: str, numbers: bool = False) -> torch.Tensor:
    """Truth values (num_envs,), or 0 and 1 where `numbers` may stand for them, as a tensor; else a `ValueError`."""
    flags = as_array(values, name)
    known = flags.dtype.kind == "b" or (numbers and flags.dtype.kind in "iuf" and bool(np.isin(flags, (0, 1)).all()))
    if flags.shape != (num_envs,) or not known:
        raise ValueError(
            f"{name} must have shape ({num_envs},), one truth value for each environment, got {flags.dtype} of shape "
            f"{flags.shape}"
        )
    return torch.from_numpy(flags.astype(bool, copy=False))


__all__ = [
    "as_elements",
    "as_flags",
    "check_rewards",
    "element_shape",
    "fault_of_inputs",
    "is_number",
    "read_json",
    "wrong_elements",
]
