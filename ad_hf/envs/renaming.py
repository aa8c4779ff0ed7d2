"""Any world of numbered states and actions, under other numbers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Renamed(gym.Wrapper, gym.utils.RecordConstructorArgs):
    r"""
    Shows a world of Discrete observations and actions under numbers that a seed draws, in the spaces of a model that
    was trained on other worlds: nothing but experience tells what they mean.

    A state has one number, and numbers may be left over. So has each action, and those that are left over do what one
    of the world's own actions does, which the seed draws, too.

    In a recipe, tasks may bring the seed, as its keyword argument `renaming` does here:

    ```yaml
    wrappers: [{name: ad_hf.envs.renaming.Renamed, kwargs: {states: 16, actions: 4, seed: "{renaming}"}}]
    ```

    Args:
        env (`gymnasium.Env`):
            Environment with Discrete observations and actions.
        seed (`int`):
            Seed of the numbers.
        states (`int`, *optional*, defaults to 64):
            Observations of the model, at least as many as the environment's.
        actions (`int`, *optional*, defaults to 4):
            Actions of the model, at least as many as the environment's.
        reward_factor (`float`, *optional*, defaults to 1.0):
            Rewards are multiplied by it, to be about as large as those that the model knows.

    Raises:
        ValueError: for other spaces, and for larger ones than the model's.
    """

    def __init__(
        self, env: gym.Env, seed: int, states: int = 64, actions: int = 4, reward_factor: float = 1.0
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, seed=seed, states=states, actions=actions, reward_factor=reward_factor
        )
        gym.Wrapper.__init__(self, env)
        for space, count in ((env.observation_space, states), (env.action_space, actions)):
            if not isinstance(space, spaces.Discrete) or space.n > count:
                raise ValueError(
                    f"Renamed shows Discrete spaces of at most {states} states and {actions} actions, got {space}"
                )
        assert isinstance(env.observation_space, spaces.Discrete)
        assert isinstance(env.action_space, spaces.Discrete)
        rng = np.random.default_rng(seed)
        own, self._first_state = int(env.action_space.n), int(env.observation_space.start)
        extra = rng.integers(own, size=actions - own)
        self._actions = env.action_space.start + rng.permutation(np.concatenate([np.arange(own), extra]))
        self._states = rng.permutation(states)[: env.observation_space.n]
        self._reward_factor = reward_factor
        self.observation_space, self.action_space = spaces.Discrete(states), spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; returns the number of its first state, and infos."""
        state, infos = self.env.reset(seed=seed, options=options)
        return self._states[state - self._first_state], infos

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; returns the number of a state, a reward, terminated, truncated, and infos."""
        state, reward, terminated, truncated, infos = self.env.step(self._actions[action])
        return (
            self._states[state - self._first_state],
            float(reward) * self._reward_factor,
            terminated,
            truncated,
            infos,
        )
