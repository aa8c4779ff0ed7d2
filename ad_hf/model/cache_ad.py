"""Keys and values of this package's own blocks: preallocated, with a length of its own for each environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .configuration_ad import ADConfig

if TYPE_CHECKING:
    from .modeling_ad import ADModel

# Rows are encoded so many tokens at a time: more of them leave the processor's caches, fewer keep it less busy.
TOKENS_AT_A_TIME = 4096


def rows_by_length(rows: torch.Tensor, lengths: torch.Tensor, time: int) -> list[tuple[torch.Tensor, int]]:
    """Rows (number,) in parts of equal length and of a size that is encoded at a time, with their length."""
    parts = []
    for length in lengths.unique().tolist():
        equal = rows[lengths == length]
        parts += [(part, length) for part in equal.split(max(1, TOKENS_AT_A_TIME // max(1, min(length, time))))]
    return parts


def as_slice(rows: torch.Tensor) -> torch.Tensor | slice:
    """Rows (number,) as a slice, through which is written many times as fast, if they follow each other."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


class ADCache:
    """
    Keys and values of every block, and the attention of new steps to them.

    Without a sliding window, slot i of a row holds its i-th step, and there are `context_length` slots. With one,
    there are as many slots as the window has steps, and step i is written to slot i modulo their number, over the one
    that leaves the window: as keys are turned by their own positions, they stay right wherever they are and however
    long the row becomes.

    Args:
        config ([`ADConfig`]):
            Of the model.
        batch (`int`):
            Number of rows.
        device (`torch.device`), dtype (`torch.dtype`):
            Of keys and values.
        slots (`int`, *optional*):
            Steps that a row can hold, by default as many as the model sees.

    Attributes:
        lengths (`torch.Tensor` of shape `(batch,)`):
            Steps of each row so far, on the CPU; with a window, those that have left it included.
    """

    def __init__(
        self, config: ADConfig, batch: int, device: torch.device, dtype: torch.dtype, slots: int | None = None
    ) -> None:
        heads, self.window = config.num_attention_heads, config.sliding_window
        self.slots = self.window or slots or config.context_length
        shape = (config.num_hidden_layers, batch, heads, self.slots, config.hidden_size // heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)
        self.active: torch.Tensor | None = None  # rows whose steps count, if not all
        self._before = self.lengths
        self._slot: int | torch.Tensor = 0
        self._rows: torch.Tensor | None = None
        self._used = 0
        self._mask: torch.Tensor | None = None

    def append(self, time: int) -> torch.Tensor:
        """Make room for `time` further steps in every row; returns their positions (batch or 1, time), on the CPU."""
        before, device = self.lengths, self.keys.device
        counted = before.new_full(before.shape, time) if self.active is None else self.active * time
        longest, shortest = int(before.max()), int(before.min())
        if self.window is None and int((before + counted).max()) > self.slots:
            raise ValueError(f"the cache holds {self.slots} steps, {longest + time} were written to it")
        self._before, self.lengths = before, before + counted
        self._used, self._mask, self._rows = min(longest + 1, self.slots), None, None
        if longest == shortest and self.active is None:  # all rows are written to the same slot, and see the same ones
            self._slot = longest % self.slots
            return torch.arange(longest, longest + time).unsqueeze(0)
        if self.active is not None:
            self._rows = torch.nonzero(self.active).squeeze(1).to(device)
        self._slot = (before % self.slots).to(device)
        if time == 1 and shortest + 1 < self._used:
            unseen = torch.arange(self._used) > before.unsqueeze(1)
            mask = torch.zeros(unseen.shape, dtype=self.keys.dtype).masked_fill_(
                unseen, torch.finfo(self.keys.dtype).min
            )
            self._mask = mask[:, None, None, :].to(device)
        return before.unsqueeze(1) + torch.arange(time)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """
        Keep the keys and values of the new steps, and attend to all.

        Args:
            query, key, value (`torch.Tensor` of shape `(batch, time, heads, head_dim)`):
                Of the steps that `append` made room for.
            layer (`int`):
                Number of the block.
            scaling (`float`):
                Factor of the scores.

        Returns:
            `torch.Tensor` of shape `(batch, time, heads, head_dim)`
        """
        if query.shape[1] > 1:
            return self._attend_chunk(query, key, value, layer, scaling)
        self._write(key[:, 0], value[:, 0], layer)
        keys, values = self.keys[layer, :, :, : self._used], self.values[layer, :, :, : self._used]
        # Reading keys and values is nearly all of the time. As rows times matrices, not as matrices times columns: the
        # latter are five times as slow on CPUs.
        scores = torch.matmul((query[:, 0] * scaling).unsqueeze(2), keys.transpose(2, 3))  # (batch, heads, 1, slots)
        if self._mask is not None:
            scores = scores.add_(self._mask)
        return torch.matmul(scores.softmax(-1), values).transpose(1, 2)

    def _write(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Write one step's keys and values (batch, heads, head_dim) to the rows that count."""
        keys, values, slot, rows = self.keys[layer], self.values[layer], self._slot, self._rows
        if isinstance(slot, int):
            keys[:, :, slot], values[:, :, slot] = key, value
        elif rows is None:
            every = torch.arange(len(slot), device=slot.device)
            keys[every, :, slot], values[every, :, slot] = key, value
        else:
            keys[rows, :, slot[rows]], values[rows, :, slot[rows]] = key[rows], value[rows]

    def _attend_chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """Several new steps at once, which see those that are held and each other; for rows that all count."""
        time, before = query.shape[1], self._before.unsqueeze(1).to(query.device)
        positions = before + torch.arange(time, device=query.device)  # (batch, time)
        slots = torch.arange(self.slots, device=query.device)
        held = before - 1 - (before - 1 - slots) % self.slots  # (batch, slots): the last step written to each slot
        sources = torch.cat([held, positions], dim=1).unsqueeze(1)
        unseen = (sources < 0) | (sources > positions.unsqueeze(2))
        if self.window is not None:
            unseen |= sources <= positions.unsqueeze(2) - self.window
        keys = torch.cat([self.keys[layer], key.transpose(1, 2)], dim=2)
        values = torch.cat([self.values[layer], value.transpose(1, 2)], dim=2)
        scores = torch.matmul(query.transpose(1, 2) * scaling, keys.transpose(2, 3))
        scores = scores.masked_fill_(unseen.unsqueeze(1), torch.finfo(scores.dtype).min)
        self.store(key, value, layer, positions)
        return torch.matmul(scores.softmax(-1), values).transpose(1, 2)

    def store(self, key: torch.Tensor, value: torch.Tensor, layer: int, positions: torch.Tensor) -> None:
        """Keep keys and values (batch, time, heads, head_dim) of steps at some positions (batch, time)."""
        last = slice(max(0, key.shape[1] - self.slots), None)
        rows, slots = torch.arange(len(key), device=key.device).unsqueeze(1), positions[:, last] % self.slots
        self.keys[layer][rows, :, slots] = key[:, last]
        self.values[layer][rows, :, slots] = value[:, last]

    def step(self, model: ADModel, tokens: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        """Append one token (batch, 1, width) to the active rows (all by default); returns (batch, 1, width)."""
        self.active = active
        return model.decode(tokens, past_key_values=self)

    def refill(self, model: ADModel, rows: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> None:
        """Encode the first `lengths` (number,) of the tokens (number, time, width) of some rows (number,) anew."""
        order = torch.arange(len(rows))
        for part, length in rows_by_length(order, lengths, tokens.shape[1]):
            chosen = rows[part]
            self.lengths[chosen] = length
            if length:
                index = as_slice(chosen)
                # Oldest first, the last ones that there is room for stand from this slot on, and go on at slot 0.
                held, first = min(length, self.slots), max(0, length - self.slots) % self.slots
                for layer, pair in enumerate(model.keys_and_values(tokens[part, :length])):
                    for states, new in zip((self.keys[layer], self.values[layer]), pair):
                        new = new[:, length - held :].transpose(1, 2)  # (rows, heads, held, head_dim)
                        states[index, :, first:held] = new[:, :, : held - first]
                        states[index, :, :first] = new[:, :, held - first :]

    def reset(self, rows: torch.Tensor) -> None:
        """Forget the rows of a mask (batch,)."""
        self.lengths = self.lengths.masked_fill(rows, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Lengths, keys and values; shapes depend on the model, batch and slots alone."""
        return {"lengths": self.lengths, "keys": self.keys, "values": self.values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.lengths = state["lengths"].clone().cpu()
        self.keys.copy_(state["keys"])
        self.values.copy_(state["values"])


__all__ = ["ADCache"]
