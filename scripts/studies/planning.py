"""
Planning in the context: AD against models with dynamics heads, which act as they are, or plan.

    python scripts/studies/planning.py --work_dir WORK --worlds frozen_lake one_stream

In each world, AD and the models with heads are trained on the same histories, in the same updates. Returns are on test
tasks. What planning is set to comes from trials of one model of a world on its validation tasks; `--sweep` plays these
with other settings. Histories, models and rollouts are kept in the folder, and what is done is not done again. Writes
`planning.json` and `planning.png` into `--output_dir`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.curves import bootstrap_means, interval
from ad_hf.evaluation.rollouts import evaluate
from ad_hf.evaluation.style import BLUE, GREEN, GREY, SKY, VERMILLION, clean, new_figure, save
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.pipeline import collect_recipe, train
from ad_hf.recipe import load_recipe
from ad_hf.storage.files import atomic_path, write_text

HEADS = ("--model.dynamics_weight", "0.1")
AGENTS = {
    **{"AD": GREY, "heads, no planning": BLUE, "beam search": VERMILLION, "policy iteration": GREEN},
    "beam search, shuffled heads": SKY,
}
# Beams, horizon and weight.
SWEEP = [(8, 1, 4.0), (8, 2, 4.0), (8, 4, 4.0), (4, 2, 4.0), (16, 2, 4.0), (8, 2, 1.0), (8, 2, 0.3)]


@dataclass
class World:
    """
    What is trained and played.

    Args:
        title (`str`), recipe (`str`), overrides (`list[str]`):
            Its name in words, and its recipe with what differs.
        rollouts (`int`), episodes (`int`):
            Of each model and test task.
        planning (`dict`):
            Settings of a rollout that plans.
    """

    title: str
    recipe: str
    rollouts: int
    episodes: int
    planning: dict[str, Any]
    overrides: list[str] = field(default_factory=list)


ONE_STREAM = ["--source.n_envs", "1", "--data.keep_every_episode", "1", "--training.max_steps", "1200"]
WORLDS = {
    "dark_room": World(
        "Dark Room", "dark_room", 5, 100, {"num_beams": 8, "planning_horizon": 1, "planning_weight": 0.3}
    ),
    "frozen_lake": World("FrozenLake", "frozen_lake", 3, 100, {"num_beams": 8}),
    "one_stream": World("Key-to-Door, one stream", "dark_key_to_door", 1, 20, {"num_beams": 8}, ONE_STREAM),
    "dark_key_to_door": World("Key-to-Door", "dark_key_to_door", 1, 20, {"num_beams": 8}),
}


def find_model(folder: Path, world: World, seed: int, has_heads: bool) -> ADModel:
    """The model of a seed, trained now unless it is there."""
    name = f"{'heads' if has_heads else 'ad'}-{seed}"
    if not (folder / name / "done").is_file():
        histories, seeded = folder / "histories", ("--training.seed", str(seed))
        if not (histories / "README.md").is_file():
            collect_recipe(load_recipe(world.recipe, world.overrides), histories)
        overrides = [*world.overrides, *seeded, *(HEADS if has_heads else ())]
        train(world.recipe, histories, folder / name, overrides=overrides, overwrite=True)
        (folder / name / "done").touch()
    return ADModel.from_pretrained(folder / name / "model").eval()


@torch.no_grad()
def shuffle_heads(model: Any) -> None:
    """Let the heads say something arbitrary of the same size: a control."""
    for layer in (model.dynamics.transition, model.dynamics.outcome):
        order = torch.randperm(layer.outputs.in_features, generator=torch.Generator().manual_seed(0))
        layer.outputs.weight.copy_(layer.outputs.weight[:, order])


def play(
    path: Path,
    model: ADModel | None,
    family: TaskFamily,
    split: str,
    numbers: tuple[int, int],
    settings: Mapping[str, Any],
) -> tuple[np.ndarray, float]:
    """
    Returns (rollouts, tasks, episodes) of so many rollouts and episodes with some settings, and milliseconds of a CPU
    core per step. They are kept in a file, which is read if it is there; otherwise a model is needed.
    """
    if not path.is_file():
        assert model is not None
        start, (rollouts, episodes) = time.process_time(), numbers
        evaluation = evaluate(
            model, family, split, episodes, rollouts, seed=0, rollout_config=RolloutConfig(**settings)
        )
        cost = 1000 * (time.process_time() - start) / evaluation.lengths.sum()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, returns=evaluation.returns, milliseconds=cost)
    with np.load(path) as found:
        return found["returns"], float(found["milliseconds"])


def agents_of(world: World) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Whether each agent has heads, and the settings of its rollouts."""
    iteration = {**world.planning, "planner": "policy_iteration"}
    settings: list[dict[str, Any]] = [{}, {}, world.planning, iteration, world.planning]
    return {name: (name != "AD", each) for name, each in zip(AGENTS, settings)}


