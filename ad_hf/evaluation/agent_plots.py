"""Pictures of several agents on the same tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ad_hf.evaluation.plots import AD_COLOUR, INK, OPTIMUM_COLOUR, SOURCE_COLOUR

if TYPE_CHECKING:
    from studies.study import Study

    from ad_hf.evaluation.protocol import AgentReturns

COLOURS = {"AD": AD_COLOUR, "source": SOURCE_COLOUR, "ED": "#edae49", "RL2": "#3d8b5f", "random": OPTIMUM_COLOUR}
MOST_BANDS = 6  # agents whose bands can be told apart
OTHER_COLOURS = ("#7b4b94", "#00798c", "#8c5e3c", "#c0578e")


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same in all pictures for those that are in most of them; of many, a scale."""
    others = [name for name in names if name not in COLOURS]
    shades: Sequence[str] = OTHER_COLOURS
    if len(others) > len(OTHER_COLOURS):
        scale = colormaps["inferno"]  # without the source's blue
        shades = [to_hex(colour) for colour in scale(np.linspace(0.15, 0.85, len(others)))]
    return {**COLOURS, **dict(zip(others, shades))}


def _clean(axes: Any, grid: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def plot_agents(
    path: str | Path,
    agents: Sequence[AgentReturns],
    title: str,
    note: str = "",
    streams: str = "all streams that learn together counted",
) -> None:
    """
    Return by environment steps of several agents, as a PNG; with their bands, unless they are too many to tell apart.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        agents (`Sequence[AgentReturns]`):
            The agents; one that takes random actions is drawn as a line.
        title (`str`):
            Above the picture.
        note (`str`, *optional*):
            Below it.
        streams (`str`, *optional*):
            Of which of the source's streams the steps are counted.
    """
    figure = Figure(figsize=(8.4, 4.8), layout=ConstrainedLayoutEngine(rect=(0, 0.035, 1, 0.965)))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = colours([agent.agent for agent in agents])
    tops, crowded = [], len(agents) > MOST_BANDS
    for agent in agents:
        curve, colour = agent.curve(), shades[agent.agent]
        if agent.agent == "random":
            axes.axhline(curve.mean.mean(), color=colour, linestyle=":", linewidth=1.4, label="random actions")
            continue
        if not crowded:
            axes.fill_between(curve.env_steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.env_steps, curve.mean, color=colour, linewidth=2, label=agent.agent)
        tops.append((curve.mean if crowded else curve.high).max())
    optimal = next((agent.optimal for agent in agents if agent.optimal is not None), None)
    if optimal is not None:
        axes.axhline(optimal.mean(), color=INK, linestyle="--", linewidth=1.2, label="optimum")
        tops.append(optimal.mean())
    axes.set_xscale("log")
    bottom, _ = axes.get_ylim()
    axes.set_ylim(min(bottom, 0), max(tops) * (1.03 if max(tops) > 0 else 0.97))
    axes.set_xlabel(f"environment steps on the task, {streams}")
    axes.set_ylabel("return of an episode")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    _clean(axes)
    first, shown = agents[0], "mean" if crowded else "mean and 95% bootstrap interval"
    figure.text(
        0.99,
        0.005,
        note or f"{shown} over trainings, {len(first.tasks)} held-out tasks and rollouts",
        ha="right",
        va="bottom",
        fontsize=7.5,
        color="#6b7280",
    )
    figure.savefig(path, dpi=120, format="png")


def cells_of(tasks: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """The cell (num_tasks, 2) that makes each task, or `None` for tasks that are made otherwise."""
    cells = [np.asarray(value) for task in tasks for value in task.values()]
    if len(cells) != len(tasks) or any(cell.shape != (2,) or cell.dtype.kind != "i" for cell in cells):
        return None
    return np.stack(cells)


Rooms = list[tuple["AgentReturns", np.ndarray, list[np.ndarray]]]


def rooms_of(agents: Sequence[AgentReturns]) -> Rooms:
    """The agents whose tasks are cells of a room and have an optimum, with the cells and shares of the optimum."""
    found = [(agent, cells_of(agent.tasks), agent.shares()) for agent in agents]
    return [(agent, cells, shares) for agent, cells, shares in found if cells is not None and shares is not None]


def plot_rooms(path: str | Path, shown: Rooms) -> None:
    """
    Share of the optimum that agents end at, over the cells of the room that are goals of held-out tasks, as a PNG.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        shown (`list[tuple]`):
            The agents, as of [`rooms_of`].
    """
    size = 1 + max(int(cells.max()) for _, cells, _ in shown)
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.2 + 2.9 * columns, 0.3 + 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (agent, cells, shares) in zip(grid, shown):
        ends = np.concatenate([block[..., -10:].mean(axis=(0, 1, 3)) for block in shares])
        sums, counts = np.zeros((size, size)), np.zeros((size, size))
        np.add.at(sums, tuple(cells.T), ends)
        np.add.at(counts, tuple(cells.T), 1)
        room = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        image = axes.imshow(room.T, vmin=0, vmax=1, cmap="viridis", origin="upper")
        axes.set_title(f"{agent.agent}: {np.nanmean(room):.2f}", loc="left", fontsize=10, color=INK)
        axes.set_xticks([0, size - 1])
        axes.set_yticks([0, size - 1])
        axes.plot(size // 2, size // 2, marker="+", color=AD_COLOUR, markersize=8)
    of = "optimum's gain over random play" if shown[0][0].negative else "optimum"
    figure.colorbar(image, ax=grid.tolist(), label=f"share of the {of}, last ten episodes", shrink=0.8)
    figure.savefig(path, dpi=120, format="png")


def plot_study(path: str | Path, study: Study, agents: Sequence[AgentReturns]) -> None:
    """
    What variants of a study end at, beside what the paper reports of them, as a PNG.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        study ([`~studies.study.Study`]):
            The study.
        agents (`Sequence[AgentReturns]`):
            Its variants, and maybe others, which are not drawn.
    """
    ends = {agent.agent: agent.at(agent.num_episodes) for agent in agents}
    series: dict[str | None, list[str]] = {}
    for name, variant in study.variants.items():
        series.setdefault(variant.series, []).append(name)
    figure = Figure(figsize=(max(6.4, 1.2 + 0.62 * (len(study.variants) + len(series))), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ticks: dict[float, str] = {}
    lowest = 0.0
    for index, (title, names) in enumerate(series.items()):
        places = len(ticks) + 0.8 * index + np.arange(len(names))
        lowest = min(lowest, _plot_series(axes, places, [ends[name] for name in names]))
        papers = [(place, study.variants[name].paper) for place, name in zip(places, names)]
        known = [(place, value) for place, value in papers if value is not None]
        if known:
            axes.plot(*zip(*known), color=OPTIMUM_COLOUR, marker="s", linestyle="--", label="the paper's")
        ticks |= dict(zip(places.tolist(), [_tick(study.variants[name].label or name, title) for name in names]))
        if title is not None:
            axes.annotate(title, (places.mean(), 0), (0, -24), ("data", "axes fraction"), "offset points", ha="center")
    optimal = next((agent.optimal for agent in agents if agent.optimal is not None), None)
    if optimal is not None:
        axes.axhline(optimal.mean(), color=INK, linestyle=":", linewidth=1.2, label="optimum")
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=9)
    axes.set_ylim(bottom=lowest)
    axes.set_xlabel(study.varied or "variant", labelpad=4 if None in series else 18)
    axes.set_ylabel("return, last ten episodes")
    axes.set_title(fill(study.title, 62), loc="left", fontsize=11, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    legend = dict(zip(labels, handles))  # once for all series
    axes.legend(legend.values(), legend.keys(), frameon=False, fontsize=9)
    _clean(axes)
    figure.savefig(path, dpi=120, format="png")


def _plot_series(axes: Axes, places: np.ndarray, ends: Sequence[Mapping[str, Any]]) -> float:
    """Draw what variants end at, and tell how low their intervals reach."""
    values = np.array([end["return"] for end in ends])
    bounds = np.array([end["return_interval"] for end in ends])
    errors = np.maximum(0, np.abs(bounds - values[:, None]).T)
    axes.errorbar(places, values, errors, color=AD_COLOUR, marker="o", linewidth=2, capsize=3, label="ours")
    return float(bounds.min())


def _tick(label: str, series: str | None) -> str:
    """What stands below a variant, without what stands below all of its series."""
    return fill(label.replace(series or "", "").strip() or label, 16)
