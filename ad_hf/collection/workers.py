"""Worker processes: jobs on all cores, whatever becomes of a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ad_hf.collection.jobs import Job, Outcome

RunJob = Callable[[Job, Callable[[int], None]], Outcome]

GRACE = 10.0  # seconds that a worker has to end once it is told to


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_process() -> None:
    """What every process that learns does first, so that the same job gives the same numbers anywhere."""
    torch.set_num_threads(1)
    # SB3's distributions check the same arguments at every step; the checks change no result.
    torch.distributions.Distribution.set_default_validate_args(False)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _serve(connection: Connection, run: RunJob) -> None:
    """
    A worker process: run jobs as they come, and tell the parent how far they are.

    It has one thread, is no orphan when the parent is killed, and leaves Ctrl-C to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_process()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    connection.send((0, None))
    with suppress(EOFError):
        while (job := connection.recv()) is not None:
            connection.send(_run(connection, run, job))


def _run(connection: Connection, run: RunJob, job: Job) -> tuple[int, Outcome | Exception]:
    pending, last_report = 0, time.monotonic()

    def on_step(transitions: int) -> None:
        nonlocal pending, last_report
        pending += transitions
        if time.monotonic() - last_report > 0.2:
            connection.send((pending, None))
            pending, last_report = 0, time.monotonic()

    result: Outcome | Exception
    try:
        result = run(job, on_step)
    except Exception as error:  # a full disk: for the parent to raise
        result = error
    return pending, result


class _Worker:
    """A worker process, and the job that it runs."""

    def __init__(self, run: RunJob) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, run))
        self.process.start()
        other_end.close()  # so that the connection ends with the process
        self.job: Job | None = None

    def cause_of_death(self) -> str:
        """Why the process is no more."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if not code:
            return "its worker process died"
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = ", as for want of memory" if code == -signal.SIGKILL else ""
        return f"its worker process died by {what}{hint}"


class _Pool:
    """Worker processes, started as they are needed; a dead one is replaced."""

    def __init__(self, run: RunJob, on_progress: Callable[[int], Any]) -> None:
        self._run, self._on_progress = run, on_progress
        self._started = False
        self._idle: list[_Worker] = []
        self.running: dict[Connection, _Worker] = {}

    def submit(self, job: Job) -> None:
        """Let an idle worker, or a new one, run a job."""
        worker = self._idle.pop() if self._idle else _Worker(self._run)
        worker.job = job
        self.running[worker.connection] = worker
        with suppress(OSError):  # it has died meanwhile, as is found out next
            worker.connection.send(job)

    def finished(self) -> Iterator[tuple[Job, Outcome | str]]:
        """Jobs that have finished by now with their outcomes, or why their workers died; waits a little for one."""
        ready = wait(list(self.running), timeout=0.2)
        # A process that a dead worker has left behind may keep the connection open.
        dead = [] if ready else [each for each, worker in self.running.items() if not worker.process.is_alive()]
        for connection in [*ready, *dead]:
            assert isinstance(connection, Connection)
            worker = self.running[connection]
            assert worker.job is not None
            result: Outcome | Exception | str | None
            try:
                transitions, result = connection.recv() if connection not in dead else (0, worker.cause_of_death())
            except (EOFError, OSError):
                transitions, result = 0, worker.cause_of_death()
            if isinstance(result, Exception):
                raise result
            if isinstance(result, str) and not self._started:
                raise RuntimeError(
                    "worker processes die at their start: in a script, collect under `if __name__ == '__main__':`"
                )
            self._started = True
            self._on_progress(transitions)
            if result is not None:
                del self.running[connection]
                if isinstance(result, Outcome):
                    self._idle.append(worker)
                yield worker.job, result

    def close(self) -> None:
        """End the idle workers, and those at work at once; finished jobs stay on disk and are not run again."""
        for worker in self.running.values():
            worker.process.terminate()
        for worker in self._idle:
            with suppress(OSError):
                worker.connection.send(None)
        for worker in [*self._idle, *self.running.values()]:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def run_jobs(
    run: RunJob, jobs: Iterable[Job], num_workers: int, on_progress: Callable[[int], Any]
) -> Iterator[Outcome]:
    """
    Run jobs on worker processes.

    A job of several tasks that fails is run again for one half of them and for the other, until it is known which
    ones fail. A job whose worker died is run again by itself, with nothing beside it, which shows if it was the cause.

    Args:
        run (`Callable[[Job, Callable[[int], None]], Outcome]`):
            What to do with a job, given a function to call at each step with the number of transitions it added.
        jobs (`Iterable[Job]`):
            The jobs; each is asked for when there is a worker for it.
        num_workers (`int`):
            Worker processes.
        on_progress (`Callable[[int], None]`):
            Called with numbers of transitions.

    Yields:
        [`Outcome`]: those without an error, and of single tasks those with one, as they come.

    Raises:
        RuntimeError: if worker processes cannot even start.
        Exception: what `run` raises.
    """
    rest, again, suspects = iter(jobs), deque[Job](), deque[Job]()
    outcomes: list[Outcome] = []
    proving = False  # whether suspects are being run one by one
    pool = _Pool(run, on_progress)

    def next_job() -> Job | None:
        # A few suspects are kept waiting, so as not to stop everything for each.
        if proving or len(pool.running) >= num_workers or len(suspects) >= num_workers:
            return None
        return again.popleft() if again else next(rest, None)

    try:
        while True:
            while (job := next_job()) is not None:
                pool.submit(job)
            yield from outcomes  # now that the workers are busy
            outcomes = []
            if not pool.running:
                if not (suspects or proving):
                    return
                proving = bool(suspects)
                if suspects:
                    pool.submit(suspects.popleft())
                continue
            for job, result in pool.finished():
                if isinstance(result, str) and num_workers > 1 and not proving:
                    suspects.append(job)
                    continue
                outcome = Outcome(job, 0, result) if isinstance(result, str) else result
                if outcome.error and len(job.own_tasks) > 1:
                    (suspects if proving else again).extendleft(reversed(job.halves()))
                else:
                    outcomes.append(outcome)
    finally:
        pool.close()
