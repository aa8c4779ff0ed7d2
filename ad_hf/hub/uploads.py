"""An upload: one commit, whole or not at all, on top of what others have pushed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from ad_hf.hub.config import PushConfig
from ad_hf.hub.model_files import Content
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import read_text
from ad_hf.storage.repositories import HubError, retried

ATTEMPTS = 8


@dataclass(frozen=True)
class Head:
    """The newest commit of a repository's branch: all its paths, and a function that reads the text of a file."""

    repo_id: str
    paths: list[str]
    read: Callable[[str], str | None]

    def card(self, local: str | None) -> str | None:
        """The text of README.md; a local one where the repository has none."""
        return self.read(CARD) if CARD in self.paths else local


@dataclass(frozen=True)
class Upload:
    """
    The content of a push.

    Attributes:
        kind (`str`):
            `"dataset"`, `"model"` or `"space"`.
        files (`Mapping[str, Path | bytes]`):
            Local file, or content, of each path in the repository.
        replaces (`Callable[[str], bool]`):
            Whether a path of the repository belongs to the upload, and is deleted if it is not among the files.
        card (`Callable[[Head], str]`):
            Makes the new README.md.
        message (`str`):
            Title of the commit, unless a [`PushConfig`] has another.
        of_card (`Callable[[Head, str], Mapping[str, bytes]]`, *optional*):
            Makes further files from the new README.md.
    """

    kind: str
    files: Mapping[str, Content]
    replaces: Callable[[str], bool]
    card: Callable[[Head], str]
    message: str
    of_card: Callable[[Head, str], Mapping[str, bytes]] = lambda head, card: {}


def _commit(api: HfApi, repo_id: str, upload: Upload, config: PushConfig) -> str:
    """Commit an upload on top of the branch's head; returns the hash. The client leaves out unchanged files."""
    branch, kind = config.revision or "main", upload.kind
    head = api.repo_info(repo_id, repo_type=kind, revision=branch).sha
    at: Any = {"repo_type": kind, "revision": head}
    paths = api.list_repo_files(repo_id, **at)
    with TemporaryDirectory() as folder:  # rather than the cache, which may be read-only

        def read(path: str) -> str | None:
            return read_text(api.hf_hub_download(repo_id, path, local_dir=folder, **at))

        card = upload.card(Head(repo_id, paths, read))
        files = {**upload.files, **upload.of_card(Head(repo_id, paths, read), card), CARD: card.encode()}
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(path, content) for path, content in files.items()),
            *(CommitOperationDelete(path) for path in paths if upload.replaces(path) and path not in files),
        ],
        commit_message=config.commit_message or upload.message,
        repo_type=kind,
        revision=branch,
        parent_commit=head,
    ).oid


def make_repository(repo_id: str, kind: str, config: PushConfig) -> str:
    """Make a repository and its branch unless they exist; returns the repository's full id, raises a `HubError`."""
    if constants.is_offline_mode():
        raise HubError(f"pushing to {repo_id}: HF_HUB_OFFLINE is set")
    api = HfApi(token=config.token)

    def make() -> str:
        sdk = "static" if kind == "space" else None
        settings: Any = {"private": config.private, "exist_ok": True, "space_sdk": sdk}
        full_id = api.create_repo(repo_id, repo_type=kind, **settings).repo_id
        if config.revision not in (None, "main"):
            api.create_branch(full_id, branch=str(config.revision), repo_type=kind, exist_ok=True)
        return full_id

    return retried(f"pushing to {repo_id}", make)


def push_upload(upload: Upload, repo_id: str, config: PushConfig) -> str:
    """Push to a branch, on top of what others push meanwhile; returns the URL of the commit that holds the upload."""
    api, action = HfApi(token=config.token), f"pushing to {repo_id}"
    full_id = make_repository(repo_id, upload.kind, config)
    for _ in range(ATTEMPTS):
        try:
            commit = retried(action, lambda: _commit(api, full_id, upload, config))
        except HubError as error:
            if error.status not in (409, 412):  # others have pushed meanwhile: once more, on top of that
                raise
        else:
            prefix = "" if upload.kind == "model" else f"{upload.kind}s/"
            return f"{api.endpoint}/{prefix}{full_id}/tree/{commit}"
    raise HubError(f"{action}: {ATTEMPTS} times in a row, others pushed to it first; try again")
