"""Statistics of in-context learning: means and interquartile means with intervals, regret, steps to a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

FINAL_EPISODES = 10  # the end of a rollout, that results are taken from
SMOOTHING_EPISODES = 5
TRIMMED = 0.25  # at either end of an interquartile mean
RESAMPLES = 1000


@dataclass
class Curve:
    """
    Return by episode, with a confidence band.

    Attributes:
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Environment steps taken until the end of each episode, all parallel streams counted.
        mean, low, high (`np.ndarray` of shape `(num_episodes,)`):
            Mean return and the bounds of its 95% confidence interval over models, tasks and rollouts.
    """

    env_steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_json(self) -> dict[str, list[float]]:
        """Lists of rounded numbers."""
        return {name: np.round(values, 4).tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, lists: Mapping[str, Sequence[float]]) -> Curve:
        """The inverse of [`~Curve.to_json`]."""
        return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in lists.items()})


def bootstrap_means(blocks: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """
    Means of a hierarchical bootstrap over models, tasks, and rollouts in each task: how would other trainings on other
    tasks of the family do?

    Args:
        blocks (`Sequence[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, ...)`):
            Values of each split into training and test tasks, which has models of its own.
        resamples (`int`, *optional*, defaults to 1000):
            Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `np.ndarray` of shape `(resamples, ...)`: means over all tasks.
    """
    rng = np.random.default_rng(seed)
    num_tasks = sum(block.shape[2] for block in blocks)
    means = np.zeros((resamples, *blocks[0].shape[3:]))
    for sample in range(resamples):
        for block in blocks:
            models, rollouts, tasks = block.shape[:3]
            own: Any = rng.integers(models, size=models) if models > 1 else np.zeros(1, dtype=np.int64)
            drawn: Any = rng.integers(tasks, size=tasks)
            runs = rng.integers(rollouts, size=(models, rollouts, tasks) if models > 1 else (rollouts, tasks))
            values = block[own[:, None, None], runs.reshape(models, rollouts, tasks), drawn]
            means[sample] += values.mean(axis=(0, 1)).sum(axis=0) / num_tasks
    return means


def mean_of(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over models and rollouts, and over the tasks of all blocks (see [`bootstrap_means`])."""
    return np.concatenate([block.mean(axis=(0, 1)) for block in blocks]).mean(axis=0)


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the 95% interval of bootstrap samples (resamples, ...)."""
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return low, high


def bootstrap_curve(blocks: Sequence[np.ndarray], env_steps: np.ndarray) -> Curve:
    """The curve of blocks (num_models, num_rollouts, num_tasks, num_episodes) at env_steps (num_episodes,)."""
    return Curve(env_steps, mean_of(blocks), *interval(bootstrap_means(blocks)))


def interquartile_mean(blocks: Sequence[np.ndarray]) -> tuple[float, tuple[float, float] | None]:
    """
    Interquartile mean, and its stratified bootstrap interval: tasks stay, the runs of each are drawn anew.

    [Agarwal et al.](https://huggingface.co/papers/2108.13264) (section 4.3) recommend this mean of the middle half of
    all runs of all tasks. Runs are the rollouts of all models, as if independent: how would other runs do in *these*
    tasks? [`bootstrap_means`] says more of how trainings differ.

    Args:
        blocks (`Sequence[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks)`):
            A score of each run, comparable between tasks, such as its share of the optimum.

    Returns:
        `tuple`: the interquartile mean, and the bounds of its 95% interval, or `None` where each task has one run.
    """
    strata = [scores for block in blocks for scores in block.reshape(-1, block.shape[2]).T]

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(np.concatenate(samples, axis=axis), TRIMMED, axis=axis)

    value = float(statistic(*strata))
    if min(map(len, strata)) < 2:
        return value, None
    bounds = stats.bootstrap(
        strata, statistic, n_resamples=RESAMPLES, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return value, (float(bounds.low), float(bounds.high))


def regret(returns: np.ndarray, optimal: np.ndarray) -> np.ndarray:
    """Sum over episodes of the best possible return (num_tasks,) less a return (..., num_tasks, num_episodes)."""
    return (optimal[:, None] - returns).sum(axis=-1)


def steps_to_level(curve: Curve, level: float) -> int | None:
    """
    Environment steps until the mean return, averaged over 5 episodes, first reaches a level; `None` if it never does.

    The average trails, so that no episode counts before it was played.
    """
    width = min(SMOOTHING_EPISODES, len(curve.mean))
    smooth = np.convolve(curve.mean, np.full(width, 1 / width), mode="valid")
    reached = np.flatnonzero(smooth >= level)
    return int(curve.env_steps[reached[0] + width - 1]) if reached.size else None
