"""Statistics against numbers that can be had otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ad_hf.evaluation.curves import (
    Curve,
    bootstrap_curve,
    bootstrap_means,
    interquartile_mean,
    interval,
    mean_of,
    regret,
    steps_to_level,
)


def width(samples):
    low, high = interval(samples)
    return np.mean(high - low)


def test_the_mean_is_over_the_tasks_of_all_splits_however_many_models_each_has():
    blocks = [np.full((3, 2, 4), 1.0), np.full((1, 2, 12), 5.0)]

    assert mean_of(blocks) == pytest.approx(4.0)
    np.testing.assert_allclose(bootstrap_means(blocks, 50), 4.0)


def test_a_curve_is_the_mean_in_its_reproducible_interval():
    returns = np.random.default_rng(0).normal(size=(1, 3, 8, 20)).cumsum(axis=3)
    curve, again = (bootstrap_curve([returns], np.arange(20.0)) for _ in range(2))

    np.testing.assert_allclose(curve.mean, returns.mean(axis=(0, 1, 2)))
    assert (curve.low < curve.mean).all()
    assert (curve.mean < curve.high).all()
    np.testing.assert_array_equal(curve.env_steps, np.arange(20.0))
    np.testing.assert_array_equal(curve.low, again.low)
    assert (bootstrap_means([returns]) != bootstrap_means([returns], seed=1)).any()
    for name, values in vars(Curve.from_json(curve.to_json())).items():
        np.testing.assert_allclose(values, getattr(curve, name), atol=1e-4)


# Eight independent numbers make an interval of this width, whatever they are of, and however much they are repeated.
EIGHT = 2 * 1.96 / np.sqrt(8)


@pytest.mark.parametrize(
    "shape", [(8, 1, 1, 300), (1, 8, 1, 300), (1, 1, 8, 300)], ids=["trainings", "rollouts", "tasks"]
)
def test_the_spread_of_trainings_rollouts_and_tasks_counts(shape):
    values = np.random.default_rng(0).normal(size=shape)
    assert width(bootstrap_means([values])) == pytest.approx(EIGHT, rel=0.15)
    if shape[0] == 8:  # each training plays all tasks, and is drawn as a whole
        repeated = np.broadcast_to(values, (8, 3, 4, 300))
        assert width(bootstrap_means([repeated], 300)) == pytest.approx(EIGHT, rel=0.15)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    tasks = rng.normal(size=(1, 1, 40, 2000))  # every column is an experiment of its own
    curve = bootstrap_curve([tasks + 0.5 * rng.normal(size=(1, 3, 40, 2000))], np.arange(2000))

    assert np.mean((curve.low < 0) & (curve.high > 0)) == pytest.approx(0.95, abs=0.02)


def test_the_interquartile_mean_leaves_the_best_and_worst_quarters_out():
    scores = np.arange(40.0).reshape(1, 5, 8)
    scores[0, 0, 0], scores[0, 4, 7] = -1e9, 1e9

    value, _ = interquartile_mean([scores])

    assert value == pytest.approx(np.sort(scores.ravel())[10:30].mean())
    assert interquartile_mean([np.arange(4.0).reshape(1, 1, 4)]) == (1.5, None)  # single runs have no interval


def test_its_interval_is_stratified_tasks_are_not_drawn_anew():
    rng = np.random.default_rng(0)
    far_apart = 1000.0 * np.arange(6) + rng.normal(size=(1, 10, 6))

    _, (low, high) = interquartile_mean([far_apart])

    # Had tasks been drawn, it would be hundreds wide; here, the runs of each task differ by about 1.
    assert high - low < 2


def test_its_interval_covers_the_true_value_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = stats.trim_mean(rng.normal(size=1_000_000), 0.25)
    bounds = [interquartile_mean([rng.normal(size=(3, 10, 4))])[1] for _ in range(150)]

    assert np.mean([low < truth < high for low, high in bounds]) == pytest.approx(0.95, abs=0.04)


def test_regret_is_the_sum_of_all_that_was_missed():
    returns = np.array([[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]])
    np.testing.assert_allclose(regret(returns[None], np.array([2.0, 4.0])), [[3.0, 0.0]])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_level_is_reached_by_the_trailing_mean_of_five_episodes(mean, level):
    curve = Curve(10 * np.arange(1, len(mean) + 1), *[np.array(mean, dtype=float)] * 3)
    span = min(5, len(mean))
    ends = [end for end in range(span, len(mean) + 1) if np.mean(mean[end - span : end]) >= level - 1e-9]
    assert steps_to_level(curve, level - 1e-9) == (10 * ends[0] if ends else None)
