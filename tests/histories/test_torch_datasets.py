"""Datasets of windows for a loop of one's own: every window once, and cut as `ad_hf.train` cuts them."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import ArrowExamplesIterable
from gymnasium import spaces
from history_files import (
    ACTIONS,
    OBSERVATIONS,
    make_histories,
    make_table,
    of_histories,
    steps_of,
    windows_of_folder,
    write_dataset,
)
from torch.utils.data import DataLoader, DistributedSampler

from ad_hf import ADConfig, HistoryWindowsDataset, IterableHistoryWindowsDataset, collate_windows
from ad_hf.envs.spaces import space_to_json
from ad_hf.histories.schema import history_features
from ad_hf.histories.windows import WindowBatches
from ad_hf.histories.writer import history_table
from ad_hf.sources.recorder import RecordedSteps

CONTEXT = 12
SPACES = {"observation_space": space_to_json(OBSERVATIONS), "action_space": space_to_json(ACTIONS)}
CONFIG = ADConfig(**SPACES, context_length=CONTEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards of histories of many lengths, some shorter than a window, some in pieces."""
    lengths = np.random.default_rng(7).integers(5, 90, size=48).tolist()
    tables = [
        make_table(lengths[first : first + 12], max_piece_steps=40, first_number=first) for first in range(0, 48, 12)
    ]
    return write_dataset(tmp_path_factory.mktemp("own_loop") / "histories", tables, row_groups=of_histories(4))


def rows_of(folder, streaming=False):
    return load_dataset(str(folder), split="train", streaming=streaming)


def expected_windows(folder, epoch, **settings):
    windows = windows_of_folder(folder, CONTEXT, **settings)
    return sorted(steps_of(windows.batch(windows.epoch_order(epoch))))


def read(dataset, **loader):
    """The windows of one pass of a loader."""
    batches = DataLoader(dataset, batch_size=7, collate_fn=collate_windows, **loader)
    return [window for batch in batches for window in steps_of(batch)]


