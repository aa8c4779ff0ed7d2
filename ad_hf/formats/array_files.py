"""
Histories in npz and HDF5 files that may be anyone's, within the memory there is, and from no other file.

A *container* is an npz file, an HDF5 file, or a group of one: anything that holds an array of rewards. It has the
histories of one task: arrays (num_steps, ...) of one history, or (num_streams, num_steps, ...) of several, or, if time
comes first, (num_steps, num_streams, ...).

Zip archives, their compressions and HDF5 raise anything at all of a damaged file: every such error names the file.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from ad_hf.envs.spaces import outside
from ad_hf.histories.steps import Steps

# The names that each array may have; the first one in a file is taken.
ARRAY_NAMES = {
    "observations": ("observations", "states", "obs"),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminations", "terminals", "terminated"),
    "truncations": ("truncations", "timeouts", "truncated"),
    "dones": ("dones", "done"),
    "next_observations": ("next_observations", "next_states", "next_obs"),
}
ENDS = ("terminations", "truncations", "dones")
ENDINGS = (".npz", ".hdf5", ".h5")
MOST_UNWRITTEN = 1 << 26  # bytes of an HDF5 array of which the file holds nothing, such as truncations that never were
UNKNOWN_FINALS = "not in the files: the last observation that is known of an episode stands in its place"
RESET_FINALS = (
    "not in the files, whose next observation at the end of an episode is the first one of the next: the last "
    "observation that is known of an episode stands in its place"
)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn any error of reading a file into a `ValueError` that begins with a name."""
    try:
        yield
    except ImportError:  # of the package that an extra installs
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read: {reason}") from error


def _check_memory(num_bytes: int) -> None:
    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise ValueError(
            f"it takes {num_bytes / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free: put its streams "
            "or tasks into files or groups of their own"
        )


