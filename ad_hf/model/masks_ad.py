"""Which implementation of attention layers take, and with which positions and masks, by their kind."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .attention_ad import additive_mask, band_mask, rotary_tables
from .cache_ad import ADCache, Carry
from .configuration_ad import LINEAR, SLIDING

# On CPUs, explicit attention (two batched matmuls and a softmax) trains twice as fast as the fused kernel at windows
# of some hundred steps; above, the (time x time) weights no longer fit the caches and the fused kernel wins.
EAGER_CPU_WINDOW = 512


class MaskMixin:
    """What a model's blocks need beside hidden states."""

    config: Any

    def attention_implementation(self, window: int, device: torch.device, output_attentions: bool = False) -> str:
        """Name of the attention implementation for a window of so many steps on a device."""
        if output_attentions:  # which no other implementation has
            return "eager"
        if not self.config.automatic_attention:
            return self.config._attn_implementation
        return "eager" if device.type == "cpu" and window <= EAGER_CPU_WINDOW else "sdpa"

    def _block_arguments(
        self, tokens: torch.Tensor, past: ADCache | Carry | None, output_attentions: bool = False
    ) -> dict[str, dict[str, Any]]:
        """
        Arguments of the blocks beside hidden states (batch, time, width), by their kind: positions, mask,
        implementation.
        """
        config, time, dtype, device = self.config, tokens.shape[1], tokens.dtype, tokens.device
        positions = past.append() if isinstance(past, ADCache) else torch.arange(time)
        if isinstance(past, Carry):
            positions = past.lengths.unsqueeze(1) + positions
        kinds = config.kinds_of_layers
        arguments: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
        attending = [kind for kind in arguments if kind != LINEAR]
        if not attending:
            return arguments
        # Positions grow without bounds where a window slides, beyond float32's resolution of angles.
        angle_dtype = torch.float32 if config.sliding_window is None else torch.float64
        positions = positions if angle_dtype == torch.float64 else positions.to(device)
        head_dim = config.hidden_size // config.num_attention_heads
        tables = rotary_tables(positions, head_dim, config.rope_theta, dtype, angle_dtype)
        rotary = tuple(table.to(device) for table in tables)
        for kind in attending:
            window: Any = config.sliding_window if kind == SLIDING else None
            seen = time + (window - 1 if isinstance(past, Carry) else 0)
            implementation = self.attention_implementation(seen, device, output_attentions)
            if isinstance(past, ADCache):
                unseen = past.seen(kinds.index(kind))
                mask: Any = None if unseen is None else additive_mask(~unseen[:, None, None], dtype)
            elif isinstance(past, Carry):
                mask = additive_mask(past.unseen(time, window).to(device), dtype)
            elif (
                self.config.automatic_attention
                and implementation == "sdpa"
                and window
                and time >= max(3 * window, EAGER_CPU_WINDOW + 1)
            ):  # on a GPU, too, where windows of the usual length stay with the fused kernel
                implementation, mask = "banded", band_mask(time, window, tokens)
            else:
                mask = self._mask(tokens, window, implementation)
            arguments[kind] = {
                **{"rotary": rotary, "attention_mask": mask},
                "attention_implementation": implementation,
            }
        return arguments

    def _mask(self, tokens: torch.Tensor, window: Any, implementation: str) -> Any:
        """The mask of whole windows (batch, time, width) for an attention implementation."""
        time, automatic = tokens.shape[1], self.config.automatic_attention
        if implementation == "eager" or (automatic and window is not None):
            steps = torch.arange(time, device=tokens.device)
            ago = steps.unsqueeze(1) - steps
            return additive_mask((ago < 0) | (ago >= (window or time)), tokens.dtype)
        if automatic:
            return None  # sdpa is causal by itself
        # Padding stands at the end, where no step sees it: one mask serves the whole batch.
        make_mask = create_causal_mask if window is None else create_sliding_window_causal_mask
        return make_mask(self.config, tokens[:1], attention_mask=None, past_key_values=None)


__all__ = ["EAGER_CPU_WINDOW", "MaskMixin"]
