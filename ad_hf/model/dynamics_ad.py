"""
Dynamics: from a hidden state and an action to what follows, as heads beside the action head, and their losses.

What follows a step stands in the next one: its observation, the action and reward before it, and whether it starts an
episode. Planning imagines steps by these heads (`planning_ad.py`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_ad import ADConfig, categories
from .embeddings_ad import make_action_embedding, make_observation_embedding
from .heads_ad import MIN_STD, draw

# Rewards and returns, in units of `reward_scale`, are distributions over these values, of which 0, 1 and -1 are some
# and which lie eight to a doubling elsewhere (two-hot, as in https://huggingface.co/papers/2301.04104): their mean
# counts, and neither rare nor large rewards drown the others.
OCTAVES, PER_OCTAVE = 6, 8
# A return whose episode goes on beyond the window counts if what is left out weighs less than this.
TAIL = 0.05


def reward_values() -> torch.Tensor:
    """The values (n,), ascending, that rewards and returns are distributions over."""
    exponents = torch.linspace(-OCTAVES, OCTAVES, 2 * OCTAVES * PER_OCTAVE + 1, dtype=torch.float64)
    return (exponents.sign() * (exponents.abs().exp2() - 1)).float()


def two_hot_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropies (...) of logits (..., n) with numbers (...), which are shared out to the two values nearest."""
    values = reward_values().to(logits.device)
    targets = targets.clamp(values[0], values[-1])
    above = torch.searchsorted(values, targets.contiguous()).clamp(min=1)
    share = (targets - values[above - 1]) / (values[above] - values[above - 1])
    log_probs = logits.log_softmax(-1)
    ends = [log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (above - 1, above)]
    return -torch.lerp(ends[0], ends[1], share)


def mean_of(logits: torch.Tensor) -> torch.Tensor:
    """Means (...), float64, of the distributions of rewards or returns with logits (..., n)."""
    return logits.double().softmax(-1) @ reward_values().to(logits.device).double()


class Losses(NamedTuple):
    """Of each part, the sum over the steps that have a target, in nats, and their number."""

    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def total(self) -> torch.Tensor:
        """The sum of all."""
        return torch.stack([part for part, _ in self.parts.values()]).sum()

    def means(self) -> dict[str, torch.Tensor]:
        """The mean of each part, detached; 0 where no step has a target."""
        return {name: part.detach() / count.clamp(min=1) for name, (part, count) in self.parts.items()}


class Outcome(NamedTuple):
    """
    What an action brings beside an observation.

    Attributes:
        reward, value (`torch.Tensor` of shape `(..., number of values)`):
            Logits of the reward, and of the discounted return of what follows it in the episode.
        end (`torch.Tensor` of shape `(...)`):
            Logit of the episode's end.
    """

    reward: torch.Tensor
    value: torch.Tensor
    end: torch.Tensor


