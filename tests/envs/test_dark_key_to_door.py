"""Dark Key-to-Door: what pays, what is seen, and what only a source may know."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.dark_key_to_door import DOOR, KEY, OPEN_DOOR, optimal_return, path_length

ENV_ID = "ad_hf/DarkKeyToDoor-v0"
LEFT, RIGHT, UP, DOWN, STAY = range(5)


def walk(env, target):
    """Walk to a cell; returns the rewards on the way."""
    rewards = []
    while True:
        position = env.unwrapped.vector._positions[0]
        if (position == target).all():
            return rewards
        axis = 0 if position[0] != target[0] else 1
        action = ((LEFT, RIGHT), (DOWN, UP))[axis][int(position[axis] < target[axis])]
        rewards.append(env.step(action)[1])


def reset_away_from(env, cells, seed=0):
    """Reset until the agent starts apart from some cells."""
    for attempt in itertools.count(seed):
        observation, info = env.reset(seed=attempt)
        if all(tuple(observation) != cell for cell in cells):
            return info


def test_the_key_pays_once_and_then_the_door_once():
    env = gym.make(ENV_ID, size=5, key=(4, 0), door=(2, 3), max_episode_steps=100)
    info = reset_away_from(env, [(4, 0)])
    assert info == {"has_key": 0, "door_open": 0}
    assert sum(walk(env, (2, 3))) in (0.0, 1.0)  # the way to the door may lead over the key
    before = env.unwrapped._information()["has_key"]
    assert sum(walk(env, (4, 0))) == 1.0 - before
    assert env.unwrapped._information() == {"has_key": 1, "door_open": 0}
    assert sum(walk(env, (0, 0)) + walk(env, (4, 0))) == 0.0
    rewards = walk(env, (2, 3))
    assert rewards[-1] == sum(rewards) == 1.0
    assert env.unwrapped._information() == {"has_key": 1, "door_open": 1}
    assert sum(walk(env, (4, 0)) + walk(env, (2, 3)) + [env.step(STAY)[1]]) == 0.0


def test_the_door_is_closed_to_those_without_the_key_and_takes_a_step_of_its_own():
    env = gym.make(ENV_ID, size=3, key=(0, 0), door=(2, 2))
    env.reset(seed=next(seed for seed in range(99) if tuple(env.reset(seed=seed)[0]) == (2, 1)))
    *_, info = env.step(UP)
    assert info == {"has_key": 0, "door_open": 0}
    assert env.step(STAY)[1] == 0.0
    env = gym.make(ENV_ID, size=3, key=(1, 1), door=(1, 1))
    reset_away_from(env, [(1, 1)])
    assert walk(env, (1, 1))[-1] == 1.0
    assert [env.step(STAY)[1] for _ in range(3)] == [1.0, 0.0, 0.0]


def test_the_agent_starts_in_every_cell_with_even_chances():
    env = gym.make(ENV_ID, size=3, door=(2, 2))
    env.reset(seed=0)
    counts = np.zeros((3, 3))
    for _ in range(1800):
        counts[tuple(env.reset()[0])] += 1
    assert counts.min() > 150
    assert counts.max() < 260


def test_the_observation_is_the_cell_and_nothing_else():
    observations = []
    for key, door in (((0, 0), (4, 4)), ((3, 1), (1, 3))):
        env = gym.make(ENV_ID, size=5, key=key, door=door)
        rng = np.random.default_rng(1)
        observations.append([env.reset(seed=7)[0]] + [env.step(rng.integers(5))[0] for _ in range(49)])
    np.testing.assert_array_equal(*observations)


def test_episodes_last_for_fifty_steps_enough_for_the_longest_task():
    env = gym.make(ENV_ID, size=9, key=(8, 8), door=(0, 0))
    env.reset(seed=0)
    env.unwrapped.vector._positions[0] = 0
    rewards = walk(env, (8, 8)) + walk(env, (0, 0))
    assert len(rewards) == 32
    assert sum(rewards) == optimal_return(size=9, max_episode_steps=50) == 2.0
    assert [env.step(STAY)[2:4] for _ in range(18)] == [(False, False)] * 17 + [(False, True)]


def test_returns_and_distances_of_tasks():
    assert path_length(key=(1, 2), door=(4, 0), size=9) == 5
    with pytest.raises(ValueError, match="at least 33 steps"):
        optimal_return(size=9, max_episode_steps=32)


def test_pictures_show_the_key_until_it_is_taken_and_the_door_change():
    env = gym.make(ENV_ID, size=3, key=(0, 0), door=(2, 2), render_mode="rgb_array", max_episode_steps=100)

    def colours():
        return {tuple(colour) for colour in env.render().reshape(-1, 3).tolist()}

    reset_away_from(env, [(0, 0), (2, 2)])
    assert {KEY, DOOR} < colours()
    walk(env, (0, 0))
    assert KEY not in colours()
    walk(env, (2, 2))
    assert OPEN_DOOR in colours()
    assert DOOR not in colours()
