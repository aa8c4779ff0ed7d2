"""Attention over the steps of a history, all of them or a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache_ad import ADCache, Carry
from .configuration_ad import ADConfig

# Steps of a block of sliding attention: longer ones compute more that nobody sees, shorter ones keep CPUs less busy.
LARGEST_BLOCK = 128


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attention as two matmuls and a softmax; query, key, value (batch, heads, time, head_dim). A step with a cache
    spends nearly all of its time on reading keys and values: on CPUs, rows times matrices are five times as fast there
    as matrices times columns.
    """
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights.add_(attention_mask)  # in place: no gradient needs the scores before it
    # Softmax accumulates in float32 whatever the dtype of its input.
    weights = F.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def banded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Sliding attention at a cost that grows with time times window: each block of steps sees itself and the steps before
    it that the window of its first one holds. The mask (blocks, size, window - 1 + size) is of `band_mask`.
    """
    blocks, size, span = attention_mask.shape
    time, padding = query.shape[2], blocks * size - query.shape[2]
    query = F.pad(query, (0, 0, 0, padding)).unflatten(2, (blocks, size))
    key, value = (F.pad(part, (0, 0, span - size, padding)).unfold(2, span, size) for part in (key, value))
    weights = torch.matmul(query * scaling, key).add_(attention_mask)
    weights = F.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value.mT).flatten(2, 3)[:, :, :time].transpose(1, 2), None


def band_mask(time: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """The mask of `banded_attention_forward`, of the type and on the device of another tensor."""
    size = min(window, LARGEST_BLOCK)
    steps = torch.arange(size, device=like.device)
    seen = torch.arange(1 - window, size, device=like.device)  # both from a block's first step on
    ago = steps.unsqueeze(1) - seen
    starts = torch.arange(0, time, size, device=like.device)
    missing = (starts.unsqueeze(1) + seen < 0).unsqueeze(1)  # nothing is before the first step
    return additive_mask((ago < 0) | (ago >= window) | missing, like.dtype)


def rotary_tables(
    positions: torch.Tensor,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    angle_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines (..., time, 1, head_dim) of rotary positions (https://huggingface.co/papers/2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=angle_dtype) / head_dim
    angles = positions.unsqueeze(-1).to(angle_dtype) * theta**-exponents  # (..., time, head_dim / 2)
    cosines = torch.cat([angles.cos(), angles.cos()], dim=-1).unsqueeze(-2)
    sines = torch.cat([-angles.sin(), angles.sin()], dim=-1).unsqueeze(-2)
    return cosines.to(dtype), sines.to(dtype)


def additive_mask(unseen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to scores, from one that is true where nothing is seen."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, torch.finfo(dtype).min)


class ResidualLinear(nn.Linear):
    """The last map of a residual branch, which starts small, so that depth does not change the stream's scale."""


class ADAttention(nn.Module):
    """Causal self-attention with one matrix for queries, keys and values, and rotary positions."""

    def __init__(self, config: ADConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        # Without it, attention scores outgrow bfloat16's resolution within some hundred updates of Muon.
        self.query_key_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps, bias=False)
        self.output = ResidualLinear(config.hidden_size, config.hidden_size, bias=False)

    def project(
        self, hidden_states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (batch, heads, time, head_dim) of hidden states (batch, time, width)."""
        batch, time, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, time, 3 * self.num_heads, self.head_dim)
        rotated, value = qkv.split([2 * self.num_heads, self.num_heads], dim=2)
        cosines, sines = rotary
        rotated = self.query_key_norm(rotated)
        rotated = torch.addcmul(rotated * cosines, rotated.roll(self.head_dim // 2, dims=-1), sines)
        query, key = rotated.split(self.num_heads, dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def encode(self, hidden_states: torch.Tensor, rotary: Any, **_: Any) -> tuple[torch.Tensor, ...]:
        """What a cache holds of hidden states (batch, time, width): keys and values."""
        return self.project(hidden_states, rotary)[1:]

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any,
        attention_implementation: str,
        earlier: ADCache | Carry | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.project(hidden_states, rotary)
        attend: Any = eager_attention_forward
        dropout = self.config.attention_dropout if self.training else 0.0
        if attention_implementation == "banded":
            attend = banded_attention_forward
        elif not isinstance(earlier, ADCache):
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_implementation, eager_attention_forward)
        if earlier is not None:
            key, value = earlier.update(key, value, self.layer_idx)
        attended, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
        return self.output(attended.flatten(2)), weights


__all__ = ["ADAttention", "ResidualLinear", "additive_mask", "band_mask", "rotary_tables"]
