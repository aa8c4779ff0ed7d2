"""What the spaces of an environment make of a model: how steps become tokens, and what the action head predicts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ad import ADConfig, categories
from .sampling_ad import choose

# Standard deviations at which normalised observations are cut off.
OUTLIER = 10.0

# Height and width of the patches into which images are divided.
PATCH = 4


def input_dtype(layer: nn.Module) -> torch.dtype:
    """Type of what a layer takes; one that was quantised dynamically has a method `weight`, and takes float32."""
    return getattr(layer.weight, "dtype", torch.float32)


class CategoricalEmbedding(nn.Module):
    """One table per dimension of a Discrete, MultiDiscrete or MultiBinary element, their rows summed."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time) or (batch, time, dimensions), integers -> (batch, time, width)."""
        if values.ndim == 2:
            values = values.unsqueeze(-1)
        values = values.int()
        embedded = self.tables[0](values[..., 0])
        for dimension, table in enumerate(self.tables[1:], start=1):
            embedded = embedded + table(values[..., dimension])
        return embedded


class VectorEmbedding(nn.Module):
    """A linear map of a Box vector, normalised if its mean and standard deviation are known."""

    def __init__(self, size: int, width: int, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.normalizes = mean is not None or std is not None
        self.mean, self.std = mean or [0.0] * size, std or [1.0] * size
        self.linear = nn.Linear(size, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time, size) -> (batch, time, width)."""
        if (
            self.normalizes
        ):  # as large means leave nothing of small differences in bfloat16, and in float32 of float64's
            values = values if values.dtype == torch.float64 else values.float()
            values = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
            values = values.clamp(-OUTLIER, OUTLIER)
        return self.linear(values.to(input_dtype(self.linear)))


class ImageEmbedding(nn.Module):
    """
    A Box image (height, width, channels): a linear map of each of its patches, strided convolutions over them, and a
    linear map of what is left. With patches first, a frame costs a fourth of what convolutions on all pixels do.
    """

    def __init__(self, shape: list[int], width: int, high: float | None, channels: list[int]) -> None:
        super().__init__()
        self.scale = high or 1.0
        height, breadth = shape[:2]
        self.padding = (0, -breadth % PATCH, 0, -height % PATCH)  # so that there are whole patches only
        self.patches = nn.Conv2d(shape[-1], channels[0], kernel_size=PATCH, stride=PATCH)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        step = PATCH * 2 ** len(self.convolutions)
        self.linear = nn.Linear(channels[-1] * math.ceil(height / step) * math.ceil(breadth / step), width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time, height, width, channels) -> (batch, time, width)."""
        frames = F.pad(values.flatten(0, 1).movedim(-1, 1), self.padding)
        frames = self.patches(frames.to(input_dtype(self.patches)) / self.scale)
        for convolution in self.convolutions:
            frames = convolution(F.leaky_relu(frames, negative_slope=0.0, inplace=True))  # as in ADBlock
        frames = F.leaky_relu(frames, negative_slope=0.0, inplace=True)
        return self.linear(frames.flatten(1)).unflatten(0, values.shape[:2])


class StepEmbedding(nn.Module):
    """
    The token of a step: embed(observation_t) + embed(action_{t-1}) + embed(reward_{t-1}) + embed(episode_start_t).

    Before the first step of a history there is no action; the extra category n (Discrete), nvec (MultiDiscrete), or a
    vector of zeros (Box) stands for it.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        width = config.hidden_size
        observations: dict[str, Any] = config.observation_space or {}
        actions: dict[str, Any] = config.action_space or {}
        self.reward_scale = config.reward_scale
        self.observation: nn.Module
        if observations["type"] != "Box":
            self.observation = CategoricalEmbedding(categories(observations), width)
        elif len(observations["shape"]) == 3:
            shape, high = observations["shape"], observations["high"][0]
            self.observation = ImageEmbedding(shape, width, high, config.image_channels)
        else:
            size = observations["shape"][0]
            self.observation = VectorEmbedding(size, width, config.observation_mean, config.observation_std)
        self.previous_action: nn.Module
        if actions["type"] == "Box":
            bounds = list(zip(actions["low"], actions["high"]))
            centres, halves = [(low + high) / 2 for low, high in bounds], [(high - low) / 2 for low, high in bounds]
            self.previous_action = VectorEmbedding(actions["shape"][0], width, centres, halves)
        else:
            self.previous_action = CategoricalEmbedding([size + 1 for size in categories(actions)], width)
        self.previous_reward = nn.Linear(1, width)
        self.episode_start = nn.Embedding(2, width)

    def forward(
        self,
        observations: torch.Tensor,
        previous_actions: torch.Tensor,
        previous_rewards: torch.Tensor,
        episode_starts: torch.Tensor,
    ) -> torch.Tensor:
        """Four tensors (batch, time, ...) -> tokens (batch, time, width)."""
        rewards = previous_rewards.to(input_dtype(self.previous_reward)) / self.reward_scale
        return (
            self.observation(observations)
            + self.previous_action(previous_actions)
            + self.previous_reward(rewards.unsqueeze(-1))
            + self.episode_start(episode_starts.int())
        )


class ActionHead(nn.Module):
    """
    Logits over actions: one categorical distribution per dimension, side by side. A Box action is divided into
    `num_action_bins` equal bins per dimension. They stand for values at equal distances from bound to bound: sources
    that are clipped or squashed do much with all their force, which the outer bins' centres would be short of.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        space: dict[str, Any] = config.action_space or {}
        self.is_box, self.is_scalar = space["type"] == "Box", space["type"] == "Discrete"
        self.sizes = [config.num_action_bins] * space["shape"][0] if self.is_box else categories(space)
        self.low: list[float] = space.get("low", [])
        self.high: list[float] = space.get("high", [])
        self.label_smoothing = config.label_smoothing
        self.linear = nn.Linear(config.hidden_size, sum(self.sizes))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (batch, time, width) -> logits (batch, time, sum of sizes)."""
        return self.linear(hidden_states)

    def no_action(self) -> torch.Tensor:
        """What stands for the action before a history's first step: a category of its own, or a vector of zeros."""
        if self.is_box:
            return torch.zeros(len(self.sizes))
        return torch.tensor(self.sizes[0] if self.is_scalar else self.sizes)

    def to_categories(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., [dimensions]) as categories (..., dimensions); discrete labels of -100 stay what they are."""
        if not self.is_box:
            return actions.long().unsqueeze(-1) if self.is_scalar else actions.long()
        low, high = (
            torch.tensor(bound, device=actions.device, dtype=torch.float32) for bound in (self.low, self.high)
        )
        bins = self.sizes[0]
        return ((actions - low) / (high - low) * bins).long().clamp(0, bins - 1)

    def choose(
        self, logits: torch.Tensor, seeds: np.ndarray, counters: np.ndarray, config: Any, do_sample: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions (rows, [dimensions]) and their log-probabilities (rows,); see [`~sampling_ad.choose`]."""
        categories, log_probs = choose(logits, self.sizes, seeds, counters, config, do_sample)
        return self.to_actions(categories), log_probs

    def to_actions(self, categories: torch.Tensor) -> torch.Tensor:
        """The inverse: categories (..., dimensions) as actions (..., [dimensions])."""
        if not self.is_box:
            return categories.squeeze(-1) if self.is_scalar else categories
        low, high = (torch.tensor(bound, device=categories.device) for bound in (self.low, self.high))
        return torch.lerp(low, high, categories / (self.sizes[0] - 1))

    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ignored: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Mean negative log-likelihood of the actions that were taken, summed over an action's dimensions.

        Args:
            logits (`torch.Tensor` of shape `(batch, time, n)`):
                From the head.
            labels (`torch.Tensor` of shape `(batch, time, ...)`):
                Actions; steps with a discrete label of -100 are ignored.
            ignored (`torch.Tensor` of shape `(batch, time)`, *optional*):
                Further steps to leave out (padding), the only way for continuous actions.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Numbers in the labels of all batches of which the mean is taken, instead of those in this one.
        """
        categories = self.to_categories(labels)
        if ignored is not None:
            categories = categories.masked_fill(ignored.unsqueeze(-1), -100)
        loss = logits.new_zeros((), dtype=torch.float32)
        for dimension, part in enumerate(logits.float().split(self.sizes, dim=-1)):
            targets = categories[..., dimension].flatten()
            loss = loss + F.cross_entropy(
                part.flatten(0, 1),
                targets,
                label_smoothing=self.label_smoothing,
                reduction="mean" if num_items_in_batch is None else "sum",
            )
        return loss if num_items_in_batch is None else loss * len(self.sizes) / num_items_in_batch


__all__ = ["ActionHead", "StepEmbedding"]