class _Npz:
    """The arrays of an npz file, which are read when they are asked for; it has no attributes."""

    attrs: Mapping[str, Any] = {}

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self.close = self._archive.close
        members = [(info.filename.removesuffix(".npy"), info) for info in self._archive.infolist()]
        self._members = dict(members)
        for name, member in members:
            if self._members[name] is not member:
                raise ValueError(f"several arrays are called {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        _check_memory(member.file_size)
        with self._archive.open(member) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError(f"it holds more than the {array.nbytes} bytes that its header says")
        return array


def open_hdf5(path: Path) -> Any:
    """
    An HDF5 file, to read.

    Raises:
        ImportError: without the package h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"HDF5 files need the package h5py: pip install 'ad_hf[hdf5]' ({error})") from error
    return h5py.File(path, "r")


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file of which any part is elsewhere, naming the part."""
    with open_hdf5(path) as file:
        import h5py

        def visit(name: str, item: Any) -> str | None:  # a reason ends the walk; h5py swallows exceptions
            if isinstance(item, h5py.SoftLink | h5py.ExternalLink):
                return f"{name}: it is a link to elsewhere, {item!r}, which is not followed: copy what it stands for"
            if isinstance(item, h5py.Dataset) and (item.external is not None or item.is_virtual):
                return f"{name}: its elements are in other files, which are not read: copy them into this one"
            return None

        reason = file.visititems_links(visit) or file.visititems(visit)
    if reason:
        raise ValueError(reason)


def read_part(array: Any, index: Any = ()) -> np.ndarray:
    """A part of an array that may still be in its file."""
    if not isinstance(array, np.ndarray):
        _check_memory(array.nbytes // (1 if index == () else array.shape[0]))
    return array[index]


@dataclass(frozen=True)
class Container:
    """A file, or a group in it (`"/"` for all of it), with the histories of a task, and its name in `tasks.json`."""

    path: Path
    group: str
    name: str

    def __str__(self) -> str:
        return str(self.path) if self.group == "/" else f"{self.path}, group {self.group}"

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The arrays by their names, and `attrs`; [`find_containers`] has checked that nothing leads elsewhere."""
        with reading(str(self.path)):
            file = _Npz(self.path) if self.path.suffix == ".npz" else open_hdf5(self.path)
        with closing(file):
            yield file if self.group == "/" else file[self.group]


def find_containers(source: Path, names: Mapping[str, str]) -> list[Container]:
    """
    The containers of a file, or of all files in a folder, in the natural order of their names: 2 before 10.

    Their arrays have the names that `names` or else [`ARRAY_NAMES`] says.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: expected an npz or HDF5 file, or a folder of such files")
    files = [path for path in (source.rglob("*") if source.is_dir() else [source]) if path.suffix in ENDINGS]
    if not files:
        raise ValueError(f"{source}: expected files that end in {', '.join(ENDINGS)}; pickles are not read")
    containers = []
    for path in files:
        with reading(str(path)):
            if not path.is_file():  # a pipe would be waited for
                raise ValueError("it is not a regular file")
        stem = path.stem if path == source else path.relative_to(source).with_suffix("").as_posix()
        for group in ["/"] if path.suffix == ".npz" else _groups(path, names):
            name = stem if group == "/" else group if path == source else f"{stem}/{group}"
            containers.append(Container(path, group, name))
    ((name, count),) = Counter(container.name for container in containers).most_common(1)
    if count > 1:
        raise ValueError(f"{source}: several files are called {name}, apart from their endings: rename some")

    def natural(container: Container) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", container.name)
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    return sorted(containers, key=natural)


def _groups(path: Path, names: Mapping[str, str]) -> list[str]:
    """The groups of an HDF5 file that hold rewards."""
    candidates = _candidates("rewards", names)
    with reading(str(path)):
        check_hdf5(path)
        arrays: list[str] = []
        with open_hdf5(path) as file:
            file.visititems(lambda name, item: arrays.append(name) if hasattr(item, "shape") else None)
    parts = [name.rpartition("/") for name in arrays]
    groups = [parent or "/" for parent, _, name in parts if name in candidates]
    if not groups:
        raise ValueError(f"{path}: no array {' or '.join(candidates)}, neither in the file nor in a group of it")
    return groups


def _candidates(role: str, names: Mapping[str, str]) -> Sequence[str]:
    return [names[role]] if role in names else ARRAY_NAMES[role]


class ArrayHistory(NamedTuple):
    """
    The history of one stream as it is in a file: its name in errors, and the name in the file of each array.

    Observations and actions of its steps may be of any dtype and shape. A note says if the file lacks the last
    observations of episodes, and which observations stand in for them.
    """

    name: str
    keys: dict[str, str]
    steps: Steps
    note: str | None


def read_histories(container: Container, names: Mapping[str, str], time_first: bool) -> Iterator[ArrayHistory]:
    """The histories of a container, one by one; arguments as of [`~ad_hf.formats.arrays.from_arrays`]."""
    with container.open() as opened:
        keys = _keys(opened, names, container)
        titles = {role: f"{container}, array {key}" for role, key in keys.items()}
        arrays = {role: _array(opened, keys[role], title) for role, title in titles.items()}
        lead = arrays["rewards"].shape
        if len(lead) == 2 and lead[1] == 1 and not time_first:  # a column of rewards
            lead = lead[:1]
        if len(lead) not in (1, 2) or 0 in lead:
            raise ValueError(
                f"{titles['rewards']}: shape {lead}, expected (num_steps,), or two dimensions for streams and steps, "
                "none of them empty"
            )
        for role, array in arrays.items():
            if array.shape[: len(lead)] != lead:
                raise ValueError(
                    f"{titles[role]}: shape {array.shape}, expected it to begin with {lead}, as {keys['rewards']} does"
                )

        def read(index: Any) -> dict[str, np.ndarray]:
            parts = {}
            for role, array in arrays.items():
                with reading(titles[role]):
                    parts[role] = read_part(array, index)
            return parts

        if len(lead) == 1:
            yield _history(str(container), keys, read(()))
            return
        if time_first:  # read once, and not once per stream
            arrays = {role: np.swapaxes(array, 0, 1) for role, array in read(()).items()}
        for index in range(lead[1] if time_first else lead[0]):
            yield _history(f"{container}, stream {index}", keys, read(index))


def _array(arrays: Any, key: str, title: str) -> Any:
    """An array of numbers, which is not yet read from HDF5."""
    with reading(title):
        array = arrays[key]
        if not getattr(array, "shape", None):
            raise ValueError("it is empty, a single number or a group")
        if not isinstance(array, np.ndarray) and array.nbytes > MOST_UNWRITTEN and not array.id.get_storage_size():
            raise ValueError(f"its shape is {array.shape}, and nothing was ever written to it")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"it has elements of type {array.dtype}, expected numbers or truth values")
        return array


def _keys(arrays: Any, names: Mapping[str, str], container: Container) -> dict[str, str]:
    """The name in a container of each array that it has."""
    keys: dict[str, str] = {}
    there = sorted(arrays)
    for role in ARRAY_NAMES:
        candidates = _candidates(role, names)
        present = [name for name in candidates if name in arrays]
        if present:
            keys[role] = present[0]
        elif role in names or role in ("observations", "actions", "rewards"):
            raise ValueError(
                f"{container}: no array {' or '.join(candidates)} for the {role}; there are {', '.join(there)}: say "
                f"which it is with --{role}"
            )
    if not set(ENDS) & set(keys):
        raise ValueError(
            f"{container}: no array says where episodes end, as dones would; there are {', '.join(there)}: say "
            "which does with --dones, or with --terminations and --truncations"
        )
    for role, other in combinations(("observations", "actions", "rewards", "next_observations"), 2):
        if role in keys and keys[role] == keys.get(other):
            raise ValueError(f"{container}: the array {keys[role]} is taken for the {role} and for the {other}")
    return keys


def _history(name: str, keys: dict[str, str], arrays: dict[str, np.ndarray]) -> ArrayHistory:
    """A history of its arrays, with the ends of its episodes told apart as well as they can be."""

    def column(role: str, wrong: Any, expected: str) -> np.ndarray:
        title, values = f"{name}, array {keys[role]}", arrays[role]
        if values.size != len(values):
            raise ValueError(f"{title}: shape {values.shape} of a stream, expected one number per step")
        values = values.reshape(-1)
        if (bad := wrong(values)).any():
            step = int(np.argmax(bad))
            raise ValueError(f"{title}: {values[step]} at step {step}, expected {expected}")
        return values

    rewards = column("rewards", lambda values: outside(values.astype(np.float64)), "a finite number")
    flags = {
        role: column(role, lambda values: (values != 0) & (values != 1), "0 or 1").astype(bool)
        for role in ENDS
        if role in keys
    }
    none = np.zeros(len(rewards), dtype=bool)
    dones = flags.get("dones", none)
    # `dones` are ends of either kind: those that another array does not claim are of the other kind.
    truncations = flags.get("truncations", dones & ~flags["terminations"] if "terminations" in flags else none)
    terminations = flags.get("terminations", dones & ~truncations)
    observations = arrays["observations"]
    finals, note = _finals(name, keys, observations, arrays.get("next_observations"), terminations | truncations)
    steps = Steps(observations, arrays["actions"], rewards.astype(np.float64), terminations, truncations, finals)
    return ArrayHistory(name, keys, steps, note)


def _finals(
    name: str, keys: dict[str, str], observations: np.ndarray, following: np.ndarray | None, is_end: np.ndarray
) -> tuple[np.ndarray, str | None]:
    """The last observation of each episode, and a note on the observations that stand in for missing ones."""
    last = len(is_end) - 1
    stops = np.union1d(np.flatnonzero(is_end), last)
    if following is None:
        return observations[stops], UNKNOWN_FINALS
    if following.shape != observations.shape:
        raise ValueError(
            f"{name}, array {keys['next_observations']}: shape {following.shape}, expected that of "
            f"{keys['observations']}, {observations.shape}"
        )
    inner = stops[stops < last]
    # Vector environments that reset in the same step return the next episode's first observation.
    is_reset = np.array_equal(following[inner].astype(observations.dtype), observations[inner + 1])
    if not len(inner) or not is_reset or np.array_equal(following[inner], observations[inner]):
        return following[stops], None
    unfinished = following[last:] if not is_end[last] else observations[last:]
    return np.concatenate([observations[stops[:-1]], unfinished]), RESET_FINALS
