"""Settings: JSON and YAML read safely, and their values checked against the dataclasses that declare them."""

from __future__ import annotations

import difflib
import inspect
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import docstring_parser
import numpy as np
import yaml

from ad_hf.structure import NAMES, excerpt, find_fault

MOST_NODES = 1_000_000  # of a YAML file whose aliases are written out


def read_utf8(path: str | Path) -> str:
    """The text of a regular file; a `ValueError` or `FileNotFoundError` that names it if there is none."""
    if not Path(path).is_file():  # reading a pipe would wait
        raise FileNotFoundError(f"{path} is not a file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _parse(load: Callable[[str], Any], text: str, name: str | Path, kind: type, language: str) -> Any:
    try:
        value = load(text)
    except RecursionError as error:
        raise ValueError(f"{name} nests too deep to be read") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{name} is not {language}: {' '.join(str(error).split())}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{name} must hold {NAMES[kind]}, got {excerpt(value)}")
    return value


def _load_json(text: str) -> Any:
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:  # perhaps half a character, which is JSON and cannot be written again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_json(text: str, name: str | Path, kind: type = dict) -> Any:
    """The content of JSON text; a `ValueError` with the name of its file, also if its top level is of another type."""
    return _parse(_load_json, text, name, kind, "JSON")


def read_json(path: str | Path, kind: type = dict) -> Any:
    """The content of a JSON file; see [`parse_json`] and [`read_utf8`] for errors."""
    return parse_json(read_utf8(path), path, kind)


class _Loader(yaml.SafeLoader):
    """YAML as plain data: numbers as people write them, no key twice, no aliases that grow without bound."""

    def compose_document(self) -> Any:
        document: Any = super().compose_document()
        nodes, count = [document], 0
        while nodes:  # each as often as aliases stand for it
            node = nodes.pop()
            count += 1
            if count > MOST_NODES:
                raise ValueError("its aliases stand for too much")
            if isinstance(node, yaml.MappingNode):
                nodes += [each for pair in node.value for each in pair]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
        return document

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if not isinstance(name, str):
                    raise ValueError(f"the key {excerpt(name)} is not text: quote it{key.start_mark}")
                if name in names:
                    raise ValueError(f"{name!r} stands there twice{key.start_mark}")
                names.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what [`_Loader`] reads: text that it would take for a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):  # YAML 1.1, which PyYAML reads, takes 3e-4 for text
    _class.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789."))
NOT_IN_JSON = {f"tag:yaml.org,2002:{kind}" for kind in ("binary", "set", "omap", "pairs")}
_Loader.yaml_constructors = {
    **{tag: constructor for tag, constructor in _Loader.yaml_constructors.items() if tag not in NOT_IN_JSON},
    "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
}


def parse_yaml(text: str, name: str | Path, kind: type = dict) -> Any:
    """
    The content of YAML text as plain data: mappings with text as keys, lists, text, numbers, truth values, null.

    Errors have the name of its file, as for JSON; a key that stands there twice is one, too.
    """
    return _parse(lambda text: yaml.load(text, _Loader), text, name, kind, "the YAML that settings are")


def read_yaml(path: str | Path, kind: type = dict) -> Any:
    """The content of a YAML file; see [`parse_yaml`] and [`read_utf8`] for errors."""
    return parse_yaml(read_utf8(path), path, kind)


def dump_yaml(data: Any) -> str:
    """YAML text that [`parse_yaml`] reads back as it was."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def setting(default: Any = MISSING, **limits: float) -> Any:
    """A field of a dataclass of settings that is a number with `least`, `above`, `most` or `below` as its limits."""
    return field(default=default, metadata=limits)


_kinds: Any = cache(get_type_hints)


def check_settings(config: Any, section: str) -> None:
    """
    Check the fields of a dataclass of settings, in its `__post_init__`, against their types and limits.

    Numbers of numpy become Python's, tuples become lists, and whole numbers where a number is expected become floats.
    A `ValueError` says `section.name`, the value and the expected type, as [`~ad_hf.structure.check_structure`] does.
    """
    kinds = _kinds(type(config))
    for each in fields(config):
        name, value, kind = f"{section}.{each.name}", _plain(getattr(config, each.name)), kinds[each.name]
        if fault := find_fault([value], kind):
            raise ValueError(f"{name}{fault[1]} {fault[2]}")
        limits = {} if value is None or isinstance(value, str) else each.metadata
        if not all(LIMITS[limit][1](value, bound) for limit, bound in limits.items()):
            words = " and ".join(f"{LIMITS[limit][0]} {bound}" for limit, bound in limits.items())
            raise ValueError(f"{name} must be {words}, got {excerpt(value)}")
        if type(value) is int and (kind is float or {int, float} & set(get_args(kind)) == {float}):
            value = float(value)
        setattr(config, each.name, value)


def _plain(value: Any) -> Any:
    """A value as JSON would give it back, of numpy's numbers and tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def plain(value: Any, name: str, allow_nan: bool = True) -> Any:
    """
    A value as JSON would give it back: lists for tuples and arrays, Python's numbers for numpy's; a `ValueError` with
    its name if it is not JSON.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=allow_nan, default=lambda array: array.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be JSON, to be stored as such: use {'' if allow_nan else 'finite '}numbers, text, lists and "
            f"dicts, got {excerpt(value)} ({error})"
        ) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The question that ends an error about an unknown name, `" (did you mean seed?)"`, or nothing if none is near."""
    known = {each.lower(): each for each in names}
    near = [known[each] for each in difflib.get_close_matches(name.lower(), known, n=2)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


T = TypeVar("T")
R = TypeVar("R")


def make_section(declared: type[T], settings: Mapping[str, Any], section: str) -> T:
    """A dataclass of settings by their names in a file; a `ValueError` names unknown settings and wrong values."""
    names = [each.name for each in fields(declared)]  # type: ignore[arg-type]
    for name in settings:
        if name not in names:
            near = did_you_mean(name, names)
            raise ValueError(f"unknown setting {section}.{name}{near}: expected one of {', '.join(names)}")
    try:
        return declared(**settings)
    except ValueError as error:
        message = str(error)
        is_named = message.startswith((f"{section}.", f"unknown setting {section}."))
        raise ValueError(message if is_named else f"{section}.{message}") from error


def with_settings(
    declared: Any, section: str, argument: str = "config"
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """
    Let a function that takes a dataclass of settings as an argument take them as keywords, too.

    `collect(family, SourceConfig("A2C", n_envs=50))` is then also `collect(family, algorithm="A2C", n_envs=50)` and
    `collect(family, "A2C", n_envs=50)`; keywords beside a dataclass replace its settings in a copy. The function
    always gets a dataclass, and its signature lists the settings.
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
    """Descriptions of a dataclass's settings by name, from its docstring and those of its bases."""
    return {
        name: " ".join(str(each.description).split())
        for base in reversed(declared.__mro__)
        for each in docstring_parser.parse(base.__doc__ or "").params
        for name in each.arg_name.split(", ")
    }
