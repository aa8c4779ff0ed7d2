"""
The measurement: returns of models, their source and random actions, as rows of a table.

`returns.parquet` has a row for each rollout in each task, and is a dataset of its own; `evaluation.json` follows from
it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.curves import FINAL_EPISODES
from ad_hf.evaluation.rollouts import Evaluation, play_at_random
from ad_hf.histories.dataset import HistoryDataset, load_histories
from ad_hf.settings import parse_json
from ad_hf.storage.files import atomic_path
from ad_hf.storage.parquet import read_table

ROWS_FILE = "returns.parquet"
SOURCE, RANDOM = "source", "random"  # agents without a model
SCHEMA = pa.schema(
    [
        ("agent", pa.string()),
        ("split_seed", pa.int64()),
        ("training_seed", pa.int64()),
        ("rollout", pa.int64()),
        ("task_id", pa.int64()),
        ("task", pa.string()),  # keyword arguments, as JSON
        ("streams", pa.int64()),  # number of those whose environment steps count together
        ("optimal_return", pa.float64()),
        ("returns", pa.list_(pa.float64())),
        ("lengths", pa.list_(pa.float64())),  # whole numbers, except where a converged source is continued
        ("random_return", pa.float64()),  # expectation for random actions, if the family knows it
        ("group", pa.string()),  # value of the family's `report_by`
        ("step_rewards", pa.list_(pa.float64())),  # where the models' rollouts are of a single episode
    ]
)
ADDED = ("random_return", "group", "step_rewards")  # since the first version
NULLABLE = ("training_seed", "optimal_return", *ADDED)


def evaluation_rows(
    evaluation: Evaluation, family: TaskFamily, agent: str, split_seed: int = 0, training_seed: int | None = None
) -> pa.Table:
    """
    Rollouts as rows.

    Args:
        evaluation ([`~ad_hf.Evaluation`]):
            The returns.
        family ([`~ad_hf.TaskFamily`]):
            The family of the tasks, which may know the optimum and the return of random actions.
        agent (`str`):
            Name of the agent: `"AD"`, `"ED"`, ...
        split_seed (`int`, *optional*, defaults to 0):
            Seed of the split into training and test tasks.
        training_seed (`int`, *optional*):
            Seed of the training.
    """
    tasks, (rollouts, number, _) = evaluation.tasks, evaluation.returns.shape
    count, steps, by = rollouts * number, evaluation.step_rewards, family.report_by
    optimal, random = (
        [None] * count if values is None else np.tile(values, rollouts)
        for values in (family.optimal_returns(tasks), family.random_returns(tasks))
    )
    columns: dict[str, Any] = {
        "agent": [agent] * count,
        "split_seed": [split_seed] * count,
        "training_seed": [training_seed] * count,
        "rollout": np.repeat(np.arange(rollouts), number),
        "task_id": [task.task_id for task in tasks] * rollouts,
        "task": [json.dumps(task.kwargs, default=lambda value: value.tolist()) for task in tasks] * rollouts,
        "streams": [evaluation.streams] * count,
        "optimal_return": optimal,
        "returns": list(evaluation.returns.reshape(count, -1)),
        "lengths": list(evaluation.lengths.reshape(count, -1)),
        "random_return": random,
        "group": [None if by is None else str(task.kwargs.get(by)) for task in tasks] * rollouts,
        "step_rewards": [None] * count if steps is None else list(steps.reshape(count, -1)),
    }
    return pa.table(columns, schema=SCHEMA)


def random_rows(
    family: TaskFamily,
    num_episodes: int = 100,
    num_seeds: int = 5,
    split_seed: int = 0,
    max_steps: int | None = None,
) -> pa.Table:
    """Uniformly random actions in the test tasks, as rows; none if no episode ends in `max_steps`."""
    played = play_at_random(family, family.tasks("test"), num_episodes, num_seeds, max_steps=max_steps)
    if played is None or not np.isfinite(played.returns).all():
        return SCHEMA.empty_table()
    return evaluation_rows(played, family, RANDOM, split_seed)


def source_rows(dataset: str | Path | HistoryDataset, family: TaskFamily, split_seed: int = 0) -> pa.Table:
    """The streams of a source in the test tasks, as rows; see [`source_returns`]."""
    evaluation, own = source_returns(dataset), {task.task_id: task for task in family.tasks()}
    tasks = [own[task.task_id] for task in evaluation.tasks]  # with arguments that were never JSON
    return evaluation_rows(replace(evaluation, tasks=tasks), family, SOURCE, split_seed)


def source_returns(dataset: str | Path | HistoryDataset, split: str = "test") -> Evaluation:
    """
    A source's own returns, from its histories of a split's tasks.

    Returns:
        [`Evaluation`]: with a rollout for each stream. Where episodes became longer or a source stopped when it had
        converged, the mean of a stream's last ten episodes stands for those that others finished beyond them.
        `streams` is 1 if each learns for itself, otherwise the number of all.

    Raises:
        ValueError: for a history without a finished episode.
    """
    stepwise = ("rewards", "terminations", "truncations")
    rows, metadata = load_histories(dataset, split, columns=["task_id", "start_step", *stepwise])
    histories: dict[int, list[list[dict[str, np.ndarray]]]] = defaultdict(list)  # pieces of the histories of each task
    for row in rows.with_format("numpy"):
        own = histories[int(row["task_id"])]
        if row["start_step"] == 0:  # with several seeds, a task has a history of each stream for every seed
            own.append([])
        own[-1].append(row)
    runs = min(map(len, histories.values()))
    totals, stops = [], []
    for task, pieces in ((task, own[run]) for run in range(runs) for task, own in sorted(histories.items())):
        rewards, terminations, truncations = (np.concatenate([piece[name] for piece in pieces]) for name in stepwise)
        totals.append(np.concatenate([[0.0], rewards.cumsum()]))
        stops.append(np.flatnonzero(terminations | truncations) + 1)
        if not len(stops[-1]):
            raise ValueError(
                f"{dataset}, split {split}: a history of task {task} has no finished episode, and so no curve"
            )
    # Cut to the fewest, streams would end where those had got whose episodes are longest.
    episodes = max(map(len, stops))
    shape = (runs, len(histories), episodes)
    returns = [_episodes(np.diff(total[stop], prepend=0.0), episodes) for total, stop in zip(totals, stops)]
    lengths = [_episodes(np.diff(stop, prepend=0), episodes) for stop in stops]
    first, step_rewards = {int(stop[0]) for stop in stops}, None
    if len(first) == 1:
        step_rewards = np.stack([np.diff(total[: min(first) + 1]) for total in totals]).reshape(*shape[:2], -1)
    together = 1 if metadata.source.get("independent_streams") else metadata.source.get("n_envs", 1)
    tasks = sorted(
        (Task(**task) for task in metadata.tasks if task["task_id"] in histories), key=lambda task: task.task_id
    )
    return Evaluation(
        tasks, np.stack(returns).reshape(shape), np.stack(lengths).reshape(shape), 0, step_rewards, together
    )


def _episodes(values: np.ndarray, episodes: int) -> np.ndarray:
    """Values (episodes,) of a stream's episodes; beyond its last one, the mean of its last ten."""
    missing = max(0, episodes - len(values))
    return np.concatenate([values[:episodes], np.full(missing, values[-FINAL_EPISODES:].mean())])


