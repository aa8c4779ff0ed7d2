"""Tabular Q-learning, vectorised over streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ad_hf.envs.sb3 import VecStep
from ad_hf.sources.vectorised import ScoringAlgorithm, break_ties, state_count, state_numbers


class TabularQ(ScoringAlgorithm):
    r"""
    Q-learning with a table for each stream (Watkins, 1989; Sutton and Barto, section 6.5) and Stable-Baselines3's
    interface: as many learners as environments, at the cost of a few array operations.

    With optimistic initial values (Sutton and Barto, section 2.6) it tries every action of every state on its way and
    prefers those that lead to unexplored states: it finds sparse rewards far sooner than epsilon-greedy exploration.

    Args:
        policy, env, common:
            As of [`~ad_hf.sources.vectorised.VectorisedAlgorithm`]. Observations are Discrete, MultiDiscrete or
            MultiBinary.
        learning_rate (`float`, *optional*, defaults to 0.5):
            Step towards the target, in (0, 1]; 1 is right where nothing is random.
        gamma (`float`, *optional*, defaults to 0.95):
            Discount, in [0, 1].
        initial_value (`float`, *optional*, defaults to 1.0):
            Value of every action before its first try.
        epsilon (`float`, *optional*, defaults to 0.0):
            Probability of a random action.
        shared (`bool`, *optional*, defaults to `False`):
            Whether the streams of a task learn one table together, as the actors of an A2C share their policy: all
            know as soon as one of them finds something, and each needs fewer episodes in proportion.

    Raises:
        ValueError: for numbers out of their range, and for observations without a finite number of values.
    """

    def __init__(
        self,
        policy: str,
        env: Any,
        learning_rate: float = 0.5,
        gamma: float = 0.95,
        initial_value: float = 1.0,
        epsilon: float = 0.0,
        shared: bool = False,
        **common: Any,
    ) -> None:
        if not 0 < learning_rate <= 1:
            raise ValueError(f"learning_rate must be in (0, 1], got {learning_rate}")
        for name, value in (("gamma", gamma), ("epsilon", epsilon)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.step_size, self.gamma, self.initial_value, self.epsilon = learning_rate, gamma, initial_value, epsilon
        self.shared = shared
        super().__init__(policy, env, **common)

    def _tables(self) -> dict[str, torch.Tensor]:
        assert isinstance(self.action_space, spaces.Discrete)
        self._rows = np.arange(self.n_envs)  # each stream's table
        if self.shared:
            tasks = getattr(self.env.unwrapped, "task_ids", None) if self.env is not None else None
            self._rows = np.unique([0] * self.n_envs if tasks is None else tasks, return_inverse=True)[1]
        shape = (int(self._rows.max()) + 1, state_count(self.observation_space), int(self.action_space.n))
        return {"q_values": torch.full(shape, float(self.initial_value))}

    def _score(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        return self.tables["q_values"][self._rows, state_numbers(observations, self.observation_space)]

    def _explore(self, observations: np.ndarray) -> np.ndarray:
        actions = break_ties(self._score(observations, deterministic=False), self._rng)
        if self.epsilon:
            at_random = self._rng.random(self.n_envs) < self.epsilon
            actions[at_random] = self._rng.integers(self.tables["q_values"].shape[2], size=int(at_random.sum()))
        return actions

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        following = steps.observations
        if steps.truncations.any():  # a time limit ends no state's value
            following = np.array(following)
            following[steps.truncations] = np.stack(list(steps.final_observations[steps.truncations]))
        targets = steps.rewards + self.gamma * self._score(following, True).max(axis=1) * ~steps.terminations
        place = self._rows, state_numbers(observations, self.observation_space), actions
        q_values = self.tables["q_values"]
        old = q_values[place]
        q_values[place] = old + self.step_size * (targets - old)
