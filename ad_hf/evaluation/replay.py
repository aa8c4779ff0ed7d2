"""Replays: what a model does in its first and in its last episodes, as an animated picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from PIL import Image, ImageDraw

from ad_hf.envs.task_family import TaskFamily
from ad_hf.files import atomic_path
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig

MARGIN, CAPTION = 6, 16  # pixels
LAST_FRAME_MILLISECONDS = 1000


class FrameRecorder(VectorWrapper):
    """
    Keeps the rendered frames of some episodes of each environment.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            Environments that render to arrays and are reset by the one who steps them (DISABLED autoreset).
        episodes (`tuple[int, ...]`):
            Numbers of the episodes, from 0.
    """

    def __init__(self, envs: VectorEnv, episodes: tuple[int, ...]) -> None:
        super().__init__(envs)
        self.frames: dict[int, list[list[np.ndarray]]] = {
            episode: [[] for _ in range(envs.num_envs)] for episode in episodes
        }
        self._episodes = np.full(envs.num_envs, -1)

    def _keep(self, chosen: np.ndarray) -> None:
        chosen = np.flatnonzero(chosen & np.isin(self._episodes, list(self.frames)))
        if chosen.size:
            rendered: Any = self.env.render()
            for index in chosen:
                self.frames[int(self._episodes[index])][index].append(np.array(rendered[index]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Reset, and keep the first frame of the episodes that begin."""
        # Read before the reset, which may take the mask out of the options (SyncVectorEnv does).
        begun = np.ones(self.num_envs, dtype=bool) if options is None else options["reset_mask"]
        result = self.env.reset(seed=seed, options=options)
        self._episodes[begun] += 1
        self._keep(begun)
        return result

    def step(self, actions: np.ndarray):
        """Step, and keep the frame that follows."""
        result = self.env.step(actions)
        self._keep(np.ones(self.num_envs, dtype=bool))
        return result


def write_replay(
    path: str | Path, model: ADModel, family: TaskFamily, rollout_config: RolloutConfig, num_tasks: int = 4
) -> bool:
    """
    Roll a model out on a few test tasks and write the first and the last episode of each, side by side, as a GIF.

    Args:
        path (`str` or `Path`):
            The file to write.
        model ([`ADModel`]):
            The model.
        family ([`TaskFamily`]):
            The tasks; those shown are from all over its list of test tasks.
        rollout_config ([`RolloutConfig`]):
            How to act, and for how many episodes.
        num_tasks (`int`, *optional*, defaults to 4):
            How many tasks at most.

    Returns:
        `bool`: whether there is something to see; environments that do not render to arrays give nothing.
    """
    tasks = family.tasks("test")
    tasks = tasks[:: max(1, len(tasks) // num_tasks)][:num_tasks]
    plain = family.make_vec(tasks)
    renders = "rgb_array" in plain.metadata.get("render_modes", [])
    plain.close()
    if not renders:
        return False
    envs = family.make_vec(tasks, autoreset_mode=AutoresetMode.DISABLED, render_mode="rgb_array")
    last = rollout_config.num_episodes - 1
    recorder = FrameRecorder(envs, (0, last))
    returns: Any = model.rollout(recorder, rollout_config).episode_returns
    recorder.close()
    rows = [
        (f"episode {episode + 1}: return", recorder.frames[episode], returns[:, episode])
        for episode in sorted(recorder.frames)
    ]
    length = max(len(frames) for _, column, _ in rows for frames in column)
    pictures = [_picture(rows, time) for time in range(length)]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[1000 // family_fps(envs)] * (length - 1) + [LAST_FRAME_MILLISECONDS],
            loop=0,
        )
    return True


def family_fps(envs: VectorEnv) -> int:
    """Frames per second that environments ask for."""
    return int(envs.metadata.get("render_fps", 10))


def _picture(rows: list[tuple[str, list[list[np.ndarray]], np.ndarray]], time: int) -> Image.Image:
    """One picture: a row for each episode shown, a column for each task; ended episodes stand still."""
    height, width = rows[0][1][0][0].shape[:2]
    columns = len(rows[0][1])
    size = (MARGIN + columns * (width + MARGIN), MARGIN + len(rows) * (height + CAPTION + MARGIN))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row, (caption, episodes, returns) in enumerate(rows):
        top = MARGIN + row * (height + CAPTION + MARGIN)
        for column, frames in enumerate(episodes):
            left = MARGIN + column * (width + MARGIN)
            draw.text((left, top), f"{caption} {returns[column]:g}", fill="black")
            picture.paste(Image.fromarray(frames[min(time, len(frames) - 1)]), (left, top + CAPTION))
    return picture
