"""Pushing datasets and models: one commit, whole or not at all, on top of what others have pushed meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ad_hf.evaluation.protocol import EVALUATION_FILES, ROWS_FILE, SUMMARY_FILE, read_rows
from ad_hf.files import read_text
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata
from ad_hf.hub.cards import (
    CARD,
    RUN_FILES,
    add_run_files,
    dataset_card,
    dataset_config,
    evaluation_card,
    model_card,
    without_configs,
)
from ad_hf.hub.repositories import HubError, find_repository, retried

if TYPE_CHECKING:
    from ad_hf.model.modeling_ad import ADModel

ATTEMPTS = 8
CHECKPOINT_FOLDER = "checkpoint"  # of a model's repository, in which its run's newest checkpoint is
PICKLES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".zip"}


def _is_pickle(path: str) -> bool:
    return Path(path).suffix.lower() in PICKLES


@dataclass
class Upload:
    """
    What a repository is to hold.

    Attributes:
        kind (`str`):
            `"dataset"` or `"model"`.
        files (`dict[str, Path]`):
            Local file of each path in the repository.
        replaces (`Callable[[str], bool]`):
            Whether a path of the repository belongs to what is pushed: if it is not among the files, it is deleted.
        card (`Callable[[str, str | None, Callable[[str], Path], list[str]], str]`):
            Makes README.md of the repository's full id, of the README.md that is there, of a function that fetches
            another file, and of all paths there.
    """

    kind: str
    files: dict[str, Path]
    replaces: Callable[[str], bool]
    card: Callable[[str, str | None, Callable[[str], Path], list[str]], str]


def _is_there(entry: RepoFile | None, file: Path) -> bool:
    """Whether a repository's entry has the content of a file."""
    if entry is None or entry.size != file.stat().st_size:
        return False
    if entry.lfs is not None:
        with open(file, "rb") as opened:
            return sha_fileobj(opened).hex() == entry.lfs.sha256
    return git_hash(file.read_bytes()) == entry.blob_id


def _commit(api: HfApi, repo_id: str, branch: str, upload: Upload, message: str) -> str:
    """Bring a repository's branch to hold an upload, on top of its present head; returns the commit that has it."""
    kind = upload.kind
    head = api.repo_info(repo_id, repo_type=kind, revision=branch).sha
    entries = api.list_repo_tree(repo_id, repo_type=kind, revision=head, recursive=True)
    remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def fetch(path: str) -> Path:
        return Path(hf_hub_download(repo_id, path, repo_type=kind, revision=head, token=api.token))

    old_card = fetch(CARD).read_text(encoding="utf-8") if CARD in remote else None
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


def _push(
    upload: Upload, repo_id: str, private: bool | None, revision: str | None, token: str | None, message: str
) -> str:
    api, branch, what = HfApi(token=token), revision or "main", f"pushing to {repo_id}"
    full_id = make_repository(repo_id, upload.kind, branch, private, token)
    for _ in range(ATTEMPTS):
        try:
            commit = retried(what, lambda: _commit(api, full_id, branch, upload, message))
        except HubError as error:
            if error.status not in (409, 412):
                raise
            continue  # someone else has pushed meanwhile: once more, on top of that
        prefix = "datasets/" if upload.kind == "dataset" else ""
        return f"{api.endpoint}/{prefix}{full_id}/tree/{commit}"
    raise HubError(f"{what}: {ATTEMPTS} times in a row, others pushed to it first; try again")


def _local_folder(name: str | Path, kind: str) -> Path:
    """A folder, or what a Hub id stands for, as a folder of the cache."""
    return find_repository(name, kind).download(["*"])


