"""Streams of histories from parquet files that are really written: every window once, and the same after a stop."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from history_files import (
    make_histories,
    make_table,
    of_histories,
    of_rows,
    open_dataset,
    rows_to_table,
    steps_of,
    take,
    windows_of_folder,
    write_dataset,
)

from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches

CONTEXT = 12
WIDE = 64  # floats of an observation: a few thousand steps fill the smallest buffer
WIDE_SPACE = spaces.Box(-np.inf, np.inf, (WIDE,), np.float32)


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """Three shards of histories of many lengths, some shorter than a window, some in pieces."""
    lengths = np.random.default_rng(7).integers(5, 90, size=48).tolist()
    tables = [make_table(lengths[first : first + 16], max_piece_steps=40, first_number=first) for first in (0, 16, 32)]
    return write_dataset(tmp_path_factory.mktemp("stream") / "histories", tables, row_groups=of_histories(2))


@pytest.fixture(scope="module")
def large_histories(tmp_path_factory):
    """Some 10 MB once decoded, in three shards."""
    lengths = np.random.default_rng(8).integers(100, 600, size=105).tolist()
    tables = [make_table(lengths[first : first + 35], width=WIDE, first_number=first) for first in (0, 35, 70)]
    return write_dataset(
        tmp_path_factory.mktemp("stream") / "large", tables, observation_space=WIDE_SPACE, row_groups=of_histories(3)
    )


def open_stream(folder, context_length=CONTEXT, seed=0, **settings):
    return HistoryStream(open_dataset(folder), "train", DataConfig(**settings), context_length, seed)


def windows_of_epochs(stream, consumer, consumers, epochs):
    """The windows of each epoch in a consumer's order, taken one by one."""
    batches = StreamedBatches(stream, consumers, consumer, consumers)
    found = [[] for _ in range(epochs)]
    epoch = 0
    for batch in batches:
        found[epoch] += steps_of(batch)
        (place,) = batches.state_dict()["places"]
        epoch = place[0]
        if epoch == epochs:
            return found


def expected_windows(folder, epoch, context_length=CONTEXT, **settings):
    windows = windows_of_folder(folder, context_length, **settings)
    return sorted(steps_of(windows.batch(windows.epoch_order(epoch))))


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, expected_batch in zip(batches, expected, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert tensor.dtype == batch[name].dtype
            assert torch.equal(batch[name], tensor), name


def through_json(state):
    return json.loads(json.dumps(state))


def assert_every_window_comes_once(folder, consumers, context_length=CONTEXT, buffer_megabytes=32, **settings):
    """All readers together give the windows of each epoch."""
    stream = open_stream(folder, context_length, buffer_megabytes=buffer_megabytes, **settings)
    parts = [windows_of_epochs(stream, rank, consumers, 2) for rank in range(consumers)]
    for epoch in range(2):
        windows = [window for part in parts for window in part[epoch]]
        assert sorted(windows) == expected_windows(folder, epoch, context_length, **settings)
    return stream


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep_every_episode": 3, "max_episodes": 9, "seed": 4}, {"last_episodes": 4}, {"min_improvement": 0.0}],
    ids=str,
)
def test_all_readers_together_give_every_window_of_an_epoch_once(histories, settings):
    for consumers in (1, 2, 3):
        assert_every_window_comes_once(histories, consumers, **settings)


def test_windows_are_the_same_when_a_buffer_holds_a_small_part_of_them(large_histories):
    for consumers in (1, 3):
        stream = assert_every_window_comes_once(large_histories, consumers, 50, buffer_megabytes=1)
        assert all(len(stream.groups(0, rank, consumers)) > 2 for rank in range(consumers))


def test_a_larger_buffer_mixes_more(large_histories):
    """How many histories are among a hundred windows in a row."""
    mixed = {}
    for megabytes in (1, 64):
        ((first, *_),) = [windows_of_epochs(open_stream(large_histories, 50, buffer_megabytes=megabytes), 0, 1, 1)]
        mixed[megabytes] = len({window[0][0] for window in first[:100]})
    assert mixed[1] < 40
    assert mixed[64] > 55


@pytest.mark.parametrize(("batch_size", "consumers"), [(7, 1), (40, 1), (14, 2)])
def test_batches_reach_over_the_ends_of_groups_and_epochs(large_histories, batch_size, consumers):
    stream = open_stream(large_histories, 50, buffer_megabytes=1)
    size = batch_size // consumers
    for rank in range(consumers):
        windows = list(itertools.chain(*windows_of_epochs(stream, rank, consumers, 3)))
        batches = StreamedBatches(open_stream(large_histories, 50, buffer_megabytes=1), batch_size, rank, consumers)
        count = len(windows) // size
        found = [steps_of(batch) for batch in take(batches, count)]
        assert found == [windows[size * index : size * (index + 1)] for index in range(count)]


