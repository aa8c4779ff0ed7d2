"""What is in a learning-history dataset, in a few numbers for its card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.schema import HistoryMetadata

COLUMNS = ["history_id", "rewards", "terminations", "truncations"]


def _episodes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The row (num_episodes,) and the return (num_episodes,) of each finished episode."""
    lengths = np.asarray(pc.list_value_length(table["rewards"]))
    rewards, terminations, truncations = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in COLUMNS[1:]
    )
    owners = np.repeat(np.arange(len(lengths)), lengths)
    lasts = np.flatnonzero(terminations | truncations)
    # Rows are cut at episode borders: an episode begins after the last one's end, or with its row.
    starts = np.concatenate([[0], lasts[:-1] + 1]) if len(lasts) else lasts
    starts = np.maximum(starts, (np.cumsum(lengths) - lengths)[owners[lasts]])
    totals = np.concatenate([[0.0], np.cumsum(rewards)])
    return owners[lasts], totals[lasts + 1] - totals[starts]


def split_statistics(files: Sequence[Path]) -> dict[str, Any]:
    """
    Numbers of a split.

    Args:
        files (`Sequence[Path]`):
            Its shards.

    Returns:
        `dict`: `histories`, `steps`, `episodes`, `bytes`, and the mean over histories of the return of the first and
        of the last finished episode (`None` if there is none).
    """
    ids: set[str] = set()
    counts = {"steps": 0, "episodes": 0}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for file in files:
        with pq.ParquetFile(file) as shard:
            for index in range(shard.num_row_groups):
                table = shard.read_row_group(index, columns=COLUMNS)
                names = np.array(table["history_id"].to_pylist(), dtype=object)
                owners, returns = _episodes(table)
                ids.update(names)
                counts["steps"] += int(pc.sum(pc.list_value_length(table["rewards"])).as_py() or 0)
                counts["episodes"] += len(returns)
                last.update(zip(names[owners], returns.tolist()))
                # Backwards, so that the earliest episode of a history is the one that stays.
                first = dict(zip(names[owners][::-1], returns[::-1].tolist())) | first
    return {
        "histories": len(ids),
        **counts,
        "bytes": sum(file.stat().st_size for file in files),
        "return_first": float(np.mean(list(first.values()))) if first else None,
        "return_last": float(np.mean(list(last.values()))) if last else None,
    }


def content_fingerprint(files: Sequence[Path]) -> str:
    """Digest of the contents of shards, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def describe_shards(metadata: HistoryMetadata, folder: Path) -> None:
    """Fill in what `metadata.json` says of the shards in a configuration's folder: statistics and fingerprint."""
    shards = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in SPLITS}
    metadata.statistics = {split: split_statistics(files) for split, files in shards.items() if files}
    metadata.fingerprint = content_fingerprint(sorted(folder.glob("*.parquet")))
