"""Lists of tasks: products of values, and draws at random."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np

from ad_hf.envs.imports import import_callable
from ad_hf.settings import check_settings, make_section, plain, setting
from ad_hf.structure import check_structure, excerpt

WAYS = ("tasks", "grid", "random")  # to describe tasks
DRAWS_PER_TASK = 100  # after which no more draws are likely to differ from all tasks so far
MOST_TASKS = 10_000_000  # of a family: more is a mistake, which would fill the memory

T = TypeVar("T")


@dataclass
class RandomTasks:
    """The setting `random` of a family."""

    values: dict[str, Any]
    num_tasks: int = setting(least=1, most=MOST_TASKS)
    seed: int = setting(0, least=0)


@dataclass
class Range:
    """A random value: a number, uniformly from `low` to `high`, or in its logarithm; an integer may be either."""

    low: int | float
    high: int | float
    integer: bool = False
    log: bool = False
    shape: list[int] = field(default_factory=list)


@dataclass
class Choices:
    """A random value: one of a list."""

    choices: list[Any]


@dataclass
class Call:
    """A random value: the result of a function, given by its import path, of keyword arguments and a `seed`."""

    function: str
    kwargs: dict[str, Any] = field(default_factory=dict)


KINDS: dict[str, Any] = {"low": Range, "choices": Choices, "function": Call}


def described_tasks(description: Any, setting: str) -> list[dict[str, Any]]:
    """The tasks that one of `tasks`, `grid` and `random` describes, or a list; a `ValueError` for anything else."""
    if isinstance(description, list):
        description = {"tasks": description}
    if not isinstance(description, Mapping) or len(description) != 1 or not set(description) <= set(WAYS):
        raise ValueError(f"{setting} needs one of {', '.join(WAYS)}, got {excerpt(description)}")
    ((name, way),) = description.items()
    if name == "random":
        return draw_tasks(way, f"{setting}.random")
    if name == "grid":
        return expand_grid(way, f"{setting}.grid")
    check_structure(way, list[dict[str, Any]], f"{setting}.tasks")
    return way


def expand_grid(grid: dict[str, Any], setting: str = "family.grid") -> list[dict[str, Any]]:
    """
    Tasks as the product of lists of values; `{shape: [...]}` stands for all index tuples of such an array, and
    `{range: [start, stop]}` for the integers from the one to before the other.
    """
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"{setting} must hold the values of keyword arguments by name, got {excerpt(grid)}")
    values: list[Sequence[Any]] = []
    for name, value in grid.items():
        where = f"{setting}.{name}"
        if isinstance(value, dict) and set(value) == {"shape"}:
            check_structure(value["shape"], list[Annotated[int, range(1, MOST_TASKS)]], f"{where}.shape")
            _check_count(math.prod(value["shape"]), where)
            value = [list(index) for index in np.ndindex(*value["shape"])]
        elif isinstance(value, dict) and set(value) == {"range"}:
            check_structure(value["range"], list[int], f"{where}.range")
            if len(value["range"]) != 2 or value["range"][0] >= value["range"][1]:
                raise ValueError(f"{where}.range must be [start, stop] with start below stop, got {value['range']}")
            integers = range(*value["range"])
            _check_count(len(integers), where)
            value = list(integers)
        if not isinstance(value, list) or not value:
            raise ValueError(
                f"{where} must be a non-empty list of values, {{shape: [...]}} or {{range: [...]}}, got {value!r}"
            )
        values.append(value)
    _check_count(math.prod(map(len, values)), setting)
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*values)]


def _check_count(count: int, where: str) -> None:
    if count > MOST_TASKS:
        raise ValueError(f"{where} stands for {count:,} tasks: expected at most {MOST_TASKS:,}")


def draw_tasks(random: dict[str, Any], where: str = "family.random") -> list[dict[str, Any]]:
    """
    Tasks at random, of JSON values, no two of them equal: no test task is a training task under another number.

    A task depends on the seed, its values and the tasks before it alone: with more tasks, the first ones stay. A
    `ValueError` names a wrong setting, also if there are fewer different tasks than `num_tasks`.
    """
    settings = _read(RandomTasks, random, where)
    draws = {name: _draw_of(value, f"{where}.values.{name}") for name, value in settings.values.items()}
    tasks: dict[str, dict[str, Any]] = {}
    for number in range(DRAWS_PER_TASK * settings.num_tasks):
        # Every value has random numbers of its own: neither its place among the others nor their presence changes it.
        generators = {name: np.random.default_rng([settings.seed, number, *name.encode()]) for name in draws}
        task = {name: draw(generators[name]) for name, draw in draws.items()}
        tasks.setdefault(json.dumps(task), task)
        if len(tasks) == settings.num_tasks:
            return list(tasks.values())
    raise ValueError(
        f"{where}.num_tasks: {DRAWS_PER_TASK * settings.num_tasks} draws gave {len(tasks)} different tasks, fewer "
        f"than {settings.num_tasks}: ask for fewer, or widen {where}.values"
    )


def _read(declared: type[T], settings: Any, where: str) -> T:
    """A dataclass of settings, all of which are checked."""
    required = {each.name for each in fields(declared) if each.default is each.default_factory is MISSING}  # type: ignore[arg-type]
    if not isinstance(settings, dict) or not required <= set(settings):
        raise ValueError(f"{where}: expected the settings {', '.join(sorted(required))}, got {settings!r}")
    section = make_section(declared, settings, where)
    check_settings(section, where)
    return section


def _draw_of(value: Any, where: str) -> Callable[[np.random.Generator], Any]:
    """A function that draws one of the values that a mapping describes."""
    kind = next((kind for name, kind in KINDS.items() if isinstance(value, dict) and name in value), None)
    if kind is None:
        raise ValueError(
            f"{where}: expected {{low: ..., high: ...}}, {{choices: [...]}} or {{function: ...}}, got {value!r}"
        )
    settings = _read(kind, value, where)
    if isinstance(settings, Range):
        return _range_draw(settings, where)
    if isinstance(settings, Choices):
        choices = plain(settings.choices, where, allow_nan=False)
        if not choices:
            raise ValueError(f"{where}.choices must be a non-empty list, got {choices!r}")
        return lambda rng: choices[rng.integers(len(choices))]
    if "seed" in settings.kwargs:
        raise ValueError(f"{where}.kwargs must hold keyword arguments other than seed, got {settings.kwargs!r}")
    return partial(_call, import_callable(settings.function, f"{where}.function"), settings.kwargs, where)


def _call(function: Callable[..., Any], kwargs: dict[str, Any], where: str, rng: np.random.Generator) -> Any:
    try:
        returned = function(**kwargs, seed=int(rng.integers(2**31)))
    except Exception as error:  # a function may raise anything
        raise ValueError(f"{where}.function failed, called with its kwargs and a seed: {error!r}") from error
    return plain(returned, where, allow_nan=False)


def _range_draw(numbers: Range, where: str) -> Callable[[np.random.Generator], Any]:
    low, high, size = numbers.low, numbers.high, tuple(numbers.shape)
    if low > high:
        raise ValueError(f"{where}.low must not be above high, got low {low} and high {high}")
    if numbers.integer and (low != int(low) or high != int(high)):
        raise ValueError(f"{where}: low and high must be whole numbers for an integer, got {low} and {high}")
    if numbers.log and (low <= 0 or numbers.integer):
        raise ValueError(
            f"{where}.log needs a low above 0, and no integer, got low {low} and integer {numbers.integer}"
        )
    if any(length < 1 for length in size):
        raise ValueError(f"{where}.shape must hold whole numbers above 0, got {numbers.shape}")
    if numbers.integer:
        return lambda rng: rng.integers(int(low), int(high), size=size, endpoint=True).tolist()
    if numbers.log:
        logs = math.log(low), math.log(high)
        return lambda rng: np.exp(rng.uniform(*logs, size=size)).clip(low, high).tolist()
    return lambda rng: np.asarray(rng.uniform(low, high, size=size)).tolist()
