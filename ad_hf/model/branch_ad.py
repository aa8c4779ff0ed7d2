"""
Branches: imagined steps of several beams of each row, after the steps in the row's cache.

The beams of a row share its context: their queries meet its keys in a single product, and nothing of it is copied.
Only imagined steps have keys and values of each beam's own, which follow the beams as these are chosen anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .cache_ad import ADCache, as_slice
from .step_ad import StepDecoder


class AttentionBranch:
    """The keys and values of a layer: those of the context, and those that beams have imagined."""

    def __init__(self, context: tuple[torch.Tensor, torch.Tensor], ages: torch.Tensor, window: int | None) -> None:
        self.context = context  # (rows, heads, slots, size) each
        self.ages = ages  # of the context's slots (rows, slots), 1 for its last step; below 1 for those not in use
        self.window = window
        self.own: tuple[torch.Tensor, ...] = ()  # (rows, heads, beams, depth, size) each

    def reorder(self, beams: torch.Tensor) -> None:
        """Let the beams be those with these indices (rows, beams)."""
        rows = torch.arange(len(beams), device=beams.device).unsqueeze(1)
        self.own = tuple(part.movedim(1, 2)[rows, beams].movedim(2, 1) for part in self.own)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """
        Add a step of each beam and attend to all that it sees.

        Queries, which are scaled, keys and values are (rows, beams, heads, size), the result is like the values.
        """
        query, *new = (part.transpose(1, 2) for part in (query, key, value))
        self.own = tuple(
            torch.cat([part, step.unsqueeze(3)], dim=3) for part, step in zip(self.own or _nothing(new), new)
        )
        (keys, values), (own_keys, own_values), depth = self.context, self.own, self.own[0].shape[3]
        scores = torch.matmul(query, keys.transpose(2, 3))  # (rows, heads, beams, slots)
        unseen = self.ages < 1
        if self.window is not None:
            unseen = unseen | (self.ages + depth > self.window)
            own_keys, own_values = own_keys[:, :, :, -self.window :], own_values[:, :, :, -self.window :]
        scores = scores.masked_fill_(unseen[:, None, None], torch.finfo(scores.dtype).min)
        own = torch.matmul(own_keys, query.unsqueeze(4)).squeeze(4)
        weights = torch.cat([scores, own], dim=3).softmax(-1).to(values.dtype)
        shared, own = weights.split([scores.shape[3], own.shape[3]], dim=3)
        attended = torch.matmul(shared, values) + torch.matmul(own.unsqueeze(3), own_values).squeeze(3)
        return attended.transpose(1, 2)


def _nothing(parts: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(part.unsqueeze(3)[:, :, :, :0] for part in parts)


class Branches:
    """
    What the beams of some rows go on from, layer by layer.

    Args:
        cache ([`ADCache`]):
            The rows' context, which must not change meanwhile.
        rows (`torch.Tensor` of shape `(number,)`):
            Indices of the rows, in ascending order.
        window (`int`, *optional*):
            Steps that each layer attends to, the current one included, where its attention slides.
    """

    def __init__(self, cache: ADCache, rows: torch.Tensor, window: int | None) -> None:
        index = as_slice(rows)
        self.lengths, self.depth = cache.lengths[index], 0
        self.layers: list[Any] = []
        for keys, values in cache.states:
            slots = min(keys.shape[2], int(self.lengths.max()))
            # The slot of step i is i modulo their number.
            ages = 1 + (self.lengths.unsqueeze(1) - 1 - torch.arange(slots)) % keys.shape[2]
            ages = ages.masked_fill(ages > self.lengths.unsqueeze(1), 0).to(keys.device)
            self.layers.append(AttentionBranch((keys[index, :, :slots], values[index, :, :slots]), ages, window))

    def append(self) -> torch.Tensor:
        """Make room for a step of each beam; returns its positions (rows, 1), on the CPU."""
        self.depth += 1
        return self.lengths.unsqueeze(1) + self.depth - 1

    def reorder(self, beams: torch.Tensor) -> None:
        """Let the beams of each row be those with these indices (rows, beams)."""
        for layer in self.layers:
            layer.reorder(beams)


class BranchDecoder:
    """
    What decodes imagined steps as a [`StepDecoder`] decodes real ones.

    Args:
        decoder ([`StepDecoder`]):
            Of the context.
    """

    def __init__(self, decoder: StepDecoder) -> None:
        self.decoder = decoder

    def __call__(self, tokens: torch.Tensor, branches: Branches) -> torch.Tensor:
        """Hidden states (rows, beams, width) of embedded steps of that shape."""
        decoder, (rows, beams, width), dtype = self.decoder, tokens.shape, tokens.dtype
        angles = branches.append() * decoder.frequencies  # (rows, head_dim)
        cosines, sines = (
            each.to(tokens).repeat_interleave(beams, 0).unsqueeze(1) for each in (angles.cos(), angles.sin())
        )
        sines, hidden, heads = sines * decoder.signs, tokens.flatten(0, 1), decoder.heads
        for layer, branch in zip(decoder.layers, branches.layers):
            inner = F.layer_norm(hidden, (width,), *layer.norm, decoder.epsilon).to(decoder.dtype)
            parts = F.linear(inner, layer.qkv).view(rows * beams, -1, decoder.head_dim)
            rotated = parts[:, : 2 * heads].to(dtype)
            rotated = F.layer_norm(rotated, (decoder.head_dim,), layer.query_key_norm, None, decoder.epsilon)
            rotated = torch.addcmul(rotated * cosines, rotated.roll(decoder.head_dim // 2, -1), sines)
            query, key, value = (
                part.unflatten(0, (rows, beams))
                for part in (rotated[:, :heads] * decoder.scaling, rotated[:, heads:], parts[:, 2 * heads :])
            )
            attended = branch.attend(query, key, value).flatten(2).flatten(0, 1)
            hidden = hidden + F.linear(attended, layer.output)
            inner = F.layer_norm(hidden, (width,), *layer.feed_forward_norm, decoder.epsilon).to(decoder.dtype)
            inner = F.linear(inner, layer.up[0]).add_(layer.up[1]).relu_()
            hidden = hidden.add_(F.linear(inner, layer.down[0])).add_(layer.down[1])
        return decoder.norm(hidden).view(rows, beams, width)


__all__ = ["BranchDecoder", "Branches"]
