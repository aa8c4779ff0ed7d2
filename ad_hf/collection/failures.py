"""What went wrong with single tasks of a collection, while the others were learnt."""

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
            Last lines of the traceback; empty if the worker process died.
    """

    task_id: int
    kwargs: dict[str, Any]
    seed: int
    error: str
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        """What `metadata.json` says of it; the traceback, with paths of this machine, stays here."""
        return {"task_id": self.task_id, "seed": self.seed, "error": self.error}

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
            The dataset, which holds the histories of all others; `None` if a split lost all of its tasks, so that
            none is written.
    """

    def __init__(self, failures: Sequence[TaskFailure], output_dir: Path | str | None, reason: str) -> None:
        super().__init__(list(failures), output_dir, reason)
        self.failures, self.output_dir, self.reason = list(failures), output_dir, reason

    def __str__(self) -> str:
        alike: dict[str, list[TaskFailure]] = {}
        for failure in self.failures:
            alike.setdefault(failure.error, []).append(failure)
        shown = [
            "\n".join([str(first), *([f"... and {len(others)} more that failed alike"] if others else [])])
            for first, *others in list(alike.values())[:SHOWN_FAILURES]
        ]
        left = sum(map(len, list(alike.values())[SHOWN_FAILURES:]))
        return "\n".join([self.reason, *shown, *([f"... and {left} more"] if left else [])])
