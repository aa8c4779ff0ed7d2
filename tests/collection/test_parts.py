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

from ad_hf.collection.collect import collect
from ad_hf.collection.failures import CollectionError
from ad_hf.collection.jobs import Outcome
from ad_hf.collection.layout import ShardLayout
from ad_hf.collection.work_folder import WorkFolder
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata
from ad_hf.storage.folders import Folder

SETTINGS = {
    "algorithm": "TabularQ",
    "n_envs": 2,
    "total_timesteps": 6000,
    "seeds": [0, 1],
    "shard_transitions": 12000,
    "num_workers": 1,
}
SCRIPT = """
import json, sys
from ad_hf import TaskFamily, collect

if __name__ == "__main__":
    tasks, settings = json.loads(sys.argv[1])
    collect(TaskFamily("faulty:Faulty-v0", tasks, num_test_tasks=1), **settings)
"""


def make_tasks(number, faults=None, **kwargs):
    faults = faults or {}
    return [
        {"goal": 1 + index, **({"fault": faults[index], **kwargs} if index in faults else {})}
        for index in range(number)
    ]


def make_family(number, faults=None, **kwargs):
    return TaskFamily("faulty:Faulty-v0", make_tasks(number, faults, **kwargs), num_test_tasks=1)


def contents(folder):
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "README.md"}


