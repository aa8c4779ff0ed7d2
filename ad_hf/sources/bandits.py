"""Upper confidence bounds and Thompson sampling for bandits, vectorised over streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ad_hf.envs.sb3 import VecStep
from ad_hf.sources.vectorised import ScoringAlgorithm, state_count


class BanditAlgorithm(ScoringAlgorithm):
    """Base of learners that count, for each stream, how often each arm was pulled and what it paid."""

    def _tables(self) -> dict[str, torch.Tensor]:
        if state_count(self.observation_space) != 1:
            raise ValueError(f"a bandit has one observation, this environment has those of {self.observation_space}")
        assert isinstance(self.action_space, spaces.Discrete)
        self._rows = np.arange(self.n_envs)
        shape = (self.n_envs, int(self.action_space.n))
        return {"pulls": torch.zeros(shape), "paid": torch.zeros(shape)}

    def _means(self) -> np.ndarray:
        return self.tables["paid"] / np.maximum(self.tables["pulls"], 1)

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        self.tables["pulls"][self._rows, actions] += 1
        self.tables["paid"][self._rows, actions] += steps.rewards


class UCB(BanditAlgorithm):
    r"""
    UCB1 (Auer et al., 2002): pulls the arm whose mean is highest, with a bonus of
    `exploration * sqrt(log(trials) / pulls)`; arms that were never pulled come first.

    Args:
        policy, env, common:
            As of [`~ad_hf.sources.vectorised.VectorisedAlgorithm`]; there is one observation.
        exploration (`float`, *optional*, defaults to 1.4142):
            Weight of the bonus; the square root of 2 is UCB1's.

    Raises:
        ValueError: for a negative `exploration`, and for environments with more than one observation.
    """

    def __init__(self, policy: str, env: Any, exploration: float = 2**0.5, **common: Any) -> None:
        if exploration < 0:
            raise ValueError(f"exploration must not be negative, got {exploration}")
        self.exploration = exploration
        super().__init__(policy, env, **common)

    def _score(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        if deterministic:
            return self._means()
        pulls = self.tables["pulls"]
        trials = np.maximum(pulls.sum(axis=1, keepdims=True), 1)
        bonus = self.exploration * np.sqrt(np.log(trials) / np.maximum(pulls, 1))
        return np.where(pulls == 0, np.inf, self._means() + bonus)


class ThompsonSampling(BanditAlgorithm):
    r"""
    Thompson sampling for arms that pay 0 or 1 (Thompson, 1933): pulls the arm whose mean, drawn from its posterior
    under a uniform prior, is highest.

    Args:
        policy, env, common:
            As of [`~ad_hf.sources.vectorised.VectorisedAlgorithm`]; there is one observation.

    Raises:
        ValueError: for rewards other than 0 and 1, and for environments with more than one observation.
    """

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the learner, and its environments at their next reset."""
        super().set_random_seed(seed)
        self._rngs = self._rng.spawn(self.n_envs)

    def _score(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        if deterministic:
            return self._means()
        paid, pulls = self.tables["paid"], self.tables["pulls"]
        # A draw takes more or fewer random numbers, depending on the rewards: each stream has its own.
        return np.stack([rng.beta(*counts) for rng, counts in zip(self._rngs, zip(1 + paid, 1 + pulls - paid))])

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        if not np.isin(steps.rewards, (0, 1)).all():
            raise ValueError(f"Thompson sampling expects rewards of 0 or 1, got {np.unique(steps.rewards)}")
        super()._learn_from(observations, actions, steps)
