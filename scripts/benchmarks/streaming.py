"""
Measure streaming against reading into memory; prints one JSON line per part.

    python scripts/benchmarks/streaming.py all
    python scripts/benchmarks/streaming.py train      # tokens/s and the first batch, over HTTP from a Hub beside it
    python scripts/benchmarks/streaming.py memory     # resident memory and requests, of a dataset and ten times it
    python scripts/benchmarks/streaming.py frames     # frames/s of a dataset of 72 x 96 pixels, from disk

The Hub is that of the tests. Histories are those of Dark Room's recipe, collected first (--dataset takes others).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from gymnasium import spaces

import ad_hf
from ad_hf.envs.spaces import space_to_json
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import HistoryMetadata, history_features
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.histories.writer import history_table, row_groups
from ad_hf.recipe import load_recipe
from ad_hf.sources.recorder import RecordedSteps
from ad_hf.training.config import TrainingConfig
from ad_hf.training.machine import choose_precision, keep_freed_memory
from ad_hf.training.optimizers import make_optimizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "hub"))
from local_hub import LocalHub  # the tests' Hub

WINDOW, BATCH, SELECTION = 200, 64, DataConfig(keep_every_episode=2)
REPOSITORY, TEN_TIMES = "benchmark/histories", "benchmark/ten-times"


def print_line(part: str, **figures: Any) -> None:
    """Print a part's figures as a line of JSON."""
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"part": part, **rounded}), flush=True)


def make_stream(dataset: HistoryDataset, context_length: int = WINDOW) -> HistoryStream:
    """The stream that all parts measure."""
    return HistoryStream(dataset, "train", SELECTION, context_length)


