"""Blocks: the parts in which a stream reads a parquet shard, as far as its footer tells where histories begin."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from ad_hf.histories.checks import COLUMNS

ENDS = ("terminations", "truncations")
DESCRIBED = ("history_id", "start_step", "rewards", *ENDS)  # columns whose statistics say something here


@dataclass(frozen=True)
class Block:
    """
    Whole histories that stand together in a shard.

    Attributes:
        path (`str`):
            File of the shard.
        row_groups (`range`):
            Its row groups.
        steps (`int`):
            Steps of its histories.
        compressed (`int`):
            Bytes, in the file, of the columns that training reads.
        frame_bytes (`int`):
            Bytes of its compressed frames, if observations are such.
    """

    path: str
    row_groups: range
    steps: int
    compressed: int
    frame_bytes: int


@dataclass
class RowGroup:
    """
    What a footer says of a row group: its rows, whether a history begins with it, two ids of its histories, the least
    and the largest, the range of its rewards, whether an episode may end in it, and the rest as of [`Block`].
    """

    rows: int
    begins: bool = False
    histories: tuple[str, ...] = ()
    rewards: tuple[float, float] | None = None
    ends: bool = False
    steps: int = 0
    compressed: int = 0
    frame_bytes: int = 0


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
            statistics = column.statistics if name in DESCRIBED and column.is_stats_set else None
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


def blocks_of_shard(path: str, groups: list[RowGroup], target: int) -> list[Block]:
    """Runs of row groups of about `target` compressed bytes, cut where a history begins."""
    cuts, compressed = [0], 0
    for index, group in enumerate(groups):
        if index and group.begins and compressed >= target:
            cuts.append(index)
            compressed = 0
        compressed += group.compressed
    return [
        Block(
            path,
            range(first, stop),
            steps=sum(group.steps for group in groups[first:stop]),
            compressed=sum(group.compressed for group in groups[first:stop]),
            frame_bytes=sum(group.frame_bytes for group in groups[first:stop]),
        )
        for first, stop in zip(cuts, [*cuts[1:], len(groups)])
    ]
