"""
Measure training from a dataset that is larger than the memory of the process that trains.

    python scripts/benchmarks/data.py                       # some 8 minutes, 9 GB under --folder, which is deleted
    python scripts/benchmarks/data.py --gigabytes 0.2 --updates 20 --rounds 1

Histories of random vectors (17 numbers and an action a step, which no codec makes smaller) are written as `ad-hf
convert` writes them, and the model of Dark Room's recipe is trained on them by the real `Trainer`, in runs of
processes of their own, in turns: from memory, on a dataset of the same shape that fits into it; from memory-mapped
files; and streamed. What is in files is dropped from the page cache before each run. RssAnon, the memory that no file
stands behind, is read from /proc/self/status all the while, in training and in a whole epoch without training; the
latter also in a `DataLoader` over the datasets for a loop of one's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from torch.utils.data import DataLoader

from ad_hf import HistoryWindowsDataset, IterableHistoryWindowsDataset, collate_windows, config_from_dataset
from ad_hf.envs.spaces import space_to_json
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import HistoryMetadata, history_features
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.steps import step_dtype
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.histories.writer import describe, history_table, new_dataset, write_shards
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.sources.recorder import RecordedSteps
from ad_hf.training.machine import keep_freed_memory
from ad_hf.training.members import Member
from ad_hf.training.trainer import Trainer

OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Discrete(6)
STEP_BYTES = step_dtype(OBSERVATIONS, ACTIONS).itemsize
HISTORY_STEPS, EPISODE_STEPS, STREAMS = 5000, 100, 20
FAMILY: dict[str, Any] = {"env_id": "benchmark/Vectors-v0", "tasks": [{}]}
MODES = ("in_memory", "memory_mapped", "streamed")
WARM_UP = 5  # updates
OWN_LOOP: dict[str, Any] = {  # of epochs without training: in a DataLoader
    "memory_mapped_dataset": HistoryWindowsDataset,
    "streamed_dataset": IterableHistoryWindowsDataset,
}
QUARTERS = ("25%", "50%", "75%", "100%")


class AnonymousMemory:
    """Reads RssAnon of this process, in megabytes, every 20 milliseconds."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            self.samples.append(self.read())

    @staticmethod
    def read() -> float:
        """What it is now."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("/proc/self/status has no RssAnon: this measurement needs Linux")

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def quarters(self) -> dict[str, float]:
        """The most in each quarter of the samples."""
        parts = np.array_split(np.array(self.samples), len(QUARTERS))
        return {name: round(float(part.max()), 1) for name, part in zip(QUARTERS, parts)}


def write_histories(folder: Path, num_bytes: float) -> None:
    """A dataset of which training reads so many bytes, uncompressed."""
    rng = np.random.default_rng(0)
    features = history_features(OBSERVATIONS, ACTIONS)
    size = (STREAMS, HISTORY_STEPS)
    ends = np.broadcast_to(np.arange(1, HISTORY_STEPS + 1) % EPISODE_STEPS == 0, size)

    def histories() -> Iterator[tuple[str, pa.Table]]:
        for seed in range(max(1, round(num_bytes / STEP_BYTES / STREAMS / HISTORY_STEPS))):
            recorded = RecordedSteps(
                observations=rng.standard_normal((*size, 17), dtype=np.float32),
                actions=rng.integers(0, 6, size, dtype=np.uint8),
                rewards=rng.standard_normal(size),
                terminations=ends,
                truncations=ends & False,
                final_observations=[np.zeros((HISTORY_STEPS // EPISODE_STEPS, 17), np.float32)] * STREAMS,
            )
            yield "train", history_table(recorded, features, 0, seed, 10_000)

    with new_dataset(folder, "default") as temporary:
        write_shards(temporary / "default", histories())
        metadata = HistoryMetadata(
            env_id=FAMILY["env_id"],
            env_kwargs={},
            tasks=[{"task_id": 0, "kwargs": {}, "split": "train"}],
            observation_space=space_to_json(OBSERVATIONS),
            action_space=space_to_json(ACTIONS),
            source={"algorithm": "none", "n_envs": STREAMS, "total_timesteps": HISTORY_STEPS, "hyperparameters": {}},
            seeds=[0],
        )
        describe(temporary, folder.name, "default", metadata, "Random vectors.", FAMILY)


def make_recipe(dataset: Path, mode: str) -> Recipe:
    """Dark Room's model and training, for these histories."""
    recipe = load_recipe("dark_room")
    family = load_recipe(dataset / "recipe.yaml").family
    recipe.family, recipe.data.keep_every_episode = family, 1
    recipe.data.keep_in_memory = mode == "in_memory"
    return recipe


