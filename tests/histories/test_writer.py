"""Shards as files: what their footers offer to readers, and how much of a changed shard a storage has already."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces

from ad_hf.histories.schema import history_features
from ad_hf.histories.writer import history_table, open_shard, row_groups
from ad_hf.sources.recorder import RecordedSteps

BOTH = spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(4)
WINDOW, BITS = 32, 12  # chunks of about 4 KiB


@pytest.fixture(scope="module")
def histories():
    """300 histories of 1000 steps, a row each: a row group of 9 MB."""
    rng, shape = np.random.default_rng(0), (300, 1000)
    ends = np.broadcast_to(np.arange(1000) % 100 == 99, shape)
    recorded = RecordedSteps(
        *(rng.normal(size=(*shape, 4)).astype(np.float32), rng.integers(0, 4, shape), rng.normal(size=shape)),
        *(ends, np.zeros(shape, bool)),
        final_observations=[np.zeros((10, 4), np.float32)] * 300,
    )
    return history_table(recorded, history_features(*BOTH), 0, 0, max_piece_steps=1000)


def write(path, table):
    """The bytes of a shard."""
    with open_shard(path, table.schema) as writer:
        for rows in row_groups(table):
            writer.write_table(rows)
    return path.read_bytes()


def chunks(content):
    """Pieces that end where their own last bytes say so, as of storages that keep equal pieces once."""
    hashes = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint64)[np.frombuffer(content, np.uint8)]
    sums = np.cumsum(hashes)
    mixed = (sums[WINDOW:] - sums[:-WINDOW]) * np.uint64(0x9E3779B97F4A7C15)
    cuts = np.flatnonzero(mixed >> np.uint64(64 - BITS) == 0) + WINDOW
    borders = [0, *cuts.tolist(), len(content)]
    return [content[start:stop] for start, stop in pairwise(borders)]


def test_shards_have_an_index_of_pages_and_are_the_same_bytes_again(histories, tmp_path):
    content = write(tmp_path / "first", histories)
    assert write(tmp_path / "second", histories) == content
    with pq.ParquetFile(tmp_path / "first") as shard:
        columns = [shard.metadata.row_group(0).column(number) for number in range(shard.metadata.num_columns)]
    assert all(column.has_offset_index for column in columns)


def test_a_storage_has_most_of_a_shard_already_after_a_change(histories, tmp_path):
    before = set(chunks(write(tmp_path / "before", histories)))
    for kept in ([histories.slice(1)], [histories.slice(0, 150), histories.slice(151)], [histories.slice(0, 290)]):
        after = chunks(write(tmp_path / "after", pa.concat_tables(kept).combine_chunks()))
        new = sum(len(chunk) for chunk in after if chunk not in before) / sum(map(len, after))
        assert new < 0.3  # where pages end at a number of bytes, all that follows a change is new