def test_an_epoch_smaller_than_a_batch_is_followed_by_the_next_ones(tmp_path):
    folder = write_dataset(tmp_path / "data", [make_table([30])])
    windows = windows_of_folder(folder, CONTEXT)
    batch = next(iter(StreamedBatches(open_stream(folder), 11)))
    expected = [steps_of(windows.batch(windows.epoch_order(epoch))) for epoch in range(11)]
    assert len(expected[0]) < 3
    for epoch, (first, second) in enumerate(itertools.pairwise(np.cumsum([0, *map(len, expected)]))):
        assert sorted(steps_of(batch)[first:second]) == sorted(expected[epoch][: max(0, 11 - first)])


def test_the_order_is_a_pure_function_of_seed_epoch_and_reader(histories):
    def orders(seed, consumer):
        return [str(epoch) for epoch in windows_of_epochs(open_stream(histories, seed=seed), consumer, 2, 3)]

    by_reader = {(seed, consumer): orders(seed, consumer) for seed in (0, 1) for consumer in (0, 1)}
    assert orders(0, 1) == by_reader[0, 1]
    assert len({order for epochs in by_reader.values() for order in epochs}) == 12
    # Blocks are dealt anew: a reader does not see the same histories in all epochs.
    epochs = windows_of_epochs(open_stream(histories), 0, 2, 6)
    of_epochs = {frozenset(window[0][0] for window in windows) for windows in epochs}
    assert len(of_epochs) > 1
    assert set.union(*map(set, of_epochs)) == set(range(48))


def run(batches, count):
    """Some batches, and the places before, between and after them."""
    places, whole = [through_json(batches.state_dict())], []
    for batch in itertools.islice(batches, count):
        whole.append(batch)
        places.append(through_json(batches.state_dict()))
    return whole, places


@pytest.mark.parametrize(
    ("name", "batch_size", "world_size"), [("small", 5, 1), ("small", 60, 1), ("small", 10, 2), ("large", 1, 1)]
)
def test_a_stream_goes_on_with_the_same_batches_from_every_place(
    histories, large_histories, name, batch_size, world_size
):
    def open_batches(rank):
        stream = open_stream(histories) if name == "small" else open_stream(large_histories, 50, buffer_megabytes=1)
        return StreamedBatches(stream, batch_size, rank, world_size)

    for rank in range(world_size):
        whole, places = run(open_batches(rank), 45 if name == "small" else 250)
        if name == "small":
            assert places[-1]["places"][0][0] >= 1  # over the end of an epoch
            used = (0, 1, 7, 17, 18, 19, 20, 21, 22)
        else:  # at the very end of a group
            used = [index for index, state in enumerate(places[1:-3], start=1) if state["places"][0][2] == 0][:2]
            assert len(used) == 2
        for index in used:
            resumed = open_batches(rank)
            resumed.load_state_dict(places[index])
            assert_same_batches(take(resumed, 3), whole[index : index + 3])
            assert through_json(resumed.state_dict()) == places[index + 3]


