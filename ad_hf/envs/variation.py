"""What may differ between the tasks of an environment: arguments of its constructor, and its attributes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ad_hf.envs.foreign import FILES
from ad_hf.envs.making import constructor_parameters, make_env
from ad_hf.envs.tasks import expand_grid

PROBED_STEPS = 400  # of random play, in which a value shows its effect
MOST_VALUES = 200  # that are tried out one by one
NO_TASK = ("render_mode", "max_episode_steps", "seed", "dtype")  # arguments that make no other task


@dataclass(frozen=True)
class Probe:
    """Some steps of random play: the spaces, what happened, and how long episodes were that ended by themselves."""

    spaces: tuple[spaces.Space, spaces.Space]
    steps: list[tuple[bytes, float, bool]]
    lengths: list[int]


@dataclass(frozen=True)
class Variation:
    """
    Values that a keyword argument or an attribute may have, all of which make environments of the same spaces.

    Attributes:
        name (`str`), default (`Any`):
            The argument or attribute, and its value so far.
        drawn (`dict`):
            Its entry in the values of random tasks.
        values (`list`):
            All of its values, if there are few.
        listed (`Any`):
            Its entry in a grid, if there are few values.
        matters (`bool`):
            Whether random play differs.
        is_limited (`bool`):
            Whether the values are all whole numbers that the constructor takes, such as a task's index.
        is_attribute (`bool`):
            Whether it is an attribute of `env.unwrapped`.
    """

    name: str
    default: Any
    drawn: dict[str, Any]
    values: list[Any] = field(default_factory=list)
    listed: Any = None
    matters: bool = True
    is_limited: bool = False
    is_attribute: bool = False


def arguments_of(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that may make a task, with their defaults, of the constructor of a registered environment."""
    spec = gym.spec(env_id.rpartition(":")[2])
    arguments = {
        each.name: each.default
        for each in constructor_parameters(spec).values()
        if each.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    }
    arguments |= {name: value for name, value in (spec.kwargs | dict(env_kwargs)).items() if name in arguments}
    return {name: value for name, value in arguments.items() if name not in NO_TASK and not FILES.search(name)}


def play(env_id: str, kwargs: Mapping[str, Any], attributes: tuple[str, ...] = (), steps: int = PROBED_STEPS) -> Probe:
    """Play at random, from the same seeds each time."""
    env = make_env(env_id, dict(kwargs), attributes=attributes)
    env.action_space.seed(0)
    seen: list[tuple[bytes, float, bool]] = [(np.asarray(env.reset(seed=0)[0]).tobytes(), 0.0, False)]
    lengths: list[int] = []
    length = 0
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append((np.asarray(observation).tobytes(), float(reward), terminated))
        length += 1
        if terminated or truncated:
            lengths += [length] * terminated
            length = 0
            env.reset()
    env.close()
    return Probe((env.observation_space, env.action_space), seen, lengths)


def find_variations(env_id: str, env_kwargs: Mapping[str, Any], base: Probe) -> list[Variation]:
    """What may differ between tasks: arguments of the constructor first, and then attributes that matter."""
    arguments = arguments_of(env_id, env_kwargs)
    found = [_vary(env_id, env_kwargs, base, *each) for each in arguments.items()]
    env = make_env(env_id, dict(env_kwargs)).unwrapped
    attributes = {name: value for each in (*reversed(type(env).__mro__), env) for name, value in vars(each).items()}
    numbers = {name: value for name, value in attributes.items() if type(value) is float and name[0] != "_" and value}
    others = [_vary(env_id, env_kwargs, base, *each, True) for each in numbers.items() if each[0] not in arguments]
    return [each for each in found if each] + [each for each in others if each and each.matters]


