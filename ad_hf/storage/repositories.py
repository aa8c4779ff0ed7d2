"""Datasets and models by name: a local folder, or a repository on the Hub at one commit of it."""

from __future__ import annotations

import errno
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, HfFileSystem, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ad_hf.storage.files import local_path

HUB_ID = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]+))?")
ATTEMPTS, RETRY_SECONDS = 5, 20.0  # how often a call is made at most, and until when
CACHE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)


class HubError(OSError):
    """
    Something that the Hub, or the way to it, did not let us do, and what to do about it.

    `transient` says whether another attempt may succeed, and `status` is the HTTP status of the Hub's answer, if any.
    """

    def __init__(self, message: str, transient: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.transient, self.status = transient, status


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the Hub's client in a step, such as `"reading the dataset user/name"`, into a [`HubError`]."""
    try:
        yield
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError) as error:
        # The client wraps the HTTP error of an upload into a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = _reason(cause)
        if reason is None:
            raise
        raise HubError(f"{what}: {reason[0]}", *reason[1:]) from error


def _reason(error: BaseException) -> tuple[Any, ...] | None:
    """The message, transience and status of a [`HubError`] for an error of the client; `None` for other errors."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return ("access has to be asked for on the repository's page first",)
    if isinstance(error, RepositoryNotFoundError):
        missing = f"there is no such repository on {hub}, or it is private"
        return (f"{missing}: check the name, and set HF_TOKEN or run `hf auth login`",)
    if isinstance(error, RevisionNotFoundError):
        return ("the repository has no such revision",)
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        offline = constants.is_offline_mode()
        why = "HF_HUB_OFFLINE is set" if offline else f"{hub} cannot be reached"
        return f"it is not in the cache, and {why}", not offline
    if isinstance(error, EntryNotFoundError):
        return (f"a file is missing in the repository: {_first_line(error)}",)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            do = "set HF_TOKEN to a token that may do this, or run `hf auth login`"
            return f"the Hub refused it ({status}): {do}", False, status
        transient = status in (408, 429) or status >= 500
        return f"the Hub answered with status {status}: {_first_line(error)}", transient, status
    if isinstance(error, HTTPError):
        return f"the connection to {hub} failed: {_first_line(error) or type(error).__name__}", True
    if isinstance(error, OSError) and error.errno in CACHE_ERRORS:
        return (f"the cache cannot be written to ({error}): set HF_HOME to a folder that can be and has room",)
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


T = TypeVar("T")


def retried(what: str, call: Callable[[], T]) -> T:
    """
    The result of a call to the Hub, made again after 1, 2, 4, ... seconds where that may help.

    The Hub's client does so itself for some requests, for 23 seconds, and not for others. A [`HubError`] names the
    step (`what`) if the call keeps failing.
    """
    start = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            with explained(what):
                return call()
        except HubError as error:
            if not error.transient or attempt == ATTEMPTS - 1 or time.monotonic() - start > RETRY_SECONDS:
                raise
            warnings.warn(f"{error}; trying again", stacklevel=2)
            time.sleep(min(8.0, 2.0**attempt))
    raise AssertionError("the last attempt returns or raises")


@cache
def _filesystem() -> HfFileSystem:
    """One file system, with its listings, for all threads."""
    return HfFileSystem(skip_instance_cache=True)


@dataclass(frozen=True)
class Repository:
    """A folder, or a repository on the Hub at one commit."""

    name: str  # the folder, or the repository's id
    kind: str  # "dataset" or "model"
    revision: str | None = None  # hash of the commit; `None` for a folder

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def to_json(self) -> dict[str, Any]:
        """Its entry in the files of a run."""
        return {"name": self.name, "revision": self.revision}

    @property
    def is_remote(self) -> bool:
        """Whether its files are read over HTTP, rather than from a folder or an offline machine's cache."""
        return self.revision is not None and not constants.is_offline_mode()

    def _retried(self, step: str, call: Callable[[], T]) -> T:
        return retried(f"{step} the {self.kind} {self}", call)

    def files(self) -> Sequence[str]:
        """Paths of all files in it."""
        if not self.is_remote:
            folder = self.download(())
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        read: Any = {"repo_type": self.kind, "revision": self.revision}
        return sorted(self._retried("reading", lambda: HfApi().list_repo_files(self.name, **read)))

    def download(self, patterns: Sequence[str]) -> Path:
        """A local folder (of the Hub: its cache) with the files of patterns such as `"default/train-*.parquet"`."""
        if self.revision is None:
            return Path(self.name)
        read: Any = {"repo_type": self.kind, "revision": self.revision, "allow_patterns": list(patterns)}
        return Path(self._retried("downloading", lambda: snapshot_download(self.name, **read)))

    def _remote_path(self, path: str) -> str:
        return f"{self.kind}s/{self.name}@{self.revision}/{path}"

    def open_remote(self, path: str) -> Any:
        """A file of a Hub repository to read in parts over HTTP: every read is one request, without a cache."""
        return _filesystem().open(self._remote_path(path), "rb", cache_type="none")

    def sizes(self, pattern: str) -> dict[str, int]:
        """Sizes in bytes of the files that match a pattern, by their paths, in order."""
        if not self.is_remote:
            folder = self.download((pattern,))
            paths = sorted(folder.glob(pattern))
            special = [str(path) for path in paths if path.exists() and not path.is_file()]
            if special:  # reading a pipe would wait
                raise ValueError(f"{self}: {', '.join(special)} is no regular file: expected a shard")
            return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        root = self._remote_path("")
        entries: Any = self._retried("reading", lambda: _filesystem().glob(root + pattern, detail=True))
        return {path.removeprefix(root): int(entries[path]["size"]) for path in sorted(entries)}


def find_repository(name: str | Path, kind: str = "dataset") -> Repository:
    """
    The folder or the repository on the Hub of a name.

    The name is a folder, which comes first, or `user/name`, or `user/name@revision` with a branch, tag or commit.

    Raises:
        FileNotFoundError: if it is neither a folder nor looks like a Hub id.
        HubError: if neither the Hub has it nor, where there is no way to the Hub, the cache.
    """
    if local_path(name).is_dir():
        return Repository(str(local_path(name)), kind)
    match = HUB_ID.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(
            f"{name} is neither a folder nor the id of a {kind} on the Hub, such as user/name or user/name@revision"
        )
    repo_id = match["repo_id"]
    read: Any = {"repo_type": kind, "revision": match["revision"]}
    what = f"looking for the {kind} {name} (there is no folder of that name)"
    if constants.is_offline_mode():
        with explained(what):
            snapshot = snapshot_download(repo_id, allow_patterns=[], **read)
        return Repository(repo_id, kind, Path(snapshot).name)
    retried(what, lambda: HfApi().repo_info(repo_id, **read))
    # Notes in the cache the commit that the name stands for, for offline use. (Without a way to the Hub it would fall
    # back on an older note, but the call before has reached the Hub.)
    commit = retried(what, lambda: HfApi().resolve_revision(repo_id, **read)).resolved
    return Repository(repo_id, kind, commit)
