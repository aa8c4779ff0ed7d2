"""
Heads: from hidden states to distributions over actions, their loss, and how actions are drawn from them.

A head is one subclass of [`ActionHead`], and a name in `HEADS` and in `ADConfig.action_distribution`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from .configuration_ad import ADConfig, categories
from .rollout_config_ad import RolloutConfig

# In units of half the range of an action: the least standard deviation, so that actions that repeat exactly do not
# make an infinite density, and how near to a bound an action counts as the bound (squashed policies come that near).
MIN_STD, EDGE = 0.01, 1e-3


def uniform(seeds: np.ndarray, counters: np.ndarray, dimensions: int) -> torch.Tensor:
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
        bits = mix(streams + (steps + np.uint64(1)) * golden) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Category (rows,) of each row of probabilities (rows, n) into which its number in [0, 1) (rows,) falls."""
    cumulative = probabilities.cumsum(-1)
    # The last sum may round to just under 1. Divided by it, no number falls beyond the last possible category.
    return (cumulative[:, :-1] / cumulative[:, -1:] <= numbers.unsqueeze(1)).sum(-1)


def action_probabilities(logits: torch.Tensor, config: Any, do_sample: bool) -> torch.Tensor:
    """Probabilities (rows, n), float64, from which a dimension of an action with logits (rows, n) is drawn."""
    scores = logits.double() / config.temperature
    if not do_sample:  # the first of several that are equally likely
        probabilities = torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    else:
        if config.top_k:
            scores = TopKLogitsWarper(config.top_k)(None, scores)
        if config.top_p < 1:
            scores = TopPLogitsWarper(config.top_p)(None, scores)
        probabilities = scores.softmax(-1)
    return torch.lerp(probabilities, torch.full_like(probabilities, 1 / logits.shape[1]), config.epsilon)


