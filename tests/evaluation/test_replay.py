"""Replays: the first and the last episode of a few test tasks, as they were acted, in moving pictures."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode
from PIL import Image

from ad_hf.envs.dark_room import AGENT, GOAL
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.replay import (
    LINE,
    MARGIN,
    MAX_PICTURES,
    MAX_SIDE,
    MIN_SIDE,
    EpisodeFrames,
    FrameRecorder,
    can_be_seen,
    draw_pictures,
    write_replay,
)
from ad_hf.evaluation.video import LAST_PICTURE_MILLISECONDS
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig

STEPS = 4  # of an episode
PIXELS = MIN_SIDE  # of a room of 3 cells, as it is shown


def pictures_of(path):
    """All pictures of a GIF, and how long each is shown."""
    with Image.open(path) as gif:
        pictures, durations = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    return pictures, durations


def shown(picture, row, column, width=PIXELS, height=PIXELS):
    """The part of a picture that shows an episode of a task."""
    top, left = MARGIN + 2 * LINE + row * (height + LINE + MARGIN), MARGIN + column * (width + MARGIN)
    return picture[top : top + height, left : left + width]


def cell_of(frame, colour):
    """The cell (x, y) that has a colour, or `None`: y grows upwards."""
    near = (np.abs(frame - np.array(colour)).sum(axis=-1) < 30).reshape(3, PIXELS // 3, 3, PIXELS // 3)
    counts = near.sum(axis=(1, 3))
    if not counts.any():
        return None
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return int(column), int(2 - row)


def all_frames(frames):
    """Every frame of an episode, as arrays."""
    return [np.asarray(frames.at(time)).astype(int) for time in range(frames.length)]


def record(model, family, config, episodes):
    """The frames of some episodes, rolled out as a replay is, and all returns."""
    envs = family.make_vec(family.tasks("test"), autoreset_mode=AutoresetMode.NEXT_STEP, render_mode="rgb_array")
    recorder = FrameRecorder(envs, episodes)
    returns = model.rollout(recorder, config).episode_returns
    recorder.close()
    return {episode: [all_frames(part) for part in row] for episode, row in recorder.frames.items()}, returns


def single_family(family):
    """A family of the same tasks whose environments are made one by one."""
    return TaskFamily(family.env_id, [task.kwargs for task in family.all_tasks], family.env_kwargs, num_test_tasks=3)


@pytest.mark.parametrize("native", [True, False], ids=["native", "one by one"])
def test_a_replay_shows_the_first_and_the_last_episode_of_every_task(
    tmp_path, dark_room_model, dark_room_family, native
):
    family = dark_room_family if native else single_family(dark_room_family)
    config = RolloutConfig(num_episodes=6, seed=3)
    assert write_replay(tmp_path, dark_room_model, family, 6, config) == [tmp_path / "replay.gif"]
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    tasks = family.tasks("test")
    frames, _ = record(dark_room_model, family, config, (0, 5))
    assert sum(durations) == 100 * STEPS + LAST_PICTURE_MILLISECONDS
    shape = (MARGIN + LINE + 2 * (PIXELS + LINE + MARGIN), MARGIN + len(tasks) * (PIXELS + MARGIN), 3)
    moments = np.repeat(np.arange(len(pictures)), [max(1, round(duration / 100)) for duration in durations])
    for time in range(STEPS + 1):  # a picture like the one before is not stored: that one is shown for longer
        picture = pictures[moments[time]]
        assert picture.shape == shape
        for row, episode in enumerate((0, 5)):
            for column, task in enumerate(tasks):
                expected = frames[episode][column][time]
                assert np.abs(shown(picture, row, column) - expected).max() < 30  # of a palette
                agent = cell_of(shown(picture, row, column), AGENT)
                assert agent == cell_of(expected, AGENT)
                if time == 0:
                    assert agent == (1, 1)
                if task.kwargs["goal"] != list(agent):
                    assert cell_of(shown(picture, row, column), GOAL) == tuple(task.kwargs["goal"])


def test_episodes_are_kept_from_their_first_frame_to_their_last(dark_room_model, dark_room_family):
    config = RolloutConfig(num_episodes=5, seed=1)
    frames, returns = record(dark_room_model, dark_room_family, config, (0, 4))
    envs = dark_room_family.make_vec(dark_room_family.tasks("test"))
    np.testing.assert_array_equal(dark_room_model.rollout(envs, config).episode_returns, returns)
    assert sorted(frames) == [0, 4]
    for episode, of_tasks in frames.items():
        for index, (task, seen) in enumerate(zip(dark_room_family.tasks("test"), of_tasks, strict=True)):
            assert len(seen) == STEPS + 1
            assert cell_of(seen[0], AGENT) == (1, 1)
            on_goal = sum(cell_of(frame, AGENT) == tuple(task.kwargs["goal"]) for frame in seen[1:])
            assert on_goal == returns[index, episode]  # the frames are those of this very episode


def test_a_replay_acts_as_it_is_told_and_takes_the_place_of_another(
    tmp_path, dark_room_model, dark_room_family, capsys
):
    def replay(config):
        (path,) = write_replay(tmp_path, dark_room_model, dark_room_family, 3, config)
        return path.read_bytes()

    (tmp_path / "replay.gif").write_bytes(b"an older one")
    seeded = replay(RolloutConfig(max_steps=2, seed=1))
    printed = capsys.readouterr().err
    assert "replay of 3 tasks: 100%" in printed
    assert "9.00/9.00" in printed
    assert replay(RolloutConfig(num_episodes=3, seed=1)) == seeded
    assert replay(RolloutConfig(seed=2)) != seeded
    assert [file.name for file in tmp_path.iterdir()] == ["replay.gif"]


def test_four_of_many_tasks_are_shown_and_a_single_episode_once(tmp_path, dark_room_model, dark_room_family):
    goals = [task.kwargs for task in dark_room_family.all_tasks]
    family = TaskFamily(dark_room_family.env_id, goals, dark_room_family.env_kwargs, num_test_tasks=8)
    write_replay(tmp_path, dark_room_model, family, num_episodes=1)
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    assert pictures[0].shape[:2] == (MARGIN + LINE + PIXELS + LINE + MARGIN, MARGIN + 4 * (PIXELS + MARGIN))
    assert sum(durations) == 100 * STEPS + LAST_PICTURE_MILLISECONDS


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
        return np.full((MIN_SIDE // 2, MIN_SIDE, 3), 20 * self.left, dtype=np.uint8)


class LongRun(Countdown):
    """Many steps, each of which looks unlike the others, at the speed of CartPole."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    observation_space = gym.spaces.Discrete(1000)

    def render(self):
        """A square that moves to the right by a pixel a step."""
        frame = np.full((120, 600, 3), 255, dtype=np.uint8)
        frame[30:90, self.steps - self.left : 100 + self.steps - self.left] = (200, 0, 0)
        return frame


