"""Whether the shards of a split are those that `metadata.json` describes, as far as names and footers tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ad_hf.histories.blocks import RowGroup, read_row_groups
from ad_hf.histories.checks import check_columns
from ad_hf.histories.schema import HistoryMetadata


def check_complete(names: Collection[str], split: str, where: str) -> None:
    """
    Refuse a split of which shards are missing, or that has others, as far as their names,
    `SPLIT-NNNNN-of-NNNNN.parquet`, tell.

    Args:
        names (`Collection[str]`):
            Names of the files that are there.
        split (`str`):
            The split.
        where (`str`):
            What to call the place in an error.

    Raises:
        FileNotFoundError: naming those that are missing.
        ValueError: naming those that are too many.
    """
    found = set(names)
    numbers = [match for name in found if (match := re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", name))]
    total = max((int(match[2]) for match in numbers), default=0 if found else 1)
    expected = {f"{split}-{index:05d}-of-{total:05d}.parquet" for index in range(total)}
    if expected - found:
        missing = ", ".join(sorted(expected - found))
        raise FileNotFoundError(f"{where} lacks {missing}: collect again, or download all of it")
    if expected and found - expected:
        raise ValueError(
            f"{where} holds {', '.join(sorted(found - expected))} beside the {total} shards of the split {split}: "
            "remove what is not of the dataset"
        )


def check_footers(footers: Mapping[str, pq.FileMetaData], metadata: HistoryMetadata, split: str, where: str) -> int:
    """
    Refuse files that are no shards of learning histories, or not those that a dataset's metadata describes.

    Args:
        footers (`Mapping[str, pyarrow.parquet.FileMetaData]`):
            The footer of each shard of a split, by its name.
        metadata ([`~ad_hf.histories.schema.HistoryMetadata`]), split (`str`):
            Of the dataset; the split.
        where (`str`):
            What to call the dataset in an error.

    Returns:
        `int`: the number of steps.

    Raises:
        ValueError: naming the file: for columns that are missing or of another type, no rows, a history that is in two
            files, and statistics that do not fit the rewards.
    """
    both, owners = metadata.spaces, dict[str, str]()
    groups: list[RowGroup] = []
    schema = None
    for name, footer in footers.items():
        schema, before = footer.schema.to_arrow_schema(), schema
        if schema != before:
            check_columns(schema, *both, f"{where}, {name}")
        if not footer.num_rows:
            raise ValueError(f"{where}, {name}: it holds no rows, and so no histories")
        of_file = read_row_groups(footer)
        for history in sorted({history for group in of_file if group.begins for history in group.histories}):
            if owners.setdefault(history, name) != name:
                raise ValueError(f"{where}: history {history!r} is both in {owners[history]} and in {name}")
        groups += of_file
    if not any(group.ends for group in groups):
        warnings.warn(f"{where}, split {split}: no episode ever ends, so that nothing has a return", stacklevel=2)
    _check_scale(metadata.statistics.get(split, {}), groups, f"{where}, metadata.json: statistics.{split}")
    return sum(group.steps for group in groups)


def _check_scale(statistics: Mapping[str, Any], groups: list[RowGroup], where: str) -> None:
    """Refuse a scale of rewards that cannot be the mean magnitude of those that are not zero."""
    scale, ranges = statistics.get("reward_scale"), [group.rewards for group in groups if group.rewards]
    most = float(np.abs(ranges).max(initial=0.0))
    least = most / max(1, sum(group.steps for group in groups))  # if one alone is not zero
    if scale is not None and most and len(ranges) == len(groups) and not 0.999 * least <= scale <= 1.001 * most:
        raise ValueError(f"{where}.reward_scale is {scale}, expected the mean magnitude of rewards up to {most:g}")
