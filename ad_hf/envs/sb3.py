"""The bridge from gymnasium's vector environments to Stable-Baselines3's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv

from ad_hf.envs.vector import check_same_step


class VecStep(NamedTuple):
    """A step of all environments, (num_envs, ...) each; final observations are of ended episodes only."""

    observations: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    final_observations: Any


def step_vec_env(envs: VecEnv, actions: np.ndarray) -> VecStep:
    """A step (num_envs, ...) of any `VecEnv` in arrays: of an [`SB3VecEnv`] without a dict for each environment."""
    if isinstance(envs, SB3VecEnv):
        observations, rewards, terminations, truncations, infos = envs.envs.step(actions)
        return VecStep(observations, rewards, terminations, truncations, infos.get("final_obs"))
    observations, rewards, dones, each = envs.step(actions)
    truncations = np.array([bool(info.get("TimeLimit.truncated")) for info in each]) & dones
    final = np.array(observations)
    for index in np.flatnonzero(dones):
        final[index] = each[index]["terminal_observation"]
    return VecStep(observations, rewards, dones & ~truncations, truncations, final)


class EpisodeReturns:
    """Returns and lengths of the episodes under way, for Stable-Baselines3's log and callbacks."""

    def __init__(self, num_envs: int) -> None:
        self._began = time.time()
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> None:
        """Begin new episodes in all environments."""
        self._returns[:], self._lengths[:] = 0.0, 0

    def add(self, rewards: np.ndarray, ended: np.ndarray, most: int | None = None) -> list[dict[str, Any]]:
        """
        Add the rewards (num_envs,) of a step that ended the episodes of some environments (number,).

        Returns `r`, `l` and `t` of SB3's `Monitor` (return, length and seconds so far) for each of these, or for the
        last `most` of them.
        """
        self._returns += rewards
        self._lengths += 1
        if not ended.size:
            return []
        elapsed, last = round(time.time() - self._began, 6), ended if most is None else ended[-most:]
        pairs = zip(self._returns[last].tolist(), self._lengths[last].tolist())
        episodes = [{"r": total, "l": length, "t": elapsed} for total, length in pairs]
        self._returns[ended], self._lengths[ended] = 0.0, 0
        return episodes


class SB3VecEnv(VecEnv):
    r"""
    A gymnasium `VectorEnv` in SAME_STEP mode as a Stable-Baselines3 `VecEnv`.

    `infos[i]["terminal_observation"]` is the last observation of an episode, and a true
    `infos[i]["TimeLimit.truncated"]` says that a time limit cut it, so that learners bootstrap as on `DummyVecEnv`.
    `infos[i]["episode"]` has its return, length and time, as of SB3's `Monitor`, unless a wrapper has put them there.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            The environments, without NEXT_STEP autoreset: a learner would take its reset steps for experience.
        task_ids (`Sequence[int]`, *optional*):
            The task of each environment, for learners that ask for it.

    Raises:
        ValueError: if the environments do not autoreset in the same step.
    """

    def __init__(self, envs: VectorEnv, task_ids: Sequence[int] | None = None) -> None:
        check_same_step(envs)
        self.envs, self.task_ids, self.render_mode = envs, task_ids, envs.render_mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: np.ndarray | None = None
        self._episodes = EpisodeReturns(envs.num_envs)

    def reset(self) -> Any:
        """Reset all environments with the seeds given to `seed()`; returns observations (num_envs, ...)."""
        # VecEnv.seed() gives environment i the seed + i, as gymnasium's vector environments do.
        observations, infos = self.envs.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._episodes.reset()
        self.reset_infos = _split_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (num_envs, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments; returns observations, rewards (float32), dones and one info per environment."""
        observations, rewards, terminations, truncations, vector_infos = self.envs.step(self._actions)
        dones = terminations | truncations
        ended = np.flatnonzero(dones)
        final: Any = vector_infos.pop("final_obs", None)
        infos = _split_infos(vector_infos, self.num_envs)
        for index, episode in zip(ended.tolist(), self._episodes.add(rewards, ended)):
            # SB3 reports an ended episode's own info; the new episode's goes to reset_infos.
            if (final_info := infos[index].pop("final_info", None)) is not None:
                self.reset_infos[index], infos[index] = infos[index], final_info
            monitored = infos[index].get("episode")
            if not (isinstance(monitored, dict) and {"r", "l"} <= monitored.keys()):
                infos[index]["episode"] = episode
            infos[index]["terminal_observation"] = final[index]
            infos[index]["TimeLimit.truncated"] = bool(truncations[index] and not terminations[index])
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per environment."""
        frames: Any = self.envs.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def _singles(self, indices: Any) -> list[gym.Env]:
        singles = getattr(self.envs.unwrapped, "envs", None)
        if singles is None:
            raise AttributeError(f"{self.envs} is vectorised natively: it has no single environments to reach into")
        return [singles[index] for index in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the single environments, where there are such."""
        if attr_name == "render_mode":  # which VecEnv reads at its start, from native vector environments too
            return [self.render_mode for _ in self._get_indices(indices)]
        return [env.get_wrapper_attr(attr_name) for env in self._singles(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the single environments, where there are such."""
        for env in self._singles(indices):
            env.set_wrapper_attr(attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the single environments, where there are such."""
        return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in self._singles(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether each single environment is wrapped by a class (never, where they are vectorised natively)."""
        if not hasattr(self.envs.unwrapped, "envs"):
            return [False for _ in self._get_indices(indices)]
        return [is_wrapped(env, wrapper_class) for env in self._singles(indices)]


def _split_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Gymnasium's dict of arrays with masks as one dict per environment."""
    singles: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        if isinstance(name, str) and name.startswith("_"):
            continue
        if isinstance(values, dict):  # nested infos are split in turn, their masks inside them
            values = _split_infos(values, num_envs)
        mask = infos.get(f"_{name}")
        for index in range(num_envs) if mask is None else np.flatnonzero(mask):
            singles[index][name] = values[index]
    return singles
