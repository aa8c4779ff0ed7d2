"""
Learning histories as Minari datasets, and back.

A Minari dataset is a list of episodes. Their metadata says to which history, row and split they belong, and one entry
`ad_hf` in the metadata of the dataset holds `metadata.json` and the layout of the shards. With them, the same dataset
comes back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import gymnasium as gym
import numpy as np
import pyarrow as pa
from gymnasium import spaces

from ad_hf.envs.foreign import check_env_id, check_kwargs
from ad_hf.envs.making import find_spec
from ad_hf.envs.spaces import outside
from ad_hf.envs.task_family import SPLITS, FamilyConfig
from ad_hf.formats.array_files import check_hdf5, reading
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.frames import decompress_frames, has_frames
from ad_hf.histories.schema import HistoryMetadata, history_features
from ad_hf.histories.shards import check_columns
from ad_hf.histories.steps import STEPWISE, Steps, row_lengths
from ad_hf.histories.writer import (
    KEYS,
    describe,
    history_rows,
    new_dataset,
    open_shard,
    piece_steps,
    space_json,
    to_storage,
    write_shards,
)
from ad_hf.progress import ProgressBar
from ad_hf.settings import parse_json, read_json
from ad_hf.storage.files import atomic_folder, local_path
from ad_hf.storage.parquet import read_groups, read_schema
from ad_hf.structure import check_structure

if TYPE_CHECKING:
    from minari import MinariDataset

ENTRY = "ad_hf"  # in the metadata of a Minari dataset
DATASET_ID = re.compile(r"(?:(?P<namespace>\w[\w/-]*\w)/)?[\w-]+-v\d+")
SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")


class _Entry(TypedDict):
    """The entry that [`to_minari`] adds to the metadata of a dataset."""

    config_name: str
    metadata: dict[str, Any]
    shards: dict[str, list[Annotated[int, range(1, 2**31)]]]
    episodes: int


class _Metadata(TypedDict):
    """The structure of Minari's `metadata.json`, as far as it is read."""

    dataset_id: str
    minari_version: str
    data_format: Literal["hdf5", "arrow", "parquet"]
    total_episodes: Annotated[int, range(10**8)]
    total_steps: Annotated[int, range(10**12)]
    observation_space: NotRequired[str]
    action_space: NotRequired[str]
    env_spec: NotRequired[str | None]
    algorithm_name: NotRequired[str]
    ad_hf: NotRequired[_Entry]


class _Spec(TypedDict):
    """An environment in Minari's `metadata.json`: its entry point and wrappers are never used."""

    id: str
    kwargs: dict[str, Any]


def _minari() -> Any:
    try:
        import minari
        import minari.dataset.minari_storage
        import minari.namespace
    except ImportError as error:
        raise ImportError(f"Minari datasets need the package minari: pip install 'ad_hf[minari]' ({error})") from error
    return minari


def _episodes(table: pa.Table, row: int, metadata: HistoryMetadata, name: str) -> Iterator[dict[str, np.ndarray]]:
    """The episodes of a row, an unfinished last one included, in the dtypes of the spaces."""
    observation_space, action_space = metadata.spaces
    history = f"{name}: row {row} (history {table['history_id'][row].as_py()!r})"
    steps = Steps.of_table(table.slice(row, 1))
    stops = np.union1d(np.flatnonzero(steps.ends) + 1, len(steps.rewards))
    if has_frames(observation_space):
        steps.observations, steps.final_observations = (
            decompress_frames(table[column][row].as_buffer(), count, observation_space.shape or ())
            for column, count in (("observations", len(steps.rewards)), ("final_observations", len(stops)))
        )
    if len(steps.final_observations) != len(stops):
        raise ValueError(
            f"{history}, column final_observations: {len(steps.final_observations)} observations for {len(stops)} "
            "episodes, each of which needs its last one in Minari"
        )
    for start, stop, final in zip([0, *stops[:-1]], stops, steps.final_observations):
        part = slice(start, stop)
        yield {
            "observations": np.concatenate([steps.observations[part], final[None]]).astype(observation_space.dtype),
            "actions": steps.actions[part].astype(action_space.dtype),
            **{name: getattr(steps, name)[part] for name in ("rewards", "terminations", "truncations")},
        }


