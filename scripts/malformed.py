"""
Try inputs that are malformed or hostile, and honest ones that are odd, and count what came of each: one clear line, or
a traceback, a hang, a refusal of what is right, something wrong that passes silently.

    python scripts/malformed.py
    python scripts/malformed.py --area recipes datasets --json malformed.json
    python scripts/malformed.py --only D12 --verbose

A tiny Dark Room run is made once. Every input is then tried in a process of its own, forked from one that has imported
all there is to import: a hang ends after a while, and memory is bounded. Exit status 1 if anything was silently wrong,
hung, or ended in a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS), str(SCRIPTS.parent / "tests" / "hub")]  # this checkout, and its Hub

from malformed_inputs.common import Input, Place, command  # noqa: E402

AREAS = {
    "recipes": "R",
    "command_line": "C",
    "datasets": "D",
    "models": "M",
    "checkpoints": "K",
    "rollouts": "O",
    "configurations": "A",
    "converters": "V",
    "minari_datasets": "N",
    "security": "S",
    "publishing": "P",
}  # a module each, and what ids begin with
OUTCOMES = ("clear", "accepted", "unclear", "wrongly refused", "silent", "hang", "traceback")
BAD = ("silent", "hang", "traceback")
ERROR = re.compile(r"\bad-hf\b[^:\n]*: error: .*")  # of ad-hf or one of its verbs, also behind a bar of progress
UNFORESEEN = re.compile(
    r"error: (?:[\w.]+\.)?[A-Z]\w*: .*\(--debug"
)  # the class of an error, as the last handler has it
MEMORY = 8 << 30  # bytes that an input may take beyond what is imported


def isolate(folder: Path) -> None:
    """Have no library reach for the network or for the user's own folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens there, but a Hub that an input starts
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "MINARI_DATASETS_PATH": str(folder / "minari"),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "COLUMNS": "200",
    }


def prepare(base: Path) -> None:
    """The honest run that inputs are made from."""
    import h5py
    import numpy as np
    import yaml
    from malformed_inputs.common import TINY

    os.chdir(base)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    room4 = {**TINY, "family": {**TINY["family"], "env_kwargs": {"size": 4, "max_episode_steps": 6}}}
    room4["source"] = {**TINY["source"], "n_envs": 2, "total_timesteps": 48}
    Path("room4.yaml").write_text(yaml.safe_dump(room4, sort_keys=False))
    rng = np.random.default_rng(0)
    dones = np.tile(np.arange(30) % 10 == 9, (2, 1))
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(2, 30, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(2, 30, 2)).astype(np.float32),
        "rewards": rng.normal(size=(2, 30)),
        "dones": dones,
    }
    np.savez("box.npz", **arrays)
    with h5py.File("box.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    space = json.dumps({"type": "Box", "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2, "dtype": "float32"})
    tiny = ["--recipe", "tiny.yaml"]
    for argv in (
        ["collect", *tiny, "--output_dir", "h", "--num_workers", "1"],
        ["collect", "--recipe", "room4.yaml", "--output_dir", "room4", "--num_workers", "1"],
        ["train", *tiny, "--dataset", "h", "--output_dir", "run"],
        [
            "rollout",
            *tiny,
            "--model",
            "run",
            "--dataset",
            "h",
            "--output_dir",
            "run",
            "--no_video",
            "--num_seeds",
            "1",
        ],
        ["evaluate", "--model", "run", "--dataset", "h", "--output_dir", "evaluation", "--num_seeds", "1"],
        ["convert", "from-arrays", "box.npz", "box", "--env_id", "Arm-v0", "--action_space", space],
        ["convert", "to-minari", "h", "tiny/a2c-v0"],
    ):
        if command(argv):
            raise RuntimeError(f"the honest command failed: ad-hf {' '.join(argv)}")


