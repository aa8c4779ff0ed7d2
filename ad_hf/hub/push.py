"""Pushing datasets, models and evaluations: files by their names, and a card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ad_hf.evaluation.card import evaluation_card
from ad_hf.evaluation.protocol import EVALUATION_FILES, ROWS_FILE, SUMMARY_FILE, read_rows
from ad_hf.histories.card import dataset_card, dataset_config
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata
from ad_hf.hub.model_card import model_card
from ad_hf.hub.model_files import (
    CHECKPOINT_FOLDER,
    PUSHED_AGAIN,
    RESULT_FILES,
    RUN_FILES,
    Content,
    checkpoint_files,
    is_pickle,
    model_files,
    model_folder,
    own_results,
    run_files,
    weights_digest,
)
from ad_hf.hub.models import load_model
from ad_hf.hub.uploads import Upload, push_upload
from ad_hf.model.modeling_ad import ADModel
from ad_hf.settings import read_json
from ad_hf.storage.cards import CARD, without_configs
from ad_hf.storage.files import files_in, read_text
from ad_hf.storage.repositories import find_repository

DATASET_PATTERNS = (CARD, f"*/{METADATA_FILE}", "*/*.parquet")  # of a repository that is pushed again


def _card_of(folder: Path) -> str | None:
    """The text of a folder's card, if it has one; a `ValueError` for a link to something outside of the folder."""
    return read_text(files_in(folder, [CARD]).get(CARD, folder / CARD))


