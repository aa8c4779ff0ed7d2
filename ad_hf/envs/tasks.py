"""Lists of tasks: products of values, and draws at random."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pydoc import locate
from typing import Any

import numpy as np

from ad_hf.settings import shown

WAYS = ("tasks", "grid", "random")  # to describe tasks
DRAWS_PER_TASK = 100  # before it counts as hopeless that another draw differs from all tasks so far
MOST_TASKS = 10_000_000  # of a family: more is a mistake, which would fill the memory
KINDS = {"low": ({"low", "high"}, {"integer", "log", "shape"}), "choices": ({"choices"}, set())} | {
    "function": ({"function"}, {"kwargs"})
}  # of values: what each needs, and what else it takes


def import_callable(path: Any, setting: str) -> Callable[..., Any]:
    """
    What an import path such as `"gymnasium.wrappers.TimeLimit"` stands for.

    Raises:
        ValueError: naming the setting, if there is no such function or class.
    """
    found = locate(path) if isinstance(path, str) else None
    if not callable(found):
        raise ValueError(f"{setting} must be the import path of a function or class, got {path!r}, which is none")
    return found


def described_tasks(given: Any, setting: str) -> list[dict[str, Any]]:
    """
    The tasks that one of `tasks`, `grid` and `random` describes, or that are listed.

    Raises:
        ValueError: naming the setting, for none or several of them, or anything else; for what each refuses.
    """
    if isinstance(given, list):
        given = {"tasks": given}
    if not isinstance(given, Mapping):
        raise ValueError(f"{setting} needs one of {', '.join(WAYS)}, got {shown(given)}")
    ways = {name: given[name] for name in WAYS if given.get(name) is not None}
    if len(ways) != 1 or set(given) - set(WAYS):
        raise ValueError(f"{setting} needs one of {', '.join(WAYS)}, got {', '.join(sorted(given)) or 'nothing'}")
    ((name, way),) = ways.items()
    if name == "random":
        return draw_tasks(way, f"{setting}.random")
    if name == "grid":
        return expand_grid(way, f"{setting}.grid")
    if not isinstance(way, list) or not all(isinstance(task, dict) for task in way):
        raise ValueError(f"{setting}.tasks must be a list of keyword arguments, each a mapping, got {shown(way)}")
    return way


def expand_grid(grid: dict[str, Any], setting: str = "family.grid") -> list[dict[str, Any]]:
    """
    Tasks as the product of lists of values; `{shape: [...]}` stands for all index tuples of such an array, and
    `{range: [start, stop]}` for the integers from the one to before the other.
    """
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"{setting} must hold what tasks differ in, by name, got {shown(grid)}")
    values: list[Sequence[Any]] = []
    for name, value in grid.items():
        where = f"{setting}.{name}"
        if isinstance(value, dict) and set(value) == {"shape"}:
            sizes = _whole_numbers(value["shape"], f"{where}.shape", least=1)
            _check_count(math.prod(sizes), where)
            value = [list(index) for index in np.ndindex(*sizes)]
        elif isinstance(value, dict) and set(value) == {"range"}:
            bounds = _whole_numbers(value["range"], f"{where}.range")
            if len(bounds) != 2 or bounds[0] >= bounds[1]:
                raise ValueError(f"{where}.range must be [start, stop] with start below stop, got {value['range']!r}")
            _check_count(bounds[1] - bounds[0], where)
            value = list(range(*bounds))
        if not isinstance(value, list) or not value:
            raise ValueError(
                f"{where} must be a non-empty list of values, {{shape: [...]}} or {{range: [...]}}, got {value!r}"
            )
        values.append(value)
    _check_count(math.prod(map(len, values)), setting)
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*values)]


def _whole_numbers(value: Any, where: str, least: int | None = None) -> list[int]:
    if not isinstance(value, list) or not value or any(type(each) is not int for each in value):
        raise ValueError(f"{where} must be a list of whole numbers, got {shown(value)}")
    if least is not None and min(value) < least:
        raise ValueError(f"{where} must hold whole numbers of at least {least}, got {shown(value)}")
    return value


def _check_count(count: int, where: str) -> None:
    if count > MOST_TASKS:
        raise ValueError(f"{where} stands for {count:,} tasks: expected at most {MOST_TASKS:,}")


def draw_tasks(random: dict[str, Any], where: str = "family.random") -> list[dict[str, Any]]:
    r"""
    Tasks at random, no two of them equal: none that is held out is trained on under another number.

    A task depends on the seed, its values and the tasks before it alone: with more tasks, the first ones stay.

    Args:
        random (`dict`):
            `num_tasks`, `values` and, if not 0, `seed`. Each of the values is one of

            - `{low: ..., high: ...}`: a number, uniformly from `low` to `high`; with `integer: true` a whole one, both
              ends included; with `log: true` uniform in its logarithm; with `shape: [...]` nested lists of them
            - `{choices: [...]}`: one of the list
            - `{function: ..., kwargs: {...}}`: what a function, given by its import path, returns for these keyword
              arguments and a `seed`.
        where (`str`, *optional*, defaults to `"family.random"`):
            What to call it in an error.

    Returns:
        `list[dict]`: plain JSON values by name, for each task.

    Raises:
        ValueError: naming the setting, for unknown and missing ones, for values of a wrong kind, for a function that
            fails, and if there are fewer different tasks than asked for.
    """
    _check_names(random, {"num_tasks", "values"}, {"seed"}, where)
    num_tasks, seed, values = random["num_tasks"], random.get("seed", 0), random["values"]
    for name, number, least in (("num_tasks", num_tasks, 1), ("seed", seed, 0)):
        if type(number) is not int or number < least:
            raise ValueError(f"{where}.{name} must be a whole number, at least {least}, got {number!r}")
    _check_count(num_tasks, f"{where}.num_tasks")
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{where}.values must hold what tasks differ in, by name, got {values!r}")
    draws = {name: _draw_of(value, f"{where}.values.{name}") for name, value in values.items()}
    tasks: dict[str, dict[str, Any]] = {}
    for number in range(DRAWS_PER_TASK * num_tasks):
        # Every value has random numbers of its own: neither its place among the others nor their presence changes it.
        task = {name: draw(np.random.default_rng([seed, number, *name.encode()])) for name, draw in draws.items()}
        tasks.setdefault(json.dumps(task), task)
        if len(tasks) == num_tasks:
            return list(tasks.values())
    raise ValueError(
        f"{where}.num_tasks: {DRAWS_PER_TASK * num_tasks} draws gave {len(tasks)} different tasks, fewer than "
        f"{num_tasks}: ask for fewer, or widen {where}.values"
    )


def _check_names(settings: Any, needed: set[str], others: set[str], where: str) -> None:
    """Refuse settings that are unknown or missing."""
    if not isinstance(settings, dict) or not needed <= set(settings) <= needed | others:
        further = f", and perhaps {', '.join(sorted(others))}" if others else ""
        raise ValueError(f"{where}: expected the settings {', '.join(sorted(needed))}{further}, got {settings!r}")


def _draw_of(value: Any, where: str) -> Callable[[np.random.Generator], Any]:
    """A function that draws one of the values, once it is clear what they are."""
    kind = next((kind for kind in KINDS if isinstance(value, dict) and kind in value), None)
    if kind is None:
        raise ValueError(
            f"{where}: expected {{low: ..., high: ...}}, {{choices: [...]}} or {{function: ...}}, got {value!r}"
        )
    _check_names(value, *KINDS[kind], where)
    if kind == "choices":
        choices = _plain(value["choices"], where)
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{where}.choices must be a non-empty list, got {choices!r}")
        return lambda rng: choices[rng.integers(len(choices))]
    if kind == "function":
        kwargs = value.get("kwargs", {})
        if not isinstance(kwargs, dict) or "seed" in kwargs:
            raise ValueError(f"{where}.kwargs must hold keyword arguments other than seed, got {kwargs!r}")
        function = partial(import_callable(value["function"], f"{where}.function"), **kwargs)
        return partial(_call, function, where)
    return _range_draw(**value, where=where)


def _call(function: Callable[..., Any], where: str, rng: np.random.Generator) -> Any:
    try:
        returned = function(seed=int(rng.integers(2**31)))
    except Exception as error:  # a function may raise anything
        raise ValueError(f"{where}.function failed, called with its kwargs and a seed: {error!r}") from error
    return _plain(returned, where)


def _range_draw(
    low: Any, high: Any, where: str, integer: Any = False, log: Any = False, shape: Any = ()
) -> Callable[[np.random.Generator], Any]:
    for name, limit in (("low", low), ("high", high)):
        if type(limit) not in (int, float) or not math.isfinite(limit) or (integer and limit != int(limit)):
            raise ValueError(f"{where}.{name} must be a {'whole ' if integer else ''}number, got {limit!r}")
    if low > high:
        raise ValueError(f"{where}.low must not be above high, got low {low} and high {high}")
    for name, flag in (("integer", integer), ("log", log)):
        if type(flag) is not bool:
            raise ValueError(f"{where}.{name} must be true or false, got {flag!r}")
    if log and (low <= 0 or integer):
        raise ValueError(f"{where}.log needs a low above 0, and no integer, got low {low} and integer {integer}")
    if not isinstance(shape, list | tuple) or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"{where}.shape must be a list of whole numbers above 0, got {shape!r}")
    if integer:
        return lambda rng: rng.integers(int(low), int(high), size=tuple(shape), endpoint=True).tolist()
    if log:
        logs = math.log(low), math.log(high)
        return lambda rng: np.exp(rng.uniform(*logs, size=tuple(shape))).clip(low, high).tolist()
    return lambda rng: np.asarray(rng.uniform(low, high, size=tuple(shape))).tolist()


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it: lists for tuples and arrays."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=lambda array: array.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: tasks are stored as JSON, which this is not ({error}): expected finite numbers, text, lists "
            f"and dicts, got {value!r}"
        ) from error
