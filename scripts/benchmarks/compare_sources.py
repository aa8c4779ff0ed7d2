"""
Which source gives the best histories for its time: A2C, PPO, DQN and tabular Q-learning on the same tasks.

    python scripts/benchmarks/compare_sources.py
    python scripts/benchmarks/compare_sources.py --num_tasks 8 --output_dir runs/compare

One thread learns a few training tasks of Dark Room Hard and of Dark Key-to-Door by each source, whose settings are
below, and prints a JSON line for each source and world. `compare_sources.json` holds them, with the curves that
`compare_sources.png` shows; what is in it already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.headlines import SHARES, Gain
from ad_hf.evaluation.rollouts import play_at_random
from ad_hf.evaluation.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    TEXT,
    VERMILLION,
    clean,
    new_figure,
    save,
    write_numbers,
)
from ad_hf.sources.learners import learns_side_by_side, make_learner
from ad_hf.sources.recorder import HistoryRecorder, RecordedSteps
from ad_hf.storage.files import atomic_path, write_text

WORLDS = {"Dark Room Hard": "dark_room_hard", "Dark Key-to-Door": "dark_key_to_door"}
NETWORK = {"policy_kwargs": {"net_arch": [64]}, "gamma": 0.95}
# Streams, transitions of a task in each world, and hyper-parameters.
SOURCES: dict[str, tuple[int, dict[str, int], dict[str, Any]]] = {
    "A2C": (
        100,
        {"Dark Room Hard": 300_000, "Dark Key-to-Door": 300_000},
        {**NETWORK, "n_steps": 20, "learning_rate": 3e-3, "ent_coef": 0.01},
    ),
    "PPO": (
        100,
        {"Dark Room Hard": 300_000, "Dark Key-to-Door": 300_000},
        {**NETWORK, "n_steps": 20, "learning_rate": 3e-3, "ent_coef": 0.01, "batch_size": 500, "n_epochs": 4},
    ),
    "DQN": (
        20,
        {"Dark Room Hard": 100_000, "Dark Key-to-Door": 100_000},
        {
            **NETWORK,
            **{"learning_rate": 1e-3, "batch_size": 256, "gradient_steps": 1, "train_freq": 1},
            **{"exploration_fraction": 0.4, "exploration_final_eps": 0.02, "learning_starts": 1000},
            **{"buffer_size": 100_000, "target_update_interval": 500},
        },
    ),
    "TabularQ": (
        20,
        {"Dark Room Hard": 400_000, "Dark Key-to-Door": 150_000},
        {"learning_rate": 1.0, "gamma": 0.95},
    ),
    "TabularQ, shared": (
        20,
        {"Dark Room Hard": 40_000, "Dark Key-to-Door": 40_000},
        {"learning_rate": 1.0, "gamma": 0.95, "shared": True},
    ),
}
COLOURS = {"A2C": BLUE, "PPO": ORANGE, "DQN": PURPLE, "TabularQ": VERMILLION, "TabularQ, shared": GREEN}
CONVERGED = 0.9  # of the best possible return
POINTS = 100  # of a curve


def learn(family: TaskFamily, source: str, world: str, tasks: list[Task]) -> tuple[RecordedSteps, np.ndarray]:
    """What the streams of some tasks lived through, and the process's seconds (steps,) when each step was done."""
    n_envs, timesteps, hyperparameters = SOURCES[source]
    algorithm, _, _ = source.partition(",")
    seconds: list[float] = []
    recorder = HistoryRecorder(
        family.make_vec(tasks, num_envs=n_envs * len(tasks)),
        timesteps[world] // n_envs,
        lambda _: seconds.append(time.process_time()),
    )
    seen = SourceObservation(recorder, family.source_observation or {})
    envs = SB3VecEnv(seen, [task.task_id for task in tasks] * n_envs)
    learner = make_learner(algorithm, envs, tasks[0].task_id, hyperparameters)
    start = time.process_time()
    learner.learn(timesteps[world] * len(tasks))
    return recorder.recorded(), np.array(seconds) - start


def episode_returns(recorded: RecordedSteps) -> tuple[np.ndarray, int]:
    """Returns (streams, episodes) of episodes that all last equally long, whole ones only, and how long."""
    length = int(np.flatnonzero(recorded.truncations[0])[0]) + 1
    episodes = recorded.rewards.shape[1] // length
    return recorded.rewards[:, : episodes * length].reshape(-1, episodes, length).sum(axis=2), length


