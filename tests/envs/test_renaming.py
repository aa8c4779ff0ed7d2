"""Worlds under other numbers: the same worlds, by one-to-one numbers that the task's seed draws."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ad_hf.envs.renaming import Renamed
from ad_hf.envs.task_family import TaskFamily

RENAMED = "ad_hf.envs.renaming.Renamed"


def numbers(env, num_steps=2000):
    """Pairs (states under both numbers) and (actions under both) that random play of a toy text world meets."""
    rng = np.random.default_rng(0)
    states, actions, running = set(), set(), False
    for _ in range(num_steps):
        if not running:
            state, _ = env.reset(seed=int(rng.integers(1000)))
        else:
            action = rng.integers(env.action_space.n)
            state = env.step(action)[0]
            actions.add((int(action), int(env.unwrapped.lastaction)))
        running = rng.random() < 0.9
        states.add((int(state), int(env.unwrapped.s)))
    return states, actions


def test_numbers_are_one_to_one_and_those_of_the_seed():
    met = {}
    for run, seed in enumerate((0, 0, 1)):
        env = Renamed(gym.make("FrozenLake-v1", is_slippery=False), seed=seed, states=20, actions=6)
        states, actions = met[run] = numbers(env)
        assert len({new for new, _ in states}) == len({old for _, old in states}) == len(states) > 10
        assert max(new for new, _ in states) > 15
        assert [new for new, _ in sorted(actions)] == list(range(6))
        assert {old for _, old in actions} == set(range(4))
    assert met[0] == met[1]
    assert all(mine != other for mine, other in zip(met[0], met[2]))


def test_a_world_stays_what_it_is():
    limit = {"name": "gymnasium.wrappers.TimeLimit", "kwargs": {"max_episode_steps": 200}}
    renamed = {"name": RENAMED, "kwargs": {"seed": "{renaming}", "reward_factor": 0.05}}
    family = TaskFamily("CliffWalking-v1", [{"renaming": 3}, {"renaming": 4}], wrappers=[limit, renamed])
    first, second = (env for env in family.make_vec(family.tasks()).envs)
    assert first.observation_space == spaces.Discrete(64)
    starts = {int(env.reset(seed=0)[0]) for env in (first, second)}
    assert len(starts) == 2
    of_own = {old: new for new, old in numbers(first)[1]}
    up, right, down = (of_own[action] for action in range(3))
    start, _ = first.reset(seed=0)
    assert first.step(right)[:3] == (start, pytest.approx(-5.0), False)  # off the cliff, and back
    steps = [first.step(action) for action in [up, *[right] * 11, down]]
    assert [step[1] for step in steps] == pytest.approx([-0.05] * 13)
    assert [step[2] for step in steps] == [False] * 12 + [True]
    first.reset(seed=0)
    assert [first.step(up)[3] for _ in range(200)] == [False] * 199 + [True]


def test_numbers_need_not_start_at_zero():
    class Late(gym.Env):
        observation_space, action_space = spaces.Discrete(3, start=5), spaces.Discrete(2, start=-1)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 6, {}

        def step(self, action):
            return 6 + action, 0.0, False, False, {}

    env = Renamed(Late(), seed=0, states=3, actions=2)
    assert {int(env.reset()[0]), *(int(env.step(action)[0]) for action in (0, 1))} <= {0, 1, 2}
    assert env.step(0)[0] != env.step(1)[0]


@pytest.mark.parametrize(("env_id", "actions"), [("CartPole-v1", 4), ("Taxi-v4", 6), ("FrozenLake-v1", 3)])
def test_other_spaces_and_larger_ones_are_refused(env_id, actions):
    with pytest.raises(ValueError, match=rf"at most 64 states and {actions} actions, got (Box|Discrete)"):
        Renamed(gym.make(env_id), seed=0, actions=actions)


def test_an_argument_of_a_wrapper_has_to_come_from_somewhere():
    wrappers = [{"name": RENAMED, "kwargs": {"seed": "{renaming}"}}]
    with pytest.raises(ValueError, match=r"family\.wrappers: neither a task nor env_kwargs has a value for renaming"):
        TaskFamily("FrozenLake-v1", [{"map_name": "4x4"}], wrappers=wrappers)
    family = TaskFamily("FrozenLake-v1", [{"renaming": 1}, {"map_name": "4x4"}], wrappers=wrappers)
    with pytest.raises(ValueError, match=r"family.wrappers\[0\]: the task .* has no renaming"):
        family.make_vec(family.tasks())
    shared = TaskFamily("FrozenLake-v1", [{"map_name": "4x4"}], {"renaming": 1}, wrappers=wrappers)
    assert shared.make_vec(shared.tasks()).single_observation_space == spaces.Discrete(64)
