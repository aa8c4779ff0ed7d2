"""The context of a backbone of transformers: the library's own cache, or none where it cannot hold what is needed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from .cache_ad import rows_by_length

if TYPE_CHECKING:
    from .modeling_ad import ADModel


def takes_padded_cache(backbone: PreTrainedModel) -> bool:
    """
    Whether a backbone can go on from a cache whose rows are padded: it is told positions, and all of its layers attend
    to all that they have seen. (A sliding layer would count padding as steps; a recurrent one has no keys at all.)
    """
    config = backbone.config.get_text_config(decoder=True)
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None)
    # Names of older configurations: GPT-Neo's local layers, and Falcon's positions that are counted from the mask.
    windowed |= "local" in (getattr(config, "attention_layers", None) or ()) or bool(getattr(config, "alibi", False))
    parameters = inspect.signature(backbone.forward).parameters
    return full and not windowed and {"position_ids", "past_key_values", "attention_mask"} <= set(parameters)


class BackboneCache:
    """
    The keys and values of a backbone in a `StaticCache` of transformers.

    Its columns are common to all rows, and an attention mask says which of them are a row's: rows whose contexts
    differ are padded on the left, and a row that does not act leaves a hole. Positions count a row's own steps. When
    the columns are used up, each row's steps are moved together at the right, which changes neither keys nor values.

    Args:
        model ([`ADModel`]):
            The model with the backbone.
        batch (`int`):
            Number of rows.
        slots (`int`):
            Steps that a row holds at most.

    Attributes:
        lengths (`torch.Tensor` of shape `(batch,)`):
            Steps that each row holds, on the CPU.
    """

    def __init__(self, model: ADModel, batch: int, slots: int) -> None:
        assert model.backbone is not None
        self.backbone, self.slots = model.backbone, slots
        # Columns to spare, so that rows are moved once in so many steps.
        self.columns = slots + max(8, slots // 4)
        self.cache = StaticCache(self.backbone.config, max_cache_len=self.columns)
        self.mask = torch.zeros(batch, self.columns, dtype=torch.long)
        self.lengths = torch.zeros(batch, dtype=torch.long)
        self.column = 0  # the next to be written
        weight = next(model.parameters())
        with torch.no_grad():  # the library allocates its cache when it is first written to
            token = torch.zeros(batch, 1, model.config.hidden_size, device=weight.device, dtype=weight.dtype)
            model.decode(token, past_key_values=self.cache)

    @property
    def _layers(self) -> list[Any]:
        return self.cache.layers

    def step(self, model: ADModel, tokens: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        """Append one token (batch, 1, width) to the active rows (all by default); returns (batch, 1, width)."""
        if self.column == self.columns:
            self._move_together()
        self._go_on_at(self.column)
        self.mask[:, self.column] = 1  # for rows that do not count, too: each has something to attend to
        hidden_states = model.decode(
            tokens,
            attention_mask=self.mask[:, : self.column + 1].to(tokens.device),
            past_key_values=self.cache,
            position_ids=self.lengths.clamp(max=self.slots - 1).unsqueeze(1).to(tokens.device),
        )
        if active is None:
            self.lengths = self.lengths + 1
        else:
            self.mask[:, self.column] = active.long()
            self.lengths = self.lengths + active
        self.column += 1
        return hidden_states

    def _go_on_at(self, column: int) -> None:
        """Let the library write to a column next."""
        for layer in self._layers:
            layer.cumulative_length.fill_(column)

    def _move_together(self) -> None:
        longest = int(self.lengths.max())
        # A stable sort puts a row's own columns last, in their order.
        order = self.mask[:, : self.column].argsort(dim=1, stable=True)[:, self.column - longest :]
        for layer in self._layers:
            for states in (layer.keys, layer.values):
                index = order.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                states[:, :, :longest] = states.gather(2, index)
        self.mask.zero_()
        self.mask[:, :longest] = (torch.arange(longest) >= longest - self.lengths.unsqueeze(1)).long()
        self.column = longest

    def refill(self, model: ADModel, rows: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> None:
        """Encode the first `lengths` (number,) of the tokens (number, time, width) of some rows (number,) anew."""
        if self.column < int(lengths.max()):  # room on the left for the longest
            self.column = int(lengths.max())
        for part, length in rows_by_length(torch.arange(len(rows)), lengths, tokens.shape[1]):
            chosen = rows[part]
            self.mask[chosen] = 0
            self.lengths[chosen] = length
            if not length:
                continue
            encoded = DynamicCache(config=self.backbone.config)
            model.decode(tokens[part, :length], past_key_values=encoded)
            fresh_layers: list[Any] = encoded.layers
            columns = slice(self.column - length, self.column)
            self.mask[chosen, columns] = 1
            index = chosen.to(tokens.device)
            for layer, fresh in zip(self._layers, fresh_layers):
                layer.keys[index, :, columns] = fresh.keys
                layer.values[index, :, columns] = fresh.values

    def reset(self, rows: torch.Tensor) -> None:
        """Forget the rows of a mask (batch,)."""
        self.lengths = self.lengths.masked_fill(rows, 0)
        self.mask[rows] = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Lengths and mask, and the library's keys and values; shapes depend on the model, batch and slots alone."""
        state = {"lengths": self.lengths, "mask": self.mask, "column": torch.tensor(self.column)}
        for index, layer in enumerate(self._layers):
            state |= {f"keys.{index}": layer.keys, f"values.{index}": layer.values}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.lengths, self.mask = (state[name].clone().cpu() for name in ("lengths", "mask"))
        self.column = int(state["column"])
        for index, layer in enumerate(self._layers):
            layer.keys.copy_(state[f"keys.{index}"])
            layer.values.copy_(state[f"values.{index}"])


