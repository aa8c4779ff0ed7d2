"""The folder that a collection's dataset is put into, and where the collection is while it is under way."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from ad_hf.collection.failures import CollectionError, TaskFailure
from ad_hf.collection.work_folder import STOPPED_FILE, WorkFolder
from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.card import write_dataset_card
from ad_hf.histories.schema import METADATA_FILE, PROGRESS_COLUMNS, HistoryMetadata
from ad_hf.histories.statistics import describe_shards
from ad_hf.settings import parse_json
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import local_path
from ad_hf.storage.folders import Folder, is_url

HIDDEN_FOLDER = ".incomplete"
SETTINGS_FILE = "collection.json"
RESULTS = ("versions", "statistics", "fingerprint", "failures", "progress")  # of metadata, which are no settings

logger = logging.getLogger(__name__)


def is_published(dataset: Path | str, config_name: str = "default") -> bool:
    """Whether there is a dataset, perhaps one that lacks tasks."""
    return Folder(dataset).child(config_name).is_file(METADATA_FILE)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], holds: str, way_out: str) -> None:
    """Refuse other settings than those before, naming the first that differs."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(f"{holds} with {name} = {before.get(name)!r}, now it is {now.get(name)!r}: {way_out}")


class OutputFolder:
    """
    A dataset that is collected: its folder, or URL, and in it those of a configuration and of the work on it.

    Raises:
        ValueError: for a configuration whose name makes no folder, and folders whose places are taken by something
            else, with the path.
    """

    def __init__(self, output_dir: str | Path, config_name: str) -> None:
        if not isinstance(config_name, str) or not re.fullmatch(r"[^./\\<>:|?*\"][^/\\<>:|?*\"]*", config_name):
            raise ValueError(f"config_name must be the name of a folder that is not hidden, got {config_name!r}")
        self.location: Path | str = str(output_dir) if is_url(output_dir) else local_path(output_dir)
        self._folder, self._config_name = Folder(output_dir), config_name
        self._target, hidden = self._folder.child(config_name), self._folder.child(HIDDEN_FOLDER)
        self.work = hidden.child(config_name)
        if self._folder.is_remote:
            return
        for folder in (self._folder, self._target, hidden, self.work):
            if os.path.lexists(folder.path) and not folder.path.is_dir():
                raise ValueError(
                    f"{folder} is no folder, as which histories need it: give another output_dir, or move it"
                )
        if (self._folder.path / CARD).is_dir():
            raise ValueError(f"{self._folder.path / CARD} is a folder, where the dataset's card is to be: move it")

    def is_finished(self, metadata: HistoryMetadata) -> bool:
        """Whether all of these histories are there, and not others; a work folder that was left behind is deleted."""
        if not self._is_complete(metadata):
            return False
        if self.work.exists():
            with self._folder.locked(self._config_name):
                self._clean_up()
        return True

    def _is_complete(self, metadata: HistoryMetadata) -> bool:
        target, is_under_way = self._target, self.work.is_file(SETTINGS_FILE)
        text = target.read_text(METADATA_FILE)
        if text is None:
            if not target.exists() or (target.is_remote and is_under_way):
                return False  # at a URL, a process may have been killed while it put the files there
            raise ValueError(f"{target} exists and holds no learning histories: give another output_dir")
        try:
            read = HistoryMetadata.from_json(text)
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from error
        before, now = (
            {name: value for name, value in asdict(each).items() if name not in RESULTS} for each in (read, metadata)
        )
        way_out = "give another output_dir or config_name, or delete the folder to collect again"
        _check_same(before, now, f"{target} already holds histories", way_out)
        if read.failures and not is_under_way:
            raise ValueError(
                f"{target} lacks {len(read.failures)} tasks that failed, and {self.work}, from which the collection "
                "could go on, is gone: give another output_dir, or delete the folder to collect again"
            )
        return not read.failures

    def prepare_work(self, metadata: HistoryMetadata, layout: dict[str, int]) -> None:
        """Make the work folder; refuses to mix two collections in it, naming the setting that differs."""
        work = self.work
        settings = asdict(metadata) | layout
        now = {name: value for name, value in settings.items() if name not in ("failures", "progress")}
        if not work.is_file(SETTINGS_FILE):
            with self._folder.locked(self._config_name):
                if not work.is_file(SETTINGS_FILE):
                    work.make()
                    work.write_text(SETTINGS_FILE, json.dumps(now, indent=2) + "\n")
        before = parse_json(work.read_text(SETTINGS_FILE) or "{}", f"{work}, {SETTINGS_FILE}")
        if before != now and work.is_file(STOPPED_FILE):  # by settings with which nothing could be learnt
            work.delete()
            return self.prepare_work(metadata, layout)
        _check_same(before, now, f"{work} holds a collection", f"give another output_dir, or delete {work}")

    def publish(self, work: WorkFolder, metadata: HistoryMetadata) -> None:
        """
        Put the dataset into its place, if all of it has been tried; else say what is missing.

        Shards without any histories are left out and the others counted anew. Unless all is finished, the work folder
        stays, so that the collection can go on.

        The results are added to `metadata`. A [`CollectionError`] is raised if tasks failed.
        """
        with self._folder.locked(self._config_name):
            if self._is_complete(metadata):  # another process was faster
                return
            failures, missing = work.failures(), work.missing()
            if missing:
                left = ", ".join(f"{shards} of part {part}/{work.part[1]}" for part, shards in sorted(missing.items()))
                text = f"part {work.part[0]}/{work.part[1]} has done its share; shards that are missing: {left}"
                if failures:
                    raise CollectionError(failures, None, f"{len(failures)} tasks and seeds failed; {text}")
                logger.info("%s; the part that finishes last writes the dataset", text)
                return
            self._check_splits(work, failures)
            metadata.failures = [
                {"task_id": each.task_id, "seed": each.seed, "error": each.error} for each in failures
            ]
            self._put(work, metadata)
            if not failures:
                self._clean_up()
                return
            self._write_card()
            number = sum(map(len, work.layout.tasks.values())) * len(work.layout.seeds)
            reason = f"{len(failures)} of {number} tasks and seeds failed; {self.location} holds the others"
            raise CollectionError(
                failures, self.location, f"{reason}, and the same call tries again those that failed"
            )

    def _check_splits(self, work: WorkFolder, failures: list[TaskFailure]) -> None:
        """Refuse a dataset of which a split has lost all of its tasks."""
        failed = {(failure.task_id, failure.seed) for failure in failures}
        for split, tasks in work.layout.tasks.items():
            if tasks and all((task.task_id, seed) in failed for task in tasks for seed in work.layout.seeds):
                reason = f"no dataset is written to {self.location}: all tasks of the split {split!r} failed"
                raise CollectionError(failures, None, f"{reason}, {len(failures)} in all")

    def _put(self, work: WorkFolder, metadata: HistoryMetadata) -> None:
        """Write the configuration: on a disk all at once, at a URL with `metadata.json` as the last file."""
        unfinished = set(work.unfinished())
        remote = self._target.is_remote
        folder = self._target if remote else work.folder.child("dataset") if unfinished else work.shards_folder
        if remote:
            folder.remove(METADATA_FILE)
        if remote or unfinished:
            _gather(work, unfinished, folder)
        for leftover in (name for name in folder.names() if name.startswith(".")):  # of a process that was killed
            folder.remove(leftover)
        describe_shards(metadata, folder)
        metadata.progress = {"columns": list(PROGRESS_COLUMNS), "rows": []}
        with folder.writing(METADATA_FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(metadata.json_pieces(work.progress_rows()))
        if not remote:
            folder.replace(self._target, work.folder.child("previous"))

    def _clean_up(self) -> None:
        """Write the card of a finished collection and delete its work folder."""
        self._write_card()
        self.work.delete()
        self._folder.child(HIDDEN_FOLDER).remove_if_empty()  # else another configuration is being collected

    def _write_card(self) -> None:
        """Write the README.md of the dataset."""
        output = self._folder
        if not output.is_remote:
            write_dataset_card(output.path)
            return
        with TemporaryDirectory() as temporary:  # a copy of all that a card tells of, under the same names
            copy = Path(temporary) / PurePosixPath(str(output)).name
            copy.mkdir()
            if card := output.read_text(CARD):
                (copy / CARD).write_text(card, encoding="utf-8")
            for name in output.folders():
                if text := output.child(name).read_text(METADATA_FILE):
                    (copy / name).mkdir()
                    (copy / name / METADATA_FILE).write_text(text, encoding="utf-8")
                    for shard in output.child(name).files("*.parquet"):
                        (copy / name / shard.name).touch()
            output.write_text(CARD, write_dataset_card(copy).read_text(encoding="utf-8"))


def _gather(work: WorkFolder, unfinished: set[int], folder: Folder) -> None:
    """Have all shards of which there is something in a folder, and nothing else."""
    parts = work.find_parts()
    names: dict[int, str] = {}
    for split in SPLITS:
        shards = [number for number, shard in enumerate(work.layout.shards) if shard.split == split]
        shards = [number for number in shards if number not in unfinished or number in parts]
        names |= {number: f"{split}-{place:05d}-of-{len(shards):05d}.parquet" for place, number in enumerate(shards)}
    folder.make()
    for leftover in set(folder.names()) - set(names.values()):
        folder.remove(leftover)
    for shard, name in names.items():
        if shard not in unfinished:
            folder.take(work.shards_folder, work.layout.shards[shard].name, name)
        else:
            with folder.writing(name) as temporary:
                work.write_shard(shard, parts[shard], temporary)
