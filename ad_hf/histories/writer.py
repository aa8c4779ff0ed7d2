"""Writing a learning-history dataset: steps become rows, rows shards, and card and metadata go beside them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from gymnasium import spaces

from ad_hf.envs.spaces import Elements, space_from_json, space_to_json
from ad_hf.envs.task_family import Task
from ad_hf.histories.card import write_dataset_card
from ad_hf.histories.frames import compress_frames, has_frames
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, history_features
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.steps import STEPWISE, Steps, row_lengths
from ad_hf.settings import dump_yaml
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import atomic_folder, local_path, write_text

RECIPE_FILE = "recipe.yaml"
ROW_GROUP_BYTES = 16 << 20
DICTIONARY_BYTES = (
    64 << 10
)  # of values of a column that come again; those of many different ones are written as they are
SHARD_TRANSITIONS = 1_000_000
KEYS = ("history_id", "task_id", "stream", "piece", "start_step")  # columns that say which steps a row has


def to_storage(steps: Steps, observation_space: spaces.Space, action_space: spaces.Space, name: str) -> Steps:
    """
    Steps in the dtypes and shapes of a dataset, from any dtype, and any shape with as many numbers in an element.

    Raises:
        ValueError: with their `name`, for elements of another size, and the first step that a model cannot take.
    """

    def store(column: str, space: spaces.Space) -> np.ndarray:
        values, shape, title = getattr(steps, column), space.shape or (), f"{name}, {column}"
        if np.prod(values.shape[1:]) != np.prod(shape):
            raise ValueError(f"{title}: elements of shape {values.shape[1:]}, expected {shape}, those of {space}")
        values = values.reshape(len(values), *shape)
        elements, wrong = Elements(space, is_bounded=column == "actions").store(values)
        if wrong.any():
            step = int(np.argmax(wrong))
            raise ValueError(f"{title}: {values[step].tolist()} at step {step}, expected an element of {space}")
        return elements

    return replace(
        steps,
        observations=store("observations", observation_space),
        actions=store("actions", action_space),
        final_observations=store("final_observations", observation_space),
    )


def space_json(space: spaces.Space, name: str) -> dict[str, Any]:
    """A space as JSON; a `ValueError` for one that is too large, or that histories cannot have."""
    try:
        data = space_to_json(space)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    space_from_json(data, name)
    return data


def piece_steps(observation_space: spaces.Space, max_piece_steps: int | None = None) -> int:
    """Steps of a row at most; by default few of frames, since a reader decodes a row at a time."""
    if max_piece_steps is None:
        return 100 if has_frames(observation_space) else 10_000
    if max_piece_steps < 1:
        raise ValueError(f"max_piece_steps must be at least 1, got {max_piece_steps}")
    return max_piece_steps


def _list_column(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Arrays (T_i, ...) as one Arrow column of lists, without a Python object per element."""
    lengths, inner = [], kind.value_type
    while pa.types.is_fixed_size_list(inner):
        lengths.append(inner.list_size)
        inner = inner.value_type
    values = pa.array(np.concatenate([np.ravel(array) for array in arrays]), type=inner)
    for length in reversed(lengths):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def history_rows(rows: Iterable[tuple[Sequence[Any], Steps]], features: Features) -> pa.Table:
    """A table with the `KEYS` and the steps, as of [`to_storage`], of each row."""
    values = [(*keys, *(getattr(steps, name) for name in (*STEPWISE, "final_observations"))) for keys, steps in rows]
    columns = []
    for field, column in zip(features.arrow_schema, zip(*values)):
        if pa.types.is_list(field.type):
            columns.append(_list_column(column, field.type))
        else:
            frames = pa.types.is_binary(field.type)
            columns.append(pa.array(map(compress_frames, column) if frames else column, type=field.type))
    return pa.Table.from_arrays(columns, schema=features.arrow_schema)


def _pieces(
    steps: Steps, task_id: int, seed: int, stream: int, max_piece_steps: int
) -> Iterator[tuple[Sequence[Any], Steps]]:
    """The rows of a history: pieces of as many whole episodes as fit into so many steps, at least one."""
    ends, finals = steps.ends, steps.final_observations
    stops = np.union1d(np.flatnonzero(ends) + 1, len(ends))  # of episodes, an unfinished last one included
    start = episode = piece = 0
    while start < len(ends):
        later = max(episode + 1, int(np.searchsorted(stops, start + max_piece_steps, side="right")))
        stop = int(stops[later - 1])
        part = Steps(
            **{name: getattr(steps, name)[start:stop] for name in STEPWISE}, final_observations=finals[episode:later]
        )
        yield (f"{task_id}-{seed}-{stream}", task_id, stream, piece, start), part
        start, episode, piece = stop, later, piece + 1


def history_table(recorded: Any, features: Features, task_id: int, seed: int, max_piece_steps: int) -> pa.Table:
    """The rows of one learner's streams, which are [`~ad_hf.sources.recorder.RecordedSteps`]."""
    pieces = (_pieces(steps, task_id, seed, stream, max_piece_steps) for stream, steps in enumerate(recorded))
    return history_rows(chain.from_iterable(pieces), features)


