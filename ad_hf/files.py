"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


def local_path(path: str | Path) -> Path:
    """A path of this machine, `~` in it being the user's home as in a shell."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """
    A temporary path beside `path` to write to; on success its content is on disk and takes the place of `path`.

    Args:
        path (`str` or `Path`):
            The file to write. Its folder must exist.
    """
    path = Path(path)
    # Of two machines that write the same file, both processes may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to disk, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """The same file under another name; a copy, where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is either whole or not there: hidden first, then deleted."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what the functions above leave of a process that was killed in them; nobody else may write there."""
    for pattern in (".*.tmp", ".*.old"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str | None:
    """The text of a file, or `None` if there is no such file."""
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """
    A temporary folder beside `path` to fill; on success it takes the place of `path`, and of what was there before.

    Args:
        path (`str` or `Path`):
            The folder to write. Its parent must exist.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        sync_folder(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