class Unseen(Countdown):
    """Renders to no array."""

    metadata = {"render_modes": ["human"]}


class Unrenderable(Countdown):
    """Misses what it needs to render, as gymnasium's CartPole does without pygame."""

    def render(self):
        raise DependencyNotInstalled('pygame is not installed, run `pip install "gymnasium[classic-control]"`')


class Unmakeable(Countdown):
    """Says that it renders, and takes no render_mode, as some of Meta-World's environments do."""

    def __init__(self, steps):
        super().__init__(steps)


REGISTERED = [Countdown, LongRun, Unseen, Unrenderable, Unmakeable]


@pytest.fixture
def countdown():
    """Environments that are there while a test runs."""
    ids = [f"{environment.__name__}-v0" for environment in REGISTERED]
    for name, environment in zip(ids, REGISTERED):
        gym.register(name, environment)
    yield
    for name in ids:
        del gym.registry[name]


def discrete_model(n):
    """A model for observations Discrete(n) and two actions."""
    spaces = {"observation_space": {"type": "Discrete", "n": n}, "action_space": {"type": "Discrete", "n": 2}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 8}
    return ADModel(ADConfig(**spaces, **sizes))


@pytest.mark.usefixtures("countdown")
def test_shorter_episodes_stand_still_until_the_longest_has_ended(tmp_path):
    tasks = [{"steps": steps} for steps in (5, 3, 9, 4)]
    family = TaskFamily("Countdown-v0", tasks, num_test_tasks=3)
    steps_of_tasks = [task.kwargs["steps"] for task in family.tasks("test")]
    assert len(set(steps_of_tasks)) == 3
    write_replay(tmp_path, discrete_model(12), family, num_episodes=4)
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    assert len(pictures) == max(steps_of_tasks) + 1
    assert durations == [200] * max(steps_of_tasks) + [LAST_PICTURE_MILLISECONDS]
    for time, picture in enumerate(pictures):
        for row in range(2):
            for column, steps in enumerate(steps_of_tasks):
                seen = shown(picture, row, column, MIN_SIDE, MIN_SIDE // 2)
                assert np.abs(seen - 20 * max(0, steps - time)).max() < 10


@pytest.mark.usefixtures("countdown")
def test_of_long_episodes_frames_are_dropped_evenly_and_never_the_first_or_the_last(tmp_path):
    family = TaskFamily("LongRun-v0", [{"steps": 450}, {"steps": 500}, {"steps": 20}], num_test_tasks=2)
    write_replay(tmp_path, discrete_model(1000), family, num_episodes=2)
    pictures, durations = pictures_of(tmp_path / "replay.gif")
    longest = max(task.kwargs["steps"] for task in family.tasks("test"))
    assert len(pictures) == MAX_PICTURES
    assert set(durations[:-1]) == {100}  # as long as in life, where five frames last 100 milliseconds
    scale = MAX_SIDE / 600
    lefts = []
    for picture in pictures:
        frame = shown(picture, 0, 0, MAX_SIDE, round(120 * scale))
        red = np.abs(frame[round(60 * scale)] - (200, 0, 0)).sum(axis=-1) < 60
        lefts.append(np.flatnonzero(red)[0])
    first_task = family.tasks("test")[0].kwargs["steps"]
    expected = np.minimum(np.linspace(0, longest, MAX_PICTURES), first_task) * scale
    np.testing.assert_allclose(lefts, expected, atol=2)
    assert (tmp_path / "replay.gif").stat().st_size < 500_000


@pytest.mark.parametrize("length", [1, 2 * MAX_PICTURES, 2 * MAX_PICTURES + 1, 1234])
def test_an_episode_of_any_length_is_kept_in_bounded_memory(length):
    frames = EpisodeFrames()
    for time in range(length):
        frames.append(Image.new("F", (1, 1), time))
    assert len(frames._frames) <= 2 * MAX_PICTURES
    times = np.linspace(0, length - 1, min(length, MAX_PICTURES)).round().astype(int)
    seen = np.array([frames.at(time).getpixel((0, 0)) for time in times])
    assert seen[-1] == frames.at(length + 5).getpixel((0, 0)) == length - 1
    late = times - seen  # by less than the time until the next picture, and by nothing where all frames are kept
    assert (late >= 0).all()
    assert late.max() < (1 if length <= 2 * MAX_PICTURES else length / MAX_PICTURES)


def test_frames_of_different_sizes_have_columns_of_one_width():
    frames = {0: [EpisodeFrames(), EpisodeFrames()]}
    frames[0][0].append(Image.new("RGB", (40, 20), "red"))
    frames[0][1].append(Image.new("RGB", (20, 31), "blue"))
    titles, captions = ["goal [0, 1]", "a title that is much too long"], {0: ["a", "b"]}
    (picture,) = draw_pictures(titles, captions, frames, [0])
    pixels = np.asarray(picture)
    assert picture.size == (3 * MARGIN + 2 * 40, 2 * MARGIN + 2 * LINE + 31 + 1)  # made even
    assert (shown(pixels, 0, 0, 40, 31)[:20] == (255, 0, 0)).all()
    assert (shown(pixels, 0, 1, 40, 31)[:, :20] == (0, 0, 255)).all()
    assert (shown(pixels, 0, 1, 40, 31)[:, 22:] == 255).all()
    assert (pixels[:, -MARGIN:] == 255).all()  # where the title was cut off


@pytest.mark.usefixtures("countdown")
def test_it_is_known_beforehand_whether_there_is_something_to_see(dark_room_family):
    assert can_be_seen(dark_room_family)
    assert can_be_seen(single_family(dark_room_family))
    assert not can_be_seen(TaskFamily("Unseen-v0", [{"steps": 2}]))
    for name, reason in (("Unrenderable-v0", "pygame is not installed"), ("Unmakeable-v0", ".*render_mode")):
        with pytest.warns(UserWarning, match=f"{name} cannot be rendered: {reason}"):
            assert not can_be_seen(TaskFamily(name, [{"steps": 2}]))