def compare(folder: Path, world: World, seeds: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Returns of some agents on the test tasks, and what planning adds: differences on the same tasks."""
    family, curves = TaskFamily.from_recipe(world.recipe), {}
    agents: dict[str, dict[str, Any]] = {}
    for name in names:
        has_heads, settings = agents_of(world)[name]
        played = []
        for seed in seeds:
            path = folder / "returns" / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}.npz"
            model = None if path.is_file() else find_model(folder, world, seed, has_heads)
            if model is not None and "shuffled" in name:
                shuffle_heads(model)
            played.append(play(path, model, family, "test", (world.rollouts, world.episodes), settings))
        curves[name] = np.stack([returns for returns, _ in played])  # (seeds, rollouts, tasks, episodes)
        cost = float(np.median([milliseconds for _, milliseconds in played]))
        agents[name] = {"settings": settings, "milliseconds_per_step": round(cost, 3)}
        for part, span in (("all episodes", slice(None)), ("last ten episodes", slice(-10, None))):
            values = {each: returns[..., span].mean(-1) for each, returns in curves.items()}
            agents[name][part] = of_values(values[name])
            for other in [each for each in list(AGENTS)[:2] if each in values and each != name]:
                agents[name][part][f"minus {other}"] = of_values(values[name] - values[other])
        agents[name]["curve"] = [round(float(value), 4) for value in curves[name].mean((0, 1, 2))]
    optimum = family.optimal_returns(family.tasks("test"))
    return {
        **{"title": world.title, "training_seeds": list(seeds), "tasks": len(family.tasks("test"))},
        **{"rollouts": world.rollouts, "episodes": world.episodes},
        **{"optimum": None if optimum is None else float(np.mean(optimum)), "agents": agents},
    }


def of_values(values: np.ndarray) -> dict[str, Any]:
    """The mean of values (seeds, rollouts, tasks), and its 95% interval over trainings, tasks and rollouts."""
    return {"mean": float(values.mean()), "interval": [float(bound) for bound in interval(bootstrap_means([values]))]}


def sweep(folder: Path, world: World) -> list[dict[str, Any]]:
    """Returns on validation tasks of the first model, by what planning is set to."""
    family, model, rows = TaskFamily.from_recipe(world.recipe), find_model(folder, world, 0, True), []
    planned = [(planner, *each) for planner in ("beam_search", "policy_iteration") for each in SWEEP]
    for planner, beams, horizon, weight in [("beam_search", 1, 1, 0.0), *planned]:
        settings = {"planner": planner, "num_beams": beams, "planning_horizon": horizon, "planning_weight": weight}
        path = folder / "sweep" / f"{planner}-{beams}-{horizon}-{weight}.npz"
        values, cost = play(path, model, family, "validation", (world.rollouts, world.episodes // 2), settings)
        numbers = {"all episodes": values.mean(), "last ten episodes": values[..., -10:].mean()}
        rows.append({**settings, **{name: round(float(each), 4) for name, each in numbers.items()}})
        rows[-1]["milliseconds_per_step"] = round(cost, 3)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The mean return of each episode, of all agents in all worlds."""
    figure, last = new_figure(3.4 * len(results) + 2.4, 3.4), list(results.values())[-1]
    for axes, result in zip(np.ravel(figure.subplots(1, len(results))), results.values()):
        for name, colour in AGENTS.items():
            curve = result["agents"].get(name, {"curve": []})["curve"]
            axes.plot(range(1, len(curve) + 1), curve, color=colour, label=name, linewidth=1.4)
        if result["optimum"] is not None:
            axes.axhline(result["optimum"], color=GREY, linewidth=0.8, linestyle=":", label="optimum")
        axes.set(xlabel="episode in the context", ylabel="return on test tasks", ylim=(0, None))
        clean(axes, result["title"], width=36, beside="agent" if result is last else None)
    save(figure, path)


def main() -> None:
    """Train, play, compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results/studies"))
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sweep", action="store_true", help="play on validation tasks with other settings, too")
    arguments = parser.parse_args()
    path = arguments.output_dir / "planning.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in arguments.worlds:
        folder, world, known = arguments.work_dir / name, WORLDS[name], results.get(name, {})
        if arguments.sweep:
            known = {**known, "sweep on validation tasks": sweep(folder, world)}
        results[name] = {**known, **compare(folder, world, arguments.seeds, arguments.agents)}
        write_text(path, json.dumps(results, indent=1) + "\n")
    draw({name: results[name] for name in WORLDS if name in results}, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
