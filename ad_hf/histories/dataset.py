"""Learning-history datasets: their files, their metadata, and their histories."""

from __future__ import annotations

import glob
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, NamedSplit

from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.cache import cached_folder
from ad_hf.histories.frames import has_frames
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, read_metadata
from ad_hf.histories.selection import Selection
from ad_hf.histories.shards import check_complete, check_footers, read_row_groups
from ad_hf.histories.statistics import content_fingerprint, split_statistics
from ad_hf.histories.steps import (
    COLUMNS,
    Histories,
    HistoryRows,
    checked_rows,
    convert_histories,
    open_histories,
    step_dtype,
    write_histories,
)
from ad_hf.storage.parquet import read_footer, read_groups, read_schema
from ad_hf.storage.repositories import Repository, find_repository

logger = logging.getLogger(__name__)

ROWS_VERSION, HISTORIES_VERSION = 1, 3  # of the folders in the cache
ROWS_FILE = "rows.arrow"
NO_HISTORY = "no history got better by data.min_improvement: set it lower, or leave it out"
FINGERPRINTED_BYTES = 64 << 20  # of shards, up to which their fingerprint is compared when they are first read


@dataclass(frozen=True)
class HistoryDataset:
    """One configuration of a learning-history dataset, in a folder or on the Hub."""

    repository: Repository
    config_name: str
    metadata: HistoryMetadata

    @classmethod
    def open(cls, dataset: str | Path | HistoryDataset, config_name: str | None = None) -> HistoryDataset:
        """The dataset of a folder or a Hub id, and a configuration of it; see [`load_histories`]."""
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
        """The entry of a run's files: name, revision, configuration, source, fingerprint."""
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
        names = {task["split"] for task in self.metadata.tasks}
        return [split for split in SPLITS if split in names]

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

    def _statistics(self, split: str) -> dict[str, Any]:
        """The statistics of a split in the metadata."""
        return self.metadata.statistics.get(split, {})

    def check_footers(self, split: str, footers: dict[str, pq.FileMetaData]) -> None:
        """Refuse shards whose footers, by the shards' paths, disagree with the metadata."""
        steps = check_footers(footers, self.metadata, split, str(self))
        expected = self._statistics(split).get("steps", steps)
        if expected != steps:
            self.refuse(split, f"the shards of the split {split} hold {steps} steps, metadata.json says {expected}")

    def files(self, split: str) -> list[Path]:
        """
        The files of a split, after a download of those that are not here.

        Raises:
            FileNotFoundError: if files are missing.
            ValueError: for a file that is not parquet, or not a shard of this dataset, with its name.
        """
        folder = self.repository.download([self.pattern(split)]).resolve()
        footers = {path: read_footer(folder / path, f"{self}, {path}") for path in self.shards(split)}
        self.check_footers(split, footers)
        return [folder / path for path in footers]

    def rows(
        self, split: str, files: Sequence[Path], columns: Sequence[str] | None = COLUMNS
    ) -> Iterator[HistoryRows]:
        """
        The rows of a split's files, a row group at a time, with some columns or all of them.

        Raises:
            ValueError: for rows that are not learning histories, or not of the split's tasks, with the shard, the row
                and the column.
        """
        tasks = self.tasks(split)

        def read() -> Iterator[HistoryRows]:
            for file in files:
                name, first_row = f"{self}, {self.config_name}/{file.name}", 0
                for table in read_groups(file, columns, name):
                    yield HistoryRows(name, first_row, table, tasks)
                    first_row += len(table)

        return checked_rows(read(), *self.metadata.spaces)

    def _rows_of_metadata(
        self, split: str, files: Sequence[Path], columns: Sequence[str] | None = COLUMNS
    ) -> Iterator[HistoryRows]:
        """The rows as of [`~HistoryDataset.rows`], and a `ValueError` at the end if the metadata has other files."""
        histories = 0
        for rows in self.rows(split, files, columns):
            histories += int(rows.begins.sum())
            yield rows
        expected = self._statistics(split).get("histories", histories)
        if expected != histories:
            reason = f"statistics.{split}.histories of metadata.json is {expected}"
            raise ValueError(f"{self}: the split {split} holds {histories} histories, and {reason}")
        self._check_contents(split, files)

    def load(self, split: str, columns: list[str] | None = None) -> Dataset:
        """
        A split, with all or some of its columns, after a download of the files that are not here.

        The first reading checks the rows and writes them to the cache of datasets. They do not go through
        `load_dataset`, which takes a path for a pattern of fsspec: of a folder `run[1]`, it reads `run1`.

        Raises:
            FileNotFoundError: if files are missing.
            OSError: if nobody can write to the cache, with what to do.
            ValueError: as of [`~HistoryDataset.files`] and [`~HistoryDataset.rows`], and for files other than those of
                the metadata.
        """
        files = self.files(split)

        def write(folder: Path) -> None:
            schema = read_schema(files[0])
            with pa.OSFile(str(folder / ROWS_FILE), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for rows in self._rows_of_metadata(split, files, None):
                    if rows.table.schema != schema:
                        raise ValueError(f"{rows.name}: its columns differ from those of {files[0].name}")
                    writer.write_table(rows.table)

        key = [ROWS_VERSION, split, *self._key(files)]
        folder = cached_folder("ad_hf_rows", key, write, lambda: f"the histories of {self}, split {split},")
        rows = Dataset.from_file(str(folder / ROWS_FILE), split=NamedSplit(split))
        return rows if columns is None else rows.select_columns(columns)

    def histories(self, split: str, selection: Selection | None = None, in_memory: bool = False) -> Histories:
        """
        The selected steps of a split, by default all, for [`~ad_hf.histories.windows.HistoryWindows`].

        The first of all processes of a machine writes them to the cache of datasets. All processes map these files to
        memory, where the operating system keeps as much of them as there is room for. With `in_memory` this process
        reads the steps into its own memory; frames stay in the files. See [`~HistoryDataset.load`] for errors.
        """
        selection = selection or Selection()
        files, both = self.files(split), self.metadata.spaces
        labels = self.labels(selection)
        dtype, framed = step_dtype(*both, labels is not None), has_frames(both[0])

        def content() -> str:
            steps = sum(group.steps for file in files for group in read_row_groups(pq.read_metadata(file)))
            size = steps // selection.keep_every_episode * dtype.itemsize
            size += framed * sum(file.stat().st_size for file in files)
            return f"the memory-mapped histories of {self}, about {size / 1e9:.2f} GB,"

        def write(folder: Path) -> None:
            logger.info("writing %s to %s", content().rstrip(","), folder.parent)
            write_histories(folder, convert_histories(self._rows_of_metadata(split, files), *both, selection, labels))
            pa.default_memory_pool().release_unused()

        settings = {name: getattr(selection, name) for name in Selection.__dataclass_fields__}
        folder = cached_folder("ad_hf", [HISTORIES_VERSION, split, settings, *self._key(files)], write, content)
        histories = open_histories(folder, dtype, in_memory)
        if not len(histories.lengths):
            raise ValueError(f"{self}: {NO_HISTORY}")
        return histories

    def labels(self, selection: Selection) -> StepLabels | None:
        """The labels that a selection asks for, if any."""
        return None if selection.labels is None else StepLabels(selection.labels, self.metadata)

    def _key(self, files: Sequence[Path]) -> list[Any]:
        """Paths, sizes and times of these files and of the metadata."""
        folder = self.repository.download([f"{glob.escape(self.config_name)}/{METADATA_FILE}"])
        paths = [path.resolve() for path in (folder / self.config_name / METADATA_FILE, *files)]
        return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]

    def _check_contents(self, split: str, files: Sequence[Path]) -> None:
        """
        Refuse files of a split whose rows are right, but which the metadata does not describe.

        Files of another size may be new ones with other settings, so this compares their statistics. Of a small
        dataset in a folder it compares the fingerprint.
        """
        size = sum(file.stat().st_size for file in files)
        if self._statistics(split).get("bytes", size) != size:
            self.check_statistics(split, files)
        elif self.repository.revision is None:
            try:
                sizes = {name: sum(self.shards(name).values()) for name in self.splits}
            except FileNotFoundError:  # of another split, which need not be here
                return
            expected = {name: self._statistics(name).get("bytes") for name in self.splits}
            if sizes == expected and sum(sizes.values()) <= FINGERPRINTED_BYTES:
                self.check_fingerprint()

    def check_statistics(self, split: str, files: Sequence[Path]) -> None:
        """Refuse files of a split whose counts and returns are not those of the metadata."""
        statistics = self._statistics(split)
        for name, value in split_statistics(files).items():
            expected = statistics.get(name, value)
            if name != "bytes" and expected != value and not math.isclose(value or 0.0, expected or 0.0):
                reason = f"their {name} is {value}, statistics.{split}.{name} of metadata.json {expected}"
                raise ValueError(f"{self}: the shards of the split {split} are not those described: {reason}")

    def check_fingerprint(self) -> None:
        """Refuse a dataset, all of it here, unless its shards have the fingerprint of its metadata."""
        folder = self.repository.download(["*"])
        paths = sorted(path for split in self.splits for path in self.shards(split))
        fingerprint = content_fingerprint([folder / path for path in paths])
        if self.metadata.fingerprint not in ("", fingerprint):
            raise ValueError(
                f"{self}: the fingerprint of its shards is {fingerprint}, metadata.json says "
                f"{self.metadata.fingerprint}: they were changed or damaged; collect or download them again (if the "
                'change is yours, set fingerprint to "" there)'
            )

    def refuse(self, split: str, reason: str) -> None:
        """Refuse a split: by its first wrong row, if its files are here and it has one, or else for this reason."""
        if not self.repository.is_remote:
            folder = self.repository.download([self.pattern(split)]).resolve()
            files = [folder / path for path in self.shards(split)]
            for _ in self.rows(split, files):
                pass
        raise ValueError(f"{self}: {reason}: collect or download it again")


def check_dataset(dataset: HistoryDataset, splits: Sequence[str] | None = None) -> None:
    """
    Read all of a dataset, before a push, a merge or a conversion, or some splits, without the fingerprint of them all.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: for files that are damaged or not those of the metadata, and rows that are not learning histories
            or not of their split's tasks, with the shard, the row and the column.
    """
    for split in dataset.splits if splits is None else splits:
        files = dataset.files(split)
        for _ in dataset.rows(split, files):
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
    histories = HistoryDataset.open(dataset, config_name)
    return histories.load(split, columns), histories.metadata
