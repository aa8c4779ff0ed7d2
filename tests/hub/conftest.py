"""A Hub of its own for each test, and a way to run the real clients against it."""

import subprocess
import sys

import pytest
from local_hub import TOKEN, LocalHub


@pytest.fixture
def hub(tmp_path):
    """A running Hub without repositories."""
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def run_with_hub(hub, tmp_path):
    """Run a Python script (text) or a command (list) in a process that uses the Hub, in an empty folder.

    Another process, because the clients read where their Hub is when they are imported.
    """

    def run(script_or_argv, *arguments, token=TOKEN, check=True, environment=None, timeout=300):
        command = [sys.executable, "-c", script_or_argv] if isinstance(script_or_argv, str) else script_or_argv
        cwd = tmp_path / "cwd"
        cwd.mkdir(exist_ok=True)
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)],
            cwd=cwd,
            env={**hub.environment(tmp_path / "hf_home", token), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{done.args[:3]} failed:\n{done.stderr[-4000:]}"
        return done

    return run
