"""The jobs of a collection, and the shard that each one's histories go into, without a list of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ad_hf.collection.jobs import Job
from ad_hf.envs.task_family import SPLITS, Task


class Shard(NamedTuple):
    """A file of histories: its split, its name, and the numbers of its jobs within the split."""

    split: str
    name: str
    jobs: range


class ShardLayout:
    """
    The shards of a collection, numbered from 0 through all splits, and their jobs.

    A split's jobs are its tasks, in groups of those learnt side by side, each with every seed; a shard is a range of
    them. So a job is a pure function of its number.

    Args:
        tasks (`Sequence[Task]`), seeds (`Sequence[int]`):
            The tasks, by ascending id, and the seeds with which each is learnt.
        tasks_per_job (`int`), jobs_per_shard (`int`):
            Tasks of a job, never of two splits, and jobs of a shard.
    """

    def __init__(self, tasks: Sequence[Task], seeds: Sequence[int], tasks_per_job: int, jobs_per_shard: int) -> None:
        self.seeds, self.tasks_per_job, self.jobs_per_shard = tuple(seeds), tasks_per_job, jobs_per_shard
        self.tasks = {split: [task for task in tasks if task.split == split] for split in SPLITS}
        self.shards: list[Shard] = []
        self.firsts: dict[str, int] = {}  # number of each split's first shard
        for split, group in self.tasks.items():
            num_jobs = -(-len(group) // tasks_per_job) * len(self.seeds)
            starts = range(0, num_jobs, jobs_per_shard)
            self.firsts[split] = len(self.shards)
            for place, start in enumerate(starts):
                name = f"{split}-{place:05d}-of-{len(starts):05d}.parquet"
                self.shards.append(Shard(split, name, range(start, min(start + jobs_per_shard, num_jobs))))
        self._seed_places = {seed: place for place, seed in enumerate(self.seeds)}
        self._task_places = {
            task.task_id: (split, place) for split, group in self.tasks.items() for place, task in enumerate(group)
        }

    def jobs(self, shard: int) -> Iterator[Job]:
        """The jobs of a shard, in order."""
        split, _, numbers = self.shards[shard]
        for number in numbers:
            group, seed = divmod(number, len(self.seeds))
            start = group * self.tasks_per_job
            yield Job(tuple(self.tasks[split][start : start + self.tasks_per_job]), self.seeds[seed])

    def num_tasks(self, shard: int) -> int:
        """How many times a shard's jobs learn a task."""
        split, _, numbers = self.shards[shard]
        size, total, num_seeds = self.tasks_per_job, len(self.tasks[split]), len(self.seeds)
        return sum(min(size, total - number // num_seeds * size) for number in numbers)

    def find(self, task_id: int, seed: int) -> int:
        """The shard of a task and a seed; a `KeyError` if the collection has no such job."""
        split, place = self._task_places[task_id]
        number = place // self.tasks_per_job * len(self.seeds) + self._seed_places[seed]
        return self.firsts[split] + number // self.jobs_per_shard
