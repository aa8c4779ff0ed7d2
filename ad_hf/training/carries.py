"""What layers take along from update to update, in training by truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device

from ad_hf.model.cache_ad import Carry
from ad_hf.model.modeling_ad import ADModel
from ad_hf.training.config import TrainingConfig
from ad_hf.training.members import Member


class Carries:
    """
    The carry of the rows of each pass of an update, in one process.

    Args:
        model ([`ADModel`]), members (`Sequence[Member]`), config ([`TrainingConfig`]):
            What trains on what.
        rows (`int`):
            Windows of a pass.
        device (`torch.device`):
            That of the run.

    Raises:
        ValueError: for a model that carries nothing, for a mixture, and for a stream, whose windows are mixed.
    """

    def __init__(
        self, model: ADModel, members: Sequence[Member], config: TrainingConfig, rows: int, device: torch.device
    ) -> None:
        if len(members) > 1:
            raise ValueError("training.truncated_bptt is for one family, not for a mixture: leave it out")
        if members[0].streaming:
            raise ValueError(
                "training.truncated_bptt goes through histories from end to end, and a stream mixes their windows: "
                "train without streaming"
            )
        try:
            empty = model.init_carry(rows)
        except ValueError as error:
            raise ValueError(f"training.truncated_bptt needs a memory: {error}; see model.layer_types") from error
        self._device = device
        self._carries = [self._here(empty)] * config.gradient_accumulation_steps

    def _here(self, carry: Carry) -> Carry:
        return Carry([tuple(part.to(self._device) for part in layer) for layer in carry.states], carry.lengths)

    def run(self, model: Callable[..., Any], batch: dict[str, Any], index: int) -> Any:
        """The output of a model for a batch of the index-th pass of an update, some rows of which begin anew."""
        carry = self._carries[index].reset(batch["begins"])
        inputs = {name: part for name, part in batch.items() if name != "begins"}
        output = model(**send_to_device(inputs, self._device), past_key_values=carry)
        self._carries[index] = output.past_key_values
        return output

    def state_dict(self, rank: int) -> dict[str, torch.Tensor]:
        """All tensors, by their names in a checkpoint."""
        tensors = {}
        for index, carry in enumerate(self._carries):
            tensors[f"carry/{rank}/{index}/lengths"] = carry.lengths
            for layer, parts in enumerate(carry.states):
                tensors |= {f"carry/{rank}/{index}/{layer}/{number}": part for number, part in enumerate(parts)}
        return {name: part.cpu().contiguous() for name, part in tensors.items()}

    def shapes(self, processes: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of all processes."""
        return {name: part.shape for rank in range(processes) for name, part in self.state_dict(rank).items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], rank: int) -> None:
        """Go on with the tensors of a checkpoint."""
        parts = iter([tensors[name] for name in self.state_dict(rank)])
        for index, carry in enumerate(self._carries):
            lengths = next(parts)
            states = [tuple(next(parts) for _ in layer) for layer in carry.states]
            self._carries[index] = self._here(Carry(states, lengths))
