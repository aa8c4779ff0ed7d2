"""Episode subsampling against a slow and obvious one."""

from itertools import pairwise

import numpy as np
import pytest

from ad_hf.histories.transforms import episode_numbers, improvements, keep_episodes


def random_histories(rng):
    """Per history, the lengths of its episodes and whether the last one has ended."""
    return [
        (rng.integers(1, 6, size=rng.integers(1, 9)).tolist(), bool(rng.random() < 0.5))
        for _ in range(rng.integers(1, 6))
    ]


def flatten(histories):
    ends = []
    for lengths, finished in histories:
        for length in lengths:
            ends += [False] * (length - 1) + [True]
        ends[-1] = finished
    offsets = np.cumsum([0] + [sum(lengths) for lengths, _ in histories])
    return np.array(ends), offsets


def slowly_kept(histories, every, first, last=None):
    """Numbers of the kept steps, history by history, from lists of episodes."""
    kept, step = [], 0
    for lengths, _ in histories:
        episodes = []
        for length in lengths:
            episodes.append(list(range(step, step + length)))
            step += length
        episodes = episodes[:first][-(last or 0) :]
        chosen = [steps for number, steps in enumerate(episodes) if number % every == 0 or number == len(episodes) - 1]
        kept.append([step for steps in chosen for step in steps])
    return kept


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("first", [None, 1, 2, 4, 100])
@pytest.mark.parametrize("last", [None, 1, 3, 100])
def test_every_kth_of_the_last_of_the_first_n_episodes_is_kept_and_the_last(every, first, last):
    rng = np.random.default_rng(every)
    for _ in range(50):
        histories = random_histories(rng)
        ends, offsets = flatten(histories)
        mask, kept_offsets = keep_episodes(ends, offsets, every, first, last)
        expected = slowly_kept(histories, every, first, last)
        assert np.flatnonzero(mask).tolist() == [step for steps in expected for step in steps]
        assert kept_offsets.tolist() == np.cumsum([0] + [len(steps) for steps in expected]).tolist()


def test_first_and_last_episode_of_each_history_are_kept():
    ends, offsets = flatten([([2, 1, 1, 3], True), ([1, 2], False)])
    mask, kept_offsets = keep_episodes(ends, offsets, every=100)
    assert mask.tolist() == [True, True, False, False, True, True, True, True, True, True]
    assert kept_offsets.tolist() == [0, 5, 8]


def test_episodes_are_numbered_within_their_history():
    ends, offsets = flatten([([2, 1], False), ([3], True), ([1, 1], False)])
    assert episode_numbers(ends, offsets).tolist() == [0, 0, 1, 0, 0, 0, 0, 1]


def test_history_without_steps_changes_nothing_for_the_others():
    ends = np.array([False, True, True])
    for offsets, expected in (([0, 2, 2, 3], [0, 2, 2, 3]), ([0, 0, 3], [0, 0, 3]), ([0, 3, 3], [0, 3, 3])):
        mask, kept_offsets = keep_episodes(ends, np.array(offsets))
        assert mask.all()
        assert kept_offsets.tolist() == expected


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": -1}, {"first": 0}, {"last": 0}])
def test_numbers_below_one_are_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        keep_episodes(np.array([True]), np.array([0, 1]), **settings)


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


def test_improvement_is_from_the_first_ten_finished_episodes_to_the_last():
    rng = np.random.default_rng(0)
    lengths = [0, 300, 1, 40, 0, 120, 7]
    ends = rng.random(sum(lengths)) < 0.2
    rewards = rng.normal(size=len(ends))
    offsets = np.cumsum([0, *lengths])

    expected = [slow_improvement(rewards[a:b], ends[a:b]) for a, b in pairwise(offsets)]

    assert sum(value != 0 for value in expected) >= 3
    np.testing.assert_allclose(improvements(rewards, ends, offsets), expected, atol=1e-9)