def push_dataset(
    dataset: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    config_name: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    r"""
    Push a learning-history dataset to the Hub: shards, metadata and card, in one commit.

    Pushed again, only what has changed is sent; interrupted, nothing is half there, and what was sent is not sent
    again. Other configurations of the repository, what others push meanwhile, and text that people wrote into its
    README.md stay.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset, or the id of another repository to copy.
        repo_id (`str`):
            `user/name` of the repository, which is made if need be.
        private (`bool`, *optional*):
            Whether a new repository is private; the account's default if not given.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch to push to, which is made if need be.
        config_name (`str`, *optional*):
            Push this configuration alone; or, if the folder holds a single one of another name, push it under this.
        token (`str`, *optional*):
            By default `HF_TOKEN`, or that of `hf auth login`.
        commit_message (`str`, *optional*):
            Of the commit.

    Returns:
        `str`: URL of the commit that holds the dataset.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it is not whole, or not what a dataset of learning histories should be.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = _local_folder(dataset, "dataset")
    names = sorted(path.parent.name for path in folder.glob(f"[!.]*/{METADATA_FILE}"))
    if not names:
        HistoryDataset.open(folder)  # says what is missing
    if config_name is not None and config_name not in names:
        if len(names) != 1:
            raise ValueError(f"{folder} has no configuration {config_name!r}: expected one of {', '.join(names)}")
        chosen = {config_name: names[0]}
    else:
        chosen = {name: name for name in names if config_name in (None, name)}
    metadata: dict[str, HistoryMetadata] = {}
    files: dict[str, Path] = {}
    for target, name in chosen.items():
        opened = HistoryDataset.open(folder, name)
        check_dataset(opened)
        metadata[target] = opened.metadata
        shards = [folder / path for split in opened.splits for path in opened.shards(split)]
        files |= {f"{target}/{path.name}": path for path in [*shards, folder / name / METADATA_FILE]}
    configs = [dataset_config(folder / name, metadata[target], target) for target, name in chosen.items()]
    # The folder's own card may speak of configurations that are not pushed.
    local_card = read_text(folder / CARD)
    first_card = None if local_card is None else without_configs(local_card)

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        others = [path for path in paths if re.fullmatch(rf"[^/.][^/]*/{METADATA_FILE}", path)]
        known = dict(metadata)
        for path in others:
            if path.partition("/")[0] not in known:
                known[path.partition("/")[0]] = HistoryMetadata.from_json(fetch(path).read_text())
        return dataset_card(known, configs, full_id, first_card if old is None else old)

    def replaces(path: str) -> bool:
        return path.partition("/")[0] in chosen and path.endswith(".parquet")

    upload = Upload("dataset", files, replaces, card)
    message = commit_message or f"Push learning histories ({', '.join(chosen)})"
    return _push(upload, repo_id, private, revision, token, message)


def push_model(
    model: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    checkpoint: str | Path | None = None,
) -> str:
    r"""
    Push a model to the Hub: weights, configuration, modelling code, card, and its run's recipe, report and pictures.

    Args:
        model (`str` or `Path`):
            Folder of a run or of a model, or the id of another repository to copy.
        repo_id (`str`):
            `user/name` of the repository, which is made if need be.
        private (`bool`, *optional*):
            Whether a new repository is private; the account's default if not given.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch to push to, which is made if need be.
        token (`str`, *optional*):
            By default `HF_TOKEN`, or that of `hf auth login`.
        commit_message (`str`, *optional*):
            Of the commit.
        checkpoint (`str` or `Path`, *optional*):
            Folder of a checkpoint to put into `checkpoint/`, from which training can go on elsewhere.

    Returns:
        `str`: URL of the commit that holds the model.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the folder holds pickles or other files that can run code when they are loaded.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = model_folder(_local_folder(model, "model"))
    if folder.name == "model":
        add_run_files(folder, folder.parent)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}
    files.pop(CARD, None)
    if checkpoint is not None:
        inner = [path for path in sorted(Path(checkpoint).rglob("*")) if path.is_file()]
        files |= {f"{CHECKPOINT_FOLDER}/{path.relative_to(checkpoint).as_posix()}": path for path in inner}
    pickles = [name for name in files if _is_pickle(name)]
    if pickles:
        raise ValueError(f"{folder} holds files that run code when they are loaded, {', '.join(pickles)}: remove them")
    local_card = read_text(folder / CARD)

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        return model_card(folder, full_id, local_card if old is None else old)

    def replaces(path: str) -> bool:
        if path.startswith(f"{CHECKPOINT_FOLDER}/"):
            return checkpoint is not None
        return "/" not in path and (path in RUN_FILES or ".safetensors" in path or _is_pickle(path))

    upload = Upload("model", files, replaces, card)
    return _push(upload, repo_id, private, revision, token, commit_message or "Push a model")


def push_evaluation(
    evaluation: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    r"""
    Push an evaluation to the Hub, as a dataset of returns: rows, summary, pictures and card.

    Args:
        evaluation (`str` or `Path`):
            Folder of the evaluation, as `ad-hf evaluate` leaves it.
        repo_id (`str`):
            `user/name` of the dataset's repository, which is made if need be.
        private (`bool`, *optional*):
            Whether a new repository is private; the account's default if not given.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch to push to, which is made if need be.
        token (`str`, *optional*):
            By default `HF_TOKEN`, or that of `hf auth login`.
        commit_message (`str`, *optional*):
            Of the commit.

    Returns:
        `str`: URL of the commit that holds it.

    Raises:
        FileNotFoundError: if there is no evaluation.
        ValueError: if its returns are none.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = Path(evaluation)
    summary = read_text(folder / SUMMARY_FILE)
    if summary is None:
        raise FileNotFoundError(f"{folder} holds no evaluation: expected {SUMMARY_FILE} and {ROWS_FILE} in it")
    read_rows(folder / ROWS_FILE)
    files = {name: folder / name for name in EVALUATION_FILES if (folder / name).is_file()}
    local_card = read_text(folder / CARD)

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        return evaluation_card(folder, full_id, json.loads(summary), local_card if old is None else old)

    upload = Upload("dataset", files, lambda path: path in EVALUATION_FILES, card)
    return _push(upload, repo_id, private, revision, token, commit_message or "Push an evaluation")


def model_folder(folder: str | Path) -> Path:
    """
    The folder of a model, given itself or that of its run.

    Raises:
        FileNotFoundError: if there is none.
    """
    for candidate in (Path(folder), Path(folder) / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise FileNotFoundError(f"{folder} holds no model: expected config.json and model.safetensors in it")


def _folder_of(model: ADModel) -> Path | None:
    """What a model was loaded from: a folder, or the files beside its weights in a Hub repository."""
    name, revision = model.name_or_path, getattr(model, "loaded_revision", None)
    if not name:
        return None
    if revision is not None and not Path(name).is_dir():
        name = f"{name}@{revision}"  # the files beside the weights that were loaded, not the newest ones
    try:
        return find_repository(name, "model").download([*RUN_FILES, CARD])
    except FileNotFoundError:  # a folder that is gone
        return None


def push_loaded_model(
    model: ADModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "50GB",
) -> str:
    """
    What `model.push_to_hub(repo_id)` does where this package is installed: [`push_model`] of the model as it is now,
    with the recipe, report and pictures of the folder that it was loaded from.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        loaded_from = _folder_of(model)
        if loaded_from is not None:
            add_run_files(Path(folder), loaded_from)
            if (loaded_from / CARD).is_file():
                shutil.copyfile(loaded_from / CARD, Path(folder) / CARD)
        key = token if isinstance(token, str) else None
        return push_model(folder, repo_id, private, revision, key, commit_message)
