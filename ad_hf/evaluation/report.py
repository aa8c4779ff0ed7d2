"""The report of a run: how a model learns held-out tasks in its context, beside the source it was distilled from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.curves import FINAL_EPISODES, Curve, bootstrap_curve
from ad_hf.evaluation.evaluate import RANDOM_EPISODES, Evaluation, play_at_random
from ad_hf.evaluation.headlines import (
    Gain,
    compared_points,
    is_comparable,
    learning_of,
    share_of_optimum,
    steps_to_shares,
    untested,
)
from ad_hf.histories.dataset import HistoryDataset, load_histories
from ad_hf.histories.schema import package_versions
from ad_hf.storage.files import atomic_path, local_path, write_text

VERSIONED_PACKAGES = (
    *("ad_hf", "accelerate", "datasets", "gymnasium", "huggingface_hub", "numpy", "stable_baselines3", "torch"),
    "transformers",
)


@dataclass
class SourceCurves:
    """
    A source's own learning curves.

    Attributes:
        returns (`np.ndarray` of shape `(num_streams, num_tasks, num_episodes)`):
            Return of each episode, cut to the episodes that every stream finished; of sources that stopped when they
            had converged, continued with the mean of their last ten.
        lengths (`np.ndarray` of the same shape):
            Steps of each episode.
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Steps that a source took on average until the end of each, over all streams that it learns from.
        task_ids (`list[int]`):
            The tasks.
        step_rewards (`np.ndarray` of shape `(num_streams, num_tasks, num_steps)`, *optional*):
            Reward of each step of the first episode, if all first episodes are equally long.
        streams_per_learner (`int`):
            Streams that a source learns from: 1 if each learns for itself, all if that is not known.
    """

    returns: np.ndarray
    lengths: np.ndarray
    env_steps: np.ndarray
    task_ids: list[int]
    step_rewards: np.ndarray | None
    streams_per_learner: int


def source_curves(dataset: str | Path | HistoryDataset, split: str = "test") -> SourceCurves:
    """A source's own learning curves, from its histories of a split's tasks."""
    columns = ["task_id", "start_step", "rewards", "terminations", "truncations"]
    rows, metadata = load_histories(dataset, split, columns=columns)
    rewards: dict[tuple[int, int], list[np.ndarray]] = {}
    ends: dict[tuple[int, int], list[np.ndarray]] = {}
    runs: dict[int, int] = {}
    for row in rows.with_format("numpy"):
        task = int(row["task_id"])
        if row["start_step"] == 0:  # with several seeds, a task has a run of each stream for every seed
            runs[task] = runs.get(task, -1) + 1
            rewards[task, runs[task]], ends[task, runs[task]] = [], []
        rewards[task, runs[task]].append(row["rewards"])
        ends[task, runs[task]].append(row["terminations"] | row["truncations"])
    order = [(task, run) for run in range(min(runs.values()) + 1) for task in sorted(runs)]
    totals = [np.concatenate([[0.0], np.concatenate(rewards[key]).cumsum()]) for key in order]
    stops = [np.flatnonzero(np.concatenate(ends[key])) + 1 for key in order]
    counts = [len(stop) for stop in stops]
    if not all(counts):
        task, _ = order[counts.index(0)]
        raise ValueError(
            f"{dataset}, split {split}: a history of task {task} has no finished episode, and so no curve"
        )
    # A source that has stopped as it had converged would have gone on as it was.
    episodes = min(counts) if not metadata.source.get("until_converged") or not min(counts) else max(counts)
    found = [_episodes(total, stop, episodes) for total, stop in zip(totals, stops)]
    shape = (len(order) // len(runs), len(runs), episodes)
    returns = np.stack([each for each, _ in found]).reshape(shape)
    lengths = np.stack([each for _, each in found]).reshape(shape)
    steps = lengths.mean(axis=(0, 1)).cumsum()
    first = {int(stop[0]) for stop in stops if episodes}
    by_step = None
    if len(first) == 1:
        by_step = np.stack([np.diff(total[: min(first) + 1]) for total in totals]).reshape(*shape[:2], -1)
    together = 1 if metadata.source.get("independent_streams") else metadata.source.get("n_envs", 1)
    return SourceCurves(returns, lengths, steps * together, sorted(runs), by_step, together)


def _episodes(totals: np.ndarray, stops: np.ndarray, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths (episodes,) of a stream; beyond its last episode, means of its last ten."""
    returns, lengths = np.diff(totals[stops], prepend=0.0)[:episodes], np.diff(stops, prepend=0)[:episodes]
    missing = episodes - len(returns)
    if not missing:
        return returns, lengths
    ends = [np.full(missing, values[-FINAL_EPISODES:].mean()) for values in (returns, lengths)]
    return np.concatenate([returns, ends[0]]), np.concatenate([lengths, ends[1]])


