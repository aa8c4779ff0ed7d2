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
    windows_of_table,
)

from ad_hf.histories.windows import HistoryWindows, WindowBatches, none_action

NONE = 7


def windows_of_rows(rows, context_length, action_space=ACTIONS, **settings):
    both = OBSERVATIONS, action_space
    return windows_of_table(rows_to_table(rows, *both), context_length, both, **settings)


def make_windows(lengths, context_length, **settings):
    return windows_of_rows(make_histories(lengths), context_length, **settings)


def windows_of_epoch(windows, epoch):
    return steps_of(windows.batch(windows.epoch_order(epoch)))


@pytest.mark.parametrize(("keep_every_episode", "max_episodes"), [(1, None), (3, None), (2, 12)])
def test_batches_hold_the_values_of_a_slow_reference(keep_every_episode, max_episodes):
    context_length = 9
    histories = make_histories([60, 83, 47])
    settings = {"keep_every_episode": keep_every_episode, "max_episodes": max_episodes}
    windows = windows_of_rows(histories, context_length, **settings)
    steps_at_starts, num_windows, mid_cuts = 0, 0, 0
    for epoch in range(5):
        batch = windows.batch(windows.epoch_order(epoch))
        assert "attention_mask" not in batch
        for row, window in enumerate(steps_of(batch)):
            number = window[0][0]
            history = histories[number]
            kept, episode_starts = slowly_kept_steps(history, keep_every_episode, max_episodes)
            position = kept.index(window[0][1])
            expected_steps = kept[position : position + context_length]
            assert window == [(number, step) for step in expected_steps]
            # The real last action and reward, whatever lies between; none only before a history's first step.
            previous = [kept[position - 1] if position else None, *expected_steps[:-1]]
            assert batch["previous_actions"][row].tolist() == [
                NONE if step is None else history["actions"][step] for step in previous
            ]
            torch.testing.assert_close(
                batch["previous_rewards"][row],
                torch.tensor([0.0 if step is None else history["rewards"][step] for step in previous]),
            )
            assert batch["episode_starts"][row].tolist() == [step in episode_starts for step in expected_steps]
            assert batch["labels"][row].tolist() == [history["actions"][step] for step in expected_steps]
            num_windows, mid_cuts = num_windows + 1, mid_cuts + bool(position)
            steps_at_starts += int(batch["episode_starts"][row, 1:].sum())
    assert num_windows > mid_cuts > 0
    assert steps_at_starts > 0


def test_tensors_have_the_models_shapes_and_types():
    batch = make_windows([60, 60], 8).batch(np.array([[0, 8], [30, 8], [60, 8]]))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "observations": (3, 8, 2),
        "previous_actions": (3, 8),
        "previous_rewards": (3, 8),
        "episode_starts": (3, 8),
        "labels": (3, 8),
    }
    assert batch["observations"].dtype == batch["previous_rewards"].dtype == torch.float32
    assert batch["episode_starts"].dtype == torch.bool


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
    windows = windows_of_rows(histories, 6, space)
    batch = windows.batch(np.array([[0, 6], [30, 6], [6, 6]]))
    assert none_action(space).tolist() == none
    for row, (history, first) in enumerate(((0, 0), (1, 0), (0, 6))):
        actions = histories[history]["actions"][first : first + 6]
        before = none if first == 0 else histories[history]["actions"][first - 1]
        np.testing.assert_allclose(batch["previous_actions"][row], [before, *actions[:-1]], rtol=1e-6)
        np.testing.assert_allclose(batch["labels"][row], actions, rtol=1e-6)


def test_no_window_crosses_histories_and_steps_are_consecutive():
    windows = make_windows([40, 33, 100, 29, 71], 14)
    for epoch in range(20):
        for window in windows_of_epoch(windows, epoch):
            number, first = window[0]
            assert window == [(number, first + step) for step in range(14)]


def test_windows_of_an_epoch_are_distinct_and_tile_each_history():
    lengths, context_length = [40, 33, 100, 29, 71], 14
    windows = make_windows(lengths, context_length)
    for epoch in range(20):
        steps = [step for window in windows_of_epoch(windows, epoch) for step in window]
        assert len(set(steps)) == len(steps)
        for number, length in enumerate(lengths):
            of_history = sorted(step for history, step in steps if history == number)
            assert of_history == list(range(of_history[0], of_history[-1] + 1))
            assert of_history[0] < context_length
            assert length - 1 - of_history[-1] < context_length


def test_every_step_is_trained_on_over_the_epochs():
    lengths = [40, 33, 100, 29, 71, 14, 15]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        windows = make_windows(lengths, 14)
    seen = {step for epoch in range(200) for window in windows_of_epoch(windows, epoch) for step in window}
    assert seen == {(number, step) for number, length in enumerate(lengths) for step in range(length)}


def test_order_is_a_pure_function_of_seed_and_epoch():
    lengths = [40, 33, 100, 29, 71]
    windows, same, other = (make_windows(lengths, 7, seed=seed) for seed in (5, 5, 6))
    later = [windows.epoch_order(epoch) for epoch in (3, 0, 3)]
    np.testing.assert_array_equal(later[0], later[2])
    np.testing.assert_array_equal(later[0], same.epoch_order(3))
    orders = {windows.epoch_order(epoch).tobytes() for epoch in range(20)}
    orders |= {other.epoch_order(epoch).tobytes() for epoch in range(20)}
    assert len(orders) == 40


