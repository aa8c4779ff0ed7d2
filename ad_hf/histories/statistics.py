"""Statistics of a learning-history dataset, for its card and for normalization."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.shards import read_row_groups
from ad_hf.histories.steps import column_values, find_episodes, row_lengths
from ad_hf.storage.folders import Folder

SAMPLED_STEPS = 1 << 18  # of a split, for the statistics of its observations
PERCENTILES = (0.1, 99.9)  # beyond which values are outliers
ROUNDING = 8  # units in the last place by which a constant may vary

COLUMNS = ["history_id", "rewards", "terminations", "truncations"]


def _row_groups(files: Sequence[Path], columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of each row group of shards."""
    for file in files:
        with file.open("rb") as content, pq.ParquetFile(content) as shard:
            for index in range(shard.num_row_groups):
                yield shard.read_row_group(index, columns=columns)


def _episodes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The row (num_episodes,) and the return (num_episodes,) of each finished episode."""
    rewards, terminations, truncations = (column_values(table[name]) for name in COLUMNS[1:])
    borders = np.append(0, np.cumsum(row_lengths(table)))  # of rows, which are cut where episodes end
    episodes = find_episodes(rewards, terminations | truncations, borders)
    return episodes.owners, episodes.returns


def split_statistics(files: Sequence[Path]) -> dict[str, Any]:
    """
    Numbers of the shards of a split: `histories`, `steps`, `episodes`, `bytes`, and `return_first` and `return_last`,
    the mean return over histories of the first and of the last finished episode (`None` if there is none).
    """
    ids: set[str] = set()
    counts = {"steps": 0, "episodes": 0, "bytes": 0}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for table in _row_groups(files, COLUMNS):
        names = np.array(table["history_id"].to_pylist(), dtype=object)
        owners, returns = _episodes(table)
        ids.update(names)
        counts["steps"] += int(row_lengths(table).sum())
        counts["episodes"] += len(returns)
        last.update(zip(names[owners], returns.tolist()))
        # Backwards, so that the earliest episode of a history is the one that stays.
        first = dict(zip(names[owners][::-1], returns[::-1].tolist())) | first
    for file in files:
        with file.open("rb") as shard:
            counts["bytes"] += shard.seek(0, os.SEEK_END)
    return {
        "histories": len(ids),
        **counts,
        "return_first": float(np.mean([*first.values()])) if first else None,
        "return_last": float(np.mean([*last.values()])) if last else None,
    }


def normalization(files: Sequence[Path], observation_space: spaces.Space) -> dict[str, Any]:
    """
    The scales by which a model of the shards of a split normalises its inputs: `reward_scale`, the mean magnitude of
    the rewards that are not zero, and for Box vectors `observation_mean` and `observation_std`.

    The latter are one number per dimension, of some 260,000 steps at regular distances. Outliers move to the
    percentiles 0.1 and 99.9; the deviation of a constant dimension is 1.
    """
    is_vector = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
    num_steps = sum(map(_num_steps, files)) if is_vector else 0
    every = max(1, num_steps // SAMPLED_STEPS)
    total, count, steps = 0.0, 0, 0
    samples: list[np.ndarray] = []
    for table in _row_groups(files, ["rewards", *["observations"] * is_vector]):
        rewards = np.abs(column_values(table["rewards"]))
        total, count = total + float(rewards.sum()), count + int(np.count_nonzero(rewards))
        if is_vector:  # copied: a view would keep the whole column
            samples.append(column_values(table["observations"])[-steps % every :: every].copy())
        steps += len(rewards)
    scales: dict[str, Any] = {"reward_scale": total / count if total else 1.0}
    if is_vector and steps:
        scales["observation_mean"], scales["observation_std"] = _moments(np.concatenate(samples))
    return scales


def _num_steps(file: Path) -> int:
    with file.open("rb") as shard:
        return sum(group.steps for group in read_row_groups(pq.read_metadata(shard)))


def _moments(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Means and standard deviations of values (number, dimensions) but for outliers."""
    rounding = ROUNDING * np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    values = values.astype(np.float64)
    low = np.percentile(values, PERCENTILES[0], axis=0, method="lower")  # of few values none is an outlier
    high = np.percentile(values, PERCENTILES[1], axis=0, method="higher")
    # A dimension that is constant between the percentiles varies in its outliers alone.
    clipped = np.where(low == high, values, values.clip(low, high))
    means, stds = clipped.mean(axis=0), clipped.std(axis=0)
    # Where only rounding varies there is nothing to scale. A clock varies little beside its time.
    return means.tolist(), np.where(stds > rounding * np.abs(means), stds, 1.0).tolist()


def content_fingerprint(files: Sequence[Path]) -> str:
    """Digest of the contents of shards, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def describe_shards(metadata: HistoryMetadata, folder: Path | Folder) -> None:
    """Fill in the statistics and the fingerprint of the shards in a configuration's folder."""
    folder = Folder(folder) if isinstance(folder, Path) else folder
    shards = {split: folder.files(f"{split}-*.parquet") for split in SPLITS}
    metadata.statistics = {split: split_statistics(files) for split, files in shards.items() if files}
    if shards["train"]:
        metadata.statistics["train"] |= normalization(shards["train"], metadata.spaces[0])
    metadata.fingerprint = content_fingerprint(folder.files("*.parquet"))
