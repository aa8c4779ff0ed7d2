"""Checks of shards against `metadata.json`, as far as names and footers tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from ad_hf.histories.schema import HistoryMetadata, history_features
from ad_hf.histories.steps import COLUMNS

ENDS = ("terminations", "truncations")


@dataclass
class RowGroup:
    """A row group as its footer describes it."""

    rows: int
    steps: int = 0
    compressed: int = 0  # bytes, in the file, of the columns that training reads
    frame_bytes: int = 0  # of compressed frames
    begins: bool = False  # with a history
    ends: bool = False  # an episode may end in it
    histories: tuple[str, ...] = ()  # the least and the largest id
    rewards: tuple[float, float] | None = None  # the least and the largest


def read_row_groups(footer: pq.FileMetaData) -> list[RowGroup]:
    """The row groups of a shard."""
    groups = []
    for index in range(footer.num_row_groups):
        columns = footer.row_group(index)
        group = RowGroup(rows=columns.num_rows)
        for column in (columns.column(number) for number in range(columns.num_columns)):
            name, _, inner = column.path_in_schema.partition(".")
            if name not in COLUMNS:
                continue
            group.compressed += column.total_compressed_size
            if name == "observations" and not inner:  # not a list: frames
                group.frame_bytes = column.total_uncompressed_size
            if name == "rewards":
                group.steps = column.num_values
            if name not in ("history_id", "start_step", "rewards", *ENDS):
                continue
            statistics = column.statistics if column.is_stats_set else None
            if statistics is None or not statistics.has_min_max:
                group.ends |= name in ENDS
            elif name == "start_step":
                group.begins = statistics.min == 0
            elif name == "history_id":
                group.histories = (statistics.min, statistics.max)
            elif name == "rewards":
                group.rewards = (statistics.min, statistics.max)
            else:
                group.ends |= statistics.max
        groups.append(group)
    return groups


def check_columns(
    schema: pa.Schema,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    name: str,
    columns: Sequence[str] = COLUMNS,
) -> None:
    """Raise a `ValueError` for a table, of this name, that lacks columns or has columns of another type."""
    expected = history_features(observation_space, action_space).arrow_schema
    for column in columns:
        if column not in schema.names:
            raise ValueError(f"{name}: column {column} is missing, there are {', '.join(schema.names)}")
        if schema.field(column).type != expected.field(column).type:
            types = f"{schema.field(column).type}, expected {expected.field(column).type}"
            raise ValueError(f"{name}: column {column} is of type {types}")


def check_complete(names: Collection[str], split: str, where: str) -> None:
    """
    Refuse a split if its files, `SPLIT-NNNNN-of-NNNNN.parquet`, lack shards (`FileNotFoundError`) or others are there
    (`ValueError`).
    """
    numbers = [match for name in names if (match := re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", name))]
    total = max((int(match[2]) for match in numbers), default=0 if names else 1)
    expected = {f"{split}-{index:05d}-of-{total:05d}.parquet" for index in range(total)}
    if missing := sorted(expected.difference(names)):
        raise FileNotFoundError(f"{where} lacks {', '.join(missing)}: collect again, or download all of it")
    if expected and (others := sorted(set(names) - expected)):
        raise ValueError(
            f"{where} holds {', '.join(others)} beside the {total} shards of the split {split}: remove what is not of "
            "the dataset"
        )


def check_footers(footers: Mapping[str, pq.FileMetaData], metadata: HistoryMetadata, split: str, where: str) -> int:
    """
    The number of steps in the shards of a split of a dataset of this name, by their footers.

    Raises:
        ValueError: naming the shard: for columns that are missing or of another type, no rows, a history that is in
            two shards, and statistics that do not fit the rewards.
    """
    owners: dict[str, str] = {}
    groups: list[RowGroup] = []
    schema = None
    for name, footer in footers.items():
        before, schema = schema, footer.schema.to_arrow_schema()
        if schema != before:
            check_columns(schema, *metadata.spaces, f"{where}, {name}")
        if not footer.num_rows:
            raise ValueError(f"{where}, {name}: it holds no rows, and so no histories")
        of_file = read_row_groups(footer)
        for history in sorted({history for group in of_file if group.begins for history in group.histories}):
            if owners.setdefault(history, name) != name:
                raise ValueError(f"{where}: history {history!r} is both in {owners[history]} and in {name}")
        groups += of_file
    if not any(group.ends for group in groups):
        warnings.warn(f"{where}, split {split}: no episode ever ends, so that nothing has a return", stacklevel=2)
    steps = sum(group.steps for group in groups)
    scale = metadata.statistics.get(split, {}).get("reward_scale")
    ranges: list[Any] = [group.rewards for group in groups]
    if scale is not None and all(ranges):
        most = max(max(map(abs, each)) for each in ranges)
        # The mean magnitude of rewards that are not zero: all may be alike, or one alone may not be zero.
        if most and not 0.999 * most / steps <= scale <= 1.001 * most:
            raise ValueError(
                f"{where}, metadata.json: statistics.{split}.reward_scale is {scale}, expected the mean magnitude of "
                f"rewards up to {most:g}"
            )
    return steps