class NoCache:
    """
    Steps that are encoded anew each time, for backbones that [`takes_padded_cache`] says no of.

    Args:
        model ([`ADModel`]):
            The model with the backbone.
        batch (`int`):
            Number of rows.
        slots (`int`):
            Steps that a row holds at most.
    """

    def __init__(self, model: ADModel, batch: int, slots: int) -> None:
        self.slots = slots
        self.lengths = torch.zeros(batch, dtype=torch.long)
        weight = next(model.parameters())
        self.tokens = torch.zeros(batch, slots, model.config.hidden_size, device=weight.device, dtype=weight.dtype)

    def step(self, model: ADModel, tokens: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
        """Append one token (batch, 1, width) to the active rows (all by default); returns (batch, 1, width)."""
        counted = torch.ones(len(tokens), dtype=torch.bool) if active is None else active
        rows = torch.nonzero(counted).squeeze(1)
        self.tokens[rows, self.lengths[rows]] = tokens[rows, 0]
        self.lengths = self.lengths + counted
        longest = max(1, int(self.lengths.max()))
        mask = (torch.arange(longest) < self.lengths.unsqueeze(1)).long().to(tokens.device)
        hidden_states = model.decode(self.tokens[:, :longest], attention_mask=mask)
        last = (self.lengths - 1).clamp(min=0)
        return hidden_states[torch.arange(len(tokens)), last].unsqueeze(1)

    def refill(self, model: ADModel, rows: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor) -> None:
        """Hold the first `lengths` (number,) of the tokens (number, time, width) of some rows (number,) instead."""
        time = min(tokens.shape[1], self.slots)
        self.tokens[rows, :time] = tokens[:, :time]
        self.lengths[rows] = lengths

    def reset(self, rows: torch.Tensor) -> None:
        """Forget the rows of a mask (batch,)."""
        self.lengths = self.lengths.masked_fill(rows, 0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Lengths and tokens."""
        return {"lengths": self.lengths, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.lengths = state["lengths"].clone().cpu()
        self.tokens.copy_(state["tokens"])


__all__ = ["BackboneCache", "NoCache", "takes_padded_cache"]
