"""Metrics against numbers that can be had otherwise."""

import numpy as np
import pytest
from scipy import stats

from ad_hf.evaluation.curves import (
    bootstrap_curve,
    bootstrap_means,
    interquartile_mean,
    interval,
    mean_of,
    regret,
)


def width(samples):
    low, high = interval(samples)
    return float(high - low)


def test_the_mean_is_over_the_tasks_of_all_splits_however_many_models_each_has():
    blocks = [np.full((3, 2, 4), 1.0), np.full((1, 2, 12), 5.0)]

    assert mean_of(blocks) == pytest.approx(4.0)
    np.testing.assert_allclose(bootstrap_means(blocks, 50), 4.0)


def test_the_spread_of_trainings_counts_as_a_whole_though_each_plays_all_tasks():
    rng = np.random.default_rng(0)
    trainings = np.broadcast_to(rng.normal(size=(400, 8, 1, 1)), (400, 8, 5, 20))
    widths = [width(bootstrap_means([block], 300)) for block in trainings]

    # That of 8 independent numbers, and not of 8 x 5 x 20.
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(8), rel=0.15)


def test_one_model_is_what_rollouts_alone_gave():
    returns = np.random.default_rng(0).normal(size=(3, 8, 20))

    alone, block = bootstrap_curve(returns, np.arange(20)), bootstrap_curve([returns[None]], np.arange(20))

    np.testing.assert_array_equal(alone.low, block.low)
    np.testing.assert_array_equal(alone.high, block.high)


def test_the_interquartile_mean_leaves_the_best_and_worst_quarters_out():
    scores = np.arange(40.0).reshape(1, 5, 8)
    scores[0, 0, 0], scores[0, 4, 7] = -1e9, 1e9

    value, _ = interquartile_mean([scores])

    assert value == pytest.approx(np.sort(scores.ravel())[10:30].mean())


def test_its_interval_is_stratified_tasks_are_not_drawn_anew():
    rng = np.random.default_rng(0)
    far_apart = 1000.0 * np.arange(6) + rng.normal(size=(1, 10, 6))

    _, (low, high) = interquartile_mean([far_apart])

    # Had tasks been drawn, it would be hundreds wide; here, the runs of each task differ by about 1.
    assert high - low < 2


def test_its_interval_covers_the_true_value_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = stats.trim_mean(rng.normal(size=1_000_000), 0.25)
    found = [interquartile_mean([rng.normal(size=(3, 10, 4))], 200, seed)[1] for seed in range(200)]

    assert np.mean([low < truth < high for low, high in found]) == pytest.approx(0.95, abs=0.04)


def test_there_is_no_interval_of_single_runs():
    assert interquartile_mean([np.arange(4.0).reshape(1, 1, 4)]) == (1.5, None)


def test_regret_is_what_was_missed_over_all_episodes():
    returns = np.array([[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]])

    np.testing.assert_allclose(regret(returns[None], np.array([2.0, 4.0])), [[3.0, 0.0]])
