"""Steps of learning histories: rows of Arrow, checked once, and the arrays that windows are cut from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from gymnasium import spaces

from ad_hf.envs.spaces import outside, storage_dtype
from ad_hf.histories.frames import has_frames
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.selection import Selection

STEPWISE = ("observations", "actions", "rewards", "terminations", "truncations")
COLUMNS = ("history_id", "task_id", "start_step", *STEPWISE)  # what training reads
FRAMES_SCHEMA = pa.schema({"observations": pa.binary(), "num_frames": pa.int64(), "name": pa.string()})
STEPS_FILE, HISTORIES_FILE, FRAMES_FILE = "steps.bin", "histories.npz", "frames.arrow"
REPEATED = "there was such a history before, and each may come once"


@dataclass
class Steps:
    """
    Consecutive steps of one stream; step t holds its observation, its action and the results of that action.

    Attributes:
        observations, actions (`np.ndarray` of shape `(num_steps, ...)`):
            In the dtypes of [`~ad_hf.envs.spaces.storage_dtype`].
        rewards, terminations, truncations (`np.ndarray` of shape `(num_steps,)`):
            Numbers, and truth values.
        final_observations (`np.ndarray` of shape `(num_episodes, ...)`, *optional*):
            The last observation of each episode, that of an unfinished last episode included.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    final_observations: Any = None

    @classmethod
    def of_table(cls, table: pa.Table) -> Steps:
        """The steps of all rows of a table; frames stay compressed there, and their numbers stand for them."""
        columns = [name for name in (*STEPWISE, "final_observations") if name in table.column_names]
        values = {name: column_values(table[name]) for name in columns if pa.types.is_list(table[name].type)}
        return cls(**{"observations": np.arange(len(values["rewards"])), **values})

    @property
    def ends(self) -> np.ndarray:
        """Whether each step (num_steps,) ended its episode."""
        return self.terminations | self.truncations


def column_values(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of lists as one array (num_elements, ...) of the elements of all rows, from Arrow's own buffers."""
    values: Any = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).flatten()
    shape = []
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, *shape)


def row_lengths(table: pa.Table) -> np.ndarray:
    """The number of steps of each row (num_rows,)."""
    return np.asarray(pc.list_value_length(table["rewards"])).astype(np.int64)


class HistoryRows(NamedTuple):
    """Some rows of learning histories."""

    name: str  # of their table, for errors
    first_row: int  # number of the first one in it
    table: pa.Table
    tasks: Collection[int] | None = None  # of their split; by default any

    @property
    def begins(self) -> np.ndarray:
        """Whether each row (num_rows,) begins a history."""
        return np.asarray(self.table["start_step"]) == 0

    def row_name(self, row: int) -> str:
        """The name of a row in errors."""
        return f"{self.name}: row {self.first_row + row}"

    def refuse(self, row: int, column: str, reason: str) -> None:
        """Raise a `ValueError` about one of the rows."""
        history = self.table["history_id"][row].as_py()
        raise ValueError(f"{self.row_name(row)} (history {history!r}), column {column}: {reason}")

    def expect(self, right: np.ndarray, column: str, reason: str, *values: np.ndarray) -> None:
        """Raise a `ValueError` about the first row whose `right` (num_rows,) is false, and its values."""
        if not right.all():
            row = int(np.argmin(right))
            self.refuse(row, column, reason.format(*(value[row] for value in values)))


def _check_steps(rows: HistoryRows, column: str, space: spaces.Space | None) -> None:
    """Refuse a column of lists with a step that has no value, or one that a model cannot take."""
    ends = np.cumsum(row_lengths(rows.table))
    values = rows.table[column].combine_chunks().flatten()
    while not values.null_count and not pa.types.is_primitive(values.type):  # flattening drops lists that are null
        values = values.flatten()
    if values.null_count:
        step = int(np.argmax(np.asarray(values.is_null()))) * int(ends[-1]) // len(values)
        element, expected = "no value", ""
    else:
        elements = column_values(rows.table[column])
        wrong = outside(elements, space, column == "actions")
        if not wrong.any():
            return
        step = int(np.argmax(wrong))
        element = elements[step].tolist()
        expected = f", expected {'a number that is finite as float32' if space is None else f'an element of {space}'}"
    row = int(np.searchsorted(ends, step, side="right"))
    rows.refuse(row, column, f"{element} at step {step - (ends[row - 1] if row else 0)}{expected}")


