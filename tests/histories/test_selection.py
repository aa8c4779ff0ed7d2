"""The steps that are selected, against slow and obvious ones."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.histories.selection import DataConfig, Selection
from ad_hf.histories.steps import improvements, selected_steps

EPISODES = st.lists(st.integers(1, 5), min_size=1, max_size=24)
HISTORIES = st.lists(st.tuples(EPISODES, st.booleans()), min_size=1, max_size=5)  # lengths, whether the last ended
COUNTS = st.none() | st.integers(1, 5) | st.just(100)


def flatten(histories):
    """Whether each step ended its episode, and the histories' offsets."""
    ends = []
    for lengths, finished in histories:
        for length in lengths:
            ends += [False] * (length - 1) + [True]
        ends[-1] = finished
    return np.array(ends), np.cumsum([0, *(sum(lengths) for lengths, _ in histories)])


def slowly_selected(histories, every, first, last):
    """Numbers of the selected steps, from lists of episodes."""
    selected, step = [], 0
    for lengths, _ in histories:
        episodes = []
        for length in lengths:
            episodes.append(list(range(step, step + length)))
            step += length
        episodes = episodes[:first][-(last or 0) :]
        for number, steps in enumerate(episodes):
            if number % every == 0 or number == len(episodes) - 1:
                selected += steps
    return selected


@settings(max_examples=300, deadline=None)
@given(HISTORIES, st.integers(1, 6) | st.just(100), COUNTS, COUNTS)
def test_every_kth_of_the_last_of_the_first_n_episodes_is_selected_and_the_last(histories, every, first, last):
    ends, offsets = flatten(histories)
    mask = selected_steps(Selection(every, first, last), np.zeros(len(ends)), ends, offsets)
    assert np.flatnonzero(mask).tolist() == slowly_selected(histories, every, first, last)


def slow_improvement(rewards, ends):
    """Of one history, from lists of returns."""
    returns, total = [], 0.0
    for reward, end in zip(rewards, ends):
        total += reward
        if end:
            returns.append(total)
            total = 0.0
    count = min(10, len(returns) // 2)
    return float(np.mean(returns[-count:]) - np.mean(returns[:count])) if count else 0.0


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.integers(0, 99))
def test_improvement_is_from_the_first_ten_finished_episodes_to_the_last(histories, seed):
    ends, offsets = flatten(histories)
    rewards = np.random.default_rng(seed).normal(size=len(ends))
    gains = improvements(rewards, ends, offsets)
    expected = [slow_improvement(rewards[start:stop], ends[start:stop]) for start, stop in pairwise(offsets)]
    np.testing.assert_allclose(gains, expected, atol=1e-9)
    least = float(np.median(gains))
    mask = selected_steps(Selection(min_improvement=least), rewards, ends, offsets)
    np.testing.assert_array_equal(mask, np.repeat(gains >= least, np.diff(offsets)))


@pytest.mark.parametrize("name", ["keep_every_episode", "max_episodes", "last_episodes"])
@pytest.mark.parametrize("config", [Selection, DataConfig])
def test_numbers_below_one_are_refused(config, name):
    with pytest.raises(ValueError, match=rf"data\.{name} must be .*at least 1, got 0"):
        config(**{name: 0})
