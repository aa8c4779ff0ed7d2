"""Environments of a family: attributes, wrappers, and spaces that are flattened."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import spaces_room  # noqa: F401  # registers its environment
from gymnasium import spaces

from ad_hf.envs.making import ChannelsLast, find_spec
from ad_hf.envs.task_family import FamilyConfig, TaskFamily

TASKS = [{"force_mag": 5.0, "gravity": 3.0}, {"force_mag": -10.0, "gravity": 9.8}]
PHYSICS = {"attributes": ["force_mag", "gravity"], "env_kwargs": {"max_episode_steps": 7}}
LIMIT = {"name": "gymnasium.wrappers.TimeLimit", "kwargs": {"max_episode_steps": 3}}


def cart_poles(tasks=TASKS, **settings):
    return TaskFamily("CartPole-v1", tasks, **{**PHYSICS, **settings})


def test_attributes_are_set_and_decide_what_happens():
    family = cart_poles()
    envs = family.make_vec(family.tasks(), num_envs=4)
    assert [env.unwrapped.force_mag for env in envs.envs] == [5.0, -10.0] * 2
    assert [env.unwrapped.gravity for env in envs.envs] == [3.0, 9.8] * 2
    assert {env.spec.max_episode_steps for env in envs.envs} == {7}
    start = envs.reset(seed=0)[0]
    pushed = envs.step(np.ones(4, dtype=int))[0]
    assert np.sign(pushed - start)[:, 1].tolist() == [1, -1, 1, -1]


def test_attributes_can_be_shared_by_all_tasks():
    family = cart_poles([{"force_mag": 1.0}, {}], env_kwargs={"gravity": 2.0, "max_episode_steps": 7})
    envs = family.make_vec(family.tasks())
    assert [(env.unwrapped.force_mag, env.unwrapped.gravity) for env in envs.envs] == [(1.0, 2.0), (10.0, 2.0)]


def test_an_attribute_that_does_not_exist_is_refused_with_the_numbers_that_do():
    family = cart_poles([{"forse_mag": 1.0}], attributes=["forse_mag"])
    with pytest.raises(
        ValueError, match=r"no attribute 'forse_mag'; those that are numbers: force_mag, gravity, .*tau"
    ):
        family.make_vec(family.tasks())
    with pytest.raises(ValueError, match=r"family\.attributes.* for tau"):
        cart_poles(attributes=["tau"])


def test_an_environment_does_not_share_what_its_attributes_are_set_to():
    tasks = [{"pay": [1.0]}]
    family = TaskFamily("SpacesRoom-v0", tasks, attributes=["pay"])
    first, second = family.make_vec(family.tasks(), num_envs=2).envs
    first.unwrapped.pay[0] = 5.0
    assert second.unwrapped.pay == tasks[0]["pay"] == [1.0]


def test_channels_last_turns_frames():
    class Frames(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (3, 8, 9), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

    env = ChannelsLast(Frames())
    seen, _ = env.reset()
    assert env.observation_space == spaces.Box(0, 255, (8, 9, 3), np.uint8)
    assert seen in env.observation_space
    with pytest.raises(ValueError, match=r"turns frames .*got observations of Box\(\[-4"):
        ChannelsLast(gym.make("CartPole-v1"))


def test_wrappers_are_applied_in_order():
    scale = {"name": "gymnasium.wrappers.RescaleAction", "kwargs": {"min_action": -1.0, "max_action": 1.0}}
    repeated = "gymnasium.wrappers.TimeAwareObservation"
    family = TaskFamily("Pendulum-v1", [{"g": 5.0}], wrappers=[LIMIT, scale, repeated])
    (env,) = family.make_vec(family.tasks()).envs
    names = []
    while env is not env.unwrapped:
        names.append(type(env).__name__)
        env = env.env
    assert names[:3] == ["TimeAwareObservation", "RescaleAction", "TimeLimit"]
    envs = family.make_vec(family.tasks(), seed=0)
    assert envs.single_observation_space.shape == (4,)
    assert envs.single_action_space.high.tolist() == [1.0]
    envs.reset(seed=0)
    assert [bool(envs.step(envs.action_space.sample())[3][0]) for _ in range(6)] == [False, False, True] * 2
    assert family.wrappers == [LIMIT, scale, {"name": repeated, "kwargs": {}}]


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        ("gymnasium.wrappers.NoSuchWrapper", "NoSuchWrapper.*which is none"),
        ("no_such_module.Wrapper", "no_such_module"),
        ({"kwargs": {}}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwarg": {}}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwargs": [3]}, "a name and kwargs"),
        ({"name": LIMIT["name"], "kwargs": {"max_steps": 3}}, "TimeLimit cannot be called.*max_"),
    ],
)
def test_bad_wrappers_are_refused_by_number(wrapper, named):
    with pytest.raises(ValueError, match=rf"family\.wrappers\[1\].*{named}"):
        TaskFamily("CartPole-v1", TASKS, wrappers=[LIMIT, wrapper])


@pytest.mark.parametrize("settings", [{"wrappers": [LIMIT]}, {"attributes": ["size"]}])
def test_native_vectors_take_neither(settings):
    with pytest.raises(ValueError, match="native_vector makes none"):
        TaskFamily("ad_hf/DarkRoom-v0", [{"goal": [0, 0]}], {"size": 3}, native_vector=True, **settings)


@pytest.mark.parametrize(("observe", "size"), [("dict", 5), ("tuple", 6)])
def test_dict_and_tuple_observations_are_flattened(observe, size):
    family = TaskFamily("SpacesRoom-v0", [{"goal": 0}, {"goal": 2}], {"observe": observe})
    envs = family.make_vec(family.tasks())
    assert isinstance(envs.single_observation_space, spaces.Box)
    assert envs.single_observation_space.shape == (size,)
    observations = envs.reset(seed=0)[0]
    assert observations[:, :3].tolist() == [[0, 1, 0]] * 2
    wrapped = TaskFamily(
        "SpacesRoom-v0",
        [{}],
        wrappers=[{"name": "gymnasium.wrappers.FilterObservation", "kwargs": {"filter_keys": ["time"]}}],
    )
    assert wrapped.make_vec(wrapped.tasks()).single_observation_space.shape == (2,)


def test_dict_actions_are_refused():
    family = TaskFamily("SpacesRoom-v0", [{"act": "dict"}])
    with pytest.raises(ValueError, match=r"SpacesRoom-v0 has actions of Dict.*ActionWrapper"):
        family.make_vec(family.tasks())


def test_a_recipes_settings_reach_the_environments_through_a_pickle():
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


def test_a_family_without_settings_makes_what_gymnasium_makes():
    family = TaskFamily("CartPole-v1", [{}])
    (made,) = family.make_vec(family.tasks()).envs
    assert str(made) == str(gym.make("CartPole-v1"))
