"""Worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler

import torch

from ad_hf.collection.executors import Pool, RunJob
from ad_hf.collection.jobs import Job, OnStep, Outcome

GRACE = 10.0  # seconds that a worker has to end


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_process() -> None:
    """Prepare a process that learns, so that the same job gives the same numbers anywhere."""
    torch.set_num_threads(1)
    # SB3's distributions check the same arguments at every step; the checks change no result.
    torch.distributions.Distribution.set_default_validate_args(False)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _pickle(run: RunJob) -> bytes:
    """What a worker is to run, or a `ValueError` that says why there can be no worker."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not os.path.exists(script):
        raise ValueError(
            f"worker processes import the main script, and {script} is not a file: put the code into one, or collect "
            "with num_workers=0"
        )
    try:
        return bytes(ForkingPickler.dumps(run))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise _not_importable(error) from error


def _not_importable(error: Exception) -> ValueError:
    return ValueError(
        f"worker processes cannot import what the family or the source holds ({error}): put it into a module, or "
        "collect with num_workers=0"
    )


def _serve(connection: Connection, pickled: bytes) -> None:
    """
    A worker process: run jobs as they come, and tell the parent how far they are.

    It has one thread, is no orphan when the parent is killed, and leaves Ctrl-C to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_process()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        run = pickle.loads(pickled)
    except Exception as error:  # of the modules that it imports, or of a name that only the main process has
        connection.send((0, _not_importable(error)))
        return
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

    try:
        result: Outcome | Exception = run(job, on_step)
    except Exception as error:  # a full disk: for the parent to raise
        result = error
    return pending, result


class _Worker:
    """A worker process, and the job that it runs."""

    job: Job

    def __init__(self, run: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, run))
        self.process.start()
        other_end.close()  # so that the connection ends with the process

    def cause_of_death(self) -> str:
        """Why the process has ended."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if not code:
            return "its worker process died"
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = ", as for want of memory" if code == -signal.SIGKILL else ""
        return f"its worker process died by {what}{hint}"


class ProcessPool(Pool):
    """
    Worker processes, by default one per core, started as they are needed; a dead one is replaced. They call
    `on_progress` with numbers of transitions on the way.
    """

    def __init__(self, run: RunJob, on_progress: OnStep, num_workers: int | None = None) -> None:
        self._run, self._on_progress, self._num_workers = _pickle(run), on_progress, num_workers or available_cores()
        self._started = False
        self._idle: list[_Worker] = []
        self.running: dict[Connection, _Worker] = {}

    def size(self) -> int:
        return self._num_workers

    def submit(self, job: Job) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._run)
        worker.job = job
        self.running[worker.connection] = worker
        with suppress(OSError):  # it has died meanwhile, which `finished` finds
            worker.connection.send(job)

    def finished(self) -> Iterator[tuple[Outcome, bool]]:
        ready = wait(list(self.running), timeout=0.2)
        # A process that a dead worker has left behind may keep the connection open.
        dead = [] if ready else [each for each, worker in self.running.items() if not worker.process.is_alive()]
        for connection in [*ready, *dead]:
            assert isinstance(connection, Connection)
            worker = self.running[connection]
            try:
                if connection in dead:
                    raise EOFError
                transitions, result = connection.recv()
            except (EOFError, OSError) as error:
                if not self._started:
                    raise RuntimeError(
                        "worker processes die at their start: in a script, collect under "
                        "`if __name__ == '__main__':`, or with num_workers=0"
                    ) from error
                del self.running[connection]
                yield Outcome(worker.job, 0, worker.job.failure(worker.cause_of_death())), self._num_workers > 1
                continue
            if isinstance(result, Exception):
                raise result
            self._started = True
            self._on_progress(transitions)
            if result is not None:
                self._idle.append(self.running.pop(connection))
                yield result, False

    def close(self) -> None:
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
