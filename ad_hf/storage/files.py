"""Files and folders of this machine that are either whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from ad_hf.settings import read_utf8

# Names of unfinished files and folders below, and, whole, those of earlier versions and of pushed checkpoints.
LEFTOVER = re.compile(
    r"\..+\.\d+-[0-9a-f]{8}\.(tmp|old)|\.(model|checkpoint-\d+)\.\d+\.(tmp|old)|\.push-[a-z0-9_]{8}\.tmp"
)


def _hidden(path: Path, suffix: str) -> Path:
    """A name beside a path that no other process gives, on this machine or another one that writes there."""
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.{suffix}")


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, to disk; Windows cannot open folders."""
    is_folder = path.is_dir()
    if not is_folder or os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def local_path(path: str | Path) -> Path:
    """A path of this machine, where `~` is the user's home as in a shell."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to beside `path`, which it replaces on success. The folder of `path` must exist."""
    path = Path(path)
    temporary = _hidden(path, "tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill beside `path`, which it replaces on success; a file there is a `FileExistsError`."""
    path = Path(path)
    _refuse_file(path)
    temporary = _hidden(path, "tmp")
    try:
        temporary.mkdir()
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        old = _hide(path) if path.exists() else None
        os.replace(temporary, path)
        _sync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hide(folder: Path) -> Path:
    hidden = _hidden(folder, "old")
    os.replace(folder, hidden)
    return hidden


def remove_folder(folder: Path) -> None:
    """Remove a folder that is either whole or not there: hide it, then delete it."""
    shutil.rmtree(_hide(folder), ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of the functions above; no other process may write there."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file another name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _refuse_file(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise FileExistsError(f"{path} is a file, where a folder is to be written: move it, or choose another one")


def refuse_other(path: str | Path, marker: str) -> None:
    """Refuse, with a `FileExistsError`, to overwrite a file, or files in a folder without our `marker` file."""
    path = Path(path)
    _refuse_file(path)
    if path.is_dir() and not (path / marker).is_file() and any(path.iterdir()):
        raise FileExistsError(f"{path} holds other files and no {marker}: move them, or choose another output folder")


def leaves_folder(path: str | Path, root: str | Path) -> bool:
    """
    Whether a path in a folder is a link to something outside of it.

    Links of a snapshot in the Hub's cache into the `blobs/` of its own repository, or into those that all repositories
    of the cache share, by their hash, do not count.
    """
    real, root = Path(path).resolve(), Path(root).resolve()
    if real.is_relative_to(root):
        return False
    repository = next((folder.parent for folder in (root, *root.parents) if folder.name == "snapshots"), None)
    if repository is None:
        return True
    shared = real.parent.parent == repository.parent / "blobs" and re.fullmatch("[0-9a-f]{64}", real.name)
    return not (real.parent == repository / "blobs" or shared)


def files_in(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """The files of a folder by patterns, such as `*.safetensors`; a `ValueError` for a link out of the folder."""
    files = {path.name: path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()}
    for path in files.values():
        if leaves_folder(path, folder):
            raise ValueError(f"{path} is a link out of its folder, to {path.resolve()}: put the file itself there")
    return files


def copy_files(patterns: Iterable[str], source: Path, target: Path) -> None:
    """Copy files, see [`files_in`], to a folder, and make it if need be."""
    target.mkdir(parents=True, exist_ok=True)
    for name, path in files_in(source, patterns).items():
        shutil.copyfile(path, target / name)


def writable_folder(path: str | Path) -> Path:
    """Make a folder for results before the work on them starts; an `OSError` if nobody can write there."""
    path = local_path(path)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written to: give another folder, or see to its permissions")
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in a folder that it makes if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str | None:
    """The text of a file, or `None` if there is no such file; see [`~ad_hf.settings.read_utf8`]."""
    return read_utf8(path) if Path(path).is_file() else None
