"""Functions, classes and modules by the import paths in a user's settings."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any


def import_named(module: str, setting: str) -> ModuleType:
    """
    A module by its name.

    Raises:
        ValueError: naming the setting: with where to put the module if there is none, or with the error inside of it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):
            raise _failed(module, setting, error) from error  # the module is there and imports another one
        first = module.partition(".")[0]
        raise ValueError(
            f"{setting}: No module named {error.name!r}: put {first}.py beside the recipe's file or into the working "
            "directory, or install the package that it is in"
        ) from error
    except Exception as error:  # a module may raise anything
        raise _failed(module, setting, error) from error


def _failed(module: str, setting: str, error: Exception) -> ValueError:
    """The error inside a module, with the last line of Python code that led to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""  # the first one is ours
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ValueError(f"{setting}: the module {module} cannot be imported: {text}{where}")


def import_callable(path: Any, setting: str) -> Callable[..., Any]:
    """The function or class of an import path such as `"gymnasium.wrappers.TimeLimit"`, or a `ValueError`."""
    expected = f"{setting} must be the import path of a function or class, such as my_module.MyClass, got {path!r}"
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(expected)
    where = f"{setting} {path!r}"
    name, *parts = path.split(".")
    imported: Any = import_named(name, where)
    for part in parts:
        name = f"{name}.{part}"
        if isinstance(imported, ModuleType) and _is_module(name):
            imported = import_named(name, where)
        elif hasattr(imported, part):
            imported = getattr(imported, part)
        else:
            what = f"module {imported.__name__!r}" if isinstance(imported, ModuleType) else repr(imported)
            raise ValueError(f"{expected}: {what} has no attribute {part!r}")
    if not callable(imported):
        raise ValueError(f"{expected}, which is of type {type(imported).__name__}")
    return imported


def _is_module(name: str) -> bool:
    """Whether there is such a module in a package that is imported already."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False
