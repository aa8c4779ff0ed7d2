"""Folders whose files are whole or not there, on this machine or at a URL."""

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
from fsspec.implementations.local import LocalFileSystem

from ad_hf.storage.files import atomic_path, link_or_copy, local_path

# Where an unfinished file cannot be seen; elsewhere a file gets its name once it is whole.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "memory"}


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL for fsspec, rather than a folder of this machine."""
    return "://" in str(path)


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, with as much of a `Path` as it takes to read it."""

    file_system: AbstractFileSystem
    path: str

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name

    def open(self, mode: str) -> Any:
        """Open it."""
        return self.file_system.open(self.path, mode)


class Folder:
    """
    A folder of this machine, which has a `path`, or one at a URL that fsspec knows, such as `s3://bucket/histories`,
    where `is_remote` is true.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        self.is_remote = is_url(path)
        if self.is_remote:
            self._url = str(path).rstrip("/")
            try:
                self._files, self._root = url_to_fs(self._url)
            except ImportError as error:  # of s3fs, say, which fsspec names
                raise ValueError(f"{path}: {error}") from error
        else:
            self.path = local_path(path).absolute()  # worker processes may be elsewhere
            self._files, self._root = LocalFileSystem(), str(self.path)

    def __str__(self) -> str:
        return self._url if self.is_remote else str(self.path)

    def child(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(f"{self._url}/{name}" if self.is_remote else self.path / name)

    def _path(self, name: str) -> str:
        self._files.invalidate_cache()  # other processes write, too
        return f"{self._root}/{name}"

    def _entries(self, kind: str) -> list[str]:
        self._files.invalidate_cache()
        try:
            entries = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == kind]

    def names(self) -> list[str]:
        """Names of the files in it, hidden ones included."""
        if self.is_remote or not self.path.is_dir():
            return self._entries("file") if self.is_remote else []
        with os.scandir(self.path) as entries:  # there may be many
            return [entry.name for entry in entries if entry.is_file()]

    def folders(self) -> list[str]:
        """Names of the folders in it, except hidden ones."""
        return sorted(name for name in self._entries("directory") if not name.startswith("."))

    def files(self, pattern: str) -> list[Any]:
        """The files in it whose names match, in order; each has a `name` and `open("rb")`."""
        names = sorted(name for name in self.names() if fnmatchcase(name, pattern))
        return [RemoteFile(self._files, self._path(name)) if self.is_remote else self.path / name for name in names]

    def exists(self) -> bool:
        """Whether it is there: at a URL, whether it has files."""
        return bool(self.names()) if self.is_remote else self.path.is_dir()

    def is_file(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._files.isfile(self._path(name))

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        return self._files.cat_file(self._path(name))

    def read_text(self, name: str) -> str | None:
        """The text of a file, or `None` if there is no such file."""
        try:
            return self.read_bytes(name).decode() if self.is_file(name) else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}/{name} is not UTF-8 text: {error}") from error

    def make(self) -> None:
        """Make it, if it is not there."""
        self._files.makedirs(self._root, exist_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path on the local disk to write to; on success its content becomes the file."""
        if not self.is_remote:
            with atomic_path(self.path / name) as temporary:
                yield temporary
            return
        with TemporaryDirectory() as folder:
            temporary = Path(folder) / name
            yield temporary
            self._place(name, lambda path: self._files.put_file(str(temporary), path))

    def _place(self, name: str, write: Callable[[str], Any]) -> None:
        """Have a remote file written whole."""
        protocol = self._files.protocol
        if OBJECT_STORES.intersection([protocol] if isinstance(protocol, str) else protocol):
            write(self._path(name))
        else:
            temporary = self._path(f".{name}.{token_hex(8)}.tmp")
            write(temporary)
            self._files.mv(temporary, self._path(name))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self.writing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def take(self, source: Folder, name: str, new_name: str) -> None:
        """Put a file of another folder at the same place into this one, too, by a hard link where possible."""
        if self.is_remote:
            self._place(new_name, lambda path: self._files.cp_file(source._path(name), path))
        else:
            link_or_copy(source.path / name, self.path / new_name)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def delete(self) -> None:
        """Delete all of it, if it is there."""
        if self.is_remote:
            with suppress(FileNotFoundError):
                self._files.rm(self._root, recursive=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Delete it, if nothing is in it."""
        if not (self._entries("file") or self._entries("directory")):
            with suppress(OSError):
                self._files.rmdir(self._root)

    def replace(self, target: Folder, previous: Folder) -> None:
        """Take the place of another folder of this machine, and delete that."""
        previous.delete()
        if target.path.exists():
            os.replace(target.path, previous.path)
        os.replace(self.path, target.path)
        previous.delete()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """
        Keep other processes with the same name out, until this process ends, however it does.

        There is no lock at a URL: two processes that finish at once write the same bytes twice.
        """
        if self.is_remote:
            yield
            return
        self.make()
        lock = self.path / f".{name}.lock"
        with FileLock(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # a lock on a deleted file keeps nobody out: others make a new one
