"""Bandit learners on real bandits."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from ad_hf.envs.adversarial_bandit import AdversarialBanditVectorEnv
from ad_hf.envs.sb3 import SB3VecEnv, VecStep
from ad_hf.sources.bandits import UCB, ThompsonSampling
from ad_hf.sources.recorder import HistoryRecorder

NUM_ARMS = 5


def play(learner_class, trials, num_envs=30, **kwargs):
    """Recorded steps of bandits with one task each, the learner, and the arms' means."""
    envs = AdversarialBanditVectorEnv(num_envs, "uniform", np.arange(num_envs), NUM_ARMS, max_episode_steps=trials)
    recorder = HistoryRecorder(envs, trials)
    learner = learner_class("MlpPolicy", SB3VecEnv(recorder), seed=0, **kwargs)
    learner.learn(num_envs * trials)
    return recorder.recorded(), learner, envs.means


def regret(recorded, means):
    """Mean regret of a pull in the last fifth of the trials (num_envs,)."""
    last = recorded.actions[:, -recorded.actions.shape[1] // 5 :]
    return (means.max(axis=1, keepdims=True) - np.take_along_axis(means, last.astype(int), 1)).mean(axis=1)


@pytest.mark.parametrize("learner_class", [UCB, ThompsonSampling])
def test_counts_are_those_of_the_recorded_pulls(learner_class):
    recorded, learner, _ = play(learner_class, 40)
    for arm in range(NUM_ARMS):
        pulled = recorded.actions == arm
        np.testing.assert_array_equal(learner.tables["pulls"][:, arm], pulled.sum(axis=1))
        np.testing.assert_array_equal(learner.tables["paid"][:, arm], (recorded.rewards * pulled).sum(axis=1))


def test_ucb_pulls_every_arm_once_first_in_an_order_of_each_stream():
    recorded, _, _ = play(UCB, NUM_ARMS)
    np.testing.assert_array_equal(np.sort(recorded.actions, axis=1), np.tile(np.arange(NUM_ARMS), (30, 1)))
    assert len({tuple(order) for order in recorded.actions.tolist()}) > 10


def test_ucb_pulls_the_arm_with_the_highest_bound():
    learner = play(UCB, NUM_ARMS, num_envs=1, exploration=0.5)[1]
    learner.tables["pulls"][:] = [[4, 4, 1, 16, 4]]
    learner.tables["paid"][:] = [[2, 1, 0, 12, 3]]
    means = np.array([0.5, 0.25, 0.0, 0.75, 0.75])
    bounds = means + 0.5 * np.sqrt(np.log(29) / np.array([4, 4, 1, 16, 4]))
    np.testing.assert_allclose(learner._score(np.zeros(1), deterministic=False)[0], bounds, rtol=1e-6)
    actions, _ = learner.predict(np.zeros(1, dtype=int), deterministic=False)
    assert actions.tolist() == [int(bounds.argmax())]
    assert learner.predict(np.zeros(1, dtype=int), deterministic=True)[0].tolist() == [3]  # the highest mean


@pytest.mark.parametrize("learner_class", [UCB, ThompsonSampling])
def test_regret_vanishes(learner_class):
    """Random pulls lose 0.33 each on such arms, and optimal ones nothing."""
    recorded, _, means = play(learner_class, 1500, **({"exploration": 0.5} if learner_class is UCB else {}))
    at_random = (means.max(axis=1) - means.mean(axis=1)).mean()
    assert at_random > 0.25
    assert regret(recorded, means).mean() < 0.1 * at_random


def test_thompson_sampling_draws_from_the_posterior():
    learner = play(ThompsonSampling, 5, num_envs=2)[1]
    learner.tables["pulls"][:] = [[9, 0, 4, 4, 4], [0, 0, 0, 0, 0]]
    learner.tables["paid"][:] = [[6, 0, 4, 0, 2], [0, 0, 0, 0, 0]]
    draws = np.stack([learner._score(np.zeros(2), deterministic=False) for _ in range(4000)])
    won, lost = 1 + learner.tables["paid"], 1 + learner.tables["pulls"] - learner.tables["paid"]
    np.testing.assert_allclose(draws.mean(axis=0), won / (won + lost), atol=0.02)
    variance = won * lost / ((won + lost) ** 2 * (won + lost + 1))
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.12)


def test_rewards_environments_and_settings_that_do_not_fit_are_refused():
    learner = play(ThompsonSampling, 2, num_envs=2)[1]
    assert learner.observation_space == spaces.Discrete(1)
    no = np.zeros(2, dtype=bool)
    with pytest.raises(ValueError, match=r"rewards of 0 or 1, got \[0.  0.5\]"):
        learner._learn_from(np.zeros(2), np.zeros(2, dtype=int), VecStep(None, np.array([0.0, 0.5]), no, no, None))
    with pytest.raises(ValueError, match=r"a bandit has one observation, .*Discrete\(16\)"):
        UCB("MlpPolicy", DummyVecEnv([lambda: gym.make("FrozenLake-v1")]))
    with pytest.raises(ValueError, match="exploration must not be negative, got -1"):
        play(UCB, 1, exploration=-1)
