"""The jobs of a collection, and the shard that each one's histories go into, without a list of either."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from ad_hf.collection.jobs import Job
from ad_hf.envs.task_family import SPLITS, Task


class ShardLayout:
    """
    The shards of a collection, numbered from 0 through all splits, and their jobs.

    A split's jobs are its tasks, in groups of those learnt side by side, each with every seed; a shard is a range of
    them. So a job is a pure function of its number, and only the tasks are in memory.

    Args:
        tasks (`Sequence[Task]`):
            The tasks, by ascending id.
        seeds (`Sequence[int]`):
            Each task is learnt once with each of them.
        tasks_per_job (`int`):
            Tasks of a job; never of two splits.
        jobs_per_shard (`int`):
            Jobs of a shard.
    """

    def __init__(self, tasks: Sequence[Task], seeds: Sequence[int], tasks_per_job: int, jobs_per_shard: int) -> None:
        self.seeds, self.tasks_per_job, self.jobs_per_shard = tuple(seeds), tasks_per_job, jobs_per_shard
        self.tasks = {split: [task for task in tasks if task.split == split] for split in SPLITS}
        self._seed_places = {seed: place for place, seed in enumerate(self.seeds)}
        self._task_places = {
            task.task_id: (split, place) for split, group in self.tasks.items() for place, task in enumerate(group)
        }
        self._firsts = [0]  # shard of each split, and the number of all shards
        for split in SPLITS:
            self._firsts.append(self._firsts[-1] - -self._num_jobs(split) // jobs_per_shard)

    def __len__(self) -> int:
        return self._firsts[-1]

    def _num_jobs(self, split: str) -> int:
        return -(-len(self.tasks[split]) // self.tasks_per_job) * len(self.seeds)

    def shards(self, split: str) -> range:
        """Numbers of a split's shards."""
        place = SPLITS.index(split)
        return range(self._firsts[place], self._firsts[place + 1])

    def _split(self, shard: int) -> str:
        return SPLITS[bisect_right(self._firsts, shard) - 1]

    def name(self, shard: int) -> str:
        """File name of a shard."""
        split = self._split(shard)
        shards = self.shards(split)
        return f"{split}-{shard - shards.start:05d}-of-{len(shards):05d}.parquet"

    def _job_numbers(self, shard: int) -> range:
        """Numbers, within their split, of a shard's jobs."""
        split = self._split(shard)
        start = (shard - self.shards(split).start) * self.jobs_per_shard
        return range(start, min(start + self.jobs_per_shard, self._num_jobs(split)))

    def jobs(self, shard: int) -> Iterator[Job]:
        """The jobs of a shard, in order."""
        tasks = self.tasks[self._split(shard)]
        for number in self._job_numbers(shard):
            group, seed = divmod(number, len(self.seeds))
            start = group * self.tasks_per_job
            yield Job(tuple(tasks[start : start + self.tasks_per_job]), self.seeds[seed])

    def num_tasks(self, shard: int) -> int:
        """How many times a shard's jobs learn a task."""
        split, numbers = self._split(shard), self._job_numbers(shard)
        of_last_group = len(range(max(numbers.start, self._num_jobs(split) - len(self.seeds)), numbers.stop))
        return len(numbers) * self.tasks_per_job - of_last_group * (-len(self.tasks[split]) % self.tasks_per_job)

    def last_group(self, shard: int) -> int:
        """Id of the first task of a shard's last job: jobs of the same tasks may go on in the next shard."""
        group = self._job_numbers(shard)[-1] // len(self.seeds)
        return self.tasks[self._split(shard)][group * self.tasks_per_job].task_id

    def find(self, task_id: int, seed: int) -> int:
        """The shard of a task and a seed; a `KeyError` if the collection has no such job."""
        split, place = self._task_places[task_id]
        number = place // self.tasks_per_job * len(self.seeds) + self._seed_places[seed]
        return self.shards(split).start + number // self.jobs_per_shard
