"""The schema of a learning-history dataset, its tables, and the metadata beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from datasets import Features, List, Value
from gymnasium import spaces

from ad_hf.envs.spaces import space_from_json, storage_dtype
from ad_hf.histories.frames import has_frames
from ad_hf.settings import excerpt, parse_json, read_json
from ad_hf.structure import check_structure

SCHEMA_VERSION = 1
METADATA_FILE = "metadata.json"
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


@dataclass
class HistoryMetadata:
    """
    The content of `metadata.json`: enough to make the environments of a learning-history dataset again and to build a
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
            For each split [`~ad_hf.histories.statistics.split_statistics`]; for the training split also
            [`~ad_hf.histories.statistics.normalization`].
        fingerprint (`str`):
            Digest of the contents of the dataset's shards.
        versions (`dict[str, str]`):
            Versions of the packages that made the data.
        schema_version (`int`):
            Version of this layout.
        failures (`list[dict]`):
            `task_id`, `seed` and `error` of the histories that are missing because their source failed.
        progress (`dict`):
            How far each source got: `columns`, and `rows` with the task, the seed, steps and episodes over all
            streams, the mean return of each stream's first and last tenth of episodes, and whether the source had
            converged (null if it was not to learn until then). Empty for histories that were not collected.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    tasks: Annotated[list[dict[str, Any]], list[_Task]]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    source: Annotated[dict[str, Any], _Source]
    seeds: list[int]
    wrappers: Annotated[list[dict[str, Any]], list[_Wrapper]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    statistics: Annotated[dict[str, dict[str, Any]], dict[str, _SplitStatistics]] = field(default_factory=dict)
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=lambda: package_versions(VERSIONED_PACKAGES))
    schema_version: int = SCHEMA_VERSION
    failures: Annotated[list[dict[str, Any]], list[_Failure]] = field(default_factory=list)
    progress: Annotated[dict[str, list], _Progress] = field(default_factory=dict)

    @property
    def spaces(self) -> tuple[spaces.Space, spaces.Space]:
        """Observation and action space of one environment."""
        return space_from_json(self.observation_space), space_from_json(self.action_space)

    def to_json(self) -> str:
        """The text of `metadata.json`; each row of `progress` is one line, for there may be thousands."""
        return "".join(self.json_pieces(self.progress.get("rows", [])))

    def json_pieces(self, rows: Iterable[list[Any]]) -> Iterator[str]:
        """The parts of the text of `metadata.json`, with these rows of `progress`: there may be millions."""
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
        """The inverse of [`~HistoryMetadata.to_json`]; see [`~HistoryMetadata.from_data`]."""
        return cls.from_data(parse_json(text, name), name)

    @classmethod
    def from_data(cls, data: dict[str, Any], name: str = METADATA_FILE) -> HistoryMetadata:
        """
        The metadata of the object in a `metadata.json`.

        Raises:
            ValueError: with the file's `name`, for a newer schema, and for an entry that is wrong, unknown or missing.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            advice = ": install a newer one" if isinstance(version, int) and version > SCHEMA_VERSION else ""
            raise ValueError(
                f"{name} has schema version {version}, this version of ad_hf reads {SCHEMA_VERSION}{advice}"
            )
        if unknown := sorted(set(data) - set(cls.__dataclass_fields__)):
            raise ValueError(f"{name}: {unknown[0]} is not an entry of the metadata of a learning-history dataset")
        check_structure(data, cls, name)
        if not data["env_id"].strip():
            raise ValueError(f"{name}: env_id must be the id of an environment, got {data['env_id']!r}")
        for space in ("observation_space", "action_space"):
            space_from_json(data[space], f"{name}: {space}")
        metadata = cls(**data)
        metadata._check(name)
        return metadata

    def _check(self, name: str) -> None:
        """Refuse entries that contradict each other."""
        counts = Counter(task["task_id"] for task in self.tasks)
        ((number, count),) = counts.most_common(1) or [(None, 0)]
        if count != 1:
            expected = f"have different task_id, got {count} of the number {number}" if count else "hold one at least"
            raise ValueError(f"{name}: tasks must {expected}")
        for split, statistics in self.statistics.items():
            for entry in ("observation_mean", "observation_std"):
                length = len(statistics.get(entry, ()))
                if entry in statistics and [length] != self.observation_space.get("shape"):
                    raise ValueError(
                        f"{name}: statistics.{split}.{entry} must have a number for each dimension of "
                        f"{excerpt(self.observation_space)}, got {length}"
                    )
        columns, rows = self.progress.get("columns", []), self.progress.get("rows", [])
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"{name}: progress.rows[{index}] must have {len(columns)} elements, as progress.columns has, got "
                    f"{excerpt(row)}"
                )
        check_structure([row[:2] for row in rows], list[list[int]], f"{name}: progress.rows")


def algorithm_name(algorithm: str) -> str:
    """The name of a class for its import path; other names as they are."""
    parts = algorithm.split(".")
    return parts[-1] if all(map(str.isidentifier, parts)) else algorithm


def is_synthetic(algorithm: str) -> bool:
    """Whether the histories of a source only look like reinforcement learning."""
    return algorithm_name(algorithm) == "NoisedPolicy"


def source_label(algorithm: str) -> str:
    """The name of a source in cards and pictures: its algorithm, with a note if nothing learns."""
    name = algorithm_name(algorithm)
    return f"{name} (synthetic, no reinforcement learning)" if is_synthetic(algorithm) else name


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package."""
    return {package: version(package) for package in packages}


def read_metadata(dataset: str | Path, config_name: str = "default") -> HistoryMetadata:
    """
    The metadata of a configuration in a dataset's folder; see [`~HistoryMetadata.from_data`] for errors.

    Raises:
        FileNotFoundError: if there is no finished dataset.
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

    The spaces of one environment type the elements of `observations`, `final_observations` and `actions`. All images
    of a row are one zstd-compressed binary, which is many times faster to write and to read than lists of numbers.
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
