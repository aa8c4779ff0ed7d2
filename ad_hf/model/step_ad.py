"""The model's blocks as a rollout runs them: a step of every row at a time, after the steps in a cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .attention_ad import ADAttention
from .cache_ad import ADCache

# Rows from which products in bfloat16 are faster than in float32, on CPUs that have instructions for them.
FEWEST_BFLOAT16_ROWS = 8


def choose_products(mixed_precision: str, weight: torch.Tensor, rows: int) -> torch.dtype:
    """Type of the products with the blocks' weights, in a rollout of so many rows."""
    if mixed_precision == "auto":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        pays = fast and weight.device.type == "cpu" and weight.dtype == torch.float32
        return torch.bfloat16 if pays and rows >= FEWEST_BFLOAT16_ROWS else weight.dtype
    return torch.bfloat16 if mixed_precision == "bf16" else weight.dtype


def is_plain(blocks: nn.Module, own: set[type]) -> bool:
    """Whether blocks of our own classes compute nothing else: no adapters, quantised layers or hooks."""
    return all(
        type(module) in own | {nn.Linear, nn.LayerNorm, nn.ModuleList}
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        for module in blocks.modules()
    )


class Layer(NamedTuple):
    """The weights of a block, those of products in their type."""

    attention: Any
    norm: tuple[torch.Tensor, torch.Tensor]
    qkv: torch.Tensor
    output: torch.Tensor
    feed_forward_norm: tuple[torch.Tensor, torch.Tensor]
    up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]


class StepDecoder:
    """
    What [`ADModel.decode`] computes of a step, in fewer kernels, with weights that are cast once.

    Hidden states, norms, keys, scores and the states of linear attention have the type of the model's weights. The
    products with the blocks' weights, and with values, have another one if `dtype` says so: on CPUs, each row of a
    product in bfloat16 is the same to the bit however many rows stand beside it.

    Args:
        model ([`ADModel`]):
            A model of this package's own blocks. Its weights must not change meanwhile.
        dtype (`torch.dtype`):
            Of the products.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config, weight = model.config, model.norm.weight
        self.norm, self.epsilon, self.dtype = model.norm, config.layer_norm_eps, dtype
        self.heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        angle_dtype = torch.float32 if config.sliding_window is None else torch.float64
        exponents = torch.arange(0, self.head_dim, 2, dtype=angle_dtype) / self.head_dim
        self.frequencies = (config.rope_theta**-exponents).repeat(2)
        self.signs = weight.new_tensor([-1.0, 1.0]).repeat_interleave(self.head_dim // 2)
        self.scaling = self.head_dim**-0.5
        with torch.no_grad():
            self.layers = [self._layer(block) for block in model.blocks]
        self.turns = any(isinstance(layer.attention, ADAttention) for layer in self.layers)

    def _layer(self, block: Any) -> Layer:
        attention, norm, feed_forward_norm = block.attention, block.attention_norm, block.feed_forward_norm
        return Layer(
            attention,
            (norm.weight, norm.bias),
            attention.qkv.weight.to(self.dtype),
            attention.output.weight.to(self.dtype),
            (feed_forward_norm.weight, feed_forward_norm.bias),
            (block.up.weight.to(self.dtype), block.up.bias.to(self.dtype)),
            (block.down.weight.to(self.dtype), block.down.bias),
        )

    def __call__(self, tokens: torch.Tensor, cache: ADCache) -> torch.Tensor:
        """Hidden states (batch, 1, width) of an embedded step of that shape, after those in a cache."""
        positions = cache.append()
        hidden, size = tokens[:, 0], (tokens.shape[-1],)
        if self.turns:
            angles = positions * self.frequencies  # (batch or 1, head_dim)
            rotary = angles.cos().to(tokens).unsqueeze(1), angles.sin().to(tokens).unsqueeze(1) * self.signs
        for index, layer in enumerate(self.layers):
            normed = F.layer_norm(hidden, size, *layer.norm, self.epsilon)
            if isinstance(layer.attention, ADAttention):
                attended = self._attend(normed, layer, rotary, cache, index)
            else:
                attended = self._recur(normed, layer, cache)
            hidden = hidden + F.linear(attended, layer.output)
            inner = F.layer_norm(hidden, size, *layer.feed_forward_norm, self.epsilon).to(self.dtype)
            # A bias in the product would be copied to each row first.
            inner = F.linear(inner, layer.up[0]).add_(layer.up[1]).relu_()
            hidden = hidden.add_(F.linear(inner, layer.down[0])).add_(layer.down[1])
        return self.norm(hidden).unsqueeze(1)

    def _attend(
        self, normed: torch.Tensor, layer: Layer, rotary: tuple[torch.Tensor, torch.Tensor], cache: ADCache, index: int
    ) -> torch.Tensor:
        """Attention (batch, width) of a layer's normalised inputs, before its last map."""
        parts = F.linear(normed.to(self.dtype), layer.qkv).view(len(normed), -1, self.head_dim)
        rotated = parts[:, : 2 * self.heads].to(normed.dtype)
        norm = layer.attention.query_key_norm.weight
        rotated = F.layer_norm(rotated, (self.head_dim,), norm, None, self.epsilon)
        rotated = torch.addcmul(rotated * rotary[0], rotated.roll(self.head_dim // 2, -1), rotary[1])
        query, key, value = rotated[:, : self.heads], rotated[:, self.heads :], parts[:, 2 * self.heads :]
        return cache.attend(query * self.scaling, key, value, index).flatten(1)

    def _recur(self, normed: torch.Tensor, layer: Layer, cache: ADCache) -> torch.Tensor:
        """Linear attention (batch, width) of a layer's normalised inputs, before its last map."""
        inputs = F.linear(normed.to(self.dtype), layer.qkv).to(normed.dtype)
        outputs = layer.attention.step(inputs.unsqueeze(1), layer.attention.gates(normed).unsqueeze(1), cache)
        return outputs.to(self.dtype).flatten(1)


__all__ = ["StepDecoder", "choose_products", "is_plain"]
