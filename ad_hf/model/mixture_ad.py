"""A head for continuous actions: a mixture of Gaussians, clipped to the bounds of the action space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ad import ADConfig
from .sampling_ad import draw, uniform

# In units of half the range of an action: the least standard deviation, so that actions that repeat exactly do not
# make an infinite density, and how near to a bound an action counts as the bound (squashed policies come that near).
MIN_STD, EDGE = 0.01, 1e-3


class MixtureHead(nn.Module):
    """
    A mixture over whole action vectors of Gaussians with diagonal covariances. What of a Gaussian lies beyond a bound
    is the probability of the bound itself, as in sources whose actions are clipped.

    Components are of whole vectors, so that dimensions that depend on the same unknown, such as where a goal is, are
    drawn together.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        space: dict[str, Any] = config.action_space or {}
        self.low: list[float] = space["low"]
        self.high: list[float] = space["high"]
        self.components, self.dimensions = config.num_action_components, space["shape"][0]
        self.linear = nn.Linear(config.hidden_size, self.components * (1 + 2 * self.dimensions))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (batch, time, width) -> logits (batch, time, n), of which `mixture` makes distributions."""
        return self.linear(hidden_states)

    def no_action(self) -> torch.Tensor:
        """What stands for the action before a history's first step: a vector of zeros."""
        return torch.zeros(self.dimensions)

    def mixture(
        self, logits: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-weights (..., components), means and standard deviations (..., components, dimensions), bounds at ±1."""
        weights, means, stds = logits.split([self.components, *[self.components * self.dimensions] * 2], dim=-1)
        shape = (self.components, self.dimensions)
        # Apart from the start, or all components would learn the same.
        centres = torch.linspace(-1, 1, self.components + 2, device=logits.device, dtype=logits.dtype)[1:-1]
        means = centres.unsqueeze(1) + means.unflatten(-1, shape)
        stds = MIN_STD + F.softplus(stds.unflatten(-1, shape))
        return (weights / temperature).log_softmax(-1), means, stds * math.sqrt(temperature)

    def _bounds(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return like.new_tensor(self.low), like.new_tensor(self.high)

    def log_prob(
        self, logits: torch.Tensor, actions: torch.Tensor, temperature: float = 1.0, epsilon: float = 0.0
    ) -> torch.Tensor:
        """
        Log-likelihoods (...) of actions (..., dimensions) under logits (..., n): in each dimension a density per unit
        of action between the bounds, and a probability at them.
        """
        low, high = self._bounds(logits)
        half = (high - low) / 2
        scaled = ((actions.to(logits.dtype) - low) / half - 1).unsqueeze(-2)
        weights, means, stds = self.mixture(logits, temperature)
        inside = -0.5 * ((scaled - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi) - half.log()
        # torch.where lets the gradient of one branch through alone; all three are finite.
        below = torch.special.log_ndtr((EDGE - 1 - means) / stds)
        above = torch.special.log_ndtr((means + EDGE - 1) / stds)
        at_low, at_high = scaled <= EDGE - 1, scaled >= 1 - EDGE
        parts = torch.where(at_low, below, torch.where(at_high, above, inside))
        if epsilon:
            random = torch.where(at_low | at_high, EDGE / 2, 1 / (high - low)).log() + math.log(epsilon)
            parts = torch.logaddexp(parts + math.log1p(-epsilon), random) if epsilon < 1 else random.expand_as(parts)
        return (weights + parts.sum(-1)).logsumexp(-1)

    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ignored: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Mean negative log-likelihood of the actions that were taken.

        Args:
            logits (`torch.Tensor` of shape `(batch, time, n)`):
                From the head.
            labels (`torch.Tensor` of shape `(batch, time, dimensions)`):
                Actions.
            ignored (`torch.Tensor` of shape `(batch, time)`, *optional*):
                Steps to leave out (padding).
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Numbers in the labels of all batches of which the mean is taken, instead of those in this one.
        """
        log_probs = self.log_prob(logits.float(), labels)
        log_probs = log_probs if ignored is None else log_probs[~ignored]
        return -(
            log_probs.mean() if num_items_in_batch is None else log_probs.sum() * self.dimensions / num_items_in_batch
        )

    def choose(
        self, logits: torch.Tensor, seeds: np.ndarray, counters: np.ndarray, config: Any, do_sample: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Choose actions: samples, or the mean of the weightiest component, and in `epsilon` of all cases a uniform one,
        in each dimension. The temperature divides the logits of the components and multiplies their variances.

        Args:
            logits (`torch.Tensor` of shape `(rows, n)`):
                From the head.
            seeds, counters (`np.ndarray` of shape `(rows,)`):
                Each row's random stream, and where in it to draw.
            config ([`RolloutConfig`]):
                `temperature` and `epsilon`.
            do_sample (`bool`):
                Whether to sample.

        Returns:
            Actions (rows, dimensions), and their log-likelihoods (rows,) as of `log_prob`; the one action that is
            possible without sampling has a probability of 1.
        """
        logits, epsilon = logits.double(), config.epsilon
        numbers = torch.from_numpy(uniform(seeds, counters, 1 + self.dimensions))
        weights, means, stds = self.mixture(logits, config.temperature)
        chosen = draw(weights.exp(), numbers[:, 0]) if do_sample else weights.argmax(-1)
        rows = torch.arange(len(logits))
        mean, std = means[rows, chosen], stds[rows, chosen]
        # One number says both whether an action is uniform and which it is.
        is_random = numbers[:, 1:] < epsilon
        quantiles = torch.where(is_random, numbers[:, 1:] / epsilon if epsilon else 0.0, numbers[:, 1:])
        if 0 < epsilon < 1:
            quantiles = torch.where(is_random, quantiles, (numbers[:, 1:] - epsilon) / (1 - epsilon))
        usual = mean + std * torch.special.ndtri(quantiles) if do_sample else mean
        scaled = torch.where(is_random, 2 * quantiles - 1, usual)
        scaled = torch.where(scaled.abs() > 1 - EDGE, scaled.sign(), scaled)
        low, high = self._bounds(logits)
        actions = torch.clamp(low + (scaled + 1) / 2 * (high - low), low, high)
        if do_sample:
            return actions.float(), self.log_prob(logits, actions, config.temperature, epsilon).float()
        if not epsilon:
            return actions.float(), torch.zeros(len(rows))
        log_probs = torch.where(is_random, epsilon / (high - low), 1 - epsilon).log().sum(-1)
        return actions.float(), log_probs.float()


__all__ = ["MixtureHead"]
