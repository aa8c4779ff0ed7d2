"""Stable-Baselines3 learners by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict
from pydoc import ErrorDuringImport, locate
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from ad_hf.sources.config import SourceConfig
from ad_hf.sources.vectorised import VectorisedAlgorithm

ALGORITHM_PACKAGES = (
    *("stable_baselines3", "sb3_contrib"),
    *("ad_hf.sources.bandits", "ad_hf.sources.noised", "ad_hf.sources.tabular"),
)
# Ranges of numbers that most algorithms take, which they check late or never: 0 steps are an endless loop.
COUNTS = {"n_steps", "n_epochs", "batch_size", "buffer_size", "train_freq", "policy_delay"}
SHARES = {"gamma", "gae_lambda", "tau", "exploration_initial_eps", "exploration_final_eps"}
NO_HYPERPARAMETERS = {"env", "seed", "_init_setup_model", "common"}


def available_algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Every algorithm that can be a source, by name: Stable-Baselines3's, if installed sb3-contrib's, and our own."""
    packages = [importlib.import_module(name) for name in ALGORITHM_PACKAGES if importlib.util.find_spec(name)]
    return {
        name: value
        for package in packages
        for name, value in vars(package).items()
        if inspect.isclass(value) and issubclass(value, BaseAlgorithm) and not inspect.isabstract(value)
    }


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
    return issubclass(find_algorithm(algorithm), VectorisedAlgorithm)


def has_independent_streams(algorithm: str, hyperparameters: dict[str, Any]) -> bool:
    """Whether an algorithm learns in each of its environments as if there were no other."""
    return learns_side_by_side(algorithm) and not hyperparameters.get("shared", False)


def _import_class(path: Any, name: str, base: type = object) -> type:
    """The class of an import path."""
    try:
        found = locate(path) if isinstance(path, str) else None
    except ErrorDuringImport as error:
        raise ValueError(f"{name}: {path!r} cannot be imported: {error}") from error
    if not inspect.isclass(found) or not issubclass(found, base) or inspect.isabstract(found):
        kind = "class, such as 'torch.nn.ReLU'" if base is object else f"class that derives from {base.__name__}"
        raise ValueError(f"{name} must be the import path of a {kind}, got {path!r}, which is none")
    return found


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
        elif isinstance(value, str) and (key.endswith("_class") or key == "activation_fn"):
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


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a type that an algorithm's annotation does not have, or out of its range."""
    expected = None if value is None or _is_of_type(value, hint) else f"of type {inspect.formatannotation(hint)}"
    number: Any = value[0] if isinstance(value, tuple) and value else value
    if expected is None and isinstance(number, int | float):
        if name in COUNTS and number < 1:
            expected = "at least 1"
        if name in SHARES and not 0 <= number <= 1:
            expected = "from 0 to 1"
    if expected is not None:
        raise ValueError(f"source.hyperparameters.{name} must be {expected}, got {value!r}")


