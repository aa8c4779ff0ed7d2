"""Settings of sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ad_hf.settings import check_settings, setting, shown


@dataclass
class SourceConfig:
    """The `source` section: how each task is learnt.

    Args:
        algorithm: Any Stable-Baselines3 or sb3-contrib algorithm.
        n_envs: Parallel environments of a learner; each gives one history.
        total_timesteps: Transitions per task and seed, over all environments.
        hyperparameters: Arguments of the algorithm.
        seeds: Each task is learnt once with each of them.
        tasks_per_job: Tasks that one learner learns side by side, of those algorithms that can.
        until_converged: Learn until returns have stopped to improve, from `total_timesteps` at most: settings of
            `StopWhenConverged` (window, tolerance, patience, return_threshold, min_timesteps); `{}` for its defaults.
        callbacks: Stable-Baselines3 callbacks of each learner: import paths, or `{name: import path, kwargs: {...}}`.
            `{task_id}` and `{seed}` in arguments that are text are filled in.
    """

    algorithm: str = "A2C"
    n_envs: int = setting(50, least=1)
    total_timesteps: int = setting(100_000, least=1)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks_per_job: int = setting(1, least=1)
    until_converged: dict[str, Any] | None = None
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_settings(self, "source")
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**32:
            raise ValueError(f"source.seeds must hold whole numbers from 0 to 2**32 - 1, got {shown(self.seeds)}")
