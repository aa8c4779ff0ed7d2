"""Adversarial Bandit: how arms are drawn, and that they pay as drawn."""

import gymnasium as gym
import numpy as np
import pytest

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.adversarial_bandit import draw_arm_means, optimal_return, random_return

ENV_ID = "ad_hf/AdversarialBandit-v0"
ODD = np.arange(10) % 2 == 0  # arms are counted from 1


def means_of(rewarding, count=2000):
    return np.stack([draw_arm_means(rewarding, seed) for seed in range(count)])


@pytest.mark.parametrize("rewarding", ["odd", "even"])
def test_the_usual_arms_pay_more_in_95_percent_of_tasks(rewarding):
    means = means_of(rewarding)
    usual = ODD if rewarding == "odd" else ~ODD
    as_usual = (means[:, usual] >= 0.5).all(axis=1)
    assert 0.935 < as_usual.mean() < 0.965
    assert (means[as_usual][:, ~usual] <= 0.5).all()
    assert (means[~as_usual][:, usual] <= 0.5).all()
    assert (means[~as_usual][:, ~usual] >= 0.5).all()
    assert means[as_usual][:, usual].mean() == pytest.approx(0.75, abs=0.01)
    assert means.min() >= 0.0
    assert means.max() <= 1.0


def test_uniform_arms_favour_none_and_tasks_are_their_seeds():
    means = means_of("uniform")
    np.testing.assert_allclose(means.mean(axis=0), 0.5, atol=0.03)
    assert means.std() == pytest.approx(12**-0.5, abs=0.01)
    assert len(np.unique(means, axis=0)) == 2000
    np.testing.assert_array_equal(draw_arm_means("odd", 3), draw_arm_means("odd", 3))
    assert not np.isin(draw_arm_means("odd", 3), draw_arm_means("even", 3)).any()


def test_arms_pay_with_their_probabilities():
    envs = gym.make_vec(ENV_ID, num_envs=500, vectorization_mode="vector_entry_point", task_seed=4, num_arms=4)
    envs.reset(seed=0)
    paid = np.zeros(4)
    actions = np.arange(500) % 4
    for _ in range(200):
        observations, rewards, *_ = envs.step(actions)
        paid += np.bincount(actions, rewards)
        assert not observations.any()
        assert set(np.unique(rewards)) <= {0.0, 1.0}
    np.testing.assert_allclose(paid / 125 / 200, draw_arm_means("odd", 4, 4), atol=0.02)


def test_what_an_arm_pays_depends_neither_on_the_trials_before_nor_on_other_bandits():
    paid = []
    for number, others in ((2, 0), (6, 3)):
        envs = gym.make_vec(ENV_ID, num_envs=number, vectorization_mode="vector_entry_point", task_seed=1)
        envs.reset(seed=11)
        actions = np.full(number, others)
        actions[0] = 5
        paid.append([envs.step(actions)[1][0] for _ in range(150)])
    np.testing.assert_array_equal(*paid)
    assert paid[0][:50] != paid[0][100:]  # another episode has other luck


def test_returns_of_the_best_arm_and_of_random_play():
    means = draw_arm_means("even", 9)
    task = {"rewarding": "even", "task_seed": 9, "num_arms": 10, "max_episode_steps": 100}
    assert optimal_return(**task) == pytest.approx(100 * means.max())
    assert random_return(**task) == pytest.approx(100 * means.mean())
