"""What may differ between the tasks of an environment: arguments of its constructor, and its attributes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ad_hf.envs.foreign import FILES
from ad_hf.envs.making import constructor_parameters, make_env
from ad_hf.envs.tasks import expand_grid

PROBED_STEPS = 400  # of random play, in which a value shows its effect
MOST_VALUES = 200  # that are tried out one by one
SAMPLED_VALUES = 100  # where there are more
WIDEST_WALL = 16  # numbers in a row that are refused before others are taken
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
        is_likely (`bool`):
            Whether the values are all whole numbers that the constructor takes, such as a task's index, or cells of
            the room that observations are about.
        guess (`str`):
            The numbers that were tried, as "0 to 3", where the constructor takes others, too.
        is_attribute (`bool`):
            Whether it is an attribute of `env.unwrapped`.
    """

    name: str
    default: Any
    drawn: dict[str, Any]
    values: list[Any] = field(default_factory=list)
    listed: Any = None
    matters: bool = True
    is_likely: bool = False
    guess: str = ""
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

    def works(value: Any) -> bool:
        return probe(value, 0) is not None

    limited = _limited(default, works)
    cells = list(_cells(default, *base.spaces, works))
    limited += [sides for sides, is_limited in cells if is_limited]
    rooms = [shape for shapes in _shapes(base.spaces[0]).values() for shape in shapes]
    lists = [sides for sides, is_limited in cells if not is_limited]
    for random in [*limited, *_ranges(default, base.spaces[0]), *lists, *_spread(default)]:
        is_limited, guess = random in limited, "" if random in limited else _tried(random)
        is_likely = is_limited or (default is not None and random.get("shape") in rooms)
        grid, values = _all_values(random)
        if values:
            working = [value for value in values if works(value)]
            grid = grid if grid and len(working) == len(values) else working
            random, values = _drawn(random, values, working)
            ends = working[:: max(1, len(working) - 1)]
        else:
            ends = [np.full(random.get("shape", ()), random[bound]).tolist() for bound in ("low", "high")]
        probes = [probe(value, PROBED_STEPS) for value in ends]
        if len(probes) > 1 and all(probes):
            matters = any(each is not None and each.steps != base.steps for each in probes)
            if matters or default is not None or is_limited:
                return Variation(name, default, random, values, grid, matters, is_likely, guess, is_attribute)
    return None


def _limited(default: Any, works: Callable[[int], bool]) -> list[dict[str, Any]]:
    """All whole numbers from 0 that work, if there are a few of them: the index of a list, for one."""
    if type(default) is not int or default < 0 or works(MOST_VALUES):
        return []
    count = bisect_left(range(MOST_VALUES), True, lo=default + 1, key=lambda number: not works(number))
    return [{"low": 0, "high": count - 1, "integer": True}] if count > 1 else []


