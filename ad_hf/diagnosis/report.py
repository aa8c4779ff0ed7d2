"""What people see of an inspection: lines of text, a picture, and `inspection.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from textwrap import fill, wrap

import numpy as np
from matplotlib.ticker import PercentFormatter

from ad_hf.diagnosis.inspection import Inspection
from ad_hf.diagnosis.measures import ActionNumbers, HistoryNumbers, TaskNumbers
from ad_hf.evaluation.style import (
    AD_COLOUR,
    GREY,
    INK,
    SOURCE_COLOUR,
    TITLE,
    clean,
    new_figure,
    save,
    world_name,
    write_numbers,
)
from ad_hf.histories.schema import source_label
from ad_hf.histories.selection import Selection
from ad_hf.storage.files import atomic_path, writable_folder, write_text

INSPECTION_FILE, PICTURE_FILE = "inspection.json", "inspection.png"
WIDTH = 118  # letters of a line
FEW_LEARNING = 0.2  # of windows: models learn from a tenth too, but more slowly, so that this is no finding
MOST_SHARES = 8  # of actions in a line


def write_inspection(inspection: Inspection, output_dir: str | Path) -> None:
    """
    Write `inspection.json` and `inspection.png` into a folder, which is made if need be.

    Args:
        inspection ([`~ad_hf.diagnosis.Inspection`]):
            The result of [`~ad_hf.diagnosis.inspect_dataset`].
        output_dir (`str` or `Path`):
            The folder.
    """
    folder = writable_folder(output_dir)
    content = {**asdict(inspection), "verdict": inspection.verdict}
    write_text(folder / INSPECTION_FILE, json.dumps(content, indent=2) + "\n")
    with atomic_path(folder / PICTURE_FILE) as path:
        plot_inspection(path, inspection)


def describe(inspection: Inspection) -> str:
    """The numbers of an inspection as aligned lines, its findings below them, and the verdict as the last line."""
    marked = {finding.of for finding in inspection.findings}
    lines = []
    for name, text in _rows(inspection):
        first, *rest = wrap(text, WIDTH - 12)
        lines += [f"{'!' if name in marked else ' '} {name:<10}{first}", *(f"{'':12}{line}" for line in rest)]
    for finding in inspection.findings:
        lines += ["", *wrap(f"! {finding.of}: {finding.fault}", WIDTH, subsequent_indent="  ")]
        lines += wrap(f"  -> {finding.advice}", WIDTH, subsequent_indent="     ", break_on_hyphens=False)
    return "\n".join([*lines, "", inspection.verdict])


def _rows(inspection: Inspection) -> list[tuple[str, str]]:
    """The name and the text of each line of numbers."""
    dataset, tasks, histories, rewards = (
        getattr(inspection, name) for name in ("dataset", "tasks", "histories", "rewards")
    )
    empty = rewards.empty_episodes
    none = "" if empty is None else f"; {empty:.0%} of episodes have no reward"
    return [
        ("dataset", f"{dataset['env_id']}, learnt by {source_label(dataset['source'])}"),
        ("tasks", f"{', '.join(f'{count} {split}' for split, count in tasks.splits.items())}{_nearest(tasks)}"),
        ("streams", f"{histories.per_task:.4g} a task; {_learners(inspection)}"),
        ("histories", _histories(histories)),
        ("returns", _returns(inspection)),
        ("windows", _windows(inspection)),
        ("rewards", f"{rewards.steps:.1%} of steps have one{none}"),
        ("actions", _actions(inspection.actions)),
    ]


def _nearest(tasks: TaskNumbers) -> str:
    if tasks.nearest is not None:
        text = "; held-out ones differ from the nearest training task by {:.0%} of a value's range (median)"
        return text.format(tasks.nearest)
    if tasks.splits["validation"] + tasks.splits["test"]:
        return "; without keyword arguments, which would tell whether a held-out task is a training task"
    return ""


def _learners(inspection: Inspection) -> str:
    independent = inspection.dataset["independent_streams"]
    if inspection.histories.per_task == 1:
        return "a source of one stream needs many episodes, and a model that imitates it as many"
    if independent is None:
        return "whether they share a learner, and improve in fewer episodes each, is not known"
    if independent:
        return "each learns for itself, in as many episodes as one needs alone"
    return "they share a learner, so that each improves in fewer episodes than one alone"


def _histories(histories: HistoryNumbers) -> str:
    read = f"all {histories.read:,}" if histories.is_all else f"{histories.read:,} read, from regular distances"
    count = "one episode" if histories.of_steps else f"{histories.episodes:,.0f} episodes"
    text = f"{count}, {histories.steps:,.0f} steps each (median of {read})"
    if (histories.kept, histories.kept_steps) != (histories.read, histories.steps):
        text += f"; {histories.kept_episodes:,.0f} episodes, {histories.kept_steps:,.0f} steps are trained on"
        text += f", of {histories.kept:,} histories" * (histories.kept < histories.read)
    return text


def _returns(inspection: Inspection) -> str:
    returns = inspection.returns
    if not returns.curves:
        return "no episode ends"
    what = "reward of a step" if inspection.histories.of_steps else "return"
    if returns.lowest == returns.highest:
        return f"every {what} is {returns.lowest:.3g}; the source improves on no task"
    bounds = "" if returns.interval is None else " (95%: {:+.3g} to {:+.3g})".format(*returns.interval)
    text = f"{what} {returns.first:.3g} -> {returns.last:.3g} from the first tenth of a history to the last{bounds}; "
    tested = (
        f"the source improves on {returns.improving} of {returns.tasks} tasks"
        if returns.tasks
        else "too few for a test"
    )
    return f"{text}{tested}; {returns.histories:.0%} of histories end higher (by chance: 50%)"


def _settings(inspection: Inspection) -> str:
    """The settings of windows that are not the defaults."""
    default = Selection()
    chosen = {each.name: inspection.data[each.name] for each in fields(Selection)}
    others = [f"data.{name} {value}" for name, value in chosen.items() if value != getattr(default, name)]
    return ", ".join([f"context_length {inspection.context_length}", *others])


def _windows(inspection: Inspection) -> str:
    windows = inspection.windows
    text = f"{_settings(inspection)}: "
    if windows.share is not None:
        low, high = windows.learning
        part = f"{low:.0%} to {high:.0%} of a history, {windows.learning_windows:.0%} of windows"
        text += f"while the source learns ({part}), "
    if not inspection.histories.of_steps:
        text += f"{windows.episodes:.1f} episodes end in a window; "
    if windows.rise is None:
        return text + "it does not hold two whole ones, so that no rise shows"
    text += f"within one the return rises by {windows.rise:.3g}"
    if windows.share is None:
        return text
    part = "as much as the source's whole rise" if windows.share == 1 else f"{windows.share:.0%} of the source's rise"
    return f"{text}, {part}{_flat_windows(inspection)}"


def _flat_windows(inspection: Inspection) -> str:
    """A remark on histories that go on for long after the source has learnt."""
    windows, histories = inspection.windows, inspection.histories
    if windows.learning_windows >= FEW_LEARNING:
        return ""
    cut = ""
    if not histories.of_steps:
        episodes = inspection.data["max_episodes"] or histories.episodes
        cut = f"--data.max_episodes {max(2, round(2 * windows.learning[1] * episodes))} or "
    return f"; more windows show that in shorter histories ({cut}fewer source.total_timesteps)"


def _actions(actions: ActionNumbers) -> str:
    if not actions.shares:
        shares = ", ".join(f"{share:.0%}" for share in actions.at_bounds[:MOST_SHARES])
        return f"{len(actions.at_bounds)} dimensions; at a bound on {shares} of steps"
    if len(actions.shares) == 1 and len(actions.shares[0]) <= MOST_SHARES:
        return "taken on " + ", ".join(f"{share:.1%}" for share in actions.shares[0]) + " of steps"
    sizes = sorted({len(shares) for shares in actions.shares})
    count = f"{len(actions.shares)} dimensions" if len(actions.shares) > 1 else f"{sizes[0]} actions"
    least = min(min(shares) for shares in actions.shares)
    return f"{count}; the rarest is taken on {least:.2%} of steps"


def plot_inspection(path: str | Path, inspection: Inspection) -> None:
    """Draw returns over histories, the rise within windows, and how far each task's source rises, as a PNG."""
    returns, windows = inspection.returns, inspection.windows
    figure = new_figure(12.5, 4.4)
    curves, rises, histogram = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.2, 1, 1]})
    what = "reward of a step" if inspection.histories.of_steps else "return of an episode"
    lines = np.array(returns.curves).reshape(-1, len(returns.curves[0]) if returns.curves else 1)
    progress = (np.arange(lines.shape[1]) + 0.5) / lines.shape[1]
    for index, line in enumerate(lines):
        label = None if index else "each task"
        curves.plot(progress, line, color=GREY, alpha=min(0.5, 8 / len(lines) + 0.08), linewidth=0.8, label=label)
    if len(lines):
        curves.plot(progress, lines.mean(axis=0), color=SOURCE_COLOUR, linewidth=2.5, label="their mean")
    if returns.rises:
        curves.axvspan(*windows.learning, color=SOURCE_COLOUR, alpha=0.08, linewidth=0, label="while it learns")
    tested = f": it improves on {returns.improving} of {returns.tasks} tasks" if returns.tasks else ""
    curves.set(xlabel="part of a history that has passed", ylabel=what)
    rises.plot(windows.places, windows.rises, "o", color=AD_COLOUR, markersize=5, label="windows")
    rises.axhline(0, color=INK, linewidth=0.8)
    if returns.rises:
        label = "the source's whole rise"
        rises.axhline(returns.rise, color=SOURCE_COLOUR, linewidth=1.2, linestyle="--", label=label)
    rises.set(xlabel="middle of the window in its history", ylabel=f"rise of the {what}")
    share = "" if windows.share is None else f": {windows.share:.0%} of the source's"
    for axes in (curves, rises):
        axes.set_xlim(0, 1)
        write_numbers(axes.yaxis)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    if len(lines):
        edges = np.histogram_bin_edges(lines[:, [0, 1, -2, -1]], bins=20)
        for points, colour, label in (
            (lines[:, :2], GREY, "first tenth"),
            (lines[:, -2:], SOURCE_COLOUR, "last tenth"),
        ):
            histogram.hist(points.mean(axis=1), bins=edges, color=colour, alpha=0.7, label=label)
    write_numbers(histogram.xaxis)
    write_numbers(histogram.yaxis)
    histogram.set(xlabel=what, ylabel="tasks")
    clean(curves, f"The source{tested}", columns=3, width=42)
    clean(rises, f"Rise within a window{share}", columns=2, width=36)
    clean(histogram, "Where tasks begin and end", columns=2 * bool(len(lines)), width=36)
    title = f"{world_name(inspection.dataset['env_id'])}: {inspection.verdict} ({_settings(inspection)})"
    figure.suptitle(fill(title, 120), x=0.01, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    save(figure, path)
