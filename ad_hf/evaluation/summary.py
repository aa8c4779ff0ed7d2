"""The summary of returns, `evaluation.json`: a pure function of the rows of `returns.parquet`; and its words."""

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
    OF_GAIN,
    OF_RETURN,
    Gain,
    evidence_words,
    final_points,
    learning_of,
    pace_lines,
    share_of_optimum,
    steps_to_shares,
    untested,
    verdict_words,
)
from ad_hf.evaluation.returns import RANDOM, ROWS_FILE, SOURCE

SUMMARY_FILE = "evaluation.json"
PICTURES = CURVES_FILE, ROOMS_FILE = "learning_curve.png", "rooms.png"
EVALUATION_FILES = (ROWS_FILE, SUMMARY_FILE, *PICTURES)
FILES_FOR_PEOPLE = {"picture": CURVES_FILE, "rooms": ROOMS_FILE, "replay": "replay.gif", "video": "replay.mp4"}
FILES_FOR_PEOPLE |= {"returns": ROWS_FILE, "summary": SUMMARY_FILE}
SUMMARY_ENTRIES = ("of", "optimal_return", "random_return", "agents", "groups", "tasks", "versions")  # of SUMMARY_FILE
REPORTED_EPISODES = (1, 10, 25, 50, 100, 250, 500, 1000)
EPISODES, STEPS = "return of an episode", "reward of a step"  # of which curves are


