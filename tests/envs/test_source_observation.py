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

TASKS = [{"key": (0, 1), "door": (2, 2)}, {"key": (1, 1), "door": (0, 0)}]
BITS = {"has_key": {"type": "Discrete", "n": 2}, "door_open": {"type": "Discrete", "n": 2}}
NUMBER = {"number": {"type": "Discrete", "n": 3}}
VECTOR = {"vector": {"type": "Box", "shape": [2], "low": [-9, -9], "high": [9, 9], "dtype": "float32"}}
LINE = spaces.Box(-1.0, 2.0, (2,), np.float32)


class Informed(gym.Env):
    """Shows elements of a space, numbered by steps, and has a number and a vector in its infos, for a while."""

    action_space = spaces.Discrete(2)

    def __init__(self, elements, space, silent_after):
        self.elements, self.observation_space, self.silent_after = elements, space, silent_after

    def _seen(self):
        info = {"number": self.steps % 3, "vector": np.array([self.steps, -self.steps], dtype=np.float32)}
        return self.elements[self.steps % len(self.elements)], {} if self.steps >= self.silent_after else info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen()

    def step(self, action):
        self.steps += 1
        observation, info = self._seen()
        return observation, 0.0, self.steps == 4, False, info


def informed(space, elements, extra, silent_after=100):
    make = [lambda: Informed(elements, space, silent_after)] * 3
    return SourceObservation(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP), extra)


def rooms(native):
    kwargs = {"size": 3, "max_episode_steps": 7}
    family = TaskFamily("ad_hf/DarkKeyToDoor-v0", TASKS, kwargs, native_vector=native)
    return family.make_vec(family.tasks(), num_envs=4)


@pytest.mark.parametrize(
    ("space", "elements", "extra", "expected"),
    [
        (spaces.Discrete(5), [4, 0], NUMBER, spaces.MultiDiscrete([5, 3])),
        (spaces.MultiDiscrete([2, 7]), np.array([[1, 6], [0, 2]]), NUMBER, spaces.MultiDiscrete([2, 7, 3])),
        (spaces.MultiBinary(2), np.array([[1, 0]], dtype=np.int8), NUMBER, spaces.MultiDiscrete([2, 2, 3])),
        (
            LINE,
            np.array([[0.5, 2.0], [-1.0, 0.0]], dtype=np.float32),
            {**NUMBER, **VECTOR},
            spaces.Box(np.array([-1, -1, 0, -9, -9.0]), np.array([2, 2, 2, 9, 9.0]), dtype=np.float32),
        ),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box"],
)
def test_entries_are_appended_to_observations_of_every_kind(space, elements, extra, expected):
    envs = informed(space, elements, extra)
    assert envs.single_observation_space == expected
    assert envs.observation_space.shape == (3, *expected.shape)

    def appended(step):
        entries = [[step % 3], *([[step, -step]] if "vector" in extra else [])]
        return np.concatenate([np.ravel(elements[step % len(elements)]), *entries])

    observations, infos = envs.reset(seed=0)
    for steps in range(1, 10):
        np.testing.assert_array_equal(observations, [appended((steps - 1) % 4)] * 3)
        assert all(observation in expected for observation in observations)
        assert not {"number", "_number"} & set(infos)
        observations, _, terminations, _, infos = envs.step(np.zeros(3, dtype=np.int64))
        assert terminations.all() == (steps % 4 == 0)
        if terminations.all():
            np.testing.assert_array_equal(infos["final_obs"], [appended(4)] * 3)
            assert "number" not in infos["final_info"]


def test_native_and_single_environments_show_the_same():
    native, single = (SourceObservation(rooms(native), BITS) for native in (True, False))
    assert native.single_observation_space == single.single_observation_space == spaces.MultiDiscrete([3, 3, 2, 2])
    np.testing.assert_array_equal(native.reset(seed=4)[0], single.reset(seed=4)[0])
    rng, keys, final_keys = np.random.default_rng(0), 0, []
    for _ in range(200):
        actions = rng.integers(5, size=4)
        (*results, infos), (*expected, expected_infos) = native.step(actions), single.step(actions)
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, other)
        keys += results[0][:, 2].sum()
        for index in np.flatnonzero(results[3]):
            np.testing.assert_array_equal(infos["final_obs"][index], expected_infos["final_obs"][index])
            final_keys.append(infos["final_obs"][index][2])
            assert not results[0][index, 3]  # a new episode begins in front of a closed door
    assert keys > 20
    assert 0 < sum(final_keys) < len(final_keys) == 4 * (200 // 7)


def test_agent_does_not_see_what_the_source_sees():
    recorder = HistoryRecorder(rooms(True), 50)
    learner = TabularQ("MlpPolicy", SB3VecEnv(SourceObservation(recorder, BITS)), seed=0)
    learner.learn(4 * 50)
    assert learner.tables["q_values"].shape == (4, 36, 5)
    recorded = recorder.recorded()
    assert recorded.observations.shape == (4, 50, 2)
    assert all(finals.shape == (8, 2) for finals in recorded.final_observations)
    assert recorder.single_observation_space == spaces.MultiDiscrete([3, 3])


@pytest.mark.parametrize("silent_after", [0, 2, 4], ids=["at a reset", "at a step", "at an episode's end"])
def test_environments_without_the_entry_are_refused_with_those_that_there_are(silent_after):
    envs = informed(spaces.Discrete(4), [0, 1], NUMBER, silent_after)

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
        (LINE, {"frame": {**VECTOR["vector"], "shape": [1, 2]}}),
    ],
    ids=["image", "numbers to cells", "tuple", "bits in rows", "an image to numbers"],
)
def test_observations_that_nothing_can_be_appended_to_are_refused(space, extra):
    with pytest.raises(ValueError, match=rf"source_observation \['{next(iter(extra))}'\] cannot be appended"):
        informed(space, [space.sample()], extra)
