"""
Windows of learning histories, read as they are needed from a folder or over HTTP from the Hub.

The parquet footers, read once, tell where histories begin. A reader reads blocks of whole histories: runs of row
groups of a shard. Each epoch deals all blocks, in an order of its own, to the processes and their workers. Each of
these takes as many of its blocks into memory as its buffer holds, and yields all windows of those in random order
while it reads the next. So the order is a pure function of (seed, epoch, rank, worker), every window of an epoch comes
once, and a place in it is three numbers.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.shards import RowGroup, read_row_groups
from ad_hf.histories.steps import (
    COLUMNS,
    REPEATED,
    Histories,
    HistoryRows,
    checked_rows,
    convert_histories,
    history_hashes,
    join_histories,
    step_dtype,
)
from ad_hf.histories.windows import HistoryWindows, share_of_batch
from ad_hf.storage.parquet import parquet_errors
from ad_hf.storage.repositories import HubError, retried

BLOCK_BYTES = 1 << 18  # compressed; a request each: less would cost more latency, more would mix fewer tasks
READERS = 4  # threads that read blocks over HTTP, which hides that latency

T = TypeVar("T")


class Block(NamedTuple):
    """Whole histories that stand together in a shard: some of its row groups, from one on, and from a row on."""

    path: str
    first: int
    first_row: int
    groups: list[RowGroup]


def blocks_of_shard(path: str, groups: list[RowGroup], target: int) -> list[Block]:
    """Runs of row groups of about `target` compressed bytes, cut where a history begins."""
    blocks: list[Block] = []
    compressed = first_row = 0
    for index, group in enumerate(groups):
        if not blocks or (group.begins and compressed >= target):
            blocks.append(Block(path, index, first_row, []))
            compressed = 0
        blocks[-1].groups.append(group)
        compressed += group.compressed
        first_row += group.rows
    return blocks


class HistoryStream:
    r"""
    A split of a learning-history dataset, in blocks, for windows of `context_length` steps in an order by the seed.

    `data` says which steps to train on, and how many of them a worker mixes at a time (frames: compressed; at least
    one block).

    Raises:
        FileNotFoundError: if the dataset lacks the split's files.
        ValueError: for shards that lack columns, or have others.
    """

    def __init__(
        self, dataset: HistoryDataset, split: str, data: DataConfig, context_length: int, seed: int = 0
    ) -> None:
        self.dataset, self.selection, self.context_length, self.seed = dataset, data, context_length, seed
        self._labels, self._spaces = dataset.labels(data), dataset.metadata.spaces
        self._buffer_bytes = data.buffer_megabytes << 20
        shards = dataset.shards(split)
        repository = dataset.repository
        self._folder = None if repository.is_remote else repository.download([dataset.pattern(split)])
        with ThreadPoolExecutor(READERS) as executor:
            footers = executor.map(lambda path: self._read_shard(path, lambda file: file.metadata), shards)
            self._footers = dict(zip(shards, footers))
        dataset.check_footers(split, self._footers)
        self._tasks = dataset.tasks(split)
        self._row_groups = {path: read_row_groups(footer) for path, footer in self._footers.items()}
        groups = [group for parts in self._row_groups.values() for group in parts]
        self.num_steps = sum(group.steps for group in groups)
        self.compressed_bytes = sum(group.compressed for group in groups)
        self._hashes: dict[tuple[str, int], np.ndarray] = {}  # of the histories of each block so far, by its place

    def _read_shard(self, path: str, read: Callable[[pq.ParquetFile], T], footer: pq.FileMetaData | None = None) -> T:
        """The result of a function of a shard, tried again if the Hub or the way to it fails."""
        name = f"reading {path} of {self.dataset}"

        def attempt() -> T:
            source: Any = self.dataset.repository.open_remote(path) if self._folder is None else self._folder / path
            # Buffered ahead, neighbouring columns come in one request.
            with pq.ParquetFile(source, metadata=footer, pre_buffer=True, page_checksum_verification=True) as file:
                return read(file)

        try:
            return retried(name, attempt)
        except HubError:
            raise
        except (pa.ArrowException, OSError):
            with parquet_errors(name):
                raise

    def read_rows(self, block: Block, columns: Sequence[str] = COLUMNS) -> HistoryRows:
        """The rows of a block, unchecked but for their first one, with some columns or all of them."""
        numbers = list(range(block.first, block.first + len(block.groups)))
        table = self._read_shard(
            block.path, lambda file: file.read_row_groups(numbers, list(columns)), self._footers[block.path]
        )
        rows = HistoryRows(f"{self.dataset}, {block.path}", block.first_row, table, self._tasks)
        start = table["start_step"][0].as_py()
        if start != 0:
            reason = f"since row group {block.first} begins with it and a stream reads row groups one by one"
            advice = "write the dataset with whole histories in each row group, or train without streaming"
            rows.refuse(0, "start_step", f"{start}, expected 0, {reason}: {advice}")
        return rows

    def _check_new(self, block: Block, rows: HistoryRows) -> None:
        """Refuse a block with a history that this process has read in another block."""
        if (place := block[:2]) in self._hashes:
            return
        firsts = np.flatnonzero(rows.begins)
        hashes = history_hashes(rows.table["history_id"].take(firsts))
        # Another thread may have read this block in between.
        others = [of_block for other, of_block in [*self._hashes.items()] if other != place]
        if (repeated := np.isin(hashes, np.concatenate([hashes[:0], *others]))).any():
            rows.refuse(int(firsts[np.argmax(repeated)]), "history_id", REPEATED)
        self._hashes[place] = hashes

    def blocks(self, consumers: int) -> list[Block]:
        """All blocks, cut finer where there would be too few of them for so many consumers."""
        target = min(BLOCK_BYTES, self.compressed_bytes // (4 * consumers))
        shards = self._row_groups.items()
        return [block for path, groups in shards for block in blocks_of_shard(path, groups, target)]

    def _memory_of(self, block: Block) -> int:
        """About how many bytes the windows of a block take in memory, after subsampling."""
        dtype = step_dtype(*self._spaces)
        per_step = dtype.itemsize + dtype["actions"].itemsize  # of the step, and of the step before
        steps = sum(group.steps for group in block.groups)
        frame_bytes = sum(group.frame_bytes for group in block.groups)
        if frame_bytes:
            per_step -= dtype["observations"].itemsize
        return steps // self.selection.keep_every_episode * per_step + frame_bytes

    def groups(self, epoch: int, consumer: int, consumers: int) -> list[list[Block]]:
        """
        The blocks of one of so many consumers in an epoch, by the groups in which it takes them into memory.

        Raises:
            ValueError: if there are fewer blocks than consumers.
        """
        blocks = self.blocks(consumers)
        if len(blocks) < consumers:
            raise ValueError(
                f"{self.dataset} can be read in {len(blocks)} parts, which is too few for {consumers} processes and "
                "workers: use fewer, or train without streaming"
            )
        order = np.random.default_rng([self.seed, epoch]).permutation(len(blocks))
        mine = order[consumer::consumers]
        num_bytes = sum(self._memory_of(blocks[index]) for index in mine)
        parts = np.array_split(mine, min(len(mine), -(-num_bytes // self._buffer_bytes)))
        return [[blocks[index] for index in part] for part in parts]

    def read(self, blocks: list[Block]) -> HistoryWindows:
        """The windows of a group of blocks, few of which are in memory as tables at the same time."""
        lock = Lock()

        def convert(block: Block) -> Histories:
            rows = self.read_rows(block)
            with lock:
                checked = checked_rows([rows], *self._spaces)
                histories = join_histories(convert_histories(checked, *self._spaces, self.selection, self._labels))
                self._check_new(block, rows)
                return histories

        # A folder has no latency to hide with more blocks in memory as tables.
        with ThreadPoolExecutor(READERS if self._folder is None else 1) as executor:
            histories = join_histories(executor.map(convert, blocks))
        pa.default_memory_pool().release_unused()
        return HistoryWindows(histories, *self._spaces, self.context_length, self.seed)

    def group_order(self, windows: HistoryWindows, epoch: int, consumer: int, group: int) -> np.ndarray:
        """The windows (num_windows, 2) of a group of blocks in their order."""
        tiles = windows.epoch_windows(epoch)
        return tiles[np.random.default_rng([self.seed, epoch, consumer, group]).permutation(len(tiles))]


Place = tuple[int, int, int]  # epoch, group of blocks in it, windows of the group that are used up


def _join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batches one after another, where masked copies of their last step pad shorter ones."""
    if len(parts) == 1:
        return parts[0]
    time = max(part["labels"].shape[1] for part in parts)
    batches = []
    for part in parts:
        length = part["labels"].shape[1]
        index = torch.arange(time).clamp(max=length - 1)
        mask = part.get("attention_mask", torch.ones(part["labels"].shape[:2], dtype=torch.long))
        mask = mask[:, index] * (torch.arange(time) < length)
        batches.append({**{name: tensor[:, index] for name, tensor in part.items()}, "attention_mask": mask})
    batch = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    if batch["attention_mask"].all():
        del batch["attention_mask"]
    return batch


