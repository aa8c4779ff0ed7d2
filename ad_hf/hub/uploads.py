"""An upload: one commit, whole or not at all, on top of what others have pushed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ad_hf.hub.model_files import Content
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import read_text
from ad_hf.storage.repositories import HubError, retried

ATTEMPTS = 8


@dataclass
class Upload:
    """
    What a repository is to hold.

    Attributes:
        kind (`str`):
            `"dataset"` or `"model"`.
        files (`dict[str, Path | bytes]`):
            Local file, or content, of each path in the repository.
        replaces (`Callable[[str], bool]`):
            Whether a path of the repository belongs to what is pushed: if it is not among the files, it is deleted.
        card (`Callable[[str, str | None, Callable[[str], Path], list[str]], str]`):
            Makes README.md of the repository's full id, of the README.md that is there, of a function that fetches
            another file, and of all paths there.
    """

    kind: str
    files: Mapping[str, Content]
    replaces: Callable[[str], bool]
    card: Callable[[str, str | None, Callable[[str], Path], list[str]], str]


def _is_there(entry: RepoFile | None, content: Content) -> bool:
    """Whether a repository's entry has a file's content."""
    if entry is None or entry.size != (len(content) if isinstance(content, bytes) else content.stat().st_size):
        return False
    if entry.lfs is not None and isinstance(content, Path):
        with open(content, "rb") as opened:
            return sha_fileobj(opened).hex() == entry.lfs.sha256
    return git_hash(content if isinstance(content, bytes) else content.read_bytes()) == entry.blob_id


def _commit(api: HfApi, repo_id: str, branch: str, upload: Upload, message: str, folder: str) -> str:
    """
    Bring a repository's branch to hold an upload, on top of its present head; returns the commit that has it.

    What has to be read of the repository goes into a folder, so that no cache is needed.
    """
    kind = upload.kind
    head = api.repo_info(repo_id, repo_type=kind, revision=branch).sha
    entries = api.list_repo_tree(repo_id, repo_type=kind, revision=head, recursive=True)
    remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def fetch(path: str) -> Path:
        return Path(hf_hub_download(repo_id, path, repo_type=kind, revision=head, token=api.token, local_dir=folder))

    old_card = read_text(fetch(CARD)) if CARD in remote else None
    card = upload.card(repo_id, old_card, fetch, sorted(remote))
    operations: list[Any] = []
    for path, file in upload.files.items():
        if not _is_there(remote.get(path), file):
            operations.append(CommitOperationAdd(path, file))
    api.preupload_lfs_files(repo_id, operations, repo_type=kind, revision=branch, free_memory=False)
    operations += [
        CommitOperationDelete(path) for path in remote if upload.replaces(path) and path not in upload.files
    ]
    if card != old_card:
        operations.append(CommitOperationAdd(CARD, card.encode()))
    if not operations:
        return str(head)
    return api.create_commit(
        repo_id, operations, commit_message=message, repo_type=kind, revision=branch, parent_commit=head
    ).oid


def make_repository(
    repo_id: str, kind: str, branch: str = "main", private: bool | None = None, token: str | None = None
) -> str:
    """
    Make a repository and a branch of it, if they are not there yet; arguments as of [`push_model`].

    Returns:
        `str`: the repository's full id.

    Raises:
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    if constants.is_offline_mode():
        raise HubError(f"pushing to {repo_id}: HF_HUB_OFFLINE is set")
    api = HfApi(token=token)

    def make() -> str:
        created = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(created.repo_id, branch=branch, repo_type=kind, exist_ok=True)
        return created.repo_id

    return retried(f"pushing to {repo_id}", make)


def push_upload(
    upload: Upload, repo_id: str, private: bool | None, revision: str | None, token: str | None, message: str
) -> str:
    """Push an upload to a branch, on top of what others push meanwhile; returns the URL of the commit that has it."""
    api, branch, what = HfApi(token=token), revision or "main", f"pushing to {repo_id}"
    full_id = make_repository(repo_id, upload.kind, branch, private, token)
    for _ in range(ATTEMPTS):
        try:
            with TemporaryDirectory() as folder:
                commit = retried(what, lambda: _commit(api, full_id, branch, upload, message, folder))
        except HubError as error:
            if error.status not in (409, 412):
                raise
            continue  # someone else has pushed meanwhile: once more, on top of that
        prefix = "datasets/" if upload.kind == "dataset" else ""
        return f"{api.endpoint}/{prefix}{full_id}/tree/{commit}"
    raise HubError(f"{what}: {ATTEMPTS} times in a row, others pushed to it first; try again")
