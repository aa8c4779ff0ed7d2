"""Training that diverged: it ends, and says where, instead of going on without sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


class TrainingDivergedError(ValueError):
    """
    A run whose loss, gradient or weights are no longer finite.

    Attributes:
        step (`int`):
            The update in which that was seen first.
        checkpoint (`Path`, *optional*):
            The newest checkpoint, which was written before.
    """

    def __init__(self, what: str, step: int, learning_rate: float, checkpoint: Path | None) -> None:
        good = "no checkpoint was written before" if checkpoint is None else f"the last good one is {checkpoint}"
        super().__init__(
            f"training diverged: {what} not finite at update {step}, where the learning rate was {learning_rate:.3g}; "
            f"{good}: lower training.learning_rate or training.max_grad_norm, and start anew"
        )
        self.step, self.checkpoint = step, checkpoint


class Divergence:
    """
    Notes on the device which update had the first loss or gradient that is not finite, so that no update waits for it.

    Args:
        accelerator (`Accelerator`):
            Of the run, whose processes all get the same answer.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._first = torch.full((), torch.inf, device=accelerator.device)

    def note(self, step: int, loss: torch.Tensor, gradient_norm: Any) -> None:
        """
        Take note of an update.

        Args:
            step (`int`):
                Its number.
            loss (`torch.Tensor` of shape `()`):
                This process's part of its loss.
            gradient_norm (`torch.Tensor` of shape `()`, *optional*):
                Its gradient's norm, if it is known. With float16 it may be infinite: that update is skipped.
        """
        # Of a sharded model it is no plain tensor; that its weights are not finite shows in the next loss.
        if type(gradient_norm) is torch.Tensor and self._accelerator.scaler is None:
            loss = loss + gradient_norm
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(loss), torch.inf, float(step)))

    def first(self) -> int | None:
        """The first update that was not finite in any process. Waits for the device; every process must ask."""
        first = float(self._accelerator.gather(self._first).min())
        return None if first == torch.inf else int(first)
