"""
Histories in npz and HDF5 files, as they are published with papers.

A *container* is an npz file, an HDF5 file, or a group of one: whatever holds an array of rewards. It has the histories
of one task: arrays (num_steps, ...) of one stream, or (num_streams, num_steps, ...) of several, or, if time comes
first, (num_steps, num_streams, ...).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from ad_hf.envs.spaces import MOST_CATEGORIES, outside
from ad_hf.formats.array_files import Hdf5, Npz, open_arrays, reading
from ad_hf.histories.steps import Steps
from ad_hf.histories.writer import to_storage

# What each array may be called; the first name that is there is taken.
ARRAY_NAMES = {
    "observations": ("observations", "states", "obs"),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminations", "terminals", "terminated"),
    "truncations": ("truncations", "timeouts", "truncated"),
    "dones": ("dones", "done"),
    "next_observations": ("next_observations", "next_states", "next_obs"),
}
HDF5_ENDINGS = (".hdf5", ".h5")
UNKNOWN_FINALS = "not in the files: the last observation that is known of an episode stands in its place"
RESET_FINALS = (
    "not in the files, whose next observation at the end of an episode is the first one of the next: the last "
    "observation that is known of an episode stands in its place"
)


@dataclass(frozen=True)
class Container:
    """
    A file, or a group in it, with the histories of a task.

    Attributes:
        path (`Path`), group (`str`):
            Where it is; the group of a whole file is `"/"`.
        name (`str`):
            What `tasks.json` calls it: the file's path without its ending, the group's, or both.
    """

    path: Path
    group: str
    name: str

    def __str__(self) -> str:
        return str(self.path) if self.group == "/" else f"{self.path}, group {self.group}"

    def open(self) -> AbstractContextManager[Npz | Hdf5]:
        """The arrays by their names, and, of HDF5, attributes."""
        return open_arrays(self.path, self.group)


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, which puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def find_containers(source: str | Path, names: Mapping[str, str]) -> list[Container]:
    """
    The containers of a file or folder, in the order of their names.

    Args:
        source (`str` or `Path`):
            An npz or HDF5 file, or a folder with such files, at any depth.
        names (`Mapping[str, str]`):
            Names of arrays that have others than [`ARRAY_NAMES`] knows.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if it holds no such file, or a file no array of rewards.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: expected an npz or HDF5 file, or a folder of such files")
    endings = (".npz", *HDF5_ENDINGS)
    files = [path for path in source.rglob("*") if path.suffix in endings] if source.is_dir() else [source]
    files = [path for path in files if path.suffix in endings]
    if not files:
        raise ValueError(f"{source}: expected files that end in {', '.join(endings)}; pickles are not read")
    found = []
    for path in files:
        stem = path.stem if path == source else path.relative_to(source).with_suffix("").as_posix()
        groups = ["/"] if path.suffix == ".npz" else _groups(path, names)
        for group in groups:
            name = stem if group == "/" else group if path == source else f"{stem}/{group}"
            found.append(Container(path, group, name))
    names_found = Counter(container.name for container in found)
    if twice := [name for name, count in names_found.items() if count > 1]:
        raise ValueError(f"{source}: several files are called {twice[0]}, apart from their endings: rename some")
    return sorted(found, key=lambda container: natural_order(container.name))


def _groups(path: Path, names: Mapping[str, str]) -> list[str]:
    """The groups of an HDF5 file that hold rewards."""
    wanted = [names["rewards"]] if "rewards" in names else ARRAY_NAMES["rewards"]
    with open_arrays(path) as opened, reading(str(path)):
        parts = [path.rpartition("/") for path in opened.paths()]
    groups = [parent or "/" for parent, _, name in parts if name in wanted]
    if not groups:
        raise ValueError(f"{path}: no array {' or '.join(wanted)}, neither in the file nor in a group of it")
    return groups


@dataclass
class Stream:
    """
    The arrays of one stream, (num_steps, ...) each, as they are in its file.

    Attributes:
        where (`str`):
            What to call the stream in an error.
        keys (`dict[str, str]`):
            Name in the file of each array.
        observations, actions, rewards, terminations, truncations (`np.ndarray`):
            The steps; rewards, terminations and truncations are numbers and truth values already.
        next_observations (`np.ndarray`, *optional*):
            What was seen after each step.
    """

    where: str
    keys: dict[str, str]
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    next_observations: np.ndarray | None


