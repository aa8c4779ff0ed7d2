"""Pushes of datasets, models and evaluations: files by their names, and a card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ad_hf.evaluation.card import evaluation_card
from ad_hf.evaluation.returns import ROWS_FILE, read_rows
from ad_hf.evaluation.summary import EVALUATION_FILES, STEPS, SUMMARY_FILE
from ad_hf.histories.card import dataset_card, dataset_config
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata
from ad_hf.hub.config import PushConfig
from ad_hf.hub.model_card import eval_results_file, evaluation_of, model_card
from ad_hf.hub.model_files import (
    CHECKPOINT_FOLDER,
    EVAL_RESULTS_FILE,
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
from ad_hf.hub.notebook import MARK, NOTEBOOK_FILE, model_notebook
from ad_hf.hub.preview import preview_config, preview_table
from ad_hf.hub.uploads import Head, Upload, push_upload
from ad_hf.model.modeling_ad import ADModel
from ad_hf.settings import read_json, read_utf8, with_settings
from ad_hf.storage.cards import CARD, without_configs
from ad_hf.storage.files import files_in
from ad_hf.storage.repositories import find_repository

DATASET_PATTERNS = (CARD, f"*/{METADATA_FILE}", "*/*.parquet")  # a push of a copy downloads these files


def _card_in(folder: Path) -> str | None:
    card = files_in(folder, [CARD]).get(CARD)
    return None if card is None else read_utf8(card)


@with_settings(PushConfig, "push")
def push_dataset(
    dataset: str | Path,
    repo_id: str,
    config: PushConfig,
    *,
    config_name: str | None = None,
    trust_remote_code: bool = False,
) -> str:
    """
    Push a learning-history dataset to the Hub: shards, metadata, card and a preview, in one commit.

    The preview is a configuration of its own, for people: pictures of some histories, which the Hub's viewer shows.

    A second push sends only the changes, and one after an interruption only the rest. Other configurations of the
    repository, pushes of others meanwhile, and text that people wrote into its README.md stay.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset, or the id of another repository to copy.
        repo_id (`str`):
            `user/name` of the repository.
        config ([`~ad_hf.hub.config.PushConfig`], *optional*):
            Its settings are keywords, too: `private`, `revision`, `token`, `commit_message`, `license`.
        config_name (`str`, *optional*):
            Push this configuration alone; or, if the folder holds a single one of another name, push it under this.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the preview may import and run the environment that the dataset names; without it, only known
            environments are rendered.

    Returns:
        `str`: URL of the commit that holds the dataset.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it is damaged or not a dataset of learning histories.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = find_repository(dataset, "dataset").download(DATASET_PATTERNS)
    names = sorted(path.parent.name for path in folder.glob(f"[!.]*/{METADATA_FILE}"))
    if not names:
        HistoryDataset.open(folder)  # raises
    if config_name is None or config_name in names:
        sources = {name: name for name in names if config_name in (None, name)}
    elif len(names) == 1:
        sources = {config_name: names[0]}
    else:
        raise ValueError(f"{folder} has no configuration {config_name!r}: expected one of {', '.join(names)}")
    metadata: dict[str, HistoryMetadata] = {}
    files: dict[str, Content] = {}
    previews = {target: preview_config(target) for target in sources}
    for target, name in sources.items():
        opened = HistoryDataset.open(folder, name)
        check_dataset(opened)
        metadata[target] = opened.metadata
        shards = [Path(path).name for split in opened.splits for path in opened.shards(split)]
        files |= {f"{target}/{each}": path for each, path in files_in(folder / name, [*shards, METADATA_FILE]).items()}
        pattern = previews[target]["data_files"][0]["path"]
        files[pattern.replace("*", "00000-of-00001")] = preview_table(opened, trust_remote_code)
    configs = [dataset_config(folder / name, metadata[target], target) for target, name in sources.items()]
    # The folder's own card may list configurations that are not pushed.
    local_card = _card_in(folder)
    first_card = local_card and without_configs(local_card)

    def card(head: Head) -> str:
        everything = dict(metadata)
        for path in head.paths:
            name = path.partition("/")[0]
            if re.fullmatch(rf"[^/.][^/]*/{METADATA_FILE}", path) and name not in metadata:
                everything[name] = HistoryMetadata.from_json(head.read(path) or "", f"{head.repo_id}, {path}")
        shown = [each for each in previews.values() if each["config_name"] not in everything]
        # Beside a preview, `load_dataset` finds the only histories under `default` alone, or with this mark.
        mark = {"default": True} if len(everything) == 1 and "default" not in everything else {}
        listed = [*({**each, **mark} for each in configs), *shown]
        return dataset_card(everything, listed, head.repo_id, head.card(first_card), config.license)

    def replaces(path: str) -> bool:
        return path.partition("/")[0] in sources and path.endswith(".parquet")

    message = f"Push learning histories ({', '.join(sources)})"
    return push_upload(Upload("dataset", files, replaces, card, message), repo_id, config)


