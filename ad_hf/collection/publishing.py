"""How a collection's work folder becomes a dataset."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm.auto import tqdm

from ad_hf.collection.failures import CollectionError, TaskFailure
from ad_hf.collection.work_folder import WorkFolder
from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.card import write_dataset_card
from ad_hf.histories.schema import METADATA_FILE, PROGRESS_COLUMNS, HistoryMetadata
from ad_hf.histories.statistics import describe_shards
from ad_hf.settings import parse_json
from ad_hf.storage.cards import CARD
from ad_hf.storage.folders import Folder, RemoteFolder, open_folder

HIDDEN_FOLDER = ".incomplete"
SETTINGS_FILE = "collection.json"
FOUND_LATER = ("versions", "statistics", "fingerprint", "failures", "progress")  # of metadata, not what was asked for


def work_folder(output: Folder, config_name: str) -> Folder:
    """Where a configuration is kept while it is being collected."""
    return output.child(HIDDEN_FOLDER).child(config_name)


def check_names(output: Folder, config_name: Any) -> None:
    """
    Refuse a configuration whose name makes no folder, and folders whose places are taken by something else.

    Raises:
        ValueError: naming the path.
    """
    if not isinstance(config_name, str) or not re.fullmatch(r"[^./\\<>:|?*\"][^/\\<>:|?*\"]*", config_name):
        raise ValueError(f"config_name must be the name of a folder that is not hidden, got {config_name!r}")
    if isinstance(output, RemoteFolder):
        return
    work = output.path / HIDDEN_FOLDER
    for path in (output.path, output.path / config_name, work, work / config_name):
        if os.path.lexists(path) and not path.is_dir():
            raise ValueError(f"{path} is no folder, as which histories need it: give another output_dir, or move it")
    if (output.path / CARD).is_dir():
        raise ValueError(f"{output.path / CARD} is a folder, where the dataset's card is to be: move it")


def is_finished(output: Folder, config_name: str, metadata: HistoryMetadata) -> bool:
    """
    Whether all of these histories are there.

    Raises:
        ValueError: if there are others, or something else.
    """
    folder, work = output.child(config_name), work_folder(output, config_name)
    text = folder.read_text(METADATA_FILE)
    if text is None:
        if not folder.exists() or (isinstance(folder, RemoteFolder) and work.is_file(SETTINGS_FILE)):
            return False  # at a URL, a process may have been killed while it put the files there
        raise ValueError(f"{folder} exists and holds no learning histories: give another output_dir")
    try:
        read = HistoryMetadata.from_json(text)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    found, wanted = asdict(read), asdict(metadata)
    for name in sorted(set(wanted) - set(FOUND_LATER)):
        if found[name] != wanted[name]:
            raise ValueError(
                f"{folder} already holds histories with {name} = {found[name]!r}, now it is {wanted[name]!r}: give "
                "another output_dir or config_name, or delete the folder to collect again"
            )
    if read.failures and not work.is_file(SETTINGS_FILE):
        raise ValueError(
            f"{folder} lacks {len(read.failures)} tasks that failed, and {work}, from which the collection could go "
            "on, is gone: give another output_dir, or delete the folder to collect again"
        )
    return not read.failures


def is_published(dataset: Path | str, config_name: str = "default") -> bool:
    """Whether there is a dataset, perhaps one that lacks tasks."""
    return open_folder(dataset).child(config_name).is_file(METADATA_FILE)


def prepare_work(output: Folder, config_name: str, metadata: HistoryMetadata, layout: dict[str, int]) -> Folder:
    """Make the work folder; refuses to mix two collections in it, naming what differs."""
    folder = work_folder(output, config_name)
    settings = {name: value for name, value in asdict(metadata).items() if name not in ("failures", "progress")}
    settings |= layout
    if not folder.is_file(SETTINGS_FILE):
        with output.locked(config_name):
            if not folder.is_file(SETTINGS_FILE):
                folder.make()
                folder.write_text(SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    before = parse_json(folder.read_text(SETTINGS_FILE) or "{}", f"{folder}, {SETTINGS_FILE}")
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} holds a collection with {name} = {before.get(name)!r}, now it is "
                f"{settings.get(name)!r}: give another output_dir, or delete {folder} to start again"
            )
    return folder


def remove_work(output: Folder, config_name: str) -> None:
    """Write the card of a finished collection and delete its work folder, unless that was done before."""
    work = work_folder(output, config_name)
    if not work.exists():
        return
    with output.locked(config_name):
        _remove_work(output, work)


def _remove_work(output: Folder, work: Folder) -> None:
    _write_card(output)
    work.delete()
    output.child(HIDDEN_FOLDER).remove_if_empty()  # else another configuration is being collected


def publish(
    output: Folder, location: Path | str, config_name: str, work: WorkFolder, metadata: HistoryMetadata
) -> None:
    """
    Put the dataset into its place, if all of it has been tried; else say what is missing.

    Shards without any histories are left out and the others counted anew. Unless all is finished, the work folder
    keeps what is, so that the collection can go on.

    Args:
        output ([`~ad_hf.storage.folders.Folder`]), location (`Path` or `str`), config_name (`str`):
            The dataset, as what it is called, and its configuration.
        work ([`~ad_hf.collection.work_folder.WorkFolder`]):
            What there is of it.
        metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            Its description; what is not known before is filled in.

    Raises:
        CollectionError: if tasks failed.
    """
    with output.locked(config_name):
        if is_finished(output, config_name, metadata):  # another process was faster
            return
        failures, missing = work.failures(), work.missing()
        if missing:
            left = ", ".join(f"{shards} of part {part}/{work.part[1]}" for part, shards in sorted(missing.items()))
            text = f"part {work.part[0]}/{work.part[1]} has done its share; shards that are missing: {left}"
            if failures:
                raise CollectionError(failures, None, f"{len(failures)} tasks and seeds failed; {text}")
            tqdm.write(f"{text}; the part that finishes last writes the dataset")
            return
        number = sum(map(work.layout.num_tasks, range(len(work.layout))))
        _check_splits(location, work, failures)
        metadata.failures = [failure.to_json() for failure in failures]
        _put(output.child(config_name), work, metadata)
        if not failures:
            _remove_work(output, work.folder)
            return
        _write_card(output)
        reason = f"{len(failures)} of {number} tasks and seeds failed; {location} holds the others"
        raise CollectionError(failures, location, f"{reason}, and the same call tries again those that failed")


def _check_splits(location: Path | str, work: WorkFolder, failures: list[TaskFailure]) -> None:
    """Refuse a dataset of which a split has lost all of its tasks."""
    failed = {(failure.task_id, failure.seed) for failure in failures}
    for split, tasks in work.layout.tasks.items():
        if tasks and all((task.task_id, seed) in failed for task in tasks for seed in work.layout.seeds):
            reason = f"no dataset is written to {location}: all tasks of the split {split!r} failed"
            raise CollectionError(failures, None, f"{reason}, {len(failures)} in all")


def _put(target: Folder, work: WorkFolder, metadata: HistoryMetadata) -> None:
    """Write a configuration: on a disk all at once, at a URL with `metadata.json` as the last file."""
    unfinished = set(work.unfinished())
    remote = isinstance(target, RemoteFolder)
    folder = target if remote else work.folder.child("dataset") if unfinished else work.shards_folder
    if remote:
        target.remove(METADATA_FILE)
    if remote or unfinished:
        _gather(work, unfinished, folder)
    for leftover in (name for name in folder.names() if name.startswith(".")):  # of a process that was killed
        folder.remove(leftover)
    describe_shards(metadata, folder)
    metadata.progress = {"columns": list(PROGRESS_COLUMNS), "rows": []}
    with folder.writing(METADATA_FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(metadata.json_pieces(work.progress_rows()))
    if not remote:
        folder.replace(target, work.folder.child("previous"))


def _gather(work: WorkFolder, unfinished: set[int], folder: Folder) -> None:
    """Have all shards of which there is something in a folder, and nothing else."""
    found = work.find_parts()
    shards = {
        split: [shard for shard in work.layout.shards(split) if shard not in unfinished or shard in found]
        for split in SPLITS
    }
    names = {
        shard: f"{split}-{index:05d}-of-{len(some):05d}.parquet"
        for split, some in shards.items()
        for index, shard in enumerate(some)
    }
    folder.make()
    for leftover in set(folder.names()) - set(names.values()):
        folder.remove(leftover)
    for shard, name in names.items():
        if shard not in unfinished:
            folder.take(work.shards_folder, work.layout.name(shard), name)
        else:
            with folder.writing(name) as temporary:
                work.write_incomplete(shard, found[shard], temporary)


def _write_card(output: Folder) -> None:
    """Write the README.md of a dataset."""
    if not isinstance(output, RemoteFolder):
        write_dataset_card(output.path)
        return
    with TemporaryDirectory() as temporary:  # where things are called as they are there
        copy = Path(temporary) / Path(output.root).name
        copy.mkdir()
        card = output.read_text(CARD)
        if card is not None:
            (copy / CARD).write_text(card, encoding="utf-8")
        for name in output.folders():
            text = output.child(name).read_text(METADATA_FILE)
            if text is not None:
                (copy / name).mkdir()
                (copy / name / METADATA_FILE).write_text(text, encoding="utf-8")
                for shard in output.child(name).files("*.parquet"):
                    (copy / name / shard.name).touch()
        output.write_text(CARD, write_dataset_card(copy).read_text(encoding="utf-8"))
