"""Replays: the first and the last episode of a few test tasks, as they were acted, in an animated picture."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from PIL import Image

from ad_hf.envs.dark_room import AGENT, CELL_PIXELS, GOAL
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.replay import CAPTION, LAST_FRAME_MILLISECONDS, MARGIN, FrameRecorder, write_replay
from ad_hf.model import ADConfig, ADModel
from ad_hf.model.rollout_ad import RolloutConfig

STEPS = 4  # of an episode
PIXELS = 3 * CELL_PIXELS


def pictures_of(path):
    """All pictures of a GIF, and how long each is shown."""
    with Image.open(path) as gif:
        pictures, durations = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    return pictures, durations


def room(picture, row, column):
    """The part of a picture that shows an episode of a task."""
    top, left = MARGIN + row * (PIXELS + CAPTION + MARGIN) + CAPTION, MARGIN + column * (PIXELS + MARGIN)
    return picture[top : top + PIXELS, left : left + PIXELS]


def cell_of(frame, colour):
    """The cell (x, y) that has a colour, or `None`: y grows upwards."""
    near = (np.abs(frame - np.array(colour)).sum(axis=-1) < 30).reshape(3, CELL_PIXELS, 3, CELL_PIXELS)
    counts = near.sum(axis=(1, 3))
    if not counts.any():
        return None
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return int(column), int(2 - row)


def record(model, family, config, episodes):
    """The frames of some episodes, rolled out as a replay is."""
    envs = family.make_vec(family.tasks("test"), autoreset_mode=AutoresetMode.DISABLED, render_mode="rgb_array")
    recorder = FrameRecorder(envs, episodes)
    returns = model.rollout(recorder, config).episode_returns
    recorder.close()
    return recorder.frames, returns


def test_a_replay_shows_the_first_and_the_last_episode_of_every_task(tmp_path, dark_room_model, dark_room_family):
    config = RolloutConfig(num_episodes=6, seed=3)
    assert write_replay(tmp_path / "replay.gif", dark_room_model, dark_room_family, config)
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    tasks = dark_room_family.tasks("test")
    frames, _ = record(dark_room_model, dark_room_family, config, (0, 5))
    assert sum(durations) == 100 * STEPS + LAST_FRAME_MILLISECONDS
    shape = (MARGIN + 2 * (PIXELS + CAPTION + MARGIN), MARGIN + len(tasks) * (PIXELS + MARGIN), 3)
    moments = np.repeat(np.arange(len(pictures)), [max(1, round(duration / 100)) for duration in durations])
    for time in range(STEPS + 1):  # a picture like the one before is not stored: that one is shown for longer
        picture = pictures[moments[time]]
        assert picture.shape == shape
        for row, episode in enumerate((0, 5)):
            for column, task in enumerate(tasks):
                expected = frames[episode][column][time].astype(int)
                assert np.abs(room(picture, row, column) - expected).max() < 30  # of a palette
                agent = cell_of(room(picture, row, column), AGENT)
                assert agent == cell_of(expected, AGENT)
                if time == 0:
                    assert agent == (1, 1)
                if task.kwargs["goal"] != list(agent):
                    assert cell_of(room(picture, row, column), GOAL) == tuple(task.kwargs["goal"])


def test_episodes_are_kept_from_their_first_frame_to_their_last(dark_room_model, dark_room_family):
    config = RolloutConfig(num_episodes=5, seed=1)
    some, returns = record(dark_room_model, dark_room_family, config, (0, 4))
    every, _ = record(dark_room_model, dark_room_family, config, tuple(range(5)))
    assert sorted(some) == [0, 4]
    tasks = dark_room_family.tasks("test")
    for episode, of_tasks in some.items():
        assert len(of_tasks) == len(tasks)
        for index, frames in enumerate(of_tasks):
            assert len(frames) == STEPS + 1
            np.testing.assert_array_equal(frames, every[episode][index])
            assert cell_of(frames[0].astype(int), AGENT) == (1, 1)
            goal = tuple(tasks[index].kwargs["goal"])
            on_goal = sum(cell_of(frame.astype(int), AGENT) == goal for frame in frames[1:])
            assert on_goal == returns[index, episode]  # the frames are those of this very episode


def test_recording_changes_no_rollout(dark_room_model, dark_room_family):
    config = RolloutConfig(num_episodes=5, seed=1)
    _, recorded = record(dark_room_model, dark_room_family, config, (0, 4))
    envs = dark_room_family.make_vec(dark_room_family.tasks("test"))
    np.testing.assert_array_equal(dark_room_model.rollout(envs, config).episode_returns, recorded)


def test_a_rollout_of_one_episode_is_shown_once(tmp_path, dark_room_model, dark_room_family):
    assert write_replay(tmp_path / "replay.gif", dark_room_model, dark_room_family, RolloutConfig(num_episodes=1))
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    assert pictures[0].shape[0] == MARGIN + PIXELS + CAPTION + MARGIN
    assert sum(durations) == 100 * STEPS + LAST_FRAME_MILLISECONDS


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_of_many_tasks_a_few_are_shown(tmp_path, dark_room_model, dark_room_family, num_tasks):
    path = tmp_path / "replay.gif"
    assert write_replay(path, dark_room_model, dark_room_family, RolloutConfig(num_episodes=2), num_tasks)
    assert pictures_of(path)[0][0].shape[1] == MARGIN + num_tasks * (PIXELS + MARGIN)


class Countdown(gym.Env):
    """Terminates after as many steps as the task says, and shows how many are left."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space = gym.spaces.Discrete(12)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, steps=1, render_mode=None):
        self.steps, self.render_mode = steps, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.steps
        return self.left, {}

    def step(self, action):
        self.left -= 1
        return self.left, 1.0, self.left == 0, False, {}

    def render(self):
        return np.full((20, 20, 3), 20 * self.left, dtype=np.uint8) if self.render_mode else None


