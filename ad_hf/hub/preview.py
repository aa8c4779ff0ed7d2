"""A preview of histories for people: pictures of some of them, which the Hub's viewer of datasets shows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.episodes import can_be_seen, fitted
from ad_hf.evaluation.style import PAPER, SOURCE_COLOUR, clean, new_figure, write_numbers
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.frames import FramePieces, has_frames
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.steps import Steps, find_episodes, row_lengths

SPLIT = "preview"
NUM_TASKS = 3  # of each split
NUM_FRAMES, GAP = 6, 6  # of an episode, side by side, and pixels between them
MOST_STEPS = 1000  # of an episode that is acted again
LEAST_PIXELS = 12  # of an observation that is a picture, and not some codes of what is near
MOST_POINTS = 50  # of a curve
COLUMNS = {
    **dict.fromkeys(("history_id", "task", "task_split"), Value("string")),
    **{"episodes": Value("int64"), "first_return": Value("float64"), "last_return": Value("float64")},
    **dict.fromkeys(("learning_curve", "first_episode", "last_episode"), ImageFeature()),
}

logger = logging.getLogger(__name__)


def preview_config(config_name: str) -> dict[str, Any]:
    """The YAML of a dataset card about the preview of a configuration."""
    name = SPLIT if config_name == "default" else f"{config_name}_{SPLIT}"
    files = [{"split": SPLIT, "path": f"{name}/{SPLIT}-*.parquet"}]
    return {"config_name": name, "data_files": files, "description": "Pictures of some histories, not for training"}


def preview_table(dataset: HistoryDataset, trust_remote_code: bool = False) -> bytes:
    """
    A parquet file of the first history of some tasks: its returns, and pictures of its first and last episode.

    Episodes are acted again in their environment, and shown if it repeats their observations and rewards. An
    environment that the dataset may not name ([`~ad_hf.envs.foreign`]) is not made without `trust_remote_code`.
    """
    shape, shown = dataset.metadata.spaces[0].shape or (), True
    is_seen = has_frames(dataset.metadata.spaces[0]) and shape[-1] in (1, 3) and min(shape[:2]) >= LEAST_PIXELS
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for task, table in _first_histories(dataset):
        steps, lengths = Steps.of_table(table), row_lengths(table)
        episodes = find_episodes(steps.rewards, steps.ends, np.array([0, lengths.sum()]))
        returns = episodes.returns
        if not len(returns):
            continue
        films: list[Image.Image | None] = [None, None]
        both = [range(episodes.starts[number], episodes.stops[number]) for number in (0, -1)]
        if is_seen:
            frames = FramePieces(table["observations"], lengths, shape, table["history_id"].to_pylist())
            films = [_film(frames.take(_spread(episode))) for episode in both]
        elif shown:
            try:
                family = _family(dataset.metadata, task, None if trust_remote_code else f"the dataset {dataset}")
                films = _acted_again(family, steps, both)
            except Exception as error:  # an environment may raise anything
                logger.info("the preview shows no episodes of %s: %s", dataset.metadata.env_id, error)
            shown = films[0] is not None  # else no other task can be seen, either
        curve = _curve(steps.rewards, "step", "reward") if len(returns) == 1 else _curve(returns, "episode", "return")
        names = [table["history_id"][0].as_py(), json.dumps(task["kwargs"]), task["split"]]
        for column, value in zip(rows.values(), [*names, len(returns), returns[0], returns[-1], curve, *films]):
            column.append(value)
    buffer = BytesIO()
    pq.write_table(Dataset.from_dict(rows, Features(COLUMNS)).data.table, buffer)
    return buffer.getvalue()


def _first_histories(dataset: HistoryDataset) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """The rows of the first history of some tasks of each split."""
    for split in dataset.splits:
        tasks = [task for task in dataset.metadata.tasks if task["split"] == split]
        left = {tasks[index]["task_id"]: tasks[index] for index in _spread(range(len(tasks)), NUM_TASKS)}
        for file in dataset.files(split):
            keys = pq.read_table(file, columns=["task_id", "history_id"], partitioning=None)
            for row, task_id in enumerate(keys["task_id"].to_pylist()):
                if task_id in left:
                    name = keys["history_id"][row]
                    yield (
                        left.pop(task_id),
                        pq.read_table(file, filters=[("history_id", "=", name)], partitioning=None),
                    )


def _spread(numbers: range, count: int = NUM_FRAMES) -> np.ndarray:
    """So many of some numbers, if there are, from the first to the last."""
    return np.unique(np.linspace(numbers[0], numbers[-1], count).astype(int))


def _family(metadata: HistoryMetadata, task: dict[str, Any], origin: str | None) -> TaskFamily:
    """The family of a single task, which must be one that somebody else may name if there is an `origin`."""
    family = {name: getattr(metadata, name) for name in ("env_id", "env_kwargs", "wrappers", "attributes")}
    family["splits"] = {"train": [task["kwargs"]]}
    if origin is not None:
        check_family_section(family, origin)
    return TaskFamily(**family)


def _acted_again(family: TaskFamily, steps: Steps, episodes: Sequence[range]) -> list[Image.Image | None]:
    """Episodes in pictures, as far as the environment does again what it did; none if one is very long."""
    if max(map(len, episodes)) > MOST_STEPS:
        return [None] * len(episodes)
    with closing(family.make_vec(family.tasks())) as envs:
        first = envs.reset(seed=0)[0][0]
    starts = [steps.observations[episode.start] for episode in episodes]
    if not all(np.allclose(first, start) for start in starts) or not can_be_seen(family):
        return [None] * len(episodes)
    mode = AutoresetMode.DISABLED
    with closing(family.make_vec(family.tasks(), autoreset_mode=mode, render_mode="rgb_array")) as envs:
        return [_repeated(envs, steps, episode) for episode in episodes]


def _repeated(envs: VectorEnv, steps: Steps, episode: range) -> Image.Image | None:
    """An episode in pictures; `None` if it takes another course."""
    times = set(_spread(range(episode.start, episode.stop + 1)).tolist())
    observations, frames = envs.reset(seed=0)[0], []
    render: Any = envs.render
    for time in episode:
        if not np.allclose(observations[0], steps.observations[time]):
            return None
        if time in times:
            frames.append(render()[0])
        observations, rewards, *_ = envs.step(steps.actions[time : time + 1])
        if not np.isclose(rewards[0], steps.rewards[time]):
            return None
    return _film([*frames, render()[0]])


def _film(frames: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """Frames (height, width, channels) side by side."""
    pictures = [fitted(np.repeat(frame, 3 // frame.shape[-1], axis=-1)) for frame in frames]
    width, height = pictures[0].size
    film = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), PAPER)
    for number, picture in enumerate(pictures):
        film.paste(picture, (number * (width + GAP), 0))
    return film


def _curve(values: np.ndarray, unit: str, name: str) -> dict[str, Any]:
    """Values of a history by episode or step, as a picture: means of as many stretches as can be told apart."""
    parts = np.array_split(np.arange(len(values)), min(len(values), MOST_POINTS if unit == "episode" else 10))
    figure, picture = new_figure(4, 1.9), BytesIO()
    axes = figure.add_subplot()
    axes.plot([part.mean() + 1 for part in parts], [values[part].mean() for part in parts], color=SOURCE_COLOUR)
    axes.set_xlabel(unit)
    axes.set_ylabel(name)
    clean(axes, "")
    write_numbers(axes.xaxis)
    figure.savefig(picture, format="png")
    return {"bytes": picture.getvalue(), "path": None}
