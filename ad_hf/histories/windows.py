"""Windows of learning histories: what a training batch is made of, and the order in which batches come."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from gymnasium import spaces

from ad_hf.histories.transforms import keep_episodes

COLUMNS = ("history_id", "observations", "actions", "rewards", "terminations", "truncations")


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


class HistoryWindows:
    r"""
    All windows of `context_length` consecutive steps of a learning-history dataset, in memory, and an order of them
    for each epoch.

    In epoch e every history is tiled by consecutive windows, from a phase that is drawn from (seed, e, history_id),
    and the windows of all histories are shuffled by (seed, e). So an epoch's batches are a pure function of (seed, e),
    whatever the number of processes. Histories shorter than a window give one window each, padded at its end.

    Args:
        dataset (`datasets.Dataset`):
            Rows of learning histories; the pieces of a history stand next to each other.
        action_space (`gymnasium.Space`):
            Action space of one environment.
        context_length (`int`):
            Steps of a window.
        keep_every_episode (`int`, *optional*, defaults to 1):
            Of each history keep only every k-th episode, and the last.
        max_episodes (`int`, *optional*):
            Before that, cut each history after so many episodes.
        seed (`int`, *optional*, defaults to 0):
            Seed of the phases and orders.

    Raises:
        ValueError: if the dataset is empty or lacks columns.
    """

    def __init__(
        self,
        dataset: Dataset,
        action_space: spaces.Space,
        context_length: int,
        keep_every_episode: int = 1,
        max_episodes: int | None = None,
        seed: int = 0,
    ) -> None:
        missing = [name for name in COLUMNS if name not in dataset.column_names]
        if missing or len(dataset) == 0:
            raise ValueError(f"expected a dataset of learning histories, got {len(dataset)} rows without {missing}")
        self.context_length, self.seed = context_length, seed
        columns = self._read(dataset)
        ends = columns.pop("terminations") | columns.pop("truncations")
        kept, self.offsets = keep_episodes(ends, columns.pop("offsets"), keep_every_episode, max_episodes)
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
            "observations": torch.from_numpy(columns["observations"][kept]),
            "previous_actions": torch.from_numpy(previous_actions),
            "previous_rewards": torch.from_numpy(previous_rewards),
            "episode_starts": torch.from_numpy(starts),
            "labels": torch.from_numpy(actions),
        }
        self._warn_of_short_histories()

    @staticmethod
    def _read(dataset: Dataset) -> dict[str, np.ndarray]:
        batches: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS[1:]}
        ids: list[str] = []
        lengths: list[np.ndarray] = []
        for table in dataset.select_columns(list(COLUMNS)).with_format("arrow").iter(batch_size=256):
            ids.extend(table["history_id"].to_pylist())
            lengths.append(np.asarray(pa.compute.list_value_length(table["rewards"])))
            for name, parts in batches.items():
                parts.append(_flat(table[name]))
        row_ids, row_lengths = np.array(ids), np.concatenate(lengths)
        # Rows that continue the history of the row before are pieces of it.
        firsts = np.flatnonzero(np.concatenate([[True], row_ids[1:] != row_ids[:-1]]))
        digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in row_ids[firsts]]
        return {
            **{name: np.concatenate(parts) for name, parts in batches.items()},
            "offsets": np.concatenate([[0], np.cumsum(np.add.reduceat(row_lengths, firsts))]).astype(np.int64),
            "hashes": np.frombuffer(b"".join(digests), dtype=np.uint64),
        }

    def _warn_of_short_histories(self) -> None:
        median = int(np.median(np.diff(self.offsets)))
        if self.context_length < median < 2 * self.context_length:
            warnings.warn(
                f"histories of {median} steps (median) are shorter than two windows of {self.context_length}: most "
                "windows start with a source that has not learnt yet, and once the context slides at rollout the "
                "model sees what it was not trained on; shorten context_length, keep more episodes, or collect longer",
                stacklevel=3,
            )

    @property
    def num_histories(self) -> int:
        """Number of histories."""
        return len(self._hashes)

    @property
    def num_steps(self) -> int:
        """Number of steps of all histories, after subsampling."""
        return int(self.offsets[-1])

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Windows of an epoch in their order: rows of (first step, number of steps), (num_windows, 2)."""
        lengths = np.diff(self.offsets)
        spare = np.clip(lengths - self.context_length + 1, 1, self.context_length)
        salt = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
        mixed = (self._hashes ^ np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
        phases = ((mixed ^ (mixed >> np.uint64(32))) % spare.astype(np.uint64)).astype(np.int64)
        counts = np.maximum(1, (lengths - phases) // self.context_length)
        histories = np.repeat(np.arange(len(lengths)), counts)
        tiles = np.arange(len(histories)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = self.offsets[histories] + phases[histories] + tiles * self.context_length
        windows = np.stack([first, np.minimum(self.context_length, lengths[histories])], axis=1)
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
        first, lengths = torch.from_numpy(windows[:, :1]), torch.from_numpy(windows[:, 1:])
        time = torch.arange(int(windows[:, 1].max()))
        index = first + torch.minimum(time, lengths - 1)  # padding repeats the last step
        batch = {name: tensor[index] for name, tensor in self._tensors.items()}
        if int(windows[:, 1].min()) < len(time):
            batch["attention_mask"] = (time < lengths).long()
        return batch


class WindowBatches:
    """
    An endless stream of batches, epoch after epoch, of which each process takes its slice.

    The windows of consecutive epochs form one sequence, of which update u takes elements
    [u * batch_size, (u + 1) * batch_size); process r takes its r-th equal part. `state_dict` says where the stream is,
    and `load_state_dict` goes on there, with the same batches.

    Args:
        windows ([`HistoryWindows`]):
            The windows.
        batch_size (`int`):
            Windows of a batch over all processes.
        rank, world_size (`int`, *optional*, defaults to 0 and 1):
            This process and the number of processes, which divides `batch_size`.
    """

    def __init__(self, windows: HistoryWindows, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size must be a positive multiple of {world_size} processes, got {batch_size}")
        self.windows, self.batch_size = windows, batch_size
        part = batch_size // world_size
        self._part = slice(rank * part, (rank + 1) * part)
        self.epoch, self.position = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: the epoch and the number of its windows that are used up."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a [`~WindowBatches.state_dict`] was taken."""
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = self.windows.epoch_order(self.epoch)
        while True:
            chosen = order[self.position : self.position + self.batch_size]
            self.position += self.batch_size
            while self.position >= len(order):  # a batch may reach over the end of an epoch, or of several
                self.position -= len(order)
                self.epoch += 1
                order = self.windows.epoch_order(self.epoch)
                missing = self.batch_size - len(chosen)
                chosen = np.concatenate([chosen, order[:missing]])
            yield self.windows.batch(chosen[self._part])
