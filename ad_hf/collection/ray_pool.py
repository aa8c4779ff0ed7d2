"""Workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

from ad_hf.collection.executors import Pool, RunJob
from ad_hf.collection.jobs import Job, OnStep, Outcome
from ad_hf.collection.processes import prepare_process

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
    """A job on the cluster, and its second copy, if there is one."""

    job: Job
    started: float
    copies: list[Any]
    copied: bool = False


class RayPool(Pool):
    """
    The cores of a Ray cluster.

    Ray runs a job again if its worker or its machine is lost. When none is waiting any more, a job that takes much
    longer than the others did is started a second time elsewhere, and the first of the two to finish counts: both
    write the same bytes.

    Args:
        run, on_progress:
            What runs a job, and is called with the number of transitions of each finished one.
        num_workers (`int`, *optional*):
            Jobs at a time, by default one per core of the cluster.
        address (`str`, *optional*):
            The cluster, as of `ray.init`; by default that of `RAY_ADDRESS`, or else one on this machine alone. Where
            the process is connected to one already, that one.

    Raises:
        ValueError: if Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, run: RunJob, on_progress: OnStep, num_workers: int | None = None, address: str | None = None
    ) -> None:
        self._connected = _connect(address, num_workers)
        import ray

        self._ray, self._on_progress, self._num_workers = ray, on_progress, num_workers
        context = (str(uuid4()), tuple(sys.path), os.getcwd())
        data = ray.put(ray.cloudpickle.dumps(run))
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_work)
        self._start = lambda job, strategy: remote.options(scheduling_strategy=strategy).remote(*context, data, job)
        self.running: list[_Running] = []
        self._canceled: list[Any] = []
        self._seconds: deque[float] = deque(maxlen=1000)  # that the last jobs took

    def size(self) -> int:
        cores = int(self._ray.cluster_resources().get("CPU", 0))  # machines come and go
        return max(1, cores if self._num_workers is None else min(cores, self._num_workers))

    def submit(self, job: Job) -> None:
        self.running.append(_Running(job, time.monotonic(), [self._start(job, "DEFAULT")]))

    def copy_stragglers(self, free: int) -> None:
        if not self._seconds:
            return
        limit = max(STRAGGLER_SECONDS, STRAGGLER_RATIO * statistics.median(self._seconds))
        late = [each for each in self.running if time.monotonic() - each.started > limit and not each.copied]
        for each in late[:free]:
            each.copied = True  # once: a job that kills its workers would never end
            each.copies.append(self._start(each.job, "SPREAD"))

    def finished(self) -> Iterator[tuple[Outcome, bool]]:
        owners = {copy: each for each in self.running for copy in each.copies}
        ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=0.5)
        for copy in ready:
            each = owners[copy]
            if each not in self.running:  # the other copy has just finished
                continue
            outcome, is_lost = self._outcome(each.job, copy)
            if is_lost and len(each.copies) > 1:  # the other copy may fare better
                each.copies.remove(copy)
                continue
            self.running.remove(each)
            self._seconds.append(time.monotonic() - each.started)
            for other in each.copies:
                if other is not copy:
                    self._cancel(other)
            self._on_progress(outcome.transitions)
            yield outcome, False

    def _outcome(self, job: Job, copy: Any) -> tuple[Outcome, bool]:
        """The outcome of a job, and whether its worker or machine was lost."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(copy), False
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, FileNotFoundError):
                raise FileNotFoundError(
                    f"a worker could not write its histories ({error.cause}): workers on other machines need an "
                    "output_dir that all machines share, or a URL such as s3://bucket/histories"
                ) from error
            raise (error.cause if isinstance(error.cause, ValueError) else error) from None
        except exceptions.RayError as error:
            crashed = isinstance(error, exceptions.WorkerCrashedError)
            reason = "its worker process died" if crashed else " ".join(str(error).split())[:300]
            return Outcome(job, 0, job.failure(f"{reason}, {MAX_RETRIES + 1} times")), True

    def _cancel(self, copy: Any) -> None:
        self._canceled.append(copy)
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(copy, force=True)

    def close(self) -> None:
        for each in self.running:
            for copy in each.copies:
                self._cancel(copy)
        if self._canceled:  # so that none writes where the dataset is being put
            self._ray.wait(self._canceled, num_returns=len(self._canceled), timeout=10)
        if self._connected:
            self._ray.shutdown()


def _connect(address: str | None, num_workers: int | None) -> bool:
    """Connect to a cluster, or start one on this machine; returns whether this process was not connected before."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("executor 'ray' needs the package ray: pip install 'ad_hf[ray]'") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = {"num_cpus": num_workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **here)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
    return True