def _batches_of_consumer(
    stream: HistoryStream, size: int, consumer: int, consumers: int, place: Place
) -> Iterator[tuple[dict[str, torch.Tensor], Place, float]]:
    """One consumer's endless batches, each with the place that follows it, and the epochs that are over there."""
    epoch, group, position = place
    groups = stream.groups(epoch, consumer, consumers)
    reader = ThreadPoolExecutor(1)
    try:
        reading = reader.submit(stream.read, groups[group])
        parts: list[dict[str, torch.Tensor]] = []
        missing, without_any = size, 0
        while True:
            windows, here, number = reading.result(), (epoch, group), len(groups)
            order = stream.group_order(windows, epoch, consumer, group)
            if position > max(0, len(order) - 1):  # of a checkpoint: later ones are 0
                raise ValueError(
                    f"{stream.dataset}: the checkpoint goes on after window {position} of a part of {len(order)}: "
                    "go on from another one"
                )
            without_any = 0 if len(order) else without_any + 1
            if without_any == len(groups):
                raise ValueError(f"{stream.dataset}: {NO_HISTORY}")
            group += 1
            if group == len(groups):
                epoch, group = epoch + 1, 0
                groups = stream.groups(epoch, consumer, consumers)
            reading = reader.submit(stream.read, groups[group])
            while position < len(order):
                tiles = order[position : position + missing]
                parts.append(windows.batch(tiles))
                missing, position = missing - len(tiles), position + len(tiles)
                if not missing:
                    epochs = here[0] + (here[1] + position / len(order)) / number
                    yield _join(parts), ((*here, position) if position < len(order) else (epoch, group, 0)), epochs
                    parts, missing = [], size
            position = 0
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


