"""Collections that several processes do together, or that are written to a URL: the same files in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset
from faulty import SMALL, contents, make_family, make_tasks

from ad_hf import CollectionError
from ad_hf.collection.collect import collect
from ad_hf.collection.jobs import Outcome
from ad_hf.collection.layout import ShardLayout
from ad_hf.collection.work_folder import WorkFolder
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata
from ad_hf.storage.folders import Folder

SETTINGS = {**SMALL, "total_timesteps": 6000, "seeds": [0, 1], "shard_transitions": 12000, "num_workers": 1}
FIVE = [None] * 5
SCRIPT = """
import json, sys
from ad_hf import TaskFamily, collect

if __name__ == "__main__":
    tasks, settings = json.loads(sys.argv[1])
    collect(TaskFamily("faulty:Faulty-v0", tasks, num_test_tasks=1), **settings)
"""


def collect_to(folder, faults=FIVE, cured="", **changes):
    return collect(make_family(faults, 1, cured=str(cured)), **{**SETTINGS, **changes}, output_dir=folder)


def start(tmp_path, **changes):
    """A process of its own that collects."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps([make_tasks(FIVE), {**SETTINGS, **changes}])],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The dataset that a single call makes of five tasks."""
    return collect_to(tmp_path_factory.mktemp("single") / "histories")


def test_processes_at_the_same_time_make_the_dataset_of_one_though_one_is_killed(collected, tmp_path):
    folder = tmp_path / "histories"
    work = folder / ".incomplete" / "default"
    processes = [start(tmp_path, output_dir=str(folder), part=f"{part}/2") for part in (1, 2)]
    try:
        deadline = time.monotonic() + 240
        while not any(work.rglob("part-*")) and not any(work.rglob("*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(processes[0].pid, signal.SIGKILL)
        processes[0].communicate()
        processes.append(start(tmp_path, output_dir=str(folder), part="1/2"))
        for process in processes[1:]:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    assert contents(folder) == contents(collected)


def test_part_leaves_others_files_alone_and_says_which_shards_are_missing(collected, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "histories"
    shards = folder / ".incomplete" / "default" / "shards"
    shards.mkdir(parents=True)
    being_written, left_behind = (shards / f".train-0000{shard}-of-00004.parquet.1-ab.tmp" for shard in (1, 0))
    being_written.write_bytes(b"PAR1 half")
    left_behind.write_bytes(b"PAR1 half")

    assert collect_to(folder, part="1/2") == folder
    assert "shards that are missing: 2 of part 2/2" in caplog.text
    assert being_written.read_bytes() == b"PAR1 half"
    assert not left_behind.exists()
    with pytest.raises(FileNotFoundError):
        read_metadata(folder)

    collect_to(folder, part="2/2")
    assert contents(folder) == contents(collected)


@pytest.mark.slow
def test_failures_of_one_part_are_known_to_the_other(collected, tmp_path):
    folder, settings = tmp_path / "histories", {"faults": [None, "step", *[None] * 3], "cured": tmp_path / "cured"}
    family = make_family(settings["faults"], 1)
    failing = ShardLayout(family.tasks(), SETTINGS["seeds"], 1, 2).find(1, 0) % 2 + 1
    with pytest.raises(CollectionError, match=f"part {failing}/2 has done its share") as caught:
        collect_to(folder, **settings, part=(failing, 2))
    assert caught.value.output_dir is None
    with pytest.raises(CollectionError, match=r"2 of 10 tasks and seeds failed; .* holds the others") as caught:
        collect_to(folder, **settings, part=(3 - failing, 2))
    assert [failure.task_id for failure in caught.value.failures] == [1, 1]
    assert len(read_metadata(folder).failures) == 2

    settings["cured"].touch()
    collect_to(folder, **settings, part=(failing, 2))
    assert contents(folder, "*.parquet") == contents(collected, "*.parquet")


def test_dataset_at_a_url_is_that_of_a_folder(collected, tmp_path, monkeypatch):
    """After an interruption, too, and as load_dataset reads it."""
    folder = tmp_path / "there" / "histories"
    url = folder.as_uri()

    def interrupt(self, outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkFolder, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect_to(url)
    monkeypatch.undo()
    assert list((folder / ".incomplete" / "default").glob("part-*"))
    assert collect_to(url) == url
    assert contents(folder) == contents(collected)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "default"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert collect_to(url) == url
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    rows, expected = (
        list(load_dataset(str(each), split="test", cache_dir=str(tmp_path / name)))
        for each, name in ((folder, "cache"), (collected, "other"))
    )
    assert rows == expected


def test_failures_at_a_url_are_tried_again(collected, tmp_path):
    folder, settings = tmp_path / "histories", {"faults": ["reset", "step", *[None] * 3], "cured": tmp_path / "cured"}
    with pytest.raises(CollectionError, match="4 of 10"):
        collect_to(folder.as_uri(), **settings)
    assert len(read_metadata(folder).failures) == 4
    settings["cured"].touch()
    collect_to(folder.as_uri(), **settings)
    assert contents(folder, "*.parquet") == contents(collected, "*.parquet")


@pytest.mark.parametrize(("tasks_per_job", "jobs_per_shard"), [(1, 1), (1, 4), (3, 2), (2, 7), (5, 100)])
def test_jobs_are_pure_functions_of_their_numbers(tasks_per_job, jobs_per_shard):
    """Each split's tasks in groups, each group with every seed, so many jobs to a shard."""
    family = TaskFamily("faulty:Faulty-v0", make_tasks([None] * 11), num_validation_tasks=1, num_test_tasks=3)
    seeds = [7, 0, 3]
    layout = ShardLayout(family.tasks(), seeds, tasks_per_job, jobs_per_shard)
    expected = []
    for split in ("train", "validation", "test"):
        tasks = family.tasks(split)
        groups = [tasks[start : start + tasks_per_job] for start in range(0, len(tasks), tasks_per_job)]
        jobs = [([task.task_id for task in group], seed) for group in groups for seed in seeds]
        shards = [jobs[start : start + jobs_per_shard] for start in range(0, len(jobs), jobs_per_shard)]
        expected += [(f"{split}-{index:05d}-of-{len(shards):05d}.parquet", each) for index, each in enumerate(shards)]
    assert len(layout.shards) == len(expected)
    for shard, (name, jobs) in enumerate(expected):
        assert [([task.task_id for task in job.tasks], job.seed) for job in layout.jobs(shard)] == jobs
        assert layout.shards[shard].name == name
        assert layout.num_tasks(shard) == sum(len(tasks) for tasks, _ in jobs)
        assert {layout.find(task, seed) for tasks, seed in jobs for task in tasks} == {shard}


def test_part_that_is_not_seen_here_is_explained(tmp_path):
    """As where a worker on another machine wrote it, and the disk is not shared."""
    work = WorkFolder(Folder(tmp_path), ShardLayout(make_family([None] * 3).tasks(), [0], 1, 2))
    with pytest.raises(FileNotFoundError, match="all machines share, or a URL"):
        work.add(Outcome(next(work.jobs_left()), 60))
