"""Windows of histories whose values say which history and step they come from."""

import itertools
import threading
import time
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from gymnasium import spaces
from history_files import (
    ACTIONS,
    OBSERVATIONS,
    make_histories,
    rows_to_table,
    slowly_kept_steps,
    steps_of,
    take,
    windows_of_table,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.histories.windows import HistoryWindows, WalkedBatches, WindowBatches, none_action

NONE, LENGTHS = 7, [40, 33, 100, 29, 71]


def windows_of_rows(rows, context_length, action_space=ACTIONS, **settings):
    both = OBSERVATIONS, action_space
    return windows_of_table(rows_to_table(rows, *both), context_length, both, **settings)


def make_windows(lengths, context_length, **settings):
    return windows_of_rows(make_histories(lengths), context_length, **settings)


def windows_of_epoch(windows, epoch):
    return steps_of(windows.batch(windows.epoch_order(epoch)))


@pytest.mark.parametrize(("every", "first"), [(1, None), (3, None), (2, 12)])
def test_batches_hold_the_values_of_a_slow_reference(every, first):
    histories = make_histories([60, 83, 47])
    windows = windows_of_rows(histories, 9, keep_every_episode=every, max_episodes=first)
    steps_at_starts, num_windows, mid_cuts = 0, 0, 0
    for epoch in range(5):
        batch = windows.batch(windows.epoch_order(epoch))
        assert "attention_mask" not in batch
        for row, window in enumerate(steps_of(batch)):
            number = window[0][0]
            history = histories[number]
            selected, episode_starts = slowly_kept_steps(history, every, first)
            position = selected.index(window[0][1])
            steps = selected[position : position + 9]
            assert window == [(number, step) for step in steps]
            # The real last action and reward, whatever lies between; none only before a history's first step.
            previous = [selected[position - 1] if position else None, *steps[:-1]]
            assert batch["previous_actions"][row].tolist() == [
                NONE if step is None else history["actions"][step] for step in previous
            ]
            torch.testing.assert_close(
                batch["previous_rewards"][row],
                torch.tensor([0.0 if step is None else history["rewards"][step] for step in previous]),
            )
            assert batch["episode_starts"][row].tolist() == [step in episode_starts for step in steps]
            assert batch["labels"][row].tolist() == [history["actions"][step] for step in steps]
            num_windows, mid_cuts = num_windows + 1, mid_cuts + bool(position)
            steps_at_starts += int(batch["episode_starts"][row, 1:].sum())
    assert num_windows > mid_cuts > 0
    assert steps_at_starts > 0


def test_tensors_have_the_models_shapes_and_types():
    batch = make_windows([60, 60], 8).batch(np.array([[0, 8], [30, 8], [60, 8]]))
    assert {name: (*tensor.shape, tensor.dtype) for name, tensor in batch.items()} == {
        "observations": (3, 8, 2, torch.float32),
        "previous_actions": (3, 8, torch.uint8),
        "previous_rewards": (3, 8, torch.float32),
        "episode_starts": (3, 8, torch.bool),
        "labels": (3, 8, torch.uint8),
    }


@pytest.mark.parametrize(
    ("space", "none"),
    [
        (spaces.Discrete(256), 256),
        (spaces.MultiDiscrete([3, 256]), [3, 256]),
        (spaces.Box(-1.0, 1.0, (2,), np.float32), [0.0, 0.0]),
    ],
    ids=str,
)
def test_none_stands_before_the_first_action_of_every_space(space, none):
    histories = make_histories([30, 30], action_space=space)
    batch = windows_of_rows(histories, 6, space).batch(np.array([[0, 6], [30, 6], [6, 6]]))
    assert none_action(space).tolist() == none
    for row, (history, first) in enumerate(((0, 0), (1, 0), (0, 6))):
        actions = histories[history]["actions"][first : first + 6]
        before = none if first == 0 else histories[history]["actions"][first - 1]
        np.testing.assert_allclose(batch["previous_actions"][row], [before, *actions[:-1]], rtol=1e-6)
        np.testing.assert_allclose(batch["labels"][row], actions, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 20), st.integers(0, 1000))
def test_windows_of_an_epoch_tile_each_history(lengths, context_length, epoch):
    """With consecutive steps, none of them twice, all but fewer than a window's at both ends."""
    windows = windows_of_epoch(make_windows(lengths, context_length), epoch)
    for window in windows:
        number, first = window[0]
        assert window == [(number, first + step) for step in range(min(context_length, lengths[number]))]
    for number, length in enumerate(lengths):
        steps = sorted(step for window in windows for history, step in window if history == number)
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert max(steps[0], length - 1 - steps[-1]) < context_length


