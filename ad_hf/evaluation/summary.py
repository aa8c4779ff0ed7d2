"""`evaluation.json`, which follows from the rows of `returns.parquet` alone, and its words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_hf.evaluation.curves import (
    FINAL_EPISODES,
    Curve,
    bootstrap_curve,
    bootstrap_means,
    interquartile_mean,
    interval,
    mean_of,
    regret,
)
from ad_hf.evaluation.headlines import (
    OF_RETURN,
    Gain,
    evidence_words,
    final_points,
    learning_of,
    pace_lines,
    share_of_optimum,
    shares_of,
    steps_to_shares,
    streams_words,
    untested,
    verdict_words,
)
from ad_hf.evaluation.returns import RANDOM, ROWS_FILE, SOURCE

SUMMARY_FILE = "evaluation.json"
PICTURES = CURVES_FILE, ROOMS_FILE = "learning_curve.png", "rooms.png"
EVALUATION_FILES = (ROWS_FILE, SUMMARY_FILE, *PICTURES)
FILES_FOR_PEOPLE = {"picture": CURVES_FILE, "rooms": ROOMS_FILE, "paths": "paths.gif"}
FILES_FOR_PEOPLE |= {"replay": "replay.gif", "video": "replay.mp4"}
FILES_FOR_PEOPLE |= {"returns": ROWS_FILE, "summary": SUMMARY_FILE}
SUMMARY_ENTRIES = ("of", "optimal_return", "random_return", "agents", "groups", "tasks", "versions")
REPORTED_EPISODES = (1, 10, 25, 50, 100, 250, 500, 1000)
KEYS = ["split_seed", "training_seed", "rollout", "task_id"]  # of a row; without a training seed they are one model's
TASK_COLUMNS = ["split_seed", "task_id", "task", "group", "optimal_return", "random_return"]
FINAL = slice(-FINAL_EPISODES, None)
EPISODES, STEPS = "return of an episode", "reward of a step"  # the values of a curve


class AgentReturns:
    """
    The returns of an agent, from the rows of a table.

    Args:
        rows (`pa.Table`):
            The agent's rows; each split has as many of them for each task and training.

    Attributes:
        returns, lengths (`list[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_episodes)`):
            Of each split, cut to the episodes that all rows have.
        steps (`list[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_steps)`, *optional*):
            Rewards by step, of rollouts of a single episode.
        tasks (`list[dict]`):
            Of all splits: `split_seed`, `task_id`, `kwargs`, `group`, and the `optimal` and `random` return or `None`.
        optimal, random (`list[np.ndarray]` of shapes `(num_tasks,)`, *optional*):
            Of each split, returns of the best policy and of random actions; [`summarize`] sets them.

    Raises:
        ValueError: for missing and doubled rows.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.agent, self.streams = rows["agent"][0].as_py(), int(rows["streams"][0].as_py())
        rows = rows.sort_by([(name, "ascending") for name in KEYS])
        values = {name: _equally_long(rows[name]) for name in ("returns", "lengths", "step_rewards")}
        blocks: dict[str, list[np.ndarray]] = {name: [] for name in values}
        self.splits, self.tasks = pc.unique(rows["split_seed"]).to_pylist(), []
        begin = 0
        for split in self.splits:
            own = rows.filter(pc.field("split_seed") == split)
            shape = tuple(len(pc.unique(own[name])) for name in KEYS[1:])
            different = len(own.group_by(KEYS).aggregate([]))
            if len(own) != np.prod(shape) or different != len(own):
                raise ValueError(
                    f"{self.agent}, split {split}: {len(own)} rows, {different} of them different, for "
                    f"{shape[0]} trainings x {shape[1]} rollouts x {shape[2]} tasks: expected one row for each"
                )
            for name, each in values.items():
                if each is not None:
                    blocks[name].append(each[begin : begin + len(own)].reshape(*shape, -1))
            begin += len(own)
            for task in own.select(TASK_COLUMNS).slice(0, shape[2]).to_pylist():
                bests = {name: task[f"{name}_return"] for name in ("optimal", "random")}
                same = {name: task[name] for name in ("split_seed", "task_id", "group")}
                self.tasks.append({**same, "kwargs": json.loads(task["task"]), **bests})
        self.returns, self.lengths = blocks["returns"], blocks["lengths"]
        self.steps = blocks["step_rewards"] or None
        self.optimal: list[np.ndarray] | None = None
        self.random: list[np.ndarray] | None = None

    def of_tasks(self, values: Mapping[tuple[int, int], float | None]) -> list[np.ndarray] | None:
        """Values by split and task as arrays (num_tasks,) of each split; `None` if any is unknown."""
        own = [values[_key(task)] for task in self.tasks]
        ends = np.cumsum([block.shape[2] for block in self.returns])
        return None if None in own else np.split(np.array(own, dtype=np.float64), ends[:-1])

    def by_task(self, episodes: slice) -> dict[tuple[int, int], float]:
        """Mean return in each task over some episodes."""
        means = np.concatenate([block[..., episodes].mean(axis=(0, 1, 3)) for block in self.returns])
        return {_key(task): float(mean) for task, mean in zip(self.tasks, means)}

    def curve(self, by_step: bool) -> Curve | None:
        """Mean return by episode over the steps of all streams, or mean reward by step if the rows have it."""
        if not by_step:
            return bootstrap_curve(self.returns, mean_of(self.lengths).cumsum() * self.streams)
        if self.steps is None:
            return None
        return bootstrap_curve(self.steps, self.streams * np.arange(1, self.steps[0].shape[3] + 1))

    def summary(self, curve: Curve | None, negative: bool) -> dict[str, Any]:
        """The entries of an agent in `evaluation.json` that follow from its own rows."""
        last = self.returns[0].shape[3]
        at = {str(end): self._at(end, negative) for end in (*(end for end in REPORTED_EPISODES if end < last), last)}
        summary: dict[str, Any] = {
            "num_splits": len(self.splits),
            "num_models": sum(block.shape[0] for block in self.returns),
            "num_rollouts": self.returns[0].shape[1],
            "num_tasks": len(self.tasks),
            "optimal_return": None if self.optimal is None else _mean(np.concatenate(self.optimal)),
            "shares_of": shares_of(at[str(last)], negative),
            "at": at,
            "by_model": [
                {"split_seed": split, "model": index, "return": float(value)}
                for split, block in zip(self.splits, self.returns)
                for index, value in enumerate(block[..., FINAL].mean(axis=(1, 2, 3)))
            ],
            "curve": None if curve is None else curve.to_json(),
        }
        if self.optimal is not None:
            missed = [regret(block, best) for block, best in zip(self.returns, self.optimal)]
            total, floors = float(mean_of(missed)), self._floors(negative)
            to_gain = 0.0 if floors is None else np.concatenate(self.optimal).mean() - np.concatenate(floors).mean()
            summary["regret"] = {
                "total": total,
                "interval": _interval(missed),
                "of_optimal": total / (last * float(to_gain)) if to_gain > 0 else None,
            }
        return summary

    def _floors(self, negative: bool) -> list[np.ndarray] | None:
        """The returns (num_tasks,) of each split at which shares of the optimum begin."""
        return self.random if negative else [np.zeros(block.shape[2]) for block in self.returns]

    def _at(self, episode: int, negative: bool) -> dict[str, Any]:
        """The entries of the ten episodes up to one, or of fewer where it is among the first."""
        episodes = slice(max(0, episode - FINAL_EPISODES), episode)
        returns = scores = [block[..., episodes].mean(axis=3) for block in self.returns]
        result: dict[str, Any] = {
            "episodes": [episodes.start + 1, episodes.stop],
            "return": float(mean_of(returns)),
            "return_interval": _interval(returns),
        }
        floors = self._floors(negative)
        if self.optimal is not None and floors is not None:
            # A share of sums: in a mean of the tasks' shares, far goals would weigh as much as near ones.
            best, floor = (float(np.concatenate(values).mean()) for values in (self.optimal, floors))
            result |= share_of_optimum(result["return"], best, floor, negative)
            if all((high > low).all() for high, low in zip(self.optimal, floors)):
                scores = [(block - low) / (high - low) for block, high, low in zip(returns, self.optimal, floors)]
                result["mean_share"] = float(mean_of(scores))
                result["mean_share_interval"] = _interval(scores)
        value, bounds = interquartile_mean(scores)
        return {**result, "iqm": value, "iqm_interval": None if bounds is None else list(bounds)}


