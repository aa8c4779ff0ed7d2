"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ad_hf.evaluation.headlines import LEARNS, headline, streams_words
from ad_hf.histories.schema import source_label

if TYPE_CHECKING:
    from ad_hf.evaluation.curves import Curve

INK, AD_COLOUR, SOURCE_COLOUR, OPTIMUM_COLOUR = "#22252b", "#d1495b", "#30638e", "#8d96a0"
RANDOM = "random actions"
TITLE_WIDTH = 88  # letters of a title's line
MOST_LABELS = 6  # of curves in one picture


def axes_are_returns(report: dict[str, Any]) -> bool:
    """Whether a report's curves are of returns of episodes, and not of single steps' rewards."""
    return report["curves"]["of"] == "return of an episode"


def title_of(report: dict[str, Any]) -> str:
    """What a picture says above its curves: of which tasks, whether the model learns them, and how fast."""
    tasks = f"{report.get('env_id', 'Held-out tasks')}: {report['num_test_tasks']} tasks never seen in training"
    return f"{tasks}\n{fill(headline(report['learns'], report['env_steps_to'], 'ad'), TITLE_WIDTH)}"


def plot_learning_curves(path: str | Path, ad: Curve, source: Curve | None, report: dict[str, Any]) -> None:
    """
    A model's return on held-out tasks by environment steps, beside its source's if that is known, as a PNG.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        ad, source ([`Curve`]):
            The two learning curves, of which the second may be `None`.
        report (`dict`):
            The run's report, for the optimum, the levels that both are timed to, and the captions.
    """
    layout = ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97))
    figure = Figure(figsize=(8.4, 4.6), layout=layout)
    FigureCanvasAgg(figure)  # no display, and none of pyplot's global state
    axes = figure.add_subplot()
    learning = ", learning in its context" if report["learns"]["verdict"] == LEARNS else ""
    curves = [(ad, AD_COLOUR, f"frozen transformer{learning}")]
    if source is not None:
        name = source_label(report["source"]["algorithm"])
        curves.append((source, SOURCE_COLOUR, f"{name}, the source it was distilled from"))
    for curve, colour, label in curves:
        axes.fill_between(curve.env_steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.env_steps, curve.mean, color=colour, linewidth=2, label=label)
    if axes_are_returns(report):
        for value, line, label in (
            (report["optimal_return"], "--", "optimum"),
            (report["random_return"], ":", RANDOM),
        ):
            if value is not None:
                axes.axhline(value, color=OPTIMUM_COLOUR, linestyle=line, linewidth=1.2, label=label)
    for share, steps in report["env_steps_to"].items():
        slower = None not in (steps["ad"], steps["source"]) and steps["ad"] > steps["source"]
        for name, colour, to_the_left in (("ad", AD_COLOUR, not slower), ("source", SOURCE_COLOUR, slower)):
            if steps[name] is None or (name == "ad" and steps["at_start"]):
                continue
            place, (inside, edge) = (
                (steps[name], steps["level"]),
                (colour, "white") if share == "90%" else ("white", colour),
            )
            axes.plot(*place, "o", color=inside, markersize=7, markeredgecolor=edge, zorder=4)
            axes.annotate(
                f"{steps[name]:,} steps",
                place,
                xytext=(-8, 3) if to_the_left else (8, -3),
                ha="right" if to_the_left else "left",
                va="bottom" if to_the_left else "top",
                textcoords="offset points",
                color=colour,
                fontsize=9,
            )
    axes.set_xscale("log")
    if min(curve.low.min() for curve, _, _ in curves) >= 0:
        axes.set_ylim(bottom=0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.25 * (top - bottom))  # room for the legend above the curves
    axes.set_xlabel(f"environment steps on the task, {streams_words(report['source'])}")
    axes.set_ylabel(report["curves"]["of"])
    axes.set_title(title_of(report), loc="left", fontsize=11, color=INK)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    rollouts = "1 rollout" if report["num_rollout_seeds"] == 1 else f"{report['num_rollout_seeds']} rollouts"
    note = f"mean and 95% bootstrap interval over tasks and {rollouts} each"
    timed = next((steps for steps in report["env_steps_to"].values() if steps["level"] is not None), None)
    if timed is not None:
        shares = " and ".join(report["env_steps_to"])
        note += (
            f"; dots: mean of 5 {report['learns']['of']} at {shares} of the {timed['gain_of']}'s gain over random play"
        )
    figure.text(
        0.99,
        0.005,
        note,
        ha="right",
        va="bottom",
        fontsize=7.5,
        color="#6b7280",
    )
    figure.savefig(path, dpi=130, format="png")


def plot_training(path: str | Path, lines: Sequence[dict[str, Any]]) -> None:
    """
    How a run goes, as a PNG: its loss by updates, and what the models at its validations learn in their contexts.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        lines (`Sequence[dict]`):
            The metrics: `step`, with `loss` or `validation_curve` (mean return of each episode), or both.
    """
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, returns = figure.subplots(1, 2)
    logged = [line for line in lines if "loss" in line]
    losses.plot([line["step"] for line in logged], [line["loss"] for line in logged], color=SOURCE_COLOUR)
    losses.set_xlabel("updates")
    losses.set_title("loss (nats per action)", loc="left", fontsize=11, color=INK)
    validations = [line for line in lines if "validation_curve" in line]
    best = max(validations, key=lambda line: line["validation_return"])
    shades = colormaps["Blues"](np.linspace(0.35, 0.9, len(validations)))
    for line, shade in zip(validations, shades):
        is_best = line is best
        returns.plot(
            range(1, len(line["validation_curve"]) + 1),
            line["validation_curve"],
            color=AD_COLOUR if is_best else shade,
            linewidth=2 if is_best else 1.2,
            zorder=3 if is_best else 2,
            label=f"after {line['step']} updates" + (", the best" if is_best else ""),
        )
    returns.set_xlabel("episode in the context")
    returns.set_title("return on validation tasks", loc="left", fontsize=11, color=INK)
    shown = returns.get_legend_handles_labels()[0]
    if len(shown) > MOST_LABELS:  # the first, the best and the last
        shown = [shown[0], shown[validations.index(best)], shown[-1]]
    returns.legend(handles=list(dict.fromkeys(shown)), frameon=False, fontsize=8)
    for axes in (losses, returns):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=110, format="png")
