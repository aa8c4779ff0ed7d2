"""Stable-Baselines3 learners by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

ALGORITHM_PACKAGES = ("stable_baselines3", "sb3_contrib", "ad_hf.sources.bandits", "ad_hf.sources.tabular")


def available_algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Every algorithm that can be a source, by name: Stable-Baselines3's, if installed sb3-contrib's, and our own."""
    found = {}
    for package in ALGORITHM_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            for name, value in vars(importlib.import_module(package)).items():
                if inspect.isclass(value) and issubclass(value, BaseAlgorithm) and not inspect.isabstract(value):
                    found[name] = value
    return found


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """
    The algorithm class of a name such as `"A2C"`.

    Raises:
        ValueError: if there is none, with the names that exist.
    """
    algorithms = available_algorithms()
    if name not in algorithms:
        raise ValueError(f"unknown source algorithm {name!r}: expected one of {', '.join(sorted(algorithms))}")
    return algorithms[name]


def has_independent_streams(algorithm: str) -> bool:
    """Whether an algorithm learns in each of its environments as if there were no other."""
    return getattr(find_algorithm(algorithm), "independent_streams", False)


def check_hyperparameters(algorithm: str, hyperparameters: dict[str, Any]) -> None:
    """Raise a `ValueError` that names every hyper-parameter that an algorithm does not take."""
    accepted = set(inspect.signature(find_algorithm(algorithm)).parameters) - {"env", "seed", "_init_setup_model"}
    unknown = sorted(set(hyperparameters) - accepted)
    if unknown:
        raise ValueError(
            f"{algorithm} takes no hyper-parameter {', '.join(map(repr, unknown))}: expected "
            f"{', '.join(sorted(accepted))}"
        )


def make_learner(algorithm: str, envs: VecEnv, seed: int, hyperparameters: dict[str, Any]) -> BaseAlgorithm:
    """
    A learner on environments, ready for `learn()`.

    Args:
        algorithm (`str`):
            Name of a Stable-Baselines3 or sb3-contrib algorithm.
        envs (`VecEnv`):
            Its environments.
        seed (`int`):
            Seed of the learner and its environments.
        hyperparameters (`dict`):
            Arguments of the algorithm. `policy` defaults to the one that fits the observations, `device` to the CPU.
    """
    check_hyperparameters(algorithm, hyperparameters)
    space = envs.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if isinstance(space, spaces.Box) and len(space.shape) == 3 else "MlpPolicy"
    arguments = {"policy": policy, "device": "cpu", "verbose": 0, **hyperparameters}
    learner = find_algorithm(algorithm)(env=envs, seed=seed, **arguments)
    if not (arguments["verbose"] or arguments.get("tensorboard_log")):
        # That which it would make by itself leaves an empty temporary folder behind, for each learner.
        learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner
