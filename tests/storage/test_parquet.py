"""Reading parquet files that may be damaged."""

import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_hf.storage.parquet import read_footer, read_groups, read_schema, read_table

TABLE = pa.table({"a": list(range(6)), "b": [[1.0], [], [2.0], [], [3.0], []]})


@pytest.fixture
def shard(tmp_path):
    pq.write_table(TABLE, tmp_path / "train.parquet", row_group_size=2)
    return tmp_path / "train.parquet"


def test_columns_and_row_groups(shard):
    assert read_table(shard) == TABLE
    assert (read_footer(shard).num_rows, read_schema(shard)) == (6, TABLE.schema)
    assert [group.to_pydict() for group in read_groups(shard, ["a"])] == [{"a": [0, 1]}, {"a": [2, 3]}, {"a": [4, 5]}]
    with pytest.raises(ValueError, match=f"{re.escape(str(shard))}: column c is missing, there are a, b"):
        list(read_groups(shard, ["c"]))
    pq.write_table(TABLE[:0], shard)
    assert read_table(shard) == TABLE[:0]


DAMAGES = {
    "empty": lambda data: b"",
    "text": lambda data: b"no parquet at all" * 100,
    "truncated": lambda data: data[:-20],
    "the start alone": lambda data: data[:4],
    "no magic bytes": lambda data: data[:-4] + b"PARX",
    "a footer of garbage": lambda data: data[:-108] + bytes(100) + data[-8:],
    "a footer that is too long": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "pages of garbage": lambda data: data[:4] + b"\xff" * 200 + data[204:],
}


def test_a_damaged_file_is_named(shard):
    whole = shard.read_bytes()
    for name, damage in DAMAGES.items():
        shard.write_bytes(damage(whole))
        for read in (read_table, lambda path: list(read_groups(path, ["a", "b"]))):
            with pytest.raises(
                ValueError, match=f"^{re.escape(str(shard))}: it is no parquet file, or a damaged"
            ) as e:
                read(shard)
            assert str(e.value)[-2:] != ": ", name


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    for name in ("pipe.parquet", "."):
        with pytest.raises(ValueError, match="regular file"):
            read_footer(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.parquet"):
        read_table(tmp_path / "missing.parquet")
