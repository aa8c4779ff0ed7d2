"""Windows of learning histories, of which training batches consist, and their order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from ad_hf.histories.frames import FramePieces
from ad_hf.histories.steps import Histories

# Least length of a history in windows, for them to begin anywhere in it: Dark Room's model of 1.4 windows ends higher
# than those of 1.7 and 2.5.
FEWEST_WINDOWS = 1.25
BATCHES_AHEAD = 2  # that a thread makes while the model trains on one


def none_action(space: spaces.Space) -> np.ndarray:
    """The stand-in for the action before the first: n (Discrete), nvec (MultiDiscrete), zeros (Box)."""
    if isinstance(space, spaces.Discrete):
        return np.array(int(space.n))
    return space.nvec.copy() if isinstance(space, spaces.MultiDiscrete) else np.zeros(space.shape or (), np.float32)


class Tiling(NamedTuple):
    """Windows of an epoch, which tile each history from a phase on."""

    starts: np.ndarray  # (num_histories,) first step of each history's first window
    lengths: np.ndarray  # (num_histories,) steps of each window of a history
    borders: np.ndarray  # (num_histories + 1,) number of each history's first window, and of all windows

    @property
    def num_windows(self) -> int:
        """Number of windows of the epoch."""
        return int(self.borders[-1])

    def windows(self, numbers: np.ndarray) -> np.ndarray:
        """Some windows (number,) as rows of (first step, number of steps), (number, 2)."""
        histories = np.searchsorted(self.borders, numbers, side="right") - 1
        lengths = self.lengths[histories]
        tiles = numbers.astype(np.int64) - self.borders[histories]
        return np.stack([self.starts[histories] + tiles * lengths, lengths], axis=1)


class HistoryWindows:
    r"""
    All windows of `context_length` consecutive steps of histories, and an order of them for each epoch.

    In epoch e consecutive windows tile every history, from a phase that depends on (seed, e, history_id), and (seed,
    e) shuffles the windows of all histories. So an epoch's batches are a pure function of (seed, e), whatever the
    number of processes. Histories shorter than a window give one window each, padded at its end.

    Args:
        histories ([`~ad_hf.histories.steps.Histories`]), observation_space, action_space (`gymnasium.Space`):
            The histories, as of [`~ad_hf.histories.dataset.HistoryDataset.histories`], and the environment's spaces.
        context_length (`int`), seed (`int`, *optional*, defaults to 0):
            Steps of a window, and the seed of the phases and orders.
    """

    def __init__(
        self,
        histories: Histories,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        context_length: int,
        seed: int = 0,
    ) -> None:
        self.context_length, self.seed = context_length, seed
        self._steps, self._lengths, self._hashes, frames = histories
        self.offsets = np.append(0, np.cumsum(self._lengths))
        self.num_histories, self.num_steps = len(self._lengths), int(self.offsets[-1])
        self._frames = None
        if frames is not None:
            shape, counts = observation_space.shape or (), np.asarray(frames["num_frames"])
            self._frames = FramePieces(frames["observations"], counts, shape, frames["name"])
        self._none = none_action(action_space)
        actions = self._steps.dtype["actions"].base
        self._previous_dtype = np.result_type(actions, np.min_scalar_type(self._none.max(initial=0)))

    def warn_of_short_histories(self) -> None:
        """Warn if most windows show the start of a history."""
        median = int(np.median(self._lengths))
        if self.context_length < median < FEWEST_WINDOWS * self.context_length:
            warnings.warn(
                f"histories of {median} steps (median) are shorter than {FEWEST_WINDOWS} windows of "
                f"{self.context_length}: most windows start with a source that has not learnt yet, and once the "
                "context slides at rollout the model sees what it was not trained on; shorten context_length, keep "
                "more episodes, or collect longer",
                stacklevel=2,
            )

    def tiling(self, epoch: int) -> Tiling:
        """The places of an epoch's windows in the histories."""
        lengths = np.minimum(self.context_length, self._lengths)
        spare = np.clip(self._lengths - self.context_length + 1, 1, self.context_length)
        (key,) = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        mix = (self._hashes ^ key) * np.uint64(0x9E3779B97F4A7C15)
        phases = ((mix ^ (mix >> np.uint64(32))) % spare.astype(np.uint64)).astype(np.int64)
        counts = (self._lengths - phases) // lengths
        return Tiling(self.offsets[:-1] + phases, lengths, np.append(0, np.cumsum(counts)))

    def epoch_windows(self, epoch: int) -> np.ndarray:
        """Windows of an epoch, history by history: rows of (first step, number of steps), (num_windows, 2)."""
        tiling = self.tiling(epoch)
        return tiling.windows(np.arange(tiling.num_windows))

    def epoch_numbers(self, epoch: int) -> np.ndarray:
        """
        Numbers of the windows in [`~HistoryWindows.tiling`], (num_windows,), in the order of an epoch.

        An epoch takes 4 bytes a window in memory: 20 MB for 1e9 steps in windows of 200.
        """
        count = self.tiling(epoch).num_windows
        numbers = np.arange(count, dtype=np.uint32 if count <= 2**32 else np.uint64)
        np.random.default_rng([self.seed, epoch]).shuffle(numbers)
        return numbers

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Windows of an epoch in their order: rows of (first step, number of steps), (num_windows, 2)."""
        return self.tiling(epoch).windows(self.epoch_numbers(epoch))

    def _walks(self, whole: bool) -> Iterator[np.ndarray]:
        """First steps and ends (2,) of the parts of histories that rows go through, epoch after epoch."""
        for epoch in count():
            generator = np.random.default_rng([self.seed, epoch])
            firsts, ends = self.offsets[:-1], self.offsets[1:]
            cuts = firsts + generator.integers(np.maximum(self._lengths - self.context_length, 0) + 1)
            parts = np.stack([firsts, ends], axis=1)
            if not whole:
                parts = np.concatenate([np.stack([firsts, cuts], axis=1), np.stack([cuts, ends], axis=1)])
            yield from generator.permutation(parts[parts[:, 0] < parts[:, 1]])

    def walk(self, rows: int, whole: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """
        Windows of so many rows, endlessly, in which each row goes through a part of a history, a window after the
        other, and then through the next part that no row has taken: (rows, 2), and which rows begin a part (rows,).

        Each epoch has all parts in an order of its own, by (seed, epoch). These are histories, if `whole`; else an
        epoch cuts each history in two, at a random step that leaves a window after it. The last window of a part may
        be shorter.
        """
        walks = self._walks(whole)
        steps, ends = np.array(list(islice(walks, rows))).T
        begins = np.ones(rows, dtype=bool)
        while True:
            yield np.stack([steps, np.minimum(ends - steps, self.context_length)], axis=1), begins
            steps = steps + self.context_length
            begins = steps >= ends
            if begins.any():
                steps[begins], ends[begins] = np.array(list(islice(walks, int(begins.sum())))).T

    def batch(self, windows: np.ndarray) -> dict[str, torch.Tensor]:
        """
        The model's arguments (batch, time, ...) for some windows (batch, 2) of [`~HistoryWindows.epoch_order`], with
        `attention_mask` where a window is padded.
        """
        first, lengths = windows[:, :1], windows[:, 1:]
        time = int(lengths.max())
        index = first + np.minimum(np.arange(time), lengths - 1)  # padding repeats the last step
        steps, previous = self._steps.take(index), self._steps.take(np.maximum(index - 1, 0))
        previous_actions = previous["actions"].astype(self._previous_dtype)
        is_first = (index == first) & (self.offsets[np.searchsorted(self.offsets, first)] == first)  # of a history
        for values, none in ((previous_actions, self._none), (previous["rewards"], 0.0), (previous["ends"], True)):
            values[is_first] = none
        observations = steps["observations"].copy()  # torch takes no fields of records
        if self._frames is not None:
            observations = self._frames.take(observations.ravel()).reshape(*index.shape, *self._frames.shape)
        arrays = {
            "observations": observations,
            "previous_actions": previous_actions,
            "previous_rewards": previous["rewards"].copy(),
            "episode_starts": previous["ends"].copy(),
            "labels": steps["labels" if "labels" in steps.dtype.names else "actions"].copy(),
        }
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if int(lengths.min()) < time:
            batch["attention_mask"] = (torch.arange(time) < torch.from_numpy(lengths)).long()
        return batch


def share_of_batch(batch_size: int, world_size: int) -> int:
    """Windows of a batch that each of so many processes takes; a `ValueError` if they cannot share it equally."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size must be a positive multiple of {world_size} processes, got {batch_size}")
    return batch_size // world_size


