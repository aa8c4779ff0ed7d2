"""Sources that learn until they have converged."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from ad_hf.sources.config import ConvergenceConfig

LEARNT_ERRORS = 3.0  # standard errors by which returns must rise to count as learnt


class StopWhenConverged(BaseCallback):
    r"""
    Stops a learner once its returns no longer improve: as a callback of Stable-Baselines3, or step by step.

    A window is some episodes of each stream, and its return is the mean over all streams. It improves if it exceeds
    the best before by more than `tolerance` times the range of windows so far. The source has converged when
    `patience` windows in a row have not improved, and it has learnt something: they are above the first window by more
    than three standard errors. So a source that has not found a sparse reward yet goes on. With `return_threshold`,
    those windows must reach that instead; without, a source that is optimal from its first episodes on does not count
    as converged.

    A plateau on the way, such as after the first of two rewards, counts as convergence if it is longer than `patience`
    windows; `min_timesteps` rules that out.

    Args:
        config ([`~ad_hf.sources.config.ConvergenceConfig`]):
            The settings: window, tolerance, patience, return_threshold and min_timesteps.
        num_tasks (`int`, *optional*, defaults to 1):
            Tasks that the learner learns side by side: stream i is of task i modulo their number. Each converges by
            itself; the learner stops when all have.

    Attributes:
        converged_at (`list[int | None]`):
            Of each task, the steps of a stream after which it had converged, `None` if it has not.

    Raises:
        ValueError: with algorithms that tell callbacks no rewards, such as ARS.
    """

    def __init__(self, config: ConvergenceConfig, num_tasks: int = 1) -> None:
        super().__init__()
        self.config, self.num_tasks = config, num_tasks
        self.converged_at: list[int | None] = [None] * num_tasks

    def _init_callback(self) -> None:
        self.begin(self.training_env.num_envs)

    def begin(self, num_envs: int) -> None:
        """Begin with the streams of a learner."""
        self._steps = 0
        self._running = np.zeros(num_envs)
        self._counts = np.zeros(num_envs, dtype=np.int64)
        self._episodes: list[list[float]] = [[] for _ in range(num_envs)]  # of windows that are not complete
        self._windows: list[list[tuple[float, float]]] = [[] for _ in range(self.num_tasks)]  # mean, variance of it
        self._best = [-np.inf] * self.num_tasks
        self._since_best = [0] * self.num_tasks

    def _on_step(self) -> bool:
        if "rewards" not in self.locals:
            raise ValueError(
                f"{type(self.model).__name__} tells callbacks no rewards: it cannot learn until_converged"
            )
        return self.add(self.locals["rewards"], self.locals["dones"])

    def drop_episodes(self) -> None:
        """Forget the episodes under way, which a reset cuts."""
        self._running[:] = 0.0

    def add(self, rewards: np.ndarray, dones: np.ndarray) -> bool:
        """Add the rewards (num_envs,) of a step that ended some episodes (num_envs,); returns whether to go on."""
        self._steps += 1
        self._running += rewards
        ended = np.flatnonzero(dones)
        if not ended.size:
            return True
        for stream, total in zip(ended.tolist(), self._running[ended].tolist()):
            self._episodes[stream].append(total)
        self._running[ended] = 0.0
        self._counts[ended] += 1
        fewest = self._counts.reshape(-1, self.num_tasks).min(axis=0).tolist()
        for task, episodes in enumerate(fewest):
            while self.converged_at[task] is None and episodes >= (len(self._windows[task]) + 1) * self.config.window:
                if self._close_window(task):
                    self.converged_at[task] = self._steps
        return any(step is None for step in self.converged_at)

    def _close_window(self, task: int) -> bool:
        """Take a window's episodes from a task's streams; returns whether it has converged."""
        streams = self._episodes[task :: self.num_tasks]
        returns = np.array([episodes[: self.config.window] for episodes in streams])
        for episodes in streams:
            del episodes[: self.config.window]
        windows = self._windows[task]
        windows.append((float(returns.mean()), float(returns.var()) / returns.size))
        means = [mean for mean, _ in windows]
        if means[-1] > self._best[task] + self.config.tolerance * (max(means) - min(means)) or len(means) == 1:
            self._best[task], self._since_best[task] = means[-1], 0
            return False
        self._since_best[task] += 1
        if self._since_best[task] < self.config.patience or self._steps * len(streams) < self.config.min_timesteps:
            return False
        return self._has_learnt(np.array(windows))

    def _has_learnt(self, windows: np.ndarray) -> bool:
        (first, first_variance), last = windows[0], windows[-self.config.patience :]
        reached = last[:, 0].mean()
        if self.config.return_threshold is not None:
            return bool(reached >= self.config.return_threshold)
        standard_error = np.sqrt(first_variance + last[:, 1].mean() / self.config.patience)
        return bool(reached - first > LEARNT_ERRORS * standard_error)
