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
from .heads_ad import MIN_STD

# Rewards and returns, in units of `reward_scale`, are distributions over these values, of which 0, 1 and -1 are some
# and which lie four to a doubling elsewhere (two-hot, as in https://huggingface.co/papers/2301.04104): their mean
# counts, and neither rare nor large rewards drown the others.
OCTAVES, PER_OCTAVE = 6, 4
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


class Prediction(NamedTuple):
    """
    What follows some steps and actions.

    Attributes:
        observation (`torch.Tensor` of shape `(..., n)`):
            Logits of the categories of each dimension of the next observation, side by side; of a vector, means and
            standard deviations before their softplus, of the normalised difference.
        reward, value (`torch.Tensor` of shape `(..., number of values)`):
            Logits of the reward, and of the discounted return of the rest of the episode, this reward included.
        end (`torch.Tensor` of shape `(...)`):
            Logit of the episode's end.
    """

    observation: torch.Tensor
    reward: torch.Tensor
    value: torch.Tensor
    end: torch.Tensor


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


class DynamicsHead(nn.Module):
    """
    One hidden layer over a hidden state of the decoder, the observation and an action, and a linear map to a
    [`Prediction`]. The hidden state knows the observation, too, but where it leads is learnt in far fewer updates from
    an embedding of its own.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        space: dict[str, Any] = config.observation_space or {}
        width, number = config.hidden_size, len(reward_values())
        self.space, self.sizes = space, categories(space)
        self.reward_scale, self.discount = config.reward_scale, config.dynamics_discount
        size = sum(self.sizes) or 2 * space["shape"][0]
        self.parts = [size, number, number, 1]
        self.state = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.observation = make_observation_embedding(config, width)
        self.action = make_action_embedding(config.action_space or {}, width)
        self.outputs = nn.Linear(width, sum(self.parts))
        self.mean, self.std = config.observation_mean or 0.0, config.observation_std or 1.0

    def init_weights(self) -> None:
        """
        Draw the hidden layer's weights so large that its units tell pairs of observation and action apart from the
        start: with a small scale, some hundred updates do not suffice for where actions lead.
        """
        init.zeros_(self.bias)
        for module in (*self.observation.modules(), *self.action.modules(), self.state):
            if isinstance(module, nn.Embedding | nn.Linear):
                init.normal_(module.weight, std=1.0 if isinstance(module, nn.Embedding) else module.in_features**-0.5)

    def forward(self, hidden_states: torch.Tensor, observations: torch.Tensor, actions: torch.Tensor) -> Prediction:
        """hidden_states (batch, time, width), observations and actions (batch, time, ...) -> (batch, time, ...)."""
        inner = self.state(hidden_states) + self.observation(observations) + self.action(actions) + self.bias
        inner = F.leaky_relu(inner, negative_slope=0.0, inplace=True)
        observation, reward, value, end = self.outputs(inner).float().split(self.parts, dim=-1)
        return Prediction(observation, reward, value, end.squeeze(-1))

    def losses(
        self, hidden_states: torch.Tensor, inputs: dict[str, torch.Tensor], ignored: torch.Tensor | None
    ) -> Losses:
        """
        Losses of `observation`, `reward`, `value` and `end`, over the steps that have a target.

        The action is the one that was taken, whatever the labels are. After the end of an episode there is no
        observation to predict: the next one is where the environment begins anew.

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
        seen = inputs["observations"][:, :-1], following["observations"]
        found = self(hidden_states[:, :-1], seen[0], following["previous_actions"])
        losses = {
            "observation": (self._observation_losses(found.observation, *seen), real & ~ends),
            "reward": (two_hot_loss(found.reward, rewards), real),
            "value": (two_hot_loss(found.value, returns), known),
            "end": (F.binary_cross_entropy_with_logits(found.end, ends.float(), reduction="none"), real),
        }
        return Losses({name: (loss.where(mask, 0.0).sum(), mask.sum()) for name, (loss, mask) in losses.items()})

    def _returns(
        self, rewards: torch.Tensor, ends: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Discounted returns (batch, time) to the ends of episodes, and which of them the window tells."""
        returns, known = torch.zeros_like(rewards), torch.zeros_like(ends)
        total, tail, ended = rewards.new_zeros(len(rewards)), rewards.new_ones(len(rewards)), ends.new_zeros(len(ends))
        for step in reversed(range(rewards.shape[1])):
            here = real[:, step]
            total = (rewards[:, step] + self.discount * total * ~ends[:, step]) * here
            tail, ended = torch.where(here, self.discount * tail, 1.0), ended | ends[:, step]
            returns[:, step], known[:, step] = total, here & (ended | (tail < TAIL))
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


__all__ = ["DynamicsHead", "Prediction", "reward_values"]
