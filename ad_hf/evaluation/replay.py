"""Replays: the first and the last episodes of a model, as moving pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from PIL import Image, ImageDraw, ImageFont

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.rollouts import EpisodeProgress
from ad_hf.evaluation.video import FORMATS, write_video
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig

REPLAY_FILES = tuple(f"replay.{name}" for name in FORMATS)
# A replay of longer episodes drops frames evenly, but never the first and the last. With the sizes below, a GIF of
# four rooms or poles, twice each, stays under 2 MB.
MAX_PICTURES = 100
MOST_TASKS = 4
MIN_SIDE, MAX_SIDE = 144, 192  # pixels of a frame's longer side: smaller frames grow, larger ones shrink
MARGIN, LINE, FONT_SIZE = 8, 18, 12  # pixels
# Browsers slow down faster GIFs; and where frames were dropped, the others need not last for longer.
MIN_MILLISECONDS, MAX_MILLISECONDS = 20, 100
PAPER, INK, FADED, EDGE = "#ffffff", "#22252b", "#6b7280", "#d0d5db"


class EpisodeFrames:
    """
    Frames of an episode: the first, the last, and some between them at a distance that doubles as often as they are
    more than `2 * MAX_PICTURES`, so that every episode fits in memory. `length` is one more than its steps.
    """

    def __init__(self) -> None:
        self.length = 0
        self._frames: list[Image.Image] = []
        self._distance = 1

    def append(self, frame: Image.Image) -> None:
        """Add the next frame."""
        if self.length % self._distance == 0:
            if len(self._frames) == 2 * MAX_PICTURES:
                del self._frames[1::2]
                self._distance *= 2
            self._frames.append(frame)
        self._last = frame
        self.length += 1

    def at(self, time: int) -> Image.Image:
        """The frame after `time` steps, or the newest before it; after the end, the last one."""
        return self._last if time >= self.length - 1 else self._frames[time // self._distance]


class FrameRecorder(VectorWrapper):
    """
    Keeps the frames of some episodes (from 0) of each environment, by episode, at the size of a replay. The
    environments show the last frame of an episode before they reset themselves (NEXT_STEP autoreset).
    """

    def __init__(self, envs: VectorEnv, episodes: Sequence[int]) -> None:
        super().__init__(envs)
        self.frames = {episode: [EpisodeFrames() for _ in range(envs.num_envs)] for episode in episodes}
        self._episodes = np.full(envs.num_envs, -1)
        self._ended = np.ones(envs.num_envs, dtype=bool)

    def _keep(self) -> None:
        indices = np.flatnonzero(np.isin(self._episodes, list(self.frames)))
        if indices.size:
            rendered: Any = self.env.render()
            for index in indices:
                self.frames[int(self._episodes[index])][index].append(_fitted(rendered[index]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Reset all environments, and keep their first frames."""
        result = self.env.reset(seed=seed, options=options)
        self._episodes += 1
        self._ended[:] = False
        self._keep()
        return result

    def step(self, actions: np.ndarray):
        """Step, and keep the frames that follow: the first of an episode where one had ended."""
        result = self.env.step(actions)
        self._episodes += self._ended
        self._ended = result[2] | result[3]
        self._keep()
        return result


