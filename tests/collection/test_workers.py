"""Worker processes: what they load, and what a program's own do."""

import subprocess
import sys
from functools import partial

from ad_hf.collection.workers import run_jobs

from ad_hf.collection.jobs import Job, Outcome
from ad_hf.envs.task_family import Task

OWN_PROCESS = """
import multiprocessing

import ad_hf


def find(_):
    from transformers import AutoConfig

    return type(AutoConfig.for_model("ad")).__name__


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(find, [0])[0])
"""


def write_loaded_modules(file, job, on_progress):
    """A job that learns nothing."""
    found = [name for name in ("ad_hf", "stable_baselines3", "transformers", "accelerate") if name in sys.modules]
    file.write_text(" ".join(found))
    return Outcome(job, 0)


def test_a_worker_starts_without_the_model_that_it_does_not_need(tmp_path):
    job = Job((Task(0, {}, "train"),), 0)
    run = partial(write_loaded_modules, tmp_path / "loaded")

    assert len(list(run_jobs(run, jobs=[job], on_progress=lambda transitions: None, num_workers=1))) == 1

    assert (tmp_path / "loaded").read_text() == "ad_hf stable_baselines3"


def test_a_programs_own_processes_know_the_model(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OWN_PROCESS)

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout == "ADConfig\n"
