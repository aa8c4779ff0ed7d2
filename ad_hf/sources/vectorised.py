"""Learners with Stable-Baselines3's interface, of whose environments each learns for itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from ad_hf.envs.sb3 import EpisodeReturns, VecStep, step_vec_env
from ad_hf.envs.spaces import categories


class TablePolicy(BasePolicy):
    """
    Tables of numbers (streams, ...) by name, which the learner saves, and the function that acts by them: from
    observations (streams, ...) and whether to be deterministic to actions (streams, ...).
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, tables: Any, act: Any) -> None:
        super().__init__(observation_space, action_space)
        for name, table in tables.items():
            self.register_buffer(name, table)
        self._act = act

    def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
        return torch.as_tensor(self._act(np.asarray(observation), deterministic))

    def obs_to_tensor(self, observation: Any) -> Any:
        """Observations as they are: integers, by which to look up tables."""
        space = self.observation_space
        observations = np.asarray(observation)
        vectorised = observations.ndim > len(space.shape or ())
        return observations.reshape(-1, *(space.shape or ())), vectorised


def break_ties(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The best action of each row of scores (streams, actions), with even chances among equals; (streams,)."""
    best = scores == scores.max(axis=1, keepdims=True)
    return (best * (rng.random(scores.shape, dtype=np.float32) + 0.5)).argmax(axis=1)


class VectorisedAlgorithm(BaseAlgorithm):
    r"""
    Base of learners that learn in each of their environments, the streams, as if there were no other, or at most those
    of the same task. So one learner can learn many tasks, in one vector of environments.

    The position of a stream identifies it: `predict` takes one observation for every stream.

    Args:
        policy (`str`):
            Part of the interface of Stable-Baselines3; there is a table and no network.
        env (`VecEnv`):
            The environments, with actions of one of the `action_spaces` of the class.
        seed, tensorboard_log, verbose, device:
            As of every algorithm of Stable-Baselines3.
    """

    action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TablePolicy}

    def __init__(
        self,
        policy: str,
        env: GymEnv | str | None,
        seed: int | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        device: torch.device | str = "cpu",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=0.0,
            seed=seed,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device="cpu",
            support_multi_env=True,
            supported_action_spaces=self.action_spaces,
        )
        if _init_setup_model:
            self._setup_model()

    @abstractmethod
    def _tables(self) -> dict[str, torch.Tensor]:
        """The tables at the start, each (streams, ...)."""

    @abstractmethod
    def _act(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        """Actions (streams, ...) for observations (streams, ...), the best by the tables so far."""

    @abstractmethod
    def _explore(self, observations: np.ndarray) -> np.ndarray:
        """Actions (streams, ...) for observations (streams, ...) while learning."""

    @abstractmethod
    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        """Learn from a step of all streams: its observations and actions (streams, ...), and its results."""

    def _setup_model(self) -> None:
        self.set_random_seed(self.seed)
        tables = self._tables()
        self.policy = TablePolicy(self.observation_space, self.action_space, tables, self._act_of_all)
        self.tables = {name: getattr(self.policy, name).numpy() for name in tables}  # the same memory

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the learner, and its environments at their next reset."""
        super().set_random_seed(seed)
        self._rng = np.random.default_rng(seed)

    def _act_of_all(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        if len(observations) != self.n_envs:
            raise ValueError(
                f"expected one observation for each of {self.n_envs} streams, which learn each for itself, got "
                f"{len(observations)}"
            )
        return self._act(observations, deterministic)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "tables"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], []

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> VectorisedAlgorithm:
        """Learn from so many transitions, over all streams; arguments as of every Stable-Baselines3 algorithm."""
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        assert self.env is not None
        assert self.ep_info_buffer is not None
        episodes = EpisodeReturns(self.env.num_envs)
        callback.on_training_start(locals(), globals())
        callback.on_rollout_start()
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            observations: Any = self._last_obs
            actions = self._explore(observations)
            steps = step_vec_env(self.env, actions)
            # Environments of SB3 round rewards to float32.
            steps = steps._replace(rewards=np.asarray(steps.rewards, dtype=np.float64))
            self.num_timesteps += self.env.num_envs
            self._learn_from(observations, actions, steps)
            self._last_obs = steps.observations
            rewards, dones = steps.rewards, steps.terminations | steps.truncations
            self.ep_info_buffer.extend(episodes.add(rewards, np.flatnonzero(dones), self.ep_info_buffer.maxlen))
            callback.update_locals({**locals(), "infos": []})
            if not callback.on_step():
                break
            del rewards, dones  # callbacks look for them among the locals
        callback.on_rollout_end()
        callback.on_training_end()
        return self


class ScoringAlgorithm(VectorisedAlgorithm):
    """Base of those that score the actions of a discrete space and take the best."""

    @abstractmethod
    def _score(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        """Scores (streams, actions) of which the best is acted on, for observations (streams, ...)."""

    def _act(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        return self._score(observations, deterministic).argmax(axis=1)

    def _explore(self, observations: np.ndarray) -> np.ndarray:
        return break_ties(self._score(observations, deterministic=False), self._rng)


def state_count(space: spaces.Space) -> int:
    """Number of elements of a discrete space; a `ValueError` for another."""
    sizes = categories(space)
    if sizes is None:
        raise ValueError(
            f"a table needs observations of a Discrete, MultiDiscrete or MultiBinary space, got {space}, which is "
            "also what Dict and Tuple observations are flattened to: give the environment a MultiDiscrete, or take A2C"
        )
    return int(np.prod(sizes))


def state_numbers(observations: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Numbers (streams,) of elements (streams, ...) of a discrete space."""
    sizes = categories(space)
    assert sizes is not None
    return observations if observations.ndim == 1 else np.ravel_multi_index(tuple(observations.T), tuple(sizes))
