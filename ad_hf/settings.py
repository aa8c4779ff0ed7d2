"""Settings: JSON and YAML read safely, and their values checked against the dataclasses that declare them."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import numpy as np
import yaml

MOST_NODES = 1_000_000  # of a YAML file whose aliases are written out
NAMES: dict[Any, str] = {
    **{dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a whole number"},
    **{float: "a finite number", NoneType: "null", Callable: "a function"},
}


def read_utf8(path: str | Path) -> str:
    """The text of a regular file; a `ValueError` or `FileNotFoundError` that names it if it is none."""
    if not Path(path).is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{path} is not a file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _expect(value: Any, kind: type, name: str | Path) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must hold {NAMES[kind]}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value as errors show it: whole, unless it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def parse_json(text: str, name: str | Path, kind: type = dict) -> Any:
    """
    What JSON text holds.

    Args:
        text (`str`):
            The text.
        name (`str` or `Path`):
            The name of its file, for errors.
        kind (`type`, *optional*, defaults to `dict`):
            What its top level must be.

    Raises:
        ValueError: for text that is not JSON, nests too deep or holds something else at its top level.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # perhaps half a character, which is JSON and cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{name} nests too deep to be read") from error
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    return _expect(value, kind, name)


def read_json(path: str | Path, kind: type = dict) -> Any:
    """
    What a JSON file holds; see [`parse_json`].

    Raises:
        FileNotFoundError: if there is no regular file.
        ValueError: also for a file that is not UTF-8.
    """
    return parse_json(read_utf8(path), path, kind)


class _Loader(yaml.SafeLoader):
    """YAML as plain data: numbers as people write them, no key twice, no aliases that grow without bound."""

    def compose_document(self) -> Any:
        document: Any = super().compose_document()
        self._count(document, {}, set())
        return document

    def _count(self, node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
        """Nodes that a node stands for once aliases are written out."""
        if id(node) in above:
            raise yaml.composer.ComposerError(None, None, "an alias contains itself", node.start_mark)
        if id(node) not in known:
            children: Any = node.value if isinstance(node, yaml.CollectionNode) else ()
            if isinstance(node, yaml.MappingNode):
                children = [each for pair in node.value for each in pair]
            known[id(node)] = 1 + sum(self._count(child, known, above | {id(node)}) for child in children)
        if known[id(node)] > MOST_NODES and known[id(node)] > 2 * len(known):
            raise yaml.composer.ComposerError(None, None, "its aliases stand for too much", node.start_mark)
        return known[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if not isinstance(name, str):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(name)} is not text: quote it", key.start_mark
                    )
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what [`_Loader`] reads: text that it would take for a number is quoted."""


EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):  # YAML 1.1, which PyYAML reads, takes 3e-4 for text
    _class.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789."))
NOT_IN_JSON = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "binary", "set", "omap", "pairs"))
_Loader.yaml_constructors = {
    tag: constructor for tag, constructor in _Loader.yaml_constructors.items() if tag not in NOT_IN_JSON
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag not in NOT_IN_JSON]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def parse_yaml(text: str, name: str | Path, kind: type = dict) -> Any:
    """
    What YAML text holds, as plain data: mappings with text as keys, lists, text, numbers, truth values, null.

    Args:
        text (`str`):
            The text.
        name (`str` or `Path`):
            The name of its file, for errors.
        kind (`type`, *optional*, defaults to `dict`):
            What its top level must be; `object` for anything.

    Raises:
        ValueError: for text that is not YAML, nests too deep, has a key twice, or has aliases without bound.
    """
    try:
        value = yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError(f"{name} nests too deep to be read") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{name} is not the YAML that settings are: {' '.join(str(error).split())}") from error
    return value if kind is object else _expect(value, kind, name)


def read_yaml(path: str | Path, kind: type = dict) -> Any:
    """
    What a YAML file holds; see [`parse_yaml`].

    Raises:
        FileNotFoundError: if there is no regular file.
        ValueError: also for a file that is not UTF-8.
    """
    return parse_yaml(read_utf8(path), path, kind)


def dump_yaml(data: Any) -> str:
    """YAML text that [`parse_yaml`] reads back as it was."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """
    A field of a dataclass of settings, with the values that it may have; see [`check_settings`].

    Args:
        default:
            Its default.
        least, above, most, below (`float`, *optional*):
            Bounds of a number: from, above, up to, below.
        choices (`tuple[str, ...]`, *optional*):
            What text may be.
    """
    limits = {"least": least, "above": above, "most": most, "below": below, "choices": choices}
    return field(default=default, metadata={name: limit for name, limit in limits.items() if limit is not None})


BOUNDS = {
    "least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}


_kinds: Any = cache(get_type_hints)


def _matches(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_matches(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_matches(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, origin or kind) and (kind is bool or not isinstance(value, bool))


def _described(kind: Any) -> str:
    """An annotated type in words."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_described(each) for each in arguments)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is list and arguments[0] is not Any:
        return f"a list, each {_described(arguments[0])}"
    kind = get_origin(kind) or kind
    return NAMES.get(kind) or f"a {kind.__name__}"


