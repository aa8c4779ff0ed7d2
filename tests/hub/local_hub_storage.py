"""What a local Hub keeps: repositories made of commits, over one content-addressed store of files."""

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LFS_SUFFIXES = (".parquet", ".safetensors", ".png", ".gif", ".mp4", ".bin", ".pt", ".zip", ".npz", ".arrow")
MAX_REGULAR_SIZE = 10 * 2**20
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class HubError(Exception):
    """An answer other than success: its HTTP status, what a person reads, and the code that clients branch on."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class File:
    """A file of a commit: the sha256 its bytes are stored under, and what git calls it."""

    sha256: str
    size: int
    lfs: bool
    oid: str

    @property
    def etag(self) -> str:
        """What clients compare to know whether they have the file already."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """An immutable state of all files of a repository."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: names (branches, tags) for some of its commits."""

    repo_type: str
    repo_id: str
    private: bool
    created: str
    branches: dict[str, str]
    tags: dict[str, str]
    commits: dict[str, Commit]

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit hash (at least 7 digits of it) stands for."""
        revision = "main" if revision == "HEAD" else revision
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits and re.fullmatch("[0-9a-f]{7,40}", oid):
            oid = next((known for known in self.commits if known.startswith(oid)), oid)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and all before it, newest first."""
        commits = [commit]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git keeps in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to the large file storage, judging by its name, size and first bytes."""
    if path.endswith(LFS_SUFFIXES) or size > MAX_REGULAR_SIZE or b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end within a character, which takes up to four bytes.
        return len(sample) == size or error.start < len(sample) - 3
    return False


class Storage:
    """Repositories, whose contents lie in a folder under their sha256.

    Whoever reads or changes a repository holds `lock`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.objects = self.folder / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}

    def create(self, repo_type: str, repo_id: str, private: bool = False) -> Repo:
        """A new repository; like on the Hub, its first commit is the system's and holds `.gitattributes`."""
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
            raise HubError(400, f"Invalid repository name: {repo_id!r}")
        repo = Repo(repo_type, repo_id, private, now(), {"main": ""}, {}, {})
        self.commit(repo, "main", {".gitattributes": self.regular_file(GITATTRIBUTES)}, "initial commit")
        self.repos[repo_type, repo_id] = repo
        return repo

    def commit(
        self, repo: Repo, branch: str, changes: Mapping[str, File | None], title: str, message: str = ""
    ) -> Commit:
        """Put a commit on top of a branch; None deletes. Without changes the commit is empty, as on the Hub."""
        parent = repo.branches[branch] or None
        changed = {**(repo.commits[parent].files if parent else {}), **changes}
        files = {path: file for path, file in sorted(changed.items()) if file is not None}
        date = now()
        listing = json.dumps([parent, title, message, date, {path: file.etag for path, file in files.items()}])
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), parent, title, message, date, files)
        repo.commits[commit.oid] = commit
        repo.branches[branch] = commit.oid
        return commit

    def store(self, chunks: Iterable[bytes], sha256: str | None = None) -> tuple[str, int]:
        """Keep some content, which must have this sha256 if one is given, and return its sha256 and size."""
        digest, size = hashlib.sha256(), 0
        descriptor, temporary = tempfile.mkstemp(dir=self.folder)
        try:
            with open(descriptor, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += file.write(chunk)
            if sha256 not in (None, digest.hexdigest()):
                raise HubError(400, f"The content's sha256 is {digest.hexdigest()}, not {sha256}")
            os.replace(temporary, self.objects / digest.hexdigest())
        except BaseException:
            os.unlink(temporary)
            raise
        return digest.hexdigest(), size

    def stored_size(self, sha256: str) -> int | None:
        """The size of a stored content, None if there is none of this sha256."""
        path = self.objects / sha256
        return path.stat().st_size if path.exists() else None

    def regular_file(self, content: bytes) -> File:
        """A file that git itself holds."""
        return File(*self.store([content]), lfs=False, oid=git_oid(content))

    def lfs_file(self, sha256: str, size: int) -> File:
        """A file whose content is in the large file storage already."""
        return File(sha256, size, lfs=True, oid=git_oid(lfs_pointer(sha256, size)))
