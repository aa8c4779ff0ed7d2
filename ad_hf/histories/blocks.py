"""Blocks: the parts in which a stream reads a parquet shard, as far as its footer tells where histories begin."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ad_hf.histories.validation import COLUMNS


@dataclass(frozen=True)
class Block:
    """
    Whole histories that stand together in a shard.

    Attributes:
        path (`str`):
            File of the shard.
        row_groups (`range`):
            Its row groups.
        compressed, decoded (`int`):
            Size of the columns that training reads, in bytes: in the file, and in memory.
    """

    path: str
    row_groups: range
    compressed: int
    decoded: int


def _item_bytes(schema: pa.Schema) -> dict[str, int]:
    """Bytes in memory of the innermost elements of the columns that training reads; 0 for text and binaries."""
    sizes = {}
    for name in COLUMNS:
        kind = schema.field(name).type
        while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        sizes[name] = -(-kind.bit_width // 8) if pa.types.is_primitive(kind) else 0
    return sizes


@dataclass
class RowGroup:
    """What a footer says of a row group: rows and steps, sizes as of [`Block`], whether a history begins with it."""

    rows: int
    steps: int = 0
    compressed: int = 0
    decoded: int = 0
    begins: bool = False


def read_row_groups(footer: pq.FileMetaData) -> list[RowGroup]:
    item_bytes = _item_bytes(footer.schema.to_arrow_schema())
    groups = []
    for index in range(footer.num_row_groups):
        columns = footer.row_group(index)
        group = RowGroup(rows=columns.num_rows)
        for column in (columns.column(number) for number in range(columns.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name not in COLUMNS:
                continue
            group.compressed += column.total_compressed_size
            group.decoded += column.num_values * item_bytes[name] or column.total_uncompressed_size
            if name == "rewards":
                group.steps = column.num_values
            if name == "start_step" and column.is_stats_set and column.statistics.has_min_max:
                group.begins = column.statistics.min == 0
        groups.append(group)
    return groups


def blocks_of_shard(path: str, groups: list[RowGroup], target: int) -> list[Block]:
    """Runs of row groups of about `target` compressed bytes, cut where a history begins."""
    blocks: list[Block] = []
    first, compressed, decoded = 0, 0, 0
    for index, group in enumerate(groups):
        if index and group.begins and compressed >= target:
            blocks.append(Block(path, range(first, index), compressed, decoded))
            first, compressed, decoded = index, 0, 0
        compressed, decoded = compressed + group.compressed, decoded + group.decoded
    return [*blocks, Block(path, range(first, len(groups)), compressed, decoded)]