def test_order_is_a_pure_function_of_seed_and_epoch():
    windows, same, other = (make_windows(LENGTHS, 7, seed=seed) for seed in (5, 5, 6))
    later = [windows.epoch_order(epoch) for epoch in (3, 0, 3)]
    np.testing.assert_array_equal(later[0], later[2])
    np.testing.assert_array_equal(later[0], same.epoch_order(3))
    assert len({each.epoch_order(epoch).tobytes() for each in (windows, other) for epoch in range(20)}) == 40


def test_phase_of_a_history_does_not_depend_on_the_others_and_is_spread_evenly():
    histories = make_histories([39] * 30)
    alone, among = (windows_of_rows(rows, 10) for rows in (histories[2:3], histories))
    phases = []
    for epoch in range(40):
        windows = windows_of_epoch(among, epoch)
        assert sorted(window for window in windows if window[0][0] == 2) == sorted(windows_of_epoch(alone, epoch))
        phases += [min(window[0][1] for window in windows if window[0][0] == number) for number in range(30)]
    counts = np.bincount(phases)
    assert len(counts) == 10
    assert 0.7 * 120 < counts.min() <= counts.max() < 1.3 * 120


def test_pieces_of_a_history_are_one_history():
    whole = make_histories([50, 31, 64])
    pieces = []
    for history in whole:
        for piece, (start, stop) in enumerate(itertools.pairwise([0, 20, 29, len(history["rewards"])])):
            cut = {name: value[start:stop] if isinstance(value, list) else value for name, value in history.items()}
            pieces.append({**cut, "piece": piece, "start_step": start})
    for selection in ({}, {"keep_every_episode": 2}):
        joined, expected = (windows_of_rows(rows, 8, **selection) for rows in (pieces, whole))
        assert (joined.num_histories, joined.num_steps) == (3, expected.num_steps)
        for epoch in range(5):
            assert_same_batches(*([each.batch(each.epoch_order(epoch))] for each in (joined, expected)))


def test_histories_shorter_than_a_window_are_padded_and_masked():
    lengths = [5, 30, 3, 10]
    windows = make_windows(lengths, 10)
    order = windows.epoch_order(0)
    assert sorted(length for length in order[:, 1].tolist() if length < 10) == [3, 5]
    batch = windows.batch(order)
    assert batch["attention_mask"].sum(dim=1).tolist() == order[:, 1].tolist()
    for mask in batch["attention_mask"].tolist():
        assert mask == sorted(mask, reverse=True)  # padding comes last
    short = windows.batch(order[order[:, 1] < 10])
    assert short["observations"].shape[1] == 5  # no longer than the longest window
    assert (short["observations"][..., 1] < 5).all()


def test_warning_for_histories_that_are_hardly_longer_than_a_window():
    with pytest.warns(UserWarning, match=r"histories of 19 steps.*1.25 windows of 16"):
        make_windows([19, 19, 90], 16).warn_of_short_histories()
    history = make_histories([64])[0] | {"terminations": [False] * 64, "truncations": [False, True] * 32}
    with pytest.warns(UserWarning, match="histories of 18 steps"):  # after subsampling
        windows_of_rows([history], 16, max_episodes=9).warn_of_short_histories()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows_of_rows([history], 16).warn_of_short_histories()
        make_windows([32, 32, 90], 16).warn_of_short_histories()
        make_windows([10, 12], 16).warn_of_short_histories()  # bandits: padded on purpose


def assert_same_batches(batches, expected):
    for batch, expected_batch in zip(batches, expected, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert torch.equal(batch[name], tensor), name


@pytest.mark.parametrize("batch_size", [4, 18, 60])
def test_batches_run_through_the_epochs_in_order_and_resume_anywhere(batch_size):
    """Of 16 to 18 windows an epoch; and any number of processes share them."""
    windows = make_windows(LENGTHS, 14)
    batches = take(WindowBatches(windows, batch_size), 12)
    expected = [window for epoch in range(50) for window in windows_of_epoch(windows, epoch)]
    assert [window for batch in batches for window in steps_of(batch)] == expected[: 12 * batch_size]
    for world_size in (2, 3):
        if batch_size % world_size == 0:
            slices = [take(WindowBatches(windows, batch_size, rank, world_size), 8) for rank in range(world_size)]
            joined = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*slices)]
            assert_same_batches(joined, batches[:8])
    for used in range(8):
        interrupted = WindowBatches(windows, batch_size)
        take(interrupted, used)
        interrupted.check_state_dict(interrupted.state_dict(), 0, used)
        resumed = WindowBatches(make_windows(LENGTHS, 14), batch_size)
        resumed.load_state_dict(interrupted.state_dict())
        assert_same_batches(take(resumed, 4), batches[used : used + 4])