def forget_files(folder: Path) -> None:
    """Drop the content of files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(dataset: Path, mode: str, updates: int) -> dict[str, Any]:
    """Train for some updates: tokens/s, and RssAnon."""
    recipe = make_recipe(dataset, mode)
    keep_freed_memory()  # as training does
    opened = HistoryDataset.open(dataset)
    with tempfile.TemporaryDirectory() as output_dir:
        member = Member(opened, recipe.family, recipe.data, recipe.rollout, streaming=mode == "streamed")
        trainer = Trainer(Path(output_dir), [member], recipe.model, recipe.training)
        trainer.model.train()
        with closing(iter(trainer.batches)) as batches:
            for _ in range(WARM_UP):
                trainer.update(batches)
            start = time.perf_counter()
            with AnonymousMemory() as memory:
                for _ in range(updates):
                    trainer.update(batches)
            seconds = time.perf_counter() - start
    tokens = updates * recipe.training.batch_size * trainer.context_length
    return {"tokens_per_second": round(tokens / seconds), "rss_anon_mb": memory.quarters()}


def read_epoch(dataset: Path, mode: str) -> dict[str, Any]:
    """All batches of an epoch, without a model: tokens/s, and RssAnon."""
    recipe = make_recipe(dataset, mode)
    keep_freed_memory()
    opened = HistoryDataset.open(dataset)
    size, length = recipe.training.batch_size, recipe.model.context_length
    start, first = time.perf_counter(), 0.0
    batches: WindowBatches | StreamedBatches | DataLoader
    if mode in OWN_LOOP:
        windows = OWN_LOOP[mode](dataset, config_from_dataset(opened, context_length=length))
        batches = DataLoader(windows, size, collate_fn=collate_windows)
    elif mode == "streamed":
        batches = StreamedBatches(HistoryStream(opened, "train", DataConfig(), length), size)
    else:
        batches = WindowBatches(HistoryWindows(opened.histories("train"), *opened.metadata.spaces, length), size)
    count, opened_at = 0, time.perf_counter()
    with AnonymousMemory() as memory, closing(batch for batch in batches) as iterator:
        for count, _ in enumerate(itertools.takewhile(lambda _: not _epoch(batches), iterator), start=1):
            if count == 1:
                first = time.perf_counter() - start
    rate = count * size * length / (time.perf_counter() - opened_at)
    figures = {"tokens_per_second": round(rate), "seconds_to_first_batch": round(first, 2)}
    return {**figures, "rss_anon_mb": memory.quarters()}


def _epoch(batches: WindowBatches | StreamedBatches | DataLoader) -> int:
    if isinstance(batches, DataLoader):  # ends by itself
        return 0
    state = batches.state_dict()
    return state["places"][0][0] if isinstance(batches, StreamedBatches) else state["epoch"]


def prepare(dataset: Path) -> dict[str, Any]:
    """Write the memory-mapped files."""
    keep_freed_memory()
    start = time.perf_counter()
    with AnonymousMemory() as memory:
        HistoryDataset.open(dataset).histories("train")
    return {"seconds": round(time.perf_counter() - start, 1), "rss_anon_mb": memory.quarters()}


def run_child(cache: Path, *arguments: Any) -> dict[str, Any]:
    """A part in a process of its own; returns what it printed."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, gigabytes: float, updates: int, rounds: int) -> dict[str, Any]:
    """All parts; figures for the report."""
    cache, large, small = folder / "cache", folder / "large", folder / "small"
    write_histories(small, gigabytes * 1e9 / 16)
    write_histories(large, gigabytes * 1e9)
    statistics = HistoryDataset.open(large).metadata.statistics["train"]
    prepared = run_child(cache, "prepare", large)
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for turn in range(rounds):
        for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
            forget_files(folder)
            runs[mode].append(run_child(cache, "train", small if mode == "in_memory" else large, mode, updates))
            print(json.dumps({"turn": turn, "mode": mode, **runs[mode][-1]}), file=sys.stderr, flush=True)
    epochs = {}
    for mode in (*MODES[1:], *OWN_LOOP):
        forget_files(folder)
        epochs[mode] = run_child(cache, "epoch", large, mode)
    rates = {mode: float(np.mean([run["tokens_per_second"] for run in parts])) for mode, parts in runs.items()}
    # The most of any run, in each quarter of it.
    memory = {
        mode: {quarter: max(run["rss_anon_mb"][quarter] for run in parts) for quarter in QUARTERS}
        for mode, parts in runs.items()
    }
    flat = statistics["steps"] * STEP_BYTES
    larger = MODES[1:]
    return {
        "steps": statistics["steps"],
        "flat_bytes": flat,
        "file_bytes": statistics["bytes"],
        "flat_bytes_to_rss_anon": {mode: round(flat / 2**20 / max(memory[mode].values()), 2) for mode in larger},
        "file_bytes_to_rss_anon": {
            mode: round(statistics["bytes"] / 2**20 / max(memory[mode].values()), 2) for mode in larger
        },
        "tokens_per_second": {mode: round(rate) for mode, rate in rates.items()},
        "ratio_to_in_memory": {mode: round(rates[mode] / rates["in_memory"], 3) for mode in larger},
        "rss_anon_mb": memory,
        "epoch_without_training": epochs,
        "preparation": prepared,
        "updates_of_a_run": updates,
        "rounds": rounds,
    }


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the datasets are made (default: a temporary folder)")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bytes trained on (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=120, help="updates of each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write as well")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # a part in a process of its own
    arguments = parser.parse_args()
    if arguments.child:
        part, dataset, *rest = arguments.child
        if part == "train":
            figures = train(Path(dataset), rest[0], int(rest[1]))
        else:
            figures = prepare(Path(dataset)) if part == "prepare" else read_epoch(Path(dataset), rest[0])
        print(json.dumps(figures), flush=True)
        return
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        figures = measure(Path(name), arguments.gigabytes, arguments.updates, arguments.rounds)
    text = json.dumps(figures, indent=2) + "\n"
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
