"""Jobs on a Ray cluster, whatever becomes of its workers and machines."""

from __future__ import annotations

import logging
import os
import pickle
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

from ad_hf.collection.jobs import Job, Outcome
from ad_hf.collection.workers import RunJob, prepare_process

MAX_RETRIES = 3  # of a job whose worker or machine is lost
STRAGGLER_RATIO, STRAGGLER_SECONDS = 3.0, 5.0  # of the median job, and at least so long: then a second copy is started


@lru_cache(maxsize=1)
def _prepare_worker(key: str, path: tuple[str, ...], folder: str) -> None:
    """Make a worker process like one of this machine's own: modules are found where the driver finds them."""
    sys.path += [entry for entry in path if entry not in sys.path]
    with suppress(OSError):
        os.chdir(folder)
    prepare_process()


@lru_cache(maxsize=1)
def _load(key: str, run: bytes) -> RunJob:
    return pickle.loads(run)


def _work(key: str, path: tuple[str, ...], folder: str, run: bytes, job: Job) -> Outcome:
    _prepare_worker(key, path, folder)
    return _load(key, run)(job, lambda transitions: None)


@dataclass
class _Running:
    """A job that was given to the cluster, and its second copy, if there is one."""

    job: Job
    started: float
    copies: list[Any]
    copied: bool = False


class _Cluster:
    """Jobs that a Ray cluster runs."""

    def __init__(self, run: RunJob, num_workers: int | None) -> None:
        import ray

        self._ray, self._num_workers = ray, num_workers
        context = (str(uuid4()), tuple(sys.path), os.getcwd())
        data = ray.put(ray.cloudpickle.dumps(run))
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_work)
        self._submit = lambda job, strategy: remote.options(scheduling_strategy=strategy).remote(*context, data, job)
        self.running: list[_Running] = []
        self._lost: list[Any] = []  # copies that came second
        self._seconds: deque[float] = deque(maxlen=1000)  # that the last jobs took

    def slots(self) -> int:
        """How many jobs may run at once: machines come and go."""
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        return max(1, cores if self._num_workers is None else min(cores, self._num_workers))

    def submit(self, job: Job) -> None:
        """Run a job."""
        self.running.append(_Running(job, time.monotonic(), [self._submit(job, "DEFAULT")]))

    def copy_stragglers(self, free: int) -> None:
        """Start second copies of jobs that take much longer than others did."""
        if not self._seconds:
            return
        limit = max(STRAGGLER_SECONDS, STRAGGLER_RATIO * statistics.median(self._seconds))
        late = [each for each in self.running if time.monotonic() - each.started > limit and not each.copied]
        for each in late[:free]:
            each.copied = True  # once: a job that kills its workers would never end
            each.copies.append(self._submit(each.job, "SPREAD"))

    def finished(self) -> Iterator[tuple[Job, Outcome | str]]:
        """Jobs that have finished by now with their outcomes, or why there is none; waits a little for one."""
        owners = {copy: each for each in self.running for copy in each.copies}
        ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0) if owners else ([], [])
        if not ready:
            ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=0.5)
        for copy in ready:
            each = owners[copy]
            if each not in self.running:  # the other copy has just been seen
                continue
            result = self._result(copy)
            if isinstance(result, str) and len(each.copies) > 1:  # the other copy may fare better
                each.copies.remove(copy)
                continue
            self.running.remove(each)
            self._seconds.append(time.monotonic() - each.started)
            for other in each.copies:
                if other is not copy:
                    self._cancel(other)
            yield each.job, result

    def _result(self, copy: Any) -> Outcome | str:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(copy)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FileNotFoundError):
                raise FileNotFoundError(
                    f"a worker could not write its histories ({cause}): workers on other machines need an output_dir "
                    "that all machines share, or a URL such as s3://bucket/histories"
                ) from error
            raise
        except exceptions.RayError as error:
            crashed = isinstance(error, exceptions.WorkerCrashedError)
            reason = "its worker process died" if crashed else " ".join(str(error).split())[:300]
            return f"{reason}, {MAX_RETRIES + 1} times"

    def _cancel(self, copy: Any) -> None:
        self._lost.append(copy)
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(copy, force=True)

    def close(self) -> None:
        """End what still runs; finished jobs stay on disk and are not run again."""
        for each in self.running:
            for copy in each.copies:
                self._cancel(copy)
        if self._lost:  # so that none writes where the dataset is being put
            self._ray.wait(self._lost, num_returns=len(self._lost), timeout=10)


def _connect(address: str | None, num_workers: int | None) -> bool:
    """Connect to a cluster, or start one on this machine; returns whether it is for us to leave it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor 'ray' needs the package ray: pip install 'ad_hf[ray]'") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        here: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False} if address is None else {}
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **here)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
    return True


def run_jobs_on_ray(
    run: RunJob,
    jobs: Iterable[Job],
    num_workers: int | None,
    on_progress: Callable[[int], Any],
    address: str | None = None,
) -> Iterator[Outcome]:
    """
    Run jobs on a Ray cluster.

    Ray runs a job again if its worker or its machine is lost. A job of several tasks that fails is run again for one
    half of them and for the other, until it is known which ones fail. When none is waiting any more, a job that takes
    much longer than the others did is started a second time elsewhere, and the first of the two to finish counts: both
    write the same bytes.

    Args:
        run (`Callable[[Job, Callable[[int], None]], Outcome]`):
            What to do with a job.
        jobs (`Iterable[Job]`):
            The jobs; each is asked for when there is a core for it.
        num_workers (`int`, *optional*):
            Jobs at a time, by default one per core of the cluster.
        on_progress (`Callable[[int], None]`):
            Called with the number of transitions of each finished job.
        address (`str`, *optional*):
            The cluster, as of `ray.init`; by default what `RAY_ADDRESS` says, or else one on this machine alone. Where
            the process is connected to one already, that one.

    Yields:
        [`Outcome`]: those without an error, and of single tasks those with one, as they come.

    Raises:
        ValueError: if Ray is not installed, or there is no such cluster.
        FileNotFoundError: if workers on other machines do not see the folder to write to.
    """
    leave = _connect(address, num_workers)
    rest, again = iter(jobs), deque[Job]()
    cluster = None
    try:
        cluster = _Cluster(run, num_workers)
        outcomes: list[Outcome] = []
        while True:
            free = cluster.slots() - len(cluster.running)
            job: Job | None = None
            for _ in range(free):
                job = again.popleft() if again else next(rest, None)
                if job is None:
                    break
                cluster.submit(job)
            yield from outcomes  # now that the workers are busy
            outcomes = []
            if not cluster.running:
                return
            if free > 0 and job is None:
                cluster.copy_stragglers(free)
            for job, result in cluster.finished():
                outcome = Outcome(job, 0, result) if isinstance(result, str) else result
                on_progress(outcome.transitions)
                if outcome.error and len(job.own_tasks) > 1:
                    again.extendleft(reversed(job.halves()))
                else:
                    outcomes.append(outcome)
    finally:
        if cluster is not None:
            cluster.close()
        if leave:
            import ray

            ray.shutdown()
