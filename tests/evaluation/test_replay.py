"""Replays: episodes of a few test tasks side by side, as they were acted, in moving pictures."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from PIL import Image

from ad_hf.envs.dark_room import AGENT, GOAL
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.episodes import (
    MAX_PICTURES,
    SIDE,
    SeenEpisode,
    SeenTasks,
    can_be_seen,
    episodes_to_show,
    see_again,
    some_of,
)
from ad_hf.evaluation.paths import LINE as PATHS_LINE
from ad_hf.evaluation.paths import MARGIN as PATHS_MARGIN
from ad_hf.evaluation.paths import ROOM, WHOLE_MILLISECONDS, room_size, write_paths
from ad_hf.evaluation.replay import LINE, MARGIN, draw_replay, write_replays
from ad_hf.evaluation.rollouts import evaluate
from ad_hf.evaluation.video import LAST_PICTURE_MILLISECONDS
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

STEPS = 4  # of an episode


def pictures_of(path):
    """All pictures of a GIF, and how long each is shown."""
    with Image.open(path) as gif:
        pictures, durations = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            pictures.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    return pictures, durations


def shown(picture, row, column, width=SIDE, height=SIDE):
    """The part of a replay's picture that shows an episode of a task."""
    top, left = MARGIN + LINE + MARGIN + 2 * LINE + row * (height + 2 * LINE + MARGIN), MARGIN
    left += column * (width + MARGIN)
    return picture[top : top + height, left : left + width]


