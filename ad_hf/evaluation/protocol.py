"""
The protocol: several trainings, several rollouts of each on every held-out task, and what is said of all of them.

Returns are rows of a table, one for each rollout in each task, from which everything else is computed:
`returns.parquet` is a dataset of its own, and `evaluation.json` can be made from it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_hf.envs.task_family import TaskFamily
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
from ad_hf.evaluation.evaluate import Evaluation, play_at_random
from ad_hf.evaluation.headlines import OF_GAIN, OF_RETURN, Gain, learning_of, steps_to_shares
from ad_hf.evaluation.report import SourceCurves
from ad_hf.settings import parse_json
from ad_hf.storage.files import atomic_path
from ad_hf.storage.parquet import read_table

SCHEMA = pa.schema(
    [
        ("agent", pa.string()),
        ("split_seed", pa.int64()),
        ("training_seed", pa.int64()),
        ("rollout", pa.int64()),
        ("task_id", pa.int64()),
        ("task", pa.string()),  # keyword arguments, as JSON
        ("streams", pa.int64()),  # whose environment steps count together
        ("optimal_return", pa.float64()),
        ("returns", pa.list_(pa.float64())),
        ("lengths", pa.list_(pa.float64())),  # whole, but where a source that has converged is continued
    ]
)
# What an evaluation leaves.
ROWS_FILE, SUMMARY_FILE = "returns.parquet", "evaluation.json"
PICTURES = CURVES_FILE, ROOMS_FILE = "learning_curves.png", "rooms.png"
EVALUATION_FILES = (ROWS_FILE, SUMMARY_FILE, *PICTURES)
SOURCE, RANDOM = "source", "random"  # agents that no model is
REPORTED_EPISODES = (1, 10, 25, 50, 100, 250, 500, 1000)


def evaluation_rows(
    evaluation: Evaluation, family: TaskFamily, agent: str, split_seed: int = 0, training_seed: int | None = None
) -> pa.Table:
    """
    The rollouts of a model as rows.

    Args:
        evaluation ([`~ad_hf.Evaluation`]):
            The returns.
        family ([`~ad_hf.TaskFamily`]):
            Whose tasks they are of, for the optimum.
        agent (`str`):
            What acted: `"AD"`, `"ED"`, ...
        split_seed (`int`, *optional*, defaults to 0):
            Which split of the tasks into those to train on and those to test on.
        training_seed (`int`, *optional*):
            Which of the trainings.
    """
    return _rows(
        evaluation.returns, evaluation.lengths, evaluation.tasks, family, (agent, split_seed, training_seed), 1
    )


def source_rows(curves: SourceCurves, family: TaskFamily, split_seed: int = 0) -> pa.Table:
    """
    The streams of a source as rows; see [`evaluation_rows`].

    Raises:
        ValueError: if the source learnt other tasks than the family's test tasks.
    """
    tasks = [task for task in family.tasks("test") if task.task_id in curves.task_ids]
    if len(tasks) != len(curves.task_ids):
        others = sorted(set(curves.task_ids) - {task.task_id for task in tasks})
        raise ValueError(
            f"the histories' test tasks {', '.join(map(str, others))} are not for testing in the family of the "
            "model's recipe: give histories that were collected with the same split (family.split_seed)"
        )
    who = (SOURCE, split_seed, None)
    return _rows(curves.returns, curves.lengths, tasks, family, who, curves.streams_per_learner)


def random_rows(
    family: TaskFamily, num_episodes: int = 100, num_seeds: int = 5, split_seed: int = 0, seed: int = 0
) -> pa.Table:
    """Uniformly random actions in the test tasks, as rows; see [`evaluation_rows`]."""
    tasks = family.tasks("test")
    played = play_at_random(family, tasks, num_episodes, num_seeds, seed)
    assert played is not None  # without a limit to its steps
    return _rows(played.returns, played.lengths, tasks, family, (RANDOM, split_seed, None), streams=1)


def _rows(
    returns: np.ndarray,
    lengths: np.ndarray,
    tasks: Sequence[Any],
    family: TaskFamily,
    who: tuple[str, int, int | None],
    streams: int,
) -> pa.Table:
    """Rows of returns and lengths (rollouts, tasks, episodes)."""
    rollouts, number = returns.shape[:2]
    optimal = family.optimal_returns(tasks)
    agent, split_seed, training_seed = who
    count = rollouts * number
    columns: dict[str, Any] = {
        "agent": [agent] * count,
        "split_seed": [split_seed] * count,
        "training_seed": [training_seed] * count,
        "rollout": np.repeat(np.arange(rollouts), number),
        "task_id": [task.task_id for task in tasks] * rollouts,
        "task": [json.dumps(task.kwargs, default=_plain) for task in tasks] * rollouts,
        "streams": [streams] * count,
        "optimal_return": [None] * count if optimal is None else np.tile(optimal, rollouts),
        "returns": list(returns.reshape(count, -1)),
        "lengths": list(lengths.reshape(count, -1)),
    }
    return pa.table(columns, schema=SCHEMA)


def _plain(value: Any) -> Any:
    """A number or array of numpy's as JSON knows it."""
    return value.tolist()


