"""The numbers of a dataset's card, against a slow count, and its fingerprint."""

from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from history_files import (
    ACTIONS,
    make_histories,
    make_table,
    of_histories,
    of_rows,
    open_dataset,
    rows_to_table,
    write_dataset,
    write_shard,
)

from ad_hf.histories.schema import read_metadata
from ad_hf.histories.statistics import (
    _moments,
    content_fingerprint,
    describe_shards,
    normalization,
    split_statistics,
)


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


def test_a_collection_says_its_statistics(tiny_histories):
    metadata = read_metadata(tiny_histories)
    splits = sorted({task["split"] for task in metadata.tasks})
    assert sorted(metadata.statistics) == splits == ["test", "train", "validation"]
    for split in splits:
        files = sorted((tiny_histories / "default").glob(f"{split}-*.parquet"))
        found = {name: value for name, value in metadata.statistics[split].items() if name != "reward_scale"}
        assert found == pytest.approx(slow_statistics(files))
    assert metadata.statistics["train"]["reward_scale"] == 1.0
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


def box(width, dtype=np.float32):
    return spaces.Box(-np.inf, np.inf, (width,), dtype)


def write_values(path, observations, rewards, dtype=np.float32):
    """A shard of one history of these observations (num_steps, width) and rewards (num_steps,), in 3 row groups."""
    [row] = make_histories([len(rewards)])
    tables = []
    for number, part in enumerate(np.array_split(np.arange(len(rewards)), 3)):
        cut = {name: np.asarray(row[name])[part].tolist() for name in ("actions", "terminations", "truncations")}
        cut |= {"piece": number, "start_step": int(part[0]), "rewards": rewards[part].tolist()}
        tables.append({**row, **cut, "observations": observations[part].tolist()})
    write_shard(path, rows_to_table(tables, box(observations.shape[1], dtype), ACTIONS), of_rows(1))


def test_observations_are_normalised_by_their_mean_and_deviation(tmp_path):
    rng = np.random.default_rng(0)
    observations = (rng.normal(size=(2000, 3)) * [1.0, 1e-3, 1e4] + [0.0, 5.0, -1e5]).astype(np.float32)
    rewards = rng.normal(size=2000) * (rng.random(2000) < 0.1)
    for index, part in enumerate((slice(0, 700), slice(700, 2000))):
        write_values(tmp_path / f"{index}.parquet", observations[part], rewards[part])

    found = normalization(sorted(tmp_path.glob("*.parquet")), box(3))

    np.testing.assert_allclose(found["observation_mean"], observations.mean(axis=0), rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(found["observation_std"], observations.std(axis=0, dtype=np.float64), rtol=0.02)
    assert found["reward_scale"] == pytest.approx(np.abs(rewards[rewards != 0]).mean())


def test_of_many_steps_a_part_is_taken_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("ad_hf.histories.statistics.SAMPLED_STEPS", 100)
    steps = np.arange(3000)
    for index in range(2):
        write_values(tmp_path / f"{index}.parquet", (steps + 3000 * index)[:, None], np.zeros(3000))
    found = normalization(sorted(tmp_path.glob("*.parquet")), box(1))
    sampled = np.arange(0, 6000, 60)
    assert found["observation_mean"] == [pytest.approx(sampled.mean())]
    assert found["reward_scale"] == 1.0  # there are no rewards to scale


def test_outliers_and_constants_do_not_spoil_the_scale(tmp_path):
    rng = np.random.default_rng(0)
    observations = np.stack([rng.normal(size=5000), np.full(5000, 0.1), np.zeros(5000), np.zeros(5000)], axis=1)
    observations[[7, 77], 0] = 1e30, -1e20
    observations[5, 3] = 4.0  # hardly ever anything else than 0
    rewards = np.ones(5000)
    rewards[9] = -1e3
    write_values(tmp_path / "train.parquet", observations, rewards)

    found = normalization([tmp_path / "train.parquet"], box(4))

    assert found["observation_std"][0] == pytest.approx(1.0, rel=0.05)
    assert found["observation_mean"] == pytest.approx([0.0, 0.1, 0.0, 4 / 5000], abs=0.05)
    assert found["observation_std"][1:3] == [1.0, 1.0]
    assert found["observation_std"][3] == pytest.approx(observations[:, 3].std(), rel=1e-3)
    assert found["reward_scale"] == pytest.approx(1.2, rel=0.01)


def test_only_vectors_are_normalised_and_only_the_training_split_says_how(tmp_path):
    for split in ("train", "test"):
        folder = write_dataset(tmp_path / split, [make_table([20, 30])], split=split)
        metadata = open_dataset(folder).metadata
        describe_shards(metadata, folder / "default")
        assert ("observation_mean" in metadata.statistics[split]) == (split == "train")
    grid = make_table([20, 30], width=2)
    write_shard(tmp_path / "grid.parquet", grid, of_histories(1))
    assert list(normalization([tmp_path / "grid.parquet"], spaces.MultiDiscrete([50, 50]))) == ["reward_scale"]


@pytest.mark.parametrize(
    ("values", "std"),
    [
        (1.7e9 + np.arange(30.0), 8.655),
        ((1.7e9 + 0 * np.arange(30.0)), 1.0),
        (np.full(30, 0.1, np.float32) * (1 + np.arange(30, dtype=np.float32) % 2 * np.float32(1e-7)), 1.0),
        (np.arange(30), 8.655),
    ],
    ids=["a clock", "a clock that stands", "rounding of float32", "integers"],
)
def test_what_varies_far_from_zero_has_its_deviation(values, std):
    assert _moments(values[:, None])[1] == [pytest.approx(std, abs=1e-3)]