def _curves(evaluation: Evaluation, learnt: SourceCurves | None) -> tuple[Curve, Curve | None]:
    """Curves of a model and its source: return by episode or, of rollouts of one episode, reward by step."""
    if evaluation.step_rewards is None:
        ad = bootstrap_curve(evaluation.returns, evaluation.lengths.mean(axis=(0, 1)).cumsum())
        return ad, None if learnt is None else bootstrap_curve(learnt.returns, learnt.env_steps)
    ad = bootstrap_curve(evaluation.step_rewards, np.arange(1, evaluation.step_rewards.shape[2] + 1))
    if learnt is None or learnt.step_rewards is None:
        return ad, None
    steps = np.arange(1, learnt.step_rewards.shape[2] + 1) * learnt.streams_per_learner
    return ad, bootstrap_curve(learnt.step_rewards, steps)


def _random_play(evaluation: Evaluation, family: TaskFamily) -> Evaluation | None:
    """Random actions in an evaluation's tasks, for about as many steps as it took at most."""
    longest = max(evaluation.lengths.sum(axis=2).max(), RANDOM_EPISODES * evaluation.lengths.max())
    found = play_at_random(family, evaluation.tasks, num_seeds=evaluation.returns.shape[0], max_steps=int(longest))
    return found if found is not None and np.isfinite(found.returns).all() else None


def _learning(evaluation: Evaluation, played: Evaluation | None) -> dict[str, Any]:
    """The test of learning; of single episodes by step, beyond what random play gets at the same steps."""
    if evaluation.step_rewards is None:
        return learning_of([evaluation.returns[None]])
    random = None if played is None else played.step_rewards
    if random is None or random.shape != evaluation.step_rewards.shape:
        return untested("steps")
    return learning_of([(evaluation.step_rewards - random)[None]], "steps")


def _gain(evaluation: Evaluation, learnt: SourceCurves | None, by_task: dict[str, np.ndarray | None]) -> Gain | None:
    """What the source gains over random play or, if it is not known, the best possible; by step where curves are."""
    random, optimal = by_task["random"], by_task["optimal"]
    if random is None:
        return None
    steps = 1 if evaluation.step_rewards is None else evaluation.step_rewards.shape[2]
    if learnt is None:
        return Gain.of_optimum(None if optimal is None else optimal / steps, random / steps)
    if steps == 1:
        return Gain.of_source([learnt.returns[None, ..., -FINAL_EPISODES:].mean(axis=3)], [random])
    rewards = learnt.step_rewards
    assert rewards is not None
    _, last = compared_points(rewards.shape[2], "steps") or (None, slice(None))
    return Gain.of_source([rewards[None, ..., last].mean(axis=3)], [random / steps])


def _share(by_task: dict[str, np.ndarray | None], returns: list[np.ndarray]) -> dict[str, Any]:
    """The final return as a share of the optimum, and of what: of what is to gain if any of these is negative."""
    means = {name: None if values is None else float(values.mean()) for name, values in by_task.items()}
    least = min(values.min() for values in (*returns, *by_task.values()) if values is not None)
    assert means["return"] is not None
    share, of = share_of_optimum(means["return"], means["optimal"], means["random"], bool(least < 0))
    return {"fraction_of_optimal": share, "fraction_of": of}


def normalized_return(returns: dict[str, np.ndarray | None]) -> float | None:
    """(return - random) / (source - random), each the mean over tasks; `None` where nothing is known to be gained."""
    means = {name: None if values is None else float(values.mean()) for name, values in returns.items()}
    own, random, source = means["return"], means["random"], means["source"]
    if own is None or random is None or source is None or source <= random:
        return None
    return (own - random) / (source - random)


def _groups(
    family: TaskFamily, tasks: list[Task], returns: dict[str, np.ndarray | None]
) -> dict[str, dict[str, float | None]]:
    """Mean returns of all tasks together, and of those that have a value of the family's `report_by` in common."""
    names = [str(task.kwargs.get(family.report_by)) if family.report_by else "all" for task in tasks]
    groups = {"all": np.ones(len(tasks), dtype=bool)} | {name: np.array(names) == name for name in sorted(set(names))}
    found = {}
    for name, chosen in groups.items():
        own = {key: None if values is None else values[chosen] for key, values in returns.items()}
        found[name] = {key: None if values is None else float(values.mean()) for key, values in own.items()}
        found[name] |= {"normalized": normalized_return(own), "num_tasks": int(chosen.sum())}
    return found