class DynamicsLayer(nn.Module):
    """
    One hidden layer over a hidden state of the decoder, an observation and an action, and a linear map.

    The hidden state knows the observation, too, but what depends on it is learnt in far fewer updates from an
    embedding of its own.
    """

    def __init__(self, config: ADConfig, size: int) -> None:
        super().__init__()
        width = config.intermediate_size
        self.state = nn.Linear(config.hidden_size, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.observation = make_observation_embedding(config, width)
        self.action = make_action_embedding(config.action_space or {}, width)
        self.outputs = nn.Linear(width, size)

    def init_weights(self) -> None:
        """
        Draw the hidden layer's weights so large that its units tell pairs of observation and action apart from the
        start: with a small scale, some hundred updates do not suffice for where actions lead.
        """
        init.zeros_(self.bias)
        for module in (*self.observation.modules(), *self.action.modules(), self.state):
            if isinstance(module, nn.Embedding | nn.Linear):
                init.normal_(module.weight, std=1.0 if isinstance(module, nn.Embedding) else module.in_features**-0.5)

    def forward(self, hidden_states: torch.Tensor, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """hidden_states (batch, time, width), observations and actions (batch, time, ...) -> (batch, time, size)."""
        inner = self.state(hidden_states) + self.observation(observations) + self.action(actions) + self.bias
        return self.outputs(F.leaky_relu(inner, negative_slope=0.0, inplace=True)).float()


class DynamicsHead(nn.Module):
    """
    Heads of a model for what follows a step and an action: the next observation, and what comes with it.

    Reward, end and value are of the observation that is reached. Sources that have learnt hardly ever leave what pays,
    so of their actions alone little can be learnt about others; of where these lead, much.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        self.space: dict[str, Any] = config.observation_space or {}
        self.sizes, number = categories(self.space), len(reward_values())
        self.reward_scale, self.discount = config.reward_scale, config.dynamics_discount
        self.mean, self.std = config.observation_mean or 0.0, config.observation_std or 1.0
        self.transition = DynamicsLayer(config, sum(self.sizes) or 2 * self.space["shape"][0])
        self.outcome = DynamicsLayer(config, 2 * number + 1)

    def outcomes(self, hidden_states: torch.Tensor, reached: torch.Tensor, actions: torch.Tensor) -> Outcome:
        """What actions (batch, time, ...) bring that lead to observations of this shape."""
        reward, value, end = self.outcome(hidden_states, reached, actions).split([*[len(reward_values())] * 2, 1], -1)
        return Outcome(reward, value, end.squeeze(-1))

    def losses(
        self, hidden_states: torch.Tensor, inputs: dict[str, torch.Tensor], ignored: torch.Tensor | None
    ) -> Losses:
        """
        Losses of `observation`, `reward`, `value` and `end`, over the steps that have a target.

        The action is the one that was taken, whatever the labels are. After the end of an episode there is no
        observation to predict, nor a value: the next one is where the environment begins anew. Reward and end are
        learnt there as of the observation where the episode ended, as far as the model predicts it.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, time, width)`):
                Of the decoder.
            inputs (`dict`):
                The model's four inputs, (batch, time, ...) each.
            ignored (`torch.Tensor` of shape `(batch, time)`, *optional*):
                Padding.
        """
        following = {name: part[:, 1:] for name, part in inputs.items()}
        real = torch.ones_like(following["episode_starts"], dtype=torch.bool) if ignored is None else ~ignored[:, 1:]
        ends = following["episode_starts"].bool() & real
        rewards = following["previous_rewards"].float() / self.reward_scale
        returns, known = self._returns(rewards, ends, real)
        before, after, actions = (
            inputs["observations"][:, :-1],
            following["observations"],
            following["previous_actions"],
        )
        logits = self.transition(hidden_states[:, :-1], before, actions)
        reached = after
        if ends.any():
            likeliest = self.next_observations(logits.detach(), before).to(after.dtype)
            reached = torch.where(ends.view(*ends.shape, *[1] * (after.ndim - 2)), likeliest, after)
        found = self.outcomes(hidden_states[:, :-1], reached, actions)
        losses = {
            "observation": (self._observation_losses(logits, before, after), real & ~ends),
            "reward": (two_hot_loss(found.reward, rewards), real),
            "value": (two_hot_loss(found.value, returns), known & ~ends),
            "end": (F.binary_cross_entropy_with_logits(found.end, ends.float(), reduction="none"), real),
        }
        return Losses({name: (loss.where(mask, 0.0).sum(), mask.sum()) for name, (loss, mask) in losses.items()})

    def _returns(
        self, rewards: torch.Tensor, ends: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Discounted returns (batch, time) after rewards, to the ends of episodes, and which the window tells."""
        returns, known = torch.zeros_like(rewards), torch.zeros_like(ends)
        total, tail, ended = rewards.new_zeros(len(rewards)), rewards.new_ones(len(rewards)), ends.new_zeros(len(ends))
        for step in reversed(range(rewards.shape[1])):
            here = real[:, step]
            known[:, step] = here & (ended | ends[:, step] | (tail < TAIL))
            returns[:, step] = total * ~ends[:, step]
            total = (rewards[:, step] + self.discount * returns[:, step]) * here
            tail, ended = torch.where(here, self.discount * tail, 1.0), ended | ends[:, step]
        return returns, known

    def _observation_losses(self, logits: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihoods (batch, time) of the observations after others, summed over dimensions."""
        if not self.sizes:
            means, stds = self.difference(logits)
            error = (self.normalize(after) - self.normalize(before) - means) / stds
            return (0.5 * error.square() + stds.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        targets = after.long().view(*after.shape[:2], -1)
        parts = zip(logits.split(self.sizes, dim=-1), targets.unbind(-1))
        losses = [F.cross_entropy(part.movedim(-1, 1), target, reduction="none") for part, target in parts]
        return torch.stack(losses).sum(0)

    def difference(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations (..., size) of the normalised difference between vectors."""
        means, stds = logits.chunk(2, dim=-1)
        return means, MIN_STD + F.softplus(stds)

    def normalize(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (..., size) as the model's embedding normalises them, outliers included."""
        return ((vectors - vectors.new_tensor(self.mean)) / vectors.new_tensor(self.std)).float()

    @property
    def draws(self) -> int:
        """Random numbers that an observation takes."""
        return len(self.sizes) or self.space["shape"][0]

    def next_observations(
        self, logits: torch.Tensor, observations: torch.Tensor, numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Observations (rows, beams, ...) after others, the likeliest ones, or drawn.

        Args:
            logits (`torch.Tensor` of shape `(rows, beams, n)`):
                Of `transition`.
            observations (`torch.Tensor` of shape `(rows, beams, ...)`):
                What was seen before.
            numbers (`torch.Tensor` of shape `(rows, beams, draws)`, *optional*):
                Random numbers in [0, 1), to draw with.
        """
        if self.sizes:
            each = [None] * self.draws if numbers is None else numbers.unbind(-1)
            seen = torch.stack([choose(*pair) for pair in zip(logits.split(self.sizes, dim=-1), each)], dim=-1)
            return seen.squeeze(-1) if self.space["type"] == "Discrete" else seen
        means, stds = self.difference(logits)
        if numbers is not None:
            means = means + stds * torch.special.ndtri(numbers.clamp(min=1e-6)).to(means)
        vectors = observations.float() + means * means.new_tensor(self.std)
        low, high = (
            means.new_tensor([limit if bound is None else bound for bound in self.space[end]])
            for end, limit in (("low", -math.inf), ("high", math.inf))
        )
        return torch.clamp(vectors, low, high)

    def rewards(self, logits: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Rewards (rows, beams) with logits (rows, beams, n), the likeliest ones, or those into which numbers fall."""
        return reward_values().to(logits.device)[choose(logits, numbers)] * self.reward_scale


def choose(logits: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
    """Categories (rows, beams) of logits (rows, beams, n): the likeliest, or those into which numbers fall."""
    if numbers is None:
        return logits.argmax(-1)
    return draw(logits.double().softmax(-1).flatten(0, 1), numbers.flatten()).view(numbers.shape)


__all__ = ["DynamicsHead", "Outcome", "choose", "mean_of", "reward_values"]