def cell_of(frame, colour):
    """The cell (x, y) that has a colour, or `None`: y grows upwards."""
    near = (np.abs(frame - np.array(colour)).sum(axis=-1) < 30).reshape(3, SIDE // 3, 3, SIDE // 3)
    counts = near.sum(axis=(1, 3))
    if not counts.any():
        return None
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return int(column), int(2 - row)


def play(model, family, num_episodes, **settings):
    """A rollout whose tasks can be seen again."""
    return evaluate(model, family, num_episodes=num_episodes, shown=some_of(len(family.tasks("test"))), **settings)


def single_family(family):
    """A family of the same tasks whose environments are made one by one."""
    return TaskFamily(family.env_id, [task.kwargs for task in family.all_tasks], family.env_kwargs, num_test_tasks=3)


@pytest.mark.parametrize("native", [True, False], ids=["native", "one by one"])
def test_episodes_are_seen_as_they_were_acted(tmp_path, dark_room_model, dark_room_family, native):
    family = dark_room_family if native else single_family(dark_room_family)
    rollout = play(dark_room_model, family, 6, num_seeds=2, seed=3)

    files = write_replays(tmp_path, family, rollout, ("gif",))

    assert [file.name for file in files] == ["replay.gif", "paths.gif"]
    seen = see_again(family, rollout, [0, 4, 5], [0, 4, 5])
    assert seen.title == "Dark Room: 3 goals never seen in training"
    assert seen.part([0], 2).title == "Dark Room: 2 of 3 goals never seen in training"
    means = [rollout.returns[0, rollout.tasks.index(task)].mean() for task in seen.tasks]
    assert means == sorted(means, reverse=True)
    pictures, durations = pictures_of(files[0])
    assert sum(durations) == 100 * STEPS + LAST_PICTURE_MILLISECONDS
    # A picture like the one before is not stored: that one is shown for longer.
    moments = np.repeat(np.arange(len(pictures)), [max(1, round(duration / 100)) for duration in durations])
    for column, (episode, parts) in enumerate(seen.episodes.items()):
        for row, (task, part) in enumerate(zip(seen.tasks, parts)):
            assert part.length == STEPS + 1
            goal = tuple(task.kwargs["goal"])
            assert part.total == rollout.returns[0, rollout.tasks.index(task), episode]
            assert sum(tuple(cell) == goal for cell in part.observations[1:]) == part.total
            for time, cell in enumerate(part.observations if row < 2 else ()):
                frame = shown(pictures[moments[time]], row, column)
                assert cell_of(frame, AGENT) == tuple(cell)
                assert goal in (cell_of(frame, GOAL), tuple(cell))


def test_a_picture_of_paths_begins_with_whole_ones(tmp_path, dark_room_model, dark_room_family):
    rollout = play(dark_room_model, dark_room_family, 6)
    assert room_size(dark_room_family) == 3
    seen = see_again(dark_room_family, rollout, episodes_to_show((1, 2, 5), 6))
    assert list(seen.episodes) == [0, 1, 4, 5]

    pictures, durations = pictures_of(write_paths(tmp_path, seen, 3))

    height, width, _ = pictures[0].shape
    assert width == 2 * PATHS_MARGIN + 4 * ROOM + 3 * PATHS_MARGIN
    assert height == 2 * PATHS_MARGIN + 3 * PATHS_LINE + 3 * (ROOM + PATHS_LINE + PATHS_MARGIN)
    assert len(pictures) == STEPS + 1
    assert durations[0] == WHOLE_MILLISECONDS
    orange = [(np.abs(picture - (213, 94, 0)).sum(axis=-1) < 20).sum() for picture in pictures]
    assert orange[0] == max(orange) > 1.5 * orange[1]
    assert (tmp_path / "paths.gif").stat().st_size < 100_000


def test_a_single_episode_is_shown_once(tmp_path, dark_room_model, dark_room_family):
    goals = [task.kwargs for task in dark_room_family.all_tasks]
    family = TaskFamily(dark_room_family.env_id, goals, dark_room_family.env_kwargs, num_test_tasks=8)
    (replay, _) = write_replays(tmp_path, family, play(dark_room_model, family, 1))
    pictures, _ = pictures_of(replay)
    assert pictures[0].shape[:2] == (2 * MARGIN + LINE + 2 * (SIDE + 2 * LINE + MARGIN), 2 * SIDE + MARGIN)


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
        return np.full((SIDE // 2, SIDE, 3), 20 * self.left, dtype=np.uint8)


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


class Unrepeatable(Countdown):
    """Has random numbers that no seed sets."""

    numbers = np.random.default_rng(0)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.numbers.random(), *rest


REGISTERED = [Countdown, LongRun, Unseen, Unrenderable, Unmakeable, Unrepeatable]


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
    family = TaskFamily("Countdown-v0", tasks, num_test_tasks=2)
    steps_of_tasks = sorted((task.kwargs["steps"] for task in family.tasks("test")), reverse=True)
    (replay,) = write_replays(tmp_path, family, play(discrete_model(12), family, 4))
    pictures, durations = pictures_of(replay)
    assert len(pictures) == max(steps_of_tasks) + 1
    assert durations == [200] * max(steps_of_tasks) + [LAST_PICTURE_MILLISECONDS]
    for time, picture in enumerate(pictures):
        for row, steps in enumerate(steps_of_tasks):
            for column in range(2):
                seen = shown(picture, row, column, SIDE, SIDE // 2)
                assert np.abs(seen - 20 * max(0, steps - time)).max() < 10


@pytest.mark.usefixtures("countdown")
def test_of_long_episodes_frames_are_dropped_evenly_and_never_the_first_or_the_last(tmp_path):
    family = TaskFamily("LongRun-v0", [{"steps": 450}, {"steps": 500}, {"steps": 20}], num_test_tasks=2)
    steps = sorted((task.kwargs["steps"] for task in family.tasks("test")), reverse=True)
    (replay,) = write_replays(tmp_path, family, play(discrete_model(1000), family, 2))
    pictures, durations = pictures_of(replay)
    assert len(pictures) == MAX_PICTURES
    assert set(durations[:-1]) == {100}  # shorter than in life, where eight frames last 160 milliseconds
    scale = SIDE / 600
    for row in range(2):
        lefts = []
        for picture in pictures:
            frame = shown(picture, row, 0, SIDE, round(120 * scale))
            red = np.abs(frame[round(60 * scale)] - (200, 0, 0)).sum(axis=-1) < 60
            lefts.append(np.flatnonzero(red)[0])
        expected = np.minimum(np.linspace(0, steps[0], MAX_PICTURES), steps[row]) * scale
        np.testing.assert_allclose(lefts, expected, atol=3)
    assert replay.stat().st_size < 300_000


@pytest.mark.usefixtures("countdown")
def test_what_does_not_come_to_the_same_again_is_not_shown(tmp_path):
    family = TaskFamily("Unrepeatable-v0", [{"steps": 3}, {"steps": 5}], num_test_tasks=1)
    rollout = play(discrete_model(12), family, 2)
    with pytest.warns(UserWarning, match="no replay of Unrepeatable-v0: its episodes do not come to the same"):
        assert write_replays(tmp_path, family, rollout) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 2 * MAX_PICTURES, 2 * MAX_PICTURES + 1, 1234])
def test_an_episode_of_any_length_is_kept_in_bounded_memory(length):
    episode = SeenEpisode()
    for time in range(length):
        episode.add_frame(Image.new("F", (1, 1), time))
    assert len(episode._frames) <= 2 * MAX_PICTURES
    times = np.linspace(0, length - 1, min(length, MAX_PICTURES)).round().astype(int)
    seen = np.array([episode.frame_at(time).getpixel((0, 0)) for time in times])
    assert seen[-1] == episode.frame_at(length + 5).getpixel((0, 0)) == length - 1
    late = times - seen  # by less than the time until the next picture, and by nothing where all frames are kept
    assert (late >= 0).all()
    assert late.max() < (1 if length <= 2 * MAX_PICTURES else length / MAX_PICTURES)


def test_frames_of_different_sizes_have_columns_of_one_width(dark_room_family):
    episodes = {number: [SeenEpisode()] for number in range(2)}
    for (part,), frame in zip(
        episodes.values(), (Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 31), "blue"))
    ):
        part.observations.append(np.zeros(2))
        part.add_frame(frame)
    seen = SeenTasks(dark_room_family.tasks("test")[:1], episodes, "A world with a name that is much too long", 1)
    (picture,), _ = draw_replay(seen)
    pixels = np.asarray(picture)
    assert picture.size == (2 * SIDE + MARGIN, 3 * MARGIN + 3 * LINE + 31 + 1)  # made even
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
