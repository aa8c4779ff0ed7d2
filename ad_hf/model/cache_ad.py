"""
Caches: what a context keeps of its steps, so that the decoder does not encode them again at every step.

A cache only stores. The model writes to it and reads from it (`append` and `update`), the context says which rows act,
begin anew or forget. [`make_cache`] chooses the cache that suits a model's decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import Cache, PreTrainedModel

States = list[tuple[torch.Tensor, ...]]  # of each layer, of shape (rows, heads, time, size) each


def as_slice(rows: torch.Tensor) -> torch.Tensor | slice:
    """Ascending indices (number,) as a slice, through which is written many times as fast, if they have no gaps."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


class ContextCache(Protocol):
    """
    The cache of a context. A decoder with another kind of memory, such as the states of recurrent layers, needs a
    subclass of this with `tensors` and `store`, and a line in [`make_cache`]; its layers read and write the rest.

    Attributes:
        lengths (`torch.Tensor` of shape `(batch,)`):
            Steps that each row holds, on the CPU; with a sliding window, all steps so far.
        active (`torch.Tensor` of shape `(batch,)`, *optional*):
            Rows whose next step counts, all by default. The states of other rows stay as they are (a pause).
    """

    lengths: torch.Tensor
    active: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is stored beside `lengths`, in shapes that depend on the model, batch and slots alone."""
        ...

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        """
        Let rows begin anew with steps that were encoded at once: a prompt, or the last steps of a full row.

        Args:
            rows (`torch.Tensor` of shape `(number,)`):
                Their indices, in ascending order.
            length (`int`):
                Number of steps.
            states (`list[tuple[torch.Tensor, ...]]`):
                Of `model.encode`, of each row or one for all; nothing if there are no steps.
        """
        ...

    def forget(self, rows: torch.Tensor) -> None:
        """Let the rows of a mask (batch,) begin anew with nothing."""
        self.lengths = self.lengths.masked_fill(rows, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is stored, itself."""
        return {"lengths": self.lengths, **self.tensors()}


