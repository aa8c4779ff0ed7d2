"""The folder of a collection that is under way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from heapq import merge
from pathlib import Path
from typing import Any, TypedDict

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


def _finished_parts(job: Job, found: dict[tuple[int, int], int]) -> tuple[list[Job], list[Job]]:
    """
    What of a job is done, and what is left to do, each in the order of its tasks.

    Args:
        job ([`Job`]):
            A whole job.
        found (`dict`):
            How many tasks each part holds, by its first task and the seed.
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


class _Failure(TypedDict):
    """The structure of what is written of a [`~ad_hf.collection.failures.TaskFailure`]."""

    task_id: int
    kwargs: dict[str, Any]
    seed: int
    error: str
    traceback: str


@dataclass
class _OpenShard:
    """A shard whose jobs are being run: what of each of them is finished, and how many tasks are not."""

    parts: list[list[Job]]
    num_left: int
    failures: list[TaskFailure] = field(default_factory=list)


class WorkFolder:
    """
    The folder of a collection that is under way: parts of finished jobs, and shards whose jobs are all finished.

    What there is to know of shards is in the folder; in memory are those whose jobs are being run.

    Args:
        folder ([`~ad_hf.storage.folders.Folder`]):
            The folder.
        layout ([`~ad_hf.collection.layout.ShardLayout`]):
            The shards of the collection.
        part (`tuple[int, int]`, *optional*, defaults to `(1, 1)`):
            K and N: this process is to do every N-th shard from the K-th on.
    """

    def __init__(self, folder: Folder, layout: ShardLayout, part: tuple[int, int] = (1, 1)) -> None:
        self.folder, self.shards_folder, self.layout, self.part = folder, folder.child("shards"), layout, part
        self._open: dict[int, _OpenShard] = {}
        self.shards_folder.make()
        for some in (folder, self.shards_folder):
            for name in some.names():
                # Of a process that was killed while it wrote. What another part may be writing is left alone.
                if name.startswith(".") and name.endswith(".tmp") and self._shard_of_file(name) in self.own_shards:
                    some.remove(name)

    @property
    def own_shards(self) -> range:
        """Numbers of the shards that this process is to do."""
        return range(self.part[0] - 1, len(self.layout), self.part[1])

    def _shard_of_file(self, name: str) -> int | None:
        """The shard to which a file belongs by its name, if to any."""
        if match := PART.search(name):
            return self._shard_of_part(match)
        if match := re.search(f"({'|'.join(SPLITS)})-(\\d+)-of-", name):
            return self.layout.shards(match[1]).start + int(match[2])
        return None

    def _shard_of_part(self, match: re.Match[str]) -> int:
        return self.layout.find(int(match[1]), int(match[2]))[0]

    def find_parts(self) -> dict[int, dict[tuple[int, int], int]]:
        """For each shard how many tasks each of its parts holds, by the part's first task and the seed."""
        found: dict[int, dict[tuple[int, int], int]] = {}
        for match in filter(None, map(PART.fullmatch, self.folder.names())):
            of_shard = found.setdefault(self._shard_of_part(match), {})
            of_shard[int(match[1]), int(match[2])] = int(match[3] or 1)
        return found

    def unfinished(self) -> Iterator[int]:
        """Numbers of the shards that are not written."""
        written = set(self.shards_folder.names())
        return (shard for shard in range(len(self.layout)) if self.layout.name(shard) not in written)

    def count_left(self) -> int:
        """How many times a task is left to be learnt by this process."""
        found = self.find_parts()
        own = self.own_shards
        return sum(
            self.layout.num_tasks(shard) - sum(found.get(shard, {}).values())
            for shard in self.unfinished()
            if shard in own
        )

    def jobs_left(self) -> Iterator[Job]:
        """What this process has to do, shard by shard; a shard is looked at when its first job is asked for."""
        found, own = self.find_parts(), self.own_shards
        for shard in self.unfinished():
            if shard in own:
                yield from self._start(shard, found.pop(shard, {}))

    def _start(self, shard: int, found: dict[tuple[int, int], int]) -> list[Job]:
        both = [_finished_parts(job, found) for job in self.layout.jobs(shard)]
        left = [job for _, of_job in both for job in of_job]
        self.folder.remove(self._failures_file(shard))
        self._open[shard] = _OpenShard([done for done, _ in both], sum(len(job.own_tasks) for job in left))
        if not left:
            self._finish(shard)
        return left

    def add(self, outcome: Outcome) -> None:
        """
        Take note of what came of a job, and write its shard if it was the last.

        Raises:
            FileNotFoundError: if the part that a worker wrote is not here.
        """
        job = outcome.job
        shard, place = self.layout.find(job.tasks[0].task_id, job.seed)
        opened = self._open[shard]
        if outcome.error:
            opened.failures.append(outcome.failure())
        elif not self.folder.is_file(job.file_name):
            raise FileNotFoundError(
                f"{self.folder} lacks {job.file_name}, which a worker wrote: workers on other machines need an "
                "output_dir that all machines share, or a URL such as s3://bucket/histories"
            )
        else:
            opened.parts[place] = sorted([*opened.parts[place], job], key=lambda part: part.start)
        opened.num_left -= len(job.own_tasks)
        if not opened.num_left:
            self._finish(shard)

    def _finish(self, shard: int) -> None:
        """Write a shard whose jobs are done, and drop its parts; if some have failed, take note of that alone."""
        done = self._open.pop(shard)
        if done.failures:
            self.folder.write_text(self._failures_file(shard), json.dumps([asdict(each) for each in done.failures]))
            return
        with self.shards_folder.writing(self.layout.name(shard)) as temporary:
            self._write_shard(shard, done.parts, temporary)
        for part in [part for parts in done.parts for part in parts]:
            self.folder.remove(part.file_name)

    def write_incomplete(self, shard: int, found: dict[tuple[int, int], int], path: Path) -> bool:
        """Join those parts of a shard that there are; returns whether there are any."""
        parts = [_finished_parts(job, found)[0] for job in self.layout.jobs(shard)]
        return self._write_shard(shard, parts, path)

    def _write_shard(self, shard: int, parts: list[list[Job]], path: Path) -> bool:
        progress: list[list[Any]] = []
        writer = None
        for of_job in filter(None, parts):
            tables = [self._read_part(part) for part in of_job]
            for part, table in zip(of_job, tables):
                text = (table.schema.metadata or {}).get(PROGRESS_KEY, b"[]").decode()
                progress += self._parsed(text, part.file_name, list[list])
            if writer is None:
                kept = {name: value for name, value in tables[0].schema.metadata.items() if name != PROGRESS_KEY}
                writer = open_shard(path, tables[0].schema.with_metadata(kept))
            for rows in row_groups(pa.concat_tables(tables)):
                writer.write_table(rows)
        if writer is not None:
            writer.close()
            self.folder.write_text(self._progress_file(shard), json.dumps(progress))  # before parts are dropped
        return writer is not None

    def _read_part(self, part: Job) -> pa.Table:
        # From memory: Arrow reads files in threads of its own, which for small ones takes longer than all the rest.
        content = self.folder.read_bytes(part.file_name)
        try:
            return pa.ipc.open_file(content).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.folder}, {part.file_name} is damaged: delete it, and its tasks are learnt again ({error})"
            ) from error

    def _parsed(self, text: str, name: str, kind: Any) -> Any:
        """The JSON of one of the folder's files, of a structure."""
        value = parse_json(text, f"{self.folder}, {name}", object)
        check_structure(value, kind, f"{self.folder}, {name}")
        return value

    def _progress_file(self, shard: int) -> str:
        """How far the sources got whose histories are in a shard."""
        return f"progress-{self.layout.name(shard)}.json"

    def _failures_file(self, shard: int) -> str:
        """What failed of a shard all of whose jobs were tried."""
        return f"failures-{self.layout.name(shard)}.json"

    def missing(self) -> dict[int, int]:
        """How many shards have jobs that were not even tried, by the part that is to do them."""
        files = set(self.folder.names())
        missing: dict[int, int] = {}
        for shard in self.unfinished():
            if self._failures_file(shard) not in files:
                part = shard % self.part[1] + 1
                missing[part] = missing.get(part, 0) + 1
        return missing

    def failures(self) -> list[TaskFailure]:
        """What failed, by task and seed."""
        names = map(self._failures_file, self.unfinished())
        texts = [(name, text) for name in names if (text := self.folder.read_text(name))]
        kinds = list[_Failure]
        failures = [TaskFailure(**each) for name, text in texts for each in self._parsed(text, name, kinds)]
        return sorted(failures, key=lambda failure: (failure.task_id, failure.seed))

    def progress_rows(self) -> Iterator[list[Any]]:
        """How far each source got, by task and seed."""
        return merge(*map(self._progress_of_split, SPLITS), key=lambda row: row[:2])

    def _progress_of_split(self, split: str) -> Iterator[list[Any]]:
        waiting: list[list[Any]] = []
        for shard in self.layout.shards(split):
            name = self._progress_file(shard)
            rows = self._parsed(self.folder.read_text(name) or "[]", name, list[list])
            waiting = sorted([*waiting, *rows], key=lambda row: row[:2])
            last = self.layout.last_group(shard)  # its other seeds may be in the next shard
            yield from [row for row in waiting if row[0] < last]
            waiting = [row for row in waiting if row[0] >= last]
        yield from waiting