def write_report(
    output_dir: str | Path,
    evaluation: Evaluation,
    family: TaskFamily,
    dataset: str | Path | HistoryDataset | None,
    details: dict[str, Any],
    learnt: SourceCurves | None = None,
) -> dict[str, Any]:
    """
    Write `report.json` and `learning_curve.png` of a run.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        evaluation ([`Evaluation`]):
            Rollouts on the test tasks.
        family ([`TaskFamily`]):
            For the optimum, and random play: where the family does not know what that gets, random actions are taken
            in its environments.
        dataset (`str`, `Path` or [`~ad_hf.histories.dataset.HistoryDataset`], *optional*):
            Histories whose test split holds the source's own curves on the same tasks. Without any, what the report
            would say of the source is `None`.
        details (`dict`):
            Further entries of the report: seconds by stage, seeds, settings.
        learnt ([`SourceCurves`], *optional*):
            What [`source_curves`] reads in these histories, if that was done before.

    Returns:
        `dict`: the report.
    """
    output_dir = local_path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    opened = None if dataset is None else HistoryDataset.open(dataset)
    if opened is not None and learnt is None:
        learnt = source_curves(opened)
    ad, source = _curves(evaluation, learnt)
    known = family.random_returns(evaluation.tasks)
    needed = known is None or evaluation.step_rewards is not None
    played = _random_play(evaluation, family) if needed else None
    final = evaluation.final_returns.mean(axis=(0, 2))  # (num_tasks,)
    final_interval = bootstrap_curve(evaluation.final_returns.mean(axis=2, keepdims=True), np.zeros(1))
    by_task = {
        "return": final,
        "optimal": family.optimal_returns(evaluation.tasks),
        "random": known if known is not None or played is None else played.returns.mean(axis=(0, 2)),
        "source": None if learnt is None else learnt.returns[..., -FINAL_EPISODES:].mean(axis=(0, 2)),
    }
    means = {name: None if values is None else float(values.mean()) for name, values in by_task.items()}
    learns = _learning(evaluation, played)
    episodes = evaluation.returns.shape[2]
    report = {
        "test_return_final": float(final.mean()),
        "test_return_final_interval": [float(final_interval.low[0]), float(final_interval.high[0])],
        "test_return_first": float(evaluation.returns[..., 0].mean()),
        "learns": learns,
        "optimal_return": means["optimal"],
        **_share(by_task, [evaluation.returns] + ([] if learnt is None else [learnt.returns])),
        "random_return": means["random"],
        "random_episodes": None if known is not None or played is None else played.returns.size,
        "source_return_final": means["source"],
        "groups": _groups(family, evaluation.tasks, by_task),
        "env_steps_to": steps_to_shares(
            ad,
            source,
            _gain(evaluation, None if source is None else learnt, by_task),
            learns["verdict"],
            opened is not None and is_comparable(opened.metadata.source),
            "ad",
        ),
        "final_episodes": [max(1, episodes - FINAL_EPISODES + 1), episodes],
        "num_test_tasks": len(evaluation.tasks),
        "num_rollout_seeds": evaluation.returns.shape[0],
        "rollout_seed": evaluation.seed,
        "tasks": [
            {"task_id": task.task_id, "kwargs": task.kwargs}
            | {name: None if values is None else float(values[index]) for name, values in by_task.items()}
            for index, task in enumerate(evaluation.tasks)
        ],
        "dataset": None if opened is None else opened.to_json(),
        "source": None if opened is None else opened.metadata.source,
        **details,
        "versions": package_versions(VERSIONED_PACKAGES),
        "curves": {
            "of": "return of an episode" if evaluation.step_rewards is None else "reward of a step",
            "ad": ad.to_json(),
            "source": None if source is None else source.to_json(),
        },
    }
    from ad_hf.evaluation.plots import plot_learning_curves  # only here is matplotlib needed

    with atomic_path(output_dir / "learning_curve.png") as path:
        plot_learning_curves(path, ad, source, report)
    write_text(output_dir / "report.json", json.dumps(report, indent=2) + "\n")
    return report
