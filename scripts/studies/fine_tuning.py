"""
What a model of other worlds is worth to a training on a world that it has not seen: fine-tuned and from nothing, after
equal numbers of updates, on unseen tasks.

    python scripts/studies/fine_tuning.py BASE --recipe cartpole --dataset HISTORIES --reach 300 --updates 100 \\
        --runs runs/fine_tuning --output_dir docs/results/generalist

BASE is a training of a mixture without that world. Both starts have its decoder, context and windows, and the other
settings of the recipe. Trainings from nothing of `--reach` updates say what is to be reached. Trainings that are
finished are not run again, and those that were killed go on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.curves import bootstrap_means, interval
from ad_hf.evaluation.headlines import final_points
from ad_hf.evaluation.rollouts import evaluate
from ad_hf.hub.models import load_model
from ad_hf.recipe import load_recipe
from ad_hf.storage.files import write_text

STARTS = ("nothing", "generalist")
OF_THE_BASE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "context_length")
ROLLOUTS = 2


def train(start: str, updates: int, seed: int, arguments: argparse.Namespace) -> ad_hf.ADModel:
    """The model after so many updates from a start; trained now, if it was not before."""
    folder = arguments.runs / arguments.recipe / f"{start}-{updates}-{seed}"
    if not (folder / "verdict.json").is_file():
        config = load_model(arguments.base)[0].config
        settings = {f"model.{name}": getattr(config, name) for name in OF_THE_BASE}
        settings["model.sliding_window"] = "null" if config.sliding_window is None else config.sliding_window
        settings |= {"training.seed": seed, "training.max_steps": updates, "training.eval_steps": updates}
        settings["training.save_steps"] = updates
        if start == "generalist":
            settings |= {"training.init_from": arguments.base, **dict(each.split("=", 1) for each in arguments.set)}
        overrides = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        ad_hf.train(arguments.recipe, arguments.dataset, folder, overrides=overrides, resume="latest")
    return load_model(folder)[0]


def measure(returns: np.ndarray) -> dict[str, Any]:
    """Mean of the first episode and of the last ones, of returns (trainings, rollouts, tasks, episodes)."""
    last = returns[..., final_points(returns.shape[3])].mean(axis=3)
    return {
        "return_first": float(returns[..., 0].mean()),
        "return_last": float(last.mean()),
        "return_interval": [float(bound) for bound in interval(bootstrap_means([last]))],
        "by_training": [float(value) for value in last.mean(axis=(1, 2))],
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns on a split by start and number of updates."""
    recipe = load_recipe(arguments.recipe)
    family, rows = TaskFamily(recipe.family), {}
    settings = arguments.split, recipe.rollout.num_episodes, ROLLOUTS
    kinds = [("nothing", updates) for updates in arguments.reach]
    kinds += [(start, updates) for updates in arguments.updates for start in STARTS]
    for start, updates in kinds:
        models = (train(start, updates, seed, arguments) for seed in range(arguments.seeds))
        played = [
            evaluate(model, family, *settings, seed, recipe.rollout).returns for seed, model in enumerate(models)
        ]
        rows[f"{start}, {updates} updates"] = row = measure(np.stack(played))
        low, high = row["return_interval"]
        print(f"{start:10} {updates:5} updates: {row['return_last']:.3f} ({low:.3f} to {high:.3f})", flush=True)
    return {"recipe": arguments.recipe, "num_trainings": arguments.seeds, "num_rollouts": ROLLOUTS, "rows": rows}


def main() -> None:
    """Train, measure, print and write `fine_tuning_RECIPE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a training of a mixture without the world")
    parser.add_argument("--recipe", required=True, help="that of the world")
    parser.add_argument("--dataset", required=True, help="histories of the world")
    parser.add_argument("--reach", type=int, nargs="*", default=[], help="updates of trainings from nothing")
    parser.add_argument("--updates", type=int, nargs="+", required=True, help="those of both starts")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of fine-tuning")
    parser.add_argument("--runs", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results/generalist"))
    arguments = parser.parse_args()
    found = compare(arguments)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output_dir / f"fine_tuning_{arguments.recipe}.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
