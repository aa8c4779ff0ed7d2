"""Stable-Baselines3 learners by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Sequence
from numbers import Integral, Real
from pydoc import ErrorDuringImport, locate
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from ad_hf.sources.streams import StreamAlgorithm

ALGORITHM_PACKAGES = (
    *("stable_baselines3", "sb3_contrib"),
    *("ad_hf.sources.bandits", "ad_hf.sources.noised", "ad_hf.sources.tabular"),
)
# Ranges of numbers that most algorithms take, which they check late or never: 0 steps are an endless loop.
COUNTS = {"n_steps", "n_epochs", "batch_size", "buffer_size", "train_freq", "policy_delay"}
SHARES = {"gamma", "gae_lambda", "tau", "exploration_initial_eps", "exploration_final_eps"}


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


def _as_objects(settings: dict[str, Any], name: str = "source.hyperparameters.") -> dict[str, Any]:
    """
    Settings, nested ones too, with what JSON has none of: classes for their import paths, and tuples for lists of a
    number and its unit, as in `train_freq: [1, episode]`.
    """
    found = {}
    for key, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}{key} must be a finite number, got {value}")
        if isinstance(value, dict):
            value = _as_objects(value, f"{name}{key}.")
        elif isinstance(value, list) and [isinstance(each, str) for each in value] == [False, True]:
            value = tuple(value)
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


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types of an annotation, without what they hold."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for each in get_args(hint) for kind in _kinds(each))
    kind = get_origin(hint) or hint
    return (kind,) if isinstance(kind, type) and kind is not Any else (object,)


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a type that an algorithm's annotation does not have, or out of its range."""
    kinds = _kinds(hint)
    wider = {int: Integral, float: Real}  # of numpy's numbers, too
    fits = value is None or any(isinstance(value, wider.get(kind, kind)) for kind in kinds)
    if isinstance(value, bool) and not {bool, object} & set(kinds):
        fits = False
    if not fits:
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"source.hyperparameters.{name} must be of type {names}, got {value!r}")
    number: Any = value[0] if isinstance(value, tuple) and value else value
    if isinstance(number, int | float) and (
        (name in COUNTS and number < 1) or (name in SHARES and not 0 <= number <= 1)
    ):
        expected = "at least 1" if name in COUNTS else "from 0 to 1"
        raise ValueError(f"source.hyperparameters.{name} must be {expected}, got {value!r}")


def check_hyperparameters(algorithm: str, hyperparameters: Any) -> dict[str, Any]:
    """
    Hyper-parameters as an algorithm takes them: classes for import paths, and tuples for lists such as
    `[1, "episode"]`.

    Raises:
        ValueError: naming the setting, for those that the algorithm does not take, for values of another type than its
            annotations have, for numbers that are not finite or out of their range, and classes that do not exist.
    """
    if not isinstance(hyperparameters, dict):
        raise ValueError(f"source.hyperparameters must hold settings by their names, got {hyperparameters!r}")
    found = find_algorithm(algorithm)
    accepted = set(inspect.signature(found).parameters) - {"env", "seed", "_init_setup_model"}
    unknown = sorted(map(str, set(hyperparameters) - accepted))
    if unknown:
        raise ValueError(
            f"{algorithm} takes no hyper-parameter {', '.join(map(repr, unknown))}: expected "
            f"{', '.join(sorted(accepted))}"
        )
    arguments = _as_objects(hyperparameters)
    try:
        hints = get_type_hints(found.__init__, localns={"VecEnv": VecEnv})
    except NameError:  # of an annotation that is there for type checkers alone
        hints = {}
    for name, value in arguments.items():
        _check_value(name, value, hints.get(name, object))
    return arguments


def callback_settings(given: Sequence[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Callbacks with all that can be said about them: an import path alone stands for one without arguments.

    Raises:
        ValueError: for what is no import path of a Stable-Baselines3 callback, and arguments that it does not take.
    """
    if isinstance(given, str | dict) or not isinstance(given, Sequence):
        raise ValueError(f"source.callbacks must be a list of callbacks, got {given!r}")
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


def make_learner(algorithm: str, envs: VecEnv, seed: int | None, hyperparameters: dict[str, Any]) -> BaseAlgorithm:
    """
    A learner on environments, ready for `learn()`.

    Args:
        algorithm (`str`):
            Name of a Stable-Baselines3 or sb3-contrib algorithm.
        envs (`VecEnv`):
            Its environments.
        seed (`int`, *optional*):
            Seed of the learner and its environments.
        hyperparameters (`dict`):
            Arguments of the algorithm, as of [`check_hyperparameters`]. `policy` defaults to the one that fits the
            observations: a CNN for what SB3 takes for images, bytes from 0 to 255. `device` defaults to the CPU.

    Raises:
        ValueError: for what [`check_hyperparameters`] refuses.
    """
    given = check_hyperparameters(algorithm, hyperparameters)
    space = envs.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    arguments = {"policy": policy, "device": "cpu", "verbose": 0, **given}
    learner = find_algorithm(algorithm)(env=envs, seed=seed, **arguments)
    if not (arguments["verbose"] or arguments.get("tensorboard_log")):
        # That which it would make by itself leaves an empty temporary folder behind, for each learner.
        learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner
