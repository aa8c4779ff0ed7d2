"""Files that are either whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

# Names that the functions below give to what is not finished, and, by their whole names, what earlier versions and
# pushes of checkpoints leave.
LEFTOVER = re.compile(
    r"\..+\.\d+-[0-9a-f]{8}\.(tmp|old)|\.(model|checkpoint-\d+)\.\d+\.(tmp|old)|\.push-[a-z0-9_]{8}\.tmp"
)


def _hidden(path: Path, suffix: str) -> Path:
    """A name beside a path that no other process gives, on this machine or another one that writes there."""
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.{suffix}")


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
    temporary = _hidden(path, "tmp")
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
    hidden = _hidden(folder, "old")
    os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what the functions above leave of a process that was killed in them; nobody else may write there."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_other(path: str | Path, marker: str) -> None:
    """
    Refuse to write a folder where something else is, which would be lost.

    Args:
        path (`str` or `Path`):
            The folder that is to be written, and that may be there already.
        marker (`str`):
            A file that is in every such folder.

    Raises:
        FileExistsError: if a file is there, or a folder that is neither empty nor has the marker in it.
    """
    path = Path(path)
    if not path.is_dir():
        if os.path.lexists(path):
            raise FileExistsError(f"{path} is a file, where a folder is to be written: move it, or choose another one")
    elif not (path / marker).is_file() and any(path.iterdir()):
        raise FileExistsError(f"{path} holds other files and no {marker}: move them, or choose another output folder")


def leaves_folder(path: str | Path, root: str | Path) -> bool:
    """
    Whether a path in a folder is a link to something outside of it.

    A snapshot in the Hub's cache is made of links into the `blobs/` of its own repository, or into those that all
    repositories of the cache share, by their hash. These do not count as leaving.

    Args:
        path (`str` or `Path`):
            The path.
        root (`str` or `Path`):
            The folder.
    """
    real, root = Path(path).resolve(), Path(root).resolve()
    if real.is_relative_to(root):
        return False
    repository = next((folder.parent for folder in (root, *root.parents) if folder.name == "snapshots"), None)
    if repository is None:
        return True
    shared = real.parent.parent == repository.parent / "blobs" and re.fullmatch("[0-9a-f]{64}", real.name)
    return not (real.parent == repository / "blobs" or shared)


def copy_files(patterns: Iterable[str], source: str | Path, target: str | Path) -> None:
    """
    Copy files by their names, as files, out of a folder that somebody else may have filled.

    Args:
        patterns (`Iterable[str]`):
            Names, or patterns of names as `*.safetensors`; what is not there is left out.
        source, target (`str` or `Path`):
            Folders, of which the second is made if need be.

    Raises:
        ValueError: for a link that leaves the folder, and for what is no file.
    """
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if leaves_folder(path, source):
            raise ValueError(f"{path} is a link out of its folder, to {path.resolve()}: put the file itself there")
        if not path.is_file():
            raise ValueError(f"{path} is no file: remove it")
        shutil.copyfile(path, target / path.name)


def writable_folder(path: str | Path) -> Path:
    """
    A folder, made if need be, before the work whose results are to be written to it.

    Raises:
        OSError: if it cannot be written to.
    """
    path = local_path(path)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written to: give another folder, or see to its permissions")
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, making its folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str | None:
    """The text of a file, or `None` if there is no such file; one that is not UTF-8 is a `ValueError` by its name."""
    try:
        return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """
    A temporary folder beside `path` to fill; on success it takes the place of `path`, and of what was there before.

    Args:
        path (`str` or `Path`):
            The folder to write. Its parent must exist.

    Raises:
        FileExistsError: if a file is there.
    """
    path = Path(path)
    if not path.is_dir() and os.path.lexists(path):
        raise FileExistsError(f"{path} is a file, where a folder is to be written: move it, or choose another one")
    temporary, old = _hidden(path, "tmp"), _hidden(path, "old")
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
