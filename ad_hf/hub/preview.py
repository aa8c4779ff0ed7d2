"""A preview of a dataset for people: pictures of a few histories, which the Hub's viewer shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image, ImageDraw

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.replay import task_title
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.frames import FramePieces, has_frames
from ad_hf.histories.steps import Episodes, Steps, find_episodes, row_lengths

SPLIT = "preview"
NUM_TASKS = 8
NUM_FRAMES = 6  # of an episode, side by side
FRAME_HEIGHT, CURVE_SIZE, GAP = 112, (224, 112), 4  # pixels
PAPER, INK, FADED = "#ffffff", "#30638e", "#6b7280"
COLUMNS = {
    **{name: Value("string") for name in ("task", "task_split", "history_id")},
    **{"episodes": Value("int64"), "first_return": Value("float64"), "last_return": Value("float64")},
    **{name: ImageFeature() for name in ("learning_curve", "first_episode", "last_episode")},
}

logger = logging.getLogger(__name__)


def preview_config(config_name: str) -> dict[str, Any]:
    """The YAML of a dataset card about the preview of a configuration."""
    name = SPLIT if config_name == "default" else f"{config_name}_{SPLIT}"
    files = [{"split": SPLIT, "path": f"{name}/{SPLIT}-*.parquet"}]
    return {"config_name": name, "data_files": files, "description": "Pictures of some histories, not to train on"}


def write_preview(path: Path, dataset: HistoryDataset, trust_remote_code: bool = False) -> None:
    """
    Write a row for the first history of some tasks: its returns, and pictures of its first and last episode.

    Episodes are acted again in their environment, and shown if it repeats their observations and rewards. An
    environment that the dataset may not name ([`~ad_hf.envs.foreign`]) is not made without `trust_remote_code`.
    """
    metadata = dataset.metadata
    family = {name: getattr(metadata, name) for name in ("env_id", "env_kwargs", "wrappers", "attributes")}
    some = np.random.default_rng(0).permutation(len(metadata.tasks))[:NUM_TASKS]
    rows = []
    for task, table in _first_histories(dataset, [metadata.tasks[index] for index in some]):
        steps, lengths = Steps.of_table(table), row_lengths(table)
        episodes = find_episodes(steps.rewards, steps.ends, np.array([0, lengths.sum()]))
        if not len(episodes.returns):
            continue
        ends: list[Image.Image | None] = [None, None]
        if has_frames(metadata.spaces[0]):
            shape, names = metadata.spaces[0].shape or (), table["history_id"].to_pylist()
            ends = _seen(FramePieces(table["observations"], lengths, shape, names), episodes)
        elif family is not None:
            try:
                if not trust_remote_code:
                    check_family_section({**family, "tasks": [task["kwargs"]]}, str(dataset))
                ends = _acted_again(TaskFamily(**family, tasks=[task["kwargs"]]), steps, episodes)
            except Exception as error:  # an environment may raise anything
                logger.info("the preview shows no episodes of %s: %s", dataset, error)
                family = None
        rows.append(
            {
                "task": task_title(Task(**task)),
                "task_split": task["split"],
                "history_id": table["history_id"][0].as_py(),
                "episodes": len(episodes.returns),
                "first_return": episodes.returns[0],
                "last_return": episodes.returns[-1],
                "learning_curve": _curve(episodes.returns if len(episodes.returns) > 1 else steps.rewards),
                **dict(zip(("first_episode", "last_episode"), ends)),
            }
        )
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    Dataset.from_dict(columns, Features(COLUMNS)).to_parquet(path)


def _first_histories(
    dataset: HistoryDataset, tasks: Sequence[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """The rows of the first history of each task, as far as there is one."""
    left = {task["task_id"]: task for task in tasks}
    for split in dataset.splits:
        for file in dataset.files(split):
            with pq.ParquetFile(file) as shard:
                for group in range(shard.num_row_groups):
                    keys = shard.read_row_group(group, columns=["history_id", "task_id"])
                    ids, owners = keys["history_id"], np.asarray(keys["task_id"])
                    here = [task_id for task_id in dict.fromkeys(owners.tolist()) if task_id in left]
                    table = shard.read_row_group(group) if here else None
                    for task_id in here:
                        name = ids[int(np.argmax(owners == task_id))]
                        yield left.pop(task_id), table.filter(pc.equal(ids, name))


def _seen(frames: FramePieces, episodes: Episodes) -> list[Image.Image | None]:
    """The first and the last episode by their observations, where these are pictures."""
    if frames.shape[-1] not in (1, 3):
        return [None, None]
    return [
        _film(frames.take(np.linspace(episodes.starts[number], episodes.stops[number] - 1, NUM_FRAMES).astype(int)))
        for number in (0, -1)
    ]


def _acted_again(family: TaskFamily, steps: Steps, episodes: Episodes) -> list[Image.Image | None]:
    """The first and the last episode, rendered; none of an environment that cannot be seen."""
    envs = family.make_vec(family.tasks(), autoreset_mode=AutoresetMode.NEXT_STEP)
    modes = envs.metadata.get("render_modes", [])
    envs.close()
    if "rgb_array" not in modes:
        return [None, None]
    envs = family.make_vec(family.tasks(), autoreset_mode=AutoresetMode.NEXT_STEP, render_mode="rgb_array")
    try:
        return [_repeated(envs, steps, episodes.starts[number], episodes.stops[number]) for number in (0, -1)]
    finally:
        envs.close()


def _repeated(envs: VectorEnv, steps: Steps, start: int, stop: int) -> Image.Image | None:
    """An episode in pictures, if the environment does again what it did."""
    observations, _ = envs.reset(seed=0)
    times, frames = set(np.linspace(start, stop, NUM_FRAMES).astype(int).tolist()), []
    for time in range(start, stop):
        if not np.allclose(observations[0], steps.observations[time]):
            return None
        if time in times:
            frames.append(envs.render()[0])  # type: ignore[index]
        observations, rewards, *_ = envs.step(steps.actions[time : time + 1])
        if not np.isclose(rewards[0], steps.rewards[time]):
            return None
    return _film([*frames, envs.render()[0]])  # type: ignore[index]


def _film(frames: Sequence[np.ndarray]) -> Image.Image:
    """Frames (height, width, channels) side by side."""
    pictures = [Image.fromarray(np.repeat(frame, 3 // frame.shape[-1], axis=-1)) for frame in frames]
    way = Image.Resampling.NEAREST if pictures[0].height <= FRAME_HEIGHT else Image.Resampling.BOX
    width = round(pictures[0].width * FRAME_HEIGHT / pictures[0].height)
    film = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, FRAME_HEIGHT), PAPER)
    for number, picture in enumerate(pictures):
        film.paste(picture.resize((width, FRAME_HEIGHT), way), (number * (width + GAP), 0))
    return film


def _curve(returns: np.ndarray) -> Image.Image:
    """Returns by episode, or rewards by step, as a line: means over as many stretches as there is room for."""
    width, height = CURVE_SIZE
    parts = np.array_split(returns, min(len(returns), width // 4))
    means = np.array([part.mean() for part in parts])
    low, high = float(means.min()), float(means.max())
    across = np.linspace(GAP, width - GAP, len(means))
    up = height - GAP - (means - low) / ((high - low) or 1.0) * (height - 2 * GAP)
    picture = Image.new("RGB", CURVE_SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.line(list(zip(across.tolist(), up.tolist())), fill=INK, width=2, joint="curve")
    draw.text((GAP, 0), f"{high:.4g}", fill=FADED)
    draw.text((width - GAP, height), f"{low:.4g}", fill=FADED, anchor="rd")
    return picture
