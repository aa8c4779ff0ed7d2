"""
Dark Room whose goal moves now and then, and a source that learns it: a world in which a memory must be given up.

With `scripts` on the Python path, `studies.moving_goal:studies/MovingGoal-v0` is its id.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ad_hf.envs import dark_room
from ad_hf.envs.dark_room import DarkRoomVectorEnv
from ad_hf.envs.sb3 import VecStep
from ad_hf.envs.vector import SingleEnv
from ad_hf.sources.tabular import TabularQ
from ad_hf.sources.vectorised import state_numbers


class MovingGoalVectorEnv(DarkRoomVectorEnv):
    """
    Dark Rooms with several goals (num_envs or 1, number, 2) in turn, each for so many episodes. Nothing tells that the
    goal has moved but the rewards that fail to come.
    """

    def __init__(
        self, num_envs: int = 1, goals: Any = ((0, 0), (8, 8)), episodes_per_goal: int = 60, **settings: Any
    ) -> None:
        goals = np.asarray(goals)
        self._goals = np.broadcast_to(goals, (num_envs, *goals.shape[-2:]))
        super().__init__(num_envs, goal=self._goals[:, 0], **settings)
        self.episodes_per_goal, self.goals = episodes_per_goal, self.goals.copy()
        self._episodes = np.zeros(num_envs, dtype=np.int64)

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """As of every vector of environments; the first goal comes first again."""
        self._episodes[:] = 0
        return super().reset(**arguments)

    def _start(self, indices: np.ndarray) -> None:
        super()._start(indices)
        turns = self._episodes[indices] // self.episodes_per_goal % self._goals.shape[1]
        self.goals[indices] = self._goals[indices, turns]
        self._episodes[indices] += 1


class MovingGoalEnv(SingleEnv):
    """One room, with the arguments of [`MovingGoalVectorEnv`] for one."""

    vector_class = MovingGoalVectorEnv


def optimal_return(*, goals: Any, **settings: Any) -> float:
    """The mean over the goals of what an episode can bring."""
    return float(np.mean([dark_room.optimal_return(goal=goal, **settings) for goal in goals]))


class RestartingQ(TabularQ):
    """
    Tabular Q-learning that begins anew when a reward contradicts an earlier one of the same state and action: in a
    world without chance, this one has changed. It knows no more of that than the agent.
    """

    def _tables(self) -> dict[str, Any]:
        tables = super()._tables()
        self._rewards = np.full(tables["q_values"].shape, np.nan)
        return tables

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        place = self._rows, state_numbers(observations, self.observation_space), actions
        before = self._rewards[place]
        changed = self._rows[~np.isnan(before) & (before != steps.rewards)]
        self.tables["q_values"][changed] = self.initial_value
        self._rewards[changed] = np.nan
        self._rewards[place] = steps.rewards
        super()._learn_from(observations, actions, steps)


gym.register(
    "studies/MovingGoal-v0",
    entry_point="studies.moving_goal:MovingGoalEnv",
    vector_entry_point="studies.moving_goal:MovingGoalVectorEnv",
)
