"""Random worlds: what seeds draw, exact returns against played ones, and settings that choose the kinds."""

import gymnasium as gym
import numpy as np
import pytest

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.tabular_mdp import MOVES, PAYS, STEP_COST, draw_world, episode_returns, optimal_return, random_return

SEEDS = range(60)


def make(seeds, **kwargs):
    return gym.make_vec("ad_hf/TabularMDP-v0", len(seeds), "vector_entry_point", task_seed=list(seeds), **kwargs)


def mean_returns(seeds, act, num_episodes, num_steps=20):
    """Mean returns (worlds,) of a function of observations and the steps that are left."""
    envs = make(np.repeat(seeds, num_episodes), max_episode_steps=num_steps)
    observations, _ = envs.reset(seed=0)
    returns, running = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=bool)
    for left in range(num_steps, 0, -1):
        observations, rewards, terminations, _, _ = envs.step(act(observations, left))
        returns += rewards * running
        running &= ~terminations
    return returns.reshape(len(seeds), num_episodes).mean(axis=1)


def optimal_policy(world, num_steps):
    """Best actions (steps left, states), backwards from the end, by loops."""
    num_states, num_actions, _ = world.successors.shape
    values, best = np.zeros(num_states), np.zeros((num_steps + 1, num_states), dtype=int)
    for left in range(1, num_steps + 1):
        scores = np.zeros((num_states, num_actions))
        for place in np.ndindex(world.successors.shape):
            follows = 0.0 if world.ends[place] else values[world.successors[place]]
            scores[place[:2]] += world.probabilities[place[2]] * (world.rewards[place] + follows)
        values, best[left] = scores.max(axis=1), scores.argmax(axis=1)
    return best


def test_expected_returns_are_those_of_play():
    seeds, rng = list(range(12)), np.random.default_rng(0)
    tasks = [{"task_seed": seed, "max_episode_steps": 20} for seed in seeds]
    policies = np.repeat([optimal_policy(draw_world(seed), 20) for seed in seeds], 1000, axis=0)
    rows = np.arange(len(policies))
    played = mean_returns(seeds, lambda observations, left: policies[rows, left, observations], 1000)
    np.testing.assert_allclose(played, [optimal_return(**task) for task in tasks], atol=0.1)
    played = mean_returns(seeds, lambda observations, left: rng.integers(4, size=len(observations)), 1000)
    np.testing.assert_allclose(played, [random_return(**task) for task in tasks], atol=0.25)


@pytest.mark.parametrize("settings", [{}, {"num_states": 64, "horizon": 50}, {"num_states": 4, "num_actions": 2}])
def test_optimal_play_earns_clearly_more_than_random_play(settings):
    for seed in SEEDS:
        best, random = episode_returns(draw_world(seed, **settings), settings.get("horizon", 20))
        assert best - random >= 0.5 - 1e-9
        assert best == pytest.approx(1.0) or best < 0
        assert best < 0 or random <= 0.5 + 1e-9


def test_a_world_is_its_seed_and_worlds_differ():
    together, alone = make(SEEDS), make([7])
    actions = np.random.default_rng(0).integers(4, size=(200, 1))
    lives = []
    for envs, index in ((together, 7), (alone, 0)):
        envs.reset(seed=10 - index)
        lives.append([envs.step(np.repeat(step, envs.num_envs)) for step in actions])
        lives[-1] = [[values[index] for values in step[:4]] for step in lives[-1]]
    assert lives[0] == lives[1]
    worlds = {draw_world(seed).successors.tobytes() for seed in SEEDS}
    assert len(worlds) == len(SEEDS)


def test_worlds_are_varied():
    worlds = [draw_world(seed) for seed in range(300)]
    costs = np.array([world.rewards.min() < 0 for world in worlds])
    assert 0.25 < costs.mean() < 0.42
    assert 0.4 < np.mean([world.slip == 0 for world in worlds]) < 0.6
    assert max(world.slip for world in worlds) < 0.3
    assert 0.5 < np.mean([world.ends.any() for world in worlds]) < 0.95
    assert len({world.start for world in worlds}) == 16


@pytest.mark.parametrize("pay", PAYS)
@pytest.mark.parametrize("move", MOVES)
def test_settings_choose_the_kinds(move, pay):
    reversible, rewarded = [], []
    for seed in range(20):
        world = draw_world(seed, moves=(move,), pays=(pay,), noise=0.0)
        assert world.slip == 0
        means, states = world.successors[..., 0], np.flatnonzero(world.successors.any(axis=(1, 2)))
        reversible.append(np.mean([state in means[after] for state in states for after in means[state]]))
        rewarded.append(np.unique(world.rewards[states, :, 0]))
    assert (np.mean(reversible) > 0.7) == (move == "grid")
    if pay == "cost":
        assert set(np.concatenate(rewarded)) == {-1.0, -STEP_COST}
    else:
        assert all(1 < len(rewards) <= 4 and rewards[0] == 0 for rewards in rewarded)


def test_actions_slip_as_often_as_the_world_says():
    seed = next(seed for seed in SEEDS if draw_world(seed).slip > 0.2)
    world = draw_world(seed)
    envs = make([seed] * 5000)
    envs.reset(seed=0)
    observations, _, ended, _, infos = envs.step(np.full(5000, 1))
    follow, counts = np.unique(np.where(ended, infos.get("final_obs", observations), observations), return_counts=True)
    probabilities = np.zeros(16)
    np.add.at(probabilities, world.successors[world.start, 1], world.probabilities)
    np.testing.assert_allclose(counts / 5000, probabilities[follow], atol=0.02)