def _vary(
    env_id: str, env_kwargs: Mapping[str, Any], base: Probe, name: str, default: Any, is_attribute: bool = False
) -> Variation | None:
    """How one value may differ, if the environments that it makes work and have the same spaces."""
    attributes = (name,) if is_attribute else ()

    def probe(value: Any, steps: int) -> Probe | None:
        try:
            probed = play(env_id, {**env_kwargs, name: value}, attributes, steps)
        except Exception:  # of the environment, which may refuse a value in its own way
            return None
        return probed if probed.spaces == base.spaces else None

    limited = _limited(default, lambda value: probe(value, 0) is not None)
    for random in [*limited, *_ranges(default, *base.spaces)]:
        grid, values = _all_values(random)
        if values:
            working = [value for value in values if probe(value, 0)]
            grid = grid if len(working) == len(values) else working
            random = random if len(working) == len(values) else {"choices": working}
            values, ends = working, working[:: max(1, len(working) - 1)]
        else:
            ends = [np.full(random.get("shape", ()), random[bound]).tolist() for bound in ("low", "high")]
        probes = [probe(value, PROBED_STEPS) for value in ends]
        if len(probes) > 1 and all(probes):
            matters = any(each is not None and each.steps != base.steps for each in probes)
            if matters or default is not None:
                return Variation(name, default, random, values, grid, matters, random in limited, is_attribute)
    return None


def _limited(default: Any, works: Callable[[int], bool]) -> list[dict[str, Any]]:
    """All whole numbers from 0 that work, if there are a few of them: the index of a list, for one."""
    if type(default) is not int or default < 0 or works(MOST_VALUES):
        return []
    count = bisect_left(range(MOST_VALUES), True, lo=default + 1, key=lambda number: not works(number))
    return [{"low": 0, "high": count - 1, "integer": True}] if count > 1 else []


def _all_values(random: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The entry in a grid, and all values, of an entry of random tasks that has few; else nothing."""
    if "choices" in random:
        return random["choices"], list(random["choices"])
    if not random.get("integer"):
        return None, []
    low, high, shape = random["low"], random["high"], random.get("shape")
    count = high - low + 1
    if count ** math.prod(shape or [1]) > MOST_VALUES or (shape and low):
        return None, []
    grid = {"shape": [count] * shape[0]} if shape else {"range": [low, high + 1]}
    return grid, [task["value"] for task in expand_grid({"value": grid})]


def _ranges(default: Any, observation_space: spaces.Space, action_space: spaces.Space) -> Iterator[dict[str, Any]]:
    """Entries of random tasks that might suit an argument with this default, the likeliest first."""
    sizes = _sizes(observation_space)
    if isinstance(default, bool):
        yield {"choices": [False, True]}
        return
    if isinstance(default, list | tuple) and default and all(type(each) in (int, float) for each in default):
        length, numbers = len(default), list(map(float, default))
        if all(type(each) is int for each in default):
            number_of_actions = [int(action_space.n)] if isinstance(action_space, spaces.Discrete) else []
            options = [*sizes.get(length, []), *number_of_actions, max(default) + 1]
            yield from ({"low": 0, "high": n - 1, "integer": True, "shape": [length]} for n in options)
        spread = max(map(abs, numbers)) / 2 or 1.0
        yield {"low": min(numbers) - spread, "high": max(numbers) + spread, "shape": [length]}
    elif default is None or default is Parameter.empty:
        for length, options in sizes.items():
            shape = {} if length == 1 else {"shape": [length]}
            yield from ({"low": 0, "high": n - 1, "integer": True, **shape} for n in options)
    elif type(default) is int:
        yield from ({"low": 0, "high": n - 1, "integer": True} for n in sizes.get(1, []) if 0 <= default < n)
        low, high = sorted((math.floor(default / 2), 2 * default)) if default else (0, 1)
        yield {"low": low or int(default > 0), "high": high, "integer": True}
    elif type(default) is float and math.isfinite(default):
        least, most = sorted((default / 2, default * 1.5)) if default else (-1.0, 1.0)
        yield {"low": float(f"{least:.3g}"), "high": float(f"{most:.3g}")}


def _sizes(space: spaces.Space) -> dict[int, list[int]]:
    """Cells along a side of the room that its observations may be about, by how many numbers make a cell."""
    if isinstance(space, spaces.Discrete):
        root = math.isqrt(int(space.n))
        return {1: [int(space.n)], 2: [root] if root > 1 and root**2 == space.n else []}
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        lengths = dict.fromkeys((len(space.nvec), 2, 1))
        return {length: [int(min(islice(space.nvec, length)))] for length in lengths}
    return {}
