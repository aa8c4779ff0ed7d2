"""Jobs in the process itself: in notebooks, under a debugger, and wherever worker processes cannot start."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.distributions import Distribution

from ad_hf.collection.executors import Pool, RunJob
from ad_hf.collection.jobs import Job, OnStep, Outcome
from ad_hf.collection.processes import prepare_process


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the process's random numbers as they are, which learners and those that are loaded seed and draw."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _as_a_worker() -> Iterator[None]:
    """Learn as a worker process does, and leave the process as it is."""
    threads, validates = torch.get_num_threads(), Distribution._validate_args
    try:
        with same_random_numbers():
            prepare_process()
            yield
    finally:
        torch.set_num_threads(threads)
        Distribution.set_default_validate_args(validates)


class InProcessPool(Pool):
    """One job after the other in this process, which ends with a job that ends its process."""

    def __init__(self, run: RunJob, on_progress: OnStep) -> None:
        self._run, self._on_progress = run, on_progress
        self.running: list[Job] = []

    def size(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self.running.append(job)

    def finished(self) -> Iterator[tuple[Outcome, bool]]:
        with _as_a_worker():
            outcome = self._run(self.running.pop(), self._on_progress)
        yield outcome, False

    def close(self) -> None:
        return
