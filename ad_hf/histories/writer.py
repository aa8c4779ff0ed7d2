"""Writing a learning-history dataset that is not collected but converted: all of it, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from gymnasium import spaces

from ad_hf.envs.spaces import Elements, space_to_json
from ad_hf.histories.card import dataset_card, dataset_config
from ad_hf.histories.schema import METADATA_FILE, ROW_GROUP_BYTES, HistoryMetadata, history_table, row_groups
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.steps import Steps
from ad_hf.settings import dump_yaml
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import atomic_folder, local_path, write_text

RECIPE_FILE = "recipe.yaml"
SHARD_TRANSITIONS = 1_000_000


def to_storage(values: np.ndarray, space: spaces.Space, name: str, is_action: bool = False) -> np.ndarray:
    """
    Elements of a space as they are stored.

    Args:
        values (`np.ndarray` of shape `(num_elements, ...)`):
            The elements, in any dtype that holds them, and in any shape with as many numbers each.
        space (`gymnasium.Space`):
            Their space.
        name (`str`):
            What to call them in an error.
        is_action (`bool`, *optional*, defaults to `False`):
            Whether they are actions, which are held to the bounds of a Box.

    Returns:
        `np.ndarray` of shape `(num_elements, *space.shape)`

    Raises:
        ValueError: for elements of another size, and those that [`~ad_hf.envs.spaces.Elements`] finds.
    """
    shape = space.shape or ()
    if int(np.prod(values.shape[1:])) != int(np.prod(shape)):
        raise ValueError(f"{name}: elements of shape {values.shape[1:]}, expected {shape}, those of {space}")
    values = values.reshape(len(values), *shape)
    stored, wrong = Elements(space, is_action).store(values)
    if wrong.any():
        step = int(np.argmax(wrong))
        raise ValueError(f"{name}: {values[step].tolist()} at step {step}, expected an element of {space}")
    return stored


def space_json(space: spaces.Space, name: str) -> dict[str, Any]:
    """A space as JSON; one that histories cannot have is a `ValueError`."""
    try:
        return space_to_json(space)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def with_columns(table: pa.Table, **values: Any) -> pa.Table:
    """A table with one value for all rows of some columns."""
    columns = {name: table[name] for name in table.schema.names}
    for name, value in values.items():
        columns[name] = pa.array([value] * len(table), type=table.schema.field(name).type)
    return pa.Table.from_arrays(list(columns.values()), schema=table.schema)


def history_rows(steps: Steps, features: Features, task_id: int, stream: int, max_piece_steps: int) -> pa.Table:
    """The rows of one history, cut as [`~ad_hf.histories.schema.history_table`] says; its seed is taken to be 0."""
    one_stream = {name: array[None] for name, array in vars(steps).items() if name != "final_observations"}
    recorded = SimpleNamespace(**one_stream, final_observations=[steps.final_observations])
    table = history_table(recorded, features, task_id, 0, max_piece_steps)
    return with_columns(table, history_id=f"{task_id}-0-{stream}", stream=stream)


def open_shard(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A shard to write to, with the same settings as those of a collection."""
    # Frames are compressed already, and none is like another: no dictionary for them.
    framed = pa.types.is_binary(schema.field("observations").type)
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=not framed, write_page_checksum=True)


class SplitWriter:
    """Writes the histories of a split, as they come, to shards of about `shard_transitions` steps."""

    def __init__(self, folder: Path, split: str, shard_transitions: int) -> None:
        self._folder, self._split, self._shard_transitions = folder, split, shard_transitions
        self._waiting: list[pa.Table] = []
        self._shards: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._steps = 0

    def add(self, rows: pa.Table) -> None:
        """Write the rows of whole histories."""
        self._waiting.append(rows)
        self._steps += int(pc.sum(pc.list_value_length(rows["rewards"])).as_py())
        if self._steps >= self._shard_transitions or sum(table.nbytes for table in self._waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables(self._waiting).combine_chunks()
        if self._writer is None:
            self._shards.append(self._folder / f".{self._split}-{len(self._shards):05d}")
            self._writer = open_shard(self._shards[-1], rows.schema)
        for group in row_groups(rows):
            self._writer.write_table(group)
        self._waiting = []
        if self._steps >= self._shard_transitions:
            self._writer.close()
            self._writer, self._steps = None, 0

    def close(self) -> None:
        """Write what is left, and give the shards their names, which say how many there are."""
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        for index, shard in enumerate(self._shards):
            shard.rename(self._folder / f"{self._split}-{index:05d}-of-{len(self._shards):05d}.parquet")


@contextmanager
def split_writers(folder: Path, shard_transitions: int) -> Iterator[Callable[[str, pa.Table], None]]:
    """A function of a split and the rows of whole histories that writes them into a folder."""
    if shard_transitions < 1:
        raise ValueError(f"shard_transitions must be at least 1, got {shard_transitions}")
    writers: dict[str, SplitWriter] = {}

    def add(split: str, rows: pa.Table) -> None:
        writers.setdefault(split, SplitWriter(folder, split, shard_transitions)).add(rows)

    yield add
    for writer in writers.values():
        writer.close()


@contextmanager
def new_dataset(output_dir: str | Path, config_name: str) -> Iterator[Path]:
    """
    The folder to write a dataset of one configuration into, which becomes `output_dir` once all is well.

    Raises:
        ValueError: if there is something at `output_dir`, or for a configuration that cannot be the name of a folder.
    """
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
    folder: Path, name: str, config_name: str, metadata: HistoryMetadata, origin: str, family: dict[str, Any] | None
) -> None:
    """
    Write what goes beside the shards of a dataset: `metadata.json`, README.md and, for training, `recipe.yaml`.

    Args:
        folder (`Path`):
            Where the dataset is being written.
        name (`str`):
            Name of the folder that it becomes.
        config_name (`str`), metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            Its configuration; statistics and fingerprint are filled in.
        origin (`str`):
            Text for README.md on where the dataset is from; may be empty.
        family (`dict`, *optional*):
            Section `family` of a recipe that fits the dataset.

    Raises:
        ValueError: for metadata that JSON cannot hold.
    """
    configuration = folder / config_name
    describe_shards(metadata, configuration)
    try:
        text = metadata.to_json()
    except TypeError as error:
        raise ValueError(f"tasks, env_kwargs and the source's settings are stored as JSON: {error}") from error
    write_text(configuration / METADATA_FILE, text)
    configs = [dataset_config(configuration, metadata, config_name)]
    card = f"---\ntags: []\n---\n\n{origin}" if origin else None
    write_text(folder / CARD, dataset_card({config_name: metadata}, configs, name, card))
    if family is not None:
        write_text(folder / RECIPE_FILE, dump_yaml({"family": family}))
