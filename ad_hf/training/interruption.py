"""SIGTERM and Ctrl-C: a run that is asked to end saves what it has first."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """
    A run that was asked to end, and has saved a checkpoint.

    Attributes:
        signal (`signal.Signals`):
            What asked it to: `SIGINT` (Ctrl-C) or `SIGTERM` (as machines that are taken away send it).
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
    Takes note of SIGINT and SIGTERM instead of ending at once, while it is entered.

    A second Ctrl-C ends the program where it is. In other threads than the main one, signals are left as they are.

    Attributes:
        signal (`signal.Signals`, *optional*):
            What this process was sent.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take_note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # Not through a stream, in whose middle this may come.
        os.write(2, f"\n{self.signal.name}: saving a checkpoint after this update; Ctrl-C ends at once\n".encode())

    def agreed(self, accelerator: Accelerator) -> signal.Signals | None:
        """The signal that some process was sent; every process must ask, and all get the same answer."""
        number = self.signal or 0
        if accelerator.num_processes > 1:
            sent = torch.tensor([number], device=accelerator.device)
            number = int(accelerator.gather(sent).max())
        return signal.Signals(number) if number else None