class ActionHead(nn.Module):
    """
    A linear map to logits. Subclasses say what distributions these stand for, by `loss` and `choose`; both are
    documented in [`CategoricalHead`].

    Args:
        config ([`ADConfig`]):
            Of the model.
        num_logits (`int`):
            Numbers that a distribution is made of.
        draws (`int`):
            Random numbers that an action takes.
    """

    def __init__(self, config: ADConfig, num_logits: int, draws: int) -> None:
        super().__init__()
        self.space: dict[str, Any] = config.action_space or {}
        self.draws = draws
        self.linear = nn.Linear(config.hidden_size, num_logits)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (batch, time, width) -> logits (batch, time, n)."""
        return self.linear(hidden_states)

    def check_rollout(self, config: RolloutConfig) -> None:
        """Refuse settings of a rollout that mean nothing for this head."""

    def no_action(self) -> torch.Tensor:
        """The action before a history's first step: a category of its own, or a vector of zeros."""
        if self.space["type"] == "Box":
            return torch.zeros(self.space["shape"])
        return torch.tensor(self.space["n"] if self.space["type"] == "Discrete" else self.space["nvec"])

    def bounds(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds (dimensions,) of a Box action, of the type and on the device of another tensor."""
        return like.new_tensor(self.space["low"]), like.new_tensor(self.space["high"])


class CategoricalHead(ActionHead):
    """
    One categorical distribution per dimension, side by side. A Box action is divided into `num_action_bins` equal bins
    per dimension. They stand for values at equal distances from bound to bound: sources that are clipped or squashed
    do much with all their force, which the outer bins' centres would be short of.
    """

    def __init__(self, config: ADConfig) -> None:
        space: dict[str, Any] = config.action_space or {}
        sizes = categories(space) or [config.num_action_bins] * space["shape"][0]
        super().__init__(config, sum(sizes), len(sizes))
        self.sizes, self.label_smoothing = sizes, config.label_smoothing
        self.is_box, self.is_scalar = space["type"] == "Box", space["type"] == "Discrete"

    def to_categories(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., [dimensions]) as categories (..., dimensions); discrete labels of -100 stay as they are."""
        if not self.is_box:
            return actions.long().unsqueeze(-1) if self.is_scalar else actions.long()
        low, high = self.bounds(actions.new_empty(0, dtype=torch.float32))
        bins = self.sizes[0]
        return ((actions - low) / (high - low) * bins).long().clamp(0, bins - 1)

    def to_actions(self, categories: torch.Tensor) -> torch.Tensor:
        """The inverse: categories (..., dimensions) as actions (..., [dimensions])."""
        if not self.is_box:
            return categories.squeeze(-1) if self.is_scalar else categories
        low, high = self.bounds(categories.new_empty(0, dtype=torch.float32))
        return torch.lerp(low, high, categories / (self.sizes[0] - 1))

    def choose(
        self, logits: torch.Tensor, numbers: torch.Tensor, config: RolloutConfig, do_sample: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Choose actions: samples, or the likeliest ones, and in `epsilon` of all cases uniform ones, in each dimension.

        Args:
            logits (`torch.Tensor` of shape `(rows, n)`):
                From the head.
            numbers (`torch.Tensor` of shape `(rows, draws)`):
                Random numbers in [0, 1), float64.
            config ([`RolloutConfig`]):
                `temperature`, `top_k`, `top_p` and `epsilon`, all of them set.
            do_sample (`bool`):
                Whether to sample.

        Returns:
            Actions (rows, [dimensions]), and the log-probabilities (rows,) with which they were chosen.
        """
        chosen, log_probs = [], torch.zeros(len(numbers), dtype=torch.float64)
        for part, number in zip(logits.split(self.sizes, dim=-1), numbers.unbind(-1)):
            probabilities = action_probabilities(part, config, do_sample)
            chosen.append(draw(probabilities, number))
            log_probs += probabilities.gather(1, chosen[-1].unsqueeze(1)).squeeze(1).log()
        return self.to_actions(torch.stack(chosen, dim=-1)), log_probs.float()

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
        targets = self.to_categories(labels)
        if ignored is not None:
            targets = targets.masked_fill(ignored.unsqueeze(-1), -100)
        loss = logits.new_zeros((), dtype=torch.float32)
        for dimension, part in enumerate(logits.float().split(self.sizes, dim=-1)):
            loss = loss + F.cross_entropy(
                part.flatten(0, 1),
                targets[..., dimension].flatten(),
                label_smoothing=self.label_smoothing,
                reduction="mean" if num_items_in_batch is None else "sum",
            )
        return loss if num_items_in_batch is None else loss * len(self.sizes) / num_items_in_batch


class MixtureHead(ActionHead):
    """
    A mixture over whole action vectors of Gaussians with diagonal covariances. The part of a Gaussian beyond a bound
    is the probability of the bound itself, as in sources whose actions are clipped.

    Components are of whole vectors, so that dimensions that depend on the same unknown, such as where a goal is, are
    drawn together.
    """

    def __init__(self, config: ADConfig) -> None:
        components, dimensions = config.num_action_components, (config.action_space or {})["shape"][0]
        super().__init__(config, components * (1 + 2 * dimensions), 1 + dimensions)
        self.components, self.dimensions = components, dimensions

    def check_rollout(self, config: RolloutConfig) -> None:
        if config.top_k or config.top_p < 1:  # type: ignore[operator]
            raise ValueError(
                "top_k and top_p choose among categories, of which this model's actions have none "
                "(action_distribution='mixture'): leave them unset and lower the temperature instead"
            )

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

    def log_prob(
        self, logits: torch.Tensor, actions: torch.Tensor, temperature: float = 1.0, epsilon: float = 0.0
    ) -> torch.Tensor:
        """
        Log-likelihoods (...) of actions (..., dimensions) under logits (..., n): in each dimension a density per unit
        of action between the bounds, and a probability at them.
        """
        low, high = self.bounds(logits)
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
        """See [`CategoricalHead`]."""
        log_probs = self.log_prob(logits.float(), labels)
        log_probs = log_probs if ignored is None else log_probs[~ignored]
        if num_items_in_batch is None:
            return -log_probs.mean()
        return -log_probs.sum() * self.dimensions / num_items_in_batch

    def choose(
        self, logits: torch.Tensor, numbers: torch.Tensor, config: Any, do_sample: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        See [`CategoricalHead`]; the likeliest action is the mean of the weightiest component. The temperature divides
        the logits of the components and multiplies their variances.
        """
        logits, epsilon = logits.double(), config.epsilon
        weights, means, stds = self.mixture(logits, config.temperature)
        component = draw(weights.exp(), numbers[:, 0]) if do_sample else weights.argmax(-1)
        rows = torch.arange(len(logits))
        mean, std, numbers = means[rows, component], stds[rows, component], numbers[:, 1:]
        # One number says both whether an action is uniform and which it is.
        is_random = numbers < epsilon
        uniform_ = 2 * numbers / (epsilon or 1.0) - 1
        usual = mean
        if do_sample:
            quantiles = (numbers - epsilon) / (1 - epsilon) if epsilon < 1 else numbers
            usual = mean + std * torch.special.ndtri(quantiles.clamp(min=0))
        scaled = torch.where(is_random, uniform_, usual)
        scaled = torch.where(scaled.abs() > 1 - EDGE, scaled.sign(), scaled)
        low, high = self.bounds(logits)
        actions = torch.clamp(low + (scaled + 1) / 2 * (high - low), low, high)
        if do_sample:
            log_probs = self.log_prob(logits, actions, config.temperature, epsilon)
        else:  # the one action that is possible without `epsilon` has a probability of 1
            log_probs = torch.where(is_random, epsilon / (high - low), 1 - epsilon).log().sum(-1)
        return actions.float(), log_probs.float()


HEADS: dict[str, Any] = {"bins": CategoricalHead, "mixture": MixtureHead}


def make_head(config: ADConfig) -> Any:
    """The head for a model's actions: `action_distribution` chooses where they are continuous."""
    is_box = (config.action_space or {})["type"] == "Box"
    return HEADS[config.action_distribution if is_box else "bins"](config)


__all__ = ["ActionHead", "CategoricalHead", "MixtureHead", "make_head"]
