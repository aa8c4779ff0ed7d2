"""Datasets and models by name: a local folder, or a repository on the Hub at one commit of it."""

from __future__ import annotations

import errno
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, HfFileSystem, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ad_hf.storage.files import local_path

HUB_ID = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]+))?")


class HubError(OSError):
    """
    Something that the Hub, or the way to it, did not let us do, and what to do about it.

    Attributes:
        transient (`bool`):
            Whether another attempt may succeed.
        status (`int`, *optional*):
            HTTP status of the Hub's answer, if it gave one.
    """

    def __init__(self, message: str, transient: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.transient, self.status = transient, status


@contextmanager
def explained(what: str) -> Iterator[None]:
    """
    Turn errors of the Hub's client into a [`HubError`] that says what to do.

    Args:
        what (`str`):
            What is being done, such as `"reading the dataset user/name"`.
    """
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{what}: access has to be asked for on the repository's page first") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{what}: there is no such repository on {constants.ENDPOINT}, or it is private: check the name, and set "
            "HF_TOKEN or run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{what}: the repository has no such revision") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, IncompleteSnapshotError) as error:
        offline = constants.is_offline_mode()
        why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
        raise HubError(f"{what}: it is not in the cache, and {why}", transient=not offline) from error
    except EntryNotFoundError as error:
        raise HubError(f"{what}: a file is missing in the repository: {_first_line(error)}") from error
    except (HTTPError, RuntimeError) as error:
        raise _explanation(what, error) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise
        raise HubError(
            f"{what}: the cache cannot be written to ({error}): set HF_HOME to a folder that can be and has room"
        ) from error


def _explanation(what: str, error: BaseException) -> BaseException:
    """What came of an HTTP request; the client wraps that of an upload into a RuntimeError."""
    cause = error.__cause__ if isinstance(error, RuntimeError) else error
    if not isinstance(cause, HTTPError):
        return error
    if not isinstance(cause, HfHubHTTPError):
        text = _first_line(cause) or type(cause).__name__
        return HubError(f"{what}: the connection to {constants.ENDPOINT} failed: {text}", transient=True)
    status = cause.response.status_code
    if status in (401, 403):
        return HubError(
            f"{what}: the Hub refused it ({status}): set HF_TOKEN to a token that may do this, or run `hf auth login`",
            status=status,
        )
    transient = status in (408, 429) or status >= 500
    return HubError(f"{what}: the Hub answered with status {status}: {_first_line(cause)}", transient, status)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


T = TypeVar("T")


def retried(what: str, call: Callable[[], T], attempts: int = 5, seconds: float = 20.0) -> T:
    """
    What a call to the Hub returns, made again, after 1, 2, 4, ... seconds, where that may help.

    The Hub's client does so itself for some requests, for 23 seconds, and not for others.

    Args:
        what (`str`):
            What is being done, for errors.
        call (`Callable`):
            The call.
        attempts (`int`, *optional*, defaults to 5):
            How often it is made at most.
        seconds (`float`, *optional*, defaults to 20.0):
            After so long it is not made again.

    Raises:
        HubError: if it cannot be done.
    """
    start = time.monotonic()
    for attempt in range(attempts):
        try:
            with explained(what):
                return call()
        except HubError as error:
            if not error.transient or attempt == attempts - 1 or time.monotonic() - start > seconds:
                raise
            warnings.warn(f"{error}; trying again", stacklevel=2)
            time.sleep(min(8.0, 2.0**attempt))
    raise AssertionError("the last attempt returns or raises")


@cache
def _filesystem() -> HfFileSystem:
    """The one for all threads, with what it has listed: by itself, it makes another one for each."""
    return HfFileSystem(skip_instance_cache=True)


