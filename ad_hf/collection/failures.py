"""Tasks that a collection could not learn, while it learnt the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN_FAILURES = 10


@dataclass(frozen=True)
class TaskFailure:
    """
    A task that could not be learnt with a seed.

    Attributes:
        task_id (`int`), kwargs (`dict`), seed (`int`):
            The task, and the seed of its source.
        error (`str`):
            Type and message of the error.
        traceback (`str`):
            Last lines of the traceback, which stay on this machine; empty if the worker process died.
    """

    task_id: int
    kwargs: dict[str, Any]
    seed: int
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        lines = [f"task {self.task_id} {self.kwargs}, seed {self.seed}: {self.error}"]
        return "\n".join([*lines, *(f"    {line}" for line in self.traceback.splitlines())])


class CollectionError(RuntimeError):
    """
    Some tasks could not be learnt. Raised after all others were; collecting again with the same arguments tries only
    those that failed.

    Attributes:
        failures (`list[TaskFailure]`):
            The tasks, by id and seed.
        output_dir (`Path` or `str`, *optional*):
            The dataset, which holds the histories of all others; `None` if none is written, because a split lost all
            of its tasks or other parts are missing.
    """

    def __init__(self, failures: Sequence[TaskFailure], output_dir: Path | str | None, reason: str) -> None:
        super().__init__(list(failures), output_dir, reason)
        self.failures, self.output_dir, self.reason = list(failures), output_dir, reason

    def __str__(self) -> str:
        alike: dict[str, list[TaskFailure]] = {}
        for failure in self.failures:
            alike.setdefault(failure.error, []).append(failure)
        groups = list(alike.values())
        lines = [self.reason]
        for first, *others in groups[:SHOWN_FAILURES]:
            lines += [str(first), *([f"... and {len(others)} more that failed alike"] if others else [])]
        left = sum(map(len, groups[SHOWN_FAILURES:]))
        return "\n".join([*lines, *([f"... and {left} more"] if left else [])])
