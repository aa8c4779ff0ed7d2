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


def cart_poles():
    # Random pushes topple the pole after 9 steps or more, so that some episodes terminate and others are truncated.
    return [lambda: gym.make("CartPole-v1", max_episode_steps=15) for _ in range(4)]


def dark_rooms():
    return [lambda goal=goal: gym.make("ad_hf/DarkRoom-v0", size=3, goal=goal, max_episode_steps=7) for goal in GOALS]


def native_dark_rooms(**kwargs):
    kwargs |= {"size": 3, "goal": GOALS, "max_episode_steps": 7}
    return gym.make_vec("ad_hf/DarkRoom-v0", num_envs=4, vectorization_mode="vector_entry_point", **kwargs)


def in_sync(env_fns):
    return SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)


class Log(VecEnvWrapper):
    """Keeps all that a learner is told."""

    def __init__(self, venv):
        super().__init__(venv)
        self.steps = []

    def reset(self):
        observations = self.venv.reset()
        self.steps.append({"observations": observations.copy()})
        return observations

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        values = {"observations": observations, "rewards": rewards, "dones": dones, "infos": infos}
        self.steps.append(deepcopy(values))
        return observations, rewards, dones, infos


def learn(algorithm, envs):
    log = Log(envs)
    if algorithm == "A2C":
        learner = A2C("MlpPolicy", log, n_steps=5, seed=3, device="cpu", policy_kwargs={"net_arch": [16]})
    else:
        arguments = {"learning_starts": 50, "train_freq": 2, "batch_size": 16, "buffer_size": 300}
        learner = DQN("MlpPolicy", log, seed=3, device="cpu", policy_kwargs={"net_arch": [16]}, **arguments)
    learner.learn(600)
    return log.steps, learner.policy.state_dict()


def assert_same_info(info, expected):
    assert bool(info.get("TimeLimit.truncated", False)) == bool(expected["TimeLimit.truncated"])
    assert ("terminal_observation" in info) == ("terminal_observation" in expected)
    if "terminal_observation" in expected:
        np.testing.assert_array_equal(info["terminal_observation"], expected["terminal_observation"])
    assert set(info) - {"TimeLimit.truncated"} == set(expected) - {"TimeLimit.truncated"}
    for name in ("r", "l") if "episode" in expected else ():  # as SB3's monitor tells them
        assert info["episode"][name] == expected["episode"][name]


def assert_same_course(run, expected_run):
    (steps, weights), (expected_steps, expected_weights) = run, expected_run
    assert len(steps) == len(expected_steps) > 100
    for step, expected in zip(steps, expected_steps, strict=True):
        for name in set(expected) - {"infos"}:
            np.testing.assert_array_equal(step[name], expected[name])
            assert step[name].dtype == expected[name].dtype
        for info, expected_info in zip(step.get("infos", []), expected.get("infos", []), strict=True):
            assert_same_info(info, expected_info)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name


def endings(steps):
    infos = [info for step in steps[1:] for info in step["infos"] if "terminal_observation" in info]
    return {bool(info["TimeLimit.truncated"]) for info in infos}


@pytest.mark.parametrize("algorithm", ["A2C", "DQN"])
@pytest.mark.parametrize("make", [cart_poles, dark_rooms])
def test_learners_run_as_on_dummy_vec_env(algorithm, make):
    expected = learn(algorithm, VecMonitor(DummyVecEnv(make())))
    assert endings(expected[0]) == ({True, False} if make is cart_poles else {True})
    assert_same_course(learn(algorithm, SB3VecEnv(in_sync(make()))), expected)
    if make is dark_rooms:
        assert_same_course(learn(algorithm, SB3VecEnv(native_dark_rooms())), expected)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    for envs in (SyncVectorEnv(cart_poles(), autoreset_mode=mode), native_dark_rooms(autoreset_mode=mode)):
        with pytest.raises(ValueError, match="SAME_STEP"):
            SB3VecEnv(envs)


class Talkative(gym.Env):
    """
    Puts numbers, arrays, texts and dicts in its infos, some of them only now and then, by its `number`, and under a
    number as well as under names.
    """

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
            info["rare"] = -self.steps
            info["inner"]["rare"] = self.number
            info["rare_dict"] = {"x": self.number}
        return info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.float32([self.number]), {"fresh": self.number, "options": str(options), "inner": {"seed": str(seed)}}

    def step(self, action):
        self.steps += 1
        ended = self.steps == 3 + self.number
        return np.float32([self.steps]), 0.5, ended and self.number != 1, ended and self.number > 0, self._info()


def talkative_envs():
    return [lambda number=number: Talkative(number) for number in range(3)]


def assert_same_values(value, expected):
    if isinstance(expected, dict):
        assert set(value) == set(expected)
        for name, inner in expected.items():
            assert_same_values(value[name], inner)
    else:
        np.testing.assert_array_equal(value, expected)


def test_infos_are_each_environments_own():
    bridge, dummy = SB3VecEnv(in_sync(talkative_envs())), DummyVecEnv(talkative_envs())
    for envs in (bridge, dummy):
        envs.seed(7)
        envs.set_options({"difficulty": 1})
        envs.reset()
    assert_same_values(dict(enumerate(bridge.reset_infos)), dict(enumerate(dummy.reset_infos)))
    assert bridge.reset_infos[1] == {"fresh": 1, "options": "{'difficulty': 1}", "inner": {"seed": "8"}}
    ended = 0
    for _ in range(20):
        *returned, infos = bridge.step(np.zeros(3, dtype=np.int64))
        *expected, expected_infos = dummy.step(np.zeros(3, dtype=np.int64))
        for value, expected_value in zip(returned, expected, strict=True):
            np.testing.assert_array_equal(value, expected_value)
        for info, expected_info, done in zip(infos, expected_infos, returned[2], strict=True):
            assert (info.pop("episode", None) is not None) == done
            assert_same_values({"TimeLimit.truncated": False, **info}, expected_info)
        ended += returned[2].sum()
    assert ended >= 12
    assert_same_values(dict(enumerate(bridge.reset_infos)), dict(enumerate(dummy.reset_infos)))


def test_seed_and_options_hold_for_one_reset():
    envs = SB3VecEnv(in_sync(talkative_envs()))
    envs.seed(7)
    envs.set_options({"difficulty": 1})
    envs.reset()
    envs.reset()
    assert envs.reset_infos[0]["options"] == envs.reset_infos[0]["inner"]["seed"] == "None"


def test_single_environments_can_be_reached_into():
    envs = SB3VecEnv(in_sync(talkative_envs()))
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
    envs = SB3VecEnv(native_dark_rooms())
    assert envs.get_attr("render_mode") == [None] * 4
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    for reach, arguments in ((envs.get_attr, ["goal"]), (envs.set_attr, ["goal", 0]), (envs.env_method, ["render"])):
        with pytest.raises(AttributeError, match="natively"):
            reach(*arguments)


@pytest.mark.parametrize("native", [True, False])
def test_vec_monitor_sees_the_returns_of_episodes(native):
    envs = VecMonitor(SB3VecEnv(native_dark_rooms() if native else in_sync(dark_rooms())))
    envs.reset()
    for _ in range(7):
        infos = envs.step(np.full(4, 4))[-1]
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(0.0, 7), (0.0, 7), (7.0, 7), (0.0, 7)]


def test_frames_are_tiled_into_one_picture():
    envs = SB3VecEnv(native_dark_rooms(render_mode="rgb_array"))
    envs.reset()
    assert envs.render_mode == "rgb_array"
    assert envs.render().shape == (2 * 48, 2 * 48, 3)
