"""The packaged recipes in a table: environments, tasks, sources, sizes, and how long they took."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from ad_hf.envs.recipes import recipe_names
from ad_hf.envs.task_family import SPLITS, TaskFamily
from ad_hf.histories.schema import algorithm_name
from ad_hf.recipe import load_recipe

COLUMNS = ("recipe", "environment", "tasks", "source", "steps", "data", "model", "collect", "train", "on")


def measured() -> dict[str, dict[str, Any]]:
    """Measurements of recipes that were run, by recipe: seconds of each part, megabytes, and the machine."""
    return json.loads((files("ad_hf.recipes") / "measured.json").read_text(encoding="utf-8"))


def minutes(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def describe(name: str) -> dict[str, str]:
    """A recipe in a few words, by the names of [`COLUMNS`]."""
    recipe, figures = load_recipe(name), measured().get(name, {})
    model, members = recipe.model, list(recipe.members().values())
    families = [TaskFamily(each.family) for each in members]
    tasks = [sum(len(family.tasks(split)) for family in families) for split in SPLITS]
    steps = sum(
        len(family.tasks()) * len(each.source.seeds) * each.source.total_timesteps
        for family, each in zip(families, members)
    )
    source = members[0].source
    cells = (
        name,
        families[0].env_id if len(members) == 1 else f"a mixture of {len(members)}",
        " + ".join(f"{count:,}" for count in tasks),
        f"{algorithm_name(source.algorithm)} x {source.n_envs}" if len(members) == 1 else "-",
        f"{steps / 1e6:.1f} M",
        f"{figures['megabytes']:.1f} MB" if "megabytes" in figures else "-",
        f"{model.num_hidden_layers} x {model.hidden_size}, {model.context_length} steps",
        minutes(figures.get("collect_seconds")),
        minutes(figures.get("train_seconds")),
        figures.get("machine", "-"),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def recipe_table() -> str:
    """All packaged recipes as a table of text, one line each."""
    lines = [dict(zip(COLUMNS, COLUMNS)), *(describe(name) for name in recipe_names())]
    widths = {column: max(len(line[column]) for line in lines) for column in COLUMNS}
    table = "\n".join("  ".join(line[column].ljust(widths[column]) for column in COLUMNS).rstrip() for line in lines)
    return (
        f"{table}\n\ntasks: train + validation + test. steps: of all sources. model: layers x width, context. "
        "collect, train: measured on those cores."
    )
