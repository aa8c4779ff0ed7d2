"""Learning-history datasets: where their files are, what they say of themselves, and their rows."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, NamedSplit

from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.cache import cached_folder
from ad_hf.histories.checks import COLUMNS, HistoryRows, checked_rows
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, read_metadata
from ad_hf.histories.shards import check_complete, check_footers
from ad_hf.histories.statistics import content_fingerprint, normalization, split_statistics
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.storage.parquet import parquet_errors, read_footer, read_schema
from ad_hf.storage.repositories import Repository, find_repository

NORMALIZATION = ("reward_scale", "observation_mean", "observation_std")
ROWS_VERSION, ROWS_FILE = 1, "rows.arrow"
FINGERPRINTED_BYTES = 64 << 20  # of shards, up to which their fingerprint is compared when they are first read


@dataclass(frozen=True)
class HistoryDataset:
    """
    One configuration of a learning-history dataset, in a folder or on the Hub.

    Attributes:
        repository ([`~ad_hf.storage.repositories.Repository`]):
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
        paths = repository.files() if repository.is_remote else repository.sizes(f"*{ending}")
        names = [path.removesuffix(ending) for path in paths if path.endswith(ending)]
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
        folder = repository.download([f"{glob.escape(config_name)}/{METADATA_FILE}"])
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
        self.tasks(split)
        return f"{glob.escape(self.config_name)}/{split}-*.parquet"

    @property
    def splits(self) -> list[str]:
        """Names of the splits that there are."""
        found = {task["split"] for task in self.metadata.tasks}
        return [split for split in SPLITS if split in found]

    def tasks(self, split: str) -> set[int]:
        """Ids of the tasks of a split, which must exist."""
        if split not in self.splits:
            raise ValueError(f"{self} has no split {split!r}: expected one of {', '.join(sorted(self.splits))}")
        return {task["task_id"] for task in self.metadata.tasks if task["split"] == split}

    def shards(self, split: str) -> dict[str, int]:
        """Sizes in bytes of the files of a split, by their paths in the repository; all of them must be there."""
        sizes = self.repository.sizes(self.pattern(split))
        check_complete([Path(path).name for path in sizes], split, f"{self}, {self.config_name}")
        return sizes

    def check_footers(self, split: str, footers: dict[str, pq.FileMetaData]) -> None:
        """
        Refuse shards of a split that are not those of the metadata, as far as their footers, by their paths, tell.

        Raises:
            ValueError: as of [`~ad_hf.histories.shards.check_footers`].
        """
        steps = check_footers(footers, self.metadata, split, str(self))
        known = self.metadata.statistics.get(split, {}).get("steps", steps)
        if known != steps:
            self.refuse(split, f"the shards of the split {split} hold {steps} steps, metadata.json says {known}")

    def files(self, split: str) -> list[Path]:
        """
        The files of a split; what is not there yet is downloaded.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: for a file that is no parquet, or no shard of this dataset, with its name.
        """
        folder = self.repository.download([self.pattern(split)]).resolve()
        footers = {path: read_footer(folder / path, f"{self}, {path}") for path in self.shards(split)}
        self.check_footers(split, footers)
        return [folder / path for path in footers]

    def rows(
        self, split: str, files: Sequence[Path], columns: Sequence[str] | None = COLUMNS
    ) -> Iterator[HistoryRows]:
        """The rows of a split's files, some at a time, with some columns or all of them; they are not checked yet."""
        tasks = self.tasks(split)
        for file in files:
            name, first_row = f"{self}, {self.config_name}/{file.name}", 0
            with parquet_errors(name), pq.ParquetFile(file, page_checksum_verification=True) as shard:
                for group in range(shard.num_row_groups):
                    for batch in shard.iter_batches(256, [group], None if columns is None else list(columns)):
                        yield HistoryRows(name, first_row, pa.Table.from_batches([batch]), tasks)
                        first_row += len(batch)

    def load(self, split: str, columns: list[str] | None = None) -> Dataset:
        """
        A split, with all or some of its columns; what is not there yet is downloaded.

        Its rows are checked when they are read for the first time, and then kept in the cache of datasets. They do not
        go through `load_dataset`, for which a path is a pattern of fsspec: of a folder `run[1]`, it reads `run1`.

        Raises:
            FileNotFoundError: if files are missing.
            OSError: if the cache cannot be written to, with what can be done.
            ValueError: for files that are damaged or not those of the metadata, and rows that are no learning
                histories or not of the split's tasks, with the shard, the row and the column.
        """
        files = self.files(split)

        def write(folder: Path) -> None:
            first, histories = read_schema(files[0]), 0
            with pa.OSFile(str(folder / ROWS_FILE), "wb") as file, pa.ipc.new_stream(file, first) as writer:
                for (name, _, table, _), _ in checked_rows(self.rows(split, files, None), *self.metadata.spaces):
                    if table.schema != first:
                        raise ValueError(f"{name}: its columns differ from those of {files[0].name}")
                    writer.write_table(table)
                    histories += int(np.count_nonzero(np.asarray(table["start_step"]) == 0))
            known = self.metadata.statistics.get(split, {}).get("histories", histories)
            if known != histories:
                told = f"statistics.{split}.histories of metadata.json is {known}"
                raise ValueError(f"{self}: the split {split} holds {histories} histories, and {told}")
            self.check_contents(split, files)

        key = [ROWS_VERSION, split, *self.key(files)]
        folder = cached_folder("ad_hf_rows", key, write, lambda: f"the histories of {self}, split {split},")
        rows = Dataset.from_file(str(folder / ROWS_FILE), split=NamedSplit(split))
        return rows if columns is None else rows.select_columns(columns)

    def key(self, files: Sequence[Path]) -> list[Any]:
        """What changes when these files or the metadata do."""
        folder = self.repository.download([f"{glob.escape(self.config_name)}/{METADATA_FILE}"])
        paths = [path.resolve() for path in (folder / self.config_name / METADATA_FILE, *files)]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    def check_contents(self, split: str, files: Sequence[Path]) -> None:
        """
        Refuse files of a split that were checked and yet are not those that the metadata describes.

        Files of another size may have been written anew with other settings: they are counted. Of a dataset in a
        folder that is not large, the fingerprint is compared.

        Raises:
            ValueError: naming what differs.
        """
        size = sum(file.stat().st_size for file in files)
        if self.metadata.statistics.get(split, {}).get("bytes", size) != size:
            self.check_statistics(split, files)
        elif self.repository.revision is None:
            try:
                sizes = {name: sum(self.shards(name).values()) for name in self.splits}
            except FileNotFoundError:  # of another split, which need not be here
                return
            described = {name: self.metadata.statistics.get(name, {}).get("bytes") for name in self.splits}
            if sizes == described and sum(sizes.values()) <= FINGERPRINTED_BYTES:
                self.check_fingerprint()

    def check_statistics(self, split: str, files: Sequence[Path]) -> None:
        """Refuse files of a split, unless there is as much in them, and with such returns, as the metadata says."""
        known = self.metadata.statistics.get(split, {})
        for name, value in split_statistics(files).items():
            said = known.get(name, value)
            if name != "bytes" and said != value and not math.isclose(value or 0.0, said or 0.0):
                told = f"their {name} is {value}, statistics.{split}.{name} of metadata.json {said}"
                raise ValueError(f"{self}: the shards of the split {split} are not those described: {told}")

    def check_fingerprint(self) -> None:
        """Refuse a dataset, all of which is here, whose shards are others than those whose fingerprint it says."""
        folder = self.repository.download(["*"])
        paths = sorted(path for split in self.splits for path in self.shards(split))
        found = content_fingerprint([folder / path for path in paths])
        if self.metadata.fingerprint not in ("", found):
            raise ValueError(
                f"{self}: the fingerprint of its shards is {found}, metadata.json says {self.metadata.fingerprint}: "
                "they were changed or damaged; collect or download them again (if the change is yours, set "
                'fingerprint to "" there)'
            )

    def refuse(self, split: str, what: str) -> None:
        """Refuse a split: by its first row that is no history, if its files are here and it has one."""
        if not self.repository.is_remote:
            folder = self.repository.download([self.pattern(split)]).resolve()
            files = [folder / path for path in self.shards(split)]
            for _ in checked_rows(self.rows(split, files), *self.metadata.spaces):
                pass
        raise ValueError(f"{self}: {what}: collect or download it again")


