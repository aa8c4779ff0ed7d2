"""A process that uses the Hub and does one job after another, since importing the libraries takes seconds.

A job is a line of JSON on stdin: `argv` of an `ad-hf` command or, if there is a `script`, of that Python script. Its
result, a line of JSON on stdout, is what a process of its own would leave: returncode, stdout and stderr.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback
import warnings
from types import SimpleNamespace

from ad_hf.cli import main
from ad_hf.storage import repositories

# A tenth of the patience with a Hub that fails.
repositories.time = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: time.sleep(seconds / 10))


def run(job):
    """Do a job; returns what a process would exit with."""
    for name, value in job["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        if job["script"] is None:
            return main(job["argv"])
        sys.argv = ["-c", *job["argv"]]
        exec(compile(job["script"], "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def work():
    """Do all jobs."""
    jobs, results = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compiled code prints is no result
    warnings.simplefilter("always", UserWarning)  # and not once for all jobs
    for line in jobs:
        with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
            returncode = run(json.loads(line))
        result = {"returncode": returncode, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    work()
