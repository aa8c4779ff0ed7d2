"""Learning-history datasets: where their files are, what they say of themselves, and their rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, read_metadata
from ad_hf.histories.statistics import normalization
from ad_hf.histories.validation import check_complete, check_shards
from ad_hf.hub.repositories import Repository, find_repository
from ad_hf.model.configuration_ad import ADConfig

NORMALIZATION = ("reward_scale", "observation_mean", "observation_std")


@dataclass(frozen=True)
class HistoryDataset:
    """
    One configuration of a learning-history dataset, in a folder or on the Hub.

    Attributes:
        repository ([`~ad_hf.hub.repositories.Repository`]):
            Where it is.
        config_name (`str`):
            The configuration.
        metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            What its `metadata.json` says.
    """

    repository: Repository
    config_name: str
    metadata: HistoryMetadata

    @classmethod
    def open(cls, dataset: str | Path | HistoryDataset, config_name: str | None = None) -> HistoryDataset:
        """
        Find a dataset.

        Args:
            dataset (`str` or `Path`):
                A folder, or a Hub id, with `@revision` if need be.
            config_name (`str`, *optional*):
                A configuration; may be left out if there is only one, or one called `default`.

        Raises:
            FileNotFoundError: if there is no such dataset.
            ValueError: if it has no such configuration, or several of which none was chosen.
        """
        if isinstance(dataset, HistoryDataset):
            return dataset
        repository = find_repository(dataset)
        ending = f"/{METADATA_FILE}"
        names = [path.removesuffix(ending) for path in repository.files() if path.endswith(ending)]
        names = [name for name in names if "/" not in name and not name.startswith(".")]
        if not names:
            raise FileNotFoundError(
                f"{repository} holds no learning histories: it has no {METADATA_FILE}; collect them with "
                "`ad-hf collect`, or import others with `ad-hf convert`"
            )
        if config_name is None:
            config_name = names[0] if len(names) == 1 else "default"
        if config_name not in names:
            raise ValueError(f"{repository} has no configuration {config_name!r}: expected one of {', '.join(names)}")
        folder = repository.download([f"{config_name}/{METADATA_FILE}"])
        return cls(repository, config_name, read_metadata(folder, config_name))

    def __str__(self) -> str:
        return str(self.repository)

    def to_json(self) -> dict[str, Any]:
        """What a run's files say about it: name, revision, configuration, source, fingerprint."""
        return {
            **self.repository.to_json(),
            "config_name": self.config_name,
            "source": self.metadata.source["algorithm"],
            "fingerprint": self.metadata.fingerprint,
        }

    def pattern(self, split: str) -> str:
        """Glob pattern of the files of a split, which must exist."""
        splits = sorted({task["split"] for task in self.metadata.tasks})
        if split not in splits:
            raise ValueError(f"{self} has no split {split!r}: expected one of {', '.join(splits)}")
        return f"{self.config_name}/{split}-*.parquet"

    def shards(self, split: str) -> dict[str, int]:
        """Sizes in bytes of the files of a split, by their paths in the repository; all of them must be there."""
        sizes = self.repository.sizes(self.pattern(split))
        check_complete((Path(path).name for path in sizes), split, f"{self}, {self.config_name}")
        return sizes

    def files(self, split: str) -> list[Path]:
        """
        The files of a split; what is not there yet is downloaded.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: for a file that is no parquet, or lacks columns of learning histories, with its name.
        """
        folder = self.repository.download([self.pattern(split)]).resolve()
        files = [folder / path for path in self.shards(split)]
        check_shards(files, self.metadata, str(self))
        return files

    def load(self, split: str, columns: list[str] | None = None) -> Dataset:
        """
        A split, with all or some of its columns; what is not there yet is downloaded.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: for a file that is damaged, or lacks columns of learning histories, with its name.
        """
        # By its files and not by its folder: datasets caches a local folder by its name alone, so that another folder
        # of that name, or this one collected anew, would be taken for it.
        files = self.files(split)
        try:
            rows = load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)
        except (DatasetGenerationError, pa.ArrowException) as error:
            raise ValueError(f"{self}, {_damaged(files)}: it is damaged: {error.__cause__ or error}") from error
        return rows if columns is None else rows.select_columns(columns)


def _damaged(files: list[Path]) -> str:
    """Names of those parquet files that cannot be read whole."""
    names = []
    for file in files:
        try:
            pq.read_table(file)
        except (pa.ArrowException, OSError):
            names.append(file.name)
    return ", ".join(names)


def load_histories(
    dataset: str | Path | HistoryDataset,
    split: str,
    config_name: str | None = None,
    columns: list[str] | None = None,
) -> tuple[Dataset, HistoryMetadata]:
    """
    A split of a learning-history dataset and the dataset's metadata.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset, or its id on the Hub, with `@revision` if need be.
        split (`str`):
            `"train"`, `"validation"` or `"test"`.
        config_name (`str`, *optional*):
            Configuration in it; may be left out if there is only one, or one called `default`.
        columns (`list[str]`, *optional*):
            Columns to keep; all by default.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it has no such split or configuration.
    """
    opened = HistoryDataset.open(dataset, config_name)
    return opened.load(split, columns), opened.metadata


def _normalization(dataset: HistoryDataset) -> dict[str, Any]:
    """What the training split is normalised with, as the dataset says it, or else counted in its files."""
    statistics = dataset.metadata.statistics.get("train", {})
    if "reward_scale" in statistics:
        return {name: statistics[name] for name in NORMALIZATION if name in statistics}
    if all(task["split"] != "train" for task in dataset.metadata.tasks):
        return {}
    folder = dataset.repository.download([dataset.pattern("train")])
    return normalization([folder / path for path in dataset.shards("train")], dataset.metadata.spaces[0])


def config_from_dataset(
    dataset: str | Path | HistoryDataset,
    config_name: str | None = None,
    normalize_observations: bool = True,
    **settings: Any,
) -> ADConfig:
    """
    The configuration of a model for a dataset: its spaces are the dataset's, and the statistics with which it
    normalises its inputs those of the dataset's training split.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset, or its id on the Hub, with `@revision` if need be.
        config_name (`str`, *optional*):
            Configuration in it; may be left out if there is only one, or one called `default`.
        normalize_observations (`bool`, *optional*, defaults to `True`):
            Whether observations that are Box vectors are normalised.
        settings:
            Any other field of [`ADConfig`]. A `reward_scale` that is not given, or `None`, is the mean magnitude of
            the rewards that are not zero: 1 for rewards of 0 and 1.

    Raises:
        ValueError: for settings that `ADConfig` does not have.
    """
    known = {*ADConfig.__dataclass_fields__, *ADConfig.attribute_map}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"ADConfig has no setting {', '.join(map(repr, unknown))}")
    opened = HistoryDataset.open(dataset, config_name)
    metadata = opened.metadata
    of_dataset = {"observation_space": metadata.observation_space, "action_space": metadata.action_space}
    settings = {name: value for name, value in settings.items() if name not in NORMALIZATION or value is not None}
    wanted = set(NORMALIZATION if normalize_observations else NORMALIZATION[:1]) - set(settings)
    if wanted:
        of_dataset |= {name: value for name, value in _normalization(opened).items() if name in wanted}
    return ADConfig(**{**of_dataset, **settings})
