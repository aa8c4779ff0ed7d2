"""Windows of learning histories as datasets of torch, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import torch
from gymnasium import spaces
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ad_hf.envs.spaces import space_from_json
from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.schema import history_features
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.shards import check_columns
from ad_hf.histories.steps import COLUMNS, Histories, HistoryRows, checked_rows, convert_histories, join_histories
from ad_hf.histories.stream import HistoryStream
from ad_hf.histories.windows import HistoryWindows
from ad_hf.model.configuration_ad import ADConfig

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset
Spaces = tuple[spaces.Space, spaces.Space]
NAME = "the histories"  # of rows that are in no file, in errors
IGNORED = -100  # the label that neither the model nor a trainer counts
TABLE_BYTES = 1 << 20  # of rows that are converted in one go
CUT_AT_ONCE = 64  # windows of an iterable dataset


def _spaces(config: ADConfig) -> Spaces:
    """The spaces of observations and actions of a model."""
    names = "observation_space", "action_space"
    observation_space, action_space = (space_from_json(getattr(config, name), name) for name in names)
    return observation_space, action_space


def _open(histories: Any, config_name: str | None, config: ADConfig) -> HistoryDataset:
    """A dataset by its name; its spaces must be those of the model."""
    if isinstance(histories, dict):
        raise ValueError(f"histories must be one split, as of load_dataset(..., split='train'), got {list(histories)}")
    dataset = HistoryDataset.open(histories, config_name)
    for name in ("observation_space", "action_space"):
        space, wanted = getattr(dataset.metadata, name), getattr(config, name)
        if space != wanted:
            raise ValueError(f"{dataset} has an {name} of {space}, and config one of {wanted}")
    return dataset


def _batched(rows: Rows) -> Iterator[pa.Table]:
    """Rows in tables, since each table costs milliseconds."""
    tables: list[pa.Table] = []
    size = 0
    for table in rows.with_format("arrow"):  # in a worker process, rows of its own, one by one
        tables.append(table)
        size += table.nbytes
        if size >= TABLE_BYTES:
            yield pa.concat_tables(tables)
            tables, size = [], 0
    if tables:
        yield pa.concat_tables(tables)


def _history_rows(rows: Rows, both: Spaces) -> Iterator[HistoryRows]:
    """Rows in the types that they have in files."""
    expected, first = history_features(*both).arrow_schema, 0
    expected = pa.schema([expected.field(name) for name in COLUMNS])
    for table in _batched(rows):
        if set(COLUMNS) <= set(table.column_names):
            with suppress(pa.ArrowException):  # where a value would change, the check names the column
                table = table.select(COLUMNS).cast(expected)
        check_columns(table.schema, *both, NAME)
        yield HistoryRows(NAME, first, table)
        first += len(table)


def _convert(rows: Rows, both: Spaces, data: DataConfig) -> Iterator[Histories]:
    """The selected steps of rows, a history at a time."""
    if data.labels is not None:
        raise ValueError("labels need the tasks in metadata.json: give the folder of the dataset, or its Hub id")
    checked = checked_rows(_history_rows(rows, both), *both)
    if (first := next(checked, None)) is not None:  # a worker may have no rows
        yield from convert_histories(chain([first], checked), *both, data)


def _cut(windows: HistoryWindows, tiles: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """Some windows (number, 2), each a dict of tensors (time, ...)."""
    batch = windows.batch(tiles)
    padded = batch.pop("attention_mask", None) is not None
    cut = [dict(zip(batch, values)) for values in zip(*(tensor.unbind() for tensor in batch.values()))]
    if not padded:
        return cut
    return [{name: values[:length] for name, values in each.items()} for each, length in zip(cut, tiles[:, 1])]


class _Epoch:
    """The epoch of a dataset, which worker processes see, too."""

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Cut the histories as in this epoch from now on; a trainer of transformers or Accelerate calls this."""
        self._epoch.fill_(epoch)


