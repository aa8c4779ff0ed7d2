"""
Npz and HDF5 files that may be anyone's: their arrays, within the memory there is, and from no other file.

Zip archives, their compressions and HDF5 raise anything at all of a damaged file: whatever they raise names the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MOST_UNWRITTEN = 1 << 26  # bytes of an HDF5 array of which the file holds nothing, such as truncations that never were
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever goes wrong in reading a file, as a `ValueError` that begins with what was read."""
    try:
        yield
    except ImportError:  # of the package that an extra installs
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what} cannot be read: {reason}") from error


def _check_memory(num_bytes: int) -> None:
    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise ValueError(
            f"it takes {num_bytes / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free: put its streams "
            "or tasks into files or groups of their own"
        )


class Npz:
    """
    The arrays of an npz file.

    Args:
        path (`Path`):
            The file.
    """

    attributes: Mapping[str, Any] = {}

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        members = [(info.filename.removesuffix(".npy"), info) for info in self._archive.infolist()]
        self._members = dict(members)
        if len(self._members) < len(members):
            names = [name for name, _ in members]
            raise ValueError(f"several arrays are called {next(name for name in names if names.count(name) > 1)}")

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def names(self) -> list[str]:
        """Names of the arrays."""
        return sorted(self._members)

    def paths(self) -> list[str]:
        """Paths of all arrays: they have no groups."""
        return self.names()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def get(self, name: str, where: str) -> np.ndarray:
        """An array, in memory; `where` is what to call it in an error."""
        with reading(f"{where}, array {name}"):
            member = self._members[name]
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in NPY_HEADERS:
                    raise ValueError(f"it is of version {version} of the npy format, expected 1.0 or 2.0")
                shape, _, dtype = NPY_HEADERS[version](file)
                if dtype.hasobject:
                    raise ValueError("it holds pickled objects, which are never read")
                claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
                if claimed != there or min(shape, default=0) < 0:
                    raise ValueError(f"its header says shape {shape} of {dtype}, {claimed} bytes, and it has {there}")
            _check_memory(claimed)
            with self._archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)


class _Hdf5Array:
    """An array of an HDF5 file that is read when it is indexed."""

    def __init__(self, dataset: Any, where: str) -> None:
        self.shape, self.dtype, self._dataset, self._where = dataset.shape, dataset.dtype, dataset, where

    def __getitem__(self, index: Any) -> np.ndarray:
        with reading(self._where):
            _check_memory(self._dataset.nbytes // (1 if index == () else self.shape[0]))
            return self._dataset[index]


class Hdf5:
    """
    The arrays of a group of an HDF5 file.

    Args:
        path (`Path`):
            The file.
        group (`str`, *optional*, defaults to `"/"`):
            The group.

    Raises:
        ImportError: without the package h5py.
    """

    def __init__(self, path: Path, group: str = "/") -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError(f"HDF5 files need the package h5py: pip install 'ad_hf[hdf5]' ({error})") from error
        self._file = h5py.File(path, "r")
        self._group = self._find(self._file, group)
        self.attributes = self._group.attrs

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def names(self) -> list[str]:
        """Names of the arrays and groups."""
        return sorted(self._group)

    def __contains__(self, name: str) -> bool:
        return name.strip("/").partition("/")[0] in self.names()  # and not `in`, which opens what a link leads to

    def paths(self) -> list[str]:
        """Paths of all arrays, at any depth."""
        found = []

        def visit(name: str, item: Any) -> None:
            if hasattr(item, "shape"):
                found.append(name)

        self._group.visititems(visit)  # which follows no links to elsewhere
        return found

    def get(self, name: str, where: str) -> Any:
        """An array, not yet read, or a group; `where` is what to call it in an error."""
        where = f"{where}, array {name}"
        with reading(where):
            found = self._find(self._group, name)
            if not hasattr(found, "shape"):
                return found
            if found.shape is None:
                raise ValueError("it is empty")
            if found.nbytes > MOST_UNWRITTEN and not found.id.get_storage_size():
                raise ValueError(f"its shape is {found.shape}, and nothing was ever written to it")
            return _Hdf5Array(found, where)

    @staticmethod
    def _find(group: Any, path: str) -> Any:
        """What is at a path within a group, if nothing on the way is elsewhere."""
        for name in filter(None, path.split("/")):
            link = group.get(name, getlink=True)
            if link is None:
                raise ValueError(f"there is no {name}")
            if reason := _elsewhere(link) or _elsewhere(group[name]):
                raise ValueError(reason)
            group = group[name]
        return group


def _elsewhere(found: Any) -> str | None:
    """Why a link or an object of an HDF5 file is not used: it stands for something that is elsewhere."""
    import h5py

    if isinstance(found, h5py.SoftLink | h5py.ExternalLink):
        return f"it is a link to elsewhere, {found!r}, which is not followed: copy what it stands for"
    if isinstance(found, h5py.Dataset) and (found.external is not None or found.is_virtual):
        return "its elements are in other files, which are not read: copy them into this one"
    return None


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file of which any part is elsewhere, naming the part."""
    import h5py

    def visit(name: str, found: Any) -> str | None:  # what is returned ends the walk; h5py swallows what is raised
        reason = _elsewhere(found)
        return reason and f"{name}: {reason}"

    with h5py.File(path, "r") as file:
        reason = file.visititems_links(visit) or file.visititems(visit)
    if reason:
        raise ValueError(reason)


@contextmanager
def open_arrays(path: Path, group: str = "/") -> Iterator[Npz | Hdf5]:
    """
    An npz file, or a group of an HDF5 file.

    Raises:
        ImportError: for HDF5 without the package h5py.
        ValueError: naming the file, if it is neither, is damaged, or is not a regular file.
    """
    with reading(str(path)):
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a regular file")
        opened = Npz(path) if path.suffix == ".npz" else Hdf5(path, group)
    try:
        yield opened
    finally:
        opened.close()
