"""
How a generalist compares with the specialists of its families on unseen tasks, and how it learns worlds of spaces that
it knows and that were no part of its training: Dark Room with shuffled actions, with slipping, with walls, with two
goals and with a goal that moves, and Dark Key-to-Door with two keys.

    ad-hf evaluate --model RUN [RUN ...] --recipe FAMILY --output_dir EVALUATIONS/FAMILY  # for each family
    python scripts/generalist.py specialists EVALUATIONS/*
    python scripts/generalist.py unseen RUN [RUN ...]

Each RUN is a training of the same mixture with another seed. Its recipes include dark_room and dark_key_to_door. The
specialists are those of docs/results. Results go to docs/results/generalist.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from results import evaluation_of
from studies.unseen_worlds import MOVED_AFTER, ROOMS, WALLS, TwoKeys

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.curves import bootstrap_means, interval
from ad_hf.evaluation.headlines import final_points, learning_of
from ad_hf.evaluation.returns import RANDOM
from ad_hf.evaluation.style import AD_COLOUR, COLOURS, FADED, clean, new_figure, save
from ad_hf.evaluation.summary import last_of
from ad_hf.hub.models import load_model
from ad_hf.recipe import load_recipe
from ad_hf.storage.files import atomic_path, write_text

EPISODES, ROLLOUTS = 100, 3
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def rows_of(values: Any) -> np.ndarray:
    """Each value once for every rollout."""
    return np.repeat(np.array(values), ROLLOUTS, axis=0)


def worlds() -> dict[str, tuple[str, Any]]:
    """For each world, the group that acts in it, and its environments: the test tasks, each for some rollouts."""
    goals = [task.kwargs["goal"] for task in TaskFamily(load_recipe("dark_room").family).tasks("test")]
    free = [goal for goal in goals if tuple(goal) not in WALLS]
    doors = TaskFamily(load_recipe("dark_key_to_door").family).tasks("test")[:: 100 // 16]
    places = {name: rows_of([task.kwargs[name] for task in doors]) for name in ("key", "door")}
    made: dict[str, tuple[str, Any]] = {}
    for name, world in ROOMS.items():
        rows = rows_of(free if name == "walls" else goals)
        made[name] = "dark_room", world(len(rows), goal=rows)
    made["two keys"] = "dark_key_to_door", TwoKeys(len(places["key"]), **places)
    return made


def returns_of(model: ad_hf.ADModel | None, group: str, envs: Any, seed: int) -> np.ndarray:
    """Returns (num_rollouts, num_tasks, num_episodes), of a model or of random actions."""
    if model is not None:
        settings = load_recipe(group).rollout
        returns = model.group(group).rollout(envs, settings, num_episodes=EPISODES, seed=seed).episode_returns
    else:
        generator = np.random.default_rng(seed)
        envs.reset(seed=seed)
        returns = np.zeros((envs.num_envs, EPISODES))
        for step in range(EPISODES * envs.max_episode_steps):
            rewards = envs.step(generator.integers(5, size=envs.num_envs))[1]
            returns[:, step // envs.max_episode_steps] += rewards
    return np.asarray(returns).reshape(-1, ROLLOUTS, EPISODES).swapaxes(0, 1)


def unseen(models: list[ad_hf.ADModel]) -> dict[str, Any]:
    """For each world: returns of the first and the last episodes, the test of learning, and random play."""
    found: dict[str, Any] = {}
    for name in worlds():
        played = []
        for number, model in enumerate(models):
            group, envs = worlds()[name]
            played.append(returns_of(model, group, envs, seed=number))
        group, envs = worlds()[name]
        random = returns_of(None, group, envs, seed=0)
        returns = np.stack(played)  # (trainings, rollouts, tasks, episodes)
        until = MOVED_AFTER if name == "a goal that moves" else EPISODES
        curve = returns.mean(axis=(0, 1, 2))
        found[name] = {
            "group": group,
            "num_models": len(models),
            "num_tasks": returns.shape[2],
            "return_first": float(curve[0]),
            "return_last": float(curve[:until][final_points(until)].mean()),
            "random": float(random.mean()),
            **learning_of([returns[..., :until].reshape(len(models), ROLLOUTS, -1, until)], "episodes"),
            "curve": [round(float(value), 4) for value in curve],
            "band": np.round(interval(bootstrap_means([returns])), 4).tolist(),
        }
        if until < EPISODES:
            found[name] |= {
                "return_just_after": float(curve[until : until + 3].mean()),
                "return_long_after": float(curve[final_points(EPISODES)].mean()),
                "after": learning_of([returns[..., until:].reshape(len(models), ROLLOUTS, -1, EPISODES - until)]),
            }
    return found


def specialists(folders: list[Path]) -> dict[str, Any]:
    """For each family, what the generalist gains over random play, as a share of what its specialist gains."""
    found: dict[str, Any] = {}
    for folder in sorted(folders):
        agent = evaluation_of(folder, folder.name)["agents"]["AD"]
        other = evaluation_of(RESULTS / f"{folder.name}.json", folder.name)
        own, theirs = last_of(agent), last_of(other["agents"]["AD"])
        random, goal = other["random_return"], theirs["return"]
        low, high = own["return_interval"]
        found[folder.name] = {
            **{name: agent[name] for name in ("num_models", "num_rollouts", "num_tasks")},
            "return_last": own["return"],
            "return_interval": [low, high],
            "specialist": goal,
            "random": random,
            "share": (own["return"] - random) / (goal - random),
            "share_interval": [(bound - random) / (goal - random) for bound in (low, high)],
            "learns": agent["learns"],
        }
    return {"families": found, "mean_share": float(np.mean([row["share"] for row in found.values()]))}


def plot_unseen(path: Path, found: dict[str, Any]) -> None:
    """Draw the returns by episode in each unseen world, beside random play, as a PNG."""
    figure = new_figure(10, 5.6, "mean over trainings, rollouts and tasks; bands: 95% intervals")
    for axes, (name, row) in zip(figure.subplots(2, 3).flat, found.items(), strict=True):
        episodes = np.arange(1, len(row["curve"]) + 1)
        axes.plot(episodes, row["curve"], color=AD_COLOUR, label="generalist")
        axes.fill_between(episodes, *row["band"], color=AD_COLOUR, alpha=0.2, linewidth=0)
        axes.axhline(row["random"], color=COLOURS[RANDOM], linestyle="--", label="random actions")
        if "after" in row:
            axes.axvline(MOVED_AFTER + 0.5, color=FADED, linewidth=1, linestyle=":")
        axes.set(ylim=(0, None), xlabel="episode", ylabel="return")
        clean(axes, name.capitalize(), columns=2, width=30)
    with atomic_path(path) as file:
        save(figure, file)


def main() -> None:
    """Measure, print and write `specialists.json` or `unseen.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["specialists", "unseen"])
    parser.add_argument("paths", nargs="+", type=Path, help="evaluations of families, or trainings of a mixture")
    parser.add_argument("--output_dir", type=Path, default=RESULTS / "generalist")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if arguments.part == "specialists":
        found = specialists(arguments.paths)
        for name, row in found["families"].items():
            print(
                f"{name:20} {row['return_last']:8.3f} of {row['specialist']:8.3f}, random {row['random']:8.3f}: "
                f"{row['share']:.3f} ({row['share_interval'][0]:.3f} to {row['share_interval'][1]:.3f})"
            )
        print(f"mean {found['mean_share']:.3f}")
    else:
        found = unseen([load_model(run)[0] for run in arguments.paths])
        for name, row in found.items():
            print(
                f"{name:20} random {row['random']:.2f} first {row['return_first']:.2f} last {row['return_last']:.2f} "
                f"{row['verdict']}: {row['difference']:.2f} {row['interval']}"
            )
        plot_unseen(arguments.output_dir / "unseen.png", found)
    write_text(arguments.output_dir / f"{arguments.part}.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
