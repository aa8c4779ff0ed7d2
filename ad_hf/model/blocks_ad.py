"""The blocks of an Algorithm Distillation model: attention over steps, and a feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_ad import ADAttention, ResidualLinear
from .configuration_ad import LINEAR, ADConfig
from .linear_attention_ad import LinearAttention


class ADBlock(GradientCheckpointingLayer):
    """A pre-norm block: attention of one of the kinds of `layer_types`, then a ReLU feed-forward layer."""

    def __init__(self, config: ADConfig, layer_idx: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        is_linear = config.kinds_of_layers[layer_idx] == LINEAR
        self.attention = (LinearAttention if is_linear else ADAttention)(config, layer_idx)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = ResidualLinear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + F.dropout(attended, self.dropout, self.training)
        # A leaky ReLU with slope 0 is a ReLU; torch has not vectorised the ReLU's own bfloat16 gradient on CPUs, which
        # is 25 times slower.
        inner = F.leaky_relu(self.up(self.feed_forward_norm(hidden_states)), negative_slope=0.0, inplace=True)
        return hidden_states + F.dropout(self.down(inner), self.dropout, self.training)


__all__ = ["ADBlock"]
