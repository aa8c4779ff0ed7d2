"""The table and the picture of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ad_hf.evaluation.headlines import OF_GAIN, SHARES, learns_cell, number, steps_cell
from ad_hf.evaluation.style import (
    AD_COLOUR,
    GREY,
    INK,
    OTHER_COLOURS,
    clean,
    new_figure,
    save,
    write_number,
    write_numbers,
)
from ad_hf.evaluation.summary import last_of
from studies.study import Study

PAPERS = "the paper's"
NOTE_OF_DOTS = "ours: mean and 95% bootstrap interval over trainings, tasks and rollouts"


def agents_table(evaluation: Mapping[str, Any]) -> str:
    """The agents of an evaluation as a table of markdown."""
    agents = evaluation["agents"]
    whose = {
        steps["gain_of"]
        for agent in agents.values()
        for steps in agent.get("steps_to", {}).values()
        if steps["level"] is not None
    }
    gain, who = ("the optimum's", "") if whose == {"optimum"} else ("the source's", ": own / source")
    of = {agent["shares_of"] for agent in agents.values()} - {None}
    shares = "of the optimum" + (f" ({OF_GAIN})" if of == {OF_GAIN} else "")
    lines = [
        "| agent | trainings x rollouts x tasks | first episode | last ten episodes (95% interval) | "
        f"learns: last ten - first (95% interval) | {shares} | interquartile mean share (95% interval) | "
        f"regret, {shares} | " + " | ".join(f"steps to {share:.0%} of {gain} gain{who}" for share in SHARES) + " |",
        "|---" * (8 + len(SHARES)) + "|",
    ]
    for name, agent in agents.items():
        first, last = next(iter(agent["at"].values())), last_of(agent)
        low, high = last["return_interval"]
        bounds = last["iqm_interval"]
        cells = [
            name,
            f"{agent['num_models']} x {agent['num_rollouts']} x {agent['num_tasks']}",
            number(first["return"]),
            f"**{number(last['return'])}** ({number(low)} to {number(high)})",
            "-" if "learns" not in agent else learns_cell(agent["learns"]),
            number(last.get("of_optimal")),
            number(last["iqm"]) + ("" if bounds is None else f" ({number(bounds[0])} to {number(bounds[1])})"),
            number(agent["regret"]["of_optimal"]) if "regret" in agent else "-",
            *(steps_cell(agent.get("steps_to", {}).get(f"{share:.0%}")) for share in SHARES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_study(path: str | Path, study: Study, evaluation: Mapping[str, Any]) -> None:
    """
    What variants of a study end at, beside what the paper reports of them, as a PNG.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        study ([`~studies.study.Study`]):
            The study.
        evaluation (`Mapping`):
            The content of its `evaluation.json`; agents that are no variants are not drawn.
    """
    ends = {name: last_of(agent) for name, agent in evaluation["agents"].items()}
    series: dict[str | None, list[str]] = {}
    for name, variant in study.variants.items():
        series.setdefault(variant.series, []).append(name)
    if study.over_numbers:
        _plot_lines(path, study, evaluation, series)
        return
    figure = new_figure(max(6.4, 1.2 + 0.62 * (len(study.variants) + len(series))), 4.0, NOTE_OF_DOTS)
    axes = figure.add_subplot()
    ticks: dict[float, str] = {}
    lowest = 0.0
    for index, (title, names) in enumerate(series.items()):
        places = len(ticks) + 0.8 * index + np.arange(len(names))
        lowest = min(lowest, _plot_series(axes, places, [ends[name] for name in names], "ours" if not index else None))
        papers = [(place, study.variants[name].paper) for place, name in zip(places, names)]
        if reported := [(place, value) for place, value in papers if value is not None]:
            known = axes.get_legend_handles_labels()[1]
            label = None if PAPERS in known else PAPERS
            axes.plot(*zip(*reported), "s", color=INK, fillstyle="none", markersize=7, label=label)
        ticks |= dict(zip(places.tolist(), [_tick(study.variants[name].label or name, title) for name in names]))
        if title is not None:
            axes.annotate(title, (places.mean(), 0), (0, -26), ("data", "axes fraction"), "offset points", ha="center")
    if evaluation["optimal_return"] is not None:
        axes.axhline(evaluation["optimal_return"], color=GREY, linestyle="--", linewidth=1.2, label="best possible")
    axes.set_ylim(bottom=lowest)
    axes.set_xlabel(study.varied or "variant", labelpad=4 if None in series else 18)
    axes.set_ylabel("return, last ten episodes")
    write_numbers(axes.yaxis)
    clean(axes, study.title, columns=3, width=round(8.5 * figure.get_figwidth()))
    axes.set_xticks(list(ticks), list(ticks.values()))
    save(figure, path)


def _plot_lines(
    path: str | Path, study: Study, evaluation: Mapping[str, Any], series: Mapping[str | None, Sequence[str]]
) -> None:
    """The same of a study whose series run over the same numbers: a line of each."""
    figure = new_figure(7.6, 4.0, NOTE_OF_DOTS.removeprefix("ours: "))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    marks: set[float] = set()
    for index, ((title, names), colour) in enumerate(zip(series.items(), (INK, *OTHER_COLOURS))):
        places = np.array([study.variants[name].place for name in names], dtype=float)
        marks |= set(places.tolist())
        ends = [last_of(evaluation["agents"][name]) for name in names]
        aside = 1.02 ** (index - (len(series) - 1) / 2)  # so that intervals do not hide each other
        _plot_series(axes, places * aside, ends, title, colour, "o-")
    if evaluation["optimal_return"] is not None:
        axes.axhline(evaluation["optimal_return"], color=GREY, linestyle="--", linewidth=1.2, label="best possible")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(study.varied or "")
    axes.set_ylabel("return, last ten episodes")
    axes.set_xticks(sorted(marks), [write_number(mark) for mark in sorted(marks)])
    axes.minorticks_off()
    write_numbers(axes.yaxis)
    clean(axes, study.title, beside="")
    save(figure, path)


def _plot_series(
    axes: Axes,
    places: np.ndarray,
    ends: Sequence[Mapping[str, Any]],
    label: str | None,
    colour: str = AD_COLOUR,
    style: str = "o",
) -> float:
    """Draw what variants end at, and tell how low their intervals reach."""
    values = np.array([end["return"] for end in ends])
    bounds = np.array([end["return_interval"] for end in ends])
    errors = np.maximum(0, np.abs(bounds - values[:, None]).T)
    axes.errorbar(places, values, errors, color=colour, fmt=style, markersize=7, linewidth=2, capsize=3, label=label)
    return float(bounds.min())


def _tick(label: str, series: str | None) -> str:
    """What stands below a variant, without what stands below all of its series."""
    return fill(label.replace(series or "", "").strip() or label, 16)