def check_dataset(dataset: HistoryDataset, splits: Sequence[str] | None = None) -> None:
    """
    Refuse a dataset of which anything is not as it should be: before it is pushed, merged or converted, all of it is
    read.

    Args:
        dataset ([`HistoryDataset`]):
            The dataset.
        splits (`Sequence[str]`, *optional*):
            Check these alone, and not the fingerprint, which is of all.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: for files that are damaged or not those of the metadata, also by their fingerprint, and rows that
            are no learning histories or not of their split's tasks, with the shard, the row and the column.
    """
    for split in dataset.splits if splits is None else splits:
        files = dataset.files(split)
        for _ in checked_rows(dataset.rows(split, files), *dataset.metadata.spaces):
            pass
        dataset.check_statistics(split, files)
    if splits is None or set(splits) == set(dataset.splits):
        dataset.check_fingerprint()


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
    found = dataset.metadata.statistics.get("train", {})
    if "reward_scale" not in found:
        if "train" not in dataset.splits:
            return {}
        with parquet_errors(f"{dataset}, split train"):
            found = normalization(dataset.files("train"), dataset.metadata.spaces[0])
    found = {name: found[name] for name in NORMALIZATION if name in found}
    for name, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(map(math.isfinite, numbers)) or (name != "observation_mean" and min(numbers, default=1.0) <= 0):
            expected = "finite numbers" if name == "observation_mean" else "finite numbers above 0"
            dataset.refuse("train", f"statistics.train.{name} of metadata.json is {value}, expected {expected}")
    return found


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
