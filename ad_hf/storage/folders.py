"""Folders of files that are whole or not there, wherever they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ad_hf.storage.files import atomic_path, link_or_copy, local_path, read_text


class Folder:
    """
    A folder on a disk.

    Args:
        path (`str` or `Path`):
            The path of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path).absolute()  # worker processes may be elsewhere

    def __str__(self) -> str:
        return str(self.path)

    def child(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(self.path / name)

    def make(self) -> None:
        """Make it, if it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        """Whether it is there."""
        return self.path.is_dir()

    def names(self) -> list[str]:
        """Names of the files in it, hidden ones included."""
        if not self.path.is_dir():
            return []
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries if entry.is_file()]

    def is_file(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def files(self, pattern: str) -> list[Any]:
        """The files in it whose names match, in order; each has a `name` and `open("rb")`."""
        return sorted(path for path in self.path.glob(pattern) if path.is_file())

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        return (self.path / name).read_bytes()

    def read_text(self, name: str) -> str | None:
        """The text of a file, or `None` if there is no such file."""
        return read_text(self.path / name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path on the local disk to write to; on success its content becomes the file."""
        with atomic_path(self.path / name) as temporary:
            yield temporary

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self.writing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def take(self, source: Any, name: str, new_name: str) -> None:
        """Put a file of another such folder into this one, too: the same, where the file system has hard links."""
        link_or_copy(source.path / name, self.path / new_name)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete all of it, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Delete it, if nothing is in it."""
        with suppress(OSError):
            self.path.rmdir()

    def replace(self, target: Folder, previous: Folder) -> None:
        """Take the place of another folder, which is deleted."""
        previous.delete()
        if target.path.exists():
            os.replace(target.path, previous.path)
        os.replace(self.path, target.path)
        previous.delete()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes with the same name out; ends with this process, however that ends."""
        self.make()
        lock = self.path / f".{name}.lock"
        with FileLock(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # a lock on a deleted file keeps nobody out: others make a new one


# Where an unfinished file cannot be seen; elsewhere a file gets its name once it is whole.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "memory"}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a [`RemoteFolder`], with as much of a `Path` as it takes to read it."""

    file_system: AbstractFileSystem
    path: str

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name

    def open(self, mode: str) -> Any:
        """Open it."""
        return self.file_system.open(self.path, mode)


class RemoteFolder(Folder):
    """A folder at a URL that fsspec knows, such as `s3://bucket/histories`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.file_system, self.root = url_to_fs(self.url)
        except ImportError as error:  # of s3fs, say, which fsspec names
            raise ValueError(f"{url}: {error}") from error

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _names(self, kind: str) -> list[str]:
        self.file_system.invalidate_cache()  # other processes write, too
        try:
            entries = self.file_system.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == kind]

    def child(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def make(self) -> None:
        self.file_system.makedirs(self.root, exist_ok=True)

    def exists(self) -> bool:
        return bool(self.names())

    def names(self) -> list[str]:
        return self._names("file")

    def folders(self) -> list[str]:
        """Names of the folders in it, except hidden ones."""
        return sorted(name for name in self._names("directory") if not name.startswith("."))

    def is_file(self, name: str) -> bool:
        self.file_system.invalidate_cache()
        return self.file_system.isfile(self._path(name))

    def files(self, pattern: str) -> list[Any]:
        names = sorted(name for name in self.names() if fnmatchcase(name, pattern))
        return [RemoteFile(self.file_system, self._path(name)) for name in names]

    def read_bytes(self, name: str) -> bytes:
        return self.file_system.cat_file(self._path(name))

    def read_text(self, name: str) -> str | None:
        return self.read_bytes(name).decode() if self.is_file(name) else None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with TemporaryDirectory() as folder:
            temporary = Path(folder) / name
            yield temporary
            self._place(name, lambda path: self.file_system.put_file(str(temporary), path))

    def _place(self, name: str, write: Callable[[str], Any]) -> None:
        """Have a file written whole."""
        protocol = self.file_system.protocol
        if OBJECT_STORES.intersection([protocol] if isinstance(protocol, str) else protocol):
            write(self._path(name))
        else:
            temporary = self._path(f".{name}.{token_hex(8)}.tmp")
            write(temporary)
            self.file_system.mv(temporary, self._path(name))

    def take(self, source: Any, name: str, new_name: str) -> None:
        self._place(new_name, lambda path: self.file_system.cp_file(source._path(name), path))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.file_system.rm_file(self._path(name))

    def delete(self) -> None:
        with suppress(FileNotFoundError):
            self.file_system.rm(self.root, recursive=True)

    def remove_if_empty(self) -> None:
        if not self.names() and not self._names("directory"):
            self.file_system.rmdir(self.root)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """There is no lock: two processes that finish at once write the same bytes twice."""
        yield


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL for fsspec, rather than a folder of this machine."""
    return "://" in str(path)


def open_folder(path: str | Path) -> Folder:
    """The folder at a path of this machine, or at a URL."""
    return RemoteFolder(str(path)) if is_url(path) else Folder(path)
