"""The algorithms of Stable-Baselines3 and, if it is installed, sb3-contrib, by name."""

from __future__ import annotations

import inspect
from contextlib import suppress

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

Algorithms = dict[str, type[BaseAlgorithm]]


def algorithms_of(module: object) -> Algorithms:
    """The algorithms that a module has."""
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in classes.items()
        if issubclass(value, BaseAlgorithm) and not inspect.isabstract(value)
    }


SB3_ALGORITHMS = algorithms_of(stable_baselines3)
with suppress(ImportError):
    import sb3_contrib

    SB3_ALGORITHMS |= algorithms_of(sb3_contrib)


def find_in(algorithms: Algorithms, name: str) -> type[BaseAlgorithm]:
    """The algorithm of a name such as `"A2C"`; a `ValueError` with all names if there is none."""
    if name not in algorithms:
        raise ValueError(f"unknown source algorithm {name!r}: expected one of {', '.join(sorted(algorithms))}")
    return algorithms[name]
