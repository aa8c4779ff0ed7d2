"""The one checker of types: of settings, and of JSON in files whose structure is declared as type hints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import chain
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

NAMES: dict[Any, str] = {
    **{dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a whole number"},
    **{float: "a finite number", NoneType: "null", Callable: "a function"},
}
WHOLE = range(-(2**63), 2**63)  # the integers that the columns of a table hold
LARGE = 2**1023  # integers from here on overflow a float

Fault = tuple[int, str, str]  # index of the value, path to the entry in that value, message


def excerpt(value: Any) -> str:
    """A value as errors show it: whole, unless it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_structure(value: Any, kind: Any, name: str) -> None:
    """
    Refuse a JSON value of another structure, with a `ValueError` that names the value, the entry and its type.

    The structure, `kind`, is a type hint: `str`, `int`, `float`, `bool`, `list[...]`, `dict[str, ...]`, a `TypedDict`
    or a dataclass (whose entries with a default may be missing, and which may have further entries), a union,
    `Literal[...]`, `Any`, `Annotated[int, range(...)]` for whole numbers within bounds, and `Annotated[...,
    structure]`. Numbers are finite.
    """
    if fault := find_fault([value], kind):
        _, path, message = fault
        raise ValueError(f"{name}: {path.removeprefix('.') or 'it'} {message}")


def find_fault(values: Sequence[Any], kind: Any) -> Fault | None:
    """
    A value that is not of a type, see [`check_structure`], or `None` if all are.

    It checks all values of one entry at once: there may be 100,000 tasks, and a call for each would be slow.
    """
    origin, arguments = _parts(kind)
    if kind is Any or not values:
        return None
    if origin is Annotated and not isinstance(arguments[1], range):
        return find_fault(values, arguments[1])
    if origin in (Union, UnionType):
        return _find_in_union(values, arguments, kind)
    types, contains = _scalar(kind)
    if not (types is None or set(map(type, values)) <= types) or not (contains is None or all(map(contains, values))):
        for index, value in enumerate(values):
            if not _fits(value, kind):
                words = describe(kind)
                if type(value) is int:  # out of range
                    words = f"{words} of at most 64 bits" if kind is int else words.removeprefix("a whole number ")
                return index, "", f"must be {words}, got {excerpt(value)}"
    if _is_record(kind):
        return _find_in_entries(values, kind)
    if origin is list:
        fault = find_fault(list(chain.from_iterable(values)), arguments[0])
        return fault and _within(
            fault, [(index, f"[{place}]") for index, value in enumerate(values) for place in range(len(value))]
        )
    if origin is dict:
        names = [(index, name) for index, value in enumerate(values) for name in value]
        if any(type(name) is not str for _, name in names):
            index = next(index for index, name in names if type(name) is not str)
            return index, "", f"must be a mapping with text as names, got {excerpt(values[index])}"
        fault = find_fault(list(chain.from_iterable(map(dict.values, values))), arguments[1])
        return fault and _within(fault, [(index, f".{name}") for index, name in names])
    return None


def _find_in_union(values: Sequence[Any], arms: tuple[Any, ...], kind: Any) -> Fault | None:
    """Check each value against the first type of a union that is its own."""
    matches = [next((arm for arm in arms if _fits(value, arm)), None) for value in values]
    if None in matches:
        index = matches.index(None)
        return index, "", f"must be {describe(kind)}, got {excerpt(values[index])}"
    for arm in arms:
        indices = [index for index, each in enumerate(matches) if each == arm]
        if fault := find_fault([values[index] for index in indices], arm):
            return _within(fault, [(index, "") for index in indices])
    return None


def _find_in_entries(values: Sequence[dict[str, Any]], kind: Any) -> Fault | None:
    """Check the entries that a `TypedDict` or a dataclass names."""
    for name, hint, is_required in _entries(kind):
        entries = [value[name] for value in values if name in value]
        owners = values if len(entries) == len(values) else None
        if is_required and owners is None:
            index = next(index for index, value in enumerate(values) if name not in value)
            return index, f".{name}", f"is missing, there are {excerpt(list(values[index]))}"
        if fault := find_fault(entries, hint):
            return _within(fault, [(index, f".{name}") for index, value in enumerate(values) if name in value])
    return None


def _within(fault: Fault, owners: Sequence[tuple[int, str]]) -> Fault:
    """A fault of an inner value as one of the value that holds it."""
    index, path, message = fault
    owner, step = owners[index]
    return owner, step + path, message


@cache  # of few hints, for each of many entries
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


def _is_record(kind: Any) -> bool:
    return is_typeddict(kind) or is_dataclass(kind)


@cache
def _entries(kind: Any) -> list[tuple[str, Any, bool]]:
    """The names of a `TypedDict` or a dataclass, their hints, and whether each is required."""
    hints = get_type_hints(kind, include_extras=True).items()
    if is_dataclass(kind):
        required = {each.name for each in fields(kind) if each.default is each.default_factory is MISSING}
        return [(name, hint, name in required) for name, hint in hints]
    # `__required_keys__` does not see into postponed hints.
    return [
        (name, get_args(hint)[0], False) if get_origin(hint) is NotRequired else (name, hint, True)
        for name, hint in hints
    ]


@cache
def _scalar(kind: Any) -> tuple[set[type] | None, Callable[[Any], bool] | None]:
    """The classes of a hint's values, and the test that they pass in addition; `None` if there is none."""
    origin, arguments = _parts(kind)
    if origin is Literal:
        return None, arguments.__contains__
    if origin is Annotated:
        return {int}, arguments[1].__contains__
    if (origin or kind) is Callable:
        return None, callable
    if kind is float:
        return {int, float}, _is_finite
    return {dict if _is_record(kind) else origin or kind}, WHOLE.__contains__ if kind is int else None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value itself, apart from its entries, is of a type."""
    types, contains = _scalar(kind)
    is_one = types is None or (isinstance(value, tuple(types)) and (bool in types or not isinstance(value, bool)))
    return is_one and (contains is None or bool(contains(value)))


def _is_finite(value: float) -> bool:
    return abs(value) < LARGE if isinstance(value, int) else math.isfinite(value)


def describe(kind: Any) -> str:
    """A type hint in words."""
    origin, arguments = _parts(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(describe, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is Annotated:
        return f"a whole number from {arguments[1][0]} to {arguments[1][-1]}"
    kind = dict if _is_record(kind) else origin or kind
    return NAMES.get(kind) or f"a {kind.__name__}"
