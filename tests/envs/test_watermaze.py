"""Watermaze: what is seen, what is rewarded, and that every platform can be reached."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ad_hf.envs.watermaze_view as view
from ad_hf.envs.watermaze import SWIMMING_RADIUS, optimal_return, platform_distance

FORWARD, BACKWARD, LEFT, RIGHT, TURN_LEFT, TURN_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(8)


def make(num_envs=1, **kwargs):
    kwargs = {"height": 9, "width": 12, **kwargs}
    return gym.make_vec(
        "ad_hf/Watermaze-v0", num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs
    ).unwrapped


points = st.tuples(st.floats(0, 1), st.floats(0, 7)).map(
    lambda polar: polar[0] * np.array([np.cos(polar[1]), np.sin(polar[1])])
)


@given(platforms=st.tuples(points, points), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_platform_is_never_seen(platforms, seed):
    envs = make(2, platform=np.clip(platforms, -0.7, 0.7), height=24, width=32, max_episode_steps=50)
    frames, _ = envs.reset(seed=[seed, seed])
    np.testing.assert_array_equal(frames[0], frames[1])
    for action in np.random.default_rng(seed).integers(8, size=50):
        frames, _, _, _, infos = envs.step(np.array([action, action]))
        np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(infos["final_obs"][0], infos["final_obs"][1])


def cast_rays(position, heading, height, width, samples=5):
    """A frame, ray by ray, straight from the geometry; water is left out, as a mask of its pixels."""
    texture = view.wall_texture()
    offsets = (np.arange(samples) + 0.5) / samples
    focal_length = width / 2 / np.tan(view.FIELD_OF_VIEW / 2)
    left = (width / 2 - np.arange(width)[:, None] - offsets).ravel() / focal_length
    up = (height / 2 - np.arange(height)[:, None] - offsets).ravel() / focal_length
    frame = np.empty((height * samples, width * samples, 3))
    wet = np.zeros(frame.shape[:2], dtype=bool)
    for column, slope in enumerate(left):
        ray = np.array([np.cos(heading) - slope * np.sin(heading), np.sin(heading) + slope * np.cos(heading)])
        a, b, c = ray @ ray, position @ ray, position @ position - 1
        depth = (-b + np.sqrt(b * b - a * c)) / a
        x, y = position + depth * ray
        piece = int((np.arctan2(y, x) + np.pi) / (2 * np.pi) * view.WALL_PIECES) % view.WALL_PIECES
        for row, rise in enumerate(up):
            z = view.EYE_HEIGHT + depth * rise
            wet[row, column] = z < 0
            wall = texture[int(np.clip((1 - z / view.WALL_HEIGHT) * view.WALL_ROWS, 0, view.WALL_ROWS - 1)), piece]
            frame[row, column] = view.SKY if z > view.WALL_HEIGHT else wall
    boxes = (height, samples, width, samples)
    return frame.reshape(*boxes, 3).mean(axis=(1, 3)), wet.reshape(boxes).any(axis=(1, 3))


@pytest.mark.parametrize("pose", [(0, 0, 0.3), (0.5, -0.4, 2), (-0.9, 0, 3.1), (0.1, 0.85, -1), (0, -0.9, 0)], ids=str)
@pytest.mark.parametrize("size", [(24, 32), (36, 48)], ids=str)
def test_frames_are_what_casting_rays_gives(pose, size):
    position, heading = np.array(pose[:2], dtype=float), pose[2]
    drawn = view.draw_views(position[None], np.array([heading]), *size)[0].astype(float)
    cast, wet = cast_rays(position, heading, *size)
    difference = np.abs(drawn - cast)[~wet]
    assert difference.mean() < 6  # of 255; the table has a limited number of depths
    assert (difference.max(axis=1) > 60).mean() < 0.06


@pytest.mark.parametrize("size", [(18, 24), (72, 96)], ids=str)
def test_every_pose_looks_different(size):
    x, y, heading = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-0.6, 0.6, 7)] * 2, np.arange(12) * np.pi / 6))
    frames = view.draw_views(np.stack([x, y], 1), heading, *size).reshape(len(x), -1).astype(np.float32)
    squares = (frames**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * frames @ frames.T, 0) + 1e12 * np.eye(len(x))
    assert np.sqrt(distances.min() / frames.shape[1]) > 8  # of 255, root mean square


def test_many_frames_are_drawn_as_one_by_one():
    rng = np.random.default_rng(0)
    positions, headings = rng.uniform(-0.6, 0.6, (300, 2)), rng.uniform(-9, 9, 300)
    frames = view.draw_views(positions, headings, 18, 24)
    assert frames.shape == (300, 18, 24, 3)
    assert frames.flags.c_contiguous
    for index in range(0, 300, 7):
        chosen = slice(index, index + 1)
        np.testing.assert_array_equal(frames[index], view.draw_views(positions[chosen], headings[chosen], 18, 24)[0])


def test_every_platform_is_reached_without_a_turn_within_15_steps():
    # The pool looks the same from every first heading, but for the landmarks: one heading and all platforms do.
    x, y = np.meshgrid(*[np.arange(-1, 1.02, 0.02)] * 2)
    inside, edge = np.hypot(x, y) <= 1, np.linspace(0, 2 * np.pi, 200)
    at_the_edge = 0.9999 * np.stack([np.cos(edge), np.sin(edge)], 1)
    platforms = np.concatenate([np.stack([x[inside], y[inside]], 1), at_the_edge])
    envs = make(len(platforms), platform=platforms, height=1, width=1, random_heading=False, max_episode_steps=15)
    envs.reset(seed=0)
    moves = np.array([[0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1]])
    returns = np.zeros(len(platforms))
    for _ in range(15):
        ahead = envs._positions[:, None] + moves
        ahead /= np.maximum(np.linalg.norm(ahead, axis=2, keepdims=True) / SWIMMING_RADIUS, 1)
        actions = np.linalg.norm(ahead - platforms[:, None], axis=2).argmin(axis=1)
        returns += envs.step(actions)[1]
    np.testing.assert_array_equal(returns, 1.0)
    assert optimal_return(platform=(0.1, 0.9), max_episode_steps=15) == 1.0


def test_reward_is_paid_once_and_the_episode_goes_on_unless_it_is_to_end():
    kwargs = {"platform": (0.5, 0), "random_heading": False, "height": 9, "width": 12}
    env = gym.make("ad_hf/Watermaze-v0", **kwargs)
    env.reset(seed=0)
    steps = [env.step(action) for action in [FORWARD] * 4 + [BACKWARD] * 3 + [FORWARD] * 43]
    assert [reward for _, reward, *_ in steps] == [0.0] * 3 + [1.0] + [0.0] * 46
    assert [info["reached"] for *_, info in steps] == [0] * 3 + [1] * 47
    assert [step[2:4] for step in steps] == [(False, False)] * 49 + [(False, True)]
    env = gym.make("ad_hf/Watermaze-v0", terminate_on_reach=True, **kwargs)
    env.reset(seed=0)
    assert [env.step(FORWARD)[1:3] for _ in range(4)] == [(0.0, False)] * 3 + [(1.0, True)]


@pytest.mark.parametrize(
    ("actions", "position"),
    [
        ([FORWARD] * 2, (0.2, 0)),
        ([BACKWARD], (-0.1, 0)),
        ([LEFT], (0, 0.1)),
        ([RIGHT], (0, -0.1)),
        ([TURN_LEFT] * 3 + [FORWARD], (0, 0.1)),
        ([TURN_RIGHT] * 3 + [FORWARD], (0, -0.1)),
        ([FORWARD_LEFT] * 12, (0, 0)),
        ([FORWARD_RIGHT], (0.1 * np.cos(np.pi / 6), -0.05)),
        ([FORWARD] * 20, (0.9, 0)),
    ],
    ids=str,
)
def test_actions_move_the_agent(actions, position):
    env = gym.make("ad_hf/Watermaze-v0", random_heading=False).unwrapped
    env.reset(seed=0)
    for action in actions:
        env.step(action)
    np.testing.assert_allclose(env.vector._positions[0], position, atol=1e-12)


def test_agent_slides_along_the_wall():
    envs = make(50, height=1, width=1, max_episode_steps=100)
    envs.reset(seed=0)
    for _ in range(12):
        envs.step(np.full(50, FORWARD))
    at_the_wall = envs._positions.copy()
    envs.step(np.full(50, FORWARD_LEFT))
    assert np.linalg.norm(envs._positions, axis=1).max() <= SWIMMING_RADIUS + 1e-9
    assert np.linalg.norm(envs._positions - at_the_wall, axis=1).min() > 0.01


def test_episodes_start_in_the_centre_with_any_heading():
    envs = make(3, max_episode_steps=2)
    first, _ = envs.reset(seed=0)
    assert len(np.unique(first, axis=0)) == 3
    envs.step(np.zeros(3, dtype=int))
    second, *_ = envs.step(np.zeros(3, dtype=int))
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 6
    np.testing.assert_array_equal(envs.reset(seed=0)[0], first)
    ahead = make(3, random_heading=False, max_episode_steps=1)
    first, _ = ahead.reset(seed=0)
    assert len(np.unique(first, axis=0)) == 1
    np.testing.assert_array_equal(ahead.step(np.zeros(3, dtype=int))[0], first)


def test_rendering_shows_the_platform_beside_the_view():
    env = gym.make("ad_hf/Watermaze-v0", platform=(-0.4, 0.6), render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (216, 216 + 288, 3)
    np.testing.assert_array_equal(picture[::3, 216::3], frame)
    assert (picture[43, 65] == view.PLATFORM).all()


def test_returns_and_distances_of_tasks():
    assert platform_distance(platform=[0.3, -0.4], height=18) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 15 steps, got 14"):
        optimal_return(platform=(0, 0), max_episode_steps=14)
