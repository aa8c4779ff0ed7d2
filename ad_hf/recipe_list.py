"""What the packaged recipes are: environments, tasks, sources, sizes, and how long they took."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from ad_hf.envs.recipes import recipe_names
from ad_hf.envs.task_family import SPLITS, TaskFamily
from ad_hf.recipe import load_recipe

COLUMNS = ("recipe", "environment", "tasks", "source", "steps", "data", "model", "collect", "train", "on")


def measured() -> dict[str, dict[str, Any]]:
    """What was measured when the recipes were run, by recipe: seconds of each part, megabytes, and on what machine."""
    return json.loads((files("ad_hf.recipes") / "measured.json").read_text(encoding="utf-8"))


def minutes(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def describe(name: str) -> dict[str, str]:
    """A recipe in a few words, by the names of [`COLUMNS`]."""
    recipe, found = load_recipe(name), measured().get(name, {})
    family, source = TaskFamily(recipe.family), recipe.source
    tasks = [len(family.tasks(split)) for split in SPLITS]
    steps = sum(tasks) * len(source.seeds) * source.total_timesteps
    megabytes = found.get("megabytes")
    return {
        "recipe": name,
        "environment": family.env_id,
        "tasks": " + ".join(f"{count:,}" for count in tasks),
        "source": f"{source.algorithm} x {source.n_envs}",
        "steps": f"{steps / 1e6:.1f} M",
        "data": "-" if megabytes is None else f"{megabytes:.1f} MB",
        "model": f"{recipe.model.num_hidden_layers} x {recipe.model.hidden_size}, {recipe.model.context_length} steps",
        "collect": minutes(found.get("collect_seconds")),
        "train": minutes(found.get("train_seconds")),
        "on": found.get("machine", "-"),
    }


def recipe_table() -> str:
    """All packaged recipes as a table of text, one line each."""
    lines = [dict(zip(COLUMNS, COLUMNS)), *(describe(name) for name in recipe_names())]
    widths = {column: max(len(line[column]) for line in lines) for column in COLUMNS}
    table = "\n".join("  ".join(line[column].ljust(widths[column]) for column in COLUMNS).rstrip() for line in lines)
    return (
        f"{table}\n\ntasks: train + validation + test. steps: of all sources. model: layers x width, context. "
        "collect, train: measured on those cores."
    )
