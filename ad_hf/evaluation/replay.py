"""Replays: some episodes of a rollout side by side, from the first to the last, as moving pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.episodes import MAX_PICTURES, SIDE, SeenTasks, episodes_to_show, see_again
from ad_hf.evaluation.paths import EPISODES as PATH_EPISODES
from ad_hf.evaluation.paths import MOST_TASKS as PATH_TASKS
from ad_hf.evaluation.paths import PATHS_FILE, room_size, write_paths
from ad_hf.evaluation.rollouts import Evaluation
from ad_hf.evaluation.style import FADED, INK, PAPER, clipped, font
from ad_hf.evaluation.video import FORMATS, write_video

REPLAY_FILES = (*(f"replay.{name}" for name in FORMATS), PATHS_FILE)
EPISODES = (1, 5, 20)  # and the last
MOST_TASKS = 2
MARGIN, LINE, LETTERS = 10, 20, 13  # pixels
EDGE = "#d0d5db"
# Browsers slow down faster GIFs; and where frames were dropped, the others need not last for longer.
MIN_MILLISECONDS, MAX_MILLISECONDS = 20, 100


def write_replays(
    output_dir: str | Path, family: TaskFamily, evaluation: Evaluation, formats: Sequence[str] = ("gif",)
) -> list[Path]:
    """
    Show episodes of a rollout side by side, the first to the last, as they were acted: in `replay.gif`, `replay.mp4`
    or both, and for rooms of cells their paths in `paths.gif`.

    Args:
        output_dir (`str` or `Path`):
            Folder of the files.
        family ([`TaskFamily`]):
            Its environments [`~ad_hf.evaluation.episodes.can_be_seen`].
        evaluation ([`Evaluation`]):
            A rollout with the actions in some tasks.
        formats (`Sequence[str]`, *optional*, defaults to `("gif",)`):
            `"gif"`, `"mp4"` or both; see [`~ad_hf.evaluation.video.check_formats`].

    Returns:
        `list[Path]`: the files; none, with a warning, if the environments do not do the same again.
    """
    last = evaluation.returns.shape[2]
    replayed, cells = episodes_to_show(EPISODES, last), room_size(family)
    paths = episodes_to_show(PATH_EPISODES, min(last, max(PATH_EPISODES))) if cells else []
    seen = see_again(family, evaluation, {*replayed, *paths}, replayed, PATH_TASKS if cells else MOST_TASKS)
    if seen is None:
        return []
    files = [Path(output_dir) / f"replay.{name}" for name in formats]
    pictures, milliseconds = draw_replay(seen.part(replayed, MOST_TASKS))
    for file in files:
        write_video(file, pictures, milliseconds)
    return files + ([write_paths(output_dir, seen.part(paths, PATH_TASKS), cells)] if cells else [])


def task_title(task: Task) -> str:
    """The numbers among the arguments of a task, in a line: `goal [3, 7]`, `gravity 9.81`."""
    words = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in task.kwargs.items()}
    return ", ".join(f"{name} {text}" for name, text in words.items() if "'" not in text)


def draw_replay(seen: SeenTasks) -> tuple[list[Image.Image], int]:
    """
    RGB pictures of one even size, in which tasks are rows and episodes are columns, and the milliseconds that each
    lasts. Episodes that have ended stand still until the longest one has.
    """
    sizes = [part.frame_at(0).size for parts in seen.episodes.values() for part in parts]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    lefts = [MARGIN + column * (width + MARGIN) for column in range(len(seen.episodes))]
    titles = list(map(task_title, seen.tasks))
    above = LINE * (1 + any(titles))  # pixels from the top of a row to its frames
    tops = [2 * MARGIN + LINE + above + row * (height + above + MARGIN) for row in range(len(titles))]
    size = (max(lefts[-1] + width, 2 * SIDE) + MARGIN, tops[-1] + height + MARGIN)
    background = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    draw, letters, bold = ImageDraw.Draw(background), font(LETTERS), font(LETTERS, bold=True)
    draw.text((MARGIN, MARGIN), clipped(seen.title, size[0] - 2 * MARGIN, bold), fill=INK, font=bold)
    for words, top, row in zip(titles, tops, zip(*seen.episodes.values())):
        draw.text((MARGIN, top - above), clipped(words, size[0] - 2 * MARGIN, letters), fill=FADED, font=letters)
        for left, episode, part in zip(lefts, seen.episodes, row):
            name = f"episode {episode + 1:,}"
            draw.text((left, top - LINE), name, fill=INK, font=bold)
            rest = left + bold.getlength(name) + 6
            words = clipped(f"return {part.total:,.3g}", left + width - rest, letters)
            draw.text((rest, top - LINE), words, fill=FADED, font=letters)
            frame = part.frame_at(0)
            draw.rectangle((left - 1, top - 1, left + frame.width, top + frame.height), outline=EDGE)
    longest = max(part.length for parts in seen.episodes.values() for part in parts)
    pictures = []
    for time in np.linspace(0, longest - 1, min(longest, MAX_PICTURES)).round().astype(int):
        picture = background.copy()
        for left, parts in zip(lefts, seen.episodes.values()):
            for top, part in zip(tops, parts):
                picture.paste(part.frame_at(int(time)), (left, top))
        pictures.append(picture)
    # Pictures last as long as their frames, within bounds.
    lasting = min(1000 / seen.fps * longest / len(pictures), max(1000 / seen.fps, MAX_MILLISECONDS))
    return pictures, max(MIN_MILLISECONDS, round(lasting))