class WindowBatches:
    """
    Endless batches, epoch after epoch; each process takes its slice of each.

    The windows of consecutive epochs form one sequence, of which update u takes elements
    [u * batch_size, (u + 1) * batch_size); process r takes its r-th equal part. `state_dict` is the place after
    the last batch, and `load_state_dict` goes on there, with the same batches.

    A thread makes the next batches, and decodes their frames, while one is in use.

    Args:
        windows ([`HistoryWindows`]):
            The windows.
        batch_size (`int`), rank, world_size (`int`, *optional*, defaults to 0 and 1):
            Windows of a batch over all processes, this process, and the number of processes, which divides them.
    """

    def __init__(self, windows: HistoryWindows, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.windows, self.batch_size = windows, batch_size
        part = share_of_batch(batch_size, world_size)
        self._part = slice(rank * part, (rank + 1) * part)
        self.epoch, self.position = 0, 0

    @property
    def epochs(self) -> float:
        """How often the histories have been gone through after the last batch."""
        return self.epoch + self.position / self._count(self.epoch)

    def _count(self, epoch: int) -> int:
        """Number of windows of an epoch."""
        return self.windows.tiling(epoch).num_windows

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch: the epoch, and how many of its windows are used up."""
        return {"epoch": self.epoch, "position": self.position}

    def check_state_dict(self, state: Any, rank: int, done: int) -> None:
        """Refuse a state, of some process, that is not the one after so many batches."""
        epoch, position = 0, done * self.batch_size
        while position >= (windows := self._count(epoch)):
            epoch, position = epoch + 1, position - windows
        expected = {"epoch": epoch, "position": position}
        if state != expected:
            raise ValueError(f"batches[{rank}] must be {expected} after {done} batches, got {state}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a [`~WindowBatches.state_dict`]."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _choices(self) -> Iterator[tuple[Any, tuple[int, int]]]:
        """Windows of this process's batches from here on, each with the epoch and position after it."""
        epoch, position = self.epoch, self.position
        parts: list[np.ndarray] = []
        missing = self.batch_size
        while True:  # a batch may reach over the end of an epoch, or of several
            tiling, order = self.windows.tiling(epoch), self.windows.epoch_numbers(epoch)
            while position < len(order):
                parts.append(tiling.windows(order[position : position + missing]))
                missing, position = missing - len(parts[-1]), position + len(parts[-1])
                if not missing:
                    place = (epoch, position) if position < len(order) else (epoch + 1, 0)
                    yield np.concatenate(parts)[self._part], place
                    parts, missing = [], self.batch_size
            epoch, position = epoch + 1, 0

    def _batch(self, choice: Any) -> dict[str, torch.Tensor]:
        return self.windows.batch(choice)

    def __iter__(self) -> Generator[dict[str, torch.Tensor], None, None]:
        choices = self._choices()
        reader = ThreadPoolExecutor(1)
        try:
            waiting: deque[tuple[Future, tuple[int, int]]] = deque()
            while True:
                while len(waiting) <= BATCHES_AHEAD:
                    windows, place = next(choices)
                    waiting.append((reader.submit(self._batch, windows), place))
                future, place = waiting.popleft()
                batch = future.result()
                self.epoch, self.position = place
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)


