"""Progress bars and messages, where there is no terminal."""

import logging
import subprocess
import sys

from accelerate import PartialState
from accelerate.logging import get_logger

from ad_hf.progress import ProgressBar, show_messages

BAR = """
from ad_hf.progress import ProgressBar
with ProgressBar("train", 500, "tokens") as bar:
    for _ in range(500):
        bar.update()
        bar.set_postfix(loss=1)
"""


def test_without_a_terminal_a_bar_is_a_line_and_no_carriage_return():
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, timeout=60, check=True)
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[-1].startswith("train: 100%")
    assert "tokens/s" in lines[-1]


def test_messages_are_shown_from_a_level_on_and_quiet_hides_bars(capsys):
    logger = logging.getLogger("ad_hf")
    before = logger.handlers, logger.level, logger.propagate
    PartialState()
    try:
        show_messages(logging.INFO)
        get_logger("ad_hf.training").info("training in float32")
        logger.debug("not shown")
        show_messages(logging.WARNING)
        logger.info("not shown")
        with ProgressBar("train", 3, disable=False) as bar:
            bar.update(3)
    finally:
        logger.handlers, logger.level, logger.propagate = before
        ProgressBar.are_hidden = False
    assert capsys.readouterr().err.splitlines() == ["training in float32"]