def read_streams(container: Container, names: Mapping[str, str], time_first: bool) -> Iterator[Stream]:
    """
    The streams of a container, one by one.

    Args:
        container ([`Container`]):
            The container.
        names (`Mapping[str, str]`):
            Names of arrays that have others than [`ARRAY_NAMES`] knows.
        time_first (`bool`):
            Whether arrays of several streams are (num_steps, num_streams, ...).

    Raises:
        ValueError: naming the container and the array: for arrays that are missing, not of numbers (pickles), or of
            shapes that do not fit; for rewards that are not finite, and for ends that are neither 0 nor 1.
    """
    with container.open() as opened:
        keys = _keys(opened, names, container)
        arrays = {role: _array(opened, key, container) for role, key in keys.items()}
        lead = arrays["rewards"].shape
        if len(lead) == 2 and lead[1] == 1 and not time_first:  # a column of rewards
            lead = lead[:1]
        if len(lead) not in (1, 2) or 0 in lead:
            raise ValueError(
                f"{container}, array {keys['rewards']}: shape {lead}, expected (num_steps,), or two dimensions for "
                "streams and steps, none of them empty"
            )
        for role, array in arrays.items():
            if array.shape[: len(lead)] != lead:
                raise ValueError(
                    f"{container}, array {keys[role]}: shape {array.shape}, expected it to begin with {lead}, as "
                    f"{keys['rewards']} does"
                )
        if len(lead) == 1:
            yield _stream(str(container), keys, {role: array[()] for role, array in arrays.items()})
            return
        if time_first:  # read once, and not once per stream
            arrays = {role: np.swapaxes(array[()], 0, 1) for role, array in arrays.items()}
        for index in range(lead[1] if time_first else lead[0]):
            parts = {role: array[index] for role, array in arrays.items()}
            yield _stream(f"{container}, stream {index}", keys, parts)


def _keys(opened: Npz | Hdf5, names: Mapping[str, str], container: Container) -> dict[str, str]:
    """The name in a container of each array that is there."""
    keys: dict[str, str] = {}
    with reading(str(container)):
        there = opened.names()
    for role, known in ARRAY_NAMES.items():
        candidates = [names[role]] if role in names else known
        present = [name for name in candidates if name in opened]
        if present:
            keys[role] = present[0]
        elif role in names or role in ("observations", "actions", "rewards"):
            raise ValueError(
                f"{container}: no array {' or '.join(candidates)} for the {role}; there are {', '.join(there)}: say "
                f"which it is with --{role}"
            )
    if not {"terminations", "truncations", "dones"} & set(keys):
        raise ValueError(
            f"{container}: no array says where episodes end, as dones would; there are {', '.join(there)}: say "
            "which does with --dones, or with --terminations and --truncations"
        )
    for role, other in combinations(("observations", "actions", "rewards", "next_observations"), 2):
        if role in keys and keys[role] == keys.get(other):
            raise ValueError(f"{container}: the array {keys[role]} is taken for the {role} and for the {other}")
    return keys


def _array(opened: Npz | Hdf5, key: str, container: Container) -> Any:
    """An array of numbers: in memory from an npz file, and not yet read from HDF5."""
    array = opened.get(key, str(container))
    dtype = getattr(array, "dtype", None)  # a group of HDF5 has none
    if dtype is None or dtype.kind not in "biuf":
        what = "a group" if dtype is None else f"elements of type {dtype}"
        raise ValueError(f"{container}, array {key}: {what}, expected numbers or truth values")
    return array


def _stream(where: str, keys: dict[str, str], parts: dict[str, np.ndarray]) -> Stream:
    """A stream of its arrays, with the ends of its episodes told apart as well as they can be."""
    rewards = _column(parts["rewards"], f"{where}, array {keys['rewards']}").astype(np.float64)
    if (wrong := outside(rewards)).any():
        step = int(np.argmax(wrong))
        raise ValueError(f"{where}, array {keys['rewards']}: {rewards[step]} at step {step}, expected a finite number")
    flags: dict[str, np.ndarray] = {}
    for role in ("terminations", "truncations", "dones"):
        if role in parts:
            values = _column(parts[role], f"{where}, array {keys[role]}")
            wrong = (values != 0) & (values != 1)
            if wrong.any():
                step = int(np.argmax(wrong))
                raise ValueError(f"{where}, array {keys[role]}: {values[step]} at step {step}, expected 0 or 1")
            flags[role] = values.astype(bool)
    none = np.zeros(len(rewards), dtype=bool)
    dones = flags.get("dones", none)
    # `dones` are ends of either kind: those that another array does not claim are of the other kind.
    truncations = flags.get("truncations", dones & ~flags["terminations"] if "terminations" in flags else none)
    terminations = flags.get("terminations", dones & ~truncations)
    following = parts.get("next_observations")
    return Stream(where, keys, parts["observations"], parts["actions"], rewards, terminations, truncations, following)


