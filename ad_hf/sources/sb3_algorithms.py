"""The algorithms of Stable-Baselines3 and, if it is installed, sb3-contrib, by name."""

from __future__ import annotations

import inspect
from contextlib import suppress

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from ad_hf.settings import did_you_mean

Algorithms = dict[str, type[BaseAlgorithm]]


def algorithms_of(module: object) -> Algorithms:
    """The algorithms in a module."""
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: each for name, each in classes if issubclass(each, BaseAlgorithm) and not inspect.isabstract(each)}


SB3_ALGORITHMS = algorithms_of(stable_baselines3)
with suppress(ImportError):
    import sb3_contrib

    SB3_ALGORITHMS |= algorithms_of(sb3_contrib)


def find_in(algorithms: Algorithms, name: str) -> type[BaseAlgorithm]:
    """The algorithm of a name such as `"A2C"`; a `ValueError` with all names if there is none."""
    if name not in algorithms:
        raise ValueError(
            f"unknown source algorithm {name!r}{did_you_mean(name, algorithms)}: expected one of "
            f"{', '.join(sorted(algorithms))}"
        )
    return algorithms[name]
