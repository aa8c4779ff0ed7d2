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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from history_files import (
    ACTIONS,
    OBSERVATIONS,
    make_table,
    of_rows,
    windows_of_folder,
    windows_of_table,
    write_dataset,
)
from random_histories import record

import ad_hf
from ad_hf.histories.schema import history_features
from ad_hf.histories.windows import WindowBatches
from ad_hf.histories.writer import history_table
from ad_hf.recipe import load_recipe

CONTEXT = 12
LENGTHS = [60, 5, 83, 47, 3, 120, 12, 90]
SHAPE = (6, 8, 3)
IMAGES = spaces.Box(0, 255, SHAPE, np.uint8)
SELECTIONS = [{}, {"keep_every_episode": 3}, {"max_episodes": 6, "last_episodes": 2}, {"min_improvement": 0.0}]
ACTION_SPACES = [spaces.Discrete(256), spaces.MultiDiscrete([3, 300]), spaces.Box(-1.0, 1.0, (2,), np.float32)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, with the memory-mapped files."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder / "ad_hf"


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()] if cache.exists() else []


def make_tables(action_space=ACTIONS, **settings):
    """Histories in pieces of some 20 steps, some shorter than a window."""
    return [
        make_table(lengths, max_piece_steps=20, first_number=first, action_space=action_space, **settings)
        for first, lengths in ((0, LENGTHS[:3]), (3, LENGTHS[3:]))
    ]


def write(folder, row_groups=None, **settings):
    return write_dataset(folder, make_tables(**settings), row_groups=row_groups)


def frames_table():
    """Three histories of noise."""
    return history_table(record((IMAGES, ACTIONS), 3, 70), history_features(IMAGES, ACTIONS), 0, 0, 13)


def assert_same_batches(windows, expected):
    for epoch in range(4):
        np.testing.assert_array_equal(windows.epoch_order(epoch), expected.epoch_order(epoch))
    batches = [itertools.islice(iter(WindowBatches(each, 7)), 12) for each in (windows, expected)]
    for batch, expected_batch in zip(*batches, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert tensor.dtype == batch[name].dtype
            assert torch.equal(batch[name], tensor), name


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_batches_are_bit_for_bit_those_of_histories_that_never_were_in_a_file(tmp_path, selection):
    cases = [(make_tables(space), (OBSERVATIONS, space)) for space in (ACTIONS, *ACTION_SPACES)]
    cases += [([frames_table()], (IMAGES, ACTIONS))]
    for number, (tables, both) in enumerate(cases):
        folder = write_dataset(tmp_path / str(number), tables, *both, row_groups=of_rows(3) if number else None)
        expected = windows_of_table(pa.concat_tables(tables), CONTEXT, both, seed=3, **selection)
        for in_memory in (False, True):
            windows = windows_of_folder(folder, CONTEXT, seed=3, in_memory=in_memory, **selection)
            assert_same_batches(windows, expected)


def test_steps_are_read_from_a_file_unless_they_are_in_memory(tmp_path, cache):
    """A change of the file shows in the batches."""
    folder = write(tmp_path / "data")
    mapped, in_memory = (windows_of_folder(folder, CONTEXT, in_memory=choice) for choice in (False, True))
    (steps,) = cache.glob("*/steps.bin")
    assert steps.stat().st_size == sum(LENGTHS) * (2 * 4 + 1 + 4 + 1)
    with open(steps, "r+b") as file:
        file.write(np.float32(123).tobytes())
    first = [windows.batch(np.array([[0, 5]]))["observations"][0, 0, 0] for windows in (mapped, in_memory)]
    assert first == [123, 0]


def test_files_are_written_once_for_each_selection_and_contents(tmp_path, cache, caplog):
    """Also for a dataset that is collected anew, of the same name and with the same metadata."""
    caplog.set_level("INFO")
    folder = write(tmp_path / "data")
    for _ in range(2):
        for selection in SELECTIONS:
            windows_of_folder(folder, CONTEXT, **selection)
    assert len(folders(cache)) == len(caplog.messages) == len(SELECTIONS)
    assert all(f"writing the memory-mapped histories of {folder}" in message for message in caplog.messages)
    assert str(cache) in caplog.messages[0]
    metadata = (folder / "default" / "metadata.json").read_text()
    shutil.rmtree(folder)
    write(folder, seed=9)
    (folder / "default" / "metadata.json").write_text(metadata)
    anew = windows_of_table(pa.concat_tables(make_tables(seed=9)), CONTEXT)
    assert_same_batches(windows_of_folder(folder, CONTEXT), anew)
    assert len(folders(cache)) == len(SELECTIONS) + 1


PREPARE = """
import logging, resource, sys
from ad_hf.histories.dataset import HistoryDataset
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
print("ready", flush=True)
sys.stdin.readline()
try:
    histories = HistoryDataset.open(sys.argv[1]).histories("train")
    print(histories.steps["rewards"].sum(), len(histories.hashes), flush=True)
except OSError as error:
    print(error)
"""


def start(folder, cache, *largest_file):
    """A process that maps a dataset once it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder), *largest_file],
        env={**os.environ, "HF_DATASETS_CACHE": str(cache.parent), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def test_processes_share_files_that_are_complete_or_not_there(tmp_path, cache):
    """One without room on its disk says so, one is killed, and of two that start together, one writes."""
    folder = write_dataset(tmp_path / "data", [make_table([500] * 40, first_number=40 * shard) for shard in range(25)])
    full, killed, *together = [start(folder, cache, *size) for size in (["100000"], [], [], [])]
    for process in (full, killed, *together):
        assert process.stdout.readline() == "ready\n"
    told = full.communicate("go\n")[0]
    for expected in (str(folder), str(cache), "GB", "HF_DATASETS_CACHE", "--streaming"):
        assert expected in told
    assert not folders(cache)
    killed.stdin.write("go\n")
    while not any(path.stat().st_size for path in cache.glob(".*/steps.bin")):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [path.name[0] for path in folders(cache)] == ["."]  # hidden, so not complete
    for process in together:
        process.stdin.write("go\n")
    lines = [process.communicate()[0].splitlines() for process in together]
    assert sorted(map(len, lines)) == [1, 2]
    assert lines[0][-1] == lines[1][-1]
    assert lines[0][-1].endswith(" 1000")
    assert [path.name[0] == "." for path in folders(cache)] == [False]  # and cleared away


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    for cache in (tmp_path / "file" / "cache", Path("/proc/ad_hf")):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        with pytest.raises(OSError, match=rf"cannot be written to {cache}.*set HF_DATASETS_CACHE.*--streaming"):
            windows_of_folder(write(tmp_path / cache.name), CONTEXT)


def test_what_is_refused_is_not_kept(tmp_path, cache):
    folder = write(tmp_path / "data")
    path = folder / "default" / "train-00001-of-00002.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: row 0 \(history '3-0-0'\).*start_step: \d"):
        windows_of_folder(folder, CONTEXT)
    assert not folders(cache)


def test_training_ends_with_the_same_weights(tiny_recipe_file, tiny_histories, tmp_path):
    """Whether the histories are in memory or not."""
    weights = set()
    for choice in ("true", "false", "null"):
        overrides = ["--data.keep_in_memory", choice, "--data.keep_every_episode", "2", "--training.max_steps", "3"]
        ad_hf.train(load_recipe(tiny_recipe_file, overrides), tiny_histories, tmp_path / choice)
        weights.add((tmp_path / choice / "model" / "model.safetensors").read_bytes())
    assert len(weights) == 1
