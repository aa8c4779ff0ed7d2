"""Environments as a rollout takes them: of any kind and autoreset mode, one step after another, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks_ad import SIZES, as_array, element_shape, wrong_elements

if TYPE_CHECKING:
    from .configuration_ad import ADConfig

MODES = {"SameStep", "NextStep", "Disabled"}


def check_spaces(config: ADConfig, envs: Any) -> None:
    """Refuse environments with other spaces than a model's: a `ValueError` that names both."""
    for name, space in (
        ("observation_space", envs.single_observation_space),
        ("action_space", envs.single_action_space),
    ):
        wanted = getattr(config, name)
        kind = type(space).__name__
        size = np.array(getattr(space, SIZES[kind])).tolist() if kind in SIZES else None
        fits = kind == wanted["type"] and size == wanted[SIZES[kind]] and not np.any(getattr(space, "start", 0))
        if fits and kind == "Box" and name == "action_space":  # the bins of an action lie between its bounds
            fits = space.low.tolist() == wanted["low"] and space.high.tolist() == wanted["high"]
        if not fits:
            raise ValueError(f"the environments' {name} is {space}, the model was trained for {wanted}")


def make_envs(envs: Any, env_kwargs: Any) -> Any:
    """
    A gymnasium vector environment.

    Args:
        envs (`gymnasium.vector.VectorEnv`, `gymnasium.Env` or `str`):
            One already, a single environment, or the id of environments to make.
        env_kwargs (`Mapping` or a sequence of them, *optional*):
            Keyword arguments of each of the latter.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(envs, str) and env_kwargs is not None:
        raise ValueError("env_kwargs are for environments that are made from an id; got environments as well")
    if hasattr(envs, "single_observation_space"):
        return envs
    if not isinstance(envs, str) and not all(hasattr(envs, name) for name in ("reset", "step", "observation_space")):
        raise ValueError(f"envs must be a gymnasium VectorEnv, an Env or the id of one, got {envs!r}")
    try:  # what follows needs gymnasium; a model that is given vector environments does not
        import gymnasium as gym
        from gymnasium.vector import AutoresetMode, SyncVectorEnv
    except ImportError as error:
        raise ImportError("single environments, and ids of environments, need `pip install gymnasium`") from error
    if not isinstance(envs, str):
        return SyncVectorEnv([lambda: envs], autoreset_mode=AutoresetMode.DISABLED)
    many = [env_kwargs or {}] if env_kwargs is None or isinstance(env_kwargs, Mapping) else env_kwargs
    if not isinstance(many, list | tuple) or not many or not all(isinstance(kwargs, Mapping) for kwargs in many):
        raise ValueError(
            f"env_kwargs must be keyword arguments, or a list of them for each environment to make, got {env_kwargs!r}"
        )
    makers = [partial(gym.make, envs, **kwargs) for kwargs in many]
    try:
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        given = "" if env_kwargs is None else f" with env_kwargs {env_kwargs!r}"
        raise ValueError(
            f"the environment {envs!r} could not be made{given}: {' '.join(str(error).split())}"
        ) from error


class Environments:
    """
    Vector environments whose episodes follow each other alike in every autoreset mode.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            The environments.
        config ([`ADConfig`]):
            The model's, with whose spaces theirs must agree.
        needs_last (`bool`, *optional*, defaults to `True`):
            Whether the last observations of episodes are needed, which environments of `SAME_STEP` mode may leave out.

    Attributes:
        observations (`np.ndarray` of shape `(num_envs, ...)`):
            What is seen now.
        starts (`np.ndarray` of shape `(num_envs,)`):
            Whether it is the first of an episode.
        resetting (`np.ndarray` of shape `(num_envs,)`):
            Environments that only reset in the next step, which is no experience.
        rewards (`np.ndarray` of shape `(num_envs,)`):
            The last rewards that were experience.
    """

    def __init__(self, envs: Any, config: ADConfig, needs_last: bool = True) -> None:
        check_spaces(config, envs)
        self.mode = getattr((getattr(envs, "metadata", None) or {}).get("autoreset_mode"), "value", None)
        if self.mode not in MODES:
            raise ValueError(f"the environments must state their autoreset_mode in metadata, got {self.mode}")
        self.needs_last = needs_last
        self.envs, self.num_envs = envs, int(envs.num_envs)
        self._space: dict[str, Any] = config.observation_space or {}
        self._shape = (self.num_envs, *element_shape(self._space))
        self._steps = 0

    def reset(self, seed: int) -> None:
        """Begin: environment i with `seed + i`."""
        self.observations = self._checked(self._reset(seed=seed), np.ones(self.num_envs, dtype=bool))
        self.starts = np.ones(self.num_envs, dtype=bool)
        self.resetting = np.zeros(self.num_envs, dtype=bool)
        self.rewards = np.zeros(self.num_envs)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Take a step.

        Returns:
            Terminations and truncations (num_envs,), false where the step was a reset, and the observations
            (num_envs, ...) that the step led to, which are the last ones of the episodes that ended.
        """
        try:
            result = self.envs.step(actions)
        except (TypeError, ValueError) as error:  # as of gymnasium, when it cannot stack what environments return
            raise ValueError(f"step {self._steps + 1}: the environments could not be stepped: {error}") from error
        self._steps += 1
        if not isinstance(result, tuple) or len(result) != 5:
            raise ValueError(
                f"step {self._steps}: step must return observations, rewards, terminations, truncations, infos; got "
                f"{type(result).__name__} of {len(result) if isinstance(result, tuple) else 1}"
            )
        observations, rewards, terminations, truncations, infos = result
        acted = ~self.resetting
        self.rewards = np.where(acted, self._checked_rewards(rewards, acted), self.rewards)
        terminations = self._checked_flags(terminations, "terminations") & acted
        truncations = self._checked_flags(truncations, "truncations") & acted
        ended = terminations | truncations
        # A copy, as environments may write what comes next to the same array.
        observations = np.array(self._checked(observations, np.ones(self.num_envs, dtype=bool)))
        reached = observations
        if self.mode == "NextStep":
            self.starts, self.resetting = self.resetting, ended
        else:
            self.starts = ended
            if self.mode == "SameStep" and ended.any():
                reached = self._last_observations(observations, infos, ended)
            elif ended.any():
                observations = np.array(self._checked(self._reset(options={"reset_mask": ended.copy()}), ended))
        self.observations = observations
        return terminations, truncations, reached

    def _reset(self, **arguments: Any) -> Any:
        try:
            result = self.envs.reset(**arguments)
        except (TypeError, ValueError) as error:  # as in step
            raise ValueError(f"step {self._steps}: the environments could not be reset: {error}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"step {self._steps}: reset must return observations and infos, got {type(result).__name__}"
            )
        return result[0]

    def _last_observations(self, observations: np.ndarray, infos: Any, ended: np.ndarray) -> np.ndarray:
        """Observations (num_envs, ...), of episodes that ended their last ones, where the environments give them."""
        last = infos.get("final_obs") if isinstance(infos, Mapping) else None
        envs = [env for env in np.flatnonzero(ended).tolist() if last is not None and last[env] is not None]
        missing = int(ended.sum()) - len(envs)
        if missing and self.needs_last:
            raise ValueError(
                f"step {self._steps}: infos hold no final_obs of {missing} environments whose episodes ended, as "
                "those of SAME_STEP mode do; output_steps needs it"
            )
        reached = np.array(observations)
        for env in envs:
            one = as_array(last[env], "final_obs")  # type: ignore[index]
            if one.shape != self._shape[1:]:
                raise ValueError(
                    f"environment {env}, step {self._steps}: final_obs must have shape {self._shape[1:]}, got "
                    f"{one.shape}"
                )
            reached[env] = one
        return self._checked(reached, ended)

    def _checked_flags(self, flags: Any, name: str) -> np.ndarray:
        array = as_array(flags, name)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "biu":
            raise ValueError(
                f"step {self._steps}: {name} must have shape ({self.num_envs},), one truth value for each "
                f"environment; got {array.dtype} of shape {array.shape}"
            )
        return array.astype(bool, copy=False)

    def _checked(self, observations: Any, rows: np.ndarray) -> np.ndarray:
        array = as_array(observations, "observations")
        if array.shape != self._shape or array.dtype.kind not in "biuf":
            raise ValueError(
                f"step {self._steps}: observations have shape {array.shape}, expected {self._shape}, of numbers; got "
                f"{array.dtype}"
            )
        wrong = wrong_elements(array, self._space) & rows
        if wrong.any():
            env = int(np.argmax(wrong))
            raise ValueError(
                f"environment {env}, step {self._steps}: the observation {array[env].tolist()} is no element of "
                f"{self._space}"
            )
        return array

    def _checked_rewards(self, rewards: Any, rows: np.ndarray) -> np.ndarray:
        array = as_array(rewards, "rewards")
        if array.shape != (self.num_envs,) or array.dtype.kind not in "biuf":
            raise ValueError(
                f"step {self._steps}: rewards have shape {array.shape}, expected ({self.num_envs},), one number for "
                f"each environment; got {array.dtype}"
            )
        wrong = ~np.isfinite(array) & rows
        if wrong.any():
            env = int(np.argmax(wrong))
            raise ValueError(f"environment {env}, step {self._steps}: the reward {array[env]} is not finite")
        return array


__all__ = ["Environments", "check_spaces", "make_envs"]
