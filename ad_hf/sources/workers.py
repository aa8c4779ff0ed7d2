"""Worker processes: jobs on all cores, whatever becomes of a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_sentinels
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ad_hf.sources.jobs import Job, Outcome

RunJob = Callable[[Job, Callable[[int], None]], Outcome]

_progress: Any = None  # in a worker process, the queue to its parent


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(progress: Any) -> None:
    """Prepare a worker process: one thread, no orphan when the parent is killed, Ctrl-C left to the parent."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # SB3's distributions check the same arguments at every step; the checks change no result.
    torch.distributions.Distribution.set_default_validate_args(False)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    progress.put(0)


def _end_with(sentinel: int) -> None:
    wait_for_sentinels([sentinel])
    os._exit(1)


def _work(run: RunJob, job: Job) -> Outcome:
    """Run a job and tell the parent every now and then how far it is."""
    pending, last_report = 0, time.monotonic()

    def on_step(transitions: int) -> None:
        nonlocal pending, last_report
        pending += transitions
        if time.monotonic() - last_report > 0.2:
            _progress.put(pending)
            pending, last_report = 0, time.monotonic()

    outcome = run(job, on_step)
    _progress.put(pending)
    return outcome


class _Pool:
    """Worker processes with as many jobs as there are workers, so that it is known which ones were being run."""

    def __init__(self, num_workers: int, on_progress: Callable[[int], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.num_workers, self._on_progress, self._progress = num_workers, on_progress, context.SimpleQueue()
        self._others = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_start_worker, initargs=(self._progress,)
        )
        self.started = False
        self.workers: list[BaseProcess] = []
        self.running: dict[Future[Outcome], Job] = {}

    def submit(self, run: RunJob, jobs: deque[Job]) -> None:
        """Give free workers the first of the jobs."""
        while jobs and len(self.running) < self.num_workers:
            self.running[self._executor.submit(_work, run, jobs[0])] = jobs[0]
            jobs.popleft()
            self.workers = list(set(multiprocessing.active_children()) - self._others) or self.workers

    def finished(self) -> list[Outcome]:
        """Outcomes of the jobs that have finished by now; waits a little for one."""
        done, _ = wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED)
        self.report()
        # What was finished before another worker died is taken first, and that other one raises at the next call.
        whole = [future for future in done if future.exception() is None]
        if done and not whole:
            done.pop().result()
        outcomes = [future.result() for future in whole]
        for future in whole:
            del self.running[future]
        return outcomes

    def report(self) -> None:
        """Pass on what workers say about their progress."""
        while not self._progress.empty():
            self.started = True
            self._on_progress(self._progress.get())

    def close(self) -> None:
        """End the workers, once they have finished."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def terminate(self) -> None:
        """End the workers at once; finished jobs stay on disk and are not run again."""
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()


@contextmanager
def _pool(num_workers: int, on_progress: Callable[[int], Any]) -> Iterator[_Pool]:
    pool = _Pool(num_workers, on_progress)
    try:
        yield pool
    except BrokenProcessPool:  # whose workers are ended already
        raise
    except BaseException:
        pool.terminate()
        raise
    finally:
        pool.close()


def _cause_of_death(workers: Sequence[BaseProcess]) -> str:
    codes = sorted({process.exitcode for process in workers if process.exitcode not in (None, 0)})
    if not codes:
        return "its worker process died"
    code = codes[0]
    what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    hint = ", as for want of memory" if code == -9 else ""
    return f"its worker process died by {what}{hint}"


def run_jobs(
    run: RunJob, jobs: Sequence[Job], num_workers: int, on_progress: Callable[[int], Any]
) -> Iterator[Outcome]:
    """
    Run jobs on worker processes.

    A job of several tasks that fails is run again for one half of them and for the other, until it is known which
    ones fail. If a worker dies, so do the others' jobs: each is run again by itself, which shows which one it was.

    Args:
        run (`Callable[[Job, Callable[[int], None]], Outcome]`):
            What to do with a job, given a function to call at each step with the number of transitions it added.
        jobs (`Sequence[Job]`):
            The jobs.
        num_workers (`int`):
            Worker processes.
        on_progress (`Callable[[int], None]`):
            Called with numbers of transitions.

    Yields:
        [`Outcome`]: those without an error, and of single tasks those with one, as they come.

    Raises:
        RuntimeError: if worker processes cannot even start.
    """
    waiting, suspects = deque(jobs), deque[Job]()
    while waiting or suspects:
        alone = bool(suspects)
        queue = suspects if alone else waiting
        try:
            with _pool(1 if alone else min(num_workers, len(queue)), on_progress) as pool:
                while queue or pool.running:
                    pool.submit(run, queue)
                    for outcome in pool.finished():
                        if outcome.error and len(outcome.job.own_tasks) > 1:
                            queue.extendleft(reversed(outcome.job.halves()))
                        else:
                            yield outcome
        except BrokenProcessPool as error:
            pool.report()
            if not pool.started:
                raise RuntimeError(
                    "worker processes die at their start: in a script, collect under `if __name__ == '__main__':`"
                ) from error
            died = list(pool.running.values())
            if pool.num_workers > 1:
                suspects.extend(died)
            for job in died if pool.num_workers == 1 else ():
                if len(job.own_tasks) > 1:
                    suspects.extendleft(reversed(job.halves()))
                else:
                    yield Outcome(job, 0, _cause_of_death(pool.workers))
