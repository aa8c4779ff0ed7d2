"""A sample of a dataset's training histories, without their observations, and the curves of their returns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.selection import DataConfig, Selection
from ad_hf.histories.steps import (
    COLUMNS,
    Episodes,
    Histories,
    Steps,
    checked_rows,
    find_episodes,
    history_hashes,
    row_lengths,
    selected_steps,
)
from ad_hf.histories.stream import READERS, HistoryStream
from ad_hf.histories.windows import HistoryWindows
from ad_hf.progress import ProgressBar

READ_COLUMNS = [name for name in COLUMNS if name != "observations"]
MOST_STEPS = 1 << 23  # to read: all of a small dataset, and some seconds' work of a large one
MOST_BLOCKS = 256  # to read them from: on the Hub, some requests each
ROUNDING = 1e-6  # part of the size of returns, up to which they differ by the rounding of float32 rewards alone
CURVE_POINTS = 20  # of a history's curve; two of them are a tenth
WINDOW_EPOCHS = 4  # whose windows are measured: each has windows at other places
MOST_WINDOWS = 100_000


@dataclass(frozen=True, eq=False)
class Sample:
    """Steps of whole histories, one history after another; what follows from them is computed once."""

    actions: np.ndarray  # (num_steps, ...)
    rewards: np.ndarray  # (num_steps,)
    ends: np.ndarray  # (num_steps,) of episodes
    lengths: np.ndarray  # (num_histories,)
    tasks: np.ndarray  # (num_histories,) ids
    hashes: np.ndarray  # (num_histories,)

    @cached_property
    def offsets(self) -> np.ndarray:
        """The borders of histories (num_histories + 1,)."""
        return np.append(0, np.cumsum(self.lengths))

    @cached_property
    def episodes(self) -> Episodes:
        """The episodes that ended, and their returns without rounding noise."""
        episodes = find_episodes(self.rewards, self.ends, self.offsets)
        return episodes._replace(returns=_rounded(episodes.returns, self, len(episodes.returns)))

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of each history's episodes (num_histories,)."""
        return np.bincount(self.episodes.owners, minlength=len(self.lengths))

    def select(self, selection: Selection) -> Sample:
        """The steps that are trained on; the histories that have none are left out."""
        mask = selected_steps(selection, self.rewards, self.ends, self.offsets)
        lengths = np.add.reduceat(mask, self.offsets[:-1], dtype=np.int64)
        kept = lengths > 0
        steps = (values[mask] for values in (self.actions, self.rewards, self.ends))
        return Sample(*steps, *(values[kept] for values in (lengths, self.tasks, self.hashes)))