@dataclass(frozen=True)
class Repository:
    """
    A folder, or a repository on the Hub at one commit.

    Attributes:
        name (`str`):
            The folder as it was given, or the repository's id.
        kind (`str`):
            `"dataset"` or `"model"`.
        revision (`str`, *optional*):
            Hash of the commit; `None` for a folder.
    """

    name: str
    kind: str
    revision: str | None = None
    _files: list[str] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def to_json(self) -> dict[str, Any]:
        """What a run's files say about it."""
        return {"name": self.name, "revision": self.revision}

    def files(self) -> Sequence[str]:
        """Paths of all files in it."""
        if not self._files:
            self._files.extend(sorted(self._list_files()))
        return self._files

    def _list_files(self) -> list[str]:
        if self.revision is None or constants.is_offline_mode():
            folder = self.download(())
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return retried(
            f"reading the {self.kind} {self}",
            lambda: HfApi().list_repo_files(self.name, repo_type=self.kind, revision=self.revision),
        )

    def download(self, patterns: Sequence[str]) -> Path:
        """
        A local folder with the files that match some patterns; those of a Hub repository come from the cache, or are
        downloaded to it.

        Args:
            patterns (`Sequence[str]`):
                Such as `"default/train-*.parquet"`.
        """
        if self.revision is None:
            return Path(self.name)
        return Path(
            retried(
                f"downloading the {self.kind} {self}",
                lambda: snapshot_download(
                    self.name, repo_type=self.kind, revision=self.revision, allow_patterns=list(patterns)
                ),
            )
        )

    def open_remote(self, path: str) -> Any:
        """A file of a Hub repository to be read in parts over HTTP: every read is one request, and nothing is kept."""
        return _filesystem().open(self._remote_path(path), "rb", cache_type="none")

    def sizes(self, pattern: str) -> dict[str, int]:
        """Sizes in bytes of the files that match a pattern, by their paths, in order."""
        if self.revision is None or constants.is_offline_mode():
            folder = self.download((pattern,))
            paths = sorted(folder.glob(pattern))
            special = [str(path) for path in paths if path.exists() and not path.is_file()]
            if special:  # a pipe is waited for, for ever
                raise ValueError(f"{self}: {', '.join(special)} is no regular file: expected a shard")
            return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        root = self._remote_path("")
        found: Any = retried(
            f"reading the {self.kind} {self}", lambda: _filesystem().glob(root + pattern, detail=True)
        )
        return {path.removeprefix(root): int(found[path]["size"]) for path in sorted(found)}

    def _remote_path(self, path: str) -> str:
        return f"{self.kind}s/{self.name}@{self.revision}/{path}"

    @property
    def is_remote(self) -> bool:
        """Whether its files are read over HTTP, and neither from a folder nor from the cache of an offline machine."""
        return self.revision is not None and not constants.is_offline_mode()


def find_repository(name: str | Path, kind: str = "dataset") -> Repository:
    """
    The folder or the repository on the Hub that a name stands for.

    Args:
        name (`str` or `Path`):
            A folder, or `user/name`, or `user/name@revision` with a branch, tag or commit. A folder comes first.
        kind (`str`, *optional*, defaults to `"dataset"`):
            `"dataset"` or `"model"`.

    Raises:
        FileNotFoundError: if it is neither a folder nor looks like a Hub id.
        HubError: if the Hub does not have it, or cannot be reached and the cache does not have it either.
    """
    if local_path(name).is_dir():
        return Repository(str(local_path(name)), kind)
    match = HUB_ID.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(
            f"{name} is neither a folder nor the id of a {kind} on the Hub, such as user/name or user/name@revision"
        )
    repo_id, revision = match["repo_id"], match["revision"]
    what = f"looking for the {kind} {name} (there is no folder of that name)"
    if constants.is_offline_mode():
        with explained(what):
            snapshot = snapshot_download(repo_id, repo_type=kind, revision=revision, allow_patterns=[])
        return Repository(repo_id, kind, Path(snapshot).name)
    retried(what, lambda: HfApi().repo_info(repo_id, repo_type=kind, revision=revision))
    # Notes in the cache which commit the name stands for, so that it is known offline, too. (If the Hub cannot be
    # reached, it falls back on an older note; that it can be has just been seen.)
    found = retried(what, lambda: HfApi().resolve_revision(repo_id, repo_type=kind, revision=revision))
    return Repository(repo_id, kind, found.resolved)