def _column(values: np.ndarray, name: str) -> np.ndarray:
    if values.size != len(values):
        raise ValueError(f"{name}: shape {values.shape} of a stream, expected one number per step")
    return values.reshape(len(values))


def steps_of_stream(
    stream: Stream, observation_space: spaces.Space, action_space: spaces.Space
) -> tuple[Steps, str | None]:
    """
    A stream as it is stored.

    Args:
        stream ([`Stream`]):
            The stream.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.

    Returns:
        The steps, and, if the last observation of an episode is not in the files, a sentence on what is there instead.

    Raises:
        ValueError: naming the array, for elements outside of a space.
    """

    def stored(role: str, space: spaces.Space) -> np.ndarray:
        name = f"{stream.where}, array {stream.keys[role]}"
        return to_storage(getattr(stream, role), space, name, is_action=role == "actions")

    observations, last = stored("observations", observation_space), len(stream.rewards) - 1
    ends = np.flatnonzero(stream.terminations | stream.truncations)
    stops = ends if len(ends) and ends[-1] == last else np.append(ends, last)
    finals, note = observations[stops], UNKNOWN_FINALS
    if stream.next_observations is not None:
        following = stored("next_observations", observation_space)
        inner = ends[ends < last]
        # Vector environments that reset in the same step return the next episode's first observation.
        is_reset = np.array_equal(following[inner], observations[inner + 1])
        if len(inner) and is_reset and not np.array_equal(following[inner], observations[inner]):
            note = RESET_FINALS
            if not len(ends) or ends[-1] != last:
                finals[-1] = following[-1]
        else:
            finals, note = following[stops], ""
    return (
        Steps(
            observations,
            stored("actions", action_space),
            stream.rewards,
            stream.terminations,
            stream.truncations,
            finals,
        ),
        note or None,
    )


class SpaceGuess:
    """
    The smallest space of a usual kind that holds all elements that were seen: truth values are Discrete(2) or
    MultiBinary, images of bytes (height, width, channels) a Box, other integers Discrete or MultiDiscrete with their
    maximum + 1, and other numbers a Box: of observations without bounds, of actions between those that were seen.

    Args:
        what (`str`):
            `"observation_space"` or `"action_space"`, for errors.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._seen: np.ndarray | None = None  # minimum and maximum, (2, ...)
        self._dtype = np.dtype(bool)

    def update(self, values: np.ndarray, name: str) -> None:
        """Take more elements (num_elements, ...) into account."""
        seen = np.stack([values.min(axis=0), values.max(axis=0)])
        if self._seen is not None and self._seen.shape != seen.shape:
            raise ValueError(f"{name}: elements of shape {seen.shape[1:]}, before they were {self._seen.shape[1:]}")
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            raise ValueError(f"{name}: expected finite numbers, and there are others")
        both = seen if self._seen is None else np.concatenate([self._seen, seen])
        self._seen, self._dtype = np.stack([both.min(axis=0), both.max(axis=0)]), np.result_type(self._dtype, seen)

    def space(self) -> spaces.Space:
        """The space."""
        if self._seen is None:
            raise ValueError("there are no elements to infer a space from")
        low, high = self._seen
        if self._dtype.kind != "f" and high.max() > MOST_CATEGORIES - 1:
            raise ValueError(
                f"the {self.what} cannot be inferred from whole numbers up to {high.max()}, as many categories fit no "
                "model: give it as JSON"
            )
        kind, shape = self._dtype.kind, high.shape
        if self._dtype == np.uint8 and len(shape) == 3:
            return spaces.Box(0, 255, shape, np.uint8)
        if len(shape) > 1 or (kind != "f" and low.min() < 0):
            raise ValueError(
                f"the {self.what} cannot be inferred from {self._dtype} elements of shape {shape}, {low.min()} to "
                f"{high.max()}: give it as JSON (with as many numbers in an element, they are reshaped)"
            )
        if kind == "f":
            dtype = np.float64 if self._dtype == np.float64 else np.float32
            low, high = np.atleast_1d(low).astype(dtype), np.atleast_1d(high).astype(dtype)
            if self.what == "action_space":  # the model divides it into bins, for which it has to have a width
                return spaces.Box(low, np.where(high > low, high, low + 1).astype(dtype), dtype=dtype)
            return spaces.Box(-np.inf, np.inf, low.shape, dtype)
        if not shape:
            return spaces.Discrete(int(high) + 1 if kind != "b" else 2)
        return spaces.MultiBinary(shape[0]) if kind == "b" else spaces.MultiDiscrete(high.astype(np.int64) + 1)
