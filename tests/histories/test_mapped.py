"""Histories in memory-mapped files: the batches of those in memory, from files that are complete or not there."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from history_files import ACTIONS, make_table, of_histories, of_rows, open_dataset, write_dataset

import ad_hf
from ad_hf.histories.mapped import fits_in_memory, map_histories
from ad_hf.histories.schema import history_features
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.histories.writer import history_table
from ad_hf.recipe import load_recipe
from ad_hf.sources.recorder import RecordedSteps

CONTEXT = 12
LENGTHS = [60, 5, 83, 47, 3, 120, 12, 90]
SHAPE = (6, 8, 3)
IMAGES = spaces.Box(0, 255, SHAPE, np.uint8)
SUBSAMPLINGS = [{}, {"keep_every_episode": 3}, {"max_episodes": 6, "last_episodes": 2}, {"min_improvement": 0.0}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; in which the memory-mapped files are."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder / "ad_hf"


def write(folder, action_space=ACTIONS, row_groups=None, **settings):
    """Two shards of histories in pieces of some 20 steps."""
    tables = [
        make_table(lengths, max_piece_steps=20, first_number=first, action_space=action_space, **settings)
        for first, lengths in ((0, LENGTHS[:3]), (3, LENGTHS[3:]))
    ]
    return write_dataset(folder, tables, action_space=action_space, row_groups=row_groups)


def write_frames(folder):
    """A shard of three histories of noise."""
    rng = np.random.default_rng(0)
    ends = rng.random((3, 70)) < 0.2
    recorded = RecordedSteps(
        observations=rng.integers(0, 256, (3, 70, *SHAPE), dtype=np.uint8),
        actions=rng.integers(0, 7, (3, 70)),
        rewards=rng.normal(size=(3, 70)),
        terminations=ends,
        truncations=ends & False,
        final_observations=[np.zeros((int(row.sum()) + 1, *SHAPE), np.uint8) for row in ends],
    )
    return write_dataset(folder, [history_table(recorded, history_features(IMAGES, ACTIONS), 0, 0, 13)], IMAGES)


def mapped(folder, **subsampling):
    dataset = open_dataset(folder)
    return HistoryWindows(map_histories(dataset, "train", **subsampling), *dataset.metadata.spaces, CONTEXT, seed=3)


def in_memory(folder, **subsampling):
    dataset = open_dataset(folder)
    return HistoryWindows(dataset.load("train"), *dataset.metadata.spaces, CONTEXT, **subsampling, seed=3)


def assert_same_batches(windows, expected):
    for epoch in range(4):
        np.testing.assert_array_equal(windows.epoch_order(epoch), expected.epoch_order(epoch))
    batches = [itertools.islice(iter(WindowBatches(each, 7)), 12) for each in (windows, expected)]
    for batch, expected_batch in zip(*batches, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert tensor.dtype == batch[name].dtype
            assert torch.equal(batch[name], tensor), name


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS, ids=str)
@pytest.mark.parametrize(
    "action_space",
    [ACTIONS, spaces.Discrete(256), spaces.MultiDiscrete([3, 300]), spaces.Box(-1.0, 1.0, (2,), np.float32)],
    ids=str,
)
def test_batches_are_bit_for_bit_those_from_memory(tmp_path, action_space, subsampling):
    """Of histories in pieces, some shorter than a window."""
    folder = write(tmp_path / "data", action_space)
    assert_same_batches(mapped(folder, **subsampling), in_memory(folder, **subsampling))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS, ids=str)
def test_frames_are_those_from_memory(tmp_path, subsampling):
    folder = write_frames(tmp_path / "data")
    assert_same_batches(mapped(folder, **subsampling), in_memory(folder, **subsampling))


@pytest.mark.parametrize("row_groups", [of_rows(1), of_rows(3), of_histories(5)])
def test_histories_may_run_over_row_groups(tmp_path, row_groups):
    folder = write(tmp_path / "data", row_groups=row_groups)
    assert_same_batches(mapped(folder), in_memory(folder))


def test_steps_are_read_from_a_file_and_not_from_memory(tmp_path, cache):
    """A change of the file shows in the batches."""
    windows = mapped(write(tmp_path / "data"))
    before = windows.batch(np.array([[0, 5]]))["observations"]
    (steps,) = cache.glob("*/steps.bin")
    assert steps.stat().st_size == sum(LENGTHS) * (2 * 4 + 1 + 4 + 1)
    with open(steps, "r+b") as file:
        file.write(np.float32(123).tobytes())
    assert windows.batch(np.array([[0, 5]]))["observations"][0, 0, 0] == 123
    assert before[0, 0, 0] == 0


def test_files_are_written_once_and_used_again(tmp_path, cache):
    folder, said = write(tmp_path / "data"), []
    map_histories(open_dataset(folder), "train", say=said.append)
    (written,) = [path for path in cache.iterdir() if path.is_dir()]
    times = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    again = map_histories(open_dataset(folder), "train", say=said.append)
    assert len(said) == 1
    assert str(written.parent) in said[0]
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == times
    assert again.offsets[-1] == sum(LENGTHS)


def test_other_settings_and_other_contents_are_other_files(tmp_path, cache):
    """Also for a dataset that is collected anew, of the same name and with the same metadata."""
    folder = write(tmp_path / "data")
    mapped(folder), mapped(folder, keep_every_episode=2), mapped(folder, last_episodes=2)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3
    metadata = (folder / "default" / "metadata.json").read_text()
    shutil.rmtree(folder)
    write(folder, seed=9)
    (folder / "default" / "metadata.json").write_text(metadata)
    assert_same_batches(mapped(folder), in_memory(folder))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 4


PREPARE = """
import sys
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.mapped import map_histories
print("ready", flush=True)
sys.stdin.readline()
flat = map_histories(HistoryDataset.open(sys.argv[1]), "train", say=lambda line: print("writing", flush=True))
print(flat.steps["rewards"].sum(), len(flat.hashes), flush=True)
"""


def start(folder, cache):
    """A process that maps a dataset once it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder)],
        env={**os.environ, "HF_DATASETS_CACHE": str(cache.parent), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    return process


def test_of_processes_that_start_together_one_writes_and_all_read_the_same(tmp_path, cache):
    folder = write_dataset(tmp_path / "data", [make_table([500] * 200)])
    processes = [start(folder, cache) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
    told = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(len, told)) == [1, 2]
    assert told[0][-1] == told[1][-1]
    assert told[0][-1].endswith(" 200")


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_half(tmp_path, cache):
    folder = write_dataset(tmp_path / "data", [make_table([500] * 40, first_number=40 * shard) for shard in range(25)])
    process = start(folder, cache)
    process.stdout.readline()
    process.stdin.write("go\n")
    while not any(path.stat().st_size for path in cache.glob(".*/steps.bin")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name[0] for path in cache.iterdir() if path.is_dir()] == ["."]  # hidden, so not complete
    assert_same_batches(mapped(folder), in_memory(folder))
    assert [path.name[0] == "." for path in cache.iterdir() if path.is_dir()] == [False]  # and cleared away


FULL = """
import resource, sys
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.mapped import map_histories
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    map_histories(HistoryDataset.open(sys.argv[1]), "train")
except OSError as error:
    print(error)
"""


def test_a_disk_without_room_is_named_with_what_can_be_done_and_nothing_is_left(tmp_path, cache):
    """As far as the operating system refuses to write more."""
    folder = write_dataset(tmp_path / "data", [make_table([500] * 40)])
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FULL, str(folder)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    for expected in (str(folder), str(cache), "GB", "HF_DATASETS_CACHE", "--streaming", "--data.keep_in_memory true"):
        assert expected in told
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    for cache in (tmp_path / "file" / "cache", Path("/proc/ad_hf")):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        with pytest.raises(OSError, match=rf"cannot be written to {cache}.*set HF_DATASETS_CACHE.*--streaming"):
            map_histories(open_dataset(write(tmp_path / cache.name)), "train")


def test_what_are_no_histories_is_refused_by_shard_and_row_and_not_kept(tmp_path, cache):
    folder = write(tmp_path / "data")
    path = folder / "default" / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: row 0 \(history '3-0-0'\).*start_step: \d"):
        mapped(folder)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_damaged_part_of_a_shard_is_refused_by_its_name(tmp_path):
    folder = write(tmp_path / "data")
    path = folder / "default" / "train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)  # observations
    content[column.data_page_offset + 40 : column.data_page_offset + 140] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet.*damaged"):
        mapped(folder)


def test_histories_fit_if_they_take_less_than_a_quarter_of_the_free_memory(tmp_path):
    dataset = open_dataset(write(tmp_path / "data"))
    assert fits_in_memory(dataset, "train")
    assert not fits_in_memory(dataset, "train", copies=10**9)


def test_training_ends_with_the_same_weights(tiny_recipe_file, tiny_histories, tmp_path, cache):
    """Whether the histories are in memory or not, and says where they are."""
    weights, said = {}, []
    for kept in ("true", "false", "null"):
        overrides = ["--data.keep_in_memory", kept, "--data.keep_every_episode", "2", "--training.max_steps", "6"]
        recipe = load_recipe(tiny_recipe_file, overrides)
        ad_hf.train(recipe, tiny_histories, tmp_path / kept, say=said.append)
        weights[kept] = (tmp_path / kept / "model" / "model.safetensors").read_bytes()
        assert cache.exists() == (kept != "true")
    assert weights["true"] == weights["false"] == weights["null"]
    where = [line.rpartition(", ")[2] for line in said if " histories of " in line and "steps from" in line]
    assert where == ["in memory", "memory-mapped", "in memory"]