@pytest.fixture
def countdown():
    """An environment that is there while a test runs."""
    gym.register("Countdown-v0", Countdown)
    yield "Countdown-v0"
    del gym.registry["Countdown-v0"]


@pytest.fixture
def discrete_model():
    """A model for observations Discrete(12) and two actions."""
    spaces = {"observation_space": {"type": "Discrete", "n": 12}, "action_space": {"type": "Discrete", "n": 2}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 8}
    return ADModel(ADConfig(**spaces, **sizes))


def test_shorter_episodes_stand_still_until_the_longest_has_ended(tmp_path, countdown, discrete_model):
    tasks = [{"steps": steps} for steps in (5, 3, 9, 4)]
    family = TaskFamily(countdown, tasks, num_test_tasks=3)
    shown = [task.kwargs["steps"] for task in family.tasks("test")]
    assert len(set(shown)) == 3
    config = RolloutConfig(num_episodes=4)
    assert write_replay(tmp_path / "replay.gif", discrete_model, family, config)
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    assert len(pictures) == max(shown) + 1
    assert durations == [200] * max(shown) + [LAST_FRAME_MILLISECONDS]
    for time, picture in enumerate(pictures):
        for row in range(2):
            for column, steps in enumerate(shown):
                top, left = MARGIN + row * (20 + CAPTION + MARGIN) + CAPTION, MARGIN + column * (20 + MARGIN)
                seen = picture[top + 10, left + 10]
                assert np.abs(seen - 20 * max(0, steps - time)).max() < 10


class Unseen(Countdown):
    """Renders to no array."""

    metadata = {"render_modes": ["human"]}


def test_environments_that_cannot_be_seen_leave_no_file(tmp_path, discrete_model):
    gym.register("Unseen-v0", Unseen)
    try:
        family = TaskFamily("Unseen-v0", [{"steps": 2}, {"steps": 3}], num_test_tasks=1)
        assert not write_replay(tmp_path / "replay.gif", discrete_model, family, RolloutConfig(num_episodes=2))
    finally:
        del gym.registry["Unseen-v0"]
    assert list(tmp_path.iterdir()) == []


def test_a_replay_takes_the_place_of_another(tmp_path, dark_room_model, dark_room_family):
    path, config = tmp_path / "replay.gif", RolloutConfig(num_episodes=2)
    path.write_bytes(b"an older one")
    assert write_replay(path, dark_room_model, dark_room_family, config)
    content = path.read_bytes()
    assert write_replay(path, dark_room_model, dark_room_family, replace(config))
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["replay.gif"]
