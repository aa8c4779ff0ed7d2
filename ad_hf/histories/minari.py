"""
Learning histories as Minari datasets, and back.

A Minari dataset is a list of episodes. What it has no place for (to which history, row and split an episode belongs,
`metadata.json`, the layout of the shards) goes into the metadata of its episodes and, as one entry `ad_hf`, into that
of the dataset; with them, the same dataset comes back.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from tqdm.auto import tqdm

from ad_hf.envs.making import find_spec
from ad_hf.envs.task_family import SPLITS
from ad_hf.files import atomic_folder
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.episodes import Episode, episodes_of_row, join_episodes, pieces_of_episodes
from ad_hf.histories.schema import HistoryMetadata, default_piece_steps, history_features
from ad_hf.histories.validation import outside
from ad_hf.histories.writer import (
    SHARD_TRANSITIONS,
    describe,
    history_rows,
    new_dataset,
    open_shard,
    space_json,
    split_writers,
    with_columns,
)

if TYPE_CHECKING:
    from minari import MinariDataset

ENTRY = "ad_hf"  # in the metadata of a Minari dataset
DATASET_ID = re.compile(r"(?:(?P<namespace>\w[\w/-]*\w)/)?[\w-]+-v\d+")
SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")
ROW_COLUMNS = ("history_id", "task_id", "stream", "piece", "start_step")


def _minari() -> Any:
    try:
        import minari
        import minari.dataset.minari_storage
        import minari.namespace
    except ImportError as error:
        raise ImportError(f"Minari datasets need the package minari: pip install 'ad_hf[minari]' ({error})") from error
    return minari


def _add_rows(storage: Any, table: pa.Table, metadata: HistoryMetadata, split: str, first_row: int, name: str) -> None:
    """Append the episodes of some rows to a Minari storage, each with a note of where it belongs."""
    from minari.data_collector import EpisodeBuffer

    first, buffers, notes = storage.total_episodes, [], []
    columns = table.select(list(ROW_COLUMNS)).to_pylist()
    for row, note in enumerate(columns):
        for episode in episodes_of_row(table, row, metadata, name):
            # Without infos, not even empty ones, Minari cannot print an episode.
            buffers.append(EpisodeBuffer(**episode._asdict(), infos={}))
            notes.append({"split": split, "row": first_row + row, **note})
    storage.update_episodes(buffers)
    storage.update_episode_metadata(notes, range(first, first + len(notes)))


def _env_spec(metadata: HistoryMetadata) -> Any:
    """What gymnasium knows of the environment, with the keyword arguments that all tasks share."""
    if metadata.wrappers or metadata.attributes:
        return None  # which it cannot say all of
    spec = copy.deepcopy(find_spec(metadata.env_id))
    if spec is None:
        return None
    kwargs = dict(metadata.env_kwargs)
    # An argument of gymnasium.make, and not of the environment.
    spec.max_episode_steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs.update(kwargs)
    return spec


def to_minari(
    dataset: str | Path | HistoryDataset, dataset_id: str, config_name: str | None = None, split: str | None = None
) -> Path:
    r"""
    Write learning histories as a Minari dataset that `minari.load_dataset(dataset_id)` reads.

    Histories stand one after another, each with its episodes in order; [`from_minari`] gives them back as they were.
    The metadata of an episode says its `split`, `task_id`, `history_id`, `stream`, and the `row` with its `piece` and
    `start_step`. Frames are stored as they are, and not as JPEG.

    Args:
        dataset (`str` or `Path`):
            Folder of the histories, or their id on the Hub, with `@revision` if need be.
        dataset_id (`str`):
            Id for Minari, such as `"dark_room/a2c-v0"`. It goes where Minari keeps its datasets:
            `MINARI_DATASETS_PATH`, or `~/.minari/datasets`.
        config_name (`str`, *optional*):
            Configuration of the histories; may be left out if there is only one, or one called `default`.
        split (`str`, *optional*):
            Only the tasks of one split; by default all.

    Returns:
        `Path`: the folder of the Minari dataset.

    Raises:
        ImportError: without the package minari.
        ValueError: for an id that is malformed or taken, an unknown split, and malformed histories.
    """
    minari = _minari()
    match = DATASET_ID.fullmatch(dataset_id)
    if match is None:
        raise ValueError(f"{dataset_id!r} is no id of a Minari dataset: expected name-v0, or namespace/name-v0")
    target = Path(minari.storage.datasets_root_dir.get_dataset_path(dataset_id))
    if target.exists():
        raise ValueError(f"{target} exists already: give another id, or delete it with `minari delete {dataset_id}`")
    opened = HistoryDataset.open(dataset, config_name)
    metadata = opened.metadata
    chosen = opened.splits if split is None else [split]
    check_dataset(opened, chosen)
    files = [file for name in chosen for file in opened.files(name)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        (folder / "data").mkdir()
        storage = minari.dataset.minari_storage.MinariStorage.new(
            folder / "data", *metadata.spaces, env_spec=_env_spec(metadata), jpeg_encoding=False
        )
        shards = _fill(storage, files, metadata)
        described = asdict(metadata)
        described["tasks"] = [task for task in described["tasks"] if task["split"] in chosen]
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "algorithm_name": metadata.source["algorithm"],
                "description": f"Learning histories of {metadata.env_id}, converted by ad_hf.",
                ENTRY: {
                    "config_name": opened.config_name,
                    "metadata": described,
                    "shards": shards,
                    "episodes": storage.total_episodes,
                },
            }
        )
    namespace = match["namespace"]
    if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    return target


def _fill(storage: Any, files: Iterable[Path], metadata: HistoryMetadata) -> dict[str, list[int]]:
    """Append all episodes of some shards; returns the number of rows of each row group of each shard."""
    shards: dict[str, list[int]] = {}
    row = 0
    with tqdm(desc="convert to Minari", unit=" episodes", unit_scale=True) as bar:
        for file in files:
            shards[file.name] = []
            with pq.ParquetFile(file) as shard:
                for index in range(shard.num_row_groups):
                    table = shard.read_row_group(index)
                    _add_rows(storage, table, metadata, file.name.partition("-")[0], row, str(file))
                    shards[file.name].append(len(table))
                    row += len(table)
                    bar.update(storage.total_episodes - bar.n)
    return shards


def _open(source: str | Path | MinariDataset) -> MinariDataset:
    """A Minari dataset by its id, by a folder, or as it is."""
    minari = _minari()
    if isinstance(source, minari.MinariDataset):
        return source
    for folder in (Path(source), Path(minari.storage.datasets_root_dir.get_dataset_path(str(source)))):
        if (folder / "data" / "metadata.json").is_file():
            return minari.MinariDataset(folder / "data")
    raise FileNotFoundError(
        f"there is no Minari dataset {source}, neither as a folder nor as an id in {folder.parent}; fetch one with "
        f"`minari download {source}`"
    )


def from_minari(
    source: str | Path | MinariDataset,
    output_dir: str | Path,
    config_name: str | None = None,
    episodes_per_history: int | None = None,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_piece_steps: int | None = None,
    shard_transitions: int = SHARD_TRANSITIONS,
) -> Path:
    r"""
    Write a Minari dataset as learning histories.

    What [`to_minari`] has written comes back as it was: rows, pieces, shards and `metadata.json`. Any other dataset is
    taken for what one learner did on one task, the environment as it is: its episodes, in order, are one history, or
    one of every `episodes_per_history`, of the split `train`. An episode that neither terminated nor was truncated
    counts as truncated, unless it is the last of its history. Infos, seeds and options of episodes are left out.

    Args:
        source (`str`, `Path` or `minari.MinariDataset`):
            Id of a local Minari dataset, its folder, or the dataset, perhaps with some of its episodes alone.
        output_dir (`str` or `Path`):
            Folder to write; there must be nothing at it.
        config_name (`str`, *optional*):
            Configuration to write: by default the one that it was, or `"default"`.
        episodes_per_history (`int`, *optional*):
            Of a dataset that is not ours: episodes of each history; the last may have fewer.
        env_id (`str`, *optional*), env_kwargs (`dict`, *optional*):
            Of a dataset that is not ours: its environment, if it does not say, or says another one.
        max_piece_steps (`int`, *optional*):
            Of a dataset that is not ours: histories are cut into rows of at most so many steps, as by
            [`~ad_hf.collect`].
        shard_transitions (`int`, *optional*, defaults to 1000000):
            Of a dataset that is not ours: steps per file.

    Returns:
        `Path`: the folder of the histories.

    Raises:
        FileNotFoundError: if there is no such Minari dataset.
        ImportError: without the package minari.
        ValueError: if there is something at `output_dir`, for spaces that histories cannot have, for malformed
            episodes, and if episodes were added to or taken from a dataset of ours.
    """
    dataset = _open(source)
    entry = dataset.storage.metadata.get(ENTRY)
    name = Path(output_dir).name
    if entry is not None:
        if not (episodes_per_history is env_id is env_kwargs is max_piece_steps is None):
            raise ValueError(
                f"{dataset.id} was written by ad_hf and says which histories it holds, of which environment: "
                "episodes_per_history, env_id, env_kwargs and max_piece_steps are for other datasets"
            )
        config_name = config_name or entry["config_name"]
        with new_dataset(output_dir, config_name) as folder:
            metadata = _restore(dataset, entry, folder / config_name)
            describe(folder, name, config_name, metadata, "", None)
        return Path(output_dir)
    config_name = config_name or "default"
    if episodes_per_history is not None and episodes_per_history < 1:
        raise ValueError(f"episodes_per_history must be at least 1, got {episodes_per_history}")
    if dataset.total_episodes == 0:
        raise ValueError(f"{dataset.id} has no episodes")
    metadata = _metadata_of_others(dataset, env_id, env_kwargs, episodes_per_history)
    max_piece_steps = max_piece_steps or default_piece_steps(metadata.spaces[0])
    with new_dataset(output_dir, config_name) as folder:
        with split_writers(folder / config_name, shard_transitions) as add:
            for rows in _histories_of_others(dataset, metadata, episodes_per_history, max_piece_steps):
                add("train", rows)
        origin = f"Converted from the Minari dataset `{dataset.id}` by `ad-hf convert`."
        family = {"env_id": metadata.env_id, "env_kwargs": metadata.env_kwargs, "tasks": [{}]}
        describe(folder, name, config_name, metadata, origin, family)
    return Path(output_dir)


def _read_episodes(dataset: MinariDataset) -> Iterator[Episode]:
    """All episodes of a Minari dataset, in order."""
    found = dataset.iterate_episodes()
    for data in tqdm(found, desc="convert from Minari", total=dataset.total_episodes, unit=" episodes"):
        yield Episode(*(getattr(data, name) for name in Episode._fields))


def _restored_rows(dataset: MinariDataset, features: Features, metadata: HistoryMetadata) -> Iterator[pa.Table]:
    """The rows that a dataset of ours was made of, one by one."""
    notes = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for row, pairs in groupby(zip(notes, _read_episodes(dataset)), lambda pair: int(pair[0]["row"])):
        (note, *_), episodes = zip(*pairs)
        steps = join_episodes(episodes, *metadata.spaces, f"{dataset.id}, row {row}")
        table = history_rows(steps, features, 0, 0, len(steps.rewards))
        yield with_columns(table, **{name: note[name] for name in ROW_COLUMNS})


def _restore(dataset: MinariDataset, entry: dict[str, Any], folder: Path) -> HistoryMetadata:
    """Write the shards that a dataset of ours was made of."""
    if dataset.total_episodes != entry["episodes"]:
        raise ValueError(
            f"{dataset.id} was written by ad_hf with {entry['episodes']} episodes and now has "
            f"{dataset.total_episodes}: histories are whole, so convert them again, or take all of them"
        )
    metadata = HistoryMetadata.from_json(json.dumps(entry["metadata"]))
    features = history_features(*metadata.spaces)
    rows = _restored_rows(dataset, features, metadata)
    for shard, sizes in entry["shards"].items():
        if SHARD.fullmatch(shard) is None:  # it becomes a path, and may be anyone's
            raise ValueError(f"{dataset.id}: {shard!r} is no name of a shard")
        with open_shard(folder / shard, features.arrow_schema) as writer:
            for size in sizes:
                writer.write_table(pa.concat_tables(islice(rows, size)).combine_chunks())
    return metadata


def _metadata_of_others(
    dataset: MinariDataset, env_id: str | None, env_kwargs: dict[str, Any] | None, episodes_per_history: int | None
) -> HistoryMetadata:
    """The metadata of the histories of a Minari dataset that is not ours."""
    spec = dataset.env_spec
    env_id = env_id or (spec.id if spec is not None else None)
    if env_id is None:
        raise ValueError(f"{dataset.id} does not say of which environment it is: give env_id")
    if env_kwargs is None:
        kwargs = spec.kwargs if spec is not None and spec.id == env_id else {}
        env_kwargs = {name: value for name, value in kwargs.items() if name != "render_mode"}
    num_episodes = dataset.total_episodes
    return HistoryMetadata(
        env_id=env_id,
        env_kwargs=env_kwargs,
        tasks=[{"task_id": 0, "kwargs": {}, "split": "train"}],
        observation_space=space_json(dataset.observation_space, f"{dataset.id}, observations"),
        action_space=space_json(dataset.action_space, f"{dataset.id}, actions"),
        source={
            "algorithm": dataset.storage.metadata.get("algorithm_name", "unknown"),
            "n_envs": -(-num_episodes // (episodes_per_history or num_episodes)),
            "total_timesteps": dataset.total_steps,
            "hyperparameters": {},
            "converted_from": {"format": "minari", "name": dataset.id, "episodes_per_history": episodes_per_history},
        },
        seeds=[],
    )


def _histories_of_others(
    dataset: MinariDataset, metadata: HistoryMetadata, episodes_per_history: int | None, max_piece_steps: int
) -> Iterator[pa.Table]:
    """The rows of each history of a Minari dataset that is not ours."""
    features, per_history = history_features(*metadata.spaces), episodes_per_history or dataset.total_episodes
    numbered = enumerate(_read_episodes(dataset))
    for stream, group in groupby(numbered, lambda pair: pair[0] // per_history):
        last = min((stream + 1) * per_history, dataset.total_episodes) - 1
        episodes = (_checked(episode, number, number == last, dataset.id) for number, episode in group)
        pieces, start = [], 0
        for piece, part in enumerate(pieces_of_episodes(episodes, max_piece_steps)):
            steps = join_episodes(part, *metadata.spaces, f"{dataset.id}, history {stream}, from its step {start}")
            rows = history_rows(steps, features, 0, stream, len(steps.rewards))
            pieces.append(with_columns(rows, piece=piece, start_step=start))
            start += len(steps.rewards)
        yield pa.concat_tables(pieces)


def _checked(episode: Episode, number: int, is_last: bool, name: str) -> Episode:
    """An episode of others, which has to be one; if another follows in its history, it ends with its last step."""
    length = len(episode.rewards)
    if length == 0:
        raise ValueError(f"{name}, episode {number}: it has no steps")
    for column, values in episode._asdict().items():
        expected = length + (column == "observations")
        if len(values) != expected:
            raise ValueError(f"{name}, episode {number}, {column}: {len(values)} elements, expected {expected}")
    if outside(episode.rewards).any():
        raise ValueError(f"{name}, episode {number}, rewards: expected finite numbers")
    ends = episode.terminations | episode.truncations
    if ends[:-1].any():
        raise ValueError(f"{name}, episode {number}: it ends at step {int(np.argmax(ends))}, and goes on")
    if not ends[-1] and not is_last:
        return episode._replace(truncations=np.append(episode.truncations[:-1], True))
    return episode
