"""
Planning in the context: what first actions are worth, by steps that the model imagines.

A model with dynamics heads knows, as far as its context tells, where an action leads and what it pays. The policy is
improved by such values as in https://huggingface.co/papers/2007.12509: the distribution that is acted with is the
softmax of the policy's logits plus `planning_weight` times the values. Where all values are the same, this is the
policy, which explores as the source did.

Values come from beams (https://huggingface.co/papers/2502.19009) or from rollouts of the model's own policy
(https://huggingface.co/papers/2210.03821). After the last imagined action stands the return that the heads predict.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .branch_ad import Branches
from .configuration_ad import SLIDING
from .dynamics_ad import mean_of
from .heads_ad import action_probabilities, draw, uniform
from .step_ad import StepDecoder

# Of the random numbers of imagined steps, apart from those of real actions.
IMAGINED = np.uint64(0x9FB21C651E98DF25)


class Beams(NamedTuple):
    """
    Imagined paths.

    Attributes:
        hidden (`torch.Tensor` of shape `(rows, beams, width)`):
            Hidden states of the steps before the last actions.
        observations, actions, rewards (`torch.Tensor` of shape `(rows, beams, ...)`):
            Last actions, and what they are imagined to bring.
        returns, alive (`torch.Tensor` of shape `(rows, beams)`):
            Discounted returns so far, and the probability, discounted, that the episode goes on.
        totals (`torch.Tensor` of shape `(rows, beams)`):
            Returns with what the heads predict beyond the last actions.
        prior (`torch.Tensor` of shape `(rows, beams)`):
            Log-likelihoods of the actions after the first one.
        first (`torch.Tensor` of shape `(rows, beams)`):
            Positions of the first actions among the candidates.
    """

    hidden: torch.Tensor
    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    returns: torch.Tensor
    alive: torch.Tensor
    totals: torch.Tensor
    prior: torch.Tensor
    first: torch.Tensor

    def take(self, beams: torch.Tensor) -> Beams:
        """Beams with these indices (rows, beams)."""
        rows = torch.arange(len(beams), device=beams.device).unsqueeze(1)
        return Beams(*(part[rows, beams] for part in self))


class Planner:
    """
    Improves the policy of a model in a context.

    Args:
        model ([`ADModel`]):
            A model with dynamics heads.
        decoder (`Callable`):
            Of the context.
        config ([`RolloutConfig`]):
            `num_beams`, `planner`, `planning_horizon` and `planning_weight`, and how actions are chosen; all of them
            set.

    Raises:
        ValueError: for a model that cannot plan.
    """

    def __init__(self, model: Any, decoder: Any, config: Any) -> None:
        fault = None
        if model.dynamics is None:
            fault = "has no dynamics heads: train it with dynamics_weight above 0"
        elif (model.config.action_space or {})["type"] != "Discrete":
            fault = "has actions of several dimensions: planning takes Discrete ones"
        elif not isinstance(decoder, StepDecoder):
            fault = "has blocks of transformers, or adapters or hooks: planning takes this package's own, as they are"
        if fault is not None:
            raise ValueError(f"num_beams must be 1, as the model {fault}")
        self.model, self.config, self.head, self.dynamics = model, config, model.head, model.dynamics
        self.decoder = decoder
        kinds, window = model.config.kinds_of_layers, model.config.sliding_window
        self.windows = [window if kind == SLIDING else None for kind in kinds]

    def improve(
        self,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        observations: torch.Tensor,
        cache: Any,
        active: torch.Tensor,
        seeds: np.ndarray,
        counters: np.ndarray,
    ) -> torch.Tensor:
        """
        Logits (rows, n), float64, of the improved policy; those of rows that are not active stay as they are.

        Args:
            logits, hidden, observations (`torch.Tensor` of shape `(rows, ...)`):
                Of the present step, which the cache holds.
            cache ([`~cache_ad.ADCache`]), active (`torch.Tensor` of shape `(rows,)`):
                The context, and a mask of the rows to plan for.
            seeds, counters (`np.ndarray` of shape `(rows,)`):
                Of the rows' random numbers.
        """
        improved, rows = logits.double(), torch.nonzero(active).squeeze(1)
        if not len(rows):
            return improved
        device, seeds, counters = hidden.device, seeds[rows.numpy()], counters[rows.numpy()]
        root = logits[rows].to(device), hidden[rows.to(device)], observations[rows].to(device)
        values = self.values(*root, cache, rows, (seeds ^ IMAGINED, counters)).cpu()
        gain = self.config.temperature * self.config.planning_weight
        improved[rows] += gain * (values - values.amax(1, keepdim=True))
        return improved

    def values(
        self,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        observations: torch.Tensor,
        cache: Any,
        rows: torch.Tensor,
        numbers: tuple[np.ndarray, np.ndarray],
    ) -> torch.Tensor:
        """
        Values (rows, n), float64, of first actions, in units of `reward_scale`; without enough beams for all of them,
        those of the likeliest, and for the others the mean of these, as likely as they are.
        """
        config, actions = self.config, logits.shape[1]
        prior = (logits.double() / config.temperature).log_softmax(-1)
        candidates = prior.topk(min(actions, config.num_beams)).indices
        number = candidates.shape[1]
        iterates = config.planner == "policy_iteration"
        first = torch.arange(config.num_beams if iterates else number, device=hidden.device) % number
        shape = (len(logits), len(first))
        zeros = prior.new_zeros(shape)
        beams = Beams(
            hidden=hidden.unsqueeze(1).expand(*shape, -1),
            observations=observations.unsqueeze(1).expand(*shape, *observations.shape[1:]),
            actions=candidates[:, first],
            rewards=zeros,
            returns=zeros,
            alive=zeros + 1,
            totals=zeros,
            prior=zeros,
            first=first.expand(shape),
        )
        branches = Branches(cache, rows, len(first), self.windows)
        plan = self._iterate_policy if iterates else self._search_beams
        found = plan(beams, branches, number, numbers)  # (rows, number)
        weights = prior.gather(1, candidates).softmax(-1)
        rest = (weights * found).sum(1, keepdim=True)
        return rest.repeat(1, actions).scatter(1, candidates, found)

    def _act(self, beams: Beams, numbers: torch.Tensor | None = None) -> Beams:
        """Paths one action longer, from those whose observations and hidden states are of before these actions."""
        dynamics, of_observation, of_reward = self.dynamics, None, None
        if numbers is not None:
            of_observation, of_reward = numbers[..., 1:], numbers[..., 0]
        logits = dynamics.transition(beams.hidden, beams.observations, beams.actions)
        reached = dynamics.next_observations(logits, beams.observations, of_observation)
        found = dynamics.outcomes(beams.hidden, reached, beams.actions)
        returns = beams.returns + beams.alive * mean_of(found.reward)
        alive = beams.alive * dynamics.discount * torch.sigmoid(-found.end.double())
        return beams._replace(
            observations=reached,
            rewards=dynamics.rewards(found.reward, of_reward),
            returns=returns,
            alive=alive,
            totals=returns + alive * mean_of(found.value),
        )

    def _look(self, beams: Beams, branches: Branches) -> tuple[Beams, torch.Tensor]:
        """Paths at the observations that they have reached, and logits (rows, beams, n), float64, of next actions."""
        starts = torch.zeros_like(beams.first)
        tokens = self.model.embedding(beams.observations, beams.actions, beams.rewards, starts)
        hidden = self.decoder(tokens.flatten(0, 1).unsqueeze(1), branches).view(tokens.shape)
        return beams._replace(hidden=hidden), self.head(hidden).double()

    def _search_beams(self, beams: Beams, branches: Branches, number: int, _: Any) -> torch.Tensor:
        """Values (rows, number) of the candidates: each is that of the best path that begins with it."""
        config, beams = self.config, self._act(beams)
        for _step in range(config.planning_horizon - 1):
            beams, logits = self._look(beams, branches)
            rows, count, actions = logits.shape
            parents = torch.arange(count, device=logits.device).repeat_interleave(actions)
            children = beams.take(parents.expand(rows, -1))
            log_probs = (logits / config.temperature).log_softmax(-1).flatten(1)
            every = torch.arange(actions, device=logits.device).repeat(rows, count)
            children = self._act(children._replace(prior=children.prior + log_probs, actions=every))
            chosen = best_of_each(self._ranks(children), children.first, number, config.num_beams)
            beams = children.take(chosen)
            branches.reorder(parents[chosen])
        beams = beams.take(best_of_each(self._ranks(beams), beams.first, number, number))
        return torch.zeros_like(beams.totals).scatter(1, beams.first, beams.totals)

    def _ranks(self, beams: Beams) -> torch.Tensor:
        """What paths (rows, beams) are chosen by: returns, and the policy's likelihood as prior."""
        return self.config.planning_weight * beams.totals + beams.prior

    def _iterate_policy(
        self, beams: Beams, branches: Branches, number: int, numbers: tuple[np.ndarray, np.ndarray]
    ) -> torch.Tensor:
        """Values (rows, number) of the candidates: each is the mean return of paths that begin with it."""
        config, (rows, count), draws = self.config, beams.first.shape, self.dynamics.draws + 2
        dice = uniform(*numbers, config.planning_horizon * count * draws).to(beams.hidden.device)
        dice = dice.view(rows, config.planning_horizon, count, draws)
        beams = self._act(beams, dice[:, 0, :, 1:])
        for step in range(1, config.planning_horizon):
            beams, logits = self._look(beams, branches)
            probabilities = action_probabilities(logits.flatten(0, 1), config, do_sample=True)
            actions = draw(probabilities, dice[:, step, :, 0].flatten()).view(rows, count)
            beams = self._act(beams._replace(actions=actions), dice[:, step, :, 1:])
        sums = torch.zeros_like(beams.totals[:, :number]).scatter_add(1, beams.first, beams.totals)
        return sums / torch.bincount(beams.first[0], minlength=number)


def best_of_each(ranks: torch.Tensor, groups: torch.Tensor, number: int, most: int) -> torch.Tensor:
    """
    Indices (rows, at most `most`) of those that rank highest, among them the best of each of so many groups.

    Args:
        ranks, groups (`torch.Tensor` of shape `(rows, count)`):
            Rank and group of each; every group has one at least.
        number, most (`int`):
            Of the groups, and of those that are chosen.
    """
    order = ranks.argsort(dim=1, descending=True, stable=True)
    ordered = groups.gather(1, order)
    # Of each group, the one that comes first.
    is_first = torch.stack([(ordered == group).cumsum(1).eq(1) & (ordered == group) for group in range(number)]).any(0)
    places = (~is_first).long().argsort(dim=1, stable=True)[:, :most]
    return order.gather(1, places)


__all__ = ["Planner"]
