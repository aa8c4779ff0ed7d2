"""Every native world: gymnasium's and Stable-Baselines3's contracts, vectors against single environments, refusals."""

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


def tabular_mdp(rng):
    return {"num_states": int(rng.integers(8, 20)), "num_actions": 4}, {"task_seed": rng.integers(9, size=5)}


def watermaze(rng):
    kwargs = {name: bool(rng.integers(2)) for name in ("random_heading", "terminate_on_reach")}
    height, width = rng.integers(1, 20, size=2).tolist()
    # near the start, so that some are reached
    return {"height": height, "width": width, **kwargs}, {"platform": rng.uniform(-0.4, 0.4, size=(5, 2))}


WORLDS = {
    "AdversarialBandit": bandit,
    "DarkRoom": dark_room,
    "DarkKeyToDoor": key_to_door,
    "TabularMDP": tabular_mdp,
    "Watermaze": watermaze,
}


def make_native(world, num_envs=3, **kwargs):
    return gym.make_vec(f"ad_hf/{world}-v0", num_envs, vectorization_mode="vector_entry_point", **kwargs)


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
@pytest.mark.parametrize(
    ("world", "kwargs"),
    [
        *((world, {}) for world in WORLDS),
        ("DarkRoom", {"size": 1}),
        ("DarkRoom", {"goal": (3, 1), "sparse_reward": True}),
    ],
)
def test_single_environments_keep_both_libraries_contracts(world, kwargs):
    env = gym.make(f"ad_hf/{world}-v0", **kwargs)
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
    native = make_native(world, 5, autoreset_mode=mode, **kwargs, **tasks)
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


@pytest.mark.parametrize("world", WORLDS)
def test_arrays_that_were_handed_out_are_the_callers(world):
    """One of two equal vectors returns the same, and keeps it, whatever happens to the arrays of the other."""
    kwargs, tasks = WORLDS[world](np.random.default_rng(1))
    scribbled, plain = (make_native(world, 5, max_episode_steps=3, **kwargs, **tasks) for _ in range(2))
    kept = []
    for step in range(10):
        actions = plain.action_space.sample()
        returned = [envs.step(actions) if step else envs.reset(seed=0) for envs in (scribbled, plain)]
        arrays = [[*values[:-1], *values[-1].values()] for values in returned]
        for array, own in zip(*arrays, strict=True):
            if isinstance(array, np.ndarray):
                np.testing.assert_array_equal(array, own)
                kept.append((own, own.copy()))
                array[...] = 0
    for own, copy in kept:
        np.testing.assert_array_equal(own, copy)


@pytest.mark.parametrize("world", ["DarkRoom", "DarkKeyToDoor", "Watermaze"])
def test_pictures_of_a_vector_are_those_of_its_environments(world):
    env_id, kwargs = f"ad_hf/{world}-v0", {"render_mode": "rgb_array"}
    native = make_native(world, 3, **kwargs)
    single = SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    for envs in (native, single):
        envs.reset(seed=0)
        envs.step(np.arange(3))
    np.testing.assert_array_equal(native.render(), single.render())
    assert make_native(world).render() is None
    assert gym.make(env_id).unwrapped.render() is None


@pytest.mark.parametrize(
    ("world", "kwargs", "message"),
    [
        *(("DarkRoom", {"goal": goal}, "goal must") for goal in [(9, 0), (0, -1), (0, 0, 0), 3, (0.5, 1.0), "up"]),
        ("DarkRoom", {"goal": np.zeros((2, 2), dtype=int)}, r"goal must .*\(., 2\)"),
        ("DarkRoom", {"size": 0}, "size must be at least 1, got 0"),
        *(("DarkKeyToDoor", {name: (9, 0)}, f"^{name} must lie in the room") for name in ("key", "door")),
        *(("DarkKeyToDoor", {name: (0.5, 1)}, f"^{name} must hold integers") for name in ("key", "door")),
        *(
            ("Watermaze", {"platform": each}, "platform must")
            for each in [(0.8, 0.8), (float("nan"), 0), (1, 2, 3), "a"]
        ),
        ("Watermaze", {"height": 0, "width": 12}, "height and width must be at least 1, got 0 and 12"),
        ("AdversarialBandit", {"rewarding": "both"}, "rewarding must be one of odd, even, uniform, got 'both'"),
        ("AdversarialBandit", {"task_seed": -1}, "task_seed at least 0"),
        ("TabularMDP", {"num_states": 1}, "num_states and num_actions of at least 2.* got 1, 4, 0"),
        ("TabularMDP", {"moves": ["knight"]}, r"moves must hold some of grid, chain, graph, got \('knight',\)"),
        ("TabularMDP", {"pays": []}, "pays must hold some of goal, pairs, cost"),
        ("TabularMDP", {"num_actions": 2, "pays": ["cost"], "horizon": 1}, "1000 draws of the world 0 .* in 1 steps"),
    ],
)
def test_impossible_worlds_are_refused_by_name(world, kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make(f"ad_hf/{world}-v0", **kwargs)
    with pytest.raises(ValueError, match=message):
        make_native(world, **kwargs)


def test_episodes_have_steps_and_end_before_the_next_one():
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        make_native("DarkRoom", max_episode_steps=0)
    envs = make_native("DarkRoom", 2, max_episode_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    assert envs.step(np.zeros(2, dtype=int))[3].all()
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(RuntimeError, match="reset_mask"):
        envs.step(np.zeros(2, dtype=int))
