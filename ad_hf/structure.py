"""The structure that JSON of a file must have, declared as type hints; errors say which entry has another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from ad_hf.settings import NAMES, shown

WHOLE = range(-(2**63), 2**63)  # what the columns of a table hold
LARGE = 2**1023  # whole numbers above which are no floating-point numbers

Where = Callable[[int], str]


def check_structure(value: Any, kind: Any, name: str) -> None:
    """
    Refuse a JSON value of another structure.

    Args:
        value:
            What `json.loads` gave.
        kind:
            The structure as a type hint: `str`, `int`, `float`, `bool`, `list[...]`, `dict[str, ...]`, a `TypedDict`,
            `... | None`, `Literal[...]`, `Any`, and `Annotated[int, range(...)]` for whole numbers within bounds.
            Entries that a `TypedDict` does not name are left as they are. Numbers are finite.
        name (`str`):
            What to call the value in an error, such as the path of its file.

    Raises:
        ValueError: naming the entry, what it must be, and what it is.
    """
    try:
        _check([value], kind, lambda index: "")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@cache  # of few hints, for each of many entries
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


def _check(values: Sequence[Any], kind: Any, where: Where) -> None:
    """Check all values of one entry at once: there may be 100,000 tasks, and a call for each would be slow."""
    if kind is Any or not values:
        return
    origin, arguments = _parts(kind)
    if origin in (Union, UnionType):
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        given = [index for index, value in enumerate(values) if value is not None]
        _check([values[index] for index in given], kind, lambda index: where(given[index]))
    elif origin is Literal:
        _require(values, arguments.__contains__, f"one of {', '.join(arguments)}", where)
    elif origin is Annotated:
        bounds = arguments[1]
        _require(values, lambda value: type(value) is int, NAMES[int], where)
        _require(values, bounds.__contains__, f"from {bounds[0]} to {bounds[-1]}", where)
    elif is_typeddict(kind):
        _require_type(values, dict, where)
        _check_entries(values, kind, where)
    elif (origin or kind) is dict:
        _require_type(values, dict, where)
        if arguments:
            owners = [(index, name) for index, value in enumerate(values) for name in value]
            inner = list(chain.from_iterable(value.values() for value in values))
            _check(inner, arguments[1], lambda index: _joined(where(owners[index][0]), owners[index][1]))
    elif (origin or kind) is list:
        _require_type(values, list, where)
        if arguments:
            inner = list(chain.from_iterable(values))
            _check(inner, arguments[0], lambda index: _element(values, index, where))
    else:
        _require_type(values, kind, where)


def _check_entries(values: Sequence[dict[str, Any]], kind: Any, where: Where) -> None:
    """The entries of objects that a `TypedDict` describes."""
    for name, hint, is_required in _entries_of(kind):
        inner = [value[name] for value in values if name in value]
        if is_required and len(inner) < len(values):
            index = next(index for index, value in enumerate(values) if name not in value)
            raise ValueError(f"{_joined(where(index), name)} is missing, there are {shown(list(values[index]))}")
        _check(inner, hint, partial(_entry, values, name, where))


@cache
def _entries_of(kind: Any) -> list[tuple[str, Any, bool]]:
    """The names of a `TypedDict`, their hints, and whether each is required."""
    entries = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        is_required = get_origin(hint) is not NotRequired  # `__required_keys__` does not see into postponed hints
        entries.append((name, hint if is_required else get_args(hint)[0], is_required))
    return entries


def _entry(values: Sequence[dict[str, Any]], name: str, where: Where, index: int) -> str:
    """What to call an entry of the objects, by its number among those of all that have it."""
    owners = [number for number, value in enumerate(values) if name in value]
    return _joined(where(owners[index]), name)


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _element(values: Sequence[list[Any]], index: int, where: Where) -> str:
    """What to call an element of the lists, by its number among those of all."""
    number = 0
    while index >= len(values[number]):
        index -= len(values[number])
        number += 1
    return f"{where(number)}[{index}]"


def _require_type(values: Sequence[Any], kind: type, where: Where) -> None:
    accepted = {float, int} if kind is float else {kind}
    if not set(map(type, values)) <= accepted:
        _require(values, lambda value: type(value) in accepted, NAMES[kind], where)
    if kind is float:
        _require(values, _is_finite, NAMES[kind], where)
    elif kind is int:
        _require(values, WHOLE.__contains__, f"{NAMES[kind]} of at most 64 bits", where)


def _is_finite(value: float) -> bool:
    return abs(value) < LARGE if type(value) is int else math.isfinite(value)


def _require(values: Sequence[Any], accepts: Callable[[Any], bool], expected: str, where: Where) -> None:
    if not all(map(accepts, values)):
        index = next(index for index, value in enumerate(values) if not accepts(value))
        raise ValueError(f"{where(index) or 'it'} must be {expected}, got {shown(values[index])}")
