"""
What kinds of layers cost by the length of their memory: training, rollouts, and what a context holds.

    python scripts/benchmarks/memory.py --output_dir docs/results/studies

One JSON line per figure, and with `--output_dir` memory_cost.json and memory_cost.png. Models differ in their layers
alone, and take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ad_hf.collection.processes import available_cores
from ad_hf.evaluation.style import AD_COLOUR, GREY, INK, SOURCE_COLOUR, clean, new_figure, save, write_numbers
from ad_hf.model.configuration_ad import LINEAR, SLIDING, ADConfig
from ad_hf.model.context_ad import ADContext
from ad_hf.model.modeling_ad import ADModel
from ad_hf.progress import ProgressBar
from ad_hf.storage.files import write_text
from ad_hf.training.machine import choose_precision

SPACES: dict[str, Any] = {
    "observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]},
    "action_space": {"type": "Discrete", "n": 5},
}
LENGTHS = (200, 400, 1000, 2000, 4000)
TOKENS = 6400  # of a batch, but for windows that are longer
EPISODE = 20


def make_model(kind: str, length: int) -> ADModel:
    """The default model with layers of a kind, for contexts of so many steps."""
    settings: Any = {
        "full": {"sliding_window": None},
        "sliding": {"sliding_window": length // 4},
        "linear": {"layer_types": [LINEAR] * 4},
        "mixed": {"layer_types": [LINEAR, SLIDING] * 2, "sliding_window": 50},
    }[kind]
    torch.manual_seed(0)
    return ADModel(ADConfig(**SPACES, context_length=length, **settings))


KINDS = ("full", "sliding", "linear", "mixed")


def random_steps(batch: int, time_: int) -> dict[str, torch.Tensor]:
    """Inputs of a model and labels, random ones."""
    return {
        "observations": torch.randint(9, (batch, time_, 2)),
        "previous_actions": torch.randint(5, (batch, time_)),
        "previous_rewards": torch.rand(batch, time_),
        "episode_starts": torch.randint(2, (batch, time_)).bool(),
        "labels": torch.randint(5, (batch, time_)),
    }


def training_rates(length: int, repeats: int, precision: str) -> dict[str, float]:
    """Tokens per second of forward and backward passes, by kind of layers."""
    batch = random_steps(max(1, TOKENS // length), length)
    models = {kind: make_model(kind, length).train() for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):
        for kind, model in models.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()
            if repeat:  # the first one allocates
                seconds[kind].append(time.perf_counter() - start)
    return {kind: batch["labels"].numel() / statistics.median(times) for kind, times in seconds.items()}


class Steps:
    """Steps of a context in a random world, whose cost is the model's alone."""

    def __init__(self, kind: str, length: int, num_envs: int) -> None:
        self.rng, self.num_envs, self.count = np.random.default_rng(0), num_envs, 0
        self.context: ADContext = make_model(kind, length).eval().init_context(num_envs)

    def fill(self, steps: int) -> None:
        """Let all contexts begin with a history of so many steps."""
        self.context.prompt(
            {
                "observations": self.rng.integers(9, size=(steps, 2)),
                "actions": self.rng.integers(5, size=steps),
                "rewards": self.rng.random(steps),
                "episode_starts": np.arange(steps) % EPISODE == 0,
            }
        )

    def take(self) -> float:
        """Seconds of a step."""
        observations, rewards = self.rng.integers(9, size=(self.num_envs, 2)), self.rng.random(self.num_envs)
        starts = np.full(self.num_envs, self.count % EPISODE == 0)
        self.count += 1
        start = time.perf_counter()
        self.context.act(observations, rewards, starts)
        return time.perf_counter() - start

    def kilobytes(self) -> float:
        """What an environment's context holds, beside what does not depend on the model."""
        held = [part for name, part in self.context.state_dict().items() if name == "tokens" or "cache" in name]
        return sum(part.numel() * part.element_size() for part in held) / self.num_envs / 1000


