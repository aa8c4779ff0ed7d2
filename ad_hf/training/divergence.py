"""Training that diverges: the run ends and says where."""

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
            The first update with such a number.
        checkpoint (`Path`, *optional*):
            The newest checkpoint, written before it.
    """

    def __init__(self, what: str, step: int, learning_rate: float, checkpoint: Path | None) -> None:
        good = "no checkpoint was written before" if checkpoint is None else f"the last good one is {checkpoint}"
        super().__init__(
            f"training diverged: {what} not finite at update {step}, where the learning rate was {learning_rate:.3g}; "
            f"{good}: lower training.learning_rate or training.max_grad_norm, and start anew"
        )
        self.step, self.checkpoint = step, checkpoint


class Divergence:
    """The first update whose loss or gradient is not finite, on the device, so that no update waits for it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._first = torch.full((), torch.inf, device=accelerator.device)

    def note(self, step: int, loss: torch.Tensor, gradient_norm: Any) -> None:
        """Look at this process's part of an update's loss, and at the gradient's norm, if it is at hand."""
        # With float16 the norm may be infinite: the scaler skips that update. A sharded model's norm is not a plain
        # tensor: weights that are not finite show in the next loss.
        if type(gradient_norm) is torch.Tensor and self._accelerator.scaler is None:
            loss = loss + gradient_norm
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(loss), torch.inf, float(step)))

    def first(self) -> int | None:
        """The first such update of any process. Waits for the device; every process must call this."""
        first = float(self._accelerator.gather(self._first).min())
        return None if first == torch.inf else int(first)
