"""
Branches: imagined steps of several beams of each row, after the steps in the row's cache.

The beams of a row share its context: their queries meet its keys in a single product, and nothing of it is copied.
Only imagined steps have keys and values of each beam's own, which follow the beams as these are chosen anew. Linear
attention has no keys to share: each beam has a state of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from .cache_ad import ADCache, as_slice


class AttentionBranch:
    """
    The keys and values of a layer: those of the context, and those that beams have imagined.

    Args:
        keys, values (`torch.Tensor` of shape `(rows, heads, slots, size)`):
            Of the context.
        ages (`torch.Tensor` of shape `(rows, slots)`):
            Steps before the one to come, 1 for the last; 0 for slots that are not in use.
        window (`int`, *optional*):
            Steps that are seen, the current one included.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, ages: torch.Tensor, window: int | None) -> None:
        self.context, self.ages, self.window = (keys, values), ages, window
        self.own: tuple[torch.Tensor, ...] | None = None  # (rows, heads, beams, depth, size) each

    def reorder(self, beams: torch.Tensor) -> None:
        """Let the beams be those with these indices (rows, beams)."""
        if self.own is not None:
            rows = torch.arange(len(beams), device=beams.device).unsqueeze(1)
            self.own = tuple(part.movedim(1, 2)[rows, beams].movedim(2, 1) for part in self.own)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As [`ADCache.attend`], of tensors (rows, heads, beams, size)."""
        (keys, values), new = self.context, (key.unsqueeze(3), value.unsqueeze(3))
        self.own = new if self.own is None else tuple(torch.cat(pair, dim=3) for pair in zip(self.own, new))
        own_keys, own_values = self.own
        scores, unseen = torch.matmul(query, keys.transpose(2, 3)), self.ages < 1  # (rows, heads, beams, slots)
        if self.window is not None:
            unseen = unseen | (self.ages + own_keys.shape[3] > self.window)
            own_keys, own_values = own_keys[:, :, :, -self.window :], own_values[:, :, :, -self.window :]
        scores = scores.masked_fill_(unseen[:, None, None], torch.finfo(scores.dtype).min)
        own_scores = torch.matmul(own_keys, query.unsqueeze(4)).squeeze(4)
        weights = torch.cat([scores, own_scores], dim=3).softmax(-1).to(values.dtype)
        shared, own = weights.split([scores.shape[3], own_scores.shape[3]], dim=3)
        return torch.matmul(shared, values) + torch.matmul(own.unsqueeze(3), own_values).squeeze(3)


class Branches:
    """
    What the beams of some rows go on from: to a [`~step_ad.StepDecoder`] of imagined steps (rows times beams) what an
    [`ADCache`] is to one of real steps.

    Args:
        cache ([`ADCache`]):
            The rows' context, which must not change meanwhile.
        rows (`torch.Tensor` of shape `(number,)`):
            Indices of the rows, in ascending order.
        beams (`int`):
            Number of beams.
        windows (`list[int | None]`):
            Steps that each layer attends to, the current one included, where its attention slides.
    """

    active: torch.Tensor | None = None  # all are

    def __init__(self, cache: ADCache, rows: torch.Tensor, beams: int, windows: list[int | None]) -> None:
        index = as_slice(rows)
        self.lengths, self.beams, self.depth = cache.lengths[index], beams, 0
        self.layers: list[AttentionBranch | None] = []
        self.states: list[Any] = []  # of linear attention, (rows times beams, heads, size, size)
        for layer, number, window in zip(cache.states, cache.slots, windows):
            if number is None:
                self.layers.append(None)
                self.states.append(tuple(part[index].repeat_interleave(beams, 0) for part in layer))
                continue
            used = min(number, int(self.lengths.max()))
            # Step i is in slot i modulo their number.
            ages = 1 + (self.lengths.unsqueeze(1) - 1 - torch.arange(used)) % number
            ages = ages.masked_fill(ages > self.lengths.unsqueeze(1), 0).to(layer[0].device)
            keys, values = (part[index, :, :used] for part in layer)
            self.layers.append(AttentionBranch(keys, values, ages, window))
            self.states.append(())

    def append(self) -> torch.Tensor:
        """Make room for a step of each beam; returns its positions (rows times beams, 1), on the CPU."""
        self.depth += 1
        return (self.lengths + self.depth - 1).repeat_interleave(self.beams).unsqueeze(1)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """As [`ADCache.attend`], of tensors (rows times beams, heads, size)."""
        layer: Any = self.layers[layer_idx]
        parts = (part.unflatten(0, (-1, self.beams)).transpose(1, 2) for part in (query, key, value))
        return layer.attend(*parts).transpose(1, 2).flatten(0, 1)

    def reorder(self, beams: torch.Tensor) -> None:
        """Let the beams of each row be those with these indices (rows, beams)."""
        for layer in filter(None, self.layers):
            layer.reorder(beams)
        flat = (beams + self.beams * torch.arange(len(beams), device=beams.device).unsqueeze(1)).flatten()
        self.states = [tuple(part[flat] for part in layer) for layer in self.states]
        self.beams = beams.shape[1]


__all__ = ["Branches"]