def check_hyperparameters(algorithm: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """
    Hyper-parameters as an algorithm takes them: classes for import paths, and tuples for lists such as
    `[1, "episode"]`.

    Raises:
        ValueError: naming the setting, for those that the algorithm does not take, for values of another type than its
            annotations have, for numbers that are not finite or out of their range, and classes that do not exist.
    """
    algorithm_class = find_algorithm(algorithm)
    accepted = set(inspect.signature(algorithm_class).parameters) - NO_HYPERPARAMETERS
    if issubclass(algorithm_class, VectorisedAlgorithm):
        accepted |= set(inspect.signature(VectorisedAlgorithm).parameters) - NO_HYPERPARAMETERS
    if unknown := sorted(map(str, set(hyperparameters) - accepted)):
        raise ValueError(
            f"{algorithm} takes no hyper-parameter {', '.join(map(repr, unknown))}: expected "
            f"{', '.join(sorted(accepted))}"
        )
    arguments = _as_objects(hyperparameters)
    try:
        hints = get_type_hints(algorithm_class.__init__, localns={"VecEnv": VecEnv})
    except NameError:  # of an annotation that is there for type checkers alone
        hints = {}
    for name, value in arguments.items():
        _check_value(name, value, hints.get(name, object))
    return arguments


def _read_callbacks(callbacks: Sequence[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """The name and the kwargs of each callback; refuses other forms."""
    entries = []
    for callback in callbacks:
        entry: Any = {"name": callback} if isinstance(callback, str) else callback
        if not isinstance(entry, dict) or "name" not in entry or set(entry) - {"name", "kwargs"}:
            raise ValueError(
                f"a callback is an import path or {{name: import path, kwargs: {{...}}}}, got {callback!r}"
            )
        entries.append({"name": entry["name"], "kwargs": entry.get("kwargs") or {}})
    return entries


def make_callbacks(callbacks: Sequence[str | dict[str, Any]], **places: int) -> list[BaseCallback]:
    """
    The callbacks of [`~ad_hf.sources.config.SourceConfig`].

    Args:
        callbacks (`Sequence[str | dict]`):
            Their import paths, and arguments.
        places (`int`):
            Numbers that take the place of their names in braces in arguments that are text: with `task_id=3`,
            `"saved/{task_id}"` becomes `"saved/3"`.
    """

    def filled(value: Any) -> Any:
        for name, number in places.items() if isinstance(value, str) else ():
            value = value.replace(f"{{{name}}}", str(number))
        return value

    return [
        _import_class(entry["name"], "callback", BaseCallback)(
            **{name: filled(value) for name, value in entry["kwargs"].items()}
        )
        for entry in _read_callbacks(callbacks)
    ]


def check_source(source: SourceConfig, trust_remote_code: bool = False) -> None:
    """
    Refuse a source whose algorithm does not exist or does not take its settings.

    Args:
        source ([`~ad_hf.sources.config.SourceConfig`]):
            The source.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether an expert may be a saved model, which can run code when it is read.

    Raises:
        ValueError: naming the setting.
    """
    check_hyperparameters(source.algorithm, source.hyperparameters)
    if isinstance(source.hyperparameters.get("expert"), dict) and not trust_remote_code:
        raise ValueError(
            "source.hyperparameters.expert is a model that Stable-Baselines3 has saved, which is unpickled and can "
            "run code: if you trust where it is from, allow it with trust_remote_code=True (--trust_remote_code)"
        )
    if source.tasks_per_job > 1 and not learns_side_by_side(source.algorithm):
        raise ValueError(
            f"{source.algorithm} learns one task at a time: set tasks_per_job to 1, got {source.tasks_per_job}"
        )
    for entry in _read_callbacks(source.callbacks):
        signature = inspect.signature(_import_class(entry["name"], "callback", BaseCallback))
        try:
            signature.bind(**entry["kwargs"])
        except TypeError as error:
            raise ValueError(f"callback {entry['name']!r}: {error}; its arguments are {signature}") from error


def describe_source(source: SourceConfig) -> dict[str, Any]:
    """The entry `source` of `metadata.json`, with all settings of callbacks and convergence where these are used."""
    settings = asdict(source)
    del settings["seeds"]
    if source.callbacks:
        settings["callbacks"] = _read_callbacks(source.callbacks)
    else:
        del settings["callbacks"]
    if (convergence := source.convergence()) is not None:
        settings["until_converged"] = asdict(convergence) | settings["until_converged"]
    else:
        del settings["until_converged"]
    return {**settings, "independent_streams": has_independent_streams(source.algorithm, source.hyperparameters)}


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
    space = envs.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    arguments = {"policy": policy, "device": "cpu", "verbose": 0, **check_hyperparameters(algorithm, hyperparameters)}
    learner = find_algorithm(algorithm)(env=envs, seed=seed, **arguments)
    if not (arguments["verbose"] or arguments.get("tensorboard_log")):
        # The logger that it would make by itself leaves an empty temporary folder behind, for each learner.
        learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner
