"""Paths through rooms of cells: how the same frozen model walks in its first episodes and in later ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.episodes import MAX_PICTURES, SeenTasks
from ad_hf.evaluation.style import (
    AD_COLOUR,
    BLUE,
    FADED,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    clipped,
    font,
)
from ad_hf.evaluation.video import write_gif
from ad_hf.storage.files import atomic_path

PATHS_FILE = "paths.gif"
EPISODES, MOST_TASKS = (1, 2, 5, 10, 50), 3
ROOM, MARGIN, LINE, LETTERS = 156, 10, 20, 13  # pixels
FINER = 2  # pixels of a drawing to one of the picture, for smooth lines
WHOLE_MILLISECONDS, STEP_MILLISECONDS, MOST_MILLISECONDS = 3000, 130, 4000  # of whole paths, a step, and all steps
COLOURS = (GREEN, ORANGE, BLUE, PURPLE)  # of a task's cells, in their order


def room_size(family: TaskFamily) -> int | None:
    """Cells of a side of a family's rooms, if its observations are cells of square rooms, and its tasks too."""
    with closing(family.make_vec(family.tasks()[:1])) as envs:
        space = envs.single_observation_space
    if not isinstance(space, gym.spaces.MultiDiscrete) or space.nvec.shape != (2,) or len(set(space.nvec)) > 1:
        return None
    size = int(space.nvec[0])
    cells = [np.asarray(value) for task in family.tasks("test") for value in task.kwargs.values()]
    are_cells = all(cell.shape == (2,) and cell.dtype.kind in "iu" and (cell < size).all() for cell in cells)
    return size if cells and are_cells else None


def write_paths(output_dir: str | Path, seen: SeenTasks, size: int) -> Path:
    """
    Write `paths.gif`: a row for each task, a column for each episode. Its first picture shows the whole paths.

    Args:
        output_dir (`str` or `Path`):
            Folder of the file.
        seen ([`SeenTasks`]):
            The episodes, from [`~ad_hf.evaluation.episodes.see_again`].
        size (`int`):
            Cells of a side of their rooms, from [`room_size`].
    """
    drawing = _Drawing(seen, size)
    longest = max(part.length for parts in seen.episodes.values() for part in parts)
    every = max(1, round(longest / MAX_PICTURES))
    times = [longest - 1, *range(0, longest - 1, every)]
    lasting = max(40, min(STEP_MILLISECONDS, round(MOST_MILLISECONDS / len(times))))
    path = Path(output_dir) / PATHS_FILE
    with atomic_path(path) as temporary:
        write_gif(temporary, list(map(drawing.at, times)), [WHOLE_MILLISECONDS, *[lasting] * (len(times) - 1)])
    return path


class _Drawing:
    """A grid of rooms, and the paths in them until some time."""

    def __init__(self, seen: SeenTasks, size: int) -> None:
        self.tasks, self.size, self.seen = seen.tasks, size, seen.episodes
        self.cell = ROOM / size
        self.names = list(dict.fromkeys(name for task in self.tasks for name in task.kwargs))
        self.lefts = [MARGIN + column * (ROOM + MARGIN) for column in range(len(self.seen))]
        self.tops = [2 * MARGIN + 3 * LINE + row * (ROOM + LINE + MARGIN) for row in range(len(self.tasks))]
        self.shape = (max(self.lefts[-1] + ROOM, 2 * ROOM) + MARGIN, self.tops[-1] + ROOM + LINE + MARGIN)
        generator = np.random.default_rng(0)  # steps on one cell can be told apart
        self.points = {
            (row, episode): np.asarray(parts[row].observations) + generator.uniform(-0.2, 0.2, (parts[row].length, 2))
            for episode, parts in self.seen.items()
            for row in range(len(self.tasks))
        }
        width, height = self.shape
        self.background = Image.new("RGB", (FINER * width, FINER * height), PAPER)
        self._draw = ImageDraw.Draw(self.background)
        self._text(
            (MARGIN, MARGIN), clipped(seen.title, width - 2 * MARGIN, font(LETTERS + 2, True)), INK, LETTERS + 2, True
        )
        self._key()
        for left, episode in zip(self.lefts, self.seen):
            self._text((left, self.tops[0] - LINE), f"episode {episode + 1:,}", INK, LETTERS, True)
        for left in self.lefts:
            for top, task in zip(self.tops, self.tasks):
                self._room(left, top, task)

    def at(self, time: int) -> Image.Image:
        """The picture after some steps."""
        picture = self.background.copy()
        self._draw = ImageDraw.Draw(picture)
        for left, (episode, parts) in zip(self.lefts, self.seen.items()):
            for row, (top, part) in enumerate(zip(self.tops, parts)):
                points = self._places(self.points[row, episode][: time + 1], left, top)
                self._draw.line([*map(tuple, points)], fill=AD_COLOUR, width=round(1.8 * FINER), joint="curve")
                self._dot(points[0], 2.5, INK)
                self._dot(points[-1], 5, AD_COLOUR, PAPER)
                total = sum(part.rewards[:time])
                earns = total > 0
                self._text((left, top + ROOM + 3), f"return {total:,.3g}", INK if earns else FADED, LETTERS, earns)
        return picture.reduce(FINER)

    def _places(self, cells: np.ndarray, left: float, top: float) -> np.ndarray:
        """Pixels (x, y) of a drawing at some cells (number, 2), y upwards."""
        x, y = cells.T
        return FINER * np.stack([left + (x + 0.5) * self.cell, top + (self.size - 0.5 - y) * self.cell], axis=1)

    def _room(self, left: int, top: int, task: Task) -> None:
        box = [FINER * value for value in (left, top, left + ROOM, top + ROOM)]
        self._draw.rectangle(box, fill="#f7f8fa", outline="#c3c9d1", width=FINER)
        for line in range(1, self.size):
            shift = FINER * line * self.cell
            self._draw.line((box[0] + shift, box[1], box[0] + shift, box[3]), fill=GRID, width=1)
            self._draw.line((box[0], box[1] + shift, box[2], box[1] + shift), fill=GRID, width=1)
        for name, value in task.kwargs.items():
            (place,) = self._places(np.asarray(value)[None].astype(float), left, top)
            self._mark(name, place, 0.62 * self.cell)

    def _mark(self, name: str, place: np.ndarray, radius: float) -> None:
        """The mark of one of a task's cells, which has more corners the later it is: a star first."""
        index = self.names.index(name)
        corners = 10 if index == 0 else 4
        angles = 2 * np.pi * np.arange(corners) / corners - np.pi / (2 if index < 2 else 4)
        reach = FINER * radius * np.where(np.arange(corners) % 2, 0.45 if index == 0 else 1.0, 1.25)
        points = place + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._draw.polygon([*map(tuple, points)], fill=COLOURS[index % len(COLOURS)], outline=INK)

    def _dot(self, place: Any, radius: float, colour: str, edge: str | None = None) -> None:
        (x, y), reach = place, FINER * radius
        self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour, outline=edge, width=FINER)

    def _text(self, place: tuple[float, float], text: str, colour: str, size: int, bold: bool = False) -> None:
        x, y = place
        self._draw.text((FINER * x, FINER * y), text, fill=colour, font=font(FINER * size, bold))

    def _key(self) -> None:
        """What the marks mean, in a line below the title."""
        left, top = float(MARGIN), MARGIN + LINE + 4
        words = ["a frozen transformer, from an empty context on", "start", *self.names]
        for index, word in enumerate(words):
            place = np.array([FINER * (left + 6), FINER * (top + 8)])
            if index == 0:
                self._dot(place, 5, AD_COLOUR, PAPER)
            elif index == 1:
                self._dot(place, 2.5, INK)
            else:
                self._mark(word, place, 6)
            self._text((left + 18, top), word, FADED, LETTERS)
            left += 18 + font(LETTERS).getlength(word) + 18
