"""
Kill training or collection with SIGKILL at random moments, let it go on, and compare what comes out with a run that
nobody killed: every bit has to be the same, and whatever lies about at any moment has to be readable.

    python scripts/benchmarks/soak.py train --kills 20 --json docs/results/soak_train.json
    python scripts/benchmarks/soak.py collect --kills 20 --json docs/results/soak_collect.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file
from tqdm.auto import tqdm

RECIPE: dict[str, Any] = {
    "family": {
        "env_id": "ad_hf/DarkRoom-v0",
        "env_kwargs": {"size": 4, "max_episode_steps": 8},
        "grid": {"goal": {"shape": [4, 4]}},
        "num_validation_tasks": 2,
        "num_test_tasks": 2,
        "native_vector": True,
    },
    "source": {
        "algorithm": "A2C",
        "n_envs": 10,
        "total_timesteps": 8000,
        "hyperparameters": {"n_steps": 8},
        "seeds": [0, 1, 2],
    },
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "context_length": 48,
        "dropout": 0.1,
    },
    "training": {
        "max_steps": 300,
        "batch_size": 16,
        "eval_steps": 50,
        "eval_episodes": 10,
        "save_steps": 10,
        "save_total_limit": 2,
        "logging_steps": 1,
        "mixed_precision": "no",
    },
}
# Temporary files, while which are there something is being written.
WRITING = {"train": ".*.tmp", "collect": ".incomplete/default/**/.*.tmp"}


def check_training(folder: Path) -> None:
    """Read every checkpoint and model of a run; raises if one is not whole."""
    for checkpoint in folder.glob("checkpoint-*"):
        state = json.loads((checkpoint / "training_state.json").read_text())
        for file in checkpoint.rglob("*.safetensors"):
            load_file(file)
        assert state["best"] is None or (checkpoint / "best" / "model.safetensors").is_file(), checkpoint
    if (folder / "model").is_dir():
        load_file(folder / "model" / "model.safetensors")


def check_collection(folder: Path) -> None:
    """Read every shard of a dataset, finished or not; raises if one is not whole."""
    for file in [*folder.glob("*/*.parquet"), *folder.glob(".incomplete/*/shards/*.parquet")]:
        if not file.name.startswith("."):
            pq.read_table(file)
    for file in [*folder.glob("*/metadata.json"), *folder.glob(".incomplete/*/*.json")]:
        json.loads(file.read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run is to be compared by: the bytes of its files, and metrics without the speed."""
    kept: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            kept[name] = [{key: line[key] for key in line if key != "tokens_per_second"} for line in lines]
        elif file.name != "README.md" and file.suffix != ".png":  # which name the folder, and show the metrics
            kept[name] = file.read_bytes()
    return kept


class Soak:
    """Runs of a command that are killed."""

    def __init__(self, verb: str, folder: Path, seed: int, recipe: dict[str, Any] = RECIPE) -> None:
        self.verb, self.folder, self.random = verb, folder, random.Random(seed)
        self.check: Callable[[Path], None] = check_training if verb == "train" else check_collection
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        self._command = [sys.executable, "-m", "ad_hf.cli"]
        self._options = ["--recipe", str(file)]
        if verb == "train":
            histories = folder / "histories"
            subprocess.run(
                [*self._command, "collect", *self._options, "--output_dir", str(histories)],
                check=True,
                capture_output=True,
            )
            self._options += ["--dataset", str(histories), "--resume", "latest"]
        else:
            self._options += ["--num_workers", "2"]

    def start(self, output_dir: Path, *settings: str) -> subprocess.Popen:
        """Start, or let go on, a run in a folder, with settings that take the place of the recipe's."""
        return subprocess.Popen(
            [*self._command, self.verb, *self._options, *settings, "--output_dir", str(output_dir)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self, output_dir: Path, *settings: str) -> float:
        """Let a run come to its end; returns the seconds that it took."""
        start = time.monotonic()
        with self.start(output_dir, *settings) as process:
            said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{self.verb} ended with {process.returncode}: {said.decode()[-2000:]}")
        return time.monotonic() - start

    def kill(self, output_dir: Path, seconds: float) -> str:
        """
        Start a run and kill it and its workers: after a random share of some seconds, or when it next writes a file.

        Returns:
            `str`: what it was doing: `"running"`, `"writing"` if a temporary file is left of it, or `"finished"` if it
            was too late.
        """
        at_write = self.random.random() < 0.5
        begin = time.monotonic()
        until = begin + self.random.uniform(0.1, 1.0) * seconds
        with self.start(output_dir) as process:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
            while at_write and process.poll() is None and not any(output_dir.glob(WRITING[self.verb])):
                pass
            time.sleep(self.random.uniform(0, 0.002))  # writing a part of a collection takes no longer
            late = process.poll() is not None
            if not late:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        writing = any(output_dir.glob(WRITING[self.verb]))
        self.check(output_dir)
        return "finished" if late else "writing" if writing else "running"


def soak(verb: str, kills: int, seed: int, minutes: float) -> dict[str, Any]:
    """Kill so many times, in as many runs as it takes, and compare each run with one that was left alone."""
    deadline, counts, passes = time.monotonic() + 60 * minutes, {"running": 0, "writing": 0}, 0
    with TemporaryDirectory() as temporary:
        soaked = Soak(verb, Path(temporary), seed)
        seconds = soaked.finish(Path(temporary) / "whole")
        expected = outcome(Path(temporary) / "whole")
        with tqdm(total=kills, unit=" kills") as bar:
            while sum(counts.values()) < kills:
                run = Path(temporary) / f"run-{passes}"
                while sum(counts.values()) < kills:
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{minutes} minutes are over after {counts}")
                    doing = soaked.kill(run, 0.8 * seconds)
                    if doing == "finished":
                        break
                    counts[doing] += 1
                    bar.update()
                soaked.finish(run)
                found, passes = outcome(run), passes + 1
                different = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
                if different:
                    raise SystemExit(f"after {counts} the run differs from one that was left alone in {different}")
    return {"verb": verb, "kills": counts, "runs": passes, "seconds_of_a_whole_run": round(seconds, 1), "seed": seed}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["train", "collect"], help="what to kill")
    parser.add_argument("--kills", type=int, default=20, help="how often (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="give up after so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    return parser


def main() -> None:
    """Soak, and say how it went."""
    arguments = make_parser().parse_args()
    result = soak(arguments.verb, arguments.kills, arguments.seed, arguments.minutes)
    kills = result["kills"]
    print(f"{sum(kills.values())} kills {kills} in {result['runs']} runs: all ended bit for bit alike")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
