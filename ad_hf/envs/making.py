"""One environment of a family: its constructor's arguments, its attributes, its wrappers."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from ad_hf.envs.imports import import_callable


def read_calls(calls: Sequence[str | dict[str, Any]], setting: str, *arguments: Any) -> list[dict[str, Any]]:
    """
    Calls of a setting, such as wrappers, as `{"name": import path, "kwargs": keyword arguments}`, also from an import
    path alone. A `ValueError` names a function that does not exist or does not take its keyword (and other) arguments.
    """
    entries = []
    for index, call in enumerate(calls):
        where = f"{setting}[{index}]"
        entry = {"kwargs": {}, **(call if isinstance(call, dict) else {"name": call})}
        if set(entry) != {"name", "kwargs"} or not isinstance(entry["kwargs"], dict):
            raise ValueError(f"{where}: expected an import path, or a name and kwargs, got {call!r}")
        function = import_callable(entry["name"], where)
        try:
            inspect.signature(function).bind(*arguments, **entry["kwargs"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {entry['name']} cannot be called with {entry['kwargs']}: {error}") from error
        entries.append({"name": entry["name"], "kwargs": entry["kwargs"]})
    return entries


def task_arguments(call: dict[str, Any]) -> dict[str, str]:
    """Keyword arguments of a wrapper that tasks give it, such as `seed` by `"{renaming}"`: their names in the task."""
    texts = {name: value for name, value in call["kwargs"].items() if isinstance(value, str)}
    return {name: text[1:-1] for name, text in texts.items() if text[:1] + text[-1:] == "{}"}


def find_spec(env_id: str) -> EnvSpec | None:
    """The registered spec of an id, or of one such as `"module:Id-v0"`; `None` if there is no such environment."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except (gym.error.Error, ModuleNotFoundError):
        return None


def constructor_parameters(spec: EnvSpec) -> Mapping[str, inspect.Parameter]:
    """The parameters of the constructor of a registered environment, by name."""
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return inspect.signature(creator).parameters


def _with_tuples(spec: EnvSpec | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Tuples for lists where the constructor's own default is one: recipes and metadata.json hold none."""
    lists = {name: value for name, value in kwargs.items() if isinstance(value, list)}
    if spec is None or not lists:
        return kwargs
    parameters = constructor_parameters(spec)
    tuples = [name for name in lists if name in parameters and isinstance(parameters[name].default, tuple)]
    return {**kwargs, **{name: tuple(kwargs[name]) for name in tuples}}


def make_env(
    env_id: str, kwargs: dict[str, Any], wrappers: Sequence[dict[str, Any]] = (), attributes: Sequence[str] = ()
) -> gym.Env:
    """Make an environment of a family; some keyword arguments are attributes or of wrappers, see `FamilyConfig`."""
    of_wrappers = [task_arguments(wrapper) for wrapper in wrappers]
    others = {*attributes, *(name for names in of_wrappers for name in names.values())}
    arguments = {name: value for name, value in kwargs.items() if name not in others}
    env = gym.make(env_id, **_with_tuples(find_spec(env_id), arguments))
    for name in attributes:
        if name in kwargs:
            _set_attribute(env.unwrapped, name, kwargs[name])
    for index, (wrapper, names) in enumerate(zip(wrappers, of_wrappers)):
        if missing := set(names.values()) - set(kwargs):
            raise ValueError(f"family.wrappers[{index}]: the task {kwargs} has no {', '.join(sorted(missing))}")
        own = wrapper["kwargs"] | {name: kwargs[value] for name, value in names.items()}
        env = import_callable(wrapper["name"], "family.wrappers")(env, **own)
        if not isinstance(env, gym.Env):
            raise ValueError(
                f"family.wrappers[{index}]: {wrapper['name']} returned {env!r}, expected a gymnasium environment"
            )
    if isinstance(env.action_space, spaces.Dict | spaces.Tuple):
        raise ValueError(
            f"{env_id} has actions of {env.action_space}: expected a Discrete, MultiDiscrete, MultiBinary or Box "
            "space; give family.wrappers a gymnasium.ActionWrapper that makes one of these of it"
        )
    if isinstance(env.observation_space, spaces.Dict | spaces.Tuple):
        env = gym.wrappers.FlattenObservation(env)
    return env


class ChannelsLast(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """
    Turns frames (channels, height, width) to (height, width, channels), as models and gymnasium's own wrappers take
    them. In a recipe: `wrappers: [ad_hf.envs.making.ChannelsLast]`, the last.

    Args:
        env (`gymnasium.Env`):
            Environment whose observations are a Box of three dimensions.

    Raises:
        ValueError: for other observations.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"ChannelsLast turns frames (channels, height, width), got observations of {space}")
        low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=space.dtype)

    def observation(self, observation: Any) -> np.ndarray:
        """Frames (height, width, channels)."""
        return np.moveaxis(observation, 0, -1)


def _set_attribute(env: gym.Env, name: str, value: Any) -> None:
    if not hasattr(env, name):
        numbers = [each for each, number in vars(env).items() if type(number) in (int, float) and each[0] != "_"]
        raise ValueError(
            f"family.attributes: {type(env).__name__} has no attribute {name!r}; those that are numbers: "
            f"{', '.join(sorted(numbers)) or 'none'}"
        )
    setattr(env, name, copy.deepcopy(value))
