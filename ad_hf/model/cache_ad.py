"""
Caches: what a context keeps of its steps, so that the decoder does not encode them again at every step.

A cache only stores. The model writes to it and reads from it (`append` and `update`), the context says which rows act,
begin anew or forget. [`make_cache`] chooses the cache that suits a model's decoder.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from transformers import Cache, PreTrainedModel

States = list[tuple[torch.Tensor, ...]]  # of each layer, of shape (rows, heads, time, size) each


class ContextCache(Protocol):
    """
    The cache of a context. A decoder with another kind of memory, such as the states of recurrent layers, needs a
    class of these members, and a line in [`make_cache`].

    Attributes:
        lengths (`torch.Tensor` of shape `(batch,)`):
            Steps that each row holds, on the CPU; with a sliding window, all steps so far.
        active (`torch.Tensor` of shape `(batch,)`, *optional*):
            Rows whose next step counts, all by default. The states of other rows stay as they are (a pause).
    """

    lengths: torch.Tensor
    active: torch.Tensor | None

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        """
        Let rows begin anew with steps that were encoded at once: a prompt, or the last steps of a full row.

        Args:
            rows (`torch.Tensor` of shape `(number,)`):
                Their indices, in ascending order.
            length (`int`):
                Number of steps.
            states (`list[tuple[torch.Tensor, ...]]`):
                Of `model.encode`; nothing if there are no steps.
        """

    def reset(self, rows: torch.Tensor) -> None:
        """Forget the rows of a mask (batch,)."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is stored, as tensors whose shapes depend on the model, batch and slots alone."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`."""


class ADCache(Cache):
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
        dtype (`torch.dtype`):
            Of keys and values.
        slides (`bool`, *optional*, defaults to `False`):
            Whether a full row goes on, over its oldest steps.
    """

    def __init__(self, states: States, batch: int, slots: int, dtype: torch.dtype, slides: bool = False) -> None:
        super().__init__(layers=[])
        self.slots, self.slides = slots, slides
        self.states = [
            tuple(part.new_zeros((batch, part.shape[1], slots, part.shape[3]), dtype=dtype) for part in layer)
            for layer in states
        ]
        self.lengths = torch.zeros(batch, dtype=torch.long)
        self.active: torch.Tensor | None = None
        self._writes: list[tuple[Any, Any]] = []  # index of rows and slots of each new step
        self._used: list[int] = []  # slots in use, with each new step

    def append(self, time: int) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """
        Make room for further steps in every row.

        Returns:
            Their positions (batch or 1, time), on the CPU, and for each step which slots a row sees (batch, slots in
            use), or `None` where all rows see all of them.
        """
        before, device = self.lengths, self.states[0][0].device
        counted = torch.ones_like(before) if self.active is None else self.active.long()
        if not self.slides and int((before + time * counted).max()) > self.slots:
            raise ValueError(f"the cache holds {self.slots} steps, {int(before.max()) + time} were written to it")
        self.lengths = before + time * counted
        positions = before.unsqueeze(1) + torch.arange(time)
        longest, shortest = int(before.max()), int(before.min())
        even = longest == shortest
        rows = None if self.active is None else torch.nonzero(self.active).squeeze(1).to(device)
        self._writes, self._used, seen = [], [], []
        for step in range(time):
            used = min(longest + step + 1, self.slots)
            self._used.append(used)
            if even and rows is None:  # all rows are written to the same slot
                self._writes.append((slice(None), (longest + step) % self.slots))
            else:
                every = torch.arange(len(before), device=device) if rows is None else rows
                self._writes.append((every, (positions[:, step] % self.slots).to(device)[every]))
            uneven = shortest + step + 1 < used
            seen.append((torch.arange(used) <= positions[:, step : step + 1]).to(device) if uneven else None)
        return positions[:1] if even and rows is None else positions, seen

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, step: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """Write a step's keys and values (batch, heads, 1, size), and return those of all steps so far."""
        rows, slots = self._writes[step]
        for states, new in zip(self.states[layer_idx], (key_states, value_states)):
            states[rows, :, slots] = new[rows, :, 0].to(states.dtype)
        return tuple(states[:, :, : self._used[step]] for states in self.states[layer_idx])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps before the one that was appended last, in the longest row."""
        return self._used[0] - 1 if self._used else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of slots that `update` returns, and of those before them that it leaves out."""
        return self._used[0], 0

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        """See [`ContextCache`]."""
        self.lengths[rows] = length
        # Through a slice is written many times as fast, where the rows follow each other.
        together = len(rows) == int(rows[-1]) - int(rows[0]) + 1
        index = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        # Oldest first, the last ones that there is room for stand from this slot on, and go on at slot 0.
        last, first = min(length, self.slots), max(0, length - self.slots) % self.slots
        for layer, parts in zip(self.states, states):
            for stored, new in zip(layer, parts):
                new = new[:, :, length - last :].to(stored.dtype)
                stored[index, :, first:last] = new[:, :, : last - first]
                stored[index, :, :first] = new[:, :, last - first :]

    def reset(self, rows: torch.Tensor) -> None:  # type: ignore[override]
        """See [`ContextCache`]."""
        self.lengths = self.lengths.masked_fill(rows, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See [`ContextCache`]."""
        parts = [part for layer in self.states for part in layer]
        return {"lengths": self.lengths, **{str(index): part for index, part in enumerate(parts)}}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See [`ContextCache`]."""
        for name, part in self.state_dict().items():
            part.copy_(state[name])


class StepCache:
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
        self.active: torch.Tensor | None = None

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
        """See [`ContextCache`]."""
        self.lengths[rows] = length
        if length:
            self.tokens[rows, :length] = states[0][0]

    def reset(self, rows: torch.Tensor) -> None:
        """See [`ContextCache`]."""
        self.lengths = self.lengths.masked_fill(rows, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See [`ContextCache`]."""
        return {"lengths": self.lengths, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See [`ContextCache`]."""
        self.lengths.copy_(state["lengths"])
        self.tokens.copy_(state["tokens"])


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
def make_cache(model: Any, batch: int, slots: int | None = None) -> ContextCache:
    """
    The cache for a model's decoder.

    Args:
        model ([`ADModel`]):
            The model.
        batch (`int`):
            Number of rows.
        slots (`int`, *optional*):
            Steps that a row can hold, by default as many as the model sees.
    """
    config, weight = model.config, model.embedding.episode_start.weight
    slots = config.sliding_window or slots or config.context_length
    states = model.encode(weight.new_zeros(1, 1, config.hidden_size))
    if len(states[0]) == 1:  # the steps themselves
        return StepCache(states[0][0], batch, slots, weight.dtype)
    return ADCache(states, batch, slots, weight.dtype, slides=config.sliding_window is not None)


__all__ = ["ADCache", "ContextCache", "StepCache", "make_cache"]
