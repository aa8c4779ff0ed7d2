"""
Histories as memory-mapped files: training data that is larger than memory.

What is trained on is written once to the cache of datasets (`HF_DATASETS_CACHE`), a folder for each dataset, split and
subsampling, and read where batches need it. The operating system keeps as much of it in memory as there is room for,
once for all processes of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ad_hf.histories.blocks import read_row_groups
from ad_hf.histories.cache import cached_folder
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.frames import FramePieces, PieceNames, has_frames
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.steps import FlatHistories, convert_histories, offsets_of, step_dtype
from ad_hf.histories.transforms import Selection

FORMAT_VERSION = 2  # of these files
MEMORY_SHARE = 0.25  # of the memory that is free, up to which histories are kept in it
STEPS_FILE, HISTORIES_FILE, FRAMES_FILE, NAMES_FILE = "steps.bin", "histories.npz", "frames.arrow", "names.json"


def _flat_bytes(dataset: HistoryDataset, files: list[Path], keep_every_episode: int) -> int:
    """About as many bytes as the steps of a split take, frames left aside."""
    num_steps = sum(group.steps for file in files for group in read_row_groups(pq.read_metadata(file)))
    return num_steps // keep_every_episode * step_dtype(*dataset.metadata.spaces).itemsize


def fits_in_memory(dataset: HistoryDataset, split: str, keep_every_episode: int = 1, copies: int = 1) -> bool:
    """
    Whether the steps of a split take less than a quarter of the machine's free memory.

    Args:
        dataset ([`~ad_hf.histories.dataset.HistoryDataset`]), split (`str`):
            The histories. Their frames are memory-mapped in any case, and do not count.
        keep_every_episode (`int`, *optional*, defaults to 1):
            Which part of the episodes is kept.
        copies (`int`, *optional*, defaults to 1):
            Processes that each hold them.
    """
    needed = copies * _flat_bytes(dataset, dataset.files(split), keep_every_episode)
    return needed < MEMORY_SHARE * psutil.virtual_memory().available


def _write(
    folder: Path,
    dataset: HistoryDataset,
    split: str,
    files: list[Path],
    selection: Selection,
    labels: StepLabels | None,
) -> None:
    """Write the files, in memory that does not grow with the dataset but for a few numbers per history and piece."""
    both = dataset.metadata.spaces
    names, framed = PieceNames(), has_frames(both[0])
    lengths, hashes = [], []
    frames_schema = pa.schema({"observations": pa.binary(), "num_frames": pa.int64()})
    with (
        open(folder / STEPS_FILE, "wb") as steps_file,
        pa.OSFile(str(folder / FRAMES_FILE), "wb") as frames_file,
        pa.ipc.new_file(frames_file, frames_schema) as frames_writer,
    ):
        for part in convert_histories(dataset.rows(split, files), *both, selection, names, labels):
            part.steps.tofile(steps_file)
            lengths.append(part.lengths)
            hashes.append(part.hashes)
            if framed:
                counts = pa.array(part.frame_counts)
                frames_writer.write_table(pa.Table.from_arrays([part.frames, counts], schema=frames_schema))
    np.savez(folder / HISTORIES_FILE, offsets=offsets_of(lengths), hashes=np.concatenate(hashes))
    (folder / NAMES_FILE).write_text(json.dumps(names.runs))
    dataset.check_contents(split, files)
    pa.default_memory_pool().release_unused()


def _open(folder: Path, dataset: HistoryDataset, labels: StepLabels | None) -> FlatHistories:
    both = dataset.metadata.spaces
    steps: Any = np.memmap(folder / STEPS_FILE, step_dtype(*both, labels), mode="r")
    with np.load(folder / HISTORIES_FILE) as arrays:
        offsets, hashes = arrays["offsets"], arrays["hashes"]
    frames = None
    if has_frames(both[0]):
        table = pa.ipc.open_file(pa.memory_map(str(folder / FRAMES_FILE))).read_all()
        names = PieceNames(json.loads((folder / NAMES_FILE).read_text()))
        frames = FramePieces(table["observations"], np.asarray(table["num_frames"]), both[0].shape or (), names)
    return FlatHistories(steps.view(np.ndarray), offsets, hashes, frames)


def map_histories(
    dataset: HistoryDataset,
    split: str,
    keep_every_episode: int = 1,
    max_episodes: int | None = None,
    last_episodes: int | None = None,
    min_improvement: float | None = None,
    labels: StepLabels | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FlatHistories:
    r"""
    The steps of a split in memory-mapped files, which are written if they are not there yet.

    Several processes may call this at the same time: one of them writes, the others wait. The files are there once
    they are complete; what a process that was killed has left is cleared away by the next.

    Args:
        dataset ([`~ad_hf.histories.dataset.HistoryDataset`]), split (`str`):
            The histories.
        keep_every_episode (`int`, *optional*, defaults to 1), max_episodes, last_episodes (`int`, *optional*),
        min_improvement (`float`, *optional*), labels ([`~ad_hf.histories.labels.StepLabels`], *optional*):
            As of [`~ad_hf.histories.windows.HistoryWindows`], to which the result is given.
        say (`Callable[[str], None]`, *optional*):
            Prints a line for people, where the files are written.

    Raises:
        FileNotFoundError: if shards are missing.
        ValueError: for rows that are no learning histories, with the shard, the row and the column.
        OSError: if the files cannot be written, with what can be done.
    """
    files = dataset.files(split)
    selection = Selection(keep_every_episode, max_episodes, last_episodes, min_improvement)

    def what() -> str:
        size = _flat_bytes(dataset, files, keep_every_episode)
        if has_frames(dataset.metadata.spaces[0]):
            size += sum(file.stat().st_size for file in files)
        return f"memory-mapped histories of {dataset}, about {size / 1e9:.2f} GB,"

    def write(temporary: Path) -> None:
        say(f"writing {what()} to {temporary.parent}")
        _write(temporary, dataset, split, files, selection, labels)

    key = [FORMAT_VERSION, split, selection, None if labels is None else labels.path, *dataset.key(files)]
    otherwise = ", or train with --streaming, or with --data.keep_in_memory true if they fit into memory"
    folder = cached_folder("ad_hf", key, write, lambda: f"the {what()}", otherwise)
    return _open(folder, dataset, labels)
