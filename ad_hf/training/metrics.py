"""The metrics of a run: metrics.jsonl, a picture, and trackers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import matplotlib.image
import numpy as np
from accelerate import Accelerator
from matplotlib import colormaps

from ad_hf.evaluation.style import AD_COLOUR, SOURCE_COLOUR, clean, new_figure, save, write_numbers
from ad_hf.settings import parse_json, read_utf8
from ad_hf.storage.files import atomic_path, write_text
from ad_hf.structure import check_structure

METRICS_FILE, PICTURE = "metrics.jsonl", "training.png"
CURVE = "validation_curve"  # mean return of each episode: all other metrics are numbers
MOST_LABELS = 3  # of validations in the picture


class Line(TypedDict):
    """A line of `metrics.jsonl`."""

    step: Annotated[int, range(1, 2**63)]
    validation_curve: NotRequired[list[float]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """
    The lines of a `metrics.jsonl`, but for a last one that was not finished.

    Raises:
        ValueError: for a line that does not hold metrics, with its number and the entry.
    """
    lines = []
    for number, text in enumerate(read_utf8(path).splitlines(keepends=True), start=1):
        if text.endswith("\n"):
            where = f"{path}, line {number}"
            line = parse_json(text, where)
            check_structure(line, Line, where)
            check_structure({name: value for name, value in line.items() if name != CURVE}, dict[str, float], where)
            lines.append(line)
    return lines


class Metrics:
    """
    The main process keeps metrics in `metrics.jsonl` and a picture; the accelerator's trackers get them, too. Lines of
    updates that are not done are dropped: a run that goes on does them again.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, done: int) -> None:
        self._accelerator, self._path, self._picture = accelerator, output_dir / METRICS_FILE, output_dir / PICTURE
        self._lines: list[dict[str, Any]] = []
        if not accelerator.is_main_process:
            return
        if done and self._path.is_file():
            self._lines = [line for line in read_metrics(self._path) if line["step"] <= done]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))
        if not done:
            self._picture.unlink(missing_ok=True)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep the metrics of an update, and draw the picture anew after a validation."""
        self._accelerator.log({name: value for name, value in metrics.items() if name != CURVE}, step=step)
        if self._accelerator.is_main_process:
            self._lines.append({"step": step, **metrics})
            with open(self._path, "a") as file:
                file.write(json.dumps(self._lines[-1]) + "\n")
            if CURVE in metrics:
                with atomic_path(self._picture) as path:
                    plot_training(path, self._lines)
                self._log_picture(step)

    def _log_picture(self, step: int) -> None:
        """Give the picture to the trackers that take pictures."""
        pixels = (255 * matplotlib.image.imread(self._picture, format="png")[..., :3]).astype(np.uint8)
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"training": pixels[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "trackio":
                import trackio

                tracker.log({"training": trackio.Image(pixels)}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"training": [pixels]}, step=step)


def plot_training(path: str | Path, lines: Sequence[dict[str, Any]]) -> None:
    """Draw the losses of a run by updates, and the returns of its validations by episode, as a PNG."""
    figure = new_figure(8.4, 3.6)
    losses, returns = figure.subplots(1, 2)
    kinds = {"loss": ("training histories", SOURCE_COLOUR), "validation_loss": ("validation histories", AD_COLOUR)}
    for name, (label, colour) in kinds.items():
        # With dynamics heads, the loss of the actions is a part of the loss.
        if points := [(line["step"], line.get(f"{name}/actions", line[name])) for line in lines if name in line]:
            losses.plot(*zip(*points), color=colour, label=label, marker="" if name == "loss" else ".")
    losses.set(xlabel="updates", ylabel="nats per action")
    validations = [line for line in lines if CURVE in line]
    best = max(validations, key=lambda line: line["validation_return"])
    few = len(validations) <= MOST_LABELS
    labelled = {line["step"] for line in (validations if few else (validations[0], best, validations[-1]))}
    shades = colormaps["Blues"](np.linspace(0.35, 0.9, len(validations)))
    for line, shade in zip(validations, shades):
        is_best = line is best
        returns.plot(
            range(1, len(line[CURVE]) + 1),
            line[CURVE],
            color=AD_COLOUR if is_best else shade,
            linewidth=2 if is_best else 1.2,
            zorder=3 if is_best else 2,
            label=f"after {line['step']:,}" + ", the best" * is_best if line["step"] in labelled else None,
        )
    returns.set(xlabel="episode in the context", ylabel="return on validation tasks")
    for axes, title, columns in ((losses, "Loss", 2), (returns, "Learning in context, by updates", 3)):
        write_numbers(axes.xaxis)
        write_numbers(axes.yaxis)
        clean(axes, title, columns=columns, width=36)
    save(figure, path)