def _cells(
    default: Any, observation_space: spaces.Space, action_space: spaces.Space, works: Callable[[Any], bool]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """
    Shapes of arrays that a list of whole numbers may be an index of, and whether the constructor sets the limits.

    Each number is tried by itself, from 0 until the constructor refuses it. Walls are refused, too, so that a shape
    of the observations is preferred that is no smaller than the numbers which work.
    """
    options = {length: shapes for length, shapes in _shapes(observation_space).items() if length > 1}
    if isinstance(default, list | tuple) and default and all(type(each) is int and each >= 0 for each in default):
        sizes = [int(action_space.n)] if isinstance(action_space, spaces.Discrete) else []
        options = {len(default): options.get(len(default), [])}
        options[len(default)] += [[size] * len(default) for size in [*sizes, max(default) + 1]]
    elif default is not None and default is not Parameter.empty:
        return
    for length, shapes in options.items():
        own = [list(default)] if isinstance(default, list | tuple) else []
        start = next((each for each in [*own, *([n] * length for n in range(4))] if works(each)), None)
        if start is None:
            continue
        limits = [_limit(start, place, works) for place in range(length)]
        if all(limits):
            found = [limit or 1 for limit in limits]
            covering = [each for each in shapes if all(np.greater_equal(each, found))]
            yield {"shape": min(covering, key=math.prod, default=found)}, True
        else:
            for shape in shapes:
                yield {"shape": [limit or side for limit, side in zip(limits, shape, strict=True)]}, False


def _limit(start: list[int], place: int, works: Callable[[Any], bool]) -> int | None:
    """One more than the last number that works at one place of a list, or nothing if any does."""

    def fits(number: int) -> bool:
        return works([*start[:place], number, *start[place + 1 :]])

    if fits(MOST_VALUES):
        return None
    last = number = start[place]
    while number < min(last + WIDEST_WALL, MOST_VALUES):
        number += 1
        last = number if fits(number) else last
    return last + 1


def _drawn(random: dict[str, Any], values: list[Any], working: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """An entry of random tasks of the values that work, and these, if all are known."""
    shape = random.get("shape", [])
    if "low" in random or "choices" in random:
        return (random if len(working) == len(values) else {"choices": working}), working
    if len(working) == len(values) and len(set(shape)) == 1:
        is_sample = math.prod(shape) > len(values)
        return {"low": 0, "high": shape[0] - 1, "integer": True, "shape": [len(shape)]}, [] if is_sample else working
    return {"choices": working}, working


def _tried(random: Mapping[str, Any]) -> str:
    """The whole numbers of an entry in words, for a guess."""
    if random.get("integer"):
        return f"{random['low']} to {random['high']}"
    if "low" in random or "choices" in random:
        return ""
    sides = random["shape"]
    return " and ".join(f"0 to {side - 1}" for side in (sides[:1] if len(set(sides)) == 1 else sides))


def _all_values(random: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The entry in a grid, and all values, of an entry of random tasks that has few; else nothing."""
    if "choices" in random:
        return random["choices"], list(random["choices"])
    if "low" not in random:
        shape = random["shape"]
        if math.prod(shape) > MOST_VALUES:
            sample = np.random.default_rng(0).integers(shape, size=(SAMPLED_VALUES, len(shape)))
            return None, np.unique(sample, axis=0).tolist()
        grid = {"shape": shape}
    elif random.get("integer") and random["high"] - random["low"] < MOST_VALUES:
        grid = {"range": [random["low"], random["high"] + 1]}
    else:
        return None, []
    return grid, [task["value"] for task in expand_grid({"value": grid})]


def _ranges(default: Any, observation_space: spaces.Space) -> Iterator[dict[str, Any]]:
    """Entries of random tasks that might suit one number with this default, the likeliest first."""
    sizes = [shape[0] for shape in _shapes(observation_space).get(1, [])]
    if isinstance(default, bool):
        yield {"choices": [False, True]}
    elif default is None or default is Parameter.empty:
        yield from ({"low": 0, "high": n - 1, "integer": True} for n in sizes)
    elif type(default) is int:
        yield from ({"low": 0, "high": n - 1, "integer": True} for n in sizes if 0 <= default < n)
        low, high = sorted((math.floor(default / 2), 2 * default)) if default else (0, 1)
        yield {"low": low or int(default > 0), "high": high, "integer": True}
    elif type(default) is float and math.isfinite(default):
        least, most = sorted((default / 2, default * 1.5)) if default else (-1.0, 1.0)
        yield {"low": float(f"{least:.3g}"), "high": float(f"{most:.3g}")}


def _spread(default: Any) -> list[dict[str, Any]]:
    """An entry of random tasks for a list of numbers, around them."""
    if not isinstance(default, list | tuple) or not default or any(type(each) not in (int, float) for each in default):
        return []
    numbers = list(map(float, default))
    spread = max(map(abs, numbers)) / 2 or 1.0
    return [{"low": min(numbers) - spread, "high": max(numbers) + spread, "shape": [len(default)]}]


def _shapes(space: spaces.Space) -> dict[int, list[list[int]]]:
    """Shapes of the room that observations may be about, by how many numbers make a cell: the likeliest first."""
    if isinstance(space, spaces.Discrete):
        size = int(space.n)
        rows = [n for n in range(math.isqrt(size), 1, -1) if size % n == 0]
        pairs = [pair for n in rows for pair in ([n, size // n], [size // n, n])]
        return {2: pairs, 1: [[size]]}
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return {
            length: [space.nvec[:length].tolist()] for length in (len(space.nvec), 2, 1) if length <= len(space.nvec)
        }
    return {}