SOURCES = {
    "folder": lambda folder: folder,
    "rows": rows_of,
    "streamed rows": lambda folder: rows_of(folder, streaming=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_pass_gives_every_window_of_an_epoch_once_from_whatever_source(folder, source):
    settings = {"seed": 3, "keep_every_episode": 2}
    arguments = SOURCES[source](folder), CONFIG
    iterable = IterableHistoryWindowsDataset(*arguments, **settings)
    expected = [expected_windows(folder, epoch, **settings) for epoch in range(2)]

    assert sorted(read(HistoryWindowsDataset(*arguments, **settings), shuffle=True)) == expected[0]
    assert sorted(read(iterable)) == expected[0]
    iterable.set_epoch(1)
    first = read(iterable)
    assert sorted(first) == expected[1]
    assert read(iterable) == first
    assert first != expected[1]


@pytest.mark.parametrize("source", SOURCES)
def test_worker_processes_share_the_windows_and_follow_the_epoch(folder, source):
    for kind in (HistoryWindowsDataset, IterableHistoryWindowsDataset):
        dataset = kind(SOURCES[source](folder), CONFIG)
        loader = DataLoader(dataset, 7, collate_fn=collate_windows, num_workers=2, persistent_workers=True)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            windows = [window for batch in loader for window in steps_of(batch)]
            if kind is IterableHistoryWindowsDataset or epoch == 0:
                assert sorted(windows) == expected_windows(folder, epoch)
            else:
                assert windows == [steps_of(collate_windows([dataset[index]]))[0] for index in range(len(dataset))]


def test_without_a_sampler_batches_are_those_of_a_training_of_this_package(folder):
    dataset = HistoryWindowsDataset(folder, CONFIG, seed=2)
    own = WindowBatches(windows_of_folder(folder, CONTEXT, seed=2), 7)
    batches = list(DataLoader(dataset, 7, collate_fn=collate_windows, drop_last=True))
    assert len(batches) > 10
    for batch, expected in zip(batches, own, strict=False):
        assert steps_of(batch) == steps_of(expected)
        real = expected.get("attention_mask", torch.ones_like(expected["labels"])).bool()
        assert torch.equal(batch.get("attention_mask", torch.ones_like(batch["labels"])).bool(), real)
        assert (batch["labels"][~real] == -100).all()
        for name, values in expected.items():
            assert torch.equal(batch[name][real].to(values.dtype), values[real]), name


def test_the_length_is_one_for_all_epochs(folder):
    """Samplers ask once. Every epoch has the windows of its own tiling, but for the few that do not fit the length."""
    dataset = HistoryWindowsDataset(folder, CONFIG)
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    lengths = set()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        found, expected = sorted(read(dataset)), expected_windows(folder, epoch)
        lengths.add(len(expected))
        distinct = {str(window) for window in found}
        assert len(found) == len(dataset) == len(expected_windows(folder, 0))
        assert distinct <= {str(window) for window in expected}
        assert len(distinct) == min(len(found), len(expected))
        assert len(read(dataset, sampler=sampler)) == -(-len(dataset) // 2)
    assert len(lengths) > 1
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_that_split_the_rows_give_every_window_once(folder, num_workers):
    parts = []
    for rank in range(2):
        rows = split_dataset_by_node(rows_of(folder, streaming=True), rank, 2)
        parts += read(IterableHistoryWindowsDataset(rows, CONFIG), num_workers=num_workers)
    assert sorted(parts) == expected_windows(folder, 0)


def test_the_shards_of_rows_come_in_another_order_in_each_epoch(folder):
    rows = rows_of(folder, streaming=True).shuffle(seed=5, buffer_size=1, max_buffer_input_shards=1)
    dataset = IterableHistoryWindowsDataset(rows, CONFIG)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        windows = read(dataset)
        assert sorted(windows) == expected_windows(folder, epoch)
        orders.append(str(windows))
    assert len(set(orders)) == 3


def test_no_more_histories_are_in_memory_than_a_buffer_holds():
    """Where each fills the buffer, one is read when the windows of the one before are used up, and one for its end."""
    observations = spaces.Box(-np.inf, np.inf, (64,), np.float32)
    table = make_table([5000] * 6, width=64)
    config = ADConfig(**{**SPACES, "observation_space": space_to_json(observations)}, context_length=CONTEXT)
    read_so_far = []

    def rows():
        for row in range(len(table)):
            read_so_far.append(row)
            yield row, table.slice(row, 1)

    rows = IterableDataset(ArrowExamplesIterable(rows, {}))
    windows = IterableHistoryWindowsDataset(rows, config, buffer_megabytes=1)
    seen = {}
    for window in windows:
        seen.setdefault(int(window["observations"][0, 0]), len(read_so_far))
    assert seen == {0: 2, 1: 3, 2: 4, 3: 5, 4: 6, 5: 6}


def test_frames_are_those_that_were_recorded():
    images, size = spaces.Box(0, 255, (4, 5, 3), np.uint8), (3, 40)
    frames = np.random.default_rng(0).integers(0, 256, (*size, 4, 5, 3), dtype=np.uint8)
    ends = np.broadcast_to(np.arange(1, 41) % 10 == 0, size)
    recorded = RecordedSteps(frames, np.zeros(size, np.int64), np.zeros(size), ends, ends & False, [frames[0, :4]] * 3)
    rows = Dataset(history_table(recorded, history_features(images, ACTIONS), 0, 0, 15))
    config = ADConfig(**{**SPACES, "observation_space": space_to_json(images)}, context_length=CONTEXT)
    expected = {history[step : step + CONTEXT].tobytes() for history in frames for step in range(29)}
    for kind in (HistoryWindowsDataset, IterableHistoryWindowsDataset):
        found = {window["observations"].numpy().tobytes() for window in kind(rows, config)}
        assert len(found) > 6
        assert found <= expected


def test_rows_made_by_hand_are_taken_in_any_type_that_holds_their_values(folder):
    """Python's numbers: 64 bits, lists without a size; and columns that nobody needs."""
    rows = make_histories([40, 30, 5, 25])
    expected = sorted(read(HistoryWindowsDataset(Dataset.from_list(rows), CONFIG)))
    plain = [{name: row[name] for name in row if name not in ("final_observations", "stream")} for row in rows]
    plain = Dataset.from_list([{**row, "note": "mine"} for row in plain])
    assert plain.features["actions"].feature.dtype == "int64"
    for kind in (HistoryWindowsDataset, IterableHistoryWindowsDataset):
        assert sorted(read(kind(plain, CONFIG))) == expected


def without(name):
    return lambda rows: rows.remove_columns(name)


REFUSALS = {
    "a dictionary of splits": (lambda rows: {"train": rows}, {}, "histories must be one split.*'train'"),
    "a column is missing": (without("actions"), {}, "column actions is missing"),
    "no rows": (lambda rows: rows.select([]), {}, "there are no rows"),
    "pieces apart": (lambda rows: rows.select([0, 2, 1]), {}, "start_step.*pieces of a history must stand next"),
    "no improvement": (lambda rows: rows, {"min_improvement": 1e9}, "no history got better"),
    "labels of rows": (lambda rows: rows, {"labels": "operator.neg"}, "labels need the tasks in metadata.json"),
    "an unknown setting": (lambda rows: rows, {"keep_each": 2}, "keep_each"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_trained_on_is_refused(name):
    change, settings, message = REFUSALS[name]
    rows = Dataset(make_table([100, 20], max_piece_steps=40))
    with pytest.raises((ValueError, TypeError), match=message):
        HistoryWindowsDataset(change(rows), CONFIG, **settings)


def test_a_dataset_of_other_spaces_than_the_models_is_refused(folder):
    other = ADConfig(**{**SPACES, "action_space": {"type": "Discrete", "n": 8}}, context_length=CONTEXT)
    for kind in (HistoryWindowsDataset, IterableHistoryWindowsDataset):
        with pytest.raises(ValueError, match=r"action_space of .*'n': 7.*config one of .*'n': 8"):
            kind(folder, other)
