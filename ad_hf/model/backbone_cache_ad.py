"""
Caches of transformers' own decoders: keys, values and recurrent states, or else the steps themselves.

The library's recurrent layers take their states from a cache and write to them in place. Here each row of these states
can begin anew, pause, and stand at a step of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, LinearAttentionCacheLayerMixin

from .cache_ad import ADCache, ContextCache, States
from .configuration_ad import FULL, LINEAR, SLIDING
from .loading_ad import check_fits

# The library's kinds of layers in which rows can stand at steps of their own. (A sliding layer would count slots as
# steps.) Of them, those that attend.
KINDS = {"full_attention", "hybrid", "linear_attention", "conv", "mlp", "moe"}
ATTENDING = {"full_attention", "hybrid"}
# Decoders that do not fit all the same: their states are in a cache class or in modules of their own, their positions
# are counted from slots, or their steps do without the bounds on Mamba's time steps that whole sequences have.
APART = {"minimax", "recurrent_gemma", "inkling_text", "inkling2_text", "nemotron_h", "zamba2"}
UNBOUNDED = (0.0, float("inf"))


class BackboneCache(ADCache):
    """
    An [`ADCache`] for a decoder of transformers that attends to all earlier steps, is recurrent, or both.

    Args:
        cache (`Cache`):
            The library's own cache for it, after a step of one row.
        batch (`int`):
            Number of rows.
        slots (`int`):
            Steps that a row can hold, of each layer that attends.
        dtypes (`Sequence[torch.dtype]`):
            Of keys and of values.
    """

    def __init__(self, cache: Any, batch: int, slots: int, dtypes: Sequence[torch.dtype]) -> None:
        states = states_of(cache)
        layers = getattr(cache, "layers", None) or [DummyLayer() for _ in states]
        attends = [getattr(layer, "keys", None) is not None for layer in layers]
        super().__init__(states, batch, [slots if each else None for each in attends], dtypes)
        self.layers, self._paused = layers, list[tuple[torch.Tensor, torch.Tensor]]()
        recurrent = iter(self.recurrent_states())
        for layer in layers:
            for place in _recurrent_states(layer):
                place.update({index: next(recurrent) for index, part in place.items() if part is not None})
        # As xLSTM knows its states.
        self.rnn_state, self.seqlen_offset = dict(enumerate(self.states)), 0

    def arguments(self, batch: int) -> dict[str, Any]:
        """Make room for a step in every row that is active; returns the mask and positions of layers that attend."""
        positions, self._paused = self.append(), []
        if self.active is not None:
            rows = torch.nonzero(~self.active).squeeze(1).to(self._device)
            self._paused = [(rows, part[rows]) for part in self.recurrent_states()]
        if not (slots := self._slots()):
            return {}
        seen = self._places[slots][2]
        positions = positions.clamp(max=slots - 1).expand(batch, -1).to(self._device)
        return {"attention_mask": None if seen is None else seen.long(), "position_ids": positions}

    def settle(self) -> None:
        """After the step, let the rows that are not active have their states back."""
        for part, (rows, states) in zip(self.recurrent_states(), self._paused):
            part[rows] = states

    def _slots(self) -> int:
        return next((number for number in self.slots if number is not None), 0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As of an [`ADCache`]: all layers that attend are alike."""
        slots = self._slots()
        return (self._places[slots][1] if slots in self._places else 0), 0


class StepCache(ContextCache):
    """
    The steps themselves, which are encoded anew each time, for backbones that no [`BackboneCache`] serves.

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
        check_fits(batch * slots * tokens.shape[-1] * dtype.itemsize, f"a context of num_envs={batch}")
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


def _recurrent_states(layer: Any) -> list[dict[int, Any]]:
    """Recurrent states of a layer of the library's own cache."""
    return [layer.conv_states, layer.recurrent_states] if isinstance(layer, LinearAttentionCacheLayerMixin) else []


def states_of(cache: Any) -> States:
    """What the library's own cache holds, of each layer: keys and values, then recurrent states."""
    if not isinstance(cache, DynamicCache):
        return list(cache.rnn_state.values())
    states = []
    for layer in cache.layers:
        parts = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        parts += [part for place in _recurrent_states(layer) for part in place.values()]
        states.append(tuple(part for part in parts if part is not None))
    return states


def library_cache(backbone: PreTrainedModel, tokens: torch.Tensor) -> Any:
    """The library's own cache for a backbone, before any steps (batch, time, width)."""
    config: Any = backbone.config
    if config.model_type == "xlstm":
        from transformers.models.xlstm.modeling_xlstm import xLSTMCache

        return xLSTMCache(config, len(tokens), tokens.dtype, device=str(tokens.device))
    return DynamicCache(config=config)


def takes_rows_of_own_length(backbone: PreTrainedModel) -> bool:
    """
    Whether a backbone can go on from a cache whose rows differ in length: each of its layers is recurrent, or is told
    positions and attends to all earlier steps.
    """
    config = backbone.config.get_text_config(decoder=True)
    kinds = {*(getattr(config, "layer_types", None) or ())}
    if config.model_type == "xlstm":  # in whose cache sizes are multiples of 64, whatever they are in the model
        return all(size * config.hidden_size % 64 == 0 for size in (config.qk_dim_factor, config.v_dim_factor))
    bounds = tuple(getattr(config, "time_step_limit", None) or UNBOUNDED)
    if not kinds <= KINDS or config.model_type in APART or bounds != UNBOUNDED:
        return False
    parameters = set(inspect.signature(backbone.forward).parameters)
    if "cache_params" in parameters:  # of decoders all of whose layers are recurrent
        return True
    windowed = getattr(config, "sliding_window", None) is not None and not kinds
    # Names of older configurations: GPT-Neo's local layers, and Falcon's positions that are counted from the mask.
    windowed |= "local" in (getattr(config, "attention_layers", None) or ()) or bool(getattr(config, "alibi", False))
    attends = not kinds or bool(kinds & ATTENDING)  # else the library's cache does not know its length
    return attends and not windowed and {"position_ids", "past_key_values", "attention_mask"} <= parameters


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
    slots, token = slots or config.context_length, weight.new_zeros(1, 1, config.hidden_size)
    dtypes = (weight.dtype, value_dtype or weight.dtype)
    if model.backbone is None:
        sizes = {FULL: slots, SLIDING: config.sliding_window, LINEAR: None}
        each = [sizes[kind] for kind in config.kinds_of_layers]
        return ADCache(model.encode(token), batch, each, dtypes, slides=config.is_unbounded)
    if not takes_rows_of_own_length(model.backbone):
        return StepCache(token, batch, slots, weight.dtype)
    cache = library_cache(model.backbone, token)
    model.decode(token, cache)
    return BackboneCache(cache, batch, slots, dtypes)


__all__ = ["BackboneCache", "StepCache", "make_cache"]