def checked_rows(
    histories: Iterable[HistoryRows], observation_space: spaces.Space, action_space: spaces.Space
) -> Iterator[HistoryRows]:
    """
    Rows with [`COLUMNS`], or some of them, that are learning histories of environments of these spaces, in order.

    Raises:
        ValueError: with the row's number, its history, and the column: for missing values, lengths that disagree,
            numbers that are not finite as float32, elements outside of their space (observations may be beyond the
            bounds of a Box), tasks of another split, pieces of a history that are not in order or of several tasks,
            and histories that come again.
    """
    spaces_of = {"observations": observation_space, "actions": action_space}
    history, task, steps = None, -1, 0  # of the row before, and the steps of its history so far
    earlier: set[str] = set()
    for rows in histories:
        table = rows.table
        if not len(table):
            continue
        columns = [column for column in COLUMNS if column in table.column_names]
        for column in columns:
            rows.expect(np.asarray(table[column].is_valid()), column, "no value")
        lengths = row_lengths(table)
        rows.expect(lengths > 0, "rewards", "no steps")
        # A wrong number of frames shows when they are decoded.
        stepwise = [column for column in columns if column in STEPWISE and pa.types.is_list(table[column].type)]
        for column in stepwise:
            counts = np.asarray(pc.list_value_length(table[column]))
            rows.expect(counts == lengths, column, "{} steps, where rewards has {}", counts, lengths)
        for column in stepwise:
            _check_steps(rows, column, spaces_of.get(column))
        tasks, starts = np.asarray(table["task_id"]), np.asarray(table["start_step"])
        if rows.tasks is not None:
            reason = "{}, which metadata.json does not have as a task of this split"
            rows.expect(np.isin(tasks, list(rows.tasks)), "task_id", reason, tasks)
        ids = table["history_id"].to_pylist()
        begins = np.array([this != before for before, this in pairwise([history, *ids])])
        number = np.cumsum(begins)  # of each row's history, from 1; 0 goes on with that of the rows before
        passed = np.cumsum(lengths) - lengths
        expected = passed - np.append(-steps, passed[begins])[number]
        reason = "{}, expected {}; the pieces of a history must stand next to each other, in order"
        rows.expect(starts == expected, "start_step", reason, starts, expected)
        first = np.append(task, tasks[begins])[number]
        rows.expect(tasks == first, "task_id", "{}, where the history began with {}", tasks, first)
        for row in np.flatnonzero(begins).tolist():
            if ids[row] in earlier:
                rows.refuse(row, "history_id", REPEATED)
            earlier.add(ids[row])
        history, task, steps = ids[-1], tasks[-1], int(expected[-1] + lengths[-1])
        yield rows


class Histories(NamedTuple):
    """The selected steps of whole histories, in memory or in a memory-mapped file."""

    steps: np.ndarray  # (num_steps,) records as of step_dtype, history after history
    lengths: np.ndarray  # (num_histories,)
    hashes: np.ndarray  # (num_histories,) as of history_hashes
    frames: pa.Table | None = None  # as of FRAMES_SCHEMA, of all rows, if observations are images