@with_settings(PushConfig, "push")
def push_model(
    model: ADModel | str | Path, repo_id: str, config: PushConfig, *, checkpoint: str | Path | None = None
) -> str:
    """
    Push a model to the Hub: weights, configuration, modelling code, card, and its run's recipe, results and pictures.

    A list of names says which files are pushed, and the code is this package's own. Results are pushed if they are of
    these weights, and results of other weights are deleted from the repository. A `notebook.ipynb` plays the card's
    example, unless somebody has put another one into the repository.

    Args:
        model ([`ADModel`], `str` or `Path`):
            A model in memory, with the files of its run in the folder, or at the revision on the Hub, that it was
            loaded from; folder of a run or of a model; or the id of another repository to copy.
        repo_id (`str`):
            `user/name` of the repository.
        config ([`~ad_hf.hub.config.PushConfig`], *optional*):
            Its settings are keywords, too: `private`, `revision`, `token`, `commit_message`, `license`.
        checkpoint (`str` or `Path`, *optional*):
            Folder of a checkpoint to put into `checkpoint/`, from which training can go on elsewhere.

    Returns:
        `str`: URL of the commit that holds the model.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the folder holds pickles, links that leave it, or another kind of model.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    if not isinstance(model, (ADModel, str, Path)):
        raise ValueError(f"model must be an ADModel, a folder or a Hub id, got {type(model).__name__}")
    with TemporaryDirectory() as temporary:
        beside: Path | None
        if isinstance(model, ADModel):
            folder, beside = Path(temporary), _folder_of(model)
            model.save_pretrained(folder)
        else:
            folder = beside = model_folder(find_repository(model, "model").download(PUSHED_AGAIN))
            model, _ = load_model(folder)
        files = model_files(folder)
        if beside is not None:
            digest = weights_digest(model)
            results = own_results(run_files(beside), lambda: digest)
            if beside != folder and _digest_in(beside) != digest:  # it has been trained or changed since
                results = {name: path for name, path in results.items() if name not in RESULT_FILES}
            files |= results
        if checkpoint is not None:
            inner = checkpoint_files(Path(checkpoint))
            files |= {f"{CHECKPOINT_FOLDER}/{name}": content for name, content in inner.items()}
        return push_files(files, repo_id, config, local_card=None if beside is None else _card_in(beside))


@with_settings(PushConfig, "push")
def push_files(
    files: Mapping[str, Content], repo_id: str, config: PushConfig, *, local_card: str | None = None
) -> str:
    """
    Push files of a model, and a card made of them; see [`push_model`].

    Args:
        files (`Mapping[str, Path | bytes]`):
            By their paths in the repository. Those in `checkpoint/` replace all that is there.
        local_card (`str`, *optional*):
            The card to begin with if the repository has none.
    """
    files = {**files, **eval_results_file(files)}

    def card(head: Head) -> str:
        return model_card(files, head.repo_id, head.card(local_card), config.license)

    def notebook(head: Head, card: str) -> dict[str, bytes]:
        evaluation = evaluation_of(files)
        text = model_notebook(card, head.repo_id, evaluation is not None and evaluation["of"] == STEPS)
        is_ours = NOTEBOOK_FILE not in head.paths or MARK in (head.read(NOTEBOOK_FILE) or "")
        return {NOTEBOOK_FILE: text.encode()} if text is not None and is_ours else {}

    def replaces(path: str) -> bool:
        if path.startswith(f"{CHECKPOINT_FOLDER}/"):
            return any(name.startswith(f"{CHECKPOINT_FOLDER}/") for name in files)
        own = path in RUN_FILES or ".safetensors" in path or is_pickle(path)
        return path == EVAL_RESULTS_FILE or ("/" not in path and own)

    return push_upload(Upload("model", files, replaces, card, "Push a model", notebook), repo_id, config)


@with_settings(PushConfig, "push")
def push_evaluation(evaluation: str | Path, repo_id: str, config: PushConfig) -> str:
    """
    Push an evaluation to the Hub, as a dataset of returns: rows, summary, pictures and card.

    Args:
        evaluation (`str` or `Path`):
            Folder of the evaluation, as `ad-hf evaluate` leaves it.
        repo_id (`str`):
            `user/name` of the dataset's repository.
        config ([`~ad_hf.hub.config.PushConfig`], *optional*):
            Its settings are keywords, too: `private`, `revision`, `token`, `commit_message`, `license`.

    Returns:
        `str`: URL of the commit that holds it.

    Raises:
        FileNotFoundError: if there is no evaluation.
        ValueError: if its table of returns is damaged or another table.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    folder = Path(evaluation)
    if not (folder / SUMMARY_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no evaluation: expected {SUMMARY_FILE} and {ROWS_FILE} in it")
    read_rows(folder / ROWS_FILE)
    summary, local_card = read_json(folder / SUMMARY_FILE), _card_in(folder)

    def card(head: Head) -> str:
        return evaluation_card(folder, head.repo_id, summary, head.card(local_card), config.license)

    files = files_in(folder, EVALUATION_FILES)
    upload = Upload("dataset", files, lambda path: path in EVALUATION_FILES, card, "Push an evaluation")
    return push_upload(upload, repo_id, config)


def _folder_of(model: ADModel) -> Path | None:
    """The folder that a model comes from, or a copy of its Hub repository, if it still exists."""
    name, revision = model.name_or_path, getattr(model, "loaded_revision", None)
    if not name:
        return None
    if revision is not None and not Path(name).is_dir():
        name = f"{name}@{revision}"  # the files beside the weights that were loaded, not the newest ones
    try:
        return find_repository(name, "model").download(PUSHED_AGAIN)
    except FileNotFoundError:  # the folder was deleted
        return None


def _digest_in(folder: Path) -> str | None:
    """The digest of the weights in a folder, if there are any."""
    try:
        return weights_digest(load_model(folder)[0])
    except (ValueError, OSError):
        return None
