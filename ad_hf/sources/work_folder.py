"""The folder of a collection that is under way, and how it becomes a dataset."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather

from ad_hf.envs.task_family import SPLITS
from ad_hf.files import atomic_path, write_text
from ad_hf.histories.schema import METADATA_FILE, PROGRESS_COLUMNS, HistoryMetadata, row_groups
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.writer import open_shard
from ad_hf.sources.jobs import PROGRESS_KEY, Job


def _finished_parts(job: Job, found: dict[tuple[int, int], int]) -> tuple[list[Job], list[Job]]:
    """
    What of a job is done, and what is left to do, each in the order of its tasks.

    Args:
        job ([`Job`]):
            A whole job.
        found (`dict`):
            How many tasks each part holds, by its first task and the seed, from [`_find_parts`].
    """
    done: list[Job] = []
    left: list[Job] = []
    place = 0
    while place < len(job.tasks):
        count = found.get((job.tasks[place].task_id, job.seed), 0)
        if count:
            done.append(replace(job, start=place, stop=place + count))
        elif left and left[-1].stop == place:
            left[-1] = replace(left[-1], stop=place + 1)
        else:
            left.append(replace(job, start=place, stop=place + 1))
        place += max(1, count)
    return done, left


def _find_parts(folder: Path) -> dict[tuple[int, int], int]:
    """How many tasks each part in a folder holds, by its first task and the seed."""
    found = {}
    for path in folder.glob("part-*.arrow"):
        match = re.fullmatch(r"part-(\d+)-(-?\d+)(?:-(\d+))?", path.stem)
        if match:
            found[int(match[1]), int(match[2])] = int(match[3] or 1)
    return found


class WorkFolder:
    """
    The folder of a collection that is under way: parts of finished jobs, and shards whose jobs are all finished.

    Args:
        folder (`Path`):
            The folder.
        jobs (`Sequence[Job]`):
            All jobs of the collection.
        jobs_per_shard (`int`):
            Jobs of a shard; the layout depends on these two alone.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], jobs_per_shard: int) -> None:
        self.folder, self.shards_folder = folder, folder / "shards"
        self.shards: dict[str, list[Job]] = {}
        for split in SPLITS:
            chosen = [job for job in jobs if job.tasks[0].split == split]
            groups = [chosen[start : start + jobs_per_shard] for start in range(0, len(chosen), jobs_per_shard)]
            for index, group in enumerate(groups):
                self.shards[f"{split}-{index:05d}-of-{len(groups):05d}.parquet"] = group
        self.shards_folder.mkdir(parents=True, exist_ok=True)
        found = _find_parts(folder)
        self.parts: dict[str, list[list[Job]]] = {}  # of shards that are not written, what of each job is finished
        self.left: list[Job] = []  # what is to be done
        for shard, group in self.shards.items():
            if not (self.shards_folder / shard).is_file():
                both = [_finished_parts(job, found) for job in group]
                self.parts[shard] = [done for done, _ in both]
                self.left += [job for _, left in both for job in left]
        self._places = {
            (job.tasks[0].task_id, job.seed): (shard, place)
            for shard in self.parts
            for place, job in enumerate(self.shards[shard])
        }

    def add(self, job: Job) -> None:
        """Take note of a part that is finished, and write its shard if it was the last."""
        shard, place = self._places[job.tasks[0].task_id, job.seed]
        self.parts[shard][place] = sorted([*self.parts[shard][place], job], key=lambda part: part.start)
        self.write_shard_if_complete(shard)

    def write_shard_if_complete(self, shard: str) -> None:
        """Write a shard of which nothing is missing, and drop its parts."""
        for whole, parts in zip(self.shards[shard], self.parts[shard]):
            if sum(len(part.own_tasks) for part in parts) < len(whole.tasks):
                return
        self.write_shard(shard, self.shards_folder / shard)
        for part in [part for parts in self.parts.pop(shard) for part in parts]:
            (self.folder / part.file_name).unlink()

    def write_shard(self, shard: str, path: Path) -> bool:
        """Join those parts of a shard that there are; returns whether there are any."""
        files = [[self.folder / part.file_name for part in parts] for parts in self.parts[shard] if parts]
        if not files:
            return False
        schemas = [_part_schema(file) for of_job in files for file in of_job]
        progress = [row for schema in schemas for row in _progress_rows(schema)]
        write_text(self._progress_file(shard), json.dumps(progress))  # before the shard, which drops the parts
        kept = {name: value for name, value in schemas[0].metadata.items() if name != PROGRESS_KEY}
        schema = schemas[0].with_metadata(kept)
        with atomic_path(path) as temporary, open_shard(temporary, schema) as writer:
            for of_job in files:
                for rows in row_groups(pa.concat_tables(map(feather.read_table, of_job))):
                    writer.write_table(rows)
        return True

    def _progress_file(self, shard: str) -> Path:
        """How far the sources got whose histories are in a shard."""
        return self.folder / f"progress-{shard}.json"

    def publish(self, metadata: HistoryMetadata, output: Path) -> None:
        """
        Put the dataset into its place.

        Shards without any histories are left out and the others counted anew. Unless all is finished, this folder
        keeps what is, so that the collection can go on.
        """
        folder = self.folder / "dataset"
        shutil.rmtree(folder, ignore_errors=True)
        if self.parts:
            folder.mkdir()
            for split in SPLITS:
                self._publish_split(split, folder)
        else:
            folder = self.shards_folder
        describe_shards(metadata, folder)
        files = [self._progress_file(shard) for shard in self.shards]
        rows = [row for file in files if file.is_file() for row in json.loads(file.read_text())]
        metadata.progress = {"columns": list(PROGRESS_COLUMNS), "rows": sorted(rows, key=lambda row: row[:2])}
        write_text(folder / METADATA_FILE, metadata.to_json())
        previous = self.folder / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        if output.exists():  # with less in it
            os.replace(output, previous)
        os.replace(folder, output)
        shutil.rmtree(previous, ignore_errors=True)

    def _publish_split(self, split: str, folder: Path) -> None:
        written = []
        for shard in [shard for shard in self.shards if shard.startswith(f"{split}-")]:
            if shard not in self.parts:
                _link(self.shards_folder / shard, folder / shard)
            elif not self.write_shard(shard, folder / shard):
                continue
            written.append(shard)
        for index, shard in enumerate(written):
            os.replace(folder / shard, folder / f"{split}-{index:05d}-of-{len(written):05d}.parquet")


def _part_schema(path: Path) -> pa.Schema:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).schema


def _progress_rows(schema: pa.Schema) -> list[list[Any]]:
    return json.loads((schema.metadata or {}).get(PROGRESS_KEY, b"[]"))


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy, where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
