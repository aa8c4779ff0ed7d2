"""The context of a rollout: the model's last steps, across episodes, and their keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .configuration_ad import ADConfig

if TYPE_CHECKING:
    from .modeling_ad import ADModel


class ADCache:
    """
    Keys and values of every block, preallocated, with a length of its own for each row of the batch.

    Args:
        config ([`ADConfig`]):
            Of the model.
        batch (`int`):
            Number of rows.
        device (`torch.device`), dtype (`torch.dtype`):
            Of keys and values.
    """

    def __init__(self, config: ADConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        heads = config.num_attention_heads
        shape = (config.num_hidden_layers, batch, heads, config.context_length, config.hidden_size // heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long)  # on the CPU, where control flow reads it
        self._positions: torch.Tensor | None = None
        self._used = 0

    def append(self, time: int, device: torch.device) -> torch.Tensor:
        """Make room for `time` further steps in every row; returns their positions (batch, time)."""
        positions = self.lengths.unsqueeze(1) + torch.arange(time)
        self.lengths = self.lengths + time
        self._used = int(self.lengths.max())
        if self._used > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} steps, {self._used} were written to it")
        self._positions = positions.to(device)
        return self._positions

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block's keys and values (batch, heads, time, head_dim) of the new steps; returns those of all."""
        assert self._positions is not None
        index = self._positions[:, None, :, None].expand_as(key)
        self.keys[layer].scatter_(2, index, key.to(self.keys.dtype))
        self.values[layer].scatter_(2, index, value.to(self.values.dtype))
        return self.keys[layer, :, :, : self._used], self.values[layer, :, :, : self._used]

    def mask(self, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (batch, 1, time, steps): each position sees its row's steps up to itself."""
        steps = torch.arange(self._used, device=positions.device)
        unseen = steps > positions[:, None, :, None]
        return torch.zeros(unseen.shape, dtype=dtype, device=positions.device).masked_fill_(
            unseen, torch.finfo(dtype).min
        )


def _as_tensor(values: np.ndarray) -> torch.Tensor:
    """An array as a tensor; torch can do next to nothing with unsigned integers of more than 8 bits."""
    values = np.asarray(values)
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        values = values.astype(np.int64)
    return torch.as_tensor(values)


def _uniform(seeds: np.ndarray, counters: np.ndarray, dimensions: int) -> np.ndarray:
    """
    Numbers in [0, 1), (rows, dimensions), that depend on a row's own seed and counter alone (SplitMix64).

    A counter-based generator makes a row's actions independent of which rows stand beside it, without a generator
    object, and a Python loop, per environment.
    """
    golden, first, second = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

    def mix(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * first
        state = (state ^ (state >> np.uint64(27))) * second
        return state ^ (state >> np.uint64(31))

    with np.errstate(over="ignore"):
        streams = mix((seeds.astype(np.uint64) + np.uint64(1)) * golden)[:, None]
        steps = counters.astype(np.uint64)[:, None] * np.uint64(dimensions) + np.arange(dimensions, dtype=np.uint64)
        return (mix(streams + (steps + np.uint64(1)) * golden) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class ADContext:
    r"""
    The last `context_length` steps of each environment, across episodes, and how to act on them.

    When a row's context is full, its oldest quarter is dropped and the rest is encoded anew, so that the logits are at
    every step those of the model on the steps that the context holds, as in training, at an amortised cost of a few
    steps. (Rolling keys and values instead would mix in steps that are gone: deep layers have attended to them.)

    Args:
        model ([`ADModel`]):
            The model.
        num_envs (`int`):
            Number of environments.
        seed (`int`, *optional*, defaults to 0):
            Environment i samples from a random stream of its own, of seed `seed + i`.
        do_sample (`bool`, *optional*, defaults to `True`):
            Whether to sample actions or to take the most likely ones.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits.
    """

    def __init__(
        self, model: ADModel, num_envs: int, seed: int = 0, do_sample: bool = True, temperature: float = 1.0
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if temperature <= 0:
            raise ValueError(
                f"temperature must be positive, got {temperature}; do_sample=False takes the likeliest action"
            )
        self.model, self.num_envs = model, num_envs
        self.do_sample, self.temperature = do_sample, temperature
        config = model.config
        self.length = config.context_length
        self.kept = self.length - max(1, self.length // 4)
        weight = next(model.parameters())
        self._cache: ADCache | None = None
        if config.backbone_config is None:
            self._cache = ADCache(config, num_envs, weight.device, weight.dtype)
        self._device = weight.device
        self._seeds = np.arange(num_envs, dtype=np.uint64) + np.uint64(seed)
        self._counters = np.zeros(num_envs, dtype=np.uint64)
        self.lengths = torch.zeros(num_envs, dtype=torch.long)
        self._steps: list[torch.Tensor] | None = None  # observations, previous actions and rewards, episode starts
        self._none = self._no_action(config.action_space or {})
        self._last_actions = self._none.expand(num_envs, *self._none.shape).clone()
        self._fresh = torch.ones(num_envs, dtype=torch.bool)
        self.logits: torch.Tensor | None = None

    @staticmethod
    def _no_action(space: dict[str, Any]) -> torch.Tensor:
        if space["type"] == "Box":
            return torch.zeros(space["shape"])
        return torch.tensor(space["n"] if space["type"] == "Discrete" else space["nvec"])

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forget everything, in all environments or in those of a mask (num_envs,): what follows is a new history."""
        rows = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        self.lengths[rows] = 0
        self._fresh[rows] = True
        self._last_actions[rows] = self._none
        if self._cache is not None:
            self._cache.lengths[rows] = 0

    @torch.no_grad()
    def act(
        self,
        observations: np.ndarray,
        rewards: np.ndarray | None = None,
        episode_starts: np.ndarray | None = None,
        active: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        Add a step to the context and choose its action.

        Args:
            observations (`np.ndarray` of shape `(num_envs, ...)`):
                What is seen now.
            rewards (`np.ndarray` of shape `(num_envs,)`, *optional*):
                The rewards that led here, also across the border of an episode. Ignored at a history's first step.
            episode_starts (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Whether this is an episode's first step; a history's first step always is.
            active (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Environments whose step counts; the others' contexts stay as they are and their actions mean nothing
                (autoreset in the next step has steps that are no experience).

        Returns:
            `np.ndarray` of shape `(num_envs, ...)`: the actions. `context.logits` (num_envs, n) is what they were
            chosen from.
        """
        rows = torch.ones(self.num_envs, dtype=torch.bool) if active is None else torch.as_tensor(active).bool()
        self._slide(rows)
        step = self._token(observations, rewards, episode_starts)
        self._remember(step, rows)
        self.logits = self._encode_last(step, rows)
        actions = self._choose(self.logits)
        self._last_actions[rows] = actions[rows].to(self._last_actions.dtype)
        self._fresh &= ~rows
        self._counters += rows.numpy().astype(np.uint64)
        return actions.numpy()

    def _token(self, observations: Any, rewards: Any, episode_starts: Any) -> list[torch.Tensor]:
        rewards = torch.zeros(self.num_envs) if rewards is None else torch.as_tensor(rewards, dtype=torch.float32)
        starts = torch.zeros(self.num_envs, dtype=torch.bool)
        if episode_starts is not None:
            starts = torch.as_tensor(episode_starts, dtype=torch.bool)
        return [
            _as_tensor(observations),
            self._last_actions.clone(),
            rewards.masked_fill(self._fresh, 0.0),
            starts | self._fresh,
        ]

    def _remember(self, step: list[torch.Tensor], rows: torch.Tensor) -> None:
        if self._steps is None:
            self._steps = [part.new_zeros((self.num_envs, self.length, *part.shape[1:])) for part in step]
        index = torch.nonzero(rows).squeeze(1)
        for memory, part in zip(self._steps, step):
            memory[index, self.lengths[index]] = part[index]
        self.lengths += rows

    def _slide(self, rows: torch.Tensor) -> None:
        """Make room in the full rows: drop their oldest steps and encode the others anew."""
        full = torch.nonzero(rows & (self.lengths == self.length)).squeeze(1)
        if self._steps is None or full.numel() == 0:
            return
        for memory in self._steps:
            memory[full, : self.kept] = memory[full, self.length - self.kept :]
        self.lengths[full] = self.kept
        if self._cache is not None:
            fresh = ADCache(self.model.config, len(full), self._device, self._cache.keys.dtype)
            if self.kept:
                kept = [memory[full, : self.kept].to(self._device) for memory in self._steps]
                self.model(*kept, past_key_values=fresh)
            self._cache.keys[:, full], self._cache.values[:, full] = fresh.keys, fresh.values
            self._cache.lengths[full] = self.kept

    def _encode_last(self, step: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        if self._cache is not None:
            inputs = [part.unsqueeze(1).to(self._device) for part in step]
            before = self._cache.lengths.clone()
            # A row that is not active is encoded like the others, into a slot that its next step overwrites. One that
            # is full has no such slot: it lends its last one, which is encoded anew, with all others, when it slides.
            self._cache.lengths.clamp_(max=self.length - 1)
            logits = self.model(*inputs, past_key_values=self._cache).logits[:, -1]
            self._cache.lengths = torch.where(rows, self._cache.lengths, before)
            return logits.float().cpu()
        assert self._steps is not None
        longest = int(self.lengths.max())
        mask = torch.arange(longest) < self.lengths.unsqueeze(1)
        inputs = [memory[:, :longest].to(self._device) for memory in self._steps]
        logits = self.model(*inputs, attention_mask=mask.long().to(self._device)).logits.float().cpu()
        return logits[torch.arange(self.num_envs), (self.lengths - 1).clamp(min=0)]

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        head = self.model.head
        uniform = torch.from_numpy(_uniform(self._seeds, self._counters, len(head.sizes)))
        choices = []
        for dimension, part in enumerate(logits.split(head.sizes, dim=-1)):
            if self.do_sample:
                cumulative = (part.double() / self.temperature).softmax(-1).cumsum(-1)
                # The last sum may round to just under 1: the likeliest numbers above it still choose the last action.
                choice = (cumulative[:, :-1] <= uniform[:, dimension : dimension + 1]).sum(-1)
            else:
                choice = part.argmax(-1)
            choices.append(choice)
        return head.to_actions(torch.stack(choices, dim=-1))


__all__ = ["ADCache", "ADContext"]