def rollout_rates(length: int, num_envs: int, steps: int) -> dict[str, dict[str, float]]:
    """Steps per second of all environments with a context that has been full, and what it holds, by kind of layers."""
    figures = {}
    for kind in KINDS:
        run = Steps(kind, length, num_envs)
        run.fill(length)
        again = 0.0
        if kind == "full":  # the first step forgets a quarter and encodes the rest, as every (length / 4)th one does
            again = run.take() / run.context.dropped
        seconds = statistics.median(run.take() for _ in range(steps))
        figures[kind] = {"steps_per_second": num_envs / (seconds + again), "kilobytes": run.kilobytes()}
    return figures


def late_steps(num_envs: int, steps: int) -> dict[str, dict[str, float]]:
    """
    Steps per second from step 100 on and at the end, and what a context holds then and in the end, of models that
    never forget at once: they take turns, a hundred steps at a time.
    """
    runs = {kind: Steps(kind, 200, num_envs) for kind in ("sliding", "linear", "mixed")}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    held: dict[str, float] = {}
    with ProgressBar("steps", steps, unit="steps") as bar:
        for _ in range(0, steps, 100):
            for kind, run in runs.items():
                seconds[kind] += [run.take() for _ in range(100)]
                held.setdefault(kind, run.kilobytes())
            bar.update(100)
    figures = {}
    for kind, times in seconds.items():
        early, late = statistics.median(times[100:600]), statistics.median(times[-500:])
        figures[kind] = {
            "steps_per_second_at_step_100": num_envs / early,
            "steps_per_second_at_the_end": num_envs / late,
            "cost_of_a_step_late_to_early": late / early,
            "kilobytes": held[kind],
            "kilobytes_late_to_early": runs[kind].kilobytes() / held[kind],
        }
    return figures


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Costs by the length of the memory, a panel for each."""
    figure = new_figure(10.5, 4.2, "models of four layers and a width of 128, on CPUs; two logarithmic scales")
    panels = {
        "training": "training, tokens/s",
        "steps_per_second": "rollout, steps/s",
        "kilobytes": "a context, kB",
    }
    lengths = list(figures["training"])
    for place, (name, title) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, 3, place)
        for kind, colour in zip(KINDS, (GREY, AD_COLOUR, SOURCE_COLOUR, INK)):
            values = [
                figures["training"][length][kind] if name == "training" else figures["rollout"][length][kind][name]
                for length in lengths
            ]
            axes.plot(
                list(map(int, lengths)),
                values,
                "o-",
                color=colour,
                label=f"{kind} attention" if kind != "mixed" else kind,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("steps of memory")
        axes.set_xticks(list(map(int, lengths)), [f"{int(length):,}" for length in lengths])
        axes.minorticks_off()
        write_numbers(axes.yaxis, log=True)
        clean(axes, title, beside="layers" if place == len(panels) else None)
    save(figure, path)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="steps of memory (default: %(default)s)"
    )
    parser.add_argument(
        "--num_envs", type=int, default=256, help="environments of long rollouts (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="steps of long rollouts (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of training (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="threads of torch (default: all cores)")
    parser.add_argument("--output_dir", type=Path, help="where memory_cost.json and memory_cost.png go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precision, _ = choose_precision(torch.device("cpu"))
    figures: dict[str, Any] = {"threads": arguments.threads, "precision": precision, "training": {}, "rollout": {}}
    for length in arguments.lengths:
        figures["training"][str(length)] = training_rates(length, arguments.repeats, precision)
        print(json.dumps({"part": "training", "length": length, **figures["training"][str(length)]}), flush=True)
        figures["rollout"][str(length)] = rollout_rates(length, num_envs=16, steps=40)
        print(json.dumps({"part": "rollout", "length": length, **figures["rollout"][str(length)]}), flush=True)
    figures["late"] = late_steps(arguments.num_envs, arguments.steps)
    print(json.dumps({"part": "late", "environments": arguments.num_envs, **figures["late"]}))
    if arguments.output_dir is not None:
        write_text(arguments.output_dir / "memory_cost.json", json.dumps(figures, indent=2) + "\n")
        plot(arguments.output_dir / "memory_cost.png", figures)


if __name__ == "__main__":
    main()
