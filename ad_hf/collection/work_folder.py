"""The folder of a collection that is under way."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ad_hf.collection.failures import TaskFailure
from ad_hf.collection.jobs import PROGRESS_KEY, Job, Outcome
from ad_hf.collection.layout import ShardLayout
from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.writer import open_shard, row_groups
from ad_hf.settings import parse_json
from ad_hf.storage.folders import Folder
from ad_hf.structure import check_structure

PART = re.compile(r"part-(\d+)-(-?\d+)(?:-(\d+))?\.arrow")
STOPPED_FILE = "stopped.json"
SHARD = re.compile(f"({'|'.join(SPLITS)})-(\\d+)-of-")

Parts = dict[tuple[int, int], int]  # files of a shard's finished jobs: their first task and seed -> number of tasks


def _split_job(job: Job, parts: Parts) -> tuple[list[Job], list[Job]]:
    """The finished parts of a whole job, and those that are left to do, each in the order of its tasks."""
    done: list[Job] = []
    left: list[Job] = []
    place = 0
    while place < len(job.tasks):
        count = parts.get((job.tasks[place].task_id, job.seed), 0)
        if count:
            done.append(replace(job, start=place, stop=place + count))
        elif left and left[-1].stop == place:
            left[-1] = replace(left[-1], stop=place + 1)
        else:
            left.append(replace(job, start=place, stop=place + 1))
        place += max(1, count)
    return done, left


@dataclass
class _OpenShard:
    """A shard whose jobs are being run: its finished parts, the number of tasks that are not, and failures."""

    parts: Parts
    num_left: int
    failures: list[TaskFailure] = field(default_factory=list)


class WorkFolder:
    """
    The folder of a collection that is under way: parts of finished jobs, and shards whose jobs are all finished.

    The state of all shards is in the folder; only those whose jobs are being run are in memory. As `part` K of N, this
    process is to do every N-th shard from the K-th on.
    """

    def __init__(self, folder: Folder, layout: ShardLayout, part: tuple[int, int] = (1, 1)) -> None:
        self.folder, self.shards_folder, self.layout, self.part = folder, folder.child("shards"), layout, part
        self.own_shards = range(part[0] - 1, len(layout.shards), part[1])
        self._open: dict[int, _OpenShard] = {}
        self.shards_folder.make()
        for each in (folder, self.shards_folder):
            for name in each.names():
                # Of a process that was killed while it wrote. A file that another part may be writing is left alone.
                if name.startswith(".") and name.endswith(".tmp") and self._shard_of_file(name) in self.own_shards:
                    each.remove(name)

    def _shard_of_file(self, name: str) -> int | None:
        """The shard to which a file belongs by its name, if to any."""
        if match := PART.search(name):
            return self.layout.find(int(match[1]), int(match[2]))
        if match := SHARD.search(name):
            return self.layout.firsts[match[1]] + int(match[2])
        return None

    def find_parts(self) -> dict[int, Parts]:
        """The parts of each shard."""
        parts: dict[int, Parts] = {}
        for match in filter(None, map(PART.fullmatch, self.folder.names())):
            task, seed = int(match[1]), int(match[2])
            parts.setdefault(self.layout.find(task, seed), {})[task, seed] = int(match[3] or 1)
        return parts

    def unfinished(self) -> Iterator[int]:
        """Numbers of the shards that are not written."""
        written = set(self.shards_folder.names())
        return (number for number, shard in enumerate(self.layout.shards) if shard.name not in written)

    def _own_unfinished(self) -> Iterator[tuple[int, Parts]]:
        parts = self.find_parts()
        return ((shard, parts.pop(shard, {})) for shard in self.unfinished() if shard in self.own_shards)

    def count_left(self) -> int:
        """How many times a task is left to be learnt by this process."""
        return sum(self.layout.num_tasks(shard) - sum(parts.values()) for shard, parts in self._own_unfinished())

    def jobs_left(self) -> Iterator[Job]:
        """The jobs that this process has to do, shard by shard, which is opened when its first job is asked for."""
        for shard, parts in self._own_unfinished():
            self.folder.remove(self._failures_file(shard))
            self._open[shard] = _OpenShard(parts, self.layout.num_tasks(shard) - sum(parts.values()))
            left = [each for job in self.layout.jobs(shard) for each in _split_job(job, parts)[1]]
            if not left:
                self._finish(shard)
            yield from left

    def add(self, outcome: Outcome) -> None:
        """
        Take note of a job's outcome, and write its shard if it was the last.

        Raises:
            FileNotFoundError: if the part that a worker wrote is not here.
        """
        job, first_task = outcome.job, outcome.job.own_tasks[0].task_id
        shard = self.layout.find(first_task, job.seed)
        opened = self._open[shard]
        if outcome.failure is not None:
            opened.failures.append(outcome.failure)
        elif not self.folder.is_file(job.file_name):
            raise FileNotFoundError(
                f"{self.folder} lacks {job.file_name}, which a worker wrote: workers on other machines need an "
                "output_dir that all machines share, or a URL such as s3://bucket/histories"
            )
        else:
            opened.parts[first_task, job.seed] = len(job.own_tasks)
        opened.num_left -= len(job.own_tasks)
        if not opened.num_left:
            self._finish(shard)

    def _finish(self, shard: int) -> None:
        """Write a shard whose jobs are done, and drop its parts; if some have failed, write only the failures."""
        done = self._open.pop(shard)
        if done.failures:
            self.folder.write_text(self._failures_file(shard), json.dumps([asdict(each) for each in done.failures]))
            return
        with self.shards_folder.writing(self.layout.shards[shard].name) as temporary:
            jobs = self.write_shard(shard, done.parts, temporary)
        for job in jobs:
            self.folder.remove(job.file_name)

    def write_shard(self, shard: int, parts: Parts, path: Path) -> list[Job]:
        """Join some parts of a shard; returns the jobs that they are of."""
        jobs = [_split_job(job, parts)[0] for job in self.layout.jobs(shard)]
        progress: list[list[Any]] = []
        writer = None
        for of_job in filter(None, jobs):
            tables = [self._read_part(each.file_name) for each in of_job]
            for each, table in zip(of_job, tables):
                text = (table.schema.metadata or {}).get(PROGRESS_KEY, b"[]").decode()
                progress += self._parse(text, each.file_name, list[list])
            if writer is None:
                metadata = {name: value for name, value in tables[0].schema.metadata.items() if name != PROGRESS_KEY}
                writer = open_shard(path, tables[0].schema.with_metadata(metadata))
            for rows in row_groups(pa.concat_tables(tables)):
                writer.write_table(rows)
        if writer is not None:
            writer.close()
            self.folder.write_text(self._progress_file(shard), json.dumps(progress))  # before parts are dropped
        return [each for of_job in jobs for each in of_job]

    def _read_part(self, name: str) -> pa.Table:
        # From memory: Arrow reads files in threads of its own, which for small ones takes longer than all the rest.
        content = self.folder.read_bytes(name)
        try:
            return pa.ipc.open_file(content).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.folder}, {name} is damaged: delete it, and its tasks are learnt again ({error})"
            ) from error

    def _parse(self, text: str, name: str, kind: Any) -> Any:
        """The JSON of one of the folder's files, of a structure."""
        value = parse_json(text, f"{self.folder}, {name}", object)
        check_structure(value, kind, f"{self.folder}, {name}")
        return value

    def _progress_file(self, shard: int) -> str:
        """The file of a shard's rows of progress."""
        return f"progress-{self.layout.shards[shard].name}.json"

    def _failures_file(self, shard: int) -> str:
        """The file of the failures of a shard all of whose jobs were tried."""
        return f"failures-{self.layout.shards[shard].name}.json"

    def missing(self) -> Counter[int]:
        """How many shards have jobs that were not even tried, by the part that is to do them."""
        files, num_parts = set(self.folder.names()), self.part[1]
        return Counter(shard % num_parts + 1 for shard in self.unfinished() if self._failures_file(shard) not in files)

    def failures(self) -> list[TaskFailure]:
        """The failures of all shards, by task and seed."""
        names = map(self._failures_file, self.unfinished())
        texts = [(name, text) for name in names if (text := self.folder.read_text(name))]
        failures = [TaskFailure(**each) for name, text in texts for each in self._parse(text, name, list[dict])]
        return sorted(failures, key=lambda failure: (failure.task_id, failure.seed))

    def stop(self, failures: list[TaskFailure]) -> None:
        """Take note of the failures of one kind for which the collection stops before all of its tasks are tried."""
        self.folder.write_text(STOPPED_FILE, json.dumps([asdict(each) for each in failures]))

    def stopped_for(self) -> str | None:
        """The kind of the failures for which an earlier call stopped, if one did."""
        failures = self._parse(self.folder.read_text(STOPPED_FILE) or "[]", STOPPED_FILE, list[dict])
        return TaskFailure(**failures[0]).kind if failures else None

    def progress_rows(self) -> list[list[Any]]:
        """How far each source got, by task and seed."""
        names = [self._progress_file(shard) for shard in range(len(self.layout.shards))]
        rows = [row for name in names for row in self._parse(self.folder.read_text(name) or "[]", name, list[list])]
        return sorted(rows, key=lambda row: row[:2])