def _key(task: Mapping[str, Any]) -> tuple[int, int]:
    return task["split_seed"], task["task_id"]


def _equally_long(column: pa.ChunkedArray) -> np.ndarray | None:
    """Lists as an array (rows, length), cut to the shortest; `None` where some are missing."""
    if column.null_count:
        return None
    counts = np.asarray(pc.list_value_length(column))
    starts = np.cumsum(counts) - counts
    return np.asarray(pc.list_flatten(column))[starts[:, None] + np.arange(counts.min())]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of some values, if there are any and none is unknown."""
    numbers = [np.nan if value is None else value for value in values]
    return None if not numbers or np.isnan(numbers).any() else float(np.mean(numbers))


def _interval(blocks: Sequence[np.ndarray]) -> list[float]:
    return [float(bound) for bound in interval(bootstrap_means(blocks))]


def summarize(rows: pa.Table, comparable: bool = True) -> dict[str, Any]:
    """
    The entries of `evaluation.json` that follow from returns.

    Args:
        rows (`pa.Table`):
            The returns of all agents; see [`~ad_hf.evaluation.returns`].
        comparable (`bool`, *optional*, defaults to `True`):
            Whether the source's steps can be compared with a model's; see
            [`~ad_hf.evaluation.headlines.is_comparable`].

    Returns:
        `dict`: whether curves are `of` episodes or steps, the mean `optimal_return` and `random_return`, and the
        `agents` by their names, `groups` of tasks and `tasks`.
    """
    names = np.asarray(rows["agent"])
    agents = {name: AgentReturns(rows.filter(pa.array(names == name))) for name in dict.fromkeys(names.tolist())}
    tasks = {_key(task): task for agent in agents.values() for task in agent.tasks}
    played = agents[RANDOM].by_task(slice(None)) if RANDOM in agents else {}
    optimal = {key: task["optimal"] for key, task in tasks.items()}
    random = {key: played.get(key) if task["random"] is None else task["random"] for key, task in tasks.items()}
    for agent in agents.values():
        agent.optimal, agent.random = agent.of_tasks(optimal), agent.of_tasks(random)
    bests = [value for each in (optimal, random) for value in each.values() if value is not None]
    # Where returns are negative, a share of the optimum means nothing: shares are then of the gain over random play.
    negative = min([*bests, *(block.min() for agent in agents.values() for block in agent.returns)]) < 0
    models = models_of({"agents": agents})
    by_step = bool(models) and all(agent.steps is not None for agent in models.values())
    all_curves = {name: agent.curve(by_step) for name, agent in agents.items()}
    curves = {name: curve for name, curve in all_curves.items() if curve is not None}
    gain = _gain(agents, by_step)
    summaries = {name: agent.summary(curves.get(name), bool(negative)) for name, agent in agents.items()}
    for name, summary in summaries.items():
        if name != RANDOM:
            learns = summary["learns"] = _learning(agents, name, by_step)
            if name in curves:
                summary["steps_to"] = steps_to_shares(name, curves, gain, learns["verdict"], comparable)
    ends = {name: agent.by_task(FINAL) for name, agent in agents.items()}
    entries = [
        {**task, "random": random[key], "returns": {name: end[key] for name, end in ends.items() if key in end}}
        for key, task in tasks.items()
    ]
    kinds = sorted({task["group"] for task in entries if task["group"] is not None})
    groups = {"all": entries, **{kind: [task for task in entries if task["group"] == kind] for kind in kinds}}
    return {
        "of": STEPS if by_step else EPISODES,
        "optimal_return": _mean(optimal.values()),
        "random_return": _mean(random.values()),
        "agents": summaries,
        "groups": {name: _group(group, agents) for name, group in groups.items()},
        "tasks": entries,
    }


def _learning(agents: Mapping[str, AgentReturns], name: str, by_step: bool) -> dict[str, Any]:
    """The test of learning; of single episodes by step, beyond random play at the same steps."""
    if not by_step:
        return learning_of(agents[name].returns)
    own, random = agents[name].steps, agents[RANDOM].steps if RANDOM in agents else None
    if own is None or random is None or [each.shape[1:] for each in own] != [each.shape[1:] for each in random]:
        return untested("steps")
    return learning_of([block - other for block, other in zip(own, random)], "steps")


def _gain(agents: Mapping[str, AgentReturns], by_step: bool) -> Gain:
    """The gain of the source over random play or, without a source, of the optimum; by step if curves are by step."""
    source = agents.get(SOURCE)
    agent = source or next(iter(agents.values()))
    if agent.random is None:
        return Gain()
    steps = next(each.steps for each in agents.values() if each.steps is not None)[0].shape[3] if by_step else 1
    random = [each / steps for each in agent.random]
    if source is None:
        return Gain.of_optimum(
            None if agent.optimal is None else np.concatenate(agent.optimal) / steps, np.concatenate(random)
        )
    blocks, of = (source.steps, "steps") if by_step else (source.returns, "episodes")
    if blocks is None:
        return Gain()
    return Gain.of_source([block[..., final_points(block.shape[3], of)].mean(axis=3) for block in blocks], random)


def _group(tasks: Sequence[Mapping[str, Any]], agents: Iterable[str]) -> dict[str, Any]:
    """Mean returns of some tasks; and normalized, with random play as 0 and the source as 1."""
    random = _mean(task["random"] for task in tasks)
    returns = {name: _mean(task["returns"].get(name) for task in tasks) for name in agents}
    source = returns.get(SOURCE)
    gain = None if random is None or source is None or source <= random else source - random
    models = models_of({"agents": returns})
    return {
        "num_tasks": len(tasks),
        "optimal": _mean(task["optimal"] for task in tasks),
        "random": random,
        "returns": returns,
        "normalized": {name: None if gain is None else (end - random) / gain for name, end in models.items()},
    }


def models_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The agents of an evaluation that are models, by name."""
    return {name: agent for name, agent in evaluation["agents"].items() if name not in (SOURCE, RANDOM)}


