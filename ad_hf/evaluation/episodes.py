"""Episodes of a rollout, seen again: the same seeds and the same actions, in environments that render."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from PIL import Image

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.rollouts import Evaluation
from ad_hf.evaluation.style import tasks_words, world_name

SIDE = 198  # pixels of a frame's longer side, so that four fill the width of a page
# A replay of longer episodes drops frames evenly, but never the first and the last.
MAX_PICTURES = 60
QUARTILES = (0.75, 0.5, 0.25)  # of the tasks that are shown
MOST_TASKS = 16  # whose actions are kept


class SeenEpisode:
    """
    An episode: its observations, one more than its steps, its return, and frames if it was rendered.

    Frames are the first, the last, and some between them at a distance that doubles as often as they are more than
    `2 * MAX_PICTURES`, so that every episode fits in memory.
    """

    def __init__(self) -> None:
        self.observations: list[np.ndarray] = []
        self.rewards: list[float] = []
        self._frames: list[Image.Image] = []
        self._distance, self._seen = 1, 0

    @property
    def length(self) -> int:
        """The number of its observations."""
        return len(self.observations)

    @property
    def total(self) -> float:
        """Its return."""
        return sum(self.rewards)

    def add_frame(self, frame: Image.Image) -> None:
        """Add the next frame."""
        if self._seen % self._distance == 0:
            if len(self._frames) == 2 * MAX_PICTURES:
                del self._frames[1::2]
                self._distance *= 2
            self._frames.append(frame)
        self._last = frame
        self._seen += 1

    def frame_at(self, time: int) -> Image.Image:
        """The frame after `time` steps, or the newest before it; after the end, the last one."""
        return self._last if time >= self._seen - 1 else self._frames[time // self._distance]


@dataclass
class SeenTasks:
    """
    Some tasks of a rollout, and what was seen in them.

    Attributes:
        tasks (`list[Task]`):
            The tasks.
        episodes (`dict[int, list[SeenEpisode]]`):
            By the number of an episode, from 0, that episode in each task.
        world (`str`), count (`int`):
            The name of their environment, and the number of all tasks of the rollout.
        fps (`float`):
            Frames of the environments in a second.
    """

    tasks: list[Task]
    episodes: dict[int, list[SeenEpisode]]
    world: str
    count: int
    fps: float = 10.0

    @property
    def title(self) -> str:
        """The tasks in words: `Dark Room: 3 of 16 goals never seen in training`."""
        number, all_of = len(self.tasks), tasks_words(self.count, [task.kwargs for task in self.tasks])
        return f"{self.world}: {f'{number} of ' * (number < self.count)}{all_of} never seen in training"

    def part(self, episodes: Collection[int], most_tasks: int) -> SeenTasks:
        """Some of the episodes, in so many tasks at most."""
        kept = {episode: parts[:most_tasks] for episode, parts in self.episodes.items() if episode in episodes}
        return replace(self, tasks=self.tasks[:most_tasks], episodes=kept)


def see_again(
    family: TaskFamily,
    evaluation: Evaluation,
    episodes: Collection[int],
    rendered: Collection[int] = (),
    most_tasks: int = len(QUARTILES),
) -> SeenTasks | None:
    """
    Episodes of the first rollout in up to three of the tasks whose actions were kept: those at the quartiles of their
    mean return over all episodes, the highest first, so that neither the best nor the worst are shown.

    Args:
        family ([`TaskFamily`]):
            The family of the tasks.
        evaluation ([`Evaluation`]):
            A rollout with `actions`.
        episodes (`Collection[int]`):
            Numbers of episodes, from 0.
        rendered (`Collection[int]`, *optional*):
            Those of them that are rendered.
        most_tasks (`int`, *optional*, defaults to 3):
            Number of tasks, at most.

    Returns:
        [`SeenTasks`]: the episodes in order; `None`, with a warning, if the environments do not do the same again.
    """
    returns = evaluation.returns[0, evaluation.shown]  # (shown, episodes)
    ranks = np.argsort(returns.mean(axis=1), kind="stable")
    chosen = list(dict.fromkeys(int(ranks[int(len(ranks) * share)]) for share in QUARTILES))[:most_tasks]
    positions = [evaluation.shown[index] for index in chosen]
    seen = SeenTasks(
        [evaluation.tasks[position] for position in positions],
        {episode: [SeenEpisode() for _ in positions] for episode in sorted(episodes)},
        world_name(family.env_id),
        len(evaluation.tasks),
    )
    numbers = np.zeros(len(chosen), dtype=np.int64)
    everywhere = np.ones(len(chosen), dtype=bool)
    mode = "rgb_array" if rendered else None
    with closing(family.make_vec(seen.tasks, autoreset_mode=AutoresetMode.DISABLED, render_mode=mode)) as envs:
        seen.fps = envs.metadata.get("render_fps", seen.fps)

        def look(observations: np.ndarray, fresh: np.ndarray, rewards: np.ndarray | None = None) -> None:
            frames: Any = envs.render() if np.isin(numbers[fresh], list(rendered)).any() else None
            for index in np.flatnonzero(fresh & np.isin(numbers, list(seen.episodes))):
                own = seen.episodes[int(numbers[index])][index]
                own.observations.append(np.array(observations[index]))
                if rewards is not None:
                    own.rewards.append(float(rewards[index]))
                if numbers[index] in rendered:
                    own.add_frame(fitted(frames[index]))

        seeds: Any = [evaluation.seed + position for position in positions]
        look(envs.reset(seed=seeds)[0], everywhere)
        for actions in () if evaluation.actions is None else evaluation.actions[:, chosen]:
            if numbers.min() > max(seen.episodes):
                break
            observations, rewards, terminations, truncations, _ = envs.step(actions)
            look(observations, everywhere, rewards)
            ended = terminations | truncations
            if ended.any():
                numbers += ended
                look(envs.reset(options={"reset_mask": ended})[0], ended)
    for episode, parts in seen.episodes.items():
        if not np.allclose([part.total for part in parts], returns[chosen, episode]):
            text = "its episodes do not come to the same with the same seed and the same actions"
            warnings.warn(f"there will be no replay of {family.env_id}: {text}", stacklevel=2)
            return None
    return seen


def fitted(frame: np.ndarray) -> Image.Image:
    """A frame (height, width, 3) at the size of a replay."""
    longer, image = max(frame.shape[:2]), Image.fromarray(frame)
    whole = -(-SIDE // longer)  # pixels become squares first, so that the cells of a small grid stay alike
    if whole > 1:
        image = image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
    scale = SIDE / longer
    return image.resize((round(frame.shape[1] * scale), round(frame.shape[0] * scale)), Image.Resampling.BOX)


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


def some_of(count: int) -> list[int]:
    """Positions of the tasks, of so many, whose actions are kept: from all over them."""
    return list(range(count))[:: max(1, count // MOST_TASKS)][:MOST_TASKS]


def episodes_to_show(numbers: Sequence[int], last: int) -> list[int]:
    """Those of some episodes (from 1) that come before the last one, and the last one; from 0."""
    return [number - 1 for number in numbers if number < last] + [last - 1]