def join_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all agents, with rewards by step only if all models have them."""
    rows = pa.concat_tables(tables)
    models = rows.filter(pc.invert(pc.is_in(rows["agent"], pa.array([SOURCE, RANDOM]))))
    if models["step_rewards"].null_count:
        column = SCHEMA.field("step_rewards")
        rows = rows.set_column(SCHEMA.names.index(column.name), column, pa.nulls(len(rows), column.type))
    return rows


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
    expected = [name for name in SCHEMA.names if name not in ADDED]
    if [name for name in table.column_names if name not in ADDED] != expected:
        raise ValueError(f"{path}: expected the columns {', '.join(expected)}, got {', '.join(table.column_names)}")
    try:
        for name in set(ADDED).difference(table.column_names):
            table = table.append_column(name, pa.nulls(len(table)))
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path} is no table of returns: {error}") from error
    if not len(table):
        raise ValueError(f"{path} is a table of returns without any")
    for name in SCHEMA.names:
        if name not in NULLABLE and table[name].null_count:
            raise ValueError(f"{path}: column {name} has rows without a value")
    counts = [np.asarray(pc.list_value_length(table[name])) for name in ("returns", "lengths")]
    if not counts[0].all() or (counts[0] != counts[1]).any():
        raise ValueError(f"{path}: expected one episode or more in each row, with as many lengths as returns")
    for name in ("returns", "lengths", "step_rewards"):
        if not np.isfinite(np.asarray(pc.list_flatten(table[name]), dtype=np.float64)).all():
            raise ValueError(f"{path}: column {name} has numbers that are not finite")
    for text in pc.unique(table["task"]).to_pylist():
        parse_json(text, f"{path}: a task")
    return table
