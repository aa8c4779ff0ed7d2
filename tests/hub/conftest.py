"""A Hub of its own for each test, and ways to run the real clients against it."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_hub import TOKEN, LocalHub


class Worker:
    """`hub_worker.py` at work; started anew if a job took too long or killed it."""

    def __init__(self, environment, cwd):
        self._environment, self._cwd = environment, cwd
        self.home = environment["HF_HOME"]
        self._process = None

    def run(self, job, timeout):
        """The result of a job."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, Path(__file__).with_name("hub_worker.py")]
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self._cwd, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.start()
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the worker ended, or was stopped after {timeout} s, in {job}"
        return SimpleNamespace(**json.loads(line))

    def stop(self):
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="session")
def hub_port():
    """A port for one Hub after another, since clients read where their Hub is when they are imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def hub(tmp_path, hub_port):
    """A running Hub without repositories."""
    with LocalHub(tmp_path / "hub", hub_port) as hub:
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


@pytest.fixture(scope="session")
def worker(tmp_path_factory, hub_port):
    """A process for all tests that need none of their own."""
    folder = tmp_path_factory.mktemp("worker")
    environment = LocalHub(folder / "unused", hub_port).environment(folder / "hf_home")
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub_port}"
    worker = Worker(environment, folder)
    yield worker
    worker.stop()


@pytest.fixture
def ad_hf_with_hub(hub, worker):
    """Run an `ad-hf` command, or a Python script, in a process that uses the Hub and has imported all it needs."""

    def run(*argv, script=None, token=TOKEN, check=True, timeout=200):
        job = {"argv": [*map(str, argv)], "script": script, "environment": {"HF_TOKEN": token}}
        done = worker.run(job, timeout)
        assert not check or done.returncode == 0, f"{job['argv']} failed:\n{done.stderr[-4000:]}"
        return done

    return run
