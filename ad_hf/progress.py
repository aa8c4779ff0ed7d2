"""Progress bars and messages, for terminals, notebooks and the logs of jobs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


class ProgressBar(tqdm):
    """
    A tqdm bar with the rate and the time that is left.

    On a terminal or in a notebook it is tqdm's own. Elsewhere, as in the log of a job, it writes a line of its own at
    most every half a minute, and one at its end.

    Args:
        description (`str`):
            What is done.
        total (`int`, *optional*):
            How much there is to do.
        unit (`str`):
            What is counted.
        settings:
            Further arguments of `tqdm`.
    """

    are_hidden = False

    def __init__(self, description: str, total: int | None = None, unit: str = "it", **settings: Any) -> None:
        self._watched = sys.stderr.isatty() or "notebook" in tqdm.__module__
        settings["disable"] = self.are_hidden or settings.get("disable", False)
        if not self._watched:
            settings = {**settings, "mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES}
        super().__init__(desc=description, total=total, unit=f" {unit}", unit_scale=True, **settings)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Print lines under one another where a carriage return would not overwrite the last one."""
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(line: str) -> None:
            file.write(f"{line}\n")
            file.flush()

        return print_line

    def refresh(self, *arguments: Any, **settings: Any) -> None:
        """Draw the bar anew, unless every drawing is a line."""
        if self._watched:
            super().refresh(*arguments, **settings)

    def close(self) -> None:
        """End the bar, where lines are written with the last of them."""
        if not self._watched and not self.disable:
            self.display()
            self.disable = True
            type(self)._decr_instances(self)  # type: ignore[attr-defined]
        super().close()


class _Lines(logging.Handler):
    """Messages on the standard error, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        # Accelerate puts the rank before each message, also where the main process speaks for all.
        tqdm.write(self.format(record).removeprefix("[RANK 0] "), file=sys.stderr)


def show_messages(level: int) -> None:
    """
    Show the messages of this package from a level on, as the command line does; below INFO's, hide progress bars, too.

    Args:
        level (`int`):
            Of `logging`, such as `logging.INFO`.
    """
    logger = logging.getLogger("ad_hf")
    logger.handlers = [_Lines()]
    logger.setLevel(level)
    logger.propagate = False
    ProgressBar.are_hidden = level > logging.INFO
