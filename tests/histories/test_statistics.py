"""The numbers of a dataset's card, against a slow count, and its fingerprint."""

from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from history_files import make_histories, make_table, of_histories, of_rows, rows_to_table, write_shard

from ad_hf.histories.schema import read_metadata
from ad_hf.histories.statistics import content_fingerprint, split_statistics


def slow_statistics(files):
    """One step after another; an episode that was not finished does not count."""
    returns, steps = defaultdict(list), 0
    for file in files:
        for row in pq.read_table(file).to_pylist():
            total = 0.0
            returns[row["history_id"]] += []
            for reward, *ends in zip(row["rewards"], row["terminations"], row["truncations"]):
                total, steps = total + reward, steps + 1
                if any(ends):
                    returns[row["history_id"]].append(total)
                    total = 0.0
    finished = [episodes for episodes in returns.values() if episodes]
    return {
        "histories": len(returns),
        "steps": steps,
        "episodes": sum(map(len, finished)),
        "bytes": sum(len(file.read_bytes()) for file in files),
        "return_first": np.mean([episodes[0] for episodes in finished]) if finished else None,
        "return_last": np.mean([episodes[-1] for episodes in finished]) if finished else None,
    }


def assert_is_recounted(files):
    found, expected = split_statistics(files), slow_statistics(files)
    assert found == pytest.approx(expected)
    return found


@pytest.mark.parametrize("row_groups", [of_histories(2), of_rows(1), of_rows(3), of_rows(1000)])
@pytest.mark.parametrize("max_piece_steps", [1, 20, 1000])
def test_statistics_are_those_of_a_slow_count(tmp_path, row_groups, max_piece_steps):
    """Ragged episodes, in pieces and row groups, over two shards; histories that end in mid-episode."""
    lengths = np.random.default_rng(3).integers(10, 80, size=14).tolist()
    files = []
    for first in (0, 7):
        table = make_table(lengths[first : first + 7], max_piece_steps=max_piece_steps, seed=first, first_number=first)
        files.append(tmp_path / f"{first}.parquet")
        write_shard(files[-1], table, row_groups)
    found = assert_is_recounted(files)
    assert found["histories"] == 14
    assert found["steps"] == sum(lengths)
    assert found["return_first"] != found["return_last"]


def test_histories_without_a_finished_episode_have_no_returns(tmp_path):
    rows = make_histories([12, 30, 9])
    for row in (rows[0], rows[2]):
        row["terminations"] = row["truncations"] = [False] * len(row["rewards"])
    path = tmp_path / "train.parquet"
    write_shard(path, rows_to_table(rows), of_histories(3))
    found = assert_is_recounted([path])
    ends = np.flatnonzero(np.array(rows[1]["terminations"]) | np.array(rows[1]["truncations"]))
    assert found["episodes"] == len(ends)
    assert found["return_first"] == pytest.approx(sum(rows[1]["rewards"][: ends[0] + 1]))
    write_shard(path, rows_to_table([rows[0], rows[2]]), of_histories(3))
    found = assert_is_recounted([path])
    assert (found["episodes"], found["return_first"], found["return_last"]) == (0, None, None)


def test_an_unfinished_episode_does_not_leak_into_the_next_history(tmp_path):
    rows = make_histories([5, 5, 5])
    for number, row in enumerate(rows):
        row["rewards"] = [10.0**number] * 5
        row["terminations"], row["truncations"] = [False] * 5, [False, False, True, False, False]
    write_shard(tmp_path / "train.parquet", rows_to_table(rows), of_histories(3))
    found = split_statistics([tmp_path / "train.parquet"])
    assert found["return_first"] == found["return_last"] == pytest.approx((3 + 30 + 300) / 3)


def test_a_collection_says_its_statistics(tiny_histories):
    metadata = read_metadata(tiny_histories)
    splits = sorted({task["split"] for task in metadata.tasks})
    assert sorted(metadata.statistics) == splits == ["test", "train", "validation"]
    for split in splits:
        files = sorted((tiny_histories / "default").glob(f"{split}-*.parquet"))
        assert metadata.statistics[split] == pytest.approx(slow_statistics(files))
    files = sorted((tiny_histories / "default").glob("*.parquet"))
    assert metadata.fingerprint == content_fingerprint(files)


def test_a_fingerprint_is_that_of_the_content_in_its_order(tmp_path):
    table = make_table([20, 30])
    first, copy, second, renamed = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet", "z.parquet"))
    for path in (first, copy):
        write_shard(path, table, of_histories(1))
    write_shard(second, make_table([20, 30], seed=1), of_histories(1))
    renamed.write_bytes(second.read_bytes())
    assert content_fingerprint([first, second]) == content_fingerprint([copy, renamed])
    other = [content_fingerprint(files) for files in ([second, first], [first], [second], [first, first], [])]
    assert len({*other, content_fingerprint([first, second])}) == 6
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    assert content_fingerprint([first]) != content_fingerprint([copy])
