"""A model as a Stable-Baselines3 policy, for `evaluate_policy` and all that calls `predict`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from ad_hf.model.context_ad import ADContext
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig

OBSERVATION, REWARD = "observation", "reward"


class RewardInObservation(VecEnvWrapper):
    """
    Gives the last reward along with each observation, since Stable-Baselines3's `predict` gets no rewards.

    Observations become `{"observation": (num_envs, ...), "reward": (num_envs,)}`; the first one after an episode's end
    comes with the reward of its last step, and the first of all with 0.

    Args:
        venv (`stable_baselines3.common.vec_env.VecEnv`):
            The environments.

    Raises:
        ValueError: if their observations are dicts.
    """

    def __init__(self, venv: VecEnv) -> None:
        if isinstance(venv.observation_space, spaces.Dict):
            raise ValueError(f"expected environments without dict observations, got {venv.observation_space}")
        reward = spaces.Box(-np.inf, np.inf, (), np.float32)
        super().__init__(venv, spaces.Dict({OBSERVATION: venv.observation_space, REWARD: reward}))

    def reset(self) -> dict[str, np.ndarray]:  # a dict, as of environments of dict spaces
        """Reset all environments."""
        return {OBSERVATION: self.venv.reset(), REWARD: np.zeros(self.num_envs, np.float32)}  # type: ignore[dict-item]

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict]]:
        """Step all environments."""
        observations, rewards, dones, infos = self.venv.step_wait()
        return {OBSERVATION: observations, REWARD: rewards}, rewards, dones, infos  # type: ignore[dict-item]


class ADPolicy:
    r"""
    A model with Stable-Baselines3's `predict`, in environments wrapped by [`RewardInObservation`].

    Args:
        model ([`ADModel`]):
            The model.
        rollout_config ([`RolloutConfig`], *optional*):
            How to act; the model's own config fills in unset fields.
        overrides:
            Fields of [`RolloutConfig`], such as `seed` and `temperature`.

    Example:
        >>> venv = RewardInObservation(make_vec_env("CartPole-v1", n_envs=4))
        >>> mean, std = evaluate_policy(ADPolicy(model), venv, n_eval_episodes=40, deterministic=False)
    """

    def __init__(self, model: ADModel, rollout_config: RolloutConfig | None = None, **overrides: Any) -> None:
        self.model = model.eval()
        self.rollout_config = RolloutConfig.from_dict(overrides).resolve(
            rollout_config or RolloutConfig(), model.rollout_config
        )

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: tuple[ADContext] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[ADContext]]:
        """
        Act.

        Args:
            observation (`dict`):
                `observation` (num_envs, ...) and `reward` (num_envs,), as [`RewardInObservation`] gives them.
            state (`tuple`, *optional*):
                The state that the last call returned; `None` begins new histories. It is changed in place:
                `(state[0].copy(),)` keeps one.
            episode_start (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Whether an episode begins. The context runs across episodes.
            deterministic (`bool`, *optional*, defaults to `False`):
                Whether to take the likeliest action. AD explores by sampling: give `evaluate_policy`
                `deterministic=False`.

        Returns:
            Actions (num_envs, ...), and the state for the next call.

        Raises:
            ValueError: for observations without rewards.
        """
        if not isinstance(observation, dict) or set(observation) != {OBSERVATION, REWARD}:
            raise ValueError(
                f"expected a dict of {OBSERVATION!r} and {REWARD!r}: wrap the environments in RewardInObservation; "
                f"got {observation!r}"
            )
        rewards = observation[REWARD]
        if state is None:
            state = (self.model.init_context(len(rewards), rollout_config=self.rollout_config),)
        sample = False if deterministic else None
        actions = state[0].act(observation[OBSERVATION], rewards, episode_start, do_sample=sample)
        return actions, state


__all__ = ["ADPolicy", "RewardInObservation"]
