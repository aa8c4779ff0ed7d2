"""Natively vectorised environments: their time limits, automatic resets and random numbers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

TRUTH = np.dtype(bool)
KINDS = {"rewards": ("biuf", "number"), "terminations": ("biu", "truth value"), "truncations": ("biu", "truth value")}


def check_same_step(envs: VectorEnv) -> None:
    """Refuse environments that do not autoreset in the same step."""
    if (mode := envs.metadata.get("autoreset_mode")) is not AutoresetMode.SAME_STEP:
        raise ValueError(f"expected environments with autoreset_mode=AutoresetMode.SAME_STEP, got {mode}")


def _check_form(returned: Any, names: tuple[str, ...], what: str) -> None:
    """Refuse the values of a reset or a step unless there is one for each name, and infos, the last, are a dict."""
    if not isinstance(returned, tuple) or len(returned) != len(names):
        size = f" of {len(returned)} values" if isinstance(returned, tuple | list) else ""
        raise ValueError(f"{what} returned a {type(returned).__name__}{size}, expected {', '.join(names)}")
    if not isinstance(returned[-1], dict):
        raise ValueError(
            f"{what} returned infos as a {type(returned[-1]).__name__}, expected gymnasium's dict of arrays: leave "
            "out the wrapper that changes their form"
        )


def checked_reset(returned: Any, envs: Any, step: int) -> tuple[Any, dict[str, Any]]:
    """Observations and infos of a vector environment's reset; a `ValueError` for anything else."""
    _check_form(returned, ("observations", "infos"), f"step {step}: the reset of {envs}")
    return returned


def checked_step(
    returned: Any, envs: Any, step: int
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """The values of a vector environment's step, in arrays; a `ValueError` with its number for another form."""
    _check_form(returned, ("observations", *KINDS, "infos"), f"step {step}: {envs}")
    _, rewards, terminations, truncations, _ = returned
    if type(rewards) is type(terminations) is type(truncations) is np.ndarray and (
        rewards.dtype.kind == "f"
        and terminations.dtype is truncations.dtype is TRUTH
        and rewards.shape == terminations.shape == truncations.shape == (envs.num_envs,)
    ):
        return returned  # fast: the checks below take longer than some environments
    arrays = [np.asarray(values) for values in returned[1:4]]
    for array, (name, (kinds, expected)) in zip(arrays, KINDS.items()):
        if array.shape != (envs.num_envs,) or array.dtype.kind not in kinds:
            raise ValueError(
                f"step {step}: {envs} returned {name} of shape {array.shape} and dtype {array.dtype}, expected a "
                f"{expected} for each of {envs.num_envs} environments"
            )
    return returned[0], arrays[0], arrays[1].astype(bool), arrays[2].astype(bool), returned[4]


def final_observations(infos: dict[str, Any], envs: Any, step: int) -> Any:
    """The last observations (num_envs, ...) of the episodes that a step ended; a `ValueError` without them."""
    if infos.get("final_obs") is None:
        raise ValueError(
            f"step {step}: {envs} ended episodes without their last observations, expected infos['final_obs'] of "
            "environments with autoreset_mode=AutoresetMode.SAME_STEP"
        )
    return infos["final_obs"]


class NativeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    r"""
    Base of environments whose dynamics are written for many at once, in numpy arrays.

    A subclass starts episodes (`_start`), acts (`_move`), and observes (`_observe`, `_information`). Each environment
    has its own random numbers, so that environment i with seed s lives through the same as a single environment with
    seed s + i. `max_episode_steps` truncate an episode.

    Args:
        autoreset_mode (`AutoresetMode` or `str`, *optional*, defaults to `"SameStep"`):
            Any of gymnasium's modes. In SAME_STEP, `info["final_obs"]` is an array (num_envs, ...) whose rows are
            valid where `info["_final_obs"]` is set.
        render_mode (`str`, *optional*):
            `"rgb_array"` or `None`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        max_episode_steps: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._seeds: list[int | None] = [None] * num_envs
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)

    def _points(self, name: str, points: Any, kinds: str) -> np.ndarray:
        """Points (num_envs, 2) of an argument that gives one for each environment, or one for all."""
        array = np.asarray(points)
        if array.shape not in ((2,), (self.num_envs, 2)) or array.dtype.kind not in kinds:
            numbers = "numbers" if "f" in kinds else "integers"
            raise ValueError(
                f"{name} must hold {numbers} (x, y) in shape (2,) or ({self.num_envs}, 2), got {points!r}"
            )
        return np.broadcast_to(array, (self.num_envs, 2))

    def _start(self, indices: np.ndarray) -> None:
        """Start an episode in some environments (number,)."""
        raise NotImplementedError

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Act (num_envs, ...) in all environments; returns rewards (float64) and terminations (bool), (num_envs,).

        `_elapsed` still is the number of steps before this one.
        """
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        """A new array of observations (num_envs, ...)."""
        raise NotImplementedError

    def _information(self) -> dict[str, np.ndarray]:
        """New arrays (num_envs,), by name, that a learner may see beside the observations."""
        return {}

    def _frame(self, index: int) -> np.ndarray:
        """A picture (height, width, 3) of an environment."""
        raise NotImplementedError

    def _generator(self, index: int) -> np.random.Generator:
        """The random numbers of an environment, from its first need of them on."""
        generator = self._generators[index]
        if generator is None:
            generator = self._generators[index] = np_random(self._seeds[index])[0]
        return generator

    def _restart(self, mask: np.ndarray) -> None:
        """Start an episode where a mask (num_envs,) says so."""
        self._elapsed[mask] = 0
        self._ended[mask] = False
        self._start(np.flatnonzero(mask))

    def _infos(self, mask: np.ndarray) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for name, values in self._information().items():
            infos |= {name: values, f"_{name}": mask.copy()}
        return infos

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None):
        """
        Start an episode in all environments, or in those of `options["reset_mask"]` (num_envs,).

        Environment i takes the seed `seed + i`, or `seed[i]`; its random numbers go on without one. Returns
        observations (num_envs, ...), and infos.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        everywhere = np.ones(self.num_envs, dtype=bool)
        mask = everywhere if options is None else np.asarray(options.get("reset_mask", everywhere))
        if seed is not None:
            seeds = [seed + index for index in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            for index in np.flatnonzero(mask):
                if seeds[index] is not None:
                    self._seeds[index], self._generators[index] = seeds[index], None
        self._restart(mask)
        return self._observe(), self._infos(mask)

    def step(self, actions: np.ndarray):
        """Act; returns observations (num_envs, ...), rewards, terminations and truncations (num_envs,), and infos."""
        resetting = None
        if self.autoreset_mode is not AutoresetMode.SAME_STEP and self._ended.any():
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise RuntimeError("an episode has ended: call reset(options={'reset_mask': ...}) first")
            resetting = self._ended.copy()
        rewards, terminations = self._move(actions)
        self._elapsed += 1
        truncations = self._elapsed >= self.max_episode_steps
        if resetting is not None:
            self._restart(resetting)
            rewards[resetting] = 0.0
            terminations[resetting] = truncations[resetting] = False
        self._ended = ended = terminations | truncations
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            ended = ended.copy()  # since restarting clears it
            infos = {"final_obs": self._observe(), "_final_obs": ended}
            if final := self._infos(ended):
                infos |= {"final_info": final, "_final_info": ended.copy()}
            self._restart(ended)
        infos |= self._infos(np.ones(self.num_envs, dtype=bool))
        return self._observe(), rewards, terminations, truncations, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture (height, width, 3) of each environment, or `None` without a render mode."""
        return tuple(map(self._frame, range(self.num_envs))) if self.render_mode == "rgb_array" else None