def last_of(agent: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of an agent's last episodes."""
    return list(agent["at"].values())[-1]


def describe(evaluation: Mapping[str, Any], folder: str | Path) -> str:
    """An evaluation in a few lines for each model, and the files of it that are in a folder."""
    models, source, lines = models_of(evaluation), evaluation["agents"].get(SOURCE), []
    for name, agent in models.items():
        first, last, learns = next(iter(agent["at"].values())), last_of(agent), agent["learns"]
        (begin, end), (low, high) = last["episodes"], last["return_interval"]
        of_return, optimal = agent["shares_of"] == OF_RETURN, agent["optimal_return"]
        who = f"{name}: " if len(models) > 1 else ""
        several = "" if agent["num_models"] == 1 else f" of {agent['num_models']} trainings"
        lines.append(
            f"{who}return{several} on {agent['num_tasks']} held-out tasks, episodes {begin} to "
            f"{end}: {last['return']:.2f} (95% interval {low:.2f} to {high:.2f})"
            + (f" of {optimal:.2f} possible" if of_return else "")
        )
        final = None if source is None else last_of(source)["return"]
        lines.append(_joined({"in the first episode": first["return"], "the source's final return": final}))
        gain = {} if of_return else {"the best possible": optimal, "of that gain": last.get("of_optimal")}
        lines.append(_joined({"random actions": evaluation["random_return"], **gain}))
        lines.append(": ".join(filter(None, (verdict_words(learns), evidence_words(learns)))))
        lines += pace_lines(agent["steps_to"])
        if any(entry["ratio"] is not None for entry in agent["steps_to"].values()):
            lines.append(f"steps of the source: {streams_words(evaluation['source'])}")
    files = {label: Path(folder) / name for label, name in FILES_FOR_PEOPLE.items()}
    lines.append("   ".join(f"{label}: {file}" for label, file in files.items() if file.is_file()))
    return "\n".join(filter(None, lines))


def _joined(values: Mapping[str, float | None]) -> str:
    return "; ".join(f"{words}: {value:.2f}" for words, value in values.items() if value is not None)
