"""SIGTERM and Ctrl-C: a run that is asked to end saves a checkpoint first."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """
    A run that was asked to end, and has saved a checkpoint.

    Attributes:
        signal (`signal.Signals`):
            `SIGINT` (Ctrl-C) or `SIGTERM` (as machines that are taken away send it).
        step (`int`):
            Updates that are done.
        checkpoint (`Path`):
            The checkpoint, from which `resume` goes on.
    """

    def __init__(self, signal_: signal.Signals, step: int, checkpoint: Path) -> None:
        super().__init__(
            f"{signal_.name} after {step} updates; saved {checkpoint}, from which --resume latest goes on"
        )
        self.signal, self.step, self.checkpoint = signal_, step, checkpoint


class Interruption:
    """
    While it is entered, SIGINT and SIGTERM are noted in `signal` instead of ending the process at once.

    A second Ctrl-C ends it where it is. In other threads than the main one, signals do what they did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # A stream may be in the middle of a line: this writes past all of them.
        os.write(2, f"\n{self.signal.name}: saving a checkpoint after this update; Ctrl-C ends at once\n".encode())
