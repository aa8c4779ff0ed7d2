"""
Check this package on a GPU, and measure it against the CPU of the same machine: JSON lines, as of speed.py.

    python scripts/benchmarks/gpu.py --output_dir docs/results   # all parts, at most 10 minutes; writes gpu.json
    python scripts/benchmarks/gpu.py exactness resume            # some of them
    python scripts/benchmarks/gpu.py watermaze --device cpu      # what can be measured without a GPU
    python scripts/benchmarks/gpu.py --rehearse                  # all parts in miniature on the CPU: a test of this

A part is a process with a time limit of its own. One that fails, hangs or breaks the device leaves the others alone;
the exit status is 1 if any failed. `passed` is the verdict of a part's check, whose figures and tolerance stand beside
it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_parts import PARTS, Plan, passed
from speed import print_line

from ad_hf.storage.files import writable_folder, write_text

# Frames of full size, but fewer of them: an update of all windows takes a CPU many seconds.
ON_CPU: dict[str, Any] = {
    **{"device": "cpu", "frame_updates": 5, "source_steps": 1600},
    "settings": {"watermaze": ("--training.batch_size=4", "--family.num_test_tasks=91")},
}
TINY = (
    *("--model.hidden_size=16", "--model.num_hidden_layers=1", "--model.intermediate_size=16"),
    *("--model.context_length=40", "--model.sliding_window=20", "--training.max_steps=4", "--training.batch_size=4"),
    *("--training.eval_episodes=1", "--training.eval_repeats=1", "--rollout.num_episodes=2"),
    "--source.total_timesteps=2000",
)
SPLITS = {
    "train": {"grid": {"rewarding": ["odd"], "task_seed": {"range": [0, 4]}}},
    "test": {"grid": {"rewarding": ["even"], "task_seed": {"range": [4, 8]}}},
}
REHEARSAL: dict[str, Any] = {
    **{"device": "cpu", "is_rehearsal": True, "workers": 0, "contexts": (3, 60), "updates": 12},
    **{"attention": ("default",), "signals": (signal.SIGTERM,), "signal_after": 12},
    "changes": {"source": {"total_timesteps": 2000, "seeds": [0]}, "training": {"max_steps": 40, "eval_episodes": 2}},
    **{"environments": (2, 4), "rollout_steps": 30},
    **{"frame_updates": 2, "source_steps": 64},
    "settings": {
        "dark_room": (*TINY, *(f"--family.num_{split}_tasks=2" for split in ("train", "validation", "test"))),
        "bandit": (*TINY, f"--family.splits={json.dumps(SPLITS)}"),
        "watermaze": (
            *("--source.total_timesteps=800", "--model.context_length=10", "--model.sliding_window=5"),
            *("--training.batch_size=2", "--family.num_test_tasks=91"),
        ),
    },
}
CPU_PATIENCE = 5  # by which time limits are multiplied on a CPU


def make_plan(arguments: argparse.Namespace, work: Path) -> Plan:
    """What the command line asks for."""
    settings = REHEARSAL if arguments.rehearse else ON_CPU if arguments.device == "cpu" else {"device": "cuda"}
    return Plan(work, **settings)


def play(part: str, plan: Plan) -> int:
    """Run a part in this process; returns its exit status."""
    verdicts = []
    try:
        for figures in PARTS[part][0](plan):
            verdicts.append(figures["passed"])
            print_line(part, **figures)
    except Exception as error:
        traceback.print_exc()
        verdicts.append(False)
        print_line(part, error=f"{type(error).__name__}: {error}".splitlines()[0], **passed(False))
    return 0 if all(verdicts) else 1


def run(part: str, plan: Plan, limit: float) -> list[dict[str, Any]]:
    """Run a part in a process of its own, for so many seconds at most; prints and returns its lines."""
    command = [sys.executable, *sys.argv, "--only", part, "--work", str(plan.work)]
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if plan.device == "cpu" else {})}
    error = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            printed = process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:.0f} seconds"
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            printed = process.communicate()[0]
    texts = [text for text in printed.splitlines() if text.startswith('{"part": ')]
    lines = [json.loads(text) for text in texts]
    for text in texts:
        print(text, flush=True)
    if error is None and process.returncode and all(line["passed"] for line in lines):
        error = f"its process ended with {process.returncode}"
    if error is not None:
        lines.append({"part": part, "error": error, **passed(False)})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="do all in miniature, on the CPU")
    parser.add_argument("--output_dir", metavar="FOLDER", help="write gpu.json there")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the part of this process
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the parts one after another; the exit status."""
    parser = make_parser()
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    if arguments.only:
        return play(arguments.only, make_plan(arguments, arguments.work))
    on_gpu = arguments.device == "cuda" and not arguments.rehearse
    if on_gpu and not torch.cuda.is_available():
        parser.exit(1, "torch finds no GPU here; --rehearse runs all parts in miniature on the CPU\n")
    output_dir = None if arguments.output_dir is None else writable_folder(arguments.output_dir)
    with tempfile.TemporaryDirectory() as work:
        plan = make_plan(arguments, Path(work))
        lines, spare = [], 0.0
        for part in arguments.parts or PARTS:
            limit = spare + PARTS[part][1] * (CPU_PATIENCE if plan.device == "cpu" else 1)
            start = time.monotonic()
            lines += run(part, plan, limit)
            spare = max(0.0, limit - (time.monotonic() - start))
    if output_dir is not None:
        about = {
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
            "rehearsal": arguments.rehearse,
            "torch": torch.__version__,
            "ad_hf": version("ad_hf"),
        }
        write_text(output_dir / "gpu.json", json.dumps({**about, "parts": lines}, indent=2) + "\n")
    return 0 if all(line["passed"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
