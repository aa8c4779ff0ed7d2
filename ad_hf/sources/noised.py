"""Histories without reinforcement learning: a policy whose noise goes down (https://huggingface.co/papers/2312.12275)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from ad_hf.envs.imports import import_callable
from ad_hf.envs.sb3 import SB3VecEnv, VecStep
from ad_hf.sources.sb3_algorithms import SB3_ALGORITHMS, find_in
from ad_hf.sources.vectorised import TablePolicy, VectorisedAlgorithm

SCHEDULES = ("step", "episode")


class NoisedPolicy(VectorisedAlgorithm):
    r"""
    A policy, the expert, with uniformly random actions in place of its own with a probability epsilon that falls over
    a history: AD^eps. Its histories look like learning, and **no reinforcement learning takes place**: nothing learns
    from rewards. It has Stable-Baselines3's interface, so that `collect` seeds and resumes it as a source.

    The history of a stream is all steps of one call of `learn`.

    Args:
        policy, env, common:
            As of [`~ad_hf.sources.vectorised.VectorisedAlgorithm`]. Actions are Discrete, MultiDiscrete,
            MultiBinary or Box.
        expert (`str` or `dict`):
            Import path of a function of observations (streams, ...), as the source sees them, and the vector
            environment underneath that returns actions (streams, ...), such as `"ad_hf.envs.dark_room.expert"`. Or a
            model that Stable-Baselines3 has saved, `{"algorithm": "A2C", "path": "models/{task_id}.zip"}`, where
            `{task_id}` stands for the id of a stream's task; `"deterministic": False` samples its actions. Such a file
            can run code when it is read: give only those that you trust.
        start_epsilon, end_epsilon (`float` or `[float, float]`, *optional*, defaults to 1.0 and 0.0):
            Probability of a random action at the start, and at the end. Of two numbers, each stream draws its own
            between them. An `end_epsilon` above 0 is a history whose end is not yet good.
        decay (`float` or `[float, float]`, *optional*, defaults to 0.9):
            Share of the history, in (0, 1], after which epsilon has come down; of two numbers, each stream draws its
            own.
        schedule (`str`, *optional*, defaults to `"step"`):
            Epsilon falls linearly with the steps of the history: `"step"` at each of them, as in the paper,
            `"episode"` at the start of each episode, throughout which it is the same.

    Raises:
        ValueError: for an expert that is none, and for numbers out of their range.
    """

    action_spaces: ClassVar = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TablePolicy, "CnnPolicy": TablePolicy}

    def __init__(
        self,
        policy: str,
        env: Any,
        expert: str | dict[str, Any] | None = None,
        start_epsilon: float | Sequence[float] = 1.0,
        end_epsilon: float | Sequence[float] = 0.0,
        decay: float | Sequence[float] = 0.9,
        schedule: str = "step",
        **common: Any,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        self.expert, self.schedule = expert, schedule
        ranges = {"start_epsilon": start_epsilon, "end_epsilon": end_epsilon, "decay": decay}
        self._ranges = {name: _range(name, value) for name, value in ranges.items()}
        if self._ranges["decay"][0] == 0:
            raise ValueError(f"decay must be above 0, got {decay}")
        super().__init__(policy, env, **common)

    def _setup_model(self) -> None:
        if self.env is not None:
            self._task_ids = getattr(self.env.unwrapped, "task_ids", None)
        # Before seeding: to load a model seeds all random numbers with a seed of its own.
        self._act_as_expert = self._find_expert()
        super()._setup_model()
        self._epsilon = np.array(self.tables["start_epsilon"])
        self._starting = np.ones(self.n_envs, dtype=bool)

    def _find_expert(self) -> Callable[[np.ndarray], np.ndarray]:
        """From observations (streams, ...) to the expert's actions (streams, ...)."""
        if isinstance(self.expert, dict):
            return self._load_models(self.expert)
        function = import_callable(self.expert, "expert")
        return lambda observations: function(observations, self._environments())

    def _environments(self) -> Any:
        """The environments under all that wraps them."""
        if self.env is None:
            raise ValueError("an expert that is a function looks at its environments: give some, by set_env or load")
        envs = self.env.unwrapped
        return envs.envs.unwrapped if isinstance(envs, SB3VecEnv) else envs

    def _load_models(self, settings: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
        """The action of each stream's model."""
        if not {"algorithm", "path"} <= set(settings) <= {"algorithm", "path", "deterministic"}:
            raise ValueError(f"a model that is an expert has algorithm, path and maybe deterministic, got {settings}")
        algorithm, path = find_in(SB3_ALGORITHMS, settings["algorithm"]), str(settings["path"])
        if "{task_id}" in path and self._task_ids is None:
            raise ValueError(f"the environments do not tell their tasks, by which {path} names a model: use collect")
        paths = [path.replace("{task_id}", str(task_id)) for task_id in self._task_ids or [0] * self.n_envs]
        models = [
            (_load_model(algorithm, path), np.flatnonzero(np.array(paths) == path)) for path in dict.fromkeys(paths)
        ]
        deterministic = settings.get("deterministic", True)

        def act(observations: np.ndarray) -> np.ndarray:
            actions = np.zeros((self.n_envs, *(self.action_space.shape or ())), dtype=self.action_space.dtype)
            for model, streams in models:
                actions[streams] = model.predict(observations[streams], deterministic=deterministic)[0]
            return actions

        return act

    def _tables(self) -> dict[str, torch.Tensor]:
        return {
            name: torch.as_tensor(self._rng.uniform(low, high, size=self.n_envs))
            for name, (low, high) in self._ranges.items()
        }

    def _act(self, observations: np.ndarray, deterministic: bool) -> np.ndarray:
        actions = np.asarray(self._act_as_expert(observations), dtype=self.action_space.dtype)
        expected = (self.n_envs, *(self.action_space.shape or ()))
        if actions.shape != expected:
            raise ValueError(
                f"expected actions of shape {expected} from the expert {self.expert}, got {actions.shape}"
            )
        return actions

    def _explore(self, observations: np.ndarray) -> np.ndarray:
        tables, progress = self.tables, 1 - self._current_progress_remaining
        share = np.minimum(progress / tables["decay"], 1)
        epsilon = tables["start_epsilon"] + share * (tables["end_epsilon"] - tables["start_epsilon"])
        changing = self.schedule == "step" or self._starting | (self.num_timesteps == 0)
        self._epsilon = np.where(changing, epsilon, self._epsilon)
        at_random = self._rng.random(self.n_envs) < self._epsilon
        actions = np.array(self._act(observations, deterministic=False))  # the expert's own array stays as it is
        actions[at_random] = self._random_actions(int(at_random.sum()))
        return actions

    def _random_actions(self, number: int) -> np.ndarray:
        """Uniformly random actions (number, ...)."""
        space: Any = self.action_space
        size = (number, *space.shape)
        if isinstance(space, spaces.Box):
            return self._rng.uniform(space.low, space.high, size=size)
        if isinstance(space, spaces.MultiBinary):
            return self._rng.integers(2, size=size)
        counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
        return space.start + self._rng.integers(counts, size=size)

    def _learn_from(self, observations: np.ndarray, actions: np.ndarray, steps: VecStep) -> None:
        self._starting = steps.terminations | steps.truncations  # nothing is learnt

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_act_as_expert"]


def _range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """A number, or two, as the lowest and the highest."""
    numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if len(numbers) not in (1, 2) or not 0 <= numbers[0] <= numbers[-1] <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], or the lowest and the highest of a range, got {value}")
    return float(numbers[0]), float(numbers[-1])


def _load_model(algorithm: type[BaseAlgorithm], path: str) -> BaseAlgorithm:
    try:
        return algorithm.load(path, device="cpu")
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no model {path!r}, which is to be noised: save it there, or give another"
        ) from error
