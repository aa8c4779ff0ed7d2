"""Collections of which some tasks fail: the others are learnt, and the next call tries again those that failed."""

import json
import pickle
import re
import sys
from functools import partial

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from faulty import SMALL, contents, make_family

from ad_hf import CollectionError
from ad_hf.cli import main
from ad_hf.collection.collect import collect
from ad_hf.collection.executors import run_jobs
from ad_hf.collection.failures import TaskFailure
from ad_hf.collection.jobs import Job, Outcome
from ad_hf.collection.processes import ProcessPool
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.histories.schema import read_metadata

SMALL = {**SMALL, "num_workers": 2}


def tasks_and_seeds(folder):
    """The tasks and seeds of a dataset's histories."""
    ids = [name for path in (folder / "default").glob("*.parquet") for name in pq.read_table(path)["history_id"]]
    return sorted({tuple(map(int, name.as_py().split("-")[:2])) for name in ids})


FAULTS = {
    "construction": r"RuntimeError: no such room",
    "reset": r"KeyError: 'lost'",
    "step": r"ZeroDivisionError: a long story \(in step 5\)",
    "exit": r"SystemExit: bye",
    "reward": r"ValueError: environment 0 gave the reward nan at step 5, expected a number",
    "outside": r"ValueError: environment 0 gave the observation 7 at step 6, expected an element of Discrete\(4\)",
    "wraps": r"ValueError: environment 0 gave the observation 25[67] at step 6",
    "space": r"ValueError: its observation space is Discrete\(5\), expected the family's, {.*'n': 4}",
    "float nan": r"ValueError: its observation space is Box",
    "death": r"its worker process died by signal SIGKILL",
}


def test_every_fault_is_named_and_all_other_tasks_are_learnt(tmp_path):
    """Workers that die take no other task with them."""
    faults = [None, *FAULTS, None]
    with pytest.raises(CollectionError) as caught:
        collect(make_family(faults), **SMALL, output_dir=tmp_path)
    assert caught.value.output_dir == tmp_path
    failures = caught.value.failures
    assert [failure.task_id for failure in failures] == list(range(1, len(faults) - 1))
    for failure, (fault, message) in zip(failures, FAULTS.items(), strict=True):
        assert failure.kwargs["fault"] == fault
        assert re.search(message, failure.error), failure.error
        assert ("faulty.py" in failure.traceback) == (fault in ("construction", "reset", "step", "exit"))
    assert tasks_and_seeds(tmp_path) == [(0, 0), (11, 0)]
    metadata = read_metadata(tmp_path)
    assert metadata.failures == [
        {"task_id": failure.task_id, "seed": 0, "error": failure.error} for failure in failures
    ]
    assert [row[0] for row in metadata.progress["rows"]] == [0, 11]
    assert f"- Missing: {len(FAULTS)} times a task could not be learnt" in (tmp_path / "README.md").read_text()
    assert len(load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))) == 4


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            {"env_id": "faulty:Endless-v0", "tasks": [{"goal": 3}]},
            r"no episode ended in the 30 steps .*max_episode_steps",
        ),
        (
            {
                "env_id": "faulty:Faulty-v0",
                "splits": {"train": [{"goal": 1}], "test": [{"goal": 2, "fault": "step"}]},
            },
            r"no dataset is written to .*all tasks of the split 'test' failed",
        ),
    ],
    ids=["endless", "split"],
)
def test_split_without_any_histories_is_refused(family, message, tmp_path):
    with pytest.raises(CollectionError, match=message) as caught:
        collect(TaskFamily(**family), **SMALL, output_dir=tmp_path)
    assert caught.value.output_dir is None
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path)


@pytest.mark.parametrize("tasks_per_job", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_call_after_a_transient_fault_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, caplog, tasks_per_job):
    """What was finished is not run again, shards that are whole stay the same files, and none is missing meanwhile."""
    cured, faults = tmp_path / "cured", [None, "step", None, None, "death", "reset", None, None, None]
    family = make_family(faults, cured=str(cured))
    settings = {**SMALL, "seeds": [0, 1], "tasks_per_job": tasks_per_job, "shard_transitions": 120 * tasks_per_job}
    cured.touch()
    one_worker = settings | {"num_workers": 1}
    undisturbed = collect(family, **one_worker, output_dir=tmp_path / "undisturbed")
    cured.unlink()
    folder = tmp_path / "histories"
    with pytest.raises(CollectionError, match="6 of 18 tasks and seeds failed") as caught:
        collect(family, **settings, output_dir=folder)
    assert len(caplog.records) == 3  # what fails alike is told once
    assert tasks_and_seeds(folder) == [
        (task, seed) for task, fault in enumerate(faults) if not fault for seed in (0, 1)
    ]
    shards = list((folder / "default").glob("*.parquet"))
    assert all(path.name.endswith(f"-of-{len(shards):05d}.parquet") for path in shards)
    inodes = {path.stat().st_ino for path in shards}

    with pytest.raises(CollectionError) as again:  # nothing has changed
        collect(family, **one_worker, output_dir=folder)
    assert again.value.failures == caught.value.failures
    parts = list((folder / ".incomplete" / "default").glob("part-*"))  # of shards that lack others
    assert bool(parts) == (tasks_per_job > 1)

    cured.touch()
    assert collect(family, **one_worker, output_dir=folder) == folder
    assert contents(folder) == contents(undisturbed)
    assert not (folder / ".incomplete").exists()
    same = inodes & {path.stat().st_ino for path in (folder / "default").glob("*.parquet")}
    assert len(same) == (6 if tasks_per_job == 1 else 0)


