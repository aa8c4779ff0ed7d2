"""The schema of a learning-history dataset, its tables, and the metadata beside them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from gymnasium import spaces

from ad_hf.envs.spaces import space_from_json, storage_dtype
from ad_hf.histories.frames import compress_frames, has_frames
from ad_hf.settings import parse_json, read_json, shown
from ad_hf.structure import check_structure

SCHEMA_VERSION = 1
METADATA_FILE = "metadata.json"
ROW_GROUP_BYTES = 16 << 20
PROGRESS_COLUMNS = ("task_id", "seed", "env_steps", "episodes", "return_first", "return_last", "converged")
VERSIONED_PACKAGES = ("ad_hf", "datasets", "gymnasium", "numpy", "pyarrow", "stable_baselines3", "torch")


class _Task(TypedDict):
    task_id: Annotated[int, range(2**31)]  # as the column of that name holds
    kwargs: dict[str, Any]
    split: Literal["train", "validation", "test"]


class _Source(TypedDict):
    algorithm: str
    n_envs: NotRequired[Annotated[int, range(1, 2**31)] | None]
    total_timesteps: NotRequired[int | None]
    hyperparameters: NotRequired[dict[str, Any] | None]
    independent_streams: NotRequired[bool]


class _Wrapper(TypedDict):
    name: str
    kwargs: NotRequired[dict[str, Any]]


class _SplitStatistics(TypedDict):
    histories: int
    steps: int
    episodes: int
    bytes: int
    return_first: float | None
    return_last: float | None
    reward_scale: NotRequired[float]
    observation_mean: NotRequired[list[float]]
    observation_std: NotRequired[list[float]]


class _Failure(TypedDict):
    task_id: int
    seed: int
    error: str


class _Progress(TypedDict):
    columns: NotRequired[list[str]]
    rows: NotRequired[list[list]]


class _Metadata(TypedDict):
    """The structure of `metadata.json`, but for its spaces; what is not required may be missing in older files."""

    env_id: str
    env_kwargs: dict[str, Any]
    tasks: list[_Task]
    source: _Source
    seeds: list[int]
    wrappers: NotRequired[list[_Wrapper]]
    attributes: NotRequired[list[str]]
    statistics: NotRequired[dict[str, _SplitStatistics]]
    fingerprint: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    failures: NotRequired[list[_Failure]]
    progress: NotRequired[_Progress]


@dataclass
class HistoryMetadata:
    """
    What `metadata.json` says about a learning-history dataset: enough to make its environments again and to build a
    model for it.

    Attributes:
        env_id (`str`), env_kwargs (`dict`):
            The environment and the keyword arguments that all tasks share.
        tasks (`list[dict]`):
            `task_id`, `kwargs` and `split` of each task.
        observation_space, action_space (`dict`):
            Spaces of one environment as JSON.
        source (`dict`):
            `algorithm`, `n_envs`, `total_timesteps` and `hyperparameters` of the source.
        seeds (`list[int]`):
            Seeds of the source. Each learnt every task but those of `failures`; in datasets that were merged, those
            that `progress` lists.
        wrappers (`list[dict]`), attributes (`list[str]`):
            Wrappers of each environment, and which keyword arguments are attributes of it, as of
            [`~ad_hf.TaskFamily`].
        statistics (`dict`):
            For each split what [`~ad_hf.histories.statistics.split_statistics`] says; for that to train on, also
            what [`~ad_hf.histories.statistics.normalization`] does.
        fingerprint (`str`):
            Digest of the contents of the dataset's shards.
        versions (`dict[str, str]`):
            Versions of the packages that made the data.
        schema_version (`int`):
            Version of this layout.
        failures (`list[dict]`):
            `task_id`, `seed` and `error` of what could not be learnt and is missing.
        progress (`dict`):
            How far each source got: `columns`, and `rows` with the task, the seed, steps and episodes over all
            streams, the mean return of each stream's first and last tenth of episodes, and whether the source had
            converged (null if it was not to learn until then). Empty for histories that were not collected.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    tasks: list[dict[str, Any]]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    source: dict[str, Any]
    seeds: list[int]
    wrappers: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=lambda: package_versions(VERSIONED_PACKAGES))
    schema_version: int = SCHEMA_VERSION
    failures: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, list] = field(default_factory=dict)

    @property
    def spaces(self) -> tuple[spaces.Space, spaces.Space]:
        """Observation and action space of one environment."""
        return space_from_json(self.observation_space), space_from_json(self.action_space)

    def to_json(self) -> str:
        """The text of `metadata.json`; each row of `progress` is one line, for there may be thousands."""
        return "".join(self.json_pieces(self.progress.get("rows", [])))

    def json_pieces(self, rows: Iterable[list[Any]]) -> Iterator[str]:
        """The text of `metadata.json` bit by bit, with these rows of `progress`: there may be millions."""
        yield json.dumps({**asdict(replace(self, progress={})), "progress": None}, indent=2).removesuffix("null\n}")
        if self.progress:
            columns = json.dumps(self.progress.get("columns", []))
            yield f'{{\n    "columns": {columns},\n    "rows": ['
            for number, row in enumerate(rows):
                yield f"{',' if number else ''}\n      {json.dumps(row)}"
            yield "\n    ]\n  }"
        else:
            yield "{}"
        yield "\n}\n"

    @classmethod
    def from_json(cls, text: str, name: str = METADATA_FILE) -> HistoryMetadata:
        """
        The inverse of [`~HistoryMetadata.to_json`].

        Args:
            text (`str`):
                What the file holds.
            name (`str`, *optional*, defaults to `"metadata.json"`):
                What to call it in an error, such as its path.

        Raises:
            ValueError: if the text was written by a newer schema, or is none of ours, with the entry that is wrong.
        """
        return cls.from_data(parse_json(text, name), name)

    @classmethod
    def from_data(cls, data: dict[str, Any], name: str = METADATA_FILE) -> HistoryMetadata:
        """The metadata of the object that a `metadata.json` holds; see [`~HistoryMetadata.from_json`]."""
        found = data.get("schema_version")
        if isinstance(found, int) and found > SCHEMA_VERSION:
            raise ValueError(
                f"{name} has schema version {found}, this version of ad_hf reads {SCHEMA_VERSION}: install a newer one"
            )
        if found != SCHEMA_VERSION:
            raise ValueError(f"{name} has schema version {found}, expected {SCHEMA_VERSION}")
        if unknown := sorted(set(data) - set(cls.__dataclass_fields__)):
            raise ValueError(f"{name}: {unknown[0]} is no entry of the metadata of a learning-history dataset")
        check_structure(data, _Metadata, name)
        if not data["env_id"].strip():
            raise ValueError(f"{name}: env_id must be the id of an environment, got {data['env_id']!r}")
        for space in ("observation_space", "action_space"):
            space_from_json(data.get(space), f"{name}: {space}")
        _check_tasks(data["tasks"], name)
        _check_statistics(data.get("statistics", {}), data["observation_space"], name)
        _check_progress(data.get("progress", {}), name)
        return cls(**data)


def _check_tasks(tasks: list[_Task], name: str) -> None:
    """Refuse metadata without tasks, or with two of the same number."""
    if not tasks:
        raise ValueError(f"{name}: tasks must hold one task at least, got none")
    counts = Counter(task["task_id"] for task in tasks)
    (number, count), *_ = counts.most_common(1)
    if count > 1:
        raise ValueError(f"{name}: tasks must have different task_id, got {count} of the number {number}")


def _check_statistics(statistics: dict[str, dict[str, Any]], space: dict[str, Any], name: str) -> None:
    """Refuse statistics of observations that are of another size."""
    for split, found in statistics.items():
        for entry in ("observation_mean", "observation_std"):
            numbers = found.get(entry)
            if numbers is not None and [len(numbers)] != space.get("shape"):
                raise ValueError(
                    f"{name}: statistics.{split}.{entry} must have a number for each dimension of {shown(space)}, got "
                    f"{len(numbers)}"
                )


def _check_progress(progress: _Progress, name: str) -> None:
    """Refuse rows that do not say which task and seed they are of, or are not of the columns."""
    columns, rows = progress.get("columns", []), progress.get("rows", [])
    if rows and set(map(len, rows)) != {len(columns)}:
        index = next(index for index, row in enumerate(rows) if len(row) != len(columns))
        raise ValueError(
            f"{name}: progress.rows[{index}] must have {len(columns)} elements, as progress.columns has, got "
            f"{shown(rows[index])}"
        )
    check_structure([row[:2] for row in rows], list[list[int]], f"{name}: progress.rows")


def is_synthetic(algorithm: str) -> bool:
    """Whether histories of a source were made without reinforcement learning, so as to look like it."""
    return algorithm == "NoisedPolicy"


