"""Environments of a family: attributes, wrappers, and spaces that are flattened."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import spaces_room  # noqa: F401  # registers its environment
from gymnasium import spaces

from ad_hf.envs.making import ChannelsLast, find_spec
from ad_hf.envs.task_family import FamilyConfig, TaskFamily

LIMIT = {"name": "gymnasium.wrappers.TimeLimit", "kwargs": {"max_episode_steps": 3}}


def make(env_id, tasks, env_kwargs=None, num_envs=None, **settings):
    family = TaskFamily(env_id, tasks, env_kwargs or {}, **settings)
    return family.make_vec(family.tasks(), num_envs=num_envs)


def test_attributes_of_tasks_or_of_all_are_set_and_decide_what_happens():
    tasks = [{"force_mag": 5.0}, {"force_mag": -10.0}, {}]
    shared = {"gravity": 2.0, "max_episode_steps": 7}
    envs = make("CartPole-v1", tasks, shared, num_envs=6, attributes=["force_mag", "gravity"])
    assert [env.unwrapped.force_mag for env in envs.envs] == [5.0, -10.0, 10.0] * 2
    assert {(env.unwrapped.gravity, env.spec.max_episode_steps) for env in envs.envs} == {(2.0, 7)}
    start = envs.reset(seed=0)[0]
    pushed = envs.step(np.ones(6, dtype=int))[0]
    assert np.sign(pushed - start)[:, 1].tolist() == [1, -1, 1] * 2
    with pytest.raises(ValueError, match=r"no attribute 'forse_mag'; .* numbers: force_mag, gravity, .*tau"):
        make("CartPole-v1", [{"forse_mag": 1.0}], attributes=["forse_mag"])


class Cells(gym.Env):
    """Keeps its arguments as they come."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def __init__(self, goal=(0, 0), path=None, **others):
        self.arguments = {"goal": goal, "path": path, **others}


def test_a_list_of_a_recipe_is_a_tuple_where_the_constructors_default_is_one():
    gym.register("test/Cells-v0", Cells)
    (env,) = make("test/Cells-v0", [{"goal": [1, 2], "path": [3], "rest": [4]}]).envs
    assert env.unwrapped.arguments == {"goal": (1, 2), "path": [3], "rest": [4]}


def test_an_environment_does_not_share_its_attributes_values():
    tasks = [{"pay": [1.0]}]
    first, second = make("SpacesRoom-v0", tasks, num_envs=2, attributes=["pay"]).envs
    first.unwrapped.pay[0] = 5.0
    assert second.unwrapped.pay == tasks[0]["pay"] == [1.0]


def test_channels_last_turns_frames():
    class Frames(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (3, 8, 9), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

    env = ChannelsLast(Frames())
    assert env.observation_space == spaces.Box(0, 255, (8, 9, 3), np.uint8)
    assert env.reset()[0] in env.observation_space
    with pytest.raises(ValueError, match=r"turns frames .*got observations of Box\(\[-4"):
        ChannelsLast(gym.make("CartPole-v1"))


def test_wrappers_are_applied_in_order():
    scale = {"name": "gymnasium.wrappers.RescaleAction", "kwargs": {"min_action": -1.0, "max_action": 1.0}}
    time = "gymnasium.wrappers.TimeAwareObservation"
    family = TaskFamily("Pendulum-v1", [{"g": 5.0}], wrappers=[LIMIT, scale, time])
    assert family.wrappers == [LIMIT, scale, {"name": time, "kwargs": {}}]
    envs = family.make_vec(family.tasks(), seed=0)
    assert str(envs.envs[0]).startswith("<TimeAwareObservation<RescaleAction<TimeLimit<")
    assert envs.single_observation_space.shape == (4,)
    assert envs.single_action_space.high.tolist() == [1.0]
    envs.reset(seed=0)
    assert [bool(envs.step(envs.action_space.sample())[3][0]) for _ in range(6)] == [False, False, True] * 2
    assert str(make("CartPole-v1", [{}]).envs[0]) == str(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        ("gymnasium.wrappers.NoSuchWrapper", "NoSuchWrapper.*'gymnasium.wrappers' has no attribute 'NoSuchWrapper'"),
        ("no_such_module.Wrapper", "no_such_module"),
        (3, "must be text or a mapping, got 3"),
        ({"kwargs": {}}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwarg": {}}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwargs": [3]}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwargs": {"max_steps": 3}}, "TimeLimit cannot be called.*max_"),
    ],
)
def test_bad_wrappers_are_refused_by_number(wrapper, named):
    with pytest.raises(ValueError, match=rf"family\.wrappers\[1\].*{named}"):
        TaskFamily("CartPole-v1", [{}], wrappers=[LIMIT, wrapper])


def test_dict_and_tuple_observations_are_flattened_and_dict_actions_refused():
    for observe, size in (("dict", 5), ("tuple", 6)):
        envs = make("SpacesRoom-v0", [{"goal": 0}, {"goal": 2}], {"observe": observe})
        assert isinstance(envs.single_observation_space, spaces.Box)
        assert envs.single_observation_space.shape == (size,)
        assert envs.reset(seed=0)[0][:, :3].tolist() == [[0, 1, 0]] * 2
    time = {"name": "gymnasium.wrappers.FilterObservation", "kwargs": {"filter_keys": ["time"]}}
    assert make("SpacesRoom-v0", [{}], wrappers=[time]).single_observation_space.shape == (2,)
    with pytest.raises(ValueError, match=r"SpacesRoom-v0 has actions of Dict.*ActionWrapper"):
        make("SpacesRoom-v0", [{"act": "dict"}])


def test_a_familys_settings_reach_the_environments_through_a_pickle():
    config = FamilyConfig(
        "CartPole-v1",
        random={"num_tasks": 3, "values": {"tau": {"low": 0.01, "high": 0.04}}},
        wrappers=["gymnasium.wrappers.TimeAwareObservation"],
        attributes=["tau"],
        optimal_return="ad_hf.envs.dark_room.optimal_return",
    )
    family = pickle.loads(pickle.dumps(TaskFamily(config)))
    envs = family.make_vec(family.tasks())
    assert [env.unwrapped.tau for env in envs.envs] == [task.kwargs["tau"] for task in family.tasks()]
    assert pickle.loads(pickle.dumps(envs.env_fns[1]))().unwrapped.tau == family.tasks()[1].kwargs["tau"]
    assert envs.single_observation_space.shape == (5,)


def test_ids_that_name_their_module_are_known_to_gymnasium():
    assert find_spec("spaces_room:SpacesRoom-v0").max_episode_steps == 5
    assert find_spec("CartPole-v1").max_episode_steps == 500
    for unknown in ("NoSuchRoom-v0", "spaces_room:NoSuchRoom-v0", "no_such_module:SpacesRoom-v0"):
        assert find_spec(unknown) is None
