"""The look of all pictures: colours, letters, titles in words, legends beside the curves, numbers with separators."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import ImageFont

from ad_hf.evaluation.returns import RANDOM, SOURCE

PAPER, INK, FADED, GREY, GRID = "#ffffff", "#22252b", "#5b6370", "#7d8590", "#e6e8eb"
# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, VERMILLION, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"
AD_COLOUR, SOURCE_COLOUR = VERMILLION, BLUE
COLOURS = {"AD": AD_COLOUR, SOURCE: SOURCE_COLOUR, "ED": ORANGE, "RL2": GREEN, RANDOM: GREY}
OTHER_COLOURS = (PURPLE, SKY, GREEN, ORANGE, VERMILLION)
TITLE, SUBTITLE, TEXT, NOTE = 12, 10, 9, 8  # points
DOTS_PER_INCH = 120
KINDS = {"goal": "goal", "desc": "map"}  # of tasks that one such argument makes


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: agents that most pictures show have the same in all of them, many others a scale."""
    own = {name: COLOURS[name] for name in names if name in COLOURS}
    others = [name for name in names if name not in COLOURS]
    shades: Sequence[str] = [shade for shade in OTHER_COLOURS if shade not in own.values()]
    if len(others) > len(shades):
        scale = colormaps["inferno"]  # without the source's blue
        shades = [to_hex(colour) for colour in scale(np.linspace(0.1, 0.85, len(others)))]
    return {**own, **dict(zip(others, shades))}


def new_figure(width: float, height: float, note: str = "") -> Figure:
    """A figure of some inches, without a display and pyplot's global state, with a note below everything."""
    lines = note.count("\n") + 1 if note else 0
    bottom = (lines * 1.35 * NOTE + 2) / 72 / height if note else 0.0
    layout = ConstrainedLayoutEngine(rect=(0, bottom, 1, 1 - bottom))
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    if note:
        figure.text(0.99, 0.008, note, ha="right", va="bottom", fontsize=NOTE, color=FADED)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG, whatever the suffix."""
    figure.savefig(path, format="png")


def clean(
    axes: Axes, title: str, subtitle: str = "", columns: int = 0, beside: str | None = None, width: int = 76
) -> None:
    """
    Give axes a title, a line below it, and a legend that covers nothing; and their lines less weight.

    The legend has some `columns` below the title, or stands to the right with a title of its own (`beside`). `width`
    are the letters of a line of the title.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=TEXT, color=GREY)
    axes.xaxis.label.set(fontsize=SUBTITLE, color=INK)
    axes.yaxis.label.set(fontsize=SUBTITLE, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    height = 5.0  # points above the axes, so far
    look: dict[str, Any] = {"frameon": False, "fontsize": TEXT, "title_fontsize": TEXT, "handlelength": 1.6}
    if beside is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=beside, alignment="left", **look)
    elif columns:
        look |= {"borderaxespad": 0.2, "columnspacing": 1.4, "borderpad": 0.3}
        drawn = axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, **look)
        height += -(-len(drawn.get_texts()) // columns) * 1.55 * TEXT + 3
    if subtitle:
        lines = fill(subtitle, round(1.4 * width))
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        axes.annotate(lines, (0, 1), (0, height), **place, fontsize=SUBTITLE, color=FADED)  # type: ignore[arg-type]
        height += (lines.count("\n") + 1) * 1.3 * SUBTITLE + 3
    axes.set_title(fill(title, width), loc="left", fontsize=TITLE, fontweight="bold", color=INK, pad=height)


def write_number(value: float, _: Any = None) -> str:
    """A tick of an axis: `12,000`, `0.5`."""
    return f"{value:,.12g}".replace("-", "\N{MINUS SIGN}")


def write_numbers(axis: Axis, log: bool = False) -> None:
    """Label an axis with whole numbers where it can, thousands apart; with more ticks if a log scale is short."""
    axis.set_major_formatter(FuncFormatter(write_number))
    if log:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_minor_formatter(NullFormatter())


def world_name(env_id: str) -> str:
    """An environment's id in words: `Dark Key-to-Door` for `ad_hf/DarkKeyToDoor-v0`."""
    name = re.sub(r"-v\d+$", "", re.split(r"[/:]", env_id)[-1])
    words = re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", name).replace("_", " ")
    return words.replace(" To ", "-to-")


def tasks_words(count: int, tasks: Sequence[Mapping[str, Any]]) -> str:
    """A number of tasks (keyword arguments) by their kind: `16 goals`, `1 map`, `1,200 tasks`."""
    names = {name for task in tasks for name in task}
    kind = KINDS.get(names.pop(), "task") if len(names) == 1 else "task"
    return f"{count:,} {kind}{'s' * (count != 1)}"


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The letters of moving pictures, which are those of the others."""
    name = f"DejaVuSans{'-Bold' * bold}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def clipped(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """As much of a text as fits into a width in pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
