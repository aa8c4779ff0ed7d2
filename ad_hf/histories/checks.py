"""Whether a table is learning histories, as far as a model that trains on it relies on; if not, where it is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from gymnasium import spaces

from ad_hf.envs.spaces import outside
from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import history_features

COLUMNS = (
    *("history_id", "task_id", "start_step", "observations", "actions", "rewards", "terminations", "truncations"),
)  # what training reads

DOUBLE = "there was such a history before, and each may come once"


class HistoryRows(NamedTuple):
    """
    Some rows of learning histories.

    Attributes:
        name (`str`):
            What to call the table that they are from in an error.
        first_row (`int`):
            Number of their first one in it.
        table (`pyarrow.Table`):
            The rows.
        tasks (`Collection[int]`, *optional*):
            The tasks that they may be of, those of their split; any if not given.
    """

    name: str
    first_row: int
    table: pa.Table
    tasks: Collection[int] | None = None

    def refuse(self, row: int, column: str, what: Any) -> None:
        """Raise a `ValueError` about one of the rows."""
        history = self.table["history_id"][row].as_py()
        raise ValueError(f"{self.name}: row {self.first_row + row} (history {history!r}), column {column}: {what}")


def check_columns(schema: pa.Schema, observation_space: spaces.Space, action_space: spaces.Space, name: str) -> None:
    """
    Refuse a table that lacks columns of a learning history, or whose columns are of another type.

    Args:
        schema (`pyarrow.Schema`):
            Of the table.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.
        name (`str`):
            What to call the table in an error.

    Raises:
        ValueError: with the column's name.
    """
    expected = history_features(observation_space, action_space).arrow_schema
    for column in COLUMNS:
        if column not in schema.names:
            raise ValueError(f"{name}: column {column} is missing, there are {', '.join(schema.names)}")
        found, wanted = schema.field(column).type, expected.field(column).type
        if found != wanted:
            raise ValueError(f"{name}: column {column} is of type {found}, expected {wanted}")


def _leaves(column: pa.ChunkedArray, num_steps: int) -> tuple[pa.Array, int | None]:
    """The innermost values of a column of lists, and the first step (counted over all rows) that lacks one."""
    values = column.combine_chunks().flatten()
    while True:
        if values.null_count:  # before the next level is flattened, which would drop them
            return values, int(np.argmax(np.asarray(values.is_null()))) * num_steps // len(values)
        if pa.types.is_primitive(values.type):
            return values, None
        values = values.flatten()


def _check_values(rows: HistoryRows, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Refuse rows that have missing values, lengths that disagree, or elements that a model cannot take."""
    table, refuse = rows.table, rows.refuse
    for column in COLUMNS:
        if table[column].null_count:
            refuse(int(np.argmax(np.asarray(table[column].is_null()))), column, "no value")
    lengths = np.asarray(pc.list_value_length(table["rewards"]))
    if not lengths.all():
        refuse(int(np.argmin(lengths)), "rewards", "no steps")
    stepwise = ["observations", "actions", "rewards", "terminations", "truncations"]
    if has_frames(observation_space):
        stepwise.remove("observations")  # how many frames there are shows when they are decoded
    for column in stepwise:
        found = np.asarray(pc.list_value_length(table[column]))
        if (found != lengths).any():
            row = int(np.argmax(found != lengths))
            refuse(row, column, f"{found[row]} steps, where rewards has {lengths[row]}")
    num_steps = int(lengths.sum())

    def refuse_step(index: int, column: str, what: str) -> None:
        row = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
        refuse(row, column, what.format(step=index - int(lengths[:row].sum())))

    spaces_of = {"observations": observation_space, "actions": action_space}
    for column in stepwise:
        flat, missing = _leaves(table[column], num_steps)
        if missing is not None:
            refuse_step(missing, column, "no value at step {step}")
        space = spaces_of.get(column)
        if pa.types.is_boolean(flat.type):
            continue
        values = np.asarray(flat).reshape(num_steps, *((space.shape or ()) if space else ()))
        wrong = outside(values, space, column == "actions")
        if wrong.any():
            index = int(np.argmax(wrong))
            expected = "a number that is finite as float32" if space is None else f"an element of {space}"
            refuse_step(index, column, f"{values[index].tolist()} at step {{step}}, expected {expected}")


def checked_rows(
    histories: Iterable[HistoryRows], observation_space: spaces.Space, action_space: spaces.Space
) -> Iterator[tuple[HistoryRows, np.ndarray]]:
    """
    Rows that are learning histories, in their order, each table with whether its rows (num_rows,) begin one.

    Args:
        histories (iterable of [`HistoryRows`]):
            Tables with the columns that training reads.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.

    Raises:
        ValueError: with the row's number, its history, and the column: for columns that are missing or of another
            type, missing values, lengths that disagree, numbers that are not finite as float32, elements outside of
            their space (observations may be beyond the bounds of a Box), tasks of another split, pieces of a history
            that are not in order or of several tasks, and histories that come a second time.
    """
    history, task, steps = None, -1, 0  # of the row before, and the steps of its history so far
    known: set[str] = set()
    schema = None
    for rows in histories:
        name, _, table, tasks = rows
        if table.schema != schema:
            schema = table.schema
            check_columns(schema, observation_space, action_space, name)
        if not len(table):
            continue
        _check_values(rows, observation_space, action_space)
        task_ids, starts = np.asarray(table["task_id"]), np.asarray(table["start_step"])
        if tasks is not None and not set(of_rows := task_ids.tolist()).issubset(tasks):
            row = next(row for row, found in enumerate(of_rows) if found not in tasks)
            rows.refuse(row, "task_id", f"{of_rows[row]}, which metadata.json does not have as a task of this split")
        ids = table["history_id"].to_pylist()
        begins = np.fromiter((this != before for this, before in zip(ids, [history, *ids])), bool, len(ids))
        lengths = np.asarray(pc.list_value_length(table["rewards"])).astype(np.int64)
        before = np.cumsum(lengths) - lengths
        expected = before - np.concatenate([[-steps], before[begins]])[np.cumsum(begins)]
        if (starts != expected).any():
            row = int(np.argmax(starts != expected))
            what = "the pieces of a history must stand next to each other, in order"
            rows.refuse(row, "start_step", f"{starts[row]}, expected {expected[row]}; {what}")
        of_history = np.concatenate([[task], task_ids[begins]])[np.cumsum(begins)]
        if (task_ids != of_history).any():
            row = int(np.argmax(task_ids != of_history))
            rows.refuse(row, "task_id", f"{task_ids[row]}, where the history began with {of_history[row]}")
        new = [this for this, first in zip(ids, begins.tolist()) if first]
        if len(set(new)) < len(new) or not known.isdisjoint(new):
            for row in np.flatnonzero(begins).tolist():
                if ids[row] in known:
                    rows.refuse(row, "history_id", DOUBLE)
                known.add(ids[row])
        known.update(new)
        history, task, steps = ids[-1], task_ids[-1], int(expected[-1] + lengths[-1])
        yield rows, begins
