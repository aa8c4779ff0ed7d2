"""Pictures of evaluations: learning curves, and rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, LayoutEngine

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.headlines import LEARNS, OF_GAIN, headline, streams_words
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.summary import EPISODES, models_of
from ad_hf.histories.schema import source_label

INK, AD_COLOUR, SOURCE_COLOUR, GREY = "#22252b", "#d1495b", "#30638e", "#8d96a0"
COLOURS = {"AD": AD_COLOUR, SOURCE: SOURCE_COLOUR, "ED": "#edae49", "RL2": "#3d8b5f", RANDOM: GREY}
OTHER_COLOURS = ("#7b4b94", "#00798c", "#8c5e3c", "#c0578e")
MOST_BANDS = 6  # agents whose bands can be told apart
TITLE_WIDTH = 88  # letters of a title's line


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: agents that most pictures show have the same in all of them, many others a scale."""
    others = [name for name in names if name not in COLOURS]
    shades: Sequence[str] = OTHER_COLOURS
    if len(others) > len(OTHER_COLOURS):
        scale = colormaps["inferno"]  # without the source's blue
        shades = [to_hex(colour) for colour in scale(np.linspace(0.15, 0.85, len(others)))]
    return {**COLOURS, **dict(zip(others, shades))}


def new_figure(width: float, height: float, layout: LayoutEngine | str = "constrained") -> Figure:
    """A figure without a display, and without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, title: str, width: int = TITLE_WIDTH) -> None:
    """Give axes a title, and their lines less weight."""
    axes.set_title("\n".join(fill(line, width) for line in title.split("\n")), loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def title_of(evaluation: Mapping[str, Any]) -> str:
    """The title of learning curves: the tasks, and whether and how fast a single model learns them."""
    models, agent = list(models_of(evaluation).values()), next(iter(evaluation["agents"].values()))
    title = f"{evaluation['env_id']}: {agent['num_tasks']} tasks never seen in training"
    return f"{title}\n{headline(models[0]['learns'], models[0]['steps_to'])}" if len(models) == 1 else title


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
    if single:
        (own, model), *_ = models.items()
        verdict = ", learning in its context" if model["learns"]["verdict"] == LEARNS else ""
        labels |= {own: f"frozen transformer{verdict}", SOURCE: f"{labels[SOURCE]} it was distilled from"}
    figure = new_figure(8.4, 4.8, ConstrainedLayoutEngine(rect=(0, 0.035, 1, 0.965)))
    axes = figure.add_subplot()
    for name, curve in curves.items():
        if not crowded:
            axes.fill_between(curve.env_steps, curve.low, curve.high, color=shades[name], alpha=0.18, linewidth=0)
        axes.plot(curve.env_steps, curve.mean, color=shades[name], linewidth=2, label=labels.get(name, name))
    if evaluation["of"] == EPISODES:
        for value, line, label in (
            (evaluation["optimal_return"], "--", "optimum"),
            (evaluation["random_return"], ":", "random actions"),
        ):
            if value is not None:
                axes.axhline(value, color=GREY, linestyle=line, linewidth=1.2, label=label)
    axes.set_xscale("log")
    if min((curve.mean if crowded else curve.low).min() for curve in curves.values()) >= 0:
        axes.set_ylim(bottom=0)
    if single:
        _mark_levels(axes, model["steps_to"], shades[own])
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.25 * (top - bottom))  # room for the legend above the curves
        axes.legend(loc="upper left", frameon=False, fontsize=9)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes.set_xlabel(f"environment steps on the task, {streams_words(source if SOURCE in curves else None)}")
    axes.set_ylabel(evaluation["of"])
    clean(axes, title_of(evaluation))
    note = f"{'mean' if crowded else 'mean and 95% bootstrap interval'} over trainings, tasks and rollouts"
    timed = [steps for steps in model["steps_to"].values() if steps["level"] is not None] if single else []
    if timed:
        shares, unit = " and ".join(model["steps_to"]), model["learns"]["of"]
        note += f"; dots: mean of 5 {unit} at {shares} of the {timed[0]['gain_of']}'s gain over random play"
    figure.text(0.99, 0.005, note, ha="right", va="bottom", fontsize=7.5, color="#6b7280")
    figure.savefig(path, dpi=130, format="png")


def _mark_levels(axes: Axes, steps_to: Mapping[str, Mapping[str, Any]], colour: str) -> None:
    """A dot and its steps where a model and its source reach a level: hollow at the lower level."""
    for share, steps in steps_to.items():
        own, source = steps["env_steps"], steps.get("source")
        slower = own is not None and source is not None and own > source
        for count, shade, to_the_left in (
            (None if steps["at_start"] else own, colour, not slower),
            (source, SOURCE_COLOUR, slower),
        ):
            if count is None:
                continue
            inside, edge = (shade, "white") if share == "90%" else ("white", shade)
            axes.plot(count, steps["level"], "o", color=inside, markersize=7, markeredgecolor=edge, zorder=4)
            axes.annotate(
                f"{count:,} steps",
                (count, steps["level"]),
                xytext=(-8, 3) if to_the_left else (8, -3),
                ha="right" if to_the_left else "left",
                va="bottom" if to_the_left else "top",
                textcoords="offset points",
                color=shade,
                fontsize=9,
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
    figure = new_figure(1.2 + 2.9 * columns, 0.3 + 3.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(rooms) :]:
        axes.set_axis_off()
    for axes, (name, tasks) in zip(grid, rooms.items()):
        sums, counts = np.zeros((size, size)), np.zeros((size, size))
        for cell, share in tasks:
            sums[tuple(cell)] += share
            counts[tuple(cell)] += 1
        room = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        image = axes.imshow(room.T, vmin=0, vmax=1, cmap="viridis", origin="upper")
        axes.set_title(f"{name}: {np.nanmean(room):.2f}", loc="left", fontsize=10, color=INK)
        axes.set(xticks=[0, size - 1], yticks=[0, size - 1])
        axes.plot(size // 2, size // 2, marker="+", color=AD_COLOUR, markersize=8)
    of = "optimum's gain over random play" if _has_shares_of_gain(evaluation) else "optimum"
    figure.colorbar(image, ax=grid.tolist(), label=f"share of the {of}, last ten episodes", shrink=0.8)
    figure.savefig(path, dpi=120, format="png")