class SingleEnv(gym.Env[Any, np.int64]):
    """A native vector of one, with its settings but without a limit to its episodes, which `gym.make` adds."""

    vector_class: type[Any]
    metadata = NativeVectorEnv.metadata

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings |= {"max_episode_steps": 2**62, "autoreset_mode": AutoresetMode.DISABLED}
        self.vector: NativeVectorEnv = self.vector_class(1, *arguments, **settings)
        self.render_mode = self.vector.render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def _information(self) -> dict[str, Any]:
        return {name: values[0].item() for name, values in self.vector._information().items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; returns an observation and infos."""
        super().reset(seed=seed)
        self.vector._generators[0] = self.np_random
        self.vector._restart(np.ones(1, dtype=bool))
        return self.vector._observe()[0], self._information()

    def step(self, action: np.int64):
        """Act; returns an observation, a reward, whether the episode terminates, `False`, and infos."""
        rewards, terminations = self.vector._move(np.array([action]))
        self.vector._elapsed += 1
        return self.vector._observe()[0], float(rewards[0]), bool(terminations[0]), False, self._information()

    def render(self) -> np.ndarray | None:
        """A picture (height, width, 3), or `None` without a render mode."""
        frames = self.vector.render()
        return None if frames is None else frames[0]


def of_each(envs: Any, name: str) -> np.ndarray:
    """An attribute (num_envs, ...) of a native vector, or of a vector whose `envs` are single ones of its kind."""
    if isinstance(envs, NativeVectorEnv):
        return getattr(envs, name)
    return np.concatenate([getattr(env.unwrapped.vector, name) for env in envs.envs])