def test_workers_take_turns_and_go_on_from_any_place(histories):
    """With two worker processes, from a place in mid-turn: the batches of two readers in turn, bit for bit."""
    readers = [StreamedBatches(open_stream(histories), 8, worker, 2) for worker in range(2)]
    (even, even_places), (odd, odd_places) = (run(reader, 30) for reader in readers)
    assert even_places[-1]["places"][0][0] >= 1

    def place(used):
        each = even_places[(used + 1) // 2], odd_places[used // 2]
        return {"places": [state["places"][0] for state in each], "turn": used % 2, "consumers": 2}

    batches = StreamedBatches(open_stream(histories), 4, num_workers=2)
    assert batches.state_dict() == place(0)
    batches.load_state_dict(place(23))
    whole = [batch for pair in zip(even, odd, strict=True) for batch in pair]
    assert_same_batches(take(batches, 37), whole[23:])
    assert through_json(batches.state_dict()) == place(60)


def test_a_place_of_another_number_of_readers_is_refused(histories):
    stream = open_stream(histories)
    one, two = StreamedBatches(stream, 4), StreamedBatches(stream, 4, num_workers=2)
    ranked = StreamedBatches(stream, 4, 0, 2)
    for batches, other in ((one, two), (ranked, two), (two, one), (two, ranked)):
        with pytest.raises(ValueError, match=rf"of {batches._total} readers .*, {len(batches._places)} in each"):
            batches.check_state_dict(other.state_dict(), 0, 0)


def test_more_readers_than_parts_of_the_data_are_refused_with_advice(histories, tmp_path):
    folder = write_dataset(tmp_path / "data", [make_table([40, 30, 20, 10])], row_groups=of_histories(2))
    StreamedBatches(open_stream(folder), 2, 1, 2)
    with pytest.raises(ValueError, match=r"2 parts.*too few for 3 processes.*use fewer.*without streaming"):
        StreamedBatches(open_stream(folder), 3, 1, 3)
    with pytest.raises(ValueError, match="too few for 50"):
        StreamedBatches(open_stream(histories), 4, num_workers=50)
    with pytest.raises(ValueError, match="multiple of 2 processes, got 5"):
        StreamedBatches(open_stream(histories), 5, 0, 2)


def test_short_histories_are_padded_and_masked_across_groups(tmp_path):
    """Batches of windows of one length, of several lengths, and joined from groups of different lengths."""
    lengths = [400, 3, 8, 450, 5, 11, 420, 2, 430, 4, 9, 410] * 2
    table = make_table(lengths, width=WIDE)
    folder = write_dataset(tmp_path / "data", [table], observation_space=WIDE_SPACE, row_groups=of_histories(1))
    stream = open_stream(folder, 50, buffer_megabytes=1)
    assert len(stream.groups(0, 0, 1)) > 1
    masked = 0
    for batch in take(StreamedBatches(stream, 3), 120):
        time = batch["labels"].shape[1]
        mask = batch.get("attention_mask", torch.ones(3, time, dtype=torch.long))
        masked += "attention_mask" in batch
        assert mask.dtype == torch.long
        assert mask.sum(dim=1).max() == time
        for row, window in enumerate(steps_of(batch)):
            number, first = window[0]
            size = min(50, lengths[number])
            assert window == [(number, first + step) for step in range(size)]
            assert mask[row].tolist() == [1] * size + [0] * (time - size)
            last = batch["observations"][row, size - 1]
            assert (batch["observations"][row, size:] == last).all()
    assert 20 < masked < 120


def test_context_longer_than_all_histories(histories):
    stream = open_stream(histories, 1000)
    batch = next(iter(StreamedBatches(stream, 48)))
    assert sorted(steps_of(batch)) == expected_windows(histories, 0, 1000)
    assert batch["attention_mask"].sum() == stream.num_steps
    assert batch["labels"].shape[1] < 90


def test_the_compressed_bytes_are_read_from_the_footers(histories):
    files = sum(path.stat().st_size for path in histories.rglob("*.parquet"))
    assert 0.3 * files < open_stream(histories).compressed_bytes < files


def test_files_without_statistics_are_read_whole(tmp_path):
    tables = [make_table([40, 30, 20, 50], first_number=first) for first in (0, 4, 8)]
    folder = write_dataset(tmp_path / "data", tables, row_groups=of_histories(1), write_statistics=False)
    assert_every_window_comes_once(folder, 3)
    with pytest.raises(ValueError, match="3 parts"):
        StreamedBatches(open_stream(folder), 4, 0, 4)


def test_row_groups_that_begin_within_a_history_stay_with_those_before(tmp_path):
    """One row group per piece: those that continue a history begin no block."""
    table = make_table([100, 50, 120, 80], max_piece_steps=30)
    folder = write_dataset(tmp_path / "data", [table], row_groups=of_rows(1))
    assert len(table) > 10
    assert len(assert_every_window_comes_once(folder, 4).blocks(4)) == 4


def outcome(folder, seed):
    """The windows of some epochs, or why there are none."""
    try:
        return windows_of_epochs(open_stream(folder, seed=seed), 0, 1, 4)
    except ValueError as error:
        return str(error)


def test_no_history_is_cut_where_a_row_group_ends_one_and_begins_another(tmp_path):
    """As other writers lay out rows, so many to a row group: read whole, or refused with a word on row groups."""
    table = make_table([100, 100, 100, 100, 100], max_piece_steps=30)
    folder = write_dataset(tmp_path / "data", [table], row_groups=of_rows(3))
    outcomes = [outcome(folder, seed) for seed in range(6)]
    read = [epochs for epochs in outcomes if not isinstance(epochs, str)]
    refused = [why for why in outcomes if isinstance(why, str)]
    assert not read or not refused  # whatever the order
    assert all(re.search(r"train-00000-of-00001\.parquet.*row group", why) for why in refused), refused
    for seed, epochs in enumerate(read):
        expected = [expected_windows(folder, epoch, seed=seed) for epoch in range(4)]
        assert [sorted(windows) for windows in epochs] == expected


def test_a_history_that_runs_over_two_shards_is_never_cut_silently(tmp_path):
    table = make_table([100, 100], max_piece_steps=30)
    middle = len(table) // 2 + 1
    folder = write_dataset(tmp_path / "data", [table.slice(0, middle), table.slice(middle)], row_groups=of_rows(1))
    for seed in range(4):
        assert re.search(r"train-00001-of-00002\.parquet.*history '1-0-0'", outcome(folder, seed))


def test_a_malformed_row_is_refused_by_a_worker_as_without_one(tmp_path):
    rows = make_histories([30] * 36)
    rows[21]["rewards"][7] = float("nan")
    tables = [rows_to_table(rows[first : first + 12]) for first in (0, 12, 24)]
    folder = write_dataset(tmp_path / "data", tables, row_groups=of_histories(2))
    bad_row = r"train-00001-of-00003\.parquet: row 9 \(history '21-0-0'\), column rewards: \[?nan\]? at step 7"
    with pytest.raises(ValueError, match=bad_row) as error:
        take(StreamedBatches(open_stream(folder), 4, num_workers=1), 100)
    assert "Traceback" not in str(error.value)
    assert "DataLoader" not in str(error.value)


def test_other_columns_and_other_encodings_of_a_file_do_not_matter(histories, tmp_path):
    folder = Path(shutil.copytree(histories, tmp_path / "data"))
    for path in folder.rglob("*.parquet"):
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(index) for index in range(file.num_row_groups)]
        groups = [rows.append_column("more", rows["piece"]) for rows in groups]
        with pq.ParquetWriter(path, groups[0].schema, use_dictionary=False, compression="gzip") as writer:
            for rows in groups:
                writer.write_table(rows)
    (found,) = windows_of_epochs(open_stream(folder), 0, 1, 1)
    assert sorted(found) == expected_windows(histories, 0)


