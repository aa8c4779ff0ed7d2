"""Pictures of evaluations: learning curves, and rooms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.headlines import OF_GAIN, headline, streams_words
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.style import (
    GREY,
    INK,
    PAPER,
    SOURCE_COLOUR,
    SUBTITLE,
    TEXT,
    TITLE,
    clean,
    colours,
    new_figure,
    save,
    tasks_words,
    world_name,
    write_numbers,
)
from ad_hf.evaluation.summary import EPISODES, models_of
from ad_hf.histories.schema import source_label

MOST_BANDS = 6  # agents whose bands can be told apart
HALO = withStroke(linewidth=3, foreground=PAPER)


def title_of(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """
    The title of learning curves, and the line below it: the tasks, and whether and how fast a single model learns
    them, or the title of the study.
    """
    models, agent = list(models_of(evaluation).values()), next(iter(evaluation["agents"].values()))
    tasks = tasks_words(agent["num_tasks"], [task["kwargs"] for task in evaluation["tasks"]])
    title = f"{world_name(evaluation['env_id'])}: {tasks} never seen in training"
    if len(models) == 1:
        words = headline(models[0]["learns"], models[0]["steps_to"])
        return title, words[0].upper() + words[1:]
    return title, evaluation.get("title", "").partition(": ")[2]


def plot_curves(path: str | Path, evaluation: Mapping[str, Any]) -> None:
    """
    Draw the return on held-out tasks by environment steps of all agents of an `evaluation.json`, as a PNG whatever the
    suffix; of a single model with marks at the levels to which steps are counted.
    """
    models, source = models_of(evaluation), evaluation.get("source")
    curves = {
        name: Curve.from_json(agent["curve"])
        for name, agent in evaluation["agents"].items()
        if name != RANDOM and agent["curve"] is not None
    }
    shades, crowded, single = colours(list(curves)), len(curves) > MOST_BANDS, len(models) == 1
    labels = {SOURCE: f"{source_label(source['algorithm'])}, the source" if source else SOURCE}
    note = f"{'mean' if crowded else 'mean and 95% bootstrap interval'} over trainings, tasks and rollouts"
    if single:
        (own, model), *_ = models.items()
        labels |= {
            own: "frozen transformer in its context",
            SOURCE: labels[SOURCE].replace("the source", "its source"),
        }
        timed = [steps for steps in model["steps_to"].values() if steps["level"] is not None]
        if timed:
            shares, unit = " and ".join(model["steps_to"]), model["learns"]["of"]
            note += f"\ndots: the mean of 5 {unit} is at {shares} of the {timed[0]['gain_of']}'s gain over random play"
    figure = new_figure(8.4, 4.8, note)
    axes = figure.add_subplot()
    for name, curve in curves.items():
        if not crowded:
            axes.fill_between(curve.env_steps, curve.low, curve.high, color=shades[name], alpha=0.18, linewidth=0)
        axes.plot(curve.env_steps, curve.mean, color=shades[name], linewidth=2, label=labels.get(name, name))
    if evaluation["of"] == EPISODES:
        for value, line, label in (
            (evaluation["optimal_return"], "--", "best possible"),
            (evaluation["random_return"], ":", "random actions"),
        ):
            if value is not None:
                axes.axhline(value, color=GREY, linestyle=line, linewidth=1.2, label=label)
    axes.set_xscale("log")
    if min((curve.mean if crowded else curve.low).min() for curve in curves.values()) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"environment steps on the task, {streams_words(source if SOURCE in curves else None)}")
    axes.set_ylabel(evaluation["of"])
    if single:
        _mark_steps(axes, model["steps_to"], {own: shades[own], SOURCE: SOURCE_COLOUR}, curves)
    write_numbers(axes.xaxis, log=True)
    write_numbers(axes.yaxis)
    clean(axes, *title_of(evaluation), columns=4, beside=None if single else evaluation.get("varied", ""))
    save(figure, path)


def _mark_steps(
    axes: Axes, steps_to: Mapping[str, Mapping[str, Any]], shades: Mapping[str, str], curves: Mapping[str, Curve]
) -> None:
    """A dot on the curves of a model and its source where they reach a level, hollow at the lower one."""
    own_name, _ = shades
    for share, steps in steps_to.items():
        own, source = steps["env_steps"], steps.get("source")
        slower = own is not None and source is not None and own > source
        for name, count, to_the_left in (
            (own_name, None if steps["at_start"] else own, not slower),
            (SOURCE, source, slower),
        ):
            if count is None or name not in curves:
                continue
            place = count, float(np.interp(count, curves[name].env_steps, curves[name].mean))
            shade = shades[name]
            inside, edge = (shade, PAPER) if share == "90%" else (PAPER, shade)
            axes.plot(*place, "o", color=inside, markersize=7, markeredgecolor=edge, zorder=4)
            axes.annotate(
                f"{share}: {count:,} steps",
                place,
                xytext=(-9, 4) if to_the_left else (9, -4),
                ha="right" if to_the_left else "left",
                va="bottom" if to_the_left else "top",
                textcoords="offset points",
                color=shade,
                fontsize=TEXT,
                path_effects=[HALO],
                zorder=5,
            )


def _has_shares_of_gain(evaluation: Mapping[str, Any]) -> bool:
    return any(agent["shares_of"] == OF_GAIN for agent in evaluation["agents"].values())


def rooms_of(evaluation: Mapping[str, Any]) -> dict[str, list[tuple[list[int], float]]]:
    """Cell and share of the optimum of each task, by agent; empty unless all tasks are cells of a room."""
    rooms: dict[str, list[tuple[list[int], float]]] = {}
    gain = _has_shares_of_gain(evaluation)
    for task in evaluation["tasks"]:
        cells, floor = list(task["kwargs"].values()), task["random"] if gain else 0.0
        cell = cells[0] if len(cells) == 1 and isinstance(cells[0], list) else []
        if len(cell) != 2 or any(type(each) is not int for each in cell):
            return {}
        if task["optimal"] is None or floor is None or task["optimal"] <= floor:
            return {}
        for name, value in task["returns"].items():
            rooms.setdefault(name, []).append((cell, (value - floor) / (task["optimal"] - floor)))
    return rooms


def plot_rooms(path: str | Path, evaluation: Mapping[str, Any]) -> None:
    """
    Draw the share of the optimum that agents of an `evaluation.json` with [`rooms_of`] end at, over the goals of the
    held-out tasks, as a PNG whatever the suffix.
    """
    rooms = rooms_of(evaluation)
    size = 1 + max(max(cell) for tasks in rooms.values() for cell, _ in tasks)
    columns = min(len(rooms), 4)
    rows = -(-len(rooms) // columns)
    of = "best possible gain over random play" if _has_shares_of_gain(evaluation) else "best possible return"
    figure = new_figure(
        1.2 + 2.7 * columns, 0.8 + 2.9 * rows, "white: no such goal among these; +: where each episode starts"
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(rooms) :]:
        axes.set_axis_off()
    for axes, (name, tasks) in zip(grid, rooms.items()):
        sums, counts = np.zeros((size, size)), np.zeros((size, size))
        for cell, share in tasks:
            sums[tuple(cell)] += share
            counts[tuple(cell)] += 1
        room = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        image = axes.imshow(room.T, vmin=0, vmax=1, cmap="viridis", origin="lower")
        axes.set_title(f"{name}: {np.nanmean(room):.0%}", loc="left", fontsize=SUBTITLE, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(GREY)
        axes.plot(size // 2, size // 2, marker="+", color=INK, markersize=8, path_effects=[HALO])
    bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.8, format=PercentFormatter(1))
    bar.set_label(f"share of the {of}", fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT)
    world = world_name(evaluation["env_id"])
    title = fill(f"{world}: the last ten episodes, by where the goal is", 20 + 24 * columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    save(figure, path)