class AgentReturns:
    """
    What an agent reached, from the rows of a table.

    Args:
        rows (`pa.Table`):
            Of one agent. Of each split there are as many rows for each task and training, which is checked.

    Attributes:
        returns (`list[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_episodes)`):
            Of each split, cut to the episodes that all have.
        optimal (`np.ndarray` of shape `(num_tasks,)`, *optional*):
            Best possible returns of the tasks of all splits, one after another.
        task_ids (`list[list[int]]`):
            The tasks of each split.
        floors (`list[np.ndarray]` of shapes `(num_tasks,)`, *optional*):
            Of each split, the return that is no share of the optimum: zero, or where returns are negative what random
            play gets, which [`agents_of`] knows; `None` if that is not known.
        tasks (`list[dict]`):
            Keyword arguments of these tasks.
        env_steps (`np.ndarray` of shape `(num_episodes,)`):
            Environment steps until the end of each episode, on average; of all streams that learn together.

    Raises:
        ValueError: where rows are missing, or there are some twice.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.agent = rows["agent"][0].as_py()
        columns = {name: np.asarray(rows[name]) for name in ("split_seed", "training_seed", "task_id", "rollout")}
        # What no training made is one model.
        columns["training_seed"] = np.nan_to_num(columns["training_seed"].astype(np.float64), nan=-1)
        counts = np.asarray(pc.list_value_length(rows["returns"]))
        episodes = int(counts.min())
        starts = np.cumsum(counts) - counts
        both = {}
        for name in ("returns", "lengths"):
            values = rows[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            both[name] = values[starts[:, None] + np.arange(episodes)]
        optimal = np.asarray(rows["optimal_return"], dtype=np.float64)
        self.splits = np.unique(columns["split_seed"]).tolist()
        self.returns, lengths, best, self.tasks, self.task_ids = [], [], [], [], []
        for split in self.splits:
            chosen = np.flatnonzero(columns["split_seed"] == split)
            keys = [columns[name][chosen] for name in ("training_seed", "rollout", "task_id")]
            shape = tuple(len(np.unique(key)) for key in keys)
            order = chosen[np.lexsort(keys[::-1])]
            different = len({tuple(key) for key in zip(*keys)})
            if len(order) != np.prod(shape) or different != len(order):
                raise ValueError(
                    f"{self.agent}, split {split}: {len(order)} rows, {different} of them different, for "
                    f"{shape[0]} trainings x {shape[1]} rollouts x {shape[2]} tasks: expected one row for each"
                )
            self.returns.append(both["returns"][order].reshape(*shape, episodes))
            lengths.append(both["lengths"][order].reshape(*shape, episodes))
            best.append(optimal[order[: shape[2]]])
            self.tasks += [json.loads(rows["task"][int(row)].as_py()) for row in order[: shape[2]]]
            self.task_ids.append(columns["task_id"][order[: shape[2]]].tolist())
        together = np.concatenate(best)
        self.optimal = None if np.isnan(together).any() else together
        self._best = best
        self.negative = min([block.min() for block in self.returns] + [each.min() for each in best]) < 0
        self.floors = None if self.negative else [np.zeros(len(ids)) for ids in self.task_ids]
        self._curve: Curve | None = None
        self.env_steps = mean_of(lengths).cumsum() * int(rows["streams"][0].as_py())

    @property
    def num_episodes(self) -> int:
        """Episodes of each rollout."""
        return self.returns[0].shape[3]

    def shares(self) -> list[np.ndarray] | None:
        """Returns as shares of the optimum, above `floors`; `None` where that is not known, or nothing to gain."""
        if self.optimal is None or self.floors is None or (self.optimal <= np.concatenate(self.floors)).any():
            return None
        return [
            (block - floor[:, None]) / (best - floor)[:, None]
            for block, best, floor in zip(self.returns, self._best, self.floors)
        ]

    @property
    def to_gain(self) -> float:
        """Mean of the best possible returns above `floors`."""
        assert self.optimal is not None
        assert self.floors is not None
        return float(self.optimal.mean() - np.concatenate(self.floors).mean())

    def curve(self) -> Curve:
        """Mean return by episode."""
        if self._curve is None:
            self._curve = bootstrap_curve(self.returns, self.env_steps)
        return self._curve

    def at(self, episode: int) -> dict[str, Any]:
        """
        What is said of the ten episodes up to one (of the first, of that alone): mean return, mean share of the
        optimum, both with the interval of `bootstrap_means`, and the interquartile mean of the shares (or returns).
        """
        episodes = slice(0 if episode < FINAL_EPISODES else episode - FINAL_EPISODES, episode)
        if episode < FINAL_EPISODES:
            episodes = slice(episode - 1, episode)
        found: dict[str, Any] = {"episodes": [episodes.start + 1, episodes.stop]}
        returns = [block[..., episodes].mean(axis=3) for block in self.returns]
        found |= {"return": float(mean_of(returns)), "return_interval": _pair(interval(bootstrap_means(returns)))}
        shares = self.shares()
        if shares is not None:
            scores = [block[..., episodes].mean(axis=3) for block in shares]
            # Of sums, and not the mean of the tasks' shares, in which far goals would weigh as much as near ones.
            floor = float(np.concatenate(self.floors).mean())  # type: ignore[arg-type]
            found["of_optimal"] = (found["return"] - floor) / self.to_gain
            found["mean_share"] = float(mean_of(scores))
            found["mean_share_interval"] = _pair(interval(bootstrap_means(scores)))
        value, bounds = interquartile_mean(returns if shares is None else scores)
        found |= {"iqm": value, "iqm_interval": None if bounds is None else list(bounds)}
        return found

    def by_model(self, episode: int) -> list[dict[str, Any]]:
        """Mean return over the ten episodes up to one, of each training."""
        episodes = slice(max(0, episode - FINAL_EPISODES), episode)
        return [
            {"split_seed": split, "model": index, "return": float(value)}
            for split, block in zip(self.splits, self.returns)
            for index, value in enumerate(block[..., episodes].mean(axis=(1, 2, 3)))
        ]

    def summary(self) -> dict[str, Any]:
        """What `evaluation.json` says of an agent by itself: of random actions, not whether they learn."""
        last, shares = self.num_episodes, self.shares()
        reported = [episode for episode in REPORTED_EPISODES if episode < last]
        found = {
            "num_splits": len(self.splits),
            "num_models": sum(block.shape[0] for block in self.returns),
            "num_rollouts": self.returns[0].shape[1],
            "num_tasks": len(self.tasks),
            "optimal_return": None if self.optimal is None else float(self.optimal.mean()),
            "shares_of": None if shares is None else OF_GAIN if self.negative else OF_RETURN,
            "at": {str(episode): self.at(episode) for episode in (*reported, last)},
            "by_model": self.by_model(last),
            "curve": self.curve().to_json(),
        }
        if self.agent != RANDOM:
            found["learns"] = learning_of(self.returns)
        if self.optimal is not None:
            missed = [regret(block, best) for block, best in zip(self.returns, self._best)]
            found["regret"] = {
                "total": float(mean_of(missed)),
                "interval": _pair(interval(bootstrap_means(missed))),
                "of_optimal": None if shares is None else float(mean_of(missed)) / (last * self.to_gain),
            }
        return found


def _pair(bounds: tuple[np.ndarray, np.ndarray]) -> list[float]:
    return [float(bounds[0]), float(bounds[1])]


def agents_of(rows: pa.Table) -> list[AgentReturns]:
    """
    The agents of a table, in the order in which they come. Where a return or an optimum of any of them is negative,
    shares of all are of what is to gain over random play.
    """
    names = np.asarray(rows["agent"])
    agents = [AgentReturns(rows.filter(pa.array(names == name))) for name in dict.fromkeys(names.tolist())]
    if any(agent.negative for agent in agents):
        random = next((agent for agent in agents if agent.agent == RANDOM), None)
        for agent in agents:
            agent.negative, agent.floors = True, _returns_in(random, agent)
    return agents


def _returns_in(random: AgentReturns | None, agent: AgentReturns) -> list[np.ndarray] | None:
    """What random play gets in the tasks of an agent, (num_tasks,) for each split, if it was played in all of them."""
    if random is None:
        return None
    known = {
        (split, task): value
        for split, ids, block in zip(random.splits, random.task_ids, random.returns)
        for task, value in zip(ids, block.mean(axis=(0, 1, 3)))
    }
    wanted = [[(split, task) for task in ids] for split, ids in zip(agent.splits, agent.task_ids)]
    if any(key not in known for keys in wanted for key in keys):
        return None
    return [np.array([known[key] for key in keys]) for keys in wanted]


def _gain(agents: Mapping[str, AgentReturns]) -> Gain | None:
    """What the source gains over random play or, without a source, the best that is possible."""
    random, source = agents.get(RANDOM), agents.get(SOURCE)
    if random is None:
        return None
    if source is None:
        played = _returns_in(random, random)
        return Gain.of_optimum(random.optimal, None if played is None else np.concatenate(played))
    played = _returns_in(random, source)
    if played is None:
        return None
    return Gain.of_source([block[..., -FINAL_EPISODES:].mean(axis=3) for block in source.returns], played)


def summarize(agents: Iterable[AgentReturns], comparable: bool = True) -> dict[str, Any]:
    """
    What is said of agents, and of the steps that they and their source take to shares of what the source gains.

    Args:
        agents (`Iterable[AgentReturns]`):
            As of [`agents_of`].
        comparable (`bool`, *optional*, defaults to `True`):
            Whether the source's steps can be compared with a model's, as of
            [`~ad_hf.evaluation.headlines.is_comparable`].

    Returns:
        `dict`: by the agents' names.
    """
    by_name = {agent.agent: agent for agent in agents}
    found = {name: agent.summary() for name, agent in by_name.items()}
    gain = _gain(by_name)
    for name, agent in by_name.items():
        if name == RANDOM:
            continue
        source = None if name == SOURCE or SOURCE not in by_name else by_name[SOURCE].curve()
        verdict = found[name]["learns"]["verdict"]
        found[name]["steps_to"] = steps_to_shares(agent.curve(), source, gain, verdict, comparable, "env_steps")
        if name == SOURCE:  # which has none of its own
            for steps in found[name]["steps_to"].values():
                del steps["source"]
    return found


def write_rows(path: str | Path, rows: pa.Table) -> None:
    """Write a table of returns, whole or not at all."""
    with atomic_path(Path(path)) as temporary:
        pq.write_table(rows, temporary, compression="zstd", compression_level=19)  # written once, kept in repositories


def read_rows(path: str | Path) -> pa.Table:
    """
    Read a table of returns.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is another table, or damaged.
    """
    table = read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(
            f"{path}: expected the columns {', '.join(SCHEMA.names)}, got {', '.join(table.schema.names)}"
        )
    try:
        table = table.cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path} is no table of returns: {error}") from error
    if not len(table):
        raise ValueError(f"{path} is a table of returns without any")
    for name in SCHEMA.names:
        if name not in ("training_seed", "optimal_return") and table[name].null_count:
            raise ValueError(f"{path}: column {name} has rows without a value")
    counts = [np.asarray(pc.list_value_length(table[name])) for name in ("returns", "lengths")]
    if not counts[0].all() or (counts[0] != counts[1]).any():
        raise ValueError(f"{path}: expected one episode or more in each row, with as many lengths as returns")
    for name in ("returns", "lengths"):
        if not np.isfinite(np.asarray(pc.list_flatten(table[name]), dtype=np.float64)).all():
            raise ValueError(f"{path}: column {name} has numbers that are not finite")
    for text in pc.unique(table["task"]).to_pylist():
        parse_json(text, f"{path}: a task")
    return table