def push_dataset(
    dataset: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    config_name: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
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
        license (`str`, *optional*):
            Of what is pushed, for the card, such as `"mit"`. By default that of the card that is there already; else
            `"apache-2.0"`, or `"unknown"` for histories that were imported.

    Returns:
        `str`: URL of the commit that holds the dataset.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it is not whole, or not what a dataset of learning histories should be.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = find_repository(dataset, "dataset").download(DATASET_PATTERNS)
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
        names_there = [*(path.name for path in shards), METADATA_FILE]
        files |= {f"{target}/{file}": path for file, path in files_in(folder / name, names_there).items()}
    configs = [dataset_config(folder / name, metadata[target], target) for target, name in chosen.items()]
    # The folder's own card may speak of configurations that are not pushed.
    local_card = _card_of(folder)
    first_card = None if local_card is None else without_configs(local_card)

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        others = [path for path in paths if re.fullmatch(rf"[^/.][^/]*/{METADATA_FILE}", path)]
        known = dict(metadata)
        for path in others:
            if path.partition("/")[0] not in known:
                text = read_text(fetch(path)) or ""
                known[path.partition("/")[0]] = HistoryMetadata.from_json(text, f"{full_id}, {path}")
        return dataset_card(known, configs, full_id, first_card if old is None else old, license)

    def replaces(path: str) -> bool:
        return path.partition("/")[0] in chosen and path.endswith(".parquet")

    upload = Upload("dataset", files, replaces, card)
    message = commit_message or f"Push learning histories ({', '.join(chosen)})"
    return push_upload(upload, repo_id, private, revision, token, message)


def push_model(
    model: ADModel | str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    checkpoint: str | Path | None = None,
    license: str | None = None,
) -> str:
    r"""
    Push a model to the Hub: weights, configuration, modelling code, card, and its run's recipe, report and pictures.

    Files go by a list of names, whatever else lies in the folder, and the code is this package's own. Results go
    along where they are of these weights, and none of other weights stay in the repository.

    Args:
        model ([`ADModel`], `str` or `Path`):
            A model as it is now, with what there is of its run in the folder, or at the revision on the Hub, that it
            was loaded from; folder of a run or of a model; or the id of another repository to copy.
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
        license (`str`, *optional*):
            Of what is pushed, for the card, such as `"mit"`. By default that of the card that is there already; else
            `"apache-2.0"`.

    Returns:
        `str`: URL of the commit that holds the model.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the folder holds pickles, links that leave it, or another kind of model.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    if not isinstance(model, (ADModel, str, Path)):
        raise ValueError(f"model must be an ADModel, a folder or a Hub id, got {type(model).__name__}")
    with ExitStack() as stack:
        beside: Path | None
        if isinstance(model, (str, Path)):
            folder = beside = model_folder(find_repository(model, "model").download(PUSHED_AGAIN))
            loaded, _ = load_model(folder)
        else:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            model.save_pretrained(folder)
            loaded, beside = model, _folder_of(model)
        files = model_files(folder)
        if beside is not None:
            digest = weights_digest(loaded)
            found = own_results(run_files(beside), lambda: digest)
            if beside != folder and _digest_in(beside) != digest:  # it has been trained or changed since
                found = {name: path for name, path in found.items() if name not in RESULT_FILES}
            files |= found
        if checkpoint is not None:
            inner = checkpoint_files(Path(checkpoint))
            files |= {f"{CHECKPOINT_FOLDER}/{name}": content for name, content in inner.items()}
        card = None if beside is None else _card_of(beside)
        return push_files(files, repo_id, private, revision, token, commit_message or "Push a model", card, license)


def push_files(
    files: Mapping[str, Content],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Push a model",
    local_card: str | None = None,
    license: str | None = None,
) -> str:
    """
    Push files of a model, and a card made of them; arguments as of [`push_model`].

    Args:
        files (`Mapping[str, Path | bytes]`):
            By their paths in the repository; with some in `checkpoint/`, these are all that stay there.
        local_card (`str`, *optional*):
            The card so far where the repository has none.
    """

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        return model_card(files, full_id, local_card if old is None else old, license)

    def replaces(path: str) -> bool:
        if path.startswith(f"{CHECKPOINT_FOLDER}/"):
            return any(name.startswith(f"{CHECKPOINT_FOLDER}/") for name in files)
        return "/" not in path and (path in RUN_FILES or ".safetensors" in path or is_pickle(path))

    return push_upload(Upload("model", files, replaces, card), repo_id, private, revision, token, commit_message)


def push_evaluation(
    evaluation: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
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
        license (`str`, *optional*):
            Of what is pushed, for the card, such as `"mit"`. By default that of the card that is there already; else
            `"apache-2.0"`.

    Returns:
        `str`: URL of the commit that holds it.

    Raises:
        FileNotFoundError: if there is no evaluation.
        ValueError: if its returns are none.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = Path(evaluation)
    if not (folder / SUMMARY_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no evaluation: expected {SUMMARY_FILE} and {ROWS_FILE} in it")
    read_rows(folder / ROWS_FILE)
    summary, files = read_json(folder / SUMMARY_FILE), files_in(folder, EVALUATION_FILES)
    local_card = _card_of(folder)

    def card(full_id: str, old: str | None, fetch: Callable[[str], Path], paths: list[str]) -> str:
        return evaluation_card(folder, full_id, summary, local_card if old is None else old, license)

    upload = Upload("dataset", files, lambda path: path in EVALUATION_FILES, card)
    return push_upload(upload, repo_id, private, revision, token, commit_message or "Push an evaluation")


def _folder_of(model: ADModel) -> Path | None:
    """What a model was loaded from: a folder, or the files beside its weights in a Hub repository."""
    name, revision = model.name_or_path, getattr(model, "loaded_revision", None)
    if not name:
        return None
    if revision is not None and not Path(name).is_dir():
        name = f"{name}@{revision}"  # the files beside the weights that were loaded, not the newest ones
    try:
        return find_repository(name, "model").download(PUSHED_AGAIN)
    except FileNotFoundError:  # a folder that is gone
        return None


def _digest_in(folder: Path) -> str | None:
    """The digest of the weights in a folder, if there are any."""
    try:
        return weights_digest(load_model(folder)[0])
    except (ValueError, OSError):
        return None
