"""The bridge to Stable-Baselines3, held against SB3's own DummyVecEnv."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.sb3 import SB3VecEnv

GOALS = np.array([[0, 2], [2, 2], [1, 1], [1, 2]])


class Talkative(gym.Env):
    """Puts values of many kinds in its infos, some of them only now and then, by its `number`."""

    observation_space = gym.spaces.Box(-10.0, 100.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, number):
        self.number, self.steps = number, 0

    def _info(self):
        info = {
            "steps": self.steps,
            "share": self.steps / 7,
            "even": self.steps % 2 == 0,
            "vector": np.full(2, self.number),
            "name": f"room {self.number}",
            "inner": {"depth": self.number, "deeper": {"steps": self.steps}},
            7: self.number,
        }
        if (self.steps + self.number) % 3 == 0:
            info |= {"rare": -self.steps, "rare_dict": {"x": self.number}}
            info["inner"]["rare"] = self.number
        return info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.float32([self.number]), {"fresh": self.number, "options": str(options), "inner": {"seed": str(seed)}}

    def step(self, action):
        self.steps += 1
        ended = self.steps == 3 + self.number
        return np.float32([self.steps]), 0.5, ended and self.number != 1, ended and self.number > 0, self._info()


def cart_poles():
    # Random pushes topple the pole after 9 steps or more, so that some episodes terminate and others are truncated.
    return [lambda: gym.make("CartPole-v1", max_episode_steps=15) for _ in range(4)]


def dark_rooms():
    return [lambda goal=goal: gym.make("ad_hf/DarkRoom-v0", size=3, goal=goal, max_episode_steps=7) for goal in GOALS]


def talkative():
    return [lambda number=number: Talkative(number) for number in range(3)]


def native_dark_rooms(**kwargs):
    kwargs |= {"size": 3, "goal": GOALS, "max_episode_steps": 7}
    return gym.make_vec("ad_hf/DarkRoom-v0", num_envs=4, vectorization_mode="vector_entry_point", **kwargs)


def in_sync(env_fns):
    return SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)


class Log(VecEnvWrapper):
    """Keeps all that a learner is told."""

    def reset(self):
        observations = self.venv.reset()
        self.steps = [deepcopy((observations, self.unwrapped.reset_infos))]
        return observations

    def step_wait(self):
        returned = self.venv.step_wait()
        self.steps.append(deepcopy((*returned, self.unwrapped.reset_infos)))
        return returned


def learn(algorithm, envs):
    log = Log(envs)
    settings = {"n_steps": 5}
    if algorithm is DQN:
        settings = {"learning_starts": 50, "train_freq": 2, "batch_size": 16, "buffer_size": 300}
    learner = algorithm("MlpPolicy", log, seed=3, device="cpu", policy_kwargs={"net_arch": [16]}, **settings)
    log.set_options({"difficulty": 1})
    learner.learn(600)
    return log.steps, learner.policy.state_dict()


def assert_same(value, expected):
    """Nested values are the same, but for the time in a monitor's info and a flag of truncation that is not set."""
    if isinstance(expected, dict):
        if "TimeLimit.truncated" in expected:
            value = {"TimeLimit.truncated": False, **value}
        assert set(value) == set(expected)
        for name in set(expected) - {"t"}:
            assert_same(value[name], expected[name])
    elif isinstance(expected, list | tuple):
        for each, other in zip(value, expected, strict=True):
            assert_same(each, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected)
    else:
        np.testing.assert_array_equal(value, expected)
        assert not isinstance(expected, np.ndarray) or value.dtype == expected.dtype


@pytest.mark.parametrize("algorithm", [A2C, DQN])
@pytest.mark.parametrize(
    ("make", "endings"), [(cart_poles, {True, False}), (dark_rooms, {True}), (talkative, {True, False})]
)
def test_learners_run_as_on_dummy_vec_env_and_are_told_the_same(algorithm, make, endings):
    expected = learn(algorithm, VecMonitor(DummyVecEnv(make())))
    infos = [info for step in expected[0][1:] for info in step[3] if "terminal_observation" in info]
    assert {bool(info["TimeLimit.truncated"]) for info in infos} == endings
    assert_same(learn(algorithm, SB3VecEnv(in_sync(make()))), expected)
    if make is dark_rooms:
        assert_same(learn(algorithm, SB3VecEnv(native_dark_rooms())), expected)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    for envs in (SyncVectorEnv(cart_poles(), autoreset_mode=mode), native_dark_rooms(autoreset_mode=mode)):
        with pytest.raises(ValueError, match="SAME_STEP"):
            SB3VecEnv(envs)


def test_seed_and_options_hold_for_one_reset():
    envs = SB3VecEnv(in_sync(talkative()))
    envs.seed(7)
    envs.set_options({"difficulty": 1})
    envs.reset()
    assert envs.reset_infos[1] == {"fresh": 1, "options": "{'difficulty': 1}", "inner": {"seed": "8"}}
    envs.reset()
    assert envs.reset_infos[1] == {"fresh": 1, "options": "None", "inner": {"seed": "None"}}


def test_single_environments_can_be_reached_into():
    envs = SB3VecEnv(in_sync(talkative()))
    assert envs.get_attr("number") == [0, 1, 2]
    assert envs.get_attr("number", indices=[2, 0]) == [2, 0]
    envs.set_attr("number", 9, indices=1)
    assert envs.get_attr("number") == [0, 9, 2]
    envs.reset()
    assert [info["steps"] for info in envs.env_method("_info")] == [0, 0, 0]
    assert envs.env_method("reset", seed=4, indices=[1])[0][1]["inner"]["seed"] == "4"
    envs = SB3VecEnv(in_sync([cart_poles()[0], lambda: gym.make("CartPole-v1").unwrapped]))
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit) == [True, False]
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit, indices=[1]) == [False]


def test_native_environments_have_no_single_ones_to_reach_into():
    envs = SB3VecEnv(native_dark_rooms(render_mode="rgb_array"))
    assert envs.get_attr("render_mode") == ["rgb_array"] * 4
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    envs.reset()
    assert envs.render().shape == (2 * 48, 2 * 48, 3)
    for reach, arguments in ((envs.get_attr, ["goal"]), (envs.set_attr, ["goal", 0]), (envs.env_method, ["render"])):
        with pytest.raises(AttributeError, match="natively"):
            reach(*arguments)