class AgentReturns:
    """
    The returns of an agent, from the rows of a table.

    Args:
        rows (`pa.Table`):
            Of one agent. Of each split there are as many rows for each task and training, which is checked.

    Attributes:
        returns, lengths (`list[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_episodes)`):
            Of each split, cut to the episodes that all have.
        steps (`list[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_steps)`, *optional*):
            Rewards by step, of rollouts of a single episode.
        tasks (`list[dict]`):
            Of all splits: `split_seed`, `task_id`, `kwargs`, `group`, and the `optimal` and `random` return or `None`.
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Environment steps until the end of each episode, on average; of all streams that learn together.

    Raises:
        ValueError: where rows are missing, or there are some twice.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.agent = rows["agent"][0].as_py()
        self.streams = int(rows["streams"][0].as_py())
        keys = {name: np.asarray(rows[name]) for name in ("split_seed", "training_seed", "rollout", "task_id")}
        # Rows without a training are of one model.
        keys["training_seed"] = np.nan_to_num(keys["training_seed"].astype(np.float64), nan=-1)
        values = {name: _equally_long(rows[name]) for name in ("returns", "lengths", "step_rewards")}
        blocks: dict[str, list[np.ndarray]] = {name: [] for name in values}
        self.splits, self.tasks = np.unique(keys["split_seed"]).tolist(), []
        for split in self.splits:
            own = np.flatnonzero(keys["split_seed"] == split)
            of_rows = [keys[name][own] for name in ("training_seed", "rollout", "task_id")]
            shape = tuple(len(np.unique(key)) for key in of_rows)
            order = own[np.lexsort(of_rows[::-1])]
            different = len(set(zip(*of_rows)))
            if len(order) != np.prod(shape) or different != len(order):
                raise ValueError(
                    f"{self.agent}, split {split}: {len(order)} rows, {different} of them different, for "
                    f"{shape[0]} trainings x {shape[1]} rollouts x {shape[2]} tasks: expected one row for each"
                )
            for name, each in values.items():
                if each is not None:
                    blocks[name].append(each[order].reshape(*shape, -1))
            columns = ["split_seed", "task_id", "task", "group", "optimal_return", "random_return"]
            self.tasks += [
                {
                    **{name: task[name] for name in ("split_seed", "task_id", "group")},
                    "kwargs": json.loads(task["task"]),
                    "optimal": task["optimal_return"],
                    "random": task["random_return"],
                }
                for task in rows.select(columns).take(order[: shape[2]]).to_pylist()
            ]
        self.returns, self.lengths = blocks["returns"], blocks["lengths"]
        self.steps = blocks["step_rewards"] or None
        self.env_steps = mean_of(self.lengths).cumsum() * self.streams

    @property
    def num_episodes(self) -> int:
        """Episodes of each rollout."""
        return self.returns[0].shape[3]

    def by_task(self, episodes: slice = slice(-FINAL_EPISODES, None)) -> dict[tuple[int, int], float]:
        """Mean return in each task over some episodes, by default the last ten."""
        means = np.concatenate([block[..., episodes].mean(axis=(0, 1, 3)) for block in self.returns])
        return {_key(task): float(mean) for task, mean in zip(self.tasks, means)}

    def curve(self, by_step: bool = False) -> Curve | None:
        """Mean return by episode, or mean reward by step if that is known."""
        if not by_step:
            return bootstrap_curve(self.returns, self.env_steps)
        if self.steps is None:
            return None
        return bootstrap_curve(self.steps, self.streams * np.arange(1, self.steps[0].shape[3] + 1))


def _key(task: Mapping[str, Any]) -> tuple[int, int]:
    return task["split_seed"], task["task_id"]


def _equally_long(column: pa.ChunkedArray) -> np.ndarray | None:
    """Lists as an array (rows, length), cut to the shortest; `None` where some are missing."""
    if column.null_count:
        return None
    counts = np.asarray(pc.list_value_length(column))
    starts = np.cumsum(counts) - counts
    return np.asarray(pc.list_flatten(column))[starts[:, None] + np.arange(counts.min())]


class Summary:
    """
    What follows from a table of returns: of each agent by itself, and beside its source and random actions.

    Args:
        rows (`pa.Table`):
            The returns, as of [`~ad_hf.evaluation.returns`].
        comparable (`bool`, *optional*, defaults to `True`):
            Whether the source's steps can be compared with a model's, as of
            [`~ad_hf.evaluation.headlines.is_comparable`].
    """

    def __init__(self, rows: pa.Table, comparable: bool = True) -> None:
        names = np.asarray(rows["agent"])
        agents = [AgentReturns(rows.filter(pa.array(names == name))) for name in dict.fromkeys(names.tolist())]
        self.agents, self.comparable = {agent.agent: agent for agent in agents}, comparable
        models = [agent for name, agent in self.agents.items() if name not in (SOURCE, RANDOM)]
        self.by_step = bool(models) and all(agent.steps is not None for agent in models)
        self.curves = {name: agent.curve(self.by_step) for name, agent in self.agents.items()}
        tasks = {_key(task): task for agent in agents for task in agent.tasks}
        played = self.agents[RANDOM].by_task(slice(None)) if RANDOM in self.agents else {}
        self.optimal = {key: task["optimal"] for key, task in tasks.items()}
        self.random = {
            key: played.get(key) if task["random"] is None else task["random"] for key, task in tasks.items()
        }
        lowest = [block.min() for agent in agents for block in agent.returns]
        lowest += [value for each in (self.optimal, self.random) for value in each.values() if value is not None]
        # A share of the optimum means nothing then; shares are of the gain over random play.
        self.negative = bool(min(lowest) < 0)
        ends = {name: agent.by_task() for name, agent in self.agents.items()}
        self.tasks = [
            {
                **task,
                "random": self.random[key],
                "returns": {name: end[key] for name, end in ends.items() if key in end},
            }
            for key, task in tasks.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The entries of `evaluation.json` that follow from returns."""
        gain = self._gain()
        return {
            "of": STEPS if self.by_step else EPISODES,
            "optimal_return": _mean(self.optimal.values()),
            "random_return": _mean(self.random.values()),
            "agents": {name: self._agent(agent, gain) for name, agent in self.agents.items()},
            "groups": self._groups(),
            "tasks": self.tasks,
        }

    def _values(self, values: Mapping[tuple[int, int], float | None], agent: AgentReturns) -> list[np.ndarray] | None:
        """Values of tasks as arrays (num_tasks,) for each split of an agent; `None` if some are not known."""
        keys = [[_key(task) for task in agent.tasks if task["split_seed"] == split] for split in agent.splits]
        if any(values.get(key) is None for each in keys for key in each):
            return None
        return [np.array([values[key] for key in each], dtype=np.float64) for each in keys]

    def _bounds(self, agent: AgentReturns) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """Of each split, the returns (num_tasks,) that are no share and the whole share; `None` if not known."""
        optimal = self._values(self.optimal, agent)
        floors = self._values(self.random if self.negative else dict.fromkeys(self.optimal, 0.0), agent)
        return None if optimal is None or floors is None else (floors, optimal)

    def _agent(self, agent: AgentReturns, gain: Gain | None) -> dict[str, Any]:
        last, curve = agent.num_episodes, self.curves[agent.agent]
        at = {str(end): self.at(agent, end) for end in (*(each for each in REPORTED_EPISODES if each < last), last)}
        summary: dict[str, Any] = {
            "num_splits": len(agent.splits),
            "num_models": sum(block.shape[0] for block in agent.returns),
            "num_rollouts": agent.returns[0].shape[1],
            "num_tasks": len(agent.tasks),
            "optimal_return": _mean(self.optimal[_key(task)] for task in agent.tasks),
            "shares_of": None if "of_optimal" not in at[str(last)] else OF_GAIN if self.negative else OF_RETURN,
            "at": at,
            "by_model": [
                {"split_seed": split, "model": index, "return": float(value)}
                for split, block in zip(agent.splits, agent.returns)
                for index, value in enumerate(block[..., -FINAL_EPISODES:].mean(axis=(1, 2, 3)))
            ],
            "curve": None if curve is None else curve.to_json(),
        }
        if agent.agent != RANDOM:
            summary["learns"] = self._learns(agent)
            source = self.curves.get(SOURCE) if agent.agent != SOURCE else None
            verdict = summary["learns"]["verdict"]
            if curve is not None:
                summary["steps_to"] = steps_to_shares(curve, source, gain, verdict, self.comparable)
        if agent.agent == SOURCE:  # which has none of its own
            for steps in summary.get("steps_to", {}).values():
                del steps["source"]
        optimal, bounds = self._values(self.optimal, agent), self._bounds(agent)
        if optimal is not None:
            missed = [regret(block, best) for block, best in zip(agent.returns, optimal)]
            to_gain = None if bounds is None else float(mean_of_tasks(bounds[1]) - mean_of_tasks(bounds[0]))
            total = float(mean_of(missed))
            summary["regret"] = {
                "total": total,
                "interval": _pair(interval(bootstrap_means(missed))),
                "of_optimal": total / (last * to_gain) if to_gain is not None and to_gain > 0 else None,
            }
        return summary

    def at(self, agent: AgentReturns, episode: int) -> dict[str, Any]:
        """
        The ten episodes up to one, or as many as there are, of an agent: mean return, mean share of the optimum, both
        with the interval of `bootstrap_means`, and the interquartile mean of the shares (or returns).
        """
        episodes = slice(max(0, episode - FINAL_EPISODES), episode)
        returns = scores = [block[..., episodes].mean(axis=3) for block in agent.returns]
        result: dict[str, Any] = {
            "episodes": [episodes.start + 1, episodes.stop],
            "return": float(mean_of(returns)),
            "return_interval": _pair(interval(bootstrap_means(returns))),
        }
        bounds = self._bounds(agent)
        if bounds is not None:
            floors, optimal = bounds
            # Of sums, and not the mean of the tasks' shares, in which far goals would weigh as much as near ones.
            floor, best = mean_of_tasks(floors), mean_of_tasks(optimal)
            share, _ = share_of_optimum(result["return"], best, floor, self.negative)
            if share is not None:
                result["of_optimal"] = share
            if all((best > floor).all() for floor, best in zip(floors, optimal)):
                scores = [(block - low) / (high - low) for block, low, high in zip(returns, floors, optimal)]
                result["mean_share"] = float(mean_of(scores))
                result["mean_share_interval"] = _pair(interval(bootstrap_means(scores)))
        value, iqm_interval = interquartile_mean(scores)
        return {**result, "iqm": value, "iqm_interval": None if iqm_interval is None else list(iqm_interval)}

    def _learns(self, agent: AgentReturns) -> dict[str, Any]:
        """The test of learning; of single episodes by step, beyond what random play gets at the same steps."""
        if not self.by_step:
            return learning_of(agent.returns)
        random = self.agents[RANDOM].steps if RANDOM in self.agents else None
        if agent.steps is None or random is None:
            return untested("steps")
        pairs = list(zip(agent.steps, random))
        if any(own.shape[1:] != other.shape[1:] for own, other in pairs) or len(agent.steps) != len(random):
            return untested("steps")
        return learning_of([own - other for own, other in pairs], "steps")

    def _gain(self) -> Gain | None:
        """What the source gains over random play or, without a source, the best possible; by step where curves are."""
        source = self.agents.get(SOURCE)
        agent = source or next(iter(self.agents.values()))
        random, optimal = self._values(self.random, agent), self._values(self.optimal, agent)
        if random is None:
            return None
        steps, ends = 1, None if source is None else [block[..., -FINAL_EPISODES:] for block in source.returns]
        if self.by_step:
            steps = next(each.steps for each in self.agents.values() if each.steps is not None)[0].shape[3]
            if source is not None:
                if source.steps is None:
                    return None
                ends = [block[..., final_points(block.shape[3], "steps")] for block in source.steps]
        random = [each / steps for each in random]
        if ends is not None:
            return Gain.of_source([block.mean(axis=3) for block in ends], random)
        return Gain.of_optimum(None if optimal is None else np.concatenate(optimal) / steps, np.concatenate(random))

    def _groups(self) -> dict[str, dict[str, Any]]:
        """Mean returns of all tasks together, and of those of one value of the family's `report_by`."""
        names = sorted({task["group"] for task in self.tasks if task["group"] is not None})
        groups = {"all": self.tasks} | {name: [task for task in self.tasks if task["group"] == name] for name in names}
        return {name: _group(tasks, list(self.agents)) for name, tasks in groups.items()}