class WalkedBatches(WindowBatches):
    """
    Endless batches of [`~HistoryWindows.walk`], for training by truncated backpropagation through time: each row's
    window follows on its last one, or `begins` (batch,) says that it does not.

    As histories are cut at random steps, some parts begin with the history, as a rollout does, and others with a
    source that has learnt already, as windows in random order do. The rows are never in step, and the borders of
    windows differ from epoch to epoch. The order is a pure function of the seed. An
    epoch counts as many windows as cut histories have on average.

    Args:
        windows, batch_size, rank, world_size:
            As of [`WindowBatches`].
        passes (`int`, *optional*, defaults to 1):
            Batches of an update, each with rows of its own.
    """

    def __init__(
        self, windows: HistoryWindows, batch_size: int, rank: int = 0, world_size: int = 1, passes: int = 1
    ) -> None:
        super().__init__(windows, batch_size, rank, world_size)
        self._passes = passes
        self._windows_of_epoch = int((np.diff(windows.offsets) // windows.context_length + 1).sum())

    def _count(self, epoch: int) -> int:
        return self._windows_of_epoch

    def _choices(self) -> Iterator[tuple[Any, tuple[int, int]]]:
        done = (self.epoch * self._windows_of_epoch + self.position) // self.batch_size
        walk = self.windows.walk(self.batch_size * self._passes)
        shape = self._passes, self.batch_size
        parts = (pair for tiles, begins in walk for pair in zip(tiles.reshape(*shape, 2), begins.reshape(shape)))
        for number, (tiles, begins) in enumerate(islice(parts, done, None), done + 1):
            place = divmod(number * self.batch_size, self._windows_of_epoch)
            yield (tiles[self._part], begins[self._part]), place

    def _batch(self, choice: Any) -> dict[str, torch.Tensor]:
        windows, begins = choice
        return {**self.windows.batch(windows), "begins": torch.from_numpy(begins)}