class ADCache(ContextCache, Cache):
    """
    Keys and values of every layer, in slots of each row's own, for this package's blocks and for backbones that attend
    to all earlier steps.

    Without a sliding window, slot i of a row holds its i-th step. With one, there are as many slots as the window has
    steps, and step i is written to slot i modulo their number, over the one that leaves the window: as keys are turned
    by their own positions, they stay right wherever they are and however long the row becomes.

    Args:
        states (`list[tuple[torch.Tensor, torch.Tensor]]`):
            Keys and values of some steps, for their shapes and device.
        batch (`int`):
            Number of rows.
        slots (`int`):
            Steps that a row can hold.
        dtypes (`Sequence[torch.dtype]`):
            Of keys and of values.
        slides (`bool`, *optional*, defaults to `False`):
            Whether a full row goes on, over its oldest steps.
    """

    def __init__(
        self, states: States, batch: int, slots: int, dtypes: Sequence[torch.dtype], slides: bool = False
    ) -> None:
        Cache.__init__(self, layers=[])
        self.slots, self.slides, self.lengths = slots, slides, torch.zeros(batch, dtype=torch.long)
        self.states = [
            tuple(
                part.new_zeros((batch, part.shape[1], slots, part.shape[3]), dtype=dtype)
                for part, dtype in zip(layer, dtypes)
            )
            for layer in states
        ]
        self._rows: Any = slice(None)  # to which the step is written
        self._slot: Any = 0  # of all rows, or of each
        self._used = 0  # slots in use, the step's included

    def append(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Make room for a step in every row that is active.

        Returns:
            Its positions (batch or 1, 1), on the CPU, and which slots each row sees (batch, slots in use), or `None`
            where all rows see all of them.
        """
        before, device = self.lengths, self.states[0][0].device
        longest, shortest = int(before.max()), int(before.min())
        after = before + (1 if self.active is None else self.active)
        if not self.slides and int(after.max()) > self.slots:
            raise ValueError(f"the cache holds {self.slots} steps, {self.slots + 1} were written to it")
        self.lengths = after
        self._used, seen = min(longest + 1, self.slots), None
        if shortest + 1 < self._used:
            seen = (torch.arange(self._used) <= before.unsqueeze(1)).to(device)
        if longest == shortest and self.active is None:  # all rows are written to the same slot
            self._rows, self._slot = slice(None), longest % self.slots
            return before[:1].unsqueeze(1), seen
        rows = torch.arange(len(before)) if self.active is None else torch.nonzero(self.active).squeeze(1)
        self._rows, self._slot = rows.to(device), (before[rows] % self.slots).to(device)
        return before.unsqueeze(1), seen

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, ...]:
        """Write the step's keys and values (batch, heads, 1, size) of a layer; returns those of all steps so far."""
        for states, new in zip(self.states[layer_idx], (key_states, value_states)):
            states[self._rows, :, self._slot] = new[self._rows, :, 0].to(states.dtype)
        return tuple(states[:, :, : self._used] for states in self.states[layer_idx])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps before the one that was appended last, in the longest row."""
        return max(0, self._used - 1)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of slots that `update` returns, and of those before them that it leaves out."""
        return self._used, 0

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        self.lengths[rows] = length
        index = as_slice(rows)
        # Oldest first, the last ones that there is room for stand from this slot on, and go on at slot 0.
        last, first = min(length, self.slots), max(0, length - self.slots) % self.slots
        for layer, parts in zip(self.states, states):
            for stored, new in zip(layer, parts):
                new = new[:, :, length - last :].to(stored.dtype)
                stored[index, :, first:last] = new[:, :, : last - first]
                stored[index, :, :first] = new[:, :, last - first :]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {str(index): part for index, part in enumerate(part for layer in self.states for part in layer)}


class StepCache(ContextCache):
    """
    The steps themselves, which are encoded anew each time, for backbones that no [`ADCache`] serves.

    Args:
        tokens (`torch.Tensor` of shape `(1, 1, width)`):
            A step, for its shape and device.
        batch (`int`):
            Number of rows.
        slots (`int`):
            Steps that a row holds at most.
        dtype (`torch.dtype`):
            Of the steps.
    """

    def __init__(self, tokens: torch.Tensor, batch: int, slots: int, dtype: torch.dtype) -> None:
        self.tokens = tokens.new_zeros((batch, slots, tokens.shape[-1]), dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)

    def update(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add a step (batch, 1, width); returns all (batch, time, width), a mask of them, and each row's last."""
        active = torch.ones(len(tokens), dtype=torch.bool) if self.active is None else self.active
        rows = torch.nonzero(active).squeeze(1)
        self.tokens[rows, self.lengths[rows]] = tokens[rows, 0]
        self.lengths = self.lengths + active
        longest = max(1, int(self.lengths.max()))
        mask = torch.arange(longest) < self.lengths.unsqueeze(1)
        return self.tokens[:, :longest], mask.long().to(tokens.device), (self.lengths - 1).clamp(min=0)

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        self.lengths[rows] = length
        if length:
            self.tokens[rows, :length] = states[0][0]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"tokens": self.tokens}


def takes_rows_of_own_length(backbone: PreTrainedModel) -> bool:
    """
    Whether a backbone can go on from a cache whose rows differ in length: it is told positions, and all of its layers
    attend to all earlier steps. (A sliding layer would count slots as steps; a recurrent one has no keys at all.)
    """
    config = backbone.config.get_text_config(decoder=True)
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None)
    # Names of older configurations: GPT-Neo's local layers, and Falcon's positions that are counted from the mask.
    windowed |= "local" in (getattr(config, "attention_layers", None) or ()) or bool(getattr(config, "alibi", False))
    parameters = inspect.signature(backbone.forward).parameters
    return full and not windowed and {"position_ids", "past_key_values", "attention_mask"} <= set(parameters)


@torch.no_grad()
def make_cache(
    model: Any, batch: int, slots: int | None = None, value_dtype: torch.dtype | None = None
) -> ContextCache:
    """
    The cache for a model's decoder.

    Args:
        model ([`ADModel`]):
            The model.
        batch (`int`):
            Number of rows.
        slots (`int`, *optional*):
            Steps that a row can hold, by default as many as the model sees.
        value_dtype (`torch.dtype`, *optional*):
            Of values, by default that of the model's weights.
    """
    config, weight = model.config, model.embedding.episode_start.weight
    slots = config.sliding_window or slots or config.context_length
    states = model.encode(weight.new_zeros(1, 1, config.hidden_size))
    if len(states[0]) == 1:  # the steps themselves
        return StepCache(states[0][0], batch, slots, weight.dtype)
    dtypes = (weight.dtype, value_dtype or weight.dtype)
    return ADCache(states, batch, slots, dtypes, slides=config.sliding_window is not None)


__all__ = ["ADCache", "ContextCache", "StepCache", "make_cache"]
