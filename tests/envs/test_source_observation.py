"""What a source sees beside the agent's observation: native and single environments give the same."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.task_family import TaskFamily
from ad_hf.sources.recorder import HistoryRecorder
from ad_hf.sources.tabular import TabularQ

ROOM = {"size": 3, "max_episode_steps": 7}
TASKS = [{"key": (0, 1), "door": (2, 2)}, {"key": (1, 1), "door": (0, 0)}]
BITS = {"has_key": {"type": "Discrete", "n": 2}, "door_open": {"type": "Discrete", "n": 2}}


class Told(gym.Env):
    """Shows elements of a space, numbered by steps, and tells a number and a vector beside them."""

    action_space = spaces.Discrete(2)

    def __init__(self, elements, space, silent_after=100):
        self.elements, self.observation_space, self.silent_after = elements, space, silent_after

    def _told(self):
        told = {"number": self.steps % 3, "vector": np.array([self.steps, -self.steps], dtype=np.float32)}
        return self.elements[self.steps % len(self.elements)], {} if self.steps >= self.silent_after else told

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._told()

    def step(self, action):
        self.steps += 1
        observation, info = self._told()
        return observation, 0.0, self.steps == 4, False, info


def told(space, elements, extra, num_envs=3, **kwargs):
    make = [lambda: Told(elements, space, **kwargs) for _ in range(num_envs)]
    return SourceObservation(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP), extra)


def rooms(native):
    family = TaskFamily("ad_hf/DarkKeyToDoor-v0", TASKS, ROOM, native_vector=native)
    return family.make_vec(family.tasks(), num_envs=4)


NUMBER = {"number": {"type": "Discrete", "n": 3}}
VECTOR = {"vector": {"type": "Box", "shape": [2], "low": [-9, -9], "high": [9, 9], "dtype": "float32"}}


@pytest.mark.parametrize(
    ("space", "elements", "extra", "expected"),
    [
        (spaces.Discrete(5), [4, 0], NUMBER, spaces.MultiDiscrete([5, 3])),
        (spaces.MultiDiscrete([2, 7]), [np.array([1, 6]), np.array([0, 2])], NUMBER, spaces.MultiDiscrete([2, 7, 3])),
        (spaces.MultiBinary(2), [np.array([1, 0], dtype=np.int8)] * 2, NUMBER, spaces.MultiDiscrete([2, 2, 3])),
        (
            spaces.Box(-1.0, 2.0, (2,), np.float32),
            [np.array([0.5, 2.0], dtype=np.float32), np.array([-1.0, 0.0], dtype=np.float32)],
            {**NUMBER, **VECTOR},
            spaces.Box(np.array([-1, -1, 0, -9, -9.0]), np.array([2, 2, 2, 9, 9.0]), dtype=np.float32),
        ),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box"],
)
def test_entries_are_appended_to_observations_of_every_kind(space, elements, extra, expected):
    envs = told(space, elements, extra)
    assert envs.single_observation_space == expected
    assert envs.observation_space.shape == (3, *expected.shape)
    plain = SyncVectorEnv([lambda: Told(elements, space)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)

    def appended(observation, step):
        parts = [np.ravel(observation), [step % 3], *([[step, -step]] if "vector" in extra else [])]
        return np.concatenate(parts)

    observations, infos = envs.reset(seed=0)
    inner, _ = plain.reset(seed=0)
    for steps in range(1, 10):
        np.testing.assert_array_equal(observations, [appended(each, (steps - 1) % 4) for each in inner])
        assert all(observation in expected for observation in observations)
        assert not {"number", "_number"} & set(infos)
        actions = np.zeros(3, dtype=np.int64)
        observations, _, terminations, _, infos = envs.step(actions)
        inner, _, _, _, _ = plain.step(actions)
        assert terminations.all() == (steps % 4 == 0)
        if terminations.all():
            assert infos["final_obs"].shape == observations.shape
            for final in infos["final_obs"]:
                np.testing.assert_array_equal(final, appended(elements[4 % len(elements)], 4))
            assert "number" not in infos["final_info"]


def test_native_and_single_environments_show_the_same():
    native, single = (SourceObservation(rooms(native), BITS) for native in (True, False))
    assert native.single_observation_space == single.single_observation_space == spaces.MultiDiscrete([3, 3, 2, 2])
    np.testing.assert_array_equal(native.reset(seed=4)[0], single.reset(seed=4)[0])
    rng, keys, ends, last_keys = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        actions = rng.integers(5, size=4)
        (seen, *results, infos), (other, *other_results, other_infos) = native.step(actions), single.step(actions)
        np.testing.assert_array_equal(seen, other)
        for result, other_result in zip(results, other_results, strict=True):
            np.testing.assert_array_equal(result, other_result)
        keys += seen[:, 2].sum()
        ended = results[1] | results[2]
        for index in np.flatnonzero(ended):
            ends += 1
            np.testing.assert_array_equal(infos["final_obs"][index], other_infos["final_obs"][index])
            last_keys += infos["final_obs"][index][2]
            assert not seen[index, 3]  # a new episode begins in front of a closed door
    assert keys > 20
    assert ends == 4 * (200 // 7)
    assert 0 < last_keys < ends


def test_agent_does_not_see_what_the_source_sees():
    recorder = HistoryRecorder(rooms(True), 50)
    learner = TabularQ("MlpPolicy", SB3VecEnv(SourceObservation(recorder, BITS)), seed=0)
    learner.learn(4 * 50)
    assert learner.tables["q_values"].shape == (4, 36, 5)
    recorded = recorder.recorded()
    assert recorded.observations.shape == (4, 50, 2)
    assert all(finals.shape == (8, 2) for finals in recorded.final_observations)
    assert recorder.single_observation_space == spaces.MultiDiscrete([3, 3])


@pytest.mark.parametrize("silent_after", [0, 2, 4])
def test_environment_that_does_not_tell_is_refused_with_what_it_tells(silent_after):
    """At a reset, at a step, and at an episode's end."""
    envs = told(spaces.Discrete(4), [0, 1], NUMBER, silent_after=silent_after)

    def play():
        envs.reset()
        for _ in range(4):
            envs.step(np.zeros(3, dtype=np.int64))

    with pytest.raises(ValueError, match=r"gives no info\['number'\] at every reset and step"):
        play()
    with pytest.raises(ValueError, match=r"info\['key'\].*it gives door_open, has_key"):
        SourceObservation(rooms(True), {"key": BITS["has_key"]}).reset()


@pytest.mark.parametrize(
    ("space", "extra"),
    [
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), NUMBER),
        (spaces.Discrete(3), VECTOR),
        (spaces.Tuple([spaces.Discrete(2)]), NUMBER),
        (spaces.MultiBinary([2, 2]), NUMBER),
        (
            spaces.Box(0, 1, (2,)),
            {"frame": {"type": "Box", "shape": [1, 1], "low": [0], "high": [1], "dtype": "uint8"}},
        ),
    ],
    ids=["image", "numbers to cells", "tuple", "bits in rows", "an image to numbers"],
)
def test_observations_that_nothing_can_be_appended_to_are_refused(space, extra):
    with pytest.raises(ValueError, match=rf"source_observation \['{next(iter(extra))}'\] cannot be appended"):
        told(space, [space.sample()], extra)
