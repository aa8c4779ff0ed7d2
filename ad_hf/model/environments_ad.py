"""Environments for a rollout: made, and compared with the model's spaces."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from .configuration_ad import ADConfig

MODES = ("SameStep", "NextStep", "Disabled")
SIZES = {"Discrete": "n", "MultiDiscrete": "nvec", "MultiBinary": "n", "Box": "shape"}


def fault_of_spaces(config: ADConfig, envs: Any) -> str | None:
    """What is wrong with the spaces of environments for a model of a single group."""
    for name in ("observation_space", "action_space"):
        space, wanted = getattr(envs, f"single_{name}"), getattr(config, name)
        kind = type(space).__name__
        size = np.array(getattr(space, SIZES[kind])).tolist() if kind in SIZES else None
        fits = kind == wanted["type"] and size == wanted[SIZES[kind]] and not np.any(getattr(space, "start", 0))
        if fits and kind == "Box" and name == "action_space":  # the bins of an action lie between its bounds
            fits = space.low.tolist() == wanted["low"] and space.high.tolist() == wanted["high"]
        if not fits:
            return f"the environments' {name} is {space}, the model was trained for {wanted}"
    return None


def check_envs(config: ADConfig, envs: Any) -> None:
    """Refuse environments with other spaces than a model's, and such that do not state their autoreset mode."""
    if fault := fault_of_spaces(config, envs):
        raise ValueError(fault)
    if (mode := autoreset_mode(envs)) not in MODES:
        raise ValueError(f"the environments must state their autoreset_mode in metadata, got {mode}")


def autoreset_mode(envs: Any) -> str | None:
    """The autoreset mode of vector environments."""
    return getattr((getattr(envs, "metadata", None) or {}).get("autoreset_mode"), "value", None)


def make_envs(envs: Any, env_kwargs: Any) -> Any:
    """A vector environment, from one, a single environment, or the id of some and keyword arguments of each."""
    if not isinstance(envs, str) and env_kwargs is not None:
        raise ValueError("env_kwargs are for environments that are made from an id; got environments as well")
    if hasattr(envs, "single_observation_space"):
        return envs
    if not isinstance(envs, str) and not all(hasattr(envs, name) for name in ("reset", "step", "observation_space")):
        raise ValueError(f"envs must be a gymnasium VectorEnv, an Env or the id of one, got {envs!r}")
    try:  # a model that is given vector environments does not need gymnasium
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
    try:
        makers = [partial(gym.make, envs, **kwargs) for kwargs in many]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        arguments = "" if env_kwargs is None else f" with env_kwargs {env_kwargs!r}"
        reason = " ".join(str(error).split())
        raise ValueError(f"the environment {envs!r} could not be made{arguments}: {reason}") from error


__all__ = ["autoreset_mode", "check_envs", "fault_of_spaces", "make_envs"]