def test_phase_of_a_history_does_not_depend_on_the_others():
    histories = make_histories([50, 50, 50, 50])
    alone, among = (windows_of_rows(rows, 10) for rows in (histories[2:3], histories))
    for epoch in range(10):
        of_history = sorted(window for window in windows_of_epoch(among, epoch) if window[0][0] == 2)
        assert of_history == sorted(windows_of_epoch(alone, epoch))


def test_phases_of_histories_and_epochs_are_spread_evenly():
    windows = make_windows([39] * 30, 10)
    phases = np.array(
        [[min(step for history, step in map(min, windows_of_epoch(windows, epoch)) if history == number)]
         for epoch in range(40) for number in range(30)]
    )  # fmt: skip
    counts = np.bincount(phases.ravel(), minlength=10)
    assert len(counts) == 10
    assert (counts > 0.7 * 120).all()
    assert (counts < 1.3 * 120).all()


def test_pieces_of_a_history_are_one_history():
    whole = make_histories([50, 31, 64])
    pieces = []
    for history in whole:
        borders = [0, 20, 29, len(history["rewards"])]
        for piece, (start, stop) in enumerate(itertools.pairwise(borders)):
            cut = {name: value[start:stop] if isinstance(value, list) else value for name, value in history.items()}
            pieces.append({**cut, "piece": piece, "start_step": start})
    for settings in ({}, {"keep_every_episode": 2}):
        joined, expected = (windows_of_rows(rows, 8, **settings) for rows in (pieces, whole))
        assert joined.num_histories == expected.num_histories == 3
        assert joined.num_steps == expected.num_steps
        for epoch in range(5):
            batch, expected_batch = (windows.batch(windows.epoch_order(epoch)) for windows in (joined, expected))
            for name, tensor in expected_batch.items():
                assert torch.equal(batch[name], tensor), name


def test_histories_shorter_than_a_window_are_padded_and_masked():
    lengths = [5, 30, 3, 10]
    windows = make_windows(lengths, 10)
    order = windows.epoch_order(0)
    assert sorted(length for length in order[:, 1].tolist() if length < 10) == [3, 5]
    batch = windows.batch(order)
    assert batch["attention_mask"].sum(dim=1).tolist() == order[:, 1].tolist()
    for window, mask in zip(steps_of(batch), batch["attention_mask"], strict=True):
        number, first = window[0]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padding comes last
        assert window == [(number, first + step) for step in range(min(10, lengths[number]))]
    short = windows.batch(order[order[:, 1] < 10])
    assert short["observations"].shape[1] == 5  # no longer than the longest window
    assert (short["observations"][..., 1] < 5).all()


def test_warning_for_histories_shorter_than_two_windows():
    with pytest.warns(UserWarning, match=r"histories of 30 steps.*two windows of 16"):
        make_windows([30, 30, 90], 16).warn_of_short_histories()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_windows([32, 32, 90], 16).warn_of_short_histories()
        make_windows([10, 12], 16).warn_of_short_histories()  # bandits: padded on purpose


def test_subsampling_counts_for_the_warning():
    history = make_histories([64])[0] | {"terminations": [False] * 64, "truncations": [False, True] * 32}
    windows_of_rows([history], 16).warn_of_short_histories()
    cut = windows_of_rows([history], 16, max_episodes=11)
    with pytest.warns(UserWarning, match="histories of 22 steps"):
        cut.warn_of_short_histories()


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, expected_batch in zip(batches, expected, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert torch.equal(batch[name], tensor), name


def test_batches_run_through_the_epochs_in_order():
    windows = make_windows([40, 33, 100, 29, 71], 14)
    expected = [window for epoch in range(5) for window in windows_of_epoch(windows, epoch)]
    batches = take(WindowBatches(windows, batch_size=4), 15)
    assert [window for batch in batches for window in steps_of(batch)] == expected[:60]


@pytest.mark.parametrize("batch_size", [4, 18, 60])
@pytest.mark.parametrize("world_size", [2])
def test_slices_of_the_processes_make_the_single_processes_batches(batch_size, world_size):
    windows = make_windows([40, 33, 100, 29, 71], 14)
    single = take(WindowBatches(windows, batch_size), 8)
    slices = [take(WindowBatches(windows, batch_size, rank, world_size), 8) for rank in range(world_size)]
    joined = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*slices)]
    assert_same_batches(joined, single)


@pytest.mark.parametrize("batch_size", [4, 18, 60])
def test_stream_resumes_with_the_same_batches(batch_size):
    windows = make_windows([40, 33, 100, 29, 71], 14)  # 16 to 18 windows an epoch
    expected = take(WindowBatches(windows, batch_size), 12)
    for used in range(8):
        interrupted = WindowBatches(windows, batch_size)
        assert_same_batches(take(interrupted, used), expected[:used])
        resumed = WindowBatches(make_windows([40, 33, 100, 29, 71], 14), batch_size)
        resumed.load_state_dict(interrupted.state_dict())
        assert_same_batches(take(resumed, 4), expected[used : used + 4])


def test_stream_passes_whole_epochs_when_batches_are_larger():
    windows = make_windows([40], 14)  # two windows an epoch
    counts = [len(windows.epoch_order(epoch)) for epoch in range(20)]
    batch = take(WindowBatches(windows, batch_size=9), 1)[0]
    expected = [window for epoch in range(20) for window in windows_of_epoch(windows, epoch)]
    assert max(counts) < 9
    assert steps_of(batch) == expected[:9]


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

    before = making_threads()
    windows = make_windows([80, 80], 8)
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
    windows = make_windows([40], 14)
    with pytest.raises(ValueError, match=f"multiple of {world_size} processes, got {batch_size}"):
        WindowBatches(windows, batch_size, 0, world_size)
