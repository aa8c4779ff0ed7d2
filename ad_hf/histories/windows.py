"""Windows of learning histories: what a training batch is made of, and the order in which batches come."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from gymnasium import spaces

from ad_hf.histories.frames import FramePieces, has_frames
from ad_hf.histories.transforms import keep_episodes
from ad_hf.histories.validation import COLUMNS, check_columns, check_histories

BATCHES_AHEAD = 2  # that a thread makes while one is being trained on


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists as one array (num_steps, ...), straight from Arrow's buffers."""
    lists = column.combine_chunks()
    values, shape = lists.flatten(), []
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, *shape)


def none_action(space: spaces.Space) -> np.ndarray:
    """What stands for the action before the first: n (Discrete), nvec (MultiDiscrete), zeros (Box)."""
    if isinstance(space, spaces.Discrete):
        return np.array(int(space.n))
    return space.nvec.copy() if isinstance(space, spaces.MultiDiscrete) else np.zeros(space.shape or (), np.float32)


class HistoryRows(NamedTuple):
    """
    Some rows of learning histories.

    Attributes:
        name (`str`):
            What to call the table that they are from in an error.
        first_row (`int`):
            Number of their first one in it.
        table (`pyarrow.Table`):
            The rows.
    """

    name: str
    first_row: int
    table: pa.Table


def _rows_of_dataset(
    dataset: Dataset, observation_space: spaces.Space, action_space: spaces.Space, name: str
) -> Iterator[HistoryRows]:
    check_columns(dataset.features.arrow_schema, observation_space, action_space, name)
    first_row = 0
    for table in dataset.select_columns(list(COLUMNS)).with_format("arrow").iter(batch_size=256):
        yield HistoryRows(name, first_row, table)
        first_row += len(table)


