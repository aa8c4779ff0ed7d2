"""Dark Room: gymnasium's contract, and the native vector environment against gymnasium's own vectorisation."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.dark_room import CELL_PIXELS, MOVES, goal_distance, optimal_return

ENV_ID = "ad_hf/DarkRoom-v0"
LEFT, RIGHT, UP, DOWN, STAY = range(5)


def make_native(goals, **kwargs):
    return gym.make_vec(ENV_ID, num_envs=len(goals), vectorization_mode="vector_entry_point", goal=goals, **kwargs)


def make_sync(goals, autoreset_mode, **kwargs):
    return SyncVectorEnv(
        [lambda goal=goal: gym.make(ENV_ID, goal=goal, **kwargs) for goal in goals.tolist()],
        autoreset_mode=autoreset_mode,
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kwargs", [{}, {"size": 1}, {"size": 4, "goal": (3, 1), "sparse_reward": True}])
def test_single_environment_keeps_gymnasiums_contract(kwargs):
    check_env(gym.make(ENV_ID, render_mode="rgb_array", **kwargs).unwrapped)


@pytest.mark.parametrize("autoreset_mode", list(AutoresetMode))
@pytest.mark.parametrize("sparse_reward", [False, True])
@pytest.mark.parametrize(("size", "max_episode_steps"), [(1, 3), (3, 1), (4, 7), (9, 20)])
def test_native_vector_env_agrees_with_sync_vector_env(autoreset_mode, sparse_reward, size, max_episode_steps):
    rng = np.random.default_rng(size)
    goals = rng.integers(size, size=(6, 2))
    goals[0] = size // 2  # one goal under the start
    kwargs = {"size": size, "sparse_reward": sparse_reward, "max_episode_steps": max_episode_steps}
    native = make_native(goals, autoreset_mode=autoreset_mode, **kwargs)
    sync = make_sync(goals, autoreset_mode, **kwargs)
    assert native.single_observation_space == sync.single_observation_space
    assert native.single_action_space == sync.single_action_space
    assert native.observation_space == sync.observation_space
    assert native.metadata["autoreset_mode"] is sync.metadata["autoreset_mode"] is autoreset_mode

    np.testing.assert_array_equal(native.reset(seed=0)[0], sync.reset(seed=0)[0])
    episodes, rewarded = 0, 0.0
    for step in range(8 * max_episode_steps + 5):
        if step == 3 * max_episode_steps + 1:  # a reset of all rooms in the middle of episodes
            np.testing.assert_array_equal(native.reset()[0], sync.reset()[0])
        mask = rng.random(len(goals)) < 0.5 / max_episode_steps  # resets of some rooms, so that episodes end apart
        if mask.any():
            resets = [envs.reset(options={"reset_mask": mask.copy()})[0] for envs in (native, sync)]
            np.testing.assert_array_equal(*resets)
        actions = rng.integers(len(MOVES), size=len(goals))
        *returned, infos = native.step(actions)
        *expected, expected_infos = sync.step(actions)
        for value, expected_value in zip(returned, expected, strict=True):
            np.testing.assert_array_equal(value, expected_value)
            assert value.dtype == expected_value.dtype
        ended = returned[2] | returned[3]
        episodes, rewarded = episodes + ended.sum(), rewarded + returned[1].sum()
        if autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            np.testing.assert_array_equal(infos["_final_obs"], expected_infos["_final_obs"])
            np.testing.assert_array_equal(infos["_final_obs"], ended)
            for index in np.flatnonzero(ended):
                np.testing.assert_array_equal(infos["final_obs"][index], expected_infos["final_obs"][index])
        else:
            assert "final_obs" not in infos
        if autoreset_mode is AutoresetMode.DISABLED and ended.any():
            resets = [envs.reset(options={"reset_mask": ended.copy()})[0] for envs in (native, sync)]
            np.testing.assert_array_equal(*resets)
    assert episodes >= 2 * len(goals)
    assert rewarded > 0


def test_returned_arrays_do_not_change_with_later_steps():
    envs = make_native(np.array([[0, 0], [2, 2]]), size=3, max_episode_steps=2)
    returned = [envs.reset(seed=0)[0]]
    kept = [returned[0].copy()]
    for _ in range(5):
        observations, rewards, terminations, truncations, infos = envs.step(np.array([LEFT, UP]))
        arrays = [observations, rewards, terminations, truncations, *infos.values()]
        returned += arrays
        kept += [array.copy() for array in arrays]
    for array, copy in zip(returned, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_step_after_an_ended_episode_without_autoreset_is_refused():
    envs = make_native(np.array([[0, 0], [1, 1]]), max_episode_steps=2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    for _ in range(2):
        truncations = envs.step(np.array([STAY, STAY]))[3]
    assert truncations.all()
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(RuntimeError, match="reset_mask"):
        envs.step(np.array([STAY, STAY]))


@pytest.mark.parametrize(
    ("action", "cell"), [(LEFT, (0, 2)), (RIGHT, (4, 2)), (UP, (2, 4)), (DOWN, (2, 0)), (STAY, (2, 2))]
)
def test_actions_move_and_walls_stop(action, cell):
    env = gym.make(ENV_ID, size=5)
    assert tuple(env.reset(seed=0)[0]) == (2, 2)
    for _ in range(4):
        observation = env.step(action)[0]
    assert tuple(observation) == cell


def test_time_limit_truncates_after_twenty_steps_and_never_terminates():
    env = gym.make(ENV_ID, goal=(4, 4))
    env.reset(seed=0)
    steps = [env.step(STAY) for _ in range(20)]
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * 19 + [True]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert sum(reward for _, reward, *_ in steps) == 20.0


def best_return_by_dynamic_programming(size, goal, max_episode_steps, sparse_reward):
    """Value iteration over (whether the goal has been paid, x, y) for the steps that are left."""
    cells = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1)
    reached = np.clip(cells[:, :, None] + MOVES, 0, size - 1)  # (size, size, actions, 2)
    on_goal = (reached == goal).all(axis=-1)
    x, y = reached[..., 0], reached[..., 1]
    values = np.zeros((2, size, size))
    for _ in range(max_episode_steps):
        unpaid = np.where(on_goal, 1.0 + values[1, x, y], values[0, x, y]).max(axis=-1)
        paid = (on_goal * (not sparse_reward) + values[1, x, y]).max(axis=-1)
        values = np.stack([unpaid, paid])
    return values[0, size // 2, size // 2]


@pytest.mark.parametrize("sparse_reward", [False, True])
@pytest.mark.parametrize(("size", "max_episode_steps"), [(5, 20), (5, 3), (9, 20)])
def test_optimal_return_is_that_of_dynamic_programming(size, max_episode_steps, sparse_reward):
    for goal in itertools.product(range(size), repeat=2):
        kwargs = {"size": size, "max_episode_steps": max_episode_steps, "sparse_reward": sparse_reward}
        assert optimal_return(goal=goal, **kwargs) == best_return_by_dynamic_programming(goal=goal, **kwargs), goal


def test_optimal_return_of_the_papers_room_is_about_sixteen_and_a_half():
    goals = list(itertools.product(range(9), repeat=2))
    assert np.mean([optimal_return(size=9, goal=goal) for goal in goals]) == pytest.approx(16.54, abs=0.01)
    assert goal_distance(size=9, goal=(0, 8)) == 8
    assert goal_distance(size=9, goal=(4, 4)) == 0


def cell_of(frame, size, x, y):
    row = (size - 1 - y) * CELL_PIXELS
    return frame[row : row + CELL_PIXELS, x * CELL_PIXELS : (x + 1) * CELL_PIXELS]


def test_frames_show_goal_and_agent_with_y_pointing_up():
    size, goal, start = 5, (0, 4), (2, 2)
    env = gym.make(ENV_ID, size=size, goal=goal, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(UP)
    after = env.render()
    assert before.shape == (size * CELL_PIXELS, size * CELL_PIXELS, 3)
    assert before.dtype == np.uint8
    empty = cell_of(before, size, 4, 0)
    for cell in itertools.product(range(size), repeat=2):
        for frame, marked in ((before, (goal, start)), (after, (goal, (2, 3)))):
            assert (cell_of(frame, size, *cell) != empty).any() == (cell in marked), cell
    assert (cell_of(before, size, *goal) != cell_of(before, size, *start)).any()
    # The goal, at the top left of the room, is at the top left of the picture.
    assert (before[CELL_PIXELS // 2, CELL_PIXELS // 2] != empty[CELL_PIXELS // 2, CELL_PIXELS // 2]).any()
    assert gym.make(ENV_ID).unwrapped.render() is None


def test_vector_frames_are_those_of_the_single_environments():
    goals = np.array([[0, 0], [2, 1], [1, 1]])
    native = make_native(goals, size=3, render_mode="rgb_array")
    sync = make_sync(goals, AutoresetMode.SAME_STEP, size=3, render_mode="rgb_array")
    for envs in (native, sync):
        envs.reset(seed=0)
        envs.step(np.array([LEFT, UP, STAY]))
    np.testing.assert_array_equal(native.render(), sync.render())
    assert make_native(goals, size=3).render() is None


@pytest.mark.parametrize("goal", [(9, 0), (0, -1), (0, 0, 0), 3, (0.5, 1.0), "up"])
def test_impossible_goals_are_refused(goal):
    with pytest.raises(ValueError, match="goal must"):
        gym.make(ENV_ID, goal=goal)
    with pytest.raises(ValueError, match="goal must"):
        gym.make_vec(ENV_ID, num_envs=4, vectorization_mode="vector_entry_point", goal=goal)


def test_one_goal_too_few_is_refused_and_one_goal_for_all_is_not():
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        gym.make_vec(ENV_ID, num_envs=4, vectorization_mode="vector_entry_point", goal=np.zeros((3, 2), dtype=int))
    envs = gym.make_vec(ENV_ID, num_envs=4, vectorization_mode="vector_entry_point", goal=(4, 4))
    envs.reset(seed=0)
    assert envs.step(np.full(4, STAY))[1].tolist() == [1.0] * 4


@pytest.mark.parametrize("settings", [{"size": 0}, {"max_episode_steps": 0}])
def test_numbers_below_one_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be at least 1, got 0"):
        gym.make_vec(ENV_ID, num_envs=2, vectorization_mode="vector_entry_point", **settings)


@pytest.mark.parametrize("autoreset_mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_episode_statistics_wrapper_counts_episodes_and_returns(autoreset_mode):
    goals = np.array([[4, 4], [4, 5], [0, 0]])
    envs = RecordEpisodeStatistics(make_native(goals, autoreset_mode=autoreset_mode))
    envs.reset(seed=0)
    episodes = []
    for _ in range(45):
        infos = envs.step(np.full(3, STAY))[-1]
        if "episode" in infos:
            assert infos["episode"]["l"].tolist() == [20, 20, 20]
            episodes.append(infos["episode"]["r"].tolist())
    assert episodes == [[20.0, 0.0, 0.0]] * 2
    assert list(envs.length_queue) == [20] * 6