def read_sample(dataset: HistoryDataset) -> tuple[Sample, bool]:
    """Training histories from regular distances in the files, and whether they are all there are."""
    stream = HistoryStream(dataset, "train", DataConfig(), context_length=1)
    blocks = stream.blocks(consumers=1)
    share = min(1.0, MOST_STEPS / stream.num_steps, MOST_BLOCKS / len(blocks))
    picks = np.linspace(0, len(blocks), max(1, int(share * len(blocks))), endpoint=False).astype(int).tolist()

    def read(pick: int) -> Sample:
        (rows,) = checked_rows([stream.read_rows(blocks[pick], READ_COLUMNS)], *dataset.metadata.spaces)
        firsts, steps = np.flatnonzero(rows.begins), Steps.of_table(rows.table)
        lengths = np.add.reduceat(row_lengths(rows.table), firsts)
        hashes = history_hashes(rows.table["history_id"].take(firsts))
        return Sample(
            steps.actions, steps.rewards, steps.ends, lengths, np.asarray(rows.table["task_id"])[firsts], hashes
        )

    parts = []
    with ProgressBar("read histories", len(picks), "blocks") as bar, ThreadPoolExecutor(READERS) as executor:
        for part in executor.map(read, picks):
            parts.append(part)
            bar.update()
    names = [each.name for each in fields(Sample)]
    joined = Sample(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return joined, len(picks) == len(blocks)


def values_of(sample: Sample, of_steps: bool) -> tuple[np.ndarray, np.ndarray]:
    """The returns of episodes, or with `of_steps` the rewards of steps, and each history's number of them."""
    if of_steps:
        return _rounded(sample.rewards, sample, len(sample.rewards)), sample.lengths
    return sample.episodes.returns, sample.counts


def _rounded(values: np.ndarray, sample: Sample, count: int) -> np.ndarray:
    """Values whose usual size is that of the sample's rewards, of which each of `count` has a part, without noise."""
    unit = ROUNDING * float(np.abs(sample.rewards).sum(dtype=np.float64)) / max(1, count)
    return np.round(values / unit) * unit + 0.0 if unit else values  # + 0.0: no -0


def curves_of(sample: Sample, of_steps: bool) -> np.ndarray:
    """
    The mean return of a history's episodes, or with `of_steps` the mean reward of its steps, by how much of the
    history has passed: (num_histories, 20), NaN where no episode has ended.
    """
    values, counts = values_of(sample, of_steps)
    totals, firsts = np.append(0.0, np.cumsum(values, dtype=np.float64)), np.cumsum(counts) - counts
    borders = np.arange(CURVE_POINTS + 1) * counts[:, None] // CURVE_POINTS
    # Of fewer values than points, one stands for several.
    starts, stops = borders[:, :-1], np.maximum(borders[:, 1:], borders[:, :-1] + 1)
    stops = np.minimum(stops, counts[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (totals[firsts[:, None] + stops] - totals[firsts[:, None] + starts]) / (stops - starts)
    return _rounded(means, sample, len(values))


class Windows(NamedTuple):
    """Windows that a training meets, as they are measured; each field is (num_windows,)."""

    places: np.ndarray  # of their middles: the part of their history, from 0 to 1, that has passed
    episodes: np.ndarray  # number that end in them
    rises: np.ndarray  # return of the last whole episode less the first; NaN for fewer than two


def windows_of(sample: Sample, dataset: HistoryDataset, context_length: int, of_steps: bool) -> Windows:
    """
    The windows of `context_length` steps of a sample. `of_steps`: the rise is that of the mean reward from the first
    tenth of a window's steps to the last.
    """
    steps = np.zeros(0, [("actions", sample.actions.dtype)])
    windows = HistoryWindows(Histories(steps, sample.lengths, sample.hashes), *dataset.metadata.spaces, context_length)
    tiles = np.concatenate([windows.epoch_windows(epoch) for epoch in range(WINDOW_EPOCHS)])
    starts, lengths = tiles[:: -(-len(tiles) // MOST_WINDOWS)].T
    owners = np.searchsorted(sample.offsets, starts, side="right") - 1
    middles = starts + lengths // 2
    places = (middles - sample.offsets[owners]) / sample.lengths[owners]
    episodes, numbers = sample.episodes, sample.counts
    firsts, after = (
        np.searchsorted(episodes.starts, starts),
        np.searchsorted(episodes.stops, starts + lengths, "right"),
    )
    counts = after - np.searchsorted(episodes.stops, starts, side="right")
    if of_steps:
        totals, tenths = np.append(0.0, np.cumsum(sample.rewards, dtype=np.float64)), np.maximum(1, lengths // 10)
        stops = starts + lengths
        rises = (totals[stops] - totals[stops - tenths] - totals[starts + tenths] + totals[starts]) / tenths
        return Windows(places, counts, _rounded(rises, sample, len(sample.rewards)))
    before = np.searchsorted(episodes.stops, middles, side="right") - (np.cumsum(numbers) - numbers)[owners]
    places = before / np.maximum(1, numbers[owners])  # in episodes, as in curves: they may grow longer
    rises, several = np.full(len(starts), np.nan), after - firsts >= 2
    rises[several] = episodes.returns[after[several] - 1] - episodes.returns[firsts[several]]
    return Windows(places, counts, rises)
