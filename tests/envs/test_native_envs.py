"""Every native world: gymnasium's and Stable-Baselines3's contracts, and vectors against single environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import ad_hf.envs  # noqa: F401  registers the environments

MODES = list(AutoresetMode)


def room_tasks(rng, size, names):
    return {name: rng.integers(size, size=(5, 2)) for name in names}


def dark_room(rng):
    size = int(rng.integers(1, 6))
    return {"size": size, "sparse_reward": bool(rng.integers(2))}, room_tasks(rng, size, ["goal"])


def key_to_door(rng):
    size = int(rng.integers(1, 5))
    return {"size": size}, room_tasks(rng, size, ["key", "door"])


def bandit(rng):
    tasks = {"rewarding": rng.choice(["odd", "even", "uniform"], size=5), "task_seed": rng.integers(4, size=5)}
    return {"num_arms": int(rng.integers(1, 12))}, tasks


def watermaze(rng):
    kwargs = {name: bool(rng.integers(2)) for name in ("random_heading", "terminate_on_reach")}
    height, width = rng.integers(1, 20, size=2).tolist()
    # near the start, so that some are reached
    return {"height": height, "width": width, **kwargs}, {"platform": rng.uniform(-0.4, 0.4, size=(5, 2))}


WORLDS = {
    "AdversarialBandit": bandit,
    "DarkRoom": dark_room,
    "DarkKeyToDoor": key_to_door,
    "Watermaze": watermaze,
}


def assert_same_infos(native, single):
    """Infos of a native vector environment hold what SyncVectorEnv's do, where those are valid."""
    if single.get("final_info") == {}:  # of which there is nothing to say
        single = {name: value for name, value in single.items() if name not in ("final_info", "_final_info")}
    assert set(native) == set(single)
    for name, value in native.items():
        if name.startswith("_"):
            np.testing.assert_array_equal(value, single[name])
        elif isinstance(value, dict):
            assert_same_infos(value, single[name])
        else:
            for index in np.flatnonzero(single[f"_{name}"]):
                np.testing.assert_array_equal(value[index], single[name][index])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("world", WORLDS)
def test_single_environments_keep_both_libraries_contracts(world):
    env = gym.make(f"ad_hf/{world}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    check_env_for_sb3(env.unwrapped, warn=True)


@pytest.mark.parametrize("world", WORLDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_vector_lives_through_what_single_environments_do(world, data):
    number = data.draw(st.integers(0, 2**32), label="seed")
    mode = data.draw(st.sampled_from(MODES), label="autoreset mode")
    limit = data.draw(st.integers(1, 9), label="max_episode_steps")
    rng = np.random.default_rng(number)
    kwargs, tasks = WORLDS[world](rng)
    env_id, kwargs = f"ad_hf/{world}-v0", {**kwargs, "max_episode_steps": limit}
    native = gym.make_vec(
        env_id, num_envs=5, vectorization_mode="vector_entry_point", autoreset_mode=mode, **kwargs, **tasks
    )
    own = [{name: values[index].tolist() for name, values in tasks.items()} for index in range(5)]
    single = SyncVectorEnv([lambda task=task: gym.make(env_id, **kwargs, **task) for task in own], autoreset_mode=mode)
    assert native.observation_space == single.observation_space
    assert native.action_space == single.action_space

    def both(method, *args, **arguments):
        *returned, infos = getattr(native, method)(*args, **arguments)
        *expected, expected_infos = getattr(single, method)(*args, **arguments)
        for value, other in zip(returned, expected, strict=True):
            np.testing.assert_array_equal(value, other)
            assert value.dtype == other.dtype
        assert_same_infos(infos, expected_infos)
        return returned

    both("reset", seed=number % 1000)
    for _ in range(4 * limit):
        if rng.random() < 0.1:
            both("reset", seed=data.draw(st.sampled_from([None, 3, [5, None, 7, 8, None]])))
        actions = rng.integers(native.single_action_space.n, size=5)
        _, _, terminations, truncations = both("step", actions)
        mask = rng.random(5) < 0.1  # so that episodes end apart
        if mode is AutoresetMode.DISABLED:
            mask |= terminations | truncations
        if mask.any():
            for envs in (native, single):
                envs.reset(options={"reset_mask": mask.copy()})
