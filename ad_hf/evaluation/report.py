"""The report of a run: how a model learns held-out tasks in its context, beside the source it was distilled from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.evaluate import FINAL_EPISODES, Evaluation
from ad_hf.files import atomic_path, write_text
from ad_hf.histories.dataset import HistoryDataset, load_histories
from ad_hf.histories.schema import package_versions

SMOOTHING_EPISODES = 5
VERSIONED_PACKAGES = (
    *("ad_hf", "accelerate", "datasets", "gymnasium", "huggingface_hub", "numpy", "stable_baselines3", "torch"),
    "transformers",
)


@dataclass
class Curve:
    """
    Return by episode, with a confidence band.

    Attributes:
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Environment steps taken until the end of each episode, all parallel streams counted.
        mean, low, high (`np.ndarray` of shape `(num_episodes,)`):
            Mean return and the bounds of its 95% confidence interval over tasks and seeds.
    """

    env_steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_json(self) -> dict[str, list[float]]:
        """Lists of rounded numbers."""
        return {name: np.round(values, 4).tolist() for name, values in vars(self).items()}


def bootstrap_curve(returns: np.ndarray, env_steps: np.ndarray, resamples: int = 1000, seed: int = 0) -> Curve:
    """
    Mean return by episode with a hierarchical bootstrap interval: tasks are drawn anew, and runs within each.

    Args:
        returns (`np.ndarray` of shape `(num_runs, num_tasks, num_episodes)`):
            Return of each episode.
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Environment steps until the end of each episode.
        resamples (`int`, *optional*, defaults to 1000):
            Bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    num_runs, num_tasks, _ = returns.shape
    means = np.empty((resamples, returns.shape[2]))
    for sample in range(resamples):
        tasks = rng.integers(num_tasks, size=num_tasks)
        runs = rng.integers(num_runs, size=(num_runs, num_tasks))
        means[sample] = returns[runs, tasks].mean(axis=(0, 1))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return Curve(env_steps, returns.mean(axis=(0, 1)), low, high)


def source_returns(dataset: str | Path | HistoryDataset, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """
    A source's own learning curves, from its histories.

    Returns:
        Returns (num_streams, num_tasks, num_episodes), cut to the episodes that every stream finished, and the
        environment steps (num_episodes,) that a source took on average until the end of each, over all its streams.
    """
    columns = ["task_id", "stream", "piece", "rewards", "terminations", "truncations"]
    rows, metadata = load_histories(dataset, split, columns=columns)
    streams: dict[tuple[int, int], list[np.ndarray]] = {}
    lengths: dict[tuple[int, int], list[np.ndarray]] = {}
    runs: dict[int, int] = {}
    for row in rows.with_format("numpy"):
        task, ends = int(row["task_id"]), row["terminations"] | row["truncations"]
        if row["piece"] == 0:  # with several seeds, a task has a run of each stream for every seed
            runs[task] = runs.get(task, -1) + 1
            streams[task, runs[task]], lengths[task, runs[task]] = [], []
        stops = np.flatnonzero(ends) + 1
        starts = np.concatenate([[0], stops])[:-1]
        totals = np.concatenate([[0.0], np.cumsum(row["rewards"])])
        streams[task, runs[task]].append(totals[stops] - totals[starts])
        lengths[task, runs[task]].append(stops - starts)
    episodes = min(sum(map(len, parts)) for parts in streams.values())
    tasks = sorted(runs)
    shape = (-1, len(tasks), episodes)
    order = [(task, run) for run in range(min(runs.values()) + 1) for task in tasks]
    returns = np.stack([np.concatenate(streams[key])[:episodes] for key in order]).reshape(shape)
    steps = np.stack([np.concatenate(lengths[key])[:episodes] for key in order]).reshape(shape)
    return returns, steps.mean(axis=(0, 1)).cumsum() * metadata.source["n_envs"]


def steps_to_level(curve: Curve, level: float) -> int | None:
    """
    Environment steps until the mean return, averaged over 5 episodes, first reaches a level; `None` if it never does.

    The average trails, so that no episode counts before it was played.
    """
    width = min(SMOOTHING_EPISODES, len(curve.mean))
    smooth = np.convolve(curve.mean, np.full(width, 1 / width), mode="valid")
    reached = np.flatnonzero(smooth >= level)
    return int(curve.env_steps[reached[0] + width - 1]) if reached.size else None


def write_report(
    output_dir: str | Path,
    evaluation: Evaluation,
    family: TaskFamily,
    dataset: str | Path | HistoryDataset | None,
    details: dict[str, Any],
) -> dict[str, Any]:
    """
    Write `report.json` and `learning_curve.png` of a run.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        evaluation ([`Evaluation`]):
            Rollouts on the test tasks.
        family ([`TaskFamily`]):
            For the optimum.
        dataset (`str`, `Path` or [`~ad_hf.histories.dataset.HistoryDataset`], *optional*):
            Histories whose test split holds the source's own curves on the same tasks. Without any, what the report
            would say of the source is `None`.
        details (`dict`):
            Further entries of the report: seconds by stage, seeds, settings.

    Returns:
        `dict`: the report.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    opened = None if dataset is None else HistoryDataset.open(dataset)
    returns = evaluation.returns
    ad = bootstrap_curve(returns, evaluation.lengths.mean(axis=(0, 1)).cumsum())
    source = None if opened is None else bootstrap_curve(*source_returns(opened))
    optimal = family.optimal_returns(evaluation.tasks)
    final = evaluation.final_returns.mean(axis=(0, 2))  # (num_tasks,)
    final_interval = bootstrap_curve(evaluation.final_returns.mean(axis=2, keepdims=True), np.zeros(1))
    test_return = float(final.mean())
    level = test_return - 0.1 * abs(test_return)
    steps = {"ad": steps_to_level(ad, level), "source": None if source is None else steps_to_level(source, level)}
    ratio = steps["source"] / steps["ad"] if steps["source"] and steps["ad"] else None
    report = {
        "test_return_final": test_return,
        "test_return_final_interval": [float(final_interval.low[0]), float(final_interval.high[0])],
        "test_return_first": float(returns[..., 0].mean()),
        "optimal_return": None if optimal is None else float(optimal.mean()),
        "fraction_of_optimal": test_return / float(optimal.mean()) if optimal is not None and optimal.any() else None,
        "source_return_final": None if source is None else float(source.mean[-FINAL_EPISODES:].mean()),
        "env_steps_to_90": {**steps, "level": level, "ratio": ratio},
        "final_episodes": [max(1, returns.shape[2] - FINAL_EPISODES + 1), returns.shape[2]],
        "num_test_tasks": len(evaluation.tasks),
        "num_rollout_seeds": returns.shape[0],
        "rollout_seed": evaluation.seed,
        "tasks": [
            {
                "task_id": task.task_id,
                "kwargs": task.kwargs,
                "return": float(final[index]),
                "optimal": None if optimal is None else float(optimal[index]),
            }
            for index, task in enumerate(evaluation.tasks)
        ],
        "dataset": None if opened is None else opened.to_json(),
        "source": None if opened is None else opened.metadata.source,
        **details,
        "versions": package_versions(VERSIONED_PACKAGES),
        "curves": {"ad": ad.to_json(), "source": None if source is None else source.to_json()},
    }
    from ad_hf.evaluation.plots import plot_learning_curves  # only here is matplotlib needed

    with atomic_path(output_dir / "learning_curve.png") as path:
        plot_learning_curves(path, ad, source, report)
    write_text(output_dir / "report.json", json.dumps(report, indent=2) + "\n")
    return report