def _group(tasks: Sequence[Mapping[str, Any]], agents: Sequence[str]) -> dict[str, Any]:
    """Mean returns of some tasks; and normalized, with random play as 0 and the source as 1."""
    random = _mean(task["random"] for task in tasks)
    returns = {name: _mean(task["returns"].get(name) for task in tasks) for name in agents}
    source = returns.get(SOURCE)
    return {
        "num_tasks": len(tasks),
        "optimal": _mean(task["optimal"] for task in tasks),
        "random": random,
        "returns": returns,
        "normalized": {
            name: None
            if value is None or random is None or source is None or source <= random
            else (value - random) / (source - random)
            for name, value in returns.items()
            if name not in (SOURCE, RANDOM)
        },
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of some values, if all are known."""
    numbers = [np.nan if value is None else value for value in values]
    return None if not numbers or np.isnan(numbers).any() else float(np.mean(numbers))


def mean_of_tasks(values: Sequence[np.ndarray]) -> float:
    """Mean of arrays (num_tasks,) of each split over all tasks."""
    return float(np.concatenate(values).mean())


def _pair(bounds: tuple[np.ndarray, np.ndarray]) -> list[float]:
    return [float(bounds[0]), float(bounds[1])]


def models_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The agents of an evaluation that are models, by name."""
    return {name: agent for name, agent in evaluation["agents"].items() if name not in (SOURCE, RANDOM)}


def last_of(agent: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of an agent's last episodes."""
    return list(agent["at"].values())[-1]


def describe(evaluation: Mapping[str, Any], folder: str | Path) -> str:
    """An evaluation in a few lines for each model, and its files that are in a folder."""
    models, source, lines = models_of(evaluation), evaluation["agents"].get(SOURCE), []
    for name, agent in models.items():
        first, last = next(iter(agent["at"].values())), last_of(agent)
        (begin, end), (low, high) = last["episodes"], last["return_interval"]
        plain, share, optimal = agent["shares_of"] == OF_RETURN, last.get("of_optimal"), agent["optimal_return"]
        who = f"{name}: " if len(models) > 1 else ""
        several = "" if agent["num_models"] == 1 else f" of {agent['num_models']} trainings"
        lines.append(
            f"{who}return{several} on {agent['num_tasks']} held-out tasks, episodes {begin} to "
            f"{end}: {last['return']:.2f} (95% interval {low:.2f} to {high:.2f})"
            + (f" of {optimal:.2f} possible" if plain else "")
        )
        others = {"in the first episode": first["return"]}
        others |= {} if source is None else {"the source's final return": last_of(source)["return"]}
        lines.append("; ".join(f"{who}: {value:.2f}" for who, value in others.items()))
        bests = {
            "random actions": evaluation["random_return"],
            "the best possible": None if plain else optimal,
            "of that gain": None if plain else share,
        }
        lines.append("; ".join(f"{who}: {value:.2f}" for who, value in bests.items() if value is not None))
        tested = verdict_words(agent["learns"]), evidence_words(agent["learns"])
        lines.append(": ".join(words for words in tested if words is not None))
        lines += pace_lines(agent["steps_to"])
    files = {what: Path(folder) / name for what, name in FILES_FOR_PEOPLE.items()}
    lines.append("   ".join(f"{what}: {file}" for what, file in files.items() if file.is_file()))
    return "\n".join(line for line in lines if line)