class HistoryWindows:
    r"""
    All windows of `context_length` consecutive steps of a learning-history dataset, in memory, and an order of them
    for each epoch.

    In epoch e every history is tiled by consecutive windows, from a phase that is drawn from (seed, e, history_id),
    and the windows of all histories are shuffled by (seed, e). So an epoch's batches are a pure function of (seed, e),
    whatever the number of processes. Histories shorter than a window give one window each, padded at its end.

    Args:
        histories (`datasets.Dataset` or iterable of [`HistoryRows`]):
            Rows of learning histories; the pieces of a history stand next to each other.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.
        context_length (`int`):
            Steps of a window.
        keep_every_episode (`int`, *optional*, defaults to 1):
            Of each history keep only every k-th episode, and the last.
        max_episodes (`int`, *optional*):
            Before that, cut each history after so many episodes.
        last_episodes (`int`, *optional*):
            Then drop all but so many of its last ones.
        seed (`int`, *optional*, defaults to 0):
            Seed of the phases and orders.
        name (`str`, *optional*):
            What to call a `datasets.Dataset` in an error.

    Raises:
        ValueError: if there are no rows, or some that are no learning histories, with the row and the column.
    """

    def __init__(
        self,
        histories: Dataset | Iterable[HistoryRows],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        context_length: int,
        keep_every_episode: int = 1,
        max_episodes: int | None = None,
        last_episodes: int | None = None,
        seed: int = 0,
        name: str = "the dataset",
    ) -> None:
        self.context_length, self.seed = context_length, seed
        if isinstance(histories, Dataset):
            histories = _rows_of_dataset(histories, observation_space, action_space, name)
        columns = self._read(histories, observation_space, action_space)
        ends = columns.pop("terminations") | columns.pop("truncations")
        subsampling = keep_every_episode, max_episodes, last_episodes
        kept, self.offsets = keep_episodes(ends, columns.pop("offsets"), *subsampling)
        self._hashes = columns.pop("hashes")
        starts = np.ones(int(self.offsets[-1]), dtype=bool)
        starts[1:] = ends[kept][:-1]
        first_steps = self.offsets[:-1]
        starts[first_steps] = True
        actions, rewards = columns["actions"][kept], columns["rewards"][kept].astype(np.float32)
        none = none_action(action_space)
        previous_dtype = np.result_type(actions.dtype, np.min_scalar_type(none.max(initial=0)))
        previous_actions = np.roll(actions, 1, axis=0).astype(previous_dtype)
        previous_actions[first_steps] = none
        previous_rewards = np.roll(rewards, 1)
        previous_rewards[first_steps] = 0.0
        self._tensors = {
            "previous_actions": torch.from_numpy(previous_actions),
            "previous_rewards": torch.from_numpy(previous_rewards),
            "episode_starts": torch.from_numpy(starts),
            "labels": torch.from_numpy(actions),
        }
        self._frames: FramePieces | None = None
        if has_frames(observation_space):
            self._frames, self._frame_steps = columns["observations"], np.flatnonzero(kept)
        else:
            self._tensors["observations"] = torch.from_numpy(columns["observations"][kept])

    @staticmethod
    def _read(
        histories: Iterable[HistoryRows], observation_space: spaces.Space, action_space: spaces.Space
    ) -> dict[str, Any]:
        framed = has_frames(observation_space)
        flat: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS[2:]}
        ids: list[str] = []
        names: list[str] = []
        lengths, start_steps, chunks = [], [], []
        for name, first_row, table in histories:
            check_histories(table, observation_space, action_space, name, first_row)
            ids.extend(table["history_id"].to_pylist())
            names.extend(f"{name}: row {first_row + row}" for row in range(len(table)))
            start_steps.append(np.asarray(table["start_step"]))
            lengths.append(np.asarray(pa.compute.list_value_length(table["rewards"])))
            if framed:
                chunks.extend(table["observations"].chunks)
            for column, parts in flat.items():
                if not framed or column != "observations":
                    parts.append(_flat(table[column]))
        if not ids:
            raise ValueError("there are no learning histories to make windows of: the dataset has no rows")
        row_ids, row_lengths, row_starts = np.array(ids), np.concatenate(lengths), np.concatenate(start_steps)
        # Rows that continue the history of the row before are pieces of it.
        firsts = np.flatnonzero(np.concatenate([[True], row_ids[1:] != row_ids[:-1]]))
        offsets = np.concatenate([[0], np.cumsum(np.add.reduceat(row_lengths, firsts))]).astype(np.int64)
        expected = np.cumsum(row_lengths) - row_lengths
        expected -= np.repeat(offsets[:-1], np.diff(np.append(firsts, len(ids))))
        if (row_starts != expected).any():
            row = int(np.argmax(row_starts != expected))
            raise ValueError(
                f"{names[row]} (history {ids[row]!r}), column start_step: {row_starts[row]}, expected "
                f"{expected[row]}; the pieces of a history must stand next to each other, in order"
            )
        digests = [hashlib.blake2b(str(history).encode(), digest_size=8).digest() for history in row_ids[firsts]]
        columns: dict[str, Any] = {
            column: parts[0] if len(parts) == 1 else np.concatenate(parts) for column, parts in flat.items() if parts
        }
        if framed:
            shape = observation_space.shape or ()
            columns["observations"] = FramePieces(pa.chunked_array(chunks), row_lengths, shape, names)
        return {**columns, "offsets": offsets, "hashes": np.frombuffer(b"".join(digests), dtype=np.uint64)}

    def warn_of_short_histories(self) -> None:
        """Warn if most windows show the start of a history."""
        median = int(np.median(np.diff(self.offsets)))
        if self.context_length < median < 2 * self.context_length:
            warnings.warn(
                f"histories of {median} steps (median) are shorter than two windows of {self.context_length}: most "
                "windows start with a source that has not learnt yet, and once the context slides at rollout the "
                "model sees what it was not trained on; shorten context_length, keep more episodes, or collect longer",
                stacklevel=2,
            )

    @property
    def num_histories(self) -> int:
        """Number of histories."""
        return len(self._hashes)

    @property
    def num_steps(self) -> int:
        """Number of steps of all histories, after subsampling."""
        return int(self.offsets[-1])

    def epoch_windows(self, epoch: int) -> np.ndarray:
        """Windows of an epoch, history by history: rows of (first step, number of steps), (num_windows, 2)."""
        lengths = np.diff(self.offsets)
        spare = np.clip(lengths - self.context_length + 1, 1, self.context_length)
        drawn = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
        mixed = (self._hashes ^ np.uint64(drawn)) * np.uint64(0x9E3779B97F4A7C15)
        phases = ((mixed ^ (mixed >> np.uint64(32))) % spare.astype(np.uint64)).astype(np.int64)
        counts = np.maximum(1, (lengths - phases) // self.context_length)
        histories = np.repeat(np.arange(len(lengths)), counts)
        tiles = np.arange(len(histories)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = self.offsets[histories] + phases[histories] + tiles * self.context_length
        return np.stack([first, np.minimum(self.context_length, lengths[histories])], axis=1)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Windows of an epoch in their order: rows of (first step, number of steps), (num_windows, 2)."""
        windows = self.epoch_windows(epoch)
        return windows[np.random.default_rng([self.seed, epoch]).permutation(len(windows))]

    def batch(self, windows: np.ndarray) -> dict[str, torch.Tensor]:
        """
        The steps of some windows.

        Args:
            windows (`np.ndarray` of shape `(batch, 2)`):
                Rows of [`~HistoryWindows.epoch_order`].

        Returns:
            `dict[str, torch.Tensor]`: the model's arguments, (batch, time, ...); with `attention_mask` where a window
            is padded.
        """
        return make_batch([self], np.zeros(len(windows), dtype=np.int64), windows)

    def empty_batch(self, size: int, time: int) -> dict[str, torch.Tensor]:
        """A batch of so many windows of so many steps, to be filled."""
        batch = {name: tensor.new_empty((size, time, *tensor.shape[1:])) for name, tensor in self._tensors.items()}
        if self._frames is not None:
            batch["observations"] = torch.empty((size, time, *self._frames.shape), dtype=torch.uint8)
        return batch

    def fill(self, batch: dict[str, torch.Tensor], rows: np.ndarray, windows: np.ndarray) -> None:
        """Write windows (number, 2) into some rows (number,) of a batch."""
        first, lengths = torch.from_numpy(windows[:, :1]), torch.from_numpy(windows[:, 1:])
        time = batch["labels"].shape[1]
        index = first + torch.minimum(torch.arange(time), lengths - 1)  # padding repeats the last step
        for name, tensor in self._tensors.items():
            batch[name].numpy()[rows] = tensor[index].numpy()  # torch cannot assign all unsigned integers
        if self._frames is not None:
            places = (rows[:, None] * time + np.arange(time)).ravel()
            frames = batch["observations"].flatten(0, 1).numpy()
            self._frames.take(self._frame_steps[index.flatten().numpy()], frames, places)


def make_batch(parts: Sequence[HistoryWindows], owners: np.ndarray, windows: np.ndarray) -> dict[str, torch.Tensor]:
    """
    The steps of windows of several sets of histories.

    Args:
        parts (`Sequence[HistoryWindows]`):
            The sets, of the same spaces.
        owners (`np.ndarray` of shape `(batch,)`):
            The set of each window.
        windows (`np.ndarray` of shape `(batch, 2)`):
            Rows of the sets' [`~HistoryWindows.epoch_order`].

    Returns:
        `dict[str, torch.Tensor]`: as of [`HistoryWindows.batch`].
    """
    time = int(windows[:, 1].max())
    batch = parts[0].empty_batch(len(windows), time)
    for owner in np.unique(owners):
        rows = np.flatnonzero(owners == owner)
        parts[owner].fill(batch, rows, windows[rows])
    if int(windows[:, 1].min()) < time:
        batch["attention_mask"] = (torch.arange(time) < torch.from_numpy(windows[:, 1:])).long()
    return batch


def share_of_batch(batch_size: int, world_size: int) -> int:
    """Windows of a batch that each of so many processes takes; a `ValueError` if they cannot share it equally."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size must be a positive multiple of {world_size} processes, got {batch_size}")
    return batch_size // world_size


class WindowBatches:
    """
    An endless stream of batches, epoch after epoch, of which each process takes its slice.

    The windows of consecutive epochs form one sequence, of which update u takes elements
    [u * batch_size, (u + 1) * batch_size); process r takes its r-th equal part. `state_dict` says where the stream is,
    and `load_state_dict` goes on there, with the same batches.

    A thread makes the next batches, and decodes their frames, while one is in use.

    Args:
        windows ([`HistoryWindows`]):
            The windows.
        batch_size (`int`):
            Windows of a batch over all processes.
        rank, world_size (`int`, *optional*, defaults to 0 and 1):
            This process and the number of processes, which divides `batch_size`.
    """

    def __init__(self, windows: HistoryWindows, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.windows, self.batch_size = windows, batch_size
        part = share_of_batch(batch_size, world_size)
        self._part = slice(rank * part, (rank + 1) * part)
        self.epoch, self.position = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: the epoch and the number of its windows that are used up."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a [`~WindowBatches.state_dict`] was taken."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _choices(self) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Windows of this process's batches from here on, each with the epoch and position after it."""
        epoch, position = self.epoch, self.position
        order = self.windows.epoch_order(epoch)
        while True:
            chosen = order[position : position + self.batch_size]
            position += self.batch_size
            while position >= len(order):  # a batch may reach over the end of an epoch, or of several
                position -= len(order)
                epoch += 1
                order = self.windows.epoch_order(epoch)
                missing = self.batch_size - len(chosen)
                chosen = np.concatenate([chosen, order[:missing]])
            yield chosen[self._part], (epoch, position)

    def __iter__(self) -> Generator[dict[str, torch.Tensor], None, None]:
        choices = self._choices()
        reader = ThreadPoolExecutor(1)
        try:
            waiting: deque[tuple[Future, tuple[int, int]]] = deque()
            while True:
                while len(waiting) <= BATCHES_AHEAD:
                    chosen, place = next(choices)
                    waiting.append((reader.submit(self.windows.batch, chosen), place))
                made, place = waiting.popleft()
                batch = made.result()
                self.epoch, self.position = place
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)