def smooth(curve: np.ndarray) -> np.ndarray:
    """Trailing averages over a twentieth of a curve (episodes,), or what there is of that at its start."""
    width = max(1, len(curve) // 20)
    totals = np.concatenate([[0.0], np.cumsum(curve)])
    ends = np.arange(1, len(curve) + 1)
    starts = np.maximum(ends - width, 0)
    return (totals[ends] - totals[starts]) / (ends - starts)


def seconds_to_shares(
    family: TaskFamily, tasks: list[Task], curve: np.ndarray, clock: np.ndarray
) -> dict[str, float | None]:
    """Seconds (of a clock's (points,)) until a curve is at 50% and 90% of the optimum's gain over random play."""
    played, optimal = play_at_random(family, tasks, num_episodes=100), family.optimal_returns(tasks)
    assert played is not None
    gain = Gain.of_optimum(optimal, played.returns.mean(axis=(0, 2)))
    assert gain.of is not None
    reached = {f"{share:.0%}": np.flatnonzero(curve >= gain.level(share)) for share in SHARES}
    return {name: float(clock[found[0]]) if found.size else None for name, found in reached.items()}


def compare(family: TaskFamily, source: str, world: str, tasks: list[Task]) -> dict[str, Any]:
    """How a source learns some tasks: figures, and its curve."""
    n_envs = SOURCES[source][0]
    groups = [tasks] if learns_side_by_side(source.partition(",")[0]) else [[task] for task in tasks]
    curves, clocks = [], []  # of each task: mean return by episode, and the seconds spent on it until its end
    for group in groups:
        recorded, seconds = learn(family, source, world, group)
        returns, length = episode_returns(recorded)
        for index in range(len(group)):
            curves.append(smooth(returns[index :: len(group)].mean(axis=0)))
            clocks.append(seconds[length - 1 :: length][: returns.shape[1]] / len(group))
    curve, clock = np.mean(curves, axis=0), np.mean(clocks, axis=0)
    optimal = family.optimal_returns(tasks)
    assert optimal is not None
    finals = np.array([task_curve[-1] for task_curve in curves])
    converged = finals >= CONVERGED * optimal
    first = [
        int(np.flatnonzero(task_curve >= CONVERGED * best)[0])
        for task_curve, best in zip(curves, optimal)
        if (task_curve >= CONVERGED * best).any()
    ]
    chosen = np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))
    steps = length * len(curve)
    return {
        "source": source,
        "world": world,
        "transitions_per_second": n_envs * steps / clock[-1],
        "seconds_to_shares_of_the_optimum": seconds_to_shares(family, tasks, curve, clock),
        "final_return": float(finals.mean()),
        "optimal_return": float(optimal.mean()),
        "share_of_tasks_converged": float(converged.mean()),
        "histories_per_second": n_envs / clock[-1],
        "env_steps_of_a_stream_until_converged": length * (float(np.mean(first)) + 1) if first else None,
        "seconds_per_task": float(clock[-1]),
        "streams": n_envs,
        "env_steps_of_a_stream": steps,
        "tasks": [task.task_id for task in tasks],
        "hyperparameters": SOURCES[source][2],
        "curve": {"seconds": clock[chosen].round(4).tolist(), "return": curve[chosen].round(4).tolist()},
    }


def plot(path: Path, results: list[dict[str, Any]]) -> None:
    """Return against the seconds that a task costs, one panel for each world."""
    figure = new_figure(9.6, 4.4)
    panels = figure.subplots(1, len(WORLDS))
    for axes, world in zip(panels, WORLDS):
        found = [result for result in results if result["world"] == world]
        for result in found:
            source, curve = result["source"], result["curve"]
            label = f"{source}, {result['streams']} histories"
            axes.plot(curve["seconds"], curve["return"], color=COLOURS[source], linewidth=2, label=label)
        if found:
            axes.axhline(found[0]["optimal_return"], color=GREY, linestyle="--", linewidth=1.2, label="best possible")
        axes.set(xscale="log", xlabel="seconds of one core for a task", ylabel="return of an episode")
        axes.set_ylim(bottom=0)
        write_numbers(axes.xaxis, log=True)
        write_numbers(axes.yaxis)
        clean(axes, world, width=36)
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=TEXT, frameon=False)
    with atomic_path(path) as temporary:
        save(figure, temporary)


def main() -> None:
    """Parse the command line, run what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_tasks", type=int, default=4, help="tasks of each world (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("docs"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    file = arguments.output_dir / "compare_sources.json"
    results = json.loads(file.read_text()) if file.is_file() else []
    for world, recipe in WORLDS.items():
        family = TaskFamily.from_recipe(recipe)
        candidates = family.tasks("train")
        tasks = [candidates[index] for index in np.linspace(0, len(candidates) - 1, arguments.num_tasks).astype(int)]
        for source in SOURCES:
            same = {"source": source, "world": world, "tasks": [task.task_id for task in tasks]}
            if not any(same.items() <= result.items() for result in results):
                results.append(compare(family, source, world, tasks))
            (result,) = [result for result in results if same.items() <= result.items()]
            if (
                result.pop("seconds_to_90_percent_of_its_best", None) is not None
            ):  # which says nothing of what is learnt
                points = (np.array(result["curve"][name]) for name in ("return", "seconds"))
                result["seconds_to_shares_of_the_optimum"] = seconds_to_shares(family, tasks, *points)
            write_text(file, json.dumps(results, indent=1) + "\n")
            print(json.dumps({name: value for name, value in result.items() if name != "curve"}), flush=True)
    plot(arguments.output_dir / "compare_sources.png", results)


if __name__ == "__main__":
    main()