def test_first_tasks_that_all_fail_alike_stop_a_collection_once(tmp_path, caplog):
    """Though their errors differ in numbers; then it goes on, with the others or with other settings."""
    settings = {**SMALL, "num_workers": 0, "seeds": [0, 1]}
    family, folder = make_family(["wraps"] * 4 + [None]), tmp_path / "histories"
    with pytest.raises(CollectionError, match="the first tasks all failed alike, and the coll") as caught:
        collect(family, **settings, output_dir=folder)
    assert [(failure.task_id, failure.seed) for failure in caught.value.failures] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert str(caught.value).splitlines()[-1] == "... and 4 more that failed alike"
    assert len(caplog.records) == 1
    with pytest.raises(CollectionError, match="8 of 10 tasks and seeds failed"):
        collect(family, **settings, output_dir=folder)
    assert tasks_and_seeds(folder) == [(4, 0), (4, 1)]

    family, folder = make_family(["reset"] * 5), tmp_path / "other"
    with pytest.raises(CollectionError, match="stopped"):
        collect(family, **settings, output_dir=folder)
    with pytest.raises(CollectionError, match="stopped"):
        collect(family, **{**settings, "n_envs": 3}, output_dir=folder)
    with pytest.raises(CollectionError, match="all tasks of the split 'train' failed, 10 in all"):
        collect(family, **{**settings, "n_envs": 3}, output_dir=folder)


def test_command_line_tells_failed_tasks_from_wrong_settings_and_needs_its_work_to_go_on(tmp_path, capsys):
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "histories"
    family = {"env_id": "faulty:Faulty-v0", "tasks": [{"goal": 1}, {"goal": 2, "fault": "step"}]}
    source = {name: value for name, value in SMALL.items() if name != "num_workers"}
    recipe.write_text(json.dumps({"family": family, "source": source}))
    command = ["collect", "--recipe", str(recipe), "--output_dir", str(folder), "--num_workers", "1"]
    assert main(command) == 3
    printed = capsys.readouterr().err
    assert "1 of 2 tasks and seeds failed" in printed
    assert "ZeroDivisionError: a long story" in printed
    assert main([*command, "--source.n_envs", "0"]) == 2

    settings = folder / ".incomplete" / "default" / "collection.json"
    settings.write_text("{")
    with pytest.raises(ValueError, match=r"collection\.json is not JSON"):
        collect(TaskFamily(**family), **SMALL, output_dir=folder)
    settings.unlink()
    with pytest.raises(ValueError, match="lacks 1 tasks that failed"):
        collect(TaskFamily(**family), **SMALL, output_dir=folder)


def test_error_shows_some_failures_and_survives_pickling():
    failures = [
        TaskFailure(index, {"goal": index}, 0, f"ValueError: {chr(97 + index % 12)} in step {index}", "a\nb")
        for index in range(15)
    ]
    error = pickle.loads(pickle.dumps(CollectionError(failures, None, "15 failed")))
    assert error.failures == failures
    lines = str(error).splitlines()
    alike = "... and 1 more that failed alike"
    assert lines[:5] == ["15 failed", "task 0 {'goal': 0}, seed 0: ValueError: a in step 0", "    a", "    b", alike]
    assert len(lines) == 1 + 10 * 3 + 3 + 1
    assert lines[-1] == "... and 2 more"


def write_loaded_modules(file, job, on_step):
    """A job that learns nothing."""
    loaded = [name for name in ("ad_hf", "stable_baselines3", "transformers", "accelerate") if name in sys.modules]
    file.write_text(" ".join(loaded))
    return Outcome(job, 0)


def test_a_worker_starts_without_the_model_that_it_does_not_need(tmp_path):
    job = Job((Task(0, {}, "train"),), 0)
    pool = ProcessPool(partial(write_loaded_modules, tmp_path / "loaded"), lambda transitions: None, 1)
    assert list(run_jobs(pool, [job])) == [Outcome(job, 0)]
    assert (tmp_path / "loaded").read_text() == "ad_hf stable_baselines3"