def forked(call: Callable[[], Any], output: Path, seconds: float) -> tuple[Any, bool]:
    """
    What a call returns in a process of its own, which writes to `output`.out and .err, and whether it was stopped.
    """
    result = output.with_suffix(".json")
    child = os.fork()
    if not child:
        os.setsid()
        for number, ending in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(output.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        try:
            result.write_text(json.dumps(call()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    end, stopped = time.monotonic() + seconds, False
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            stopped = True
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return (json.loads(result.read_text()) if result.exists() and not stopped else None), stopped


def attempt(given: Input, place: Place) -> dict[str, Any]:
    """Make an input and try it; says how it ended."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.chdir(place.folder)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"returned": None, "error": None, "kind": None, "wrong": None, "status": None}
    task = given.make(place)
    value = None
    try:
        if isinstance(task, list):
            found["status"] = value = command(task)
        else:
            value = task()
            found["returned"] = repr(value)[:300]
    except SystemExit as stop:  # of argparse
        found["status"] = stop.code
    except BaseException as error:
        traceback.print_exc()
        found["error"], found["kind"] = (
            f"{type(error).__name__}: {error}",
            [each.__name__ for each in type(error).__mro__],
        )
    finished = found["error"] is None and found["status"] in (None, 0)
    if given.check is not None and finished:
        try:
            found["wrong"] = given.check(place, value)
        except BaseException as error:
            found["wrong"] = f"what it made cannot be checked: {type(error).__name__}: {error}"
    return found


def judge(given: Input, found: dict[str, Any] | None, place: Place, stderr: str) -> tuple[str, str]:
    """The outcome of an input, and what shows it."""
    if found is None:
        return "traceback", f"the process died: {stderr[-500:]}"
    if place.marker.exists():
        return "silent", "a command of the input was run"
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    said = [match[0] for line in lines if (match := ERROR.search(line))]
    if found["error"] is not None:
        allowed = {"ValueError", "OSError", "StrictDataclassError"}
        message, clear = found["error"], not allowed.isdisjoint(found["kind"])
        clear = clear or ("TypeError" in found["kind"] and given.names is not None and bool(_named(given, message)))
        if not clear or found["status"] is not None:
            return "traceback", message
    elif found["status"] in (None, 0):
        if found["wrong"]:
            return "silent", found["wrong"]
        if given.names is None or given.either:
            return "accepted", ""
        return "silent", f"accepted: {found['returned'] or ' '.join(lines)[-300:]}"
    else:
        message = " ".join(said) or " ".join(lines)[-300:]
        if found["status"] == 3:  # tasks that failed, each of which said why
            if "Traceback (most recent call last)" in stderr:
                return "unclear", f"a traceback of each job: {message} {lines[-1]}"
            message = " ".join(lines)[-600:]
        if "Traceback (most recent call last)" in stderr:
            return "traceback", f"status {found['status']}: {message} {lines[-1]}"
        if len(said) != 1 and found["status"] != 3:
            return "unclear", f"status {found['status']}, {len(said)} lines of error: {message}"
        if found["status"] not in (2, 3):
            return "unclear", f"status {found['status']}: {message}"
    if given.names is None:
        return "wrongly refused", message
    if UNFORESEEN.search(message):
        return "unclear", f"nobody foresaw it: {message}"
    return ("clear", message) if _named(given, message) else ("unclear", f"does not name {given.names!r}: {message}")


def _named(given: Input, message: str) -> bool:
    return given.names is not None and re.search(given.names, message, re.IGNORECASE | re.DOTALL) is not None


def collected_inputs(areas: list[str], only: list[str]) -> list[Input]:
    """All inputs of some areas, by number, or those of some ids."""
    found = []
    for area in areas:
        inputs = importlib.import_module(f"malformed_inputs.{area}").inputs()
        found += [replace(each, id=f"{AREAS[area]}{number:02d}") for number, each in enumerate(inputs, start=1)]
    return [each for each in found if not only or each.id in only]


def table(results: list[dict[str, Any]]) -> str:
    """How many inputs of each area ended how, as a table in Markdown."""
    rows = [["area", "inputs", *OUTCOMES], ["---", *["---:"] * (len(OUTCOMES) + 1)]]
    for area in [*dict.fromkeys(each["area"] for each in results), "all"]:
        chosen = [each for each in results if area in (each["area"], "all")]
        counts = Counter(each["outcome"] for each in chosen)
        rows.append([area, str(len(chosen)), *(str(counts[outcome]) for outcome in OUTCOMES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Try the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", nargs="+", choices=AREAS, default=list(AREAS), help="areas to try (default: all)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="these inputs alone")
    parser.add_argument("--json", metavar="FILE", help="where to write what came of each")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds until it is a hang (default: %(default)s)"
    )
    parser.add_argument("--base", metavar="DIR", help="folder of an honest run to make, or to take again")
    parser.add_argument("--verbose", action="store_true", help="show every input, and its whole output with --only")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="malformed_"))
    base = Path(arguments.base or folder / "base").resolve()
    isolate(folder)

    import torch

    inputs = collected_inputs(arguments.area, arguments.only)
    torch.set_num_threads(1)
    begin = time.monotonic()
    if not (base / "ready.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        os.environ["MINARI_DATASETS_PATH"] = str(base / "minari")

        def make() -> list[str]:
            prepare(base)
            return sorted(sys.modules)

        imported, _ = forked(make, folder / "prepare", 600)
        if imported is None:
            print((folder / "prepare.err").read_text()[-3000:])
            raise RuntimeError("the honest run could not be made")
        (base / "ready.json").write_text(json.dumps(imported))
    for name in json.loads((base / "ready.json").read_text()):
        if not name.startswith("__"):
            try:
                importlib.import_module(name)
            except Exception:  # of modules that others put there under another name
                continue
    print(f"an honest run, after {time.monotonic() - begin:.0f} s; {len(inputs)} inputs", flush=True)
    results: list[dict[str, Any]] = []
    for given in inputs:
        start = time.monotonic()
        place = Place(base, Path(tempfile.mkdtemp(prefix=f"{given.id}_", dir=folder)))
        output = folder / given.id
        os.environ["MINARI_DATASETS_PATH"] = str(place.folder / "minari")
        found, stopped = forked(partial(attempt, given, place), output, arguments.timeout)
        stderr = output.with_suffix(".err").read_text(errors="replace")
        outcome, message = ("hang", "") if stopped else judge(given, found, place, stderr)
        message = " ".join(message.replace(str(place.folder), "DIR").split())
        seconds = round(time.monotonic() - start, 2)
        results.append(
            {"id": given.id, "area": given.area, "what": given.what, "outcome": outcome, "message": message}
        )
        results[-1]["seconds"] = seconds
        if arguments.verbose or outcome not in ("clear", "accepted"):
            print(f"{given.id} {given.what}: {outcome} ({seconds} s)\n    {message[:400]}", flush=True)
        if arguments.verbose and arguments.only:
            print(stderr)
        shutil.rmtree(place.folder, ignore_errors=True)
    print(f"\n{table(results)}\n\n{len(results)} inputs in {time.monotonic() - begin:.0f} s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return int(any(each["outcome"] in BAD for each in results))


if __name__ == "__main__":
    sys.exit(main())