def _env_spec(metadata: HistoryMetadata, trust_remote_code: bool) -> Any:
    """The environment's spec in gymnasium, with the keyword arguments that all tasks share."""
    if metadata.wrappers or metadata.attributes:
        return None  # a spec has no place for them
    # The id comes along with the histories: looked up, where `find_spec` would import the module that it may name.
    spec = copy.deepcopy(find_spec(metadata.env_id) if trust_remote_code else gym.registry.get(metadata.env_id))
    if spec is None:
        return None
    kwargs = dict(metadata.env_kwargs)
    # An argument of gymnasium.make, and not of the environment.
    spec.max_episode_steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    spec.kwargs.update(kwargs)
    return spec


def to_minari(
    dataset: str | Path | HistoryDataset,
    dataset_id: str,
    config_name: str | None = None,
    split: str | None = None,
    trust_remote_code: bool = False,
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
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether an environment id of the histories, such as `"module:Id-v0"`, may import its module, so that the
            Minari dataset says how to make the environment.

    Returns:
        `Path`: the folder of the Minari dataset.

    Raises:
        ImportError: without the package minari.
        ValueError: for an id that is malformed or taken, an unknown split, and malformed histories.
    """
    minari = _minari()
    match = DATASET_ID.fullmatch(dataset_id)
    if match is None:
        raise ValueError(f"{dataset_id!r} is not an id of a Minari dataset: expected name-v0, or namespace/name-v0")
    target = Path(minari.storage.datasets_root_dir.get_dataset_path(dataset_id))
    if target.exists():
        raise ValueError(f"{target} exists already: give another id, or delete it with `minari delete {dataset_id}`")
    opened = HistoryDataset.open(dataset, config_name)
    metadata = opened.metadata
    splits = opened.splits if split is None else [split]
    check_dataset(opened, splits)
    files = [file for name in splits for file in opened.files(name)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        (folder / "data").mkdir()
        storage = minari.dataset.minari_storage.MinariStorage.new(
            folder / "data", *metadata.spaces, env_spec=_env_spec(metadata, trust_remote_code), jpeg_encoding=False
        )
        shards = _fill(storage, files, metadata)
        described = asdict(metadata)
        described["tasks"] = [task for task in described["tasks"] if task["split"] in splits]
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
    """Append all episodes of some shards, with notes of where they belong; returns the sizes of their row groups."""
    from minari.data_collector import EpisodeBuffer

    shards: dict[str, list[int]] = {}
    columns, first_row = history_features(*metadata.spaces), 0
    with ProgressBar("convert to Minari", unit="episodes") as bar:
        for file in files:
            shards[file.name] = []
            check_columns(read_schema(file), *metadata.spaces, str(file), list(columns))
            for table in read_groups(file, list(columns)):
                buffers, notes = [], []
                for row, keys in enumerate(table.select(list(KEYS)).to_pylist()):
                    for episode in _episodes(table, row, metadata, str(file)):
                        # Without infos, not even empty ones, Minari cannot print an episode.
                        buffers.append(EpisodeBuffer(**episode, infos={}))
                        notes.append({"split": file.name.partition("-")[0], "row": first_row + row, **keys})
                first = storage.total_episodes
                storage.update_episodes(buffers)
                storage.update_episode_metadata(notes, range(first, first + len(notes)))
                shards[file.name].append(len(table))
                first_row += len(table)
                bar.update(len(notes))
    return shards


def _open(source: str | Path | MinariDataset, trust_remote_code: bool) -> MinariDataset:
    """A Minari dataset by its id, by a folder, or as it is."""
    minari = _minari()
    if isinstance(source, minari.MinariDataset):
        return source
    for folder in (Path(source), Path(minari.storage.datasets_root_dir.get_dataset_path(str(source)))):
        if (folder / "data" / "metadata.json").exists():
            _check_files(folder / "data", trust_remote_code)
            with reading(str(folder / "data")):
                return minari.MinariDataset(folder / "data")
    raise FileNotFoundError(
        f"there is no Minari dataset {source}, neither as a folder nor as an id in {folder.parent}; fetch one with "
        f"`minari download {source}`"
    )


def _check_files(folder: Path, trust_remote_code: bool) -> None:
    """Refuse files of a Minari dataset of another structure, and those from which Minari would run or read others."""
    path = folder / "metadata.json"
    metadata = read_json(path)
    check_structure(metadata, _Metadata, str(path))
    if metadata.get("env_spec") is not None:
        check_structure(parse_json(metadata["env_spec"], f"{path}: env_spec"), _Spec, f"{path}: env_spec")
    for space in ("observation_space", "action_space"):
        if space in metadata:
            parse_json(metadata[space], f"{path}: {space}")
        elif not trust_remote_code:
            raise ValueError(
                f"{path} does not say the {space}, which Minari sees by making the environment that the file names, "
                "whatever that runs: if you trust where it is from, allow it with trust_remote_code=True "
                "(--trust_remote_code)"
            )
    for file in folder.rglob("*"):
        if not file.is_file() and not file.is_dir():
            raise ValueError(f"{file} is not a regular file")
    if metadata["data_format"] == "hdf5":
        with reading(str(folder / "main_data.hdf5")):
            check_hdf5(folder / "main_data.hdf5")


def from_minari(
    source: str | Path | MinariDataset,
    output_dir: str | Path,
    config_name: str | None = None,
    episodes_per_history: int | None = None,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_piece_steps: int | None = None,
    trust_remote_code: bool = False,
) -> Path:
    r"""
    Write a Minari dataset as learning histories.

    A dataset that [`to_minari`] wrote comes back as it was: rows, pieces, shards and `metadata.json`. The episodes of
    any other dataset, in order, are one history of one learner and task, or one of every `episodes_per_history`, of
    the split `train`. An episode that neither terminated nor was truncated counts as truncated, unless it is the last
    of its history. Infos, seeds and options of episodes are left out.

    Args:
        source (`str`, `Path` or `minari.MinariDataset`):
            Id of a local Minari dataset, its folder, or the dataset, perhaps with some of its episodes alone.
        output_dir (`str` or `Path`):
            Folder to write; there must be nothing at it.
        config_name (`str`, *optional*):
            Configuration to write: by default the one that it was, or `"default"`.
        episodes_per_history (`int`, *optional*), max_piece_steps (`int`, *optional*):
            Of a dataset that is not ours: episodes of each history, and steps of a row at most.
        env_id (`str`, *optional*), env_kwargs (`dict`, *optional*):
            Of a dataset that is not ours: its environment, if it does not say, or says another one.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the environment that the dataset describes may run: Minari makes it where the dataset does not say
            its spaces, and `recipe.yaml` takes over names that import modules.

    Returns:
        `Path`: the folder of the histories.

    Raises:
        FileNotFoundError: if there is no such Minari dataset.
        ImportError: without the package minari.
        ValueError: if there is something at `output_dir`, for spaces that histories cannot have, for malformed
            episodes, and if episodes were added to or taken from a dataset of ours.
    """
    dataset = _open(source, trust_remote_code)
    entry, name = dataset.storage.metadata.get(ENTRY), Path(output_dir).name
    if entry is not None:
        if not (episodes_per_history is env_id is env_kwargs is max_piece_steps is None):
            raise ValueError(
                f"{dataset.id} was written by ad_hf and says which histories it holds, of which environment: "
                "episodes_per_history, env_id, env_kwargs and max_piece_steps are for other datasets"
            )
        config_name = config_name or entry["config_name"]
        with new_dataset(output_dir, config_name) as folder:
            metadata = _restore(dataset, entry, folder / config_name)
            describe(folder, name, config_name, metadata)
        return local_path(output_dir)
    config_name = config_name or "default"
    if dataset.total_episodes == 0:
        raise ValueError(f"{dataset.id} has no episodes")
    if episodes_per_history is not None and episodes_per_history < 1:
        raise ValueError(f"episodes_per_history must be at least 1, got {episodes_per_history}")
    metadata = _metadata_of_others(dataset, env_id, env_kwargs, trust_remote_code)
    per_history = episodes_per_history or dataset.total_episodes
    with new_dataset(output_dir, config_name) as folder:
        histories = _histories_of_others(dataset, metadata, per_history, max_piece_steps)
        metadata.source |= write_shards(folder / config_name, histories)
        converted_from = {"format": "minari", "name": dataset.id, "episodes_per_history": episodes_per_history}
        metadata.source["converted_from"] = converted_from
        origin = f"Converted from the Minari dataset `{dataset.id}` by `ad-hf convert`."
        family = {"env_id": metadata.env_id, "env_kwargs": metadata.env_kwargs, "tasks": [{}]}
        describe(folder, name, config_name, metadata, origin, family)
    return local_path(output_dir)


def _each(items: Iterable[Any], dataset: MinariDataset) -> Iterator[Any]:
    """The item of each episode, one by one; errors of reading it name the episode."""
    remaining = iter(items)
    for number in range(dataset.total_episodes):
        with reading(f"{dataset.id}, episode {number}"):
            item = next(remaining, None)
            if item is None:
                raise ValueError(f"there are {number}, where its metadata says {dataset.total_episodes}")
        yield item


def _read_episodes(dataset: MinariDataset, *both: spaces.Space) -> Iterator[Steps]:
    """All episodes of a Minari dataset of these observation and action spaces, in order."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(STEPWISE, ())
    shapes |= {name: space.shape or () for name, space in zip(("observations", "actions"), both)}
    with ProgressBar("convert from Minari", dataset.total_episodes, "episodes") as bar:
        for number, episode in enumerate(_each(dataset.iterate_episodes(), dataset)):
            title = f"{dataset.id}, episode {number}"
            values = {name: np.asarray(getattr(episode, name)) for name in STEPWISE}
            length = len(np.atleast_1d(values["rewards"]))
            for name, array in values.items():
                expected = (length + (name == "observations"), *shapes[name])
                if array.dtype.kind not in "biuf" or array.shape != expected or length == 0:
                    raise ValueError(
                        f"{title}: {name} are {array.dtype} of shape {array.shape}, expected numbers of shape "
                        f"{expected}, of a step or more"
                    )
            steps = Steps(
                values["observations"][:-1],
                values["actions"],
                values["rewards"].astype(np.float64),
                values["terminations"].astype(bool),
                values["truncations"].astype(bool),
                values["observations"][-1:],
            )
            if outside(steps.rewards).any():
                raise ValueError(f"{title}, rewards: expected finite numbers")
            if steps.ends[:-1].any():
                raise ValueError(f"{title}: it ends at step {int(np.argmax(steps.ends))}, and goes on")
            bar.update()
            yield steps


Placed = tuple[tuple[int, Sequence[Any]], Steps]  # the row of an episode and the row's first columns; the episode


def _rows(dataset: MinariDataset, episodes: Iterable[Placed], metadata: HistoryMetadata) -> Iterator[pa.Table]:
    """The rows that episodes make, one by one."""
    features = history_features(*metadata.spaces)
    for row, group in groupby(episodes, lambda pair: pair[0][0]):
        ((_, keys), *_), parts = zip(*group)
        columns = ([getattr(part, name) for part in parts] for name in (*STEPWISE, "final_observations"))
        steps = to_storage(Steps(*map(np.concatenate, columns)), *metadata.spaces, f"{dataset.id}, row {row}")
        yield history_rows([(keys, steps)], features)


def _placed_by_notes(dataset: MinariDataset, metadata: HistoryMetadata) -> Iterator[Placed]:
    """The episodes of a dataset of ours, each where [`_fill`] has noted that it belongs."""
    notes = _each(dataset.storage.get_episode_metadata(dataset.episode_indices), dataset)
    for number, (note, episode) in enumerate(zip(notes, _read_episodes(dataset, *metadata.spaces))):
        with reading(f"{dataset.id}, note of episode {number}"):
            place = int(note["row"]), [str(note[KEYS[0]]), *(int(note[name]) for name in KEYS[1:])]
        yield place, episode


def _placed_in_order(
    dataset: MinariDataset, metadata: HistoryMetadata, per_history: int, max_piece_steps: int | None
) -> Iterator[Placed]:
    """The episodes of a dataset of others, as many in a history and its rows as fit; those that others follow end."""
    limit = piece_steps(metadata.spaces[0], max_piece_steps)
    row = piece = start = length = 0
    for number, episode in enumerate(_read_episodes(dataset, *metadata.spaces)):
        stream, position = divmod(number, per_history)
        if position == 0:
            row, piece, start, length = row + 1, 0, 0, 0
        elif length + len(episode.rewards) > limit:
            row, piece, start, length = row + 1, piece + 1, start + length, 0
        length += len(episode.rewards)
        is_last = number + 1 in ((stream + 1) * per_history, dataset.total_episodes)
        episode.truncations[-1] |= not (is_last or episode.ends[-1])
        yield (row, (f"0-0-{stream}", 0, stream, piece, start)), episode


def _restore(dataset: MinariDataset, entry: dict[str, Any], folder: Path) -> HistoryMetadata:
    """Write the shards that a dataset of ours was made of."""
    if dataset.total_episodes != entry["episodes"]:
        raise ValueError(
            f"{dataset.id} was written by ad_hf with {entry['episodes']} episodes and now has "
            f"{dataset.total_episodes}: histories are whole, so convert them again, or take all of them"
        )
    metadata = HistoryMetadata.from_data(entry["metadata"], f"{dataset.id}, {ENTRY}.metadata")
    schema = history_features(*metadata.spaces).arrow_schema
    rows = _rows(dataset, _placed_by_notes(dataset, metadata), metadata)
    for shard, sizes in entry["shards"].items():
        if SHARD.fullmatch(shard) is None:  # it becomes a path, and may be anyone's
            raise ValueError(f"{dataset.id}: {shard!r} is not the name of a shard")
        with open_shard(folder / shard, schema) as writer:
            for size in sizes:
                group = list(islice(rows, size))
                if len(group) < size:
                    raise ValueError(f"{dataset.id}: {ENTRY}.shards says more rows than its episodes make, in {shard}")
                writer.write_table(pa.concat_tables(group).combine_chunks())
    if next(rows, None) is not None:
        raise ValueError(f"{dataset.id}: {ENTRY}.shards says fewer rows than its episodes make")
    return metadata


def _metadata_of_others(
    dataset: MinariDataset, env_id: str | None, env_kwargs: dict[str, Any] | None, trust_remote_code: bool
) -> HistoryMetadata:
    """The metadata of the histories of a Minari dataset that is not ours."""
    spec, origin = dataset.env_spec, f"the Minari dataset {dataset.id}"
    if env_id is None and spec is not None:
        env_id = spec.id
        if not trust_remote_code and (env_id in gym.registry or ":" in env_id):  # else it is a mere name
            check_env_id(env_id, origin)
    if not env_id or not env_id.strip():
        raise ValueError(f"{dataset.id} does not say of which environment it is: give env_id")
    if env_kwargs is None:
        kwargs = spec.kwargs if spec is not None and spec.id == env_id else {}
        env_kwargs = {name: value for name, value in kwargs.items() if name != "render_mode"}
        if not trust_remote_code:
            check_kwargs(env_kwargs, origin, "env_kwargs")
    FamilyConfig(env_id=env_id, env_kwargs=env_kwargs)  # which refuses other types
    return HistoryMetadata(
        env_id=env_id,
        env_kwargs=env_kwargs,
        tasks=[{"task_id": 0, "kwargs": {}, "split": "train"}],
        observation_space=space_json(dataset.observation_space, f"{dataset.id}, observations"),
        action_space=space_json(dataset.action_space, f"{dataset.id}, actions"),
        source={"algorithm": dataset.storage.metadata.get("algorithm_name", "unknown")},
        seeds=[],
    )


def _histories_of_others(
    dataset: MinariDataset, metadata: HistoryMetadata, per_history: int, max_piece_steps: int | None
) -> Iterator[tuple[str, pa.Table]]:
    """The split and the rows of each history of a Minari dataset that is not ours."""
    num_steps = 0
    rows = _rows(dataset, _placed_in_order(dataset, metadata, per_history, max_piece_steps), metadata)
    for _, pieces in groupby(rows, lambda table: table["stream"][0]):
        history = pa.concat_tables(pieces)
        num_steps += row_lengths(history).sum()
        yield "train", history
    if num_steps != dataset.total_steps:
        raise ValueError(
            f"{dataset.id} says that it has {dataset.total_steps} steps, total_steps; episodes have {num_steps}"
        )