def measure_train(dataset: str, updates: int) -> None:
    """Train on a stream and on memory in turns, ten updates each, so that noise of the machine hits both."""
    keep_freed_memory()
    start = time.perf_counter()
    opened = HistoryDataset.open(dataset)
    stream = make_stream(opened)
    streamed = iter(StreamedBatches(stream, BATCH))
    next(streamed)
    first_batch = time.perf_counter() - start
    windows = HistoryWindows(opened.histories("train", SELECTION), *opened.metadata.spaces, WINDOW)
    sources = {"streamed": streamed, "map_style": iter(WindowBatches(windows, BATCH))}
    model = ad_hf.ADModel(ad_hf.config_from_dataset(opened)).train()
    precision, _ = choose_precision(torch.device("cpu"))
    optimizers = make_optimizers(model, TrainingConfig(), precision == "bf16")
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(2 * (updates // 10) + 2):
        name = list(sources)[turn % 2]
        start = time.perf_counter()
        for batch in itertools.islice(sources[name], 10):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        if turn >= 2:
            seconds[name].append(time.perf_counter() - start)
    # Totals, not medians: the groups that are read meanwhile slow single turns down.
    rates = {name: 10 * BATCH * WINDOW * len(taken) / sum(taken) for name, taken in seconds.items()}
    print_line(
        "train",
        streamed_tokens_per_second=rates["streamed"],
        map_style_tokens_per_second=rates["map_style"],
        ratio=rates["streamed"] / rates["map_style"],
        first_batch_seconds=first_batch,
        updates=updates,
        windows_of_an_epoch=len(windows.epoch_order(0)),
        precision=precision,
    )


def measure_memory(dataset: str, context_length: int, epochs: int) -> None:
    """Resident memory while epochs are streamed, in megabytes, before them, on average and at most."""
    stream = make_stream(HistoryDataset.open(dataset), context_length)
    before = resident_megabytes()
    resident = []
    batches = StreamedBatches(stream, BATCH)
    count = 0
    start = time.perf_counter()
    for batch in batches:
        count += len(batch["labels"])
        resident.append(resident_megabytes())
        epoch, _, used = batches.state_dict()["places"][0]
        if epoch == epochs and used:  # in the first group of the next epoch, while the one after it is read
            break
    print(
        json.dumps(
            {
                "steps": stream.num_steps,
                "compressed_megabytes": round(stream.compressed_bytes / 1e6, 1),
                "shards": len(stream.dataset.repository.sizes(stream.dataset.pattern("train"))),
                "blocks": len(stream.blocks(1)),
                "windows": count,
                "tokens_per_second": round(count * context_length / (time.perf_counter() - start)),
                "resident_before": round(before),
                "resident_mean": round(statistics.mean(resident)),
                "resident_most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        ),
        flush=True,
    )


def resident_megabytes() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_child(hub: LocalHub, home: Path, *arguments: Any) -> str:
    """Run a measurement in a process that uses the Hub; returns what it printed."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=hub.environment(home), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def benchmark_memory(hub: LocalHub, home: Path) -> None:
    """A dataset, ten times it, and four times as many windows of it."""
    found: dict[str, dict[str, Any]] = {}
    for name, repo, window in (("1x", REPOSITORY, 200), ("10x", TEN_TIMES, 200), ("1x_short_windows", REPOSITORY, 50)):
        counted = []
        for epochs in (1, 2):  # the difference is an epoch, whatever is read once or ahead
            hub.clear_log()
            found[name] = json.loads(run_child(hub, home, "child-memory", repo, window, epochs))
            counted.append([request for request in hub.requests if repo in request.path])
        ranges = [[request for request in requests if request.range is not None] for requests in counted]
        sent = [sum(request.bytes_sent for request in requests) / 1e6 for requests in ranges]
        found[name]["requests_of_an_epoch"] = len(ranges[1]) - len(ranges[0])
        found[name]["requests_at_the_start"] = len(counted[1]) - len(ranges[1]) + found[name]["shards"]
        found[name]["megabytes_of_an_epoch"] = round(sent[1] - sent[0], 1)
    print_line(
        "memory",
        ratio_of_most=found["10x"]["resident_most"] / found["1x"]["resident_most"],
        ratio_of_mean=found["10x"]["resident_mean"] / found["1x"]["resident_mean"],
        **found,
    )


def multiply(dataset: Path, target: Path, times: int) -> None:
    """A dataset with each training shard several times."""
    shutil.copytree(dataset, target)
    shards = sorted((target / "default").glob("train-*.parquet"))
    for number in range(times * len(shards)):
        name = f"train-{number:05d}-of-{times * len(shards):05d}.parquet"
        shutil.copyfile(shards[number % len(shards)], target / "default" / name)
    for shard in shards:
        shard.unlink()


def draw_frames(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Frames (num_frames, 72, 96, 3) as of someone who turns in a round hall with speckled walls and floor."""
    headings = np.cumsum(rng.normal(0, 0.05, num_frames)) * 96
    columns = (np.arange(96)[None] + headings[:, None]).astype(int) % 512
    wall = np.repeat(rng.integers(60, 200, (512 // 8, 3)), 8, axis=0).astype(np.uint8)
    tall = (18 + 8 * np.sin(columns / 512 * 2 * np.pi)).astype(int)  # (num_frames, 96)
    rows = np.arange(72)[None, :, None]
    frames = np.empty((num_frames, 72, 96, 3), dtype=np.uint8)
    frames[:] = np.linspace(230, 120, 72).astype(np.uint8)[None, :, None, None]
    floor = rows > 36 + tall[:, None] // 2
    walls = (abs(rows - 36) <= tall[:, None] // 2) & ~floor
    frames = np.where(walls[..., None], wall[columns][:, None], frames)
    speckles = rng.integers(0, 24, (72, 512, 1)).astype(np.uint8) * (rng.random((72, 512, 1)) < 0.1)
    frames += speckles[np.arange(72)[None, :, None], columns[:, None]]
    # Noise of its own in each frame, so that they compress no better than rendered ones with textures do.
    return frames + (rng.random(frames.shape, dtype=np.float32) < 0.015).astype(np.uint8) * 9


def write_frames(folder: Path, histories: int = 24, steps: int = 2000, episode: int = 50) -> None:
    """A dataset of frames, each history in shards of four."""
    observation_space, action_space = spaces.Box(0, 255, (72, 96, 3), np.uint8), spaces.Discrete(8)
    features = history_features(observation_space, action_space)
    rng = np.random.default_rng(0)
    (folder / "default").mkdir(parents=True)
    names = [f"train-{number:05d}-of-{histories // 4:05d}.parquet" for number in range(histories // 4)]
    for number, name in enumerate(names):
        with pq.ParquetWriter(folder / "default" / name, features.arrow_schema, use_dictionary=False) as writer:
            for history in range(4):
                frames = draw_frames(rng, steps)[None]
                ends = (np.arange(steps) % episode == episode - 1)[None]
                recorded = RecordedSteps(
                    frames,
                    rng.integers(0, 8, (1, steps)),
                    rng.random((1, steps)),
                    ends,
                    ends & False,
                    [frames[0, ends[0]]],
                )
                for rows in row_groups(history_table(recorded, features, 4 * number + history, 0, 100)):
                    writer.write_table(rows)
    tasks = [{"task_id": number, "kwargs": {}, "split": "train"} for number in range(histories)]
    metadata = HistoryMetadata(
        env_id="Hall-v0",
        env_kwargs={},
        tasks=tasks,
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        source={"algorithm": "none"},
        seeds=[0],
    )
    (folder / "default" / "metadata.json").write_text(metadata.to_json())


def benchmark_frames(folder: Path, windows: int = 600) -> None:
    """Frames/s of batches of 8 windows of 100 steps, from disk."""
    write_frames(folder)
    keep_freed_memory()  # as training does
    stream = HistoryStream(HistoryDataset.open(folder), "train", DataConfig(), 100)
    rates = {}
    for workers in (0, 2):
        start = time.perf_counter()
        with closing(iter(StreamedBatches(stream, 8, num_workers=workers))) as batches:
            next(batches)
            first = time.perf_counter() - start
            start = time.perf_counter()
            frames = sum(
                batch["observations"][..., 0, 0, 0].numel() for batch in itertools.islice(batches, windows // 8)
            )
            rates[workers] = (frames / (time.perf_counter() - start), first)
    size = stream.compressed_bytes / stream.num_steps
    print_line(
        "frames",
        frames_per_second=rates[0][0],
        frames_per_second_of_2_workers=rates[2][0],
        first_batch_seconds=rates[0][1],
        first_batch_seconds_of_2_workers=rates[2][1],
        frames=stream.num_steps,
        bytes_per_frame=size,
        compressed_to=size / (72 * 96 * 3),
    )


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["all", "train", "memory", "frames", "child-train", "child-memory"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)  # of the parts that run in a process of their own
    parser.add_argument("--dataset", type=Path, help="folder of histories (default: collected for this)")
    parser.add_argument("--updates", type=int, default=300, help="updates of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.part == "child-train":
        measure_train(arguments.rest[0], int(arguments.rest[1]))
        return
    if arguments.part == "child-memory":
        measure_memory(arguments.rest[0], int(arguments.rest[1]), int(arguments.rest[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.part in ("all", "frames"):
            benchmark_frames(folder / "frames")
        if arguments.part == "frames":
            return
        dataset = arguments.dataset
        if dataset is None:
            recipe = load_recipe("dark_room")
            dataset = ad_hf.collect(
                ad_hf.TaskFamily(recipe.family), **asdict(recipe.source), output_dir=folder / "histories"
            )
        multiply(dataset, folder / "ten-times", 10)
        with LocalHub(folder / "hub") as hub:
            for source, repo in ((dataset, REPOSITORY), (folder / "ten-times", TEN_TIMES)):
                command = [sys.executable, "-m", "ad_hf.cli", "push", "dataset", str(source), repo]
                subprocess.run(command, env=hub.environment(folder / "home"), check=True, stdout=subprocess.DEVNULL)
            if arguments.part in ("all", "memory"):
                benchmark_memory(hub, folder / "home")
            if arguments.part in ("all", "train"):
                print(run_child(hub, folder / "home", "child-train", REPOSITORY, arguments.updates), flush=True)


if __name__ == "__main__":
    main()