def start(tmp_path, number, **changes):
    """A process of its own that collects."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    settings = {**SETTINGS, **changes}
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps([make_tasks(number), settings])],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """What a single call makes of five tasks."""
    return collect(make_family(5), **SETTINGS, output_dir=tmp_path_factory.mktemp("single") / "histories")


def test_processes_at_the_same_time_make_the_dataset_of_one_though_one_is_killed(collected, tmp_path):
    folder = tmp_path / "histories"
    work = folder / ".incomplete" / "default"
    processes = [start(tmp_path, 5, output_dir=str(folder), part=f"{part}/2") for part in (1, 2)]
    try:
        deadline = time.monotonic() + 240
        while not any(work.rglob("part-*")) and not any(work.rglob("*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(processes[0].pid, signal.SIGKILL)
        processes[0].communicate()
        again = start(tmp_path, 5, output_dir=str(folder), part="1/2")
        processes.append(again)
        for process in processes[1:]:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    assert contents(folder) == contents(collected)


def test_part_leaves_others_files_alone_and_says_what_is_missing(collected, tmp_path, capsys):
    folder = tmp_path / "histories"
    shards = folder / ".incomplete" / "default" / "shards"
    shards.mkdir(parents=True)
    being_written = shards / ".train-00001-of-00004.parquet.1-ab.tmp"
    being_written.write_bytes(b"PAR1 half")
    left_behind = shards / ".train-00000-of-00004.parquet.1-ab.tmp"
    left_behind.write_bytes(b"PAR1 half")

    assert collect(make_family(5), **SETTINGS, output_dir=folder, part="1/2") == folder
    assert "shards that are missing: 2 of part 2/2" in capsys.readouterr().out
    assert being_written.read_bytes() == b"PAR1 half"
    assert not left_behind.exists()
    with pytest.raises(FileNotFoundError):
        read_metadata(folder)

    collect(make_family(5), **SETTINGS, output_dir=folder, part="2/2")
    assert contents(folder) == contents(collected)


@pytest.mark.slow
def test_failures_of_one_part_are_known_to_the_other(collected, tmp_path):
    cured, folder = tmp_path / "cured", tmp_path / "histories"
    family = make_family(5, {1: "step"}, cured=str(cured))
    failing = next(part for part in (1, 2) if _shard_of(family, 1) % 2 == part - 1)
    with pytest.raises(CollectionError, match=f"part {failing}/2 has done its share") as caught:
        collect(family, **SETTINGS, output_dir=folder, part=(failing, 2))
    assert caught.value.output_dir is None
    with pytest.raises(CollectionError, match=r"2 of 10 tasks and seeds failed; .* holds the others") as caught:
        collect(family, **SETTINGS, output_dir=folder, part=(3 - failing, 2))
    assert [failure.task_id for failure in caught.value.failures] == [1, 1]
    assert len(read_metadata(folder).failures) == 2

    cured.touch()
    collect(family, **SETTINGS, output_dir=folder, part=(failing, 2))
    names = [name for name in contents(collected) if name.endswith(".parquet")]
    assert {name: contents(folder)[name] for name in names} == {name: contents(collected)[name] for name in names}


def _shard_of(family, task_id):
    return ShardLayout(family.tasks(), SETTINGS["seeds"], 1, 2).find(task_id, 0)[0]


@pytest.mark.parametrize("part", ["0/2", "3/2", "two", (2, 1)])
def test_impossible_parts_are_refused(tmp_path, part):
    with pytest.raises(ValueError, match="part must be K/N"):
        collect(make_family(2), **SETTINGS, output_dir=tmp_path / "histories", part=part)
    assert not (tmp_path / "histories").exists()


def test_dataset_at_a_url_is_that_of_a_folder(collected, tmp_path):
    """After an interruption, too, and as load_dataset reads it."""
    folder = tmp_path / "there" / "histories"
    url = folder.as_uri()
    with pytest.raises(KeyboardInterrupt):
        collect_interrupted(url)
    assert list((folder / ".incomplete" / "default").glob("part-*"))
    assert collect(make_family(5), **SETTINGS, output_dir=url) == url
    assert contents(folder) == contents(collected)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "default"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert collect(make_family(5), **SETTINGS, output_dir=url) == url
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for split in ("train", "test"):
        caches = [str(tmp_path / name) for name in ("cache", "other")]
        rows = load_dataset(str(folder), split=split, cache_dir=caches[0])
        assert list(rows) == list(load_dataset(str(collected), split=split, cache_dir=caches[1]))


def collect_interrupted(url):
    """Collect until there is a part."""
    from ad_hf.sources import work_folder

    add = work_folder.WorkFolder.add

    def interrupt(self, outcome):
        raise KeyboardInterrupt

    work_folder.WorkFolder.add = interrupt
    try:
        collect(make_family(5), **SETTINGS, output_dir=url)
    finally:
        work_folder.WorkFolder.add = add


def test_failures_at_a_url_are_tried_again(collected, tmp_path):
    cured, folder = tmp_path / "cured", tmp_path / "histories"
    family = make_family(5, {0: "reset", 1: "step"}, cured=str(cured))
    with pytest.raises(CollectionError, match="4 of 10"):
        collect(family, **SETTINGS, output_dir=folder.as_uri())
    assert len(read_metadata(folder).failures) == 4
    cured.touch()
    collect(family, **SETTINGS, output_dir=folder.as_uri())
    names = [name for name in contents(collected) if name.endswith(".parquet")]
    assert [name for name in contents(folder) if name.endswith(".parquet")] == names
    assert {name: contents(folder)[name] for name in names} == {name: contents(collected)[name] for name in names}


@pytest.mark.parametrize(("tasks_per_job", "jobs_per_shard"), [(1, 1), (1, 4), (3, 2), (2, 7), (5, 100)])
def test_jobs_are_pure_functions_of_their_numbers(tasks_per_job, jobs_per_shard):
    """Each split's tasks in groups, each group with every seed, so many jobs to a shard."""
    family = TaskFamily("faulty:Faulty-v0", make_tasks(11), num_validation_tasks=1, num_test_tasks=3)
    seeds = [7, 0, 3]
    layout = ShardLayout(family.tasks(), seeds, tasks_per_job, jobs_per_shard)
    expected = []
    for split in ("train", "validation", "test"):
        tasks = family.tasks(split)
        groups = [tasks[start : start + tasks_per_job] for start in range(0, len(tasks), tasks_per_job)]
        jobs = [([task.task_id for task in group], seed) for group in groups for seed in seeds]
        shards = [jobs[start : start + jobs_per_shard] for start in range(0, len(jobs), jobs_per_shard)]
        expected += [(f"{split}-{index:05d}-of-{len(shards):05d}.parquet", each) for index, each in enumerate(shards)]
    found = []
    for shard in range(len(layout)):
        jobs = [([task.task_id for task in job.tasks], job.seed) for job in layout.jobs(shard)]
        found.append((layout.name(shard), jobs))
        assert layout.num_tasks(shard) == sum(len(tasks) for tasks, _ in jobs)
        for place, (tasks, seed) in enumerate(jobs):
            assert {layout.find(task, seed) for task in tasks} == {(shard, place)}
    assert found == expected


def test_part_that_is_not_seen_here_is_explained(tmp_path):
    """As where a worker on another machine wrote it, and the disk is not shared."""
    work = WorkFolder(Folder(tmp_path), ShardLayout(make_family(3).tasks(), [0], 1, 2))
    with pytest.raises(FileNotFoundError, match="all machines share, or a URL"):
        work.add(Outcome(next(work.jobs_left()), 60))