def source_label(algorithm: str) -> str:
    """A source as cards and pictures name it: its algorithm, and if nothing was learnt, that."""
    return f"{algorithm} (synthetic, no reinforcement learning)" if is_synthetic(algorithm) else algorithm


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package."""
    return {package: version(package) for package in packages}


def read_metadata(dataset: str | Path, config_name: str = "default") -> HistoryMetadata:
    """
    The metadata of a learning-history dataset.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration in it.

    Raises:
        FileNotFoundError: if there is no finished dataset.
        ValueError: if the file is not what it should be.
    """
    path = Path(dataset) / config_name / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{dataset} holds no learning histories: {path} does not exist; collect them with `ad-hf collect`"
        )
    return HistoryMetadata.from_data(read_json(path), str(path))


def _elements_feature(space: spaces.Space) -> Any:
    """A column of elements of a space: a list, or one binary for all the frames of a row."""
    if has_frames(space):
        return Value("binary")
    feature: Any = Value(str(storage_dtype(space)))
    for length in reversed(space.shape or ()):
        feature = List(feature, length=length)
    return List(feature)


def history_features(observation_space: spaces.Space, action_space: spaces.Space) -> Features:
    """
    Columns of a learning-history dataset. A row is a history of T steps, or a contiguous piece of one.

    Args:
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment; they type the elements of `observations`, `final_observations` and `actions`.
            Images are stored as one zstd-compressed binary per row, which is many times faster to write and to read
            than lists of numbers are.
    """
    return Features(
        {
            "history_id": Value("string"),
            "task_id": Value("int32"),
            "stream": Value("int32"),
            "piece": Value("int32"),
            "start_step": Value("int64"),
            "observations": _elements_feature(observation_space),
            "actions": _elements_feature(action_space),
            "rewards": List(Value("float64")),
            "terminations": List(Value("bool")),
            "truncations": List(Value("bool")),
            "final_observations": _elements_feature(observation_space),
        }
    )


def _column(rows: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        return _list_column(rows, kind)
    return pa.array([compress_frames(row) for row in rows] if pa.types.is_binary(kind) else rows, type=kind)


def _list_column(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Arrays (T_i, ...) as one Arrow column of lists, without a Python object per element."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    lengths = []
    inner = kind.value_type
    while pa.types.is_fixed_size_list(inner):
        lengths.append(inner.list_size)
        inner = inner.value_type
    values = pa.array(np.concatenate([np.ravel(array) for array in arrays]), type=inner)
    for length in reversed(lengths):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def _piece_bounds(episode_ends: np.ndarray, num_steps: int, max_piece_steps: int) -> list[tuple[int, int]]:
    """Steps [start, stop) of each piece: as many whole episodes as fit, at least one."""
    borders = np.append(np.flatnonzero(episode_ends) + 1, num_steps)
    bounds, start = [], 0
    while start < num_steps:
        fitting = borders[(borders > start) & (borders <= start + max_piece_steps)]
        stop = int(fitting[-1]) if fitting.size else int(borders[borders > start][0])
        bounds.append((start, stop))
        start = stop
    return bounds


def history_table(recorded: Any, features: Features, task_id: int, seed: int, max_piece_steps: int) -> pa.Table:
    """
    The rows of one learner's streams.

    Args:
        recorded ([`~ad_hf.sources.recorder.RecordedSteps`]):
            Steps, streams first.
        features (`datasets.Features`):
            From [`history_features`].
        task_id, seed (`int`):
            Of the learner; with the stream they make the history's id.
        max_piece_steps (`int`):
            Longer histories are cut, at episode borders, into pieces of at most so many steps.
    """
    rows: dict[str, list] = {name: [] for name in features}
    for stream, finals in enumerate(recorded.final_observations):
        ends = recorded.terminations[stream] | recorded.truncations[stream]
        for piece, (start, stop) in enumerate(_piece_bounds(ends, len(ends), max_piece_steps)):
            episodes_before, episodes_after = int(ends[:start].sum()), int(ends[:stop].sum())
            if stop == len(ends):  # an unfinished last episode has a final observation, too
                episodes_after = len(finals)
            rows["history_id"].append(f"{task_id}-{seed}-{stream}")
            rows["task_id"].append(task_id)
            rows["stream"].append(stream)
            rows["piece"].append(piece)
            rows["start_step"].append(start)
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                rows[name].append(getattr(recorded, name)[stream, start:stop])
            rows["final_observations"].append(finals[episodes_before:episodes_after])
    schema = features.arrow_schema
    columns = [_column(rows[column.name], column.type) for column in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def default_piece_steps(observation_space: spaces.Space) -> int:
    """Steps above which a history is cut into several rows: fewer for frames, of which a row is decoded at a time."""
    return 100 if has_frames(observation_space) else 10_000


def row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """
    A table in runs of whole histories, each a row group of a parquet file: of a stream, the least that is read.

    Runs hold up to 16 MiB in memory, and more only if a single history does.
    """
    borders = np.append(np.flatnonzero(np.asarray(table["start_step"]) == 0), len(table)).tolist()
    first = 0  # border at which the next run begins
    while first + 1 < len(borders):
        rest = table.slice(borders[first])
        sizes = _SizesUpTo(rest, [border - borders[first] for border in borders[first + 1 :]])
        count = max(1, bisect_right(sizes, ROW_GROUP_BYTES))
        yield rest.slice(0, borders[first + count] - borders[first])
        first += count


class _SizesUpTo(Sequence[int]):
    """Bytes of a table up to each of some rows, counted when they are asked for: of the few that a search looks at."""

    def __init__(self, table: pa.Table, stops: list[int]) -> None:
        self.table, self.stops = table, stops

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: Any) -> Any:
        return self.table.slice(0, self.stops[index]).nbytes
