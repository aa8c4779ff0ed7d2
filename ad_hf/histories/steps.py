"""The steps of learning histories as one array, history after history: what windows are cut from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from gymnasium import spaces

from ad_hf.envs.spaces import storage_dtype
from ad_hf.histories.checks import COLUMNS, HistoryRows, check_columns, checked_rows
from ad_hf.histories.frames import FramePieces, PieceNames, has_frames
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.transforms import Selection, improvements, keep_episodes


class FlatHistories(NamedTuple):
    """
    The steps of histories that a model is trained on.

    Attributes:
        steps (`np.ndarray` of shape `(num_steps,)`):
            Records as of [`step_dtype`], in memory or in a file.
        offsets (`np.ndarray` of shape `(num_histories + 1,)`):
            First step of each history, and the number of all steps.
        hashes (`np.ndarray` of shape `(num_histories,)`):
            Of each history's id.
        frames ([`~ad_hf.histories.frames.FramePieces`], *optional*):
            Observations that are images.
    """

    steps: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    frames: FramePieces | None


class HistoryPart(NamedTuple):
    """
    Some whole histories.

    Attributes:
        steps (`np.ndarray` of shape `(num_steps,)`), hashes (`np.ndarray` of shape `(num_histories,)`):
            As of [`FlatHistories`].
        lengths (`np.ndarray` of shape `(num_histories,)`):
            Steps of each history.
        frames (`pyarrow.ChunkedArray`):
            Of images, the compressed pieces, one per row, those included of which no step is kept.
        frame_counts (`np.ndarray` of shape `(num_rows,)`):
            Frames of each of them.
    """

    steps: np.ndarray
    hashes: np.ndarray
    lengths: np.ndarray
    frames: pa.ChunkedArray
    frame_counts: np.ndarray


def step_dtype(
    observation_space: spaces.Space, action_space: spaces.Space, labels: StepLabels | None = None
) -> np.dtype:
    """
    A step as a record: `observations` (of images: `frame`, the number of its frame), `actions`, `rewards` and `ends`,
    whether it ended its episode; with labels, which are not the actions, `labels`.

    Fields of a step stand together, so that a window is in one place of a file, and the last action and reward, and
    whether an episode begins, are not stored, for they are those of the step before.
    """
    observations: list[Any] = [("observations", storage_dtype(observation_space), observation_space.shape or ())]
    return np.dtype(
        [
            *([("frame", np.int64)] if has_frames(observation_space) else observations),
            ("actions", storage_dtype(action_space), action_space.shape or ()),
            ("rewards", np.float32),
            ("ends", np.bool_),
            *([] if labels is None else [("labels", storage_dtype(action_space), action_space.shape or ())]),
        ]
    )


def rows_of_dataset(
    dataset: Dataset, observation_space: spaces.Space, action_space: spaces.Space, name: str
) -> Iterator[HistoryRows]:
    """The rows of a dataset, some at a time."""
    check_columns(dataset.features.arrow_schema, observation_space, action_space, name)
    first_row = 0
    for table in dataset.select_columns(list(COLUMNS)).with_format("arrow").iter(batch_size=256):
        yield HistoryRows(name, first_row, table)
        first_row += len(table)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists as one array (num_steps, ...), straight from Arrow's buffers."""
    lists = column.combine_chunks()
    values, shape = lists.flatten(), []
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, *shape)


def _row_lengths(table: pa.Table) -> np.ndarray:
    return np.asarray(pa.compute.list_value_length(table["rewards"])).astype(np.int64)


def _whole_histories(
    histories: Iterable[HistoryRows], observation_space: spaces.Space, action_space: spaces.Space, names: PieceNames
) -> Iterator[pa.Table]:
    """Tables of whole histories, as soon as these are complete; what is no history is refused."""
    waiting: list[pa.Table] = []
    for (name, first_row, table, _), begins in checked_rows(histories, observation_space, action_space):
        names.add(name, first_row, len(table))
        if begins.any():
            last = int(np.flatnonzero(begins)[-1])
            if complete := [part for part in (*waiting, table.slice(0, last)) if len(part)]:
                yield pa.concat_tables(complete)
            waiting, table = [], table.slice(last)
        waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)


