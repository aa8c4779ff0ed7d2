"""Stable-Baselines3 learners by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Sequence
from pydoc import ErrorDuringImport, locate
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from ad_hf.sources.streams import StreamAlgorithm

ALGORITHM_PACKAGES = (
    *("stable_baselines3", "sb3_contrib"),
    *("ad_hf.sources.bandits", "ad_hf.sources.noised", "ad_hf.sources.tabular"),
)


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


def learns_side_by_side(algorithm: str) -> bool:
    """Whether one learner of an algorithm can learn several tasks, none of which changes what it does in another."""
    return issubclass(find_algorithm(algorithm), StreamAlgorithm)


def has_independent_streams(algorithm: str, hyperparameters: dict[str, Any]) -> bool:
    """Whether an algorithm learns in each of its environments as if there were no other."""
    return learns_side_by_side(algorithm) and not hyperparameters.get("shared", False)


def _with_classes(settings: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Settings in which classes that are given by import path are those classes, in nested settings too."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = _with_classes(value, f"{name}{key}.")
        elif isinstance(value, str) and (key.endswith("_class") or key == "activation_fn"):
            try:
                resolved = locate(value)
            except ErrorDuringImport as error:
                raise ValueError(f"{name}{key}: {value!r} cannot be imported: {error}") from error
            if not inspect.isclass(resolved):
                raise ValueError(
                    f"{name}{key} must be the import path of a class, such as 'torch.nn.ReLU', got {value!r}, which "
                    "is none"
                )
            value = resolved
        found[key] = value
    return found


def check_hyperparameters(algorithm: str, hyperparameters: dict[str, Any]) -> None:
    """Raise a `ValueError` for hyper-parameters that an algorithm does not take, and classes that do not exist."""
    accepted = set(inspect.signature(find_algorithm(algorithm)).parameters) - {"env", "seed", "_init_setup_model"}
    unknown = sorted(set(hyperparameters) - accepted)
    if unknown:
        raise ValueError(
            f"{algorithm} takes no hyper-parameter {', '.join(map(repr, unknown))}: expected "
            f"{', '.join(sorted(accepted))}"
        )
    _with_classes(hyperparameters)


def callback_settings(given: Sequence[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Callbacks with all that can be said about them: an import path alone stands for one without arguments.

    Raises:
        ValueError: for what is no import path of a Stable-Baselines3 callback, and arguments that it does not take.
    """
    settings = []
    for callback in given:
        entry: Any = {"name": callback} if isinstance(callback, str) else callback
        if not isinstance(entry, dict) or "name" not in entry or set(entry) - {"name", "kwargs"}:
            raise ValueError(
                f"a callback is an import path or {{name: import path, kwargs: {{...}}}}, got {callback!r}"
            )
        name, kwargs = entry["name"], entry.get("kwargs") or {}
        try:
            found = locate(name)
        except ErrorDuringImport as error:
            raise ValueError(f"callback {name!r} cannot be imported: {error}") from error
        if not (inspect.isclass(found) and issubclass(found, BaseCallback)) or inspect.isabstract(found):
            raise ValueError(
                f"callback {name!r} is no import path of a Stable-Baselines3 callback, such as "
                "'stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes'"
            )
        try:
            inspect.signature(found).bind(**kwargs)
        except TypeError as error:
            raise ValueError(f"callback {name!r}: {error}; its arguments are {inspect.signature(found)}") from error
        settings.append({"name": name, "kwargs": kwargs})
    return settings


def make_callbacks(settings: Sequence[dict[str, Any]], **places: int) -> list[BaseCallback]:
    """
    Callbacks from what [`callback_settings`] returns.

    Args:
        settings (`Sequence[dict]`):
            Their names and arguments.
        places (`int`):
            Numbers that take the place of their names in braces in arguments that are text: with `task_id=3`,
            `"saved/{task_id}"` becomes `"saved/3"`.
    """

    def filled(value: Any) -> Any:
        for name, number in places.items() if isinstance(value, str) else ():
            value = value.replace(f"{{{name}}}", str(number))
        return value

    return [
        locate(entry["name"])(**{name: filled(value) for name, value in entry["kwargs"].items()})  # type: ignore[operator]
        for entry in settings
    ]


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
            Classes may be given by import path, such as `{"policy_kwargs": {"activation_fn": "torch.nn.ReLU"}}`.

    Raises:
        ValueError: for hyper-parameters that the algorithm does not take, and import paths of no class.
    """
    check_hyperparameters(algorithm, hyperparameters)
    space = envs.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if isinstance(space, spaces.Box) and len(space.shape) == 3 else "MlpPolicy"
    arguments = {"policy": policy, "device": "cpu", "verbose": 0, **_with_classes(hyperparameters)}
    learner = find_algorithm(algorithm)(env=envs, seed=seed, **arguments)
    if not (arguments["verbose"] or arguments.get("tensorboard_log")):
        # That which it would make by itself leaves an empty temporary folder behind, for each learner.
        learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner
