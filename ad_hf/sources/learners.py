"""Learners by name, or by the import path of their class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from ad_hf.envs.imports import import_callable
from ad_hf.envs.making import read_calls
from ad_hf.sources import bandits, noised, tabular
from ad_hf.sources.config import SourceConfig, takes_class
from ad_hf.sources.sb3_algorithms import SB3_ALGORITHMS, Algorithms, algorithms_of, find_in
from ad_hf.sources.vectorised import VectorisedAlgorithm

# Ranges of numbers that most algorithms take, which they check late or never: 0 steps are an endless loop.
COUNTS = {"n_steps", "n_epochs", "batch_size", "buffer_size", "train_freq", "policy_delay"}
SHARES = {"gamma", "gae_lambda", "tau", "exploration_initial_eps", "exploration_final_eps"}
NO_HYPERPARAMETERS = {"env", "envs", "seed", "_init_setup_model"}


def available_algorithms() -> Algorithms:
    """Every algorithm that can be a source, by name: Stable-Baselines3's, if installed sb3-contrib's, and our own."""
    return SB3_ALGORITHMS | algorithms_of(bandits) | algorithms_of(noised) | algorithms_of(tabular)


def find_algorithm(name: str) -> Any:
    """
    The algorithm of a name such as `"A2C"`, or of the import path of a class: one of Stable-Baselines3, or a
    [`~ad_hf.sources.vector_learner.VectorLearner`].

    Raises:
        ValueError: with all names for an unknown one, with the cause for what cannot be imported, and for classes that
            are no learners.
    """
    if "." not in name:
        try:
            return find_in(available_algorithms(), name)
        except ValueError as error:
            raise ValueError(f"{error}, or the import path of a class such as my_package.learners.MyPPO") from None
    imported = _import_class(name, "source.algorithm")
    if issubclass(imported, BaseAlgorithm):
        return imported
    accepted, takes_others = _arguments_of(imported)
    try:
        inspect.signature(imported.learn).bind(None, 1)  # type: ignore[attr-defined]
        is_learner = takes_others or {"envs", "seed"} <= set(accepted)
    except (AttributeError, TypeError):
        is_learner = False
    if not is_learner:
        raise ValueError(
            f"source.algorithm: {name} is no learner: expected a class that derives from Stable-Baselines3's "
            "BaseAlgorithm, or one with __init__(self, envs, seed, ...) and learn(self, total_timesteps)"
        )
    return imported


def learns_side_by_side(algorithm: str) -> bool:
    """Whether one learner of an algorithm can learn several tasks, none of which changes what it does in another."""
    return issubclass(find_algorithm(algorithm), VectorisedAlgorithm)


def has_independent_streams(algorithm: str, hyperparameters: dict[str, Any]) -> bool | None:
    """Whether an algorithm learns in each of its environments as if there were no other; `None` if nobody knows."""
    found = find_algorithm(algorithm)
    if not issubclass(found, BaseAlgorithm):
        return getattr(found, "independent_streams", None)
    return issubclass(found, VectorisedAlgorithm) and not hyperparameters.get("shared", False)


def _import_class(path: str, name: str, base: type = object) -> type:
    """The class of an import path."""
    imported = import_callable(path, name)
    if not inspect.isclass(imported) or not issubclass(imported, base) or inspect.isabstract(imported):
        kind = "" if base is object else f" that derives from {base.__name__}"
        raise ValueError(f"{name} must be the import path of a class{kind}, got {path!r}, which is none")
    return imported


def _as_objects(settings: dict[str, Any], name: str = "source.hyperparameters.") -> dict[str, Any]:
    """
    Settings, nested ones too, with the objects that JSON lacks: classes for their import paths, and tuples for lists
    of a number and its unit, as in `train_freq: [1, episode]`.
    """
    objects = {}
    for key, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}{key} must be a finite number, got {value}")
        if isinstance(value, dict):
            value = _as_objects(value, f"{name}{key}.")
        elif isinstance(value, list) and [isinstance(each, str) for each in value] == [False, True]:
            value = tuple(value)
        elif isinstance(value, str) and takes_class(key) and (key != "policy" or "." in value):
            value = _import_class(value, f"{name}{key}")
        objects[key] = value
    return objects


def _is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, of whose elements only the class counts."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_is_of_type(value, each) for each in get_args(hint))
    if not isinstance(kind, type) or kind is object:  # `Any`, for instance
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _check_value(name: str, value: Any, hint: Any, is_sb3: bool) -> None:
    """Refuse a value of a type that an algorithm's annotation does not have, or out of the range that SB3 takes."""
    expected = None if value is None or _is_of_type(value, hint) else f"of type {inspect.formatannotation(hint)}"
    number: Any = value[0] if isinstance(value, tuple) and value else value
    if is_sb3 and expected is None and isinstance(number, int | float):
        if name in COUNTS and number < 1:
            expected = "at least 1"
        if name in SHARES and not 0 <= number <= 1:
            expected = "from 0 to 1"
    if expected is not None:
        raise ValueError(f"source.hyperparameters.{name} must be {expected}, got {value!r}")


def _arguments_of(algorithm: type) -> tuple[dict[str, Any], bool]:
    """
    The arguments of a class and their annotations, with those that it hands on to its bases as `**kwargs`, and
    whether it takes any others.
    """
    accepted: dict[str, Any] = {}
    for base in algorithm.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        try:
            hints = get_type_hints(base.__init__, localns={"VecEnv": VecEnv})  # type: ignore[misc]
        except NameError:  # of an annotation that is there for type checkers alone
            hints = {}
        kinds = {parameter.kind for parameter in parameters}
        named = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        accepted = {name: hints.get(name, object) for name in named} | accepted
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return accepted, False
    return accepted, True


def check_hyperparameters(algorithm: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """
    The arguments of an algorithm for hyper-parameters: classes for import paths, and tuples for lists such as
    `[1, "episode"]`.

    Raises:
        ValueError: naming the setting, for those that the algorithm does not take, values of another type than its
            annotations, numbers that are not finite or out of their range, and classes that do not exist.
    """
    found = find_algorithm(algorithm)
    accepted, takes_others = _arguments_of(found)
    names = set(accepted) - NO_HYPERPARAMETERS
    unknown = set(hyperparameters) - names if not takes_others else set(hyperparameters) & NO_HYPERPARAMETERS
    if unknown:
        raise ValueError(
            f"{algorithm} takes no hyper-parameter {', '.join(map(repr, sorted(map(str, unknown))))}: expected "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    arguments = _as_objects(hyperparameters)
    for name, value in arguments.items():
        _check_value(name, value, accepted.get(name, object), issubclass(found, BaseAlgorithm))
    return arguments


def make_callbacks(callbacks: Sequence[str | dict[str, Any]], **places: int) -> list[BaseCallback]:
    """
    The callbacks of a [`~ad_hf.sources.config.SourceConfig`], with numbers in place of names in braces in their
    arguments that are text: with `task_id=3`, `"saved/{task_id}"` becomes `"saved/3"`.
    """

    def fill(value: Any) -> Any:
        for name, number in places.items() if isinstance(value, str) else ():
            value = value.replace(f"{{{name}}}", str(number))
        return value

    return [
        import_callable(call["name"], "source.callbacks")(
            **{key: fill(value) for key, value in call["kwargs"].items()}
        )
        for call in read_calls(callbacks, "source.callbacks")
    ]


def check_source(source: SourceConfig, trust_remote_code: bool = False) -> None:
    """
    Refuse, with a `ValueError`, a source whose algorithm or callbacks do not exist or do not take their settings.

    A saved model as an expert, which can run code when it is read, needs `trust_remote_code`.
    """
    import_source(source)
    if isinstance(source.hyperparameters.get("expert"), dict) and not trust_remote_code:
        raise ValueError(
            "source.hyperparameters.expert is a model that Stable-Baselines3 has saved, which is unpickled and can "
            "run code: if you trust where it is from, allow it with trust_remote_code=True (--trust_remote_code)"
        )
    if source.tasks_per_job > 1 and not learns_side_by_side(source.algorithm):
        raise ValueError(
            f"{source.algorithm} learns one task at a time: set tasks_per_job to 1, got {source.tasks_per_job}"
        )
    if source.callbacks and not issubclass(find_algorithm(source.algorithm), BaseAlgorithm):
        raise ValueError(
            f"source.callbacks are Stable-Baselines3's, and {source.algorithm} is no algorithm of it: leave them out"
        )


def import_source(source: SourceConfig) -> None:
    """Import all that a source names; a `ValueError` for what does not exist, and for settings it does not take."""
    check_hyperparameters(source.algorithm, source.hyperparameters)
    for call in read_calls(source.callbacks, "source.callbacks"):
        _import_class(call["name"], "source.callbacks", BaseCallback)


def describe_source(source: SourceConfig) -> dict[str, Any]:
    """The entry `source` of `metadata.json`, with all settings of callbacks and convergence where these are used."""
    settings = asdict(source)
    del settings["seeds"]
    settings["callbacks"] = read_calls(source.callbacks, "source.callbacks")
    if convergence := source.convergence():
        settings["until_converged"] = asdict(convergence) | settings["until_converged"]
    for name in ("callbacks", "until_converged"):
        if not settings[name]:
            del settings[name]
    independent = has_independent_streams(source.algorithm, source.hyperparameters)
    return settings | ({} if independent is None else {"independent_streams": independent})


def make_learner(algorithm: str, envs: VecEnv, seed: int | None, hyperparameters: dict[str, Any]) -> BaseAlgorithm:
    """
    A learner of Stable-Baselines3 on environments, ready for `learn()`, with hyper-parameters as of
    [`check_hyperparameters`].

    `policy` defaults to the one that fits the observations: a CNN where SB3 sees images, bytes from 0 to 255. `device`
    defaults to the CPU.
    """
    space, algorithm_class = envs.observation_space, find_algorithm(algorithm)
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    accepted, takes_others = _arguments_of(algorithm_class)
    defaults = {"policy": policy, "device": "cpu", "verbose": 0}  # of which a subclass may set some itself
    arguments = {name: value for name, value in defaults.items() if takes_others or name in accepted}
    arguments |= check_hyperparameters(algorithm, hyperparameters)
    learner = algorithm_class(env=envs, seed=seed, **arguments)
    if not (arguments.get("verbose") or arguments.get("tensorboard_log")):
        # SB3's default logger would leave an empty temporary folder behind, for each learner.
        learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner
