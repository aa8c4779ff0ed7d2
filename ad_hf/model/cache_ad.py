"""
Caches: what a context keeps of its steps, so that the decoder does not encode them again at every step.

A cache only stores. The model writes to it and reads from it (`append` and `update`), the context says which rows act,
begin anew or forget. [`~backbone_cache_ad.make_cache`] chooses the cache that suits a model's decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import Cache

from .loading_ad import check_fits

States = list[tuple[torch.Tensor, ...]]  # of each layer, of shape (rows, heads, time, size) each


def as_slice(rows: torch.Tensor) -> torch.Tensor | slice:
    """Ascending indices (number,) as a slice, through which is written many times as fast, if they have no gaps."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _divide(states: tuple[torch.Tensor, ...], slots: int | None) -> tuple[tuple[torch.Tensor, ...], ...]:
    """A layer's keys and values, if it has slots for them, and its other states."""
    number = 0 if slots is None else 2
    return states[:number], states[number:]


class ContextCache(Protocol):
    """
    The cache of a context. A decoder with another kind of memory than keys, values and recurrent states needs a
    subclass of this with `tensors` and `store`, and a line in [`~backbone_cache_ad.make_cache`]; its layers read and
    write the rest.

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
    What every layer keeps of a row's steps: attention has keys and values, in slots of each row's own, linear
    attention its state. It serves this package's blocks, and [`~backbone_cache_ad.BackboneCache`] backbones.

    In a layer that attends to all steps, slot i of a row holds its i-th step. In one whose attention slides, there are
    as many slots as its window has steps, and step i is written to slot i modulo their number, over the one that
    leaves the window: as keys are turned by their own positions, they stay right wherever they are and however long
    the row becomes.

    Args:
        states (`list[tuple[torch.Tensor, ...]]`):
            What layers keep of some steps, for its shapes and device.
        batch (`int`):
            Number of rows.
        slots (`list[int | None]`):
            Steps that a row can hold, of each layer, as its first two states, keys and values; `None` for a layer that
            has neither.
        dtypes (`Sequence[torch.dtype]`):
            Of keys and of values.
        slides (`bool`, *optional*, defaults to `False`):
            Whether a full row goes on, over its oldest steps.
    """

    def __init__(
        self,
        states: States,
        batch: int,
        slots: Sequence[int | None],
        dtypes: Sequence[torch.dtype],
        slides: bool = False,
    ) -> None:
        Cache.__init__(self, layers=[])
        self.slots, self.slides = list(slots), slides
        self._device = next(part.device for layer in states for part in layer)
        kept: list[list[tuple[tuple[int, ...], torch.dtype]]] = []  # shapes and types of each layer
        for layer, number in zip(states, self.slots):
            slotted, rest = _divide(layer, number)
            shapes = [(batch, part.shape[1], number or 0, part.shape[3]) for part in slotted]
            kept.append([*zip(shapes, dtypes), *(((batch, *part.shape[1:]), part.dtype) for part in rest)])
        size = sum(math.prod(shape) * dtype.itemsize for layer in kept for shape, dtype in layer)
        check_fits(size, f"a context of num_envs={batch}")
        self.lengths = torch.zeros(batch, dtype=torch.long)
        self.states: States = [
            tuple(torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in layer) for layer in kept
        ]
        self._rows: Any = slice(None)  # to which the step is written
        self._places: dict[int, tuple[Any, int, torch.Tensor | None]] = {}  # of layers of so many slots

    def append(self) -> torch.Tensor:
        """Make room for a step in every row that is active; returns its positions (batch or 1, 1), on the CPU."""
        before = self.lengths
        longest, shortest = int(before.max()), int(before.min())
        after = before + (1 if self.active is None else self.active)
        numbers = {number for number in self.slots if number is not None}
        if numbers and not self.slides and int(after.max()) > max(numbers):
            raise ValueError(f"the cache holds {max(numbers)} steps, {max(numbers) + 1} were written to it")
        self.lengths, alike = after, longest == shortest and self.active is None  # all write to the same slot
        rows = torch.arange(len(before)) if self.active is None else torch.nonzero(self.active).squeeze(1)
        self._rows, self._places = slice(None) if alike else rows.to(self._device), {}
        for number in numbers:
            used, seen = min(longest + 1, number), None
            if shortest + 1 < used:
                seen = (torch.arange(used) <= before.unsqueeze(1)).to(self._device)
            slot = longest % number if alike else (before[rows] % number).to(self._device)
            self._places[number] = slot, used, seen
        return before[:1].unsqueeze(1) if alike else before.unsqueeze(1)

    def seen(self, layer_idx: int) -> torch.Tensor | None:
        """Slots in use that each row sees (batch, slots), or `None` where all rows see all of them."""
        number = self.slots[layer_idx]
        return None if number is None else self._places[number][2]

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, ...]:
        """Write the step's keys and values (batch, heads, 1, size) of a layer; returns those of all steps so far."""
        slot, used, _ = self._places[self.slots[layer_idx] or 0]
        for states, new in zip(self.states[layer_idx], (key_states, value_states)):
            states[self._rows, :, slot] = new[self._rows, :, 0].to(states.dtype)
        return tuple(states[:, :, :used] for states in self.states[layer_idx][:2])

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Write a step and attend to all that it sees; scaled queries, keys and values are (batch, heads, size)."""
        keys, values = self.update(key.unsqueeze(2), value.unsqueeze(2), layer_idx)
        # CPUs are faster at keys times queries than the other way round, if it shows that these are columns.
        scores = torch.matmul(keys, query.unsqueeze(2).transpose(2, 3)).squeeze(-1)  # (batch, heads, slots in use)
        if (seen := self.seen(layer_idx)) is not None:
            scores = scores.masked_fill_(~seen.unsqueeze(1), torch.finfo(scores.dtype).min)
        return torch.matmul(scores.softmax(-1).to(values.dtype).unsqueeze(2), values).squeeze(2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps before the one that was appended last, in the longest row."""
        return max(0, self.get_mask_sizes(1, layer_idx)[0] - 1)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of slots that `update` returns, and of those before them that it leaves out."""
        number = self.slots[layer_idx]
        return (self._places[number][1] if number in self._places else 0), 0

    def forget(self, rows: torch.Tensor) -> None:
        super().forget(rows)
        for part in self.recurrent_states():
            part[rows] = 0

    def recurrent_states(self) -> list[torch.Tensor]:
        """All states that are not slots of keys and values."""
        return [part for layer, number in zip(self.states, self.slots) for part in _divide(layer, number)[1]]

    def store(self, rows: torch.Tensor, length: int, states: States) -> None:
        self.lengths[rows] = length
        index = as_slice(rows)
        if not states:  # a row that begins anew with nothing
            for stored in self.recurrent_states():
                stored[index] = 0
        for layer, parts, number in zip(self.states, states, self.slots):
            slotted, rest = _divide(parts, number)
            for stored, new in zip(layer, slotted):
                # Oldest first, the last ones that there is room for stand from this slot on, and go on at slot 0.
                last = min(length, stored.shape[2], new.shape[2])
                first = (length - last) % stored.shape[2]
                until = min(first + last, stored.shape[2])
                new = new[:, :, new.shape[2] - last :].to(stored.dtype)
                stored[index, :, first:until] = new[:, :, : until - first]
                stored[index, :, : first + last - until] = new[:, :, until - first :]
            for stored, new in zip(_divide(layer, number)[1], rest):
                stored[index] = new.to(stored.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {str(index): part for index, part in enumerate(part for layer in self.states for part in layer)}


class Carry:
    """
    What layers take along from one window of histories to the next, in training by truncated backpropagation through
    time: linear attention its memory, sliding attention the keys and values that the next steps still see. No gradient
    goes through it.

    [`ADModel.init_carry`] makes an empty one; a pass of the model returns, as `past_key_values`, the one after its
    steps.

    Args:
        states (`list[tuple[torch.Tensor, ...]]`):
            Of each layer, the newest steps last.
        lengths (`torch.Tensor` of shape `(batch,)`):
            Steps so far, on the CPU.
    """

    def __init__(self, states: States, lengths: torch.Tensor) -> None:
        self.states, self.lengths = states, lengths
        self._after: dict[int, tuple[torch.Tensor, ...]] = {}

    def carry(self, layer_idx: int, states: tuple[torch.Tensor, ...]) -> None:
        """Let a layer say what it takes along; once more is the same, as gradient checkpointing does."""
        self._after[layer_idx] = tuple(part.detach() for part in states)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (batch, heads, past + time, size) of a layer whose attention slides."""
        past = self.states[layer_idx]
        keys, values = (torch.cat([old.to(new), new], 2) for old, new in zip(past, (key_states, value_states)))
        size = past[0].shape[2]
        self.carry(layer_idx, tuple(part[:, :, part.shape[2] - size :].contiguous() for part in (keys, values)))
        return keys, values

    def unseen(self, time: int, window: int) -> torch.Tensor:
        """Which of the past and present steps (batch, 1, time, past + time) each of so many steps does not see."""
        steps, past = torch.arange(time), torch.arange(1 - window, time)
        ago = steps.unsqueeze(1) - past
        missing = past < -self.lengths.unsqueeze(1)  # before the history's first step
        return ((ago < 0) | (ago >= window) | missing.unsqueeze(1)).unsqueeze(1)

    def after(self, time: int) -> Carry:
        """The one after a pass over so many steps."""
        return Carry([self._after[index] for index in range(len(self.states))], self.lengths + time)

    def reset(self, rows: torch.Tensor) -> Carry:
        """One in which the rows of a mask (batch,) begin anew."""
        states = [
            tuple(part.masked_fill(rows.to(part.device).view(-1, *[1] * (part.ndim - 1)), 0) for part in layer)
            for layer in self.states
        ]
        return Carry(states, self.lengths.masked_fill(rows, 0))


__all__ = ["ADCache", "Carry", "ContextCache", "States", "as_slice"]