def _fitted(frame: np.ndarray) -> Image.Image:
    """A frame (height, width, 3) at the size of a replay."""
    longer = max(frame.shape[:2])
    # By a whole number, so that the cells of a small grid stay alike.
    scale = -(-MIN_SIDE // longer) if longer < MIN_SIDE else min(1.0, MAX_SIDE / longer)
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return Image.fromarray(frame).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def can_be_seen(family: TaskFamily) -> bool:
    """
    Whether a family's environments render to arrays. Warns if they declare it and cannot: gymnasium's own ones without
    pygame, those whose constructor takes no `render_mode`, MuJoCo's where there is nothing to draw on.
    """
    task = family.tasks()[:1]
    envs = family.make_vec(task)
    modes = envs.metadata.get("render_modes", [])
    envs.close()
    if "rgb_array" not in modes:
        return False
    try:
        envs = family.make_vec(task, render_mode="rgb_array")
        envs.reset(seed=0)
        envs.render()
        envs.close()
    except Exception as error:  # an environment may raise anything
        warnings.warn(f"there will be no replay, as {family.env_id} cannot be rendered: {error}", stacklevel=2)
        return False
    return True


def write_replay(
    output_dir: str | Path,
    model: ADModel,
    family: TaskFamily,
    num_episodes: int,
    rollout_config: RolloutConfig | None = None,
    formats: Sequence[str] = ("gif",),
) -> list[Path]:
    """
    Roll a model out on a few test tasks and show the first and the last episode of each, one below the other, in
    `replay.gif`, `replay.mp4` or both. Episodes that have ended stand still until the longest one has.

    Args:
        output_dir (`str` or `Path`):
            Folder of the files.
        model ([`ADModel`]):
            The model.
        family ([`TaskFamily`]):
            Its environments [`can_be_seen`]; the tasks are from all over its list of test tasks.
        num_episodes (`int`):
            Number of the last episode, from 1.
        rollout_config ([`RolloutConfig`], *optional*):
            How to act; the model's own config fills in unset fields.
        formats (`Sequence[str]`, *optional*, defaults to `("gif",)`):
            `"gif"`, `"mp4"` or both; see [`~ad_hf.evaluation.video.check_formats`].

    Returns:
        `list[Path]`: the files.
    """
    tasks = family.tasks("test")
    tasks = tasks[:: max(1, len(tasks) // MOST_TASKS)][:MOST_TASKS]
    episodes = sorted({0, num_episodes - 1})
    envs = family.make_vec(tasks, autoreset_mode=AutoresetMode.NEXT_STEP, render_mode="rgb_array")
    recorder = FrameRecorder(envs, episodes)
    with EpisodeProgress(f"replay of {len(tasks)} tasks", len(tasks) * num_episodes, True) as bar:
        output = model.rollout(recorder, rollout_config, callback=bar, num_episodes=num_episodes)
        bar.show(output)
    returns: np.ndarray = output["episode_returns"]
    recorder.close()
    captions = {
        episode: [f"episode {episode + 1}: return {value:.4g}" for value in returns[:, episode]]
        for episode in episodes
    }
    longest = max(frames.length for row in recorder.frames.values() for frames in row)
    times = np.linspace(0, longest - 1, min(longest, MAX_PICTURES)).round().astype(int)
    pictures = draw_pictures([task_title(task) for task in tasks], captions, recorder.frames, times.tolist())
    # Pictures last as long as their frames, within bounds.
    of_frame = 1000 / envs.metadata.get("render_fps", 10)
    lasting = min(of_frame * longest / len(times), max(of_frame, MAX_MILLISECONDS))
    milliseconds = max(MIN_MILLISECONDS, round(lasting))
    paths = [Path(output_dir) / f"replay.{name}" for name in formats]
    for path in paths:
        write_video(path, pictures, milliseconds)
    return paths


def task_title(task: Task) -> str:
    """The arguments of a task, in a line: `goal [3, 7]`, `gravity 9.81`."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in task.kwargs.items()
    )


def draw_pictures(
    titles: list[str], captions: dict[int, list[str]], frames: dict[int, list[EpisodeFrames]], times: list[int]
) -> list[Image.Image]:
    """RGB pictures of one even size, at some times (steps): tasks are columns, episodes are rows."""
    sizes = [part.at(0).size for row in frames.values() for part in row]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    lefts = [MARGIN + column * (width + MARGIN) for column in range(len(titles))]
    tops = {episode: MARGIN + LINE + row * (height + LINE + MARGIN) for row, episode in enumerate(frames)}
    size = (lefts[-1] + width + MARGIN, max(tops.values()) + LINE + height + MARGIN)
    background = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    draw, font = ImageDraw.Draw(background), ImageFont.load_default(FONT_SIZE)
    for column, left in enumerate(lefts):
        draw.text((left, MARGIN), _clipped(titles[column], width, font), fill=FADED, font=font)
        for episode, top in tops.items():
            draw.text((left, top), _clipped(captions[episode][column], width, font), fill=INK, font=font)
            frame = frames[episode][column].at(0)
            draw.rectangle((left - 1, top + LINE - 1, left + frame.width, top + LINE + frame.height), outline=EDGE)
    pictures = []
    for time in times:
        picture = background.copy()
        for episode, top in tops.items():
            for left, part in zip(lefts, frames[episode]):
                picture.paste(part.at(time), (left, top + LINE))
        pictures.append(picture)
    return pictures


def _clipped(text: str, width: int, font: Any) -> str:
    """As much of a text as fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