def test_streams_of_real_collections_train_on_the_windows_of_all_histories(tiny_histories):
    """As `ad-hf collect` leaves them; the values of batches are those of batches from memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = open_stream(tiny_histories, 24)
    windows = windows_of_folder(tiny_histories, 24)
    assert stream.num_steps == windows.num_steps
    order = windows.epoch_order(0)
    streamed = take(StreamedBatches(stream, 1), len(order))
    expected = [windows.batch(order[row : row + 1]) for row in range(len(order))]

    def values(batches):
        return sorted(str([(name, each.dtype, each.tolist()) for name, each in batch.items()]) for batch in batches)

    assert values(streamed) == values(expected)


@pytest.mark.slow
def test_two_processes_that_stream_go_on_after_a_stop_as_if_there_had_been_none(
    tiny_recipe_file, tiny_histories, tmp_path
):
    def train(run, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "ad_hf", "train", "--recipe", str(tiny_recipe_file), "--streaming"]
        command += ["--dataset", str(tiny_histories), "--output_dir", str(run), "--training.eval_episodes", "2", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    done = train(tmp_path / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2" in done.stdout + done.stderr
    stopped = Path(shutil.copytree(tmp_path / "whole", tmp_path / "stopped"))
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:13]))  # stopped three updates after its checkpoint
    done = train(stopped, "--resume", "latest")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after 10 updates" in done.stdout + done.stderr

    def without_speed(run):
        text = (run / "metrics.jsonl").read_text()
        return [json.loads(re.sub(r', "tokens_per_second": [^,}]*', "", line)) for line in text.splitlines()]

    assert without_speed(stopped) == without_speed(tmp_path / "whole")
    assert [line["step"] for line in without_speed(stopped)] == list(range(1, 21))


@pytest.mark.parametrize("keep_every_episode", [1, 2])
def test_a_buffer_is_filled_with_as_many_megabytes_as_it_is_given(large_histories, keep_every_episode):
    """Counted too high, it would mix fewer tasks than it could; too low, it would take more memory than it may."""
    stream = open_stream(large_histories, 50, keep_every_episode=keep_every_episode, buffer_megabytes=3)
    groups = stream.groups(0, 0, 1)
    read = [stream.read(group) for group in groups]
    held = [
        sum(tensor.nbytes for tensor in windows.batch(np.array([[0, 2], [1, 2]])).values()) / 4 * windows.num_steps
        for windows in read
    ]
    assert len(groups) > 1
    assert 0.5 < sum(held) / len(held) / (3 << 20) < 1.1  # on average: a block is not divided