class _Consumers(IterableDataset):
    """The batches of consumers, of which each worker process of a data loader is one."""

    def __init__(self, consumers: list[tuple[HistoryStream, int, int, int, Place]], stop: Any) -> None:
        self._consumers, self._stop = consumers, stop

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Place, float] | Exception]:
        info = get_worker_info()
        try:
            for item in _batches_of_consumer(*self._consumers[0 if info is None else info.id]):
                if self._stop.is_set():
                    return
                yield item
        except (OSError, ValueError) as error:
            # Raised here, it would reach the other process as the text of a traceback.
            yield error


def _leave_signals_to_parent(_: int) -> None:
    """Ignore signals of terminals and clusters to all processes: the parent may save first, and then ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class StreamedBatches:
    """
    Endless batches, epoch after epoch; each process takes its share of the blocks.

    Each worker of each process makes batches of its own blocks; a process takes them from its workers in turn.
    `state_dict` is the place after the last batch, and `load_state_dict` goes on there, with the same batches, after
    reading no more than the blocks at hand.

    Args:
        stream ([`HistoryStream`]):
            The histories.
        batch_size (`int`), rank, world_size (`int`, *optional*, defaults to 0 and 1):
            Windows of a batch over all processes, this process, and the number of processes, which divides them.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and decode for this one; without any, a thread of this one does.

    Raises:
        ValueError: for a batch size that the processes cannot share, and more processes and workers than blocks.
    """

    def __init__(
        self, stream: HistoryStream, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ) -> None:
        self.stream, self.num_workers = stream, num_workers
        self._size = share_of_batch(batch_size, world_size)
        turns = max(1, num_workers)
        self._consumers = [rank * turns + worker for worker in range(turns)]
        self._total = world_size * turns
        stream.groups(0, self._consumers[0], self._total)  # refuses too many of them
        self._places: list[Place] = [(0, 0, 0)] * turns
        self._turn = 0
        self.epochs = 0.0  # how often the reader of the last batch has gone through its histories

    def state_dict(self) -> dict[str, Any]:
        """The place of each worker (epoch, group, used windows of the group), and whose turn it is."""
        return {"places": [list(place) for place in self._places], "turn": self._turn, "consumers": self._total}

    def check_state_dict(self, state: Any, rank: int, done: int) -> None:
        """Refuse a state, of some process, that cannot be the one after so many batches, or of other readers."""
        turns = len(self._places)
        places: Any = state.get("places") if isinstance(state, dict) else None
        fits = isinstance(places, list) and len(places) == turns and state.get("turn") == done % turns
        fits = fits and state.get("consumers") == self._total
        for worker, place in enumerate(places if fits else ()):
            fits = fits and isinstance(place, list) and [type(number) for number in place] == [int] * 3
            fits = fits and min(place) >= 0 and place[0] <= done * self._size
            fits = fits and place[1] < len(self.stream.groups(place[0], rank * turns + worker, self._total))
        if not fits:
            raise ValueError(
                f"batches[{rank}] is no place in the stream after {done} batches, of {self._total} readers (processes "
                f"times workers), {turns} in each process: {state}"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a [`~StreamedBatches.state_dict`] of this stream and as many readers."""
        self._places = [(epoch, group, position) for epoch, group, position in state["places"]]
        self._turn = state["turn"]

    def __iter__(self) -> Generator[dict[str, torch.Tensor], None, None]:
        parts = list(zip(self._consumers, self._places))
        parts = [*parts[self._turn :], *parts[: self._turn]]
        consumers = [(self.stream, self._size, consumer, self._total, place) for consumer, place in parts]
        context = multiprocessing.get_context("spawn")  # threads that read over HTTP do not survive a fork
        stop = context.Event()
        loader: Any = _Consumers(consumers, stop)
        if self.num_workers:
            loader = DataLoader(
                loader,
                batch_size=None,
                num_workers=self.num_workers,
                multiprocessing_context=context,
                worker_init_fn=_leave_signals_to_parent,
            )
        items = iter(loader)
        try:
            for item in items:
                if isinstance(item, Exception):
                    raise item
                batch, place, self.epochs = item
                self._places[self._turn] = tuple(place)
                self._turn = (self._turn + 1) % len(self._places)
                yield batch
        except (GeneratorExit, OSError, ValueError):  # the last two from a worker
            # A worker aborts if it has to exit while it hands over a large batch: let all come to an end first, unless
            # the interpreter itself is at its end, and sys is perhaps gone.
            if self.num_workers and sys is not None and not sys.is_finalizing():
                stop.set()
                for _ in items:
                    pass
            raise
        finally:
            item = None  # else its traceback keeps the workers until the next garbage collection