class HistoryWindowsDataset(_Epoch, Dataset):
    r"""
    Windows of learning histories by number, for a `DataLoader` with [`collate_windows`].

    A window is a dict of tensors (time, ...), the arguments of [`ADModel`]: `observations`, `previous_actions`,
    `previous_rewards`, `episode_starts` and `labels`. It has `context_length` steps, and fewer where a history is
    shorter. In the order of their numbers, windows come as `ad_hf.train` takes them in an epoch.

    [`~HistoryWindowsDataset.set_epoch`] cuts every history from another step on. Samplers and trainers ask for the
    number of windows once, so that it is that of epoch 0 in all epochs: where an epoch has a few more, these are left
    out, and where it has fewer, the first come again.

    Args:
        histories (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            Folder of a dataset or its id on the Hub, which is then read from memory-mapped files; or rows of it, which
            are read into memory. The pieces of a history must stand next to each other.
        config ([`ADConfig`]):
            Of the model: its spaces and `context_length`.
        split (`str`, *optional*, defaults to `"train"`), config_name (`str`, *optional*):
            Split and configuration of a folder or a Hub id.
        seed (`int`, *optional*, defaults to 0):
            Of the order, and of where histories are cut.
        data:
            Settings of [`~ad_hf.histories.selection.DataConfig`], such as `keep_every_episode=2`.

    Raises:
        ValueError: for rows that are not learning histories, other spaces than the model's, and settings that leave
            no window.
    """

    def __init__(
        self,
        histories: str | Path | Rows,
        config: ADConfig,
        split: str = "train",
        config_name: str | None = None,
        seed: int = 0,
        **data: Any,
    ) -> None:
        super().__init__()
        settings, both = DataConfig(**data), _spaces(config)
        if isinstance(histories, Rows):
            parts = list(_convert(histories, both, settings))
            if not sum(len(part.lengths) for part in parts):
                raise ValueError(f"{NAME}: {NO_HISTORY if parts else 'there are no rows'}")
            read = join_histories(parts)
        else:
            dataset = _open(histories, config_name, config)
            read = dataset.histories(split, settings, bool(settings.keep_in_memory))
        self.windows = HistoryWindows(read, *both, config.context_length, seed)
        self.windows.warn_of_short_histories()
        self._length = self.windows.tiling(0).num_windows
        self._drawn = -1  # the epoch of the order at hand

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Several windows at once, which is what a `DataLoader` asks for."""
        epoch = int(self._epoch)
        if epoch != self._drawn:
            self._tiling = self.windows.tiling(epoch)
            self._order = np.resize(self.windows.epoch_numbers(epoch), self._length)
            self._drawn = epoch
        return _cut(self.windows, self._tiling.windows(self._order[indices]))


class IterableHistoryWindowsDataset(_Epoch, IterableDataset):
    r"""
    Windows of learning histories one after another, in memory that does not grow with the dataset.

    A pass gives every window of an epoch once, in random order within a buffer of whole histories;
    [`~IterableHistoryWindowsDataset.set_epoch`] chooses the epoch. The worker processes of a `DataLoader` share the
    windows: those of `datasets.IterableDataset` by its shards. Several training processes do, if
    `datasets.distributed.split_dataset_by_node` has split the rows by shards, or if a trainer deals out the batches.

    Windows, and all arguments that are not here, are those of [`HistoryWindowsDataset`].

    Args:
        histories (`str`, `Path`, `datasets.IterableDataset` or `datasets.Dataset`):
            Folder of a dataset or its id on the Hub, of which blocks of all shards are read in random order; or rows
            of it, as of `load_dataset(..., streaming=True)`, which are read in their order. Before,
            `rows.shuffle(seed=0, buffer_size=1, max_buffer_input_shards=1)` shuffles whole shards, anew in each
            epoch; pieces of a history must stay next to each other.
        data:
            Settings of [`~ad_hf.histories.selection.DataConfig`]: the buffer holds `buffer_megabytes`.
    """

    def __init__(
        self,
        histories: str | Path | Rows,
        config: ADConfig,
        split: str = "train",
        config_name: str | None = None,
        seed: int = 0,
        **data: Any,
    ) -> None:
        super().__init__()
        self._data, self._seed = DataConfig(**data), seed
        self._spaces, self._context_length = _spaces(config), config.context_length
        if isinstance(histories, datasets.Dataset):
            histories = histories.to_iterable_dataset()
        self._source: Any = histories
        if not isinstance(histories, datasets.IterableDataset):
            dataset = _open(histories, config_name, config)
            self._source = HistoryStream(dataset, split, self._data, self._context_length, seed)

    def _groups(self, epoch: int, consumer: int, consumers: int) -> Iterator[HistoryWindows]:
        """The windows of so many histories at a time as the buffer holds, of one of so many workers."""
        if isinstance(self._source, HistoryStream):
            yield from map(self._source.read, self._source.groups(epoch, consumer, consumers))
            return
        self._source.set_epoch(epoch)
        buffer: list[Histories] = []
        size = 0
        # A dataset of rows knows by itself in which worker it is.
        for part in _convert(self._source, self._spaces, self._data):
            buffer.append(part)
            size += part.steps.nbytes + (0 if part.frames is None else part.frames.nbytes)
            if size >= self._data.buffer_megabytes << 20:
                yield self._windows(buffer)
                buffer, size = [], 0
        if buffer:
            yield self._windows(buffer)

    def _windows(self, buffer: list[Histories]) -> HistoryWindows:
        return HistoryWindows(join_histories(buffer), *self._spaces, self._context_length, self._seed)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info, epoch = get_worker_info(), int(self._epoch)
        consumer, consumers = (0, 1) if info is None else (info.id, info.num_workers)
        group, count = -1, 0
        for group, windows in enumerate(self._groups(epoch, consumer, consumers)):
            rng = np.random.default_rng([self._seed, epoch, consumer, group])
            tiles = rng.permutation(windows.epoch_windows(epoch))
            for first in range(0, len(tiles), CUT_AT_ONCE):
                yield from _cut(windows, tiles[first : first + CUT_AT_ONCE])
            count += len(tiles)
        if group >= 0 and not count:
            raise ValueError(f"{NAME}: {NO_HISTORY}")


def collate_windows(windows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    A batch of windows: the arguments of [`ADModel`], (batch, time, ...) each.

    Shorter windows are padded at their end, where `attention_mask` is 0 and `labels` are -100; without any, there is
    no `attention_mask`. Labels are `int64`, or `float32` for continuous actions.
    """
    lengths = torch.tensor([len(window["labels"]) for window in windows])
    padded = int(lengths.min()) < (time := int(lengths.max()))
    batch = {}
    for name in windows[0]:
        values = [window[name] for window in windows]
        if not padded:  # many times faster
            batch[name] = torch.stack(values)
            continue
        is_label = name == "labels"
        if is_label and not values[0].is_floating_point():
            values = [each.long() for each in values]  # -100 fits no unsigned type
        batch[name] = pad_sequence(values, batch_first=True, padding_value=IGNORED if is_label else 0)
    if padded:
        batch["attention_mask"] = (torch.arange(time) < lengths.unsqueeze(1)).long()
    return batch
