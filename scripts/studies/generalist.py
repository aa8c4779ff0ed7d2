"""
How a generalist learns worlds of spaces that it knows and that were no part of its training: Dark Room with shuffled
actions, with slipping, with walls, with two goals and with a goal that moves, and Dark Key-to-Door with two keys.

    python scripts/studies/generalist.py RUN [RUN ...] --output_dir docs/results/generalist

Each RUN is a training of the same mixture with another seed. Its recipes include dark_room and dark_key_to_door.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.headlines import final_points, learning_of
from ad_hf.hub.models import load_model
from ad_hf.recipe import load_recipe
from ad_hf.storage.files import write_text
from studies.unseen_worlds import MOVED_AFTER, ROOMS, WALLS, TwoKeys

EPISODES, ROLLOUTS = 100, 3


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


def measure(models: list[ad_hf.ADModel]) -> dict[str, Any]:
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
        }
        if until < EPISODES:
            found[name] |= {
                "return_just_after": float(curve[until : until + 3].mean()),
                "return_long_after": float(curve[final_points(EPISODES)].mean()),
                "after": learning_of([returns[..., until:].reshape(len(models), ROLLOUTS, -1, EPISODES - until)]),
            }
    return found


def main() -> None:
    """Measure, print and write `unseen.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="trainings of a mixture")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results/generalist"))
    arguments = parser.parse_args()
    found = measure([load_model(run)[0] for run in arguments.runs])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output_dir / "unseen.json", json.dumps(found, indent=2) + "\n")
    for name, row in found.items():
        print(
            f"{name:20} random {row['random']:.2f} first {row['return_first']:.2f} last {row['return_last']:.2f} "
            f"{row['verdict']}: {row['difference']:.2f} {row['interval']}"
        )


if __name__ == "__main__":
    main()