def convert_histories(
    histories: Iterable[HistoryRows],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    selection: Selection,
    names: PieceNames,
    labels: StepLabels | None = None,
) -> Iterator[HistoryPart]:
    """
    Histories as arrays, some at a time: no more is held than some rows and the history that they are of.

    Args:
        histories (iterable of [`HistoryRows`]):
            Rows; the pieces of a history stand next to each other.
        observation_space, action_space (`gymnasium.Space`):
            Spaces of one environment.
        selection ([`~ad_hf.histories.transforms.Selection`]):
            Which of their steps.
        names ([`~ad_hf.histories.frames.PieceNames`]):
            Filled with what to call the rows in an error.
        labels ([`~ad_hf.histories.labels.StepLabels`], *optional*):
            Actions to learn other than those that were taken.

    Raises:
        ValueError: for rows that are no learning histories, with the row and the column, and if there are none.
    """
    dtype, framed = step_dtype(observation_space, action_space, labels), has_frames(observation_space)
    steps_before = None
    for table in _whole_histories(histories, observation_space, action_space, names):
        row_lengths, firsts = _row_lengths(table), np.flatnonzero(np.asarray(table["start_step"]) == 0)
        offsets = np.concatenate([[0], np.cumsum(np.add.reduceat(row_lengths, firsts))])
        ends = _flat(table["terminations"]) | _flat(table["truncations"])
        every, first, last, least = selection
        kept, offsets_kept = keep_episodes(ends, offsets, every, first, last)
        lengths = np.diff(offsets_kept)
        if least is not None:
            chosen = improvements(_flat(table["rewards"]), ends, offsets) >= least
            kept &= np.repeat(chosen, np.diff(offsets))
            firsts, lengths = firsts[chosen], lengths[chosen]
        steps = np.empty(int(lengths.sum()), dtype)
        steps["ends"] = ends[kept]
        for column in ("actions", "rewards") if framed else ("observations", "actions", "rewards"):
            steps[column] = _flat(table[column])[kept]
        if labels is not None:
            steps["labels"] = labels(np.asarray(table["task_id"]), row_lengths, _flat(table["observations"]))[kept]
        if framed:
            steps["frame"] = (steps_before or 0) + np.flatnonzero(kept)
        steps_before = (steps_before or 0) + len(ends)
        hashes = history_hashes(table["history_id"].take(firsts))
        yield HistoryPart(steps, hashes, lengths, table["observations"], row_lengths)
    if steps_before is None:
        raise ValueError("there are no learning histories to make windows of: the dataset has no rows")


def history_hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """Hashes (num_histories,) of the ids of histories, which are the same on all machines."""
    digests = [hashlib.blake2b(str(history).encode(), digest_size=8).digest() for history in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def offsets_of(lengths: list[np.ndarray]) -> np.ndarray:
    """First step of each history, and the number of all steps, of histories of so many steps."""
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def read_histories(
    histories: Iterable[HistoryRows],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    selection: Selection,
    labels: StepLabels | None = None,
) -> FlatHistories:
    """Histories in memory (frames: compressed, where the rows have them); arguments as of [`convert_histories`]."""
    names = PieceNames()
    parts = list(convert_histories(histories, observation_space, action_space, selection, names, labels))
    frames = None
    if has_frames(observation_space):
        pieces = pa.chunked_array([chunk for part in parts for chunk in part.frames.chunks])
        counts = np.concatenate([part.frame_counts for part in parts])
        frames = FramePieces(pieces, counts, observation_space.shape or (), names)
    return FlatHistories(
        parts[0].steps if len(parts) == 1 else np.concatenate([part.steps for part in parts]),
        offsets_of([part.lengths for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        frames,
    )