def histories_of_tasks(
    histories: Iterable[tuple[Task, Steps]], both: tuple[spaces.Space, spaces.Space], max_piece_steps: int | None
) -> Iterator[tuple[str, pa.Table]]:
    """
    The split and the rows of each history, for [`write_shards`], from its task and its steps.

    The histories of a task are its streams 0, 1, ... of the seed 0; `both` are the observation and action space.
    """
    features, max_piece_steps = history_features(*both), piece_steps(both[0], max_piece_steps)
    streams: Counter[int] = Counter()
    for task, steps in histories:
        pieces = _pieces(steps, task.task_id, 0, streams[task.task_id], max_piece_steps)
        yield task.split, history_rows(pieces, features)
        streams[task.task_id] += 1


def row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """
    A table in runs of whole histories, each a row group of a parquet file: the least that a reader reads at a time.

    Runs hold up to 16 MiB in memory, and more only if a single history does.
    """
    borders = np.append(np.flatnonzero(np.asarray(table["start_step"]) == 0), len(table)).tolist()
    first = 0  # border at which the next run begins
    while first + 1 < len(borders):
        rest = table.slice(borders[first])
        # A search looks at few of the sizes, and counts these alone.
        count = bisect_right(
            borders, ROW_GROUP_BYTES, first + 1, key=lambda border: rest.slice(0, border - borders[first]).nbytes
        )
        last = max(count - 1, first + 1)
        yield rest.slice(0, borders[last] - borders[first])
        first = last


def open_shard(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """
    A shard to write to.

    It has an index of pages, by which the Hub's viewer reads some rows alone, and pages that end where their content
    says so: of a changed shard, the Hub's storage takes only what is new.
    """
    options: dict[str, Any] = {"write_page_checksum": True, "write_page_index": True}
    options |= {"use_content_defined_chunking": True, "dictionary_pagesize_limit": DICTIONARY_BYTES}
    # Frames are compressed already, and none is like another: no dictionary for them.
    framed = pa.types.is_binary(schema.field("observations").type)
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=not framed, **options)


class _SplitWriter:
    """Writes the histories of a split, as they come, to shards of about `SHARD_TRANSITIONS` steps."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._waiting: list[pa.Table] = []
        self._shards: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._steps = 0

    def add(self, rows: pa.Table) -> None:
        """Write the rows of whole histories."""
        self._waiting.append(rows)
        self._steps += int(row_lengths(rows).sum())
        if self._steps >= SHARD_TRANSITIONS or sum(table.nbytes for table in self._waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables(self._waiting).combine_chunks()
        if self._writer is None:
            self._shards.append(self._folder / f".{self._split}-{len(self._shards):05d}")
            self._writer = open_shard(self._shards[-1], rows.schema)
        for group in row_groups(rows):
            self._writer.write_table(group)
        self._waiting = []
        if self._steps >= SHARD_TRANSITIONS:
            self._writer.close()
            self._writer, self._steps = None, 0

    def close(self) -> None:
        """Write the rest, and give the shards their names, which say how many there are."""
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        for index, shard in enumerate(self._shards):
            shard.rename(self._folder / f"{self._split}-{index:05d}-of-{len(self._shards):05d}.parquet")


def write_shards(folder: Path, histories: Iterable[tuple[str, pa.Table]]) -> dict[str, Any]:
    """
    Write histories, the split and the rows of each, as they come, into the folder of a configuration.

    Returns `n_envs`, `total_timesteps` and `hyperparameters` of a source, as far as its histories tell: the streams
    and the steps of the task that has most.
    """
    writers: dict[str, _SplitWriter] = {}
    streams: Counter[int] = Counter()
    steps: Counter[int] = Counter()
    for split, rows in histories:
        writers.setdefault(split, _SplitWriter(folder, split)).add(rows)
        task_id = rows["task_id"][0].as_py()
        streams[task_id] += 1
        steps[task_id] += int(row_lengths(rows).sum())
    for writer in writers.values():
        writer.close()
    return {"n_envs": max(streams.values()), "total_timesteps": max(steps.values()), "hyperparameters": {}}


@contextmanager
def new_dataset(output_dir: str | Path, config_name: str) -> Iterator[Path]:
    """The folder to write a dataset of one configuration into, which becomes `output_dir` once all is well."""
    output_dir = local_path(output_dir)
    if re.fullmatch(r"\w[\w.-]*", config_name) is None:
        raise ValueError(f"config_name must be made of letters, digits, '_', '-' and '.', got {config_name!r}")
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists already: give another output_dir, or delete it")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output_dir) as folder:
        (folder / config_name).mkdir()
        yield folder


def describe(
    folder: Path,
    name: str,
    config_name: str,
    metadata: HistoryMetadata,
    origin: str = "",
    family: dict[str, Any] | None = None,
) -> None:
    """
    Write the files beside the shards of a dataset: `metadata.json`, README.md and, for training, `recipe.yaml`.

    Args:
        folder (`Path`), name (`str`):
            The dataset's folder so far, and the name that it will have.
        config_name (`str`), metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            Its configuration; this fills in statistics and fingerprint.
        origin (`str`, *optional*), family (`dict`, *optional*):
            Text for README.md on where the dataset is from, and the section `family` of a recipe that fits it.
    """
    configuration = folder / config_name
    describe_shards(metadata, configuration)
    try:
        text = metadata.to_json()
    except TypeError as error:
        raise ValueError(f"tasks, env_kwargs and the source's settings are stored as JSON: {error}") from error
    write_text(configuration / METADATA_FILE, text)
    if origin:
        write_text(folder / CARD, f"---\ntags: []\n---\n\n{origin}")
    write_dataset_card(folder, name)
    if family is not None:
        write_text(folder / RECIPE_FILE, dump_yaml({"family": family}))
