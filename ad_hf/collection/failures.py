"""Tasks that a collection could not learn, while it learnt the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN_FAILURES = 10
NUMBERS = re.compile(r"0x[0-9a-f]+|[-+]?\d[\d.]*(e[-+]?\d+)?")


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

    @property
    def kind(self) -> str:
        """The error without its numbers: tasks that fail for one reason differ in steps, places and addresses."""
        return NUMBERS.sub("N", self.error)

    @property
    def line(self) -> str:
        """The task and the error, without the traceback."""
        return f"task {self.task_id} {self.kwargs}, seed {self.seed}: {self.error}"

    def __str__(self) -> str:
        return "\n".join([self.line, *(f"    {line}" for line in self.traceback.splitlines())])


def fail_alike(failures: Sequence[TaskFailure], num_tasks: int) -> bool:
    """Whether at least so many different tasks failed, and all of them for one reason."""
    return len({each.task_id for each in failures}) >= num_tasks and len({each.kind for each in failures}) == 1


class CollectionError(RuntimeError):
    """
    Some tasks could not be learnt. Raised after all others were, or early where the first tasks all fail for one
    reason; collecting again with the same arguments tries only those that are left.

    Attributes:
        failures (`list[TaskFailure]`):
            The tasks, by id and seed.
        output_dir (`Path` or `str`, *optional*):
            The dataset, which holds the histories of all others; `None` if none is written, because a split lost all
            of its tasks, other parts are missing, or the collection stopped early.
    """

    def __init__(self, failures: Sequence[TaskFailure], output_dir: Path | str | None, reason: str) -> None:
        super().__init__(list(failures), output_dir, reason)
        self.failures, self.output_dir, self.reason = list(failures), output_dir, reason

    def __str__(self) -> str:
        alike: dict[str, list[TaskFailure]] = {}
        for failure in self.failures:
            alike.setdefault(failure.kind, []).append(failure)
        groups = list(alike.values())
        lines = [self.reason]
        for first, *others in groups[:SHOWN_FAILURES]:
            lines += [str(first), *([f"... and {len(others)} more that failed alike"] if others else [])]
        left = sum(map(len, groups[SHOWN_FAILURES:]))
        return "\n".join([*lines, *([f"... and {left} more"] if left else [])])
