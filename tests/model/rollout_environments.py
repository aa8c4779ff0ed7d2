"""Environments for tests of rollouts, and what they lived through."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import ad_hf.envs  # noqa: F401  registers the environments

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]
DARK_ROOM = {
    "observation_space": {"type": "MultiDiscrete", "nvec": [3, 3]},
    "action_space": {"type": "Discrete", "n": 5},
}
CART_POLE = {
    "observation_space": {"type": "Box", "shape": [4], "low": [None] * 4, "high": [None] * 4, "dtype": "float32"},
    "action_space": {"type": "Discrete", "n": 2},
    "initializer_range": 0.1,
}
COUNTING = {"observation_space": {"type": "Discrete", "n": 8}, "action_space": {"type": "Discrete", "n": 5}}
GOALS = np.array([[0, 1], [1, 1], [2, 2], [1, 0]])


def dark_rooms(mode=AutoresetMode.SAME_STEP, **kwargs):
    """Four native Dark Rooms of 3 x 3 cells, with episodes of 5 steps."""
    return gym.make_vec(
        "ad_hf/DarkRoom-v0",
        num_envs=len(GOALS),
        vectorization_mode="vector_entry_point",
        goal=GOALS,
        **{"size": 3, "max_episode_steps": 5, "autoreset_mode": mode, **kwargs},
    )


def cart_poles(mode=AutoresetMode.SAME_STEP, num_envs=3, **kwargs):
    """Cart poles, whose episodes end at different steps; each keeps a diary."""
    return SyncVectorEnv([lambda: Diary(gym.make("CartPole-v1"))] * num_envs, autoreset_mode=mode, **kwargs)


class Diary(gym.Wrapper):
    """Keeps what a single environment lived through: no way of resetting it makes a difference to that."""

    def __init__(self, env):
        super().__init__(env)
        self.steps, self.seen = [], None

    def reset(self, **kwargs):
        self.seen, info = self.env.reset(**kwargs)
        return self.seen, info

    def step(self, action):
        reached, *rest = self.env.step(action)
        self.steps.append((np.array(self.seen), np.array(action), *rest[:3], np.array(reached)))
        self.seen = reached
        return reached, *rest

    def columns(self, num_steps):
        """Observations, actions, rewards, terminations, truncations and where they led, of the first steps."""
        return [np.array(column) for column in zip(*self.steps[:num_steps])]

    def episodes(self):
        """Returns, lengths and last observations of the finished episodes."""
        found, rewards = [], []
        for _, _, reward, terminated, truncated, reached in self.steps:
            rewards.append(reward)
            if terminated or truncated:
                found.append((sum(rewards), len(rewards), reached))
                rewards = []
        return [list(column) for column in zip(*found)]


class Counting(gym.Env):
    """Counts its steps, in episodes of 4; at step `at`, 0 for the first reset, it returns what is in `bad` instead."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, at=0, bad=None, space=None, render_mode=None):
        self.observation_space = space or spaces.Discrete(8)
        self.action_space = spaces.Discrete(5)
        self.at, self.bad, self.render_mode, self.steps, self.closed = at, bad or {}, render_mode, 0, 0

    def _observation(self):
        if self.steps == self.at and "observation" in self.bad:
            return self.bad["observation"]
        kind, shape = self.observation_space.dtype, self.observation_space.shape
        return np.full(shape, self.steps % 8, dtype=kind) if shape else self.steps % 8

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps, self.elapsed = self.steps + 1, self.elapsed + 1
        reward = self.bad.get("reward", 0.5) if self.steps == self.at else 0.5
        return self._observation(), reward, self.elapsed == 4, False, {}

    def render(self):
        return None if self.render_mode is None else np.full((2, 3, 3), self.steps, dtype=np.uint8)

    def close(self):
        self.closed += 1
