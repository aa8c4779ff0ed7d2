"""Dark Room: moves and walls, what pays, the best return, and pictures."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.dark_room import CELL_PIXELS, MOVES, expert, goal_distance, optimal_return

ENV_ID = "ad_hf/DarkRoom-v0"
LEFT, RIGHT, UP, DOWN, STAY = range(5)


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
def test_optimal_return_is_that_of_dynamic_programming_and_of_the_expert(size, max_episode_steps, sparse_reward):
    goals = list(itertools.product(range(size), repeat=2))
    kwargs = {"size": size, "max_episode_steps": max_episode_steps, "sparse_reward": sparse_reward}
    best = [optimal_return(goal=goal, **kwargs) for goal in goals]
    assert best == [best_return_by_dynamic_programming(goal=goal, **kwargs) for goal in goals]
    make = {"num_envs": len(goals), "vectorization_mode": "vector_entry_point", "autoreset_mode": "Disabled"}
    envs = gym.make_vec(ENV_ID, goal=goals, **make, **kwargs).unwrapped
    observations, returns = envs.reset(seed=0)[0], 0.0
    for _ in range(max_episode_steps):
        observations, rewards, *_ = envs.step(expert(observations, envs))
        returns = returns + rewards
    assert returns.tolist() == best


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
    assert (before.shape, before.dtype) == ((size * CELL_PIXELS, size * CELL_PIXELS, 3), np.uint8)
    empty = cell_of(before, size, 4, 0)
    for cell in itertools.product(range(size), repeat=2):
        for frame, marked in ((before, (goal, start)), (after, (goal, (2, 3)))):
            assert (cell_of(frame, size, *cell) != empty).any() == (cell in marked), cell
    assert (cell_of(before, size, *goal) != cell_of(before, size, *start)).any()