def check_settings(config: Any, section: str) -> None:
    """
    Check the fields of a dataclass of settings, in its `__post_init__`, against their types and bounds.

    Numbers of numpy become Python's, tuples become lists, and whole numbers where a number is expected become floats.

    Args:
        config:
            The dataclass, whose fields may be made by [`setting`].
        section (`str`):
            What its settings are called by, before a dot.

    Raises:
        ValueError: naming the setting, with what it is and what is expected.
    """
    kinds = _kinds(type(config))
    for each in fields(config):
        value, kind = getattr(config, each.name), kinds[each.name]
        value = value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else value
        if isinstance(value, list):
            value = [item.item() if isinstance(item, np.generic) else item for item in value]
        limits = [name for name in BOUNDS if name in each.metadata]
        choices = each.metadata.get("choices")
        fits = _matches(value, kind)
        if fits and value is not None:
            fits = all(BOUNDS[name][1](value, each.metadata[name]) for name in limits)
            fits = fits and (choices is None or value in choices)
        if not fits:
            expected = [f"one of {', '.join(choices)}" if choices else _described(kind)]
            expected += [f"{BOUNDS[name][0]} {each.metadata[name]}" for name in limits]
            raise ValueError(f"{section}.{each.name} must be {', '.join(expected)}, got {shown(value)}")
        if isinstance(value, int) and not isinstance(value, bool) and not _matches("", kind) and _is_real(kind):
            value = float(value)
        setattr(config, each.name, value)


def _is_real(kind: Any) -> bool:
    """Whether a number is expected that need not be whole."""
    return kind is float or float in get_args(kind)


T = TypeVar("T")
R = TypeVar("R")


def make_section(declared: type[T], settings: Mapping[str, Any], section: str) -> T:
    """
    A dataclass of settings from what a file says of them.

    Raises:
        ValueError: naming the setting: for those that it does not have, and for values that it refuses.
    """
    known = [each.name for each in fields(declared)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ValueError(f"unknown setting {section}.{name}: expected one of {', '.join(known)}")
    try:
        return declared(**settings)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(f"{section}.") else f"{section}.{message}") from error


def with_settings(
    declared: Any, section: str, argument: str = "config"
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """
    Let a function that takes a dataclass of settings take them as keywords, too.

    `collect(family, SourceConfig("A2C", n_envs=50))` is then also `collect(family, algorithm="A2C", n_envs=50)` and
    `collect(family, "A2C", n_envs=50)`; keywords beside a dataclass replace its settings in a copy. The function
    always gets a dataclass, and its signature lists the settings.

    Args:
        declared (`type`):
            The dataclass.
        section (`str`):
            What its settings are called by in errors, before a dot.
        argument (`str`, *optional*, defaults to `"config"`):
            The function's argument that takes the dataclass.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **keywords: Any) -> R:
            settings = {name: keywords.pop(name) for name in list(keywords) if name not in own.parameters}
            bound = own.bind_partial(*args, **keywords)
            config = bound.arguments.get(argument)
            if not isinstance(config, declared):
                first = {} if config is None else {fields(declared)[0].name: config}
                if twice := first.keys() & settings.keys():
                    raise TypeError(f"{function.__qualname__} got two values for {', '.join(twice)}")
                config = make_section(declared, first | settings, section)
            elif settings:
                values = {each.name: getattr(config, each.name) for each in fields(config)}
                config = make_section(type(config), values | settings, section)
            bound.arguments[argument] = config
            return function(*bound.args, **bound.kwargs)

        kinds, default = _kinds(declared), declared()
        call.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[
                *own.parameters.values(),
                *(
                    inspect.Parameter(
                        each.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=getattr(default, each.name),
                        annotation=kinds[each.name],
                    )
                    for each in fields(declared)
                ),
            ]
        )
        return call

    return decorate


def descriptions(declared: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those that it inherits from say of their settings, by name."""
    return {
        each.arg_name: " ".join(str(each.description).split())
        for base in reversed(declared.__mro__)
        for each in docstring_parser.parse(base.__doc__ or "").params
    }
