"""Tabular Q-learning, vectorised over streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ad_hf.envs.sb3 import VecStep
from ad_hf.sources.vectorised import ScoringAlgorithm, break_ties, state_count, state_numbers

STEP = [("state", "i8"), ("action", "i8"), ("reward", "f8"), ("terminates", "?"), ("following", "i8")]


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
        final_epsilon (`float`, *optional*):
            That at the end of training, to which it falls or rises evenly; by default it stays the same. With noise, a
            model sees what a learner does after actions that it would not choose.
        shared (`bool`, *optional*, defaults to `False`):
            Whether the streams of a task learn one table together, as the actors of an A2C share their policy: all
            know as soon as one of them finds something, and each needs fewer episodes in proportion.
        replayed_steps (`int`, *optional*, defaults to 0):
            Steps of a stream's past from which it learns once more after each step, drawn anew each time. As in Dyna-Q
            (Sutton and Barto, section 8.2), values travel back in fewer episodes; where there is chance, take a small
            learning rate and many steps.
        random_ties (`bool`, *optional*, defaults to `True`):
            Whether the best of equal values is drawn. If not, it is that of the first action: what a model has to
            imitate is then a rule, and no chance.

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
        replayed_steps: int = 0,
        random_ties: bool = True,
        final_epsilon: float | None = None,
        **common: Any,
    ) -> None:
        if not 0 < learning_rate <= 1:
            raise ValueError(f"learning_rate must be in (0, 1], got {learning_rate}")
        self.final_epsilon = epsilon if final_epsilon is None else final_epsilon
        for name, value in (("gamma", gamma), ("epsilon", epsilon), ("final_epsilon", self.final_epsilon)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.step_size, self.gamma, self.initial_value, self.epsilon = learning_rate, gamma, initial_value, epsilon
        if replayed_steps < 0:
            raise ValueError(f"replayed_steps must be at least 0, got {replayed_steps}")
        self.shared, self.replayed_steps, self.random_ties = shared, replayed_steps, random_ties
        super().__init__(policy, env, **common)

    def _tables(self) -> dict[str, torch.Tensor]:
        assert isinstance(self.action_space, spaces.Discrete)
        self._rows = np.arange(self.n_envs)  # each stream's table
        if self.shared:
            tasks = getattr(self.env.unwrapped, "task_ids", None) if self.env is not None else None
            self._rows = np.unique([0] * self.n_envs if tasks is None else tasks, return_inverse=True)[1]
        self._past, self._length = np.zeros((1, self.n_envs), STEP), 0
        shape = (int(self._rows.max()) + 1, state_count(self.observation_space), int(self.action_space.n))
        return {"q_values": torch.full(shape, float(self.initial_value))}

    def _score(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        return self.tables["q_values"][self._rows, state_numbers(observations, self.observation_space)]

    def _explore(self, observations: np.ndarray) -> np.ndarray:
        scores = self._score(observations, deterministic=False)
        actions = break_ties(scores, self._rng) if self.random_ties else scores.argmax(axis=1)
        epsilon = self.final_epsilon + (self.epsilon - self.final_epsilon) * self._current_progress_remaining
        if epsilon:
            at_random = self._rng.random(self.n_envs) < epsilon
            actions[at_random] = self._rng.integers(self.tables["q_values"].shape[2], size=int(at_random.sum()))
        return actions

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        following = steps.observations
        if steps.truncations.any():  # a time limit ends no state's value
            following = np.array(following)
            following[steps.truncations] = np.stack(list(steps.final_observations[steps.truncations]))
        space, step = self.observation_space, np.empty(self.n_envs, STEP)
        step["state"], step["following"] = state_numbers(observations, space), state_numbers(following, space)
        step["action"], step["reward"], step["terminates"] = actions, steps.rewards, steps.terminations
        self._update(step)
        if self.replayed_steps:
            if self._length == len(self._past):
                self._past = np.concatenate([self._past, np.zeros_like(self._past)])
            self._past[self._length] = step
            self._length += 1
            streams = np.arange(self.n_envs)
            for picks in self._rng.integers(self._length, size=(self.replayed_steps, self.n_envs)):
                self._update(self._past[picks, streams])

    def _update(self, step: np.ndarray) -> None:
        """Move the values of the states and actions of a step of all streams (streams,) towards what followed."""
        q_values = self.tables["q_values"]
        value = q_values[self._rows, step["following"]].max(axis=1)
        place = self._rows, step["state"], step["action"]
        old = q_values[place]
        q_values[place] = old + self.step_size * (step["reward"] + self.gamma * value * ~step["terminates"] - old)
