"""Settings of sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ad_hf.envs.imports import import_callable
from ad_hf.settings import check_settings, excerpt, make_section, plain, setting

MOST = (1 << 63) - 1  # of whole numbers in metadata.json


def takes_class(name: str) -> bool:
    """Whether the hyper-parameter of a name takes a class: an import path in files, or the class itself in Python."""
    return name.endswith("_class") or name in ("activation_fn", "policy")


def _import_path(given: type, where: str) -> str:
    """The import path of a class, by which worker processes and later runs find it again."""
    path = f"{given.__module__}.{given.__qualname__}"
    if "<locals>" in path:
        raise ValueError(
            f"{where}: {given.__name__} is defined inside a function, from which no other process can import it: "
            "define it at the top level of a module"
        )
    if import_callable(path, where) is not given:
        raise ValueError(
            f"{where}: {path} is another class than the one given: give the one that has this import path"
        )
    return path


def _with_paths(value: Any, where: str, takes_class: Callable[[str], bool], is_class: bool = True) -> Any:
    """Settings with import paths in the place of classes, under names that take a class."""
    if isinstance(value, type) and is_class:
        return _import_path(value, where)
    if isinstance(value, dict):
        return {
            name: _with_paths(each, f"{where}.{name}", takes_class, takes_class(str(name)))
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_paths(each, f"{where}[{index}]", takes_class, is_class) for index, each in enumerate(value)]
    return value


@dataclass
class ConvergenceConfig:
    """The setting `source.until_converged`: when returns count as converged, see `StopWhenConverged`.

    Args:
        window: Episodes of each stream that make a window.
        tolerance: Share of the range of returns so far by which a window must exceed the best one to improve on it.
        patience: Windows in a row without an improvement.
        return_threshold: Least mean return of converged windows, in place of having risen.
        min_timesteps: Transitions of a task, over its streams, before which it has not converged.
    """

    window: int = setting(20, least=1)
    tolerance: float = setting(0.02, least=0)
    patience: int = setting(3, least=1)
    return_threshold: float | None = None
    min_timesteps: int = setting(0, least=0)

    def __post_init__(self) -> None:
        check_settings(self, "source.until_converged")


@dataclass
class SourceConfig:
    """The `source` section: how each task is learnt.

    Args:
        algorithm: Any Stable-Baselines3 or sb3-contrib algorithm, `TabularQ`, `UCB`, `ThompsonSampling` or
            `NoisedPolicy`, or the import path of a class of your own. That is a subclass of one of these, or a
            `VectorLearner`; in Python the class itself will do.
        n_envs: Parallel environments of a learner; each gives one history.
        total_timesteps: Transitions per task and seed, over all environments.
        hyperparameters: Arguments of the algorithm. Classes among them are import paths, or in Python classes.
        seeds: Each task is learnt once with each of them.
        tasks_per_job: Tasks that one learner learns side by side, of those algorithms that can (ad_hf's own). Random
            numbers depend on a task's place among them.
        until_converged: Learn until returns have stopped to improve, from `total_timesteps` at most: settings of
            `ConvergenceConfig` (window, tolerance, patience, return_threshold, min_timesteps); `{}` for its defaults.
        callbacks: Stable-Baselines3 callbacks of each learner: import paths, or `{name: import path, kwargs: {...}}`.
            In Python a class will do for its path. `{task_id}` and `{seed}` in arguments that are text are filled in.
    """

    algorithm: str = "A2C"
    n_envs: int = setting(50, least=1, most=MOST)
    total_timesteps: int = setting(100_000, least=1, most=MOST)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks_per_job: int = setting(1, least=1, most=MOST)
    until_converged: dict[str, Any] | None = None
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.algorithm = _with_paths(self.algorithm, "source.algorithm", takes_class)
        self.callbacks = _with_paths(self.callbacks, "source.callbacks", "name".__eq__)
        self.hyperparameters = _with_paths(self.hyperparameters, "source.hyperparameters", takes_class)
        for each in fields(self):
            setattr(self, each.name, plain(getattr(self, each.name), f"source.{each.name}"))
        check_settings(self, "source")
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**32 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"source.seeds must hold different whole numbers from 0 to 2**32 - 1, got {excerpt(self.seeds)}"
            )
        self.convergence()  # which refuses other settings

    def convergence(self) -> ConvergenceConfig | None:
        """The settings of `until_converged`, if that is set."""
        if self.until_converged is None:
            return None
        return make_section(ConvergenceConfig, self.until_converged, "source.until_converged")