def step_dtype(observation_space: spaces.Space, action_space: spaces.Space, labelled: bool = False) -> np.dtype:
    """
    A step as a record: `observations` (of images: the number of its frame), `actions`, `rewards` and `ends`, whether
    it ended its episode; `labels`, if these are not the actions.

    The fields of a step stand together, so that a window is in one place of a file. The step before has the last
    action and reward, and says whether an episode begins.
    """
    action = (storage_dtype(action_space), action_space.shape or ())
    observation = (storage_dtype(observation_space), observation_space.shape or ())
    fields: list[Any] = [("observations", *((np.int64, ()) if has_frames(observation_space) else observation))]
    fields += [("actions", *action), ("rewards", np.float32), ("ends", np.bool_)]
    return np.dtype([*fields, *[("labels", *action)] * labelled])


def history_hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """Hashes (num_histories,) of the ids of histories, the same on all machines."""
    digests = [hashlib.blake2b(str(history).encode(), digest_size=8).digest() for history in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


class Episodes(NamedTuple):
    """The finished episodes of consecutive histories, in order; each field is (num_episodes,)."""

    owners: np.ndarray  # number of the history
    starts: np.ndarray  # first step
    stops: np.ndarray  # one after the last step
    returns: np.ndarray


def find_episodes(rewards: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> Episodes:
    """The episodes of steps (num_steps,), of histories or rows with borders (num_histories + 1,)."""
    stops = np.flatnonzero(ends) + 1
    owners = np.searchsorted(offsets, stops - 1, side="right") - 1
    # An episode begins after the last one's end, or with its history.
    starts = np.maximum(np.append(0, stops[:-1])[: len(stops)], offsets[owners])
    totals = np.append(0.0, np.cumsum(rewards, dtype=np.float64))
    return Episodes(owners, starts, stops, totals[stops] - totals[starts])


def improvements(rewards: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """
    The rise of each history (num_histories,) from the mean return of the first ten episodes to that of the last ten.
    Of fewer than twenty episodes, from the first half to the second; 0 for fewer than two.
    """
    totals = np.append(0.0, np.cumsum(rewards, dtype=np.float64))
    stops = np.flatnonzero(ends) + 1
    gains = np.zeros(len(offsets) - 1)
    for history, (start, stop) in enumerate(pairwise(offsets)):
        own = stops[np.searchsorted(stops, start, side="right") : np.searchsorted(stops, stop, side="right")]
        if count := min(10, len(own) // 2):
            borders = np.append(start, own)
            first, last = totals[borders[count]] - totals[start], totals[borders[-1]] - totals[borders[-1 - count]]
            gains[history] = (last - first) / count
    return gains


def selected_steps(selection: Selection, rewards: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """
    A mask (num_steps,) of the selected steps, from the reward and the end of an episode at each step (num_steps,), and
    the borders of histories (num_histories + 1,).

    Subsampling makes the improvement from one episode to the next steeper (paper, "data efficiency"); the last
    episodes alone are for expert distillation (paper, section 4).
    """
    lengths, numbers = np.diff(offsets), np.cumsum(np.append(0, ends[:-1]))
    numbers -= np.repeat(numbers[offsets[:-1]], lengths)  # of each step's episode in its history
    last = np.repeat(numbers[offsets[1:] - 1], lengths)
    if selection.max_episodes is not None:
        last = np.minimum(last, selection.max_episodes - 1)
    first = 0 if selection.last_episodes is None else np.maximum(0, last - selection.last_episodes + 1)
    selected = (numbers - first) % selection.keep_every_episode == 0
    selected = (numbers >= first) & (numbers <= last) & (selected | (numbers == last))
    if selection.min_improvement is not None:
        selected &= np.repeat(improvements(rewards, ends, offsets) >= selection.min_improvement, lengths)
    return selected


def _whole_histories(parts: Iterable[HistoryRows]) -> Iterator[pa.Table]:
    """Tables of whole histories, as soon as these are complete; those with frames have the `name` of each row, too."""
    waiting: list[pa.Table] = []
    for rows in parts:
        table = rows.table
        if pa.types.is_binary(table["observations"].type):
            names = [rows.row_name(row) for row in range(len(table))]
            table = table.append_column("name", pa.array(names, pa.string()))
        if rows.begins.any():
            last = int(np.flatnonzero(rows.begins)[-1])
            if complete := [each for each in (*waiting, table.slice(0, last)) if len(each)]:
                yield pa.concat_tables(complete)
            waiting, table = [], table.slice(last)
        waiting.append(table)
    yield pa.concat_tables(waiting)


def convert_histories(
    rows: Iterable[HistoryRows],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    selection: Selection,
    labels: StepLabels | None = None,
) -> Iterator[Histories]:
    """The selected steps of checked rows, with other actions to learn, if any; few are in memory at a time."""
    dtype, framed = step_dtype(observation_space, action_space, labels is not None), has_frames(observation_space)
    for table in _whole_histories(rows):
        steps, of_rows = Steps.of_table(table), row_lengths(table)
        firsts = np.flatnonzero(np.asarray(table["start_step"]) == 0)
        offsets = np.append(0, np.cumsum(np.add.reduceat(of_rows, firsts)))
        selected = selected_steps(selection, steps.rewards, steps.ends, offsets)
        lengths = np.add.reduceat(selected, offsets[:-1], dtype=np.int64)
        records = np.empty(int(lengths.sum()), dtype)
        for name in ("observations", "actions", "rewards", "ends"):
            records[name] = getattr(steps, name)[selected]
        if labels is not None:
            records["labels"] = labels(np.asarray(table["task_id"]), of_rows, steps.observations)[selected]
        frames = None
        if framed:
            frames = pa.table([table["observations"], pa.array(of_rows), table["name"]], schema=FRAMES_SCHEMA)
        ids = table["history_id"].take(firsts[lengths > 0])
        yield Histories(records, lengths[lengths > 0], history_hashes(ids), frames)


def number_frames(parts: Iterable[Histories]) -> Iterator[Histories]:
    """Parts whose numbers of frames go on from part to part."""
    frames = 0
    for part in parts:
        if part.frames is not None:
            part.steps["observations"] += frames
            frames += pc.sum(part.frames["num_frames"]).as_py()
        yield part


def join_histories(parts: Iterable[Histories]) -> Histories:
    """Several parts as one."""
    steps, lengths, hashes, frames = zip(*number_frames(parts))
    steps, lengths, hashes = (each[0] if len(each) == 1 else np.concatenate(each) for each in (steps, lengths, hashes))
    return Histories(steps, lengths, hashes, None if frames[0] is None else pa.concat_tables(frames))


def write_histories(folder: Path, parts: Iterable[Histories]) -> None:
    """Write parts, one at a time, to the files of a folder."""
    lengths, hashes = [], []
    with (
        open(folder / STEPS_FILE, "wb") as steps_file,
        pa.OSFile(str(folder / FRAMES_FILE), "wb") as file,
        pa.ipc.new_file(file, FRAMES_SCHEMA) as frames_file,
    ):
        for part in number_frames(parts):
            part.steps.tofile(steps_file)
            lengths.append(part.lengths)
            hashes.append(part.hashes)
            if part.frames is not None:
                frames_file.write_table(part.frames)
    np.savez(folder / HISTORIES_FILE, lengths=np.concatenate(lengths), hashes=np.concatenate(hashes))


def open_histories(folder: Path, dtype: np.dtype, in_memory: bool) -> Histories:
    """The histories of a folder, whose steps are records of this type, in memory or in memory-mapped files."""
    with np.load(folder / HISTORIES_FILE) as arrays:
        lengths, hashes = arrays["lengths"], arrays["hashes"]
    path = folder / STEPS_FILE
    # An empty file cannot be mapped.
    mapped = len(lengths) and not in_memory
    steps = np.memmap(path, dtype, mode="r").view(np.ndarray) if mapped else np.fromfile(path, dtype)
    frames = pa.ipc.open_file(pa.memory_map(str(folder / FRAMES_FILE))).read_all()
    return Histories(steps, lengths, hashes, frames if len(frames) else None)