def making_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_the_thread_that_makes_batches_ends_with_the_stream():
    before = making_threads()
    stream = WindowBatches(make_windows([40, 33, 100], 14), batch_size=4)
    with closing(iter(stream)) as batches:
        next(batches)
        assert len(making_threads()) == len(before) + 1
    assert making_threads() == before
    assert stream.state_dict() == {"epoch": 0, "position": 4}  # used, not made


def test_batches_ahead_are_few_and_an_error_in_making_one_is_raised_in_its_turn():
    made = []

    class Damaged(HistoryWindows):
        def batch(self, windows):
            made.append(windows)
            if len(made) == 4:
                raise ValueError("row 3 is damaged")
            return super().batch(windows)

    before, windows = making_threads(), make_windows([80, 80], 8)
    windows.__class__ = Damaged
    stream = WindowBatches(windows, batch_size=2)
    batches = iter(stream)
    next(batches)
    time.sleep(0.2)
    assert len(made) <= 3
    next(batches), next(batches)
    with pytest.raises(ValueError, match="row 3 is damaged"):
        next(batches)
    assert stream.state_dict() == {"epoch": 0, "position": 6}
    assert making_threads() == before


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-4, 2), (5, 2)])
def test_batch_that_cannot_be_shared_is_refused(batch_size, world_size):
    with pytest.raises(ValueError, match=f"multiple of {world_size} processes, got {batch_size}"):
        WindowBatches(make_windows([40], 14), batch_size, 0, world_size)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_a_walk_goes_through_each_history_once_an_epoch_in_order(lengths, context_length, rows, whole):
    """In one part or, at most, in two, of which the later one is at least a window long."""
    windows = make_windows(lengths, context_length)
    parts, current = [], np.zeros(rows, int)  # in the order in which they begin, and the number of each row's
    for tiles, begins in windows.walk(rows, whole):
        for row in np.flatnonzero(begins):
            current[row] = len(parts)
            parts.append([])
        if current.min() >= 2 * len(lengths):  # an epoch at least is over
            break
        for part, window, length in zip(current, steps_of(windows.batch(tiles)), tiles[:, 1]):
            assert len(window) == length
            parts[part].append(window)
    everything = sorted((number, step) for number, length in enumerate(lengths) for step in range(length))
    epoch = []
    for part in (list(itertools.chain(*windows)) for windows in parts[: 2 * len(lengths)]):
        number, first = part[0]
        assert part == [(number, first + step) for step in range(len(part))]
        assert first == 0 or (not whole and len(part) >= context_length)
        epoch += part
        if len(epoch) == len(everything):
            break
    assert sorted(epoch) == everything


@pytest.mark.parametrize("passes", [1, 2])
def test_batches_of_a_walk_resume_anywhere_and_are_shared_by_rows(passes):
    windows, rows = make_windows(LENGTHS, 14), 4 * passes
    batches = take(WalkedBatches(windows, 4, passes=passes), 40)
    for number, (tiles, begins) in enumerate(itertools.islice(windows.walk(rows), 40 // passes)):
        own = batches[number * passes : (number + 1) * passes]
        assert [window for batch in own for window in steps_of(batch)] == steps_of(windows.batch(tiles))
        assert torch.cat([batch["begins"] for batch in own]).tolist() == begins.tolist()
    halves = zip(*(take(WalkedBatches(windows, 4, rank, 2, passes), 40) for rank in range(2)))
    assert [steps_of(first) + steps_of(second) for first, second in halves] == [steps_of(batch) for batch in batches]
    for used in (0, passes, 17 * passes):
        interrupted = WalkedBatches(windows, 4, passes=passes)
        take(interrupted, used)
        interrupted.check_state_dict(interrupted.state_dict(), 0, used)
        resumed = WalkedBatches(make_windows(LENGTHS, 14), 4, passes=passes)
        resumed.load_state_dict(interrupted.state_dict())
        assert_same_batches(take(resumed, 3), batches[used : used + 3])
