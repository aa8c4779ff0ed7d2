"""Running jobs on a pool of workers, whatever becomes of a job or a worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import closing

from ad_hf.collection.jobs import Job, OnStep, Outcome

RunJob = Callable[[Job, OnStep], Outcome]


class Pool(ABC):
    """Workers that run jobs and report numbers of transitions on the way."""

    running: Sized

    @abstractmethod
    def size(self) -> int:
        """How many jobs can run at once."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Let a worker run a job."""

    @abstractmethod
    def finished(self) -> Iterator[tuple[Outcome, bool]]:
        """Outcomes of the jobs that have ended by now, and whether their worker may have died of another job."""

    def copy_stragglers(self, free: int) -> None:
        """Run jobs that take long a second time, on workers for which there is no job left."""
        return  # unless a pool can

    @abstractmethod
    def close(self) -> None:
        """End the workers, those at work at once; finished jobs stay on disk and are not run again."""


def run_jobs(pool: Pool, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
    """
    Run jobs on a pool, which is closed at the end. Each is asked for when there is a worker for it.

    A job of several tasks that fails is run again for one half of them and for the other, until it is clear which ones
    fail. A job whose worker may have died of another job is run again by itself, with nothing beside it.

    Yields:
        [`Outcome`]: those without a failure, and of single tasks those with one, as they come.
    """
    rest, again, suspects = iter(jobs), deque[Job](), deque[Job]()
    outcomes: list[Outcome] = []
    alone = False  # whether suspects are being run one by one
    with closing(pool):
        while True:
            # A few suspects wait, so as not to stop everything for each.
            free = 0 if alone or len(suspects) >= pool.size() else pool.size() - len(pool.running)
            for unused in range(free, 0, -1):
                job = again.popleft() if again else next(rest, None)
                if job is None:
                    pool.copy_stragglers(unused)
                    break
                pool.submit(job)
            yield from outcomes  # now that the workers are busy
            outcomes = []
            if not len(pool.running):
                if not (suspects or alone):
                    return
                alone = bool(suspects)
                if suspects:
                    pool.submit(suspects.popleft())
                continue
            for outcome, is_suspect in pool.finished():
                if is_suspect and not alone:
                    suspects.append(outcome.job)
                elif outcome.failure is not None and len(outcome.job.own_tasks) > 1:
                    (suspects if alone else again).extendleft(reversed(outcome.job.halves()))
                else:
                    outcomes.append(outcome)
