"""Whether a table is learning histories, as far as a model that trains on it relies on; if not, where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from gymnasium import spaces

from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import HistoryMetadata, history_features

COLUMNS = (
    *("history_id", "task_id", "start_step", "observations", "actions", "rewards", "terminations", "truncations"),
)  # what training reads


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


def check_complete(names: Iterable[str], split: str, where: str) -> None:
    """
    Refuse a split of which shards are missing, as far as their names, `SPLIT-NNNNN-of-NNNNN.parquet`, tell.

    Args:
        names (`Iterable[str]`):
            Names of the files that are there.
        split (`str`):
            The split.
        where (`str`):
            What to call the place in an error.

    Raises:
        FileNotFoundError: naming those that are missing.
    """
    found = set(names)
    numbers = [match for name in found if (match := re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", name))]
    total = max((int(match[2]) for match in numbers), default=0 if found else 1)
    missing = sorted({f"{split}-{index:05d}-of-{total:05d}.parquet" for index in range(total)} - found)
    if missing:
        raise FileNotFoundError(f"{where} lacks {', '.join(missing)}: collect again, or download all of it")


def check_shards(files: Iterable[Path], metadata: HistoryMetadata, name: str) -> None:
    """
    Refuse files that are no shards of learning histories.

    Raises:
        ValueError: naming the file, and the column.
    """
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{name}, {file.name}: it is no parquet file, or a damaged one: {error}") from error
        check_columns(schema, *metadata.spaces, f"{name}, {file.name}")


def _leaves(column: pa.ChunkedArray, num_steps: int) -> tuple[pa.Array, int | None]:
    """The innermost values of a column of lists, and the first step (counted over all rows) that lacks one."""
    values = column.combine_chunks().flatten()
    while True:
        if values.null_count:  # before the next level is flattened, which would drop them
            return values, int(np.argmax(np.asarray(values.is_null()))) * num_steps // len(values)
        if pa.types.is_primitive(values.type):
            return values, None
        values = values.flatten()


def _outside(values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Which elements (num_elements, ...) do not belong to a space."""
    if isinstance(space, spaces.Box):
        wrong = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
    else:
        bound = space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)
        wrong = values >= np.asarray(bound)
    return np.asarray(wrong.reshape(len(values), -1).any(axis=1))


def check_histories(
    table: pa.Table, observation_space: spaces.Space, action_space: spaces.Space, name: str, first_row: int = 0
) -> None:
    """
    Refuse rows that are no learning histories.

    Args:
        table (`pyarrow.Table`):
            Rows, with the columns that training reads.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.
        name (`str`):
            What to call the table in an error.
        first_row (`int`, *optional*, defaults to 0):
            Number of the table's first row.

    Raises:
        ValueError: with the row's number, its history, and the column: for missing values, lengths that disagree,
            rewards and observations that are not finite, and elements outside of their space.
    """
    check_columns(table.schema, observation_space, action_space, name)
    if not len(table):
        return

    def refuse(row: int, column: str, what: Any) -> None:
        history = table["history_id"][row].as_py()
        raise ValueError(f"{name}: row {first_row + row} (history {history!r}), column {column}: {what}")

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
    owners = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    spaces_of = {"observations": observation_space, "actions": action_space}
    for column in stepwise:
        flat, missing = _leaves(table[column], len(owners))
        if missing is not None:
            refuse(owners[missing], column, f"no value at step {steps[missing]}")
        space = spaces_of.get(column)
        if pa.types.is_boolean(flat.type):
            continue
        values = np.asarray(flat).reshape(len(owners), *((space.shape or ()) if space else ()))
        wrong = ~np.isfinite(values) if space is None else _outside(values, space)
        if wrong.any():
            index = int(np.argmax(wrong))
            expected = "a finite number" if space is None else f"an element of {space}"
            refuse(owners[index], column, f"{values[index].tolist()} at step {steps[index]}, expected {expected}")
