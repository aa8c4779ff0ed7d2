"""Collection on a Ray cluster: the files of the local executor, whatever is lost on the way."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ad_hf.collection.ray_executor import run_jobs_on_ray

from ad_hf.cli import main
from ad_hf.collection.collect import collect
from ad_hf.collection.failures import CollectionError
from ad_hf.collection.jobs import Job, Outcome
from ad_hf.envs.task_family import TaskFamily
from ad_hf.sources import ray_executor

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

# So that a machine that is gone is missed within seconds, and one that is slow is not.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}
SMALL = {"algorithm": "TabularQ", "n_envs": 2, "total_timesteps": 60}


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def further_node(cluster):
    """A third machine, which a test may take away."""
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def contents(folder):
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "README.md"}


def make_family(number, faults=None):
    faults = faults or {}
    return TaskFamily(
        "faulty:Faulty-v0",
        [{"goal": 1 + index, **({"fault": faults[index]} if index in faults else {})} for index in range(number)],
        num_test_tasks=1,
    )


@pytest.mark.slow
def test_dataset_is_that_of_the_local_executor_though_a_machine_is_lost(cluster, further_node, tmp_path):
    family = make_family(6)
    settings = {**SMALL, "total_timesteps": 12000, "seeds": [0, 1], "shard_transitions": 24000}
    local = collect(family, **settings, output_dir=tmp_path / "local", num_workers=1)
    folder = tmp_path / "ray"

    lost = []

    def lose():
        while not any((folder / ".incomplete" / "default").rglob("part-*.arrow")):
            time.sleep(0.01)
        cluster.remove_node(further_node, allow_graceful=False)
        lost.append(len(list((folder / ".incomplete").rglob("*.parquet"))))

    thread = threading.Thread(target=lose)
    thread.start()
    collect(family, **settings, output_dir=folder, executor="ray")
    thread.join()
    assert lost[0] < 6  # in the middle of it
    assert contents(folder) == contents(local)


@pytest.mark.slow
def test_failing_tasks_and_those_that_kill_their_workers_are_named_and_the_others_learnt(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_executor, "MAX_RETRIES", 1)
    family = make_family(4, {1: "step", 2: "death"})
    settings = {**SMALL, "tasks_per_job": 2}
    with pytest.raises(CollectionError) as caught:
        collect(family, **settings, output_dir=tmp_path / "ray", executor="ray")
    with pytest.raises(CollectionError) as expected:
        collect(family, **settings, output_dir=tmp_path / "local", num_workers=1)
    assert [failure.task_id for failure in caught.value.failures] == [1, 2]
    assert "ZeroDivisionError: a long story" in caught.value.failures[0].error
    assert "its worker process died, 2 times" in caught.value.failures[1].error
    assert [failure.task_id for failure in expected.value.failures] == [1, 2]
    shards = [
        {name: data for name, data in contents(tmp_path / each).items() if name.endswith(".parquet")}
        for each in ("ray", "local")
    ]
    assert shards[0] == shards[1]


class Once:
    """Runs jobs; the first time, that of task 3 kills its worker, or never ends."""

    def __init__(self, folder, fault):
        self.folder, self.fault = folder, fault

    def __call__(self, job, on_step):
        marker = Path(self.folder) / "seen"
        if job.tasks[0].task_id == 3 and not marker.exists():
            marker.touch()
            if self.fault == "death":
                os._exit(1)
            time.sleep(1000)
        return Outcome(job, 10)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["death", "straggler"])
def test_job_that_is_lost_or_late_once_is_run_again(cluster, further_node, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(ray_executor, "STRAGGLER_SECONDS", 1.0)
    jobs = [Job((task,), 0) for task in make_family(6).tasks()]
    counted = []
    start = time.monotonic()
    outcomes = list(run_jobs_on_ray(Once(str(tmp_path), fault), iter(jobs), None, counted.append))
    assert sorted(outcome.job.tasks[0].task_id for outcome in outcomes) == list(range(6))
    assert not any(outcome.error for outcome in outcomes)
    assert sum(counted) == 60
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_jobs_are_asked_for_when_there_is_a_core_for_them(cluster, tmp_path):
    asked = []

    def jobs():
        for task in make_family(6).tasks():
            asked.append(task)
            yield Job((task,), 0)

    (tmp_path / "seen").touch()
    for number, _ in enumerate(run_jobs_on_ray(Once(str(tmp_path), ""), jobs(), 1, lambda added: None)):
        assert len(asked) <= number + 2


class NoSuchFolder:
    """Runs jobs on a machine that does not share the disk."""

    def __call__(self, job, on_step):
        raise FileNotFoundError("/shared/histories")


@pytest.mark.slow
def test_worker_that_does_not_see_the_folder_is_explained(cluster):
    jobs = [Job((task,), 0) for task in make_family(2).tasks()]
    with pytest.raises(FileNotFoundError, match=r"/shared/histories.*all machines share, or a URL"):
        list(run_jobs_on_ray(NoSuchFolder(), jobs, 1, lambda added: None))


def test_address_of_no_cluster_and_of_the_local_executor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="set executor to ray"):
        collect(make_family(2), **SMALL, output_dir=tmp_path / "histories", address="auto")
    with pytest.raises(ValueError, match="executor must be local or ray"):
        collect(make_family(2), **SMALL, output_dir=tmp_path / "histories", executor="dask")
    assert not (tmp_path / "histories").exists()
    assert main(["collect", "--output_dir", str(tmp_path / "histories"), "--address", "auto"]) == 2


def test_the_command_leaves_the_files_of_the_local_executor(tmp_path, tiny_recipe_file, tiny_histories):
    """On this machine alone; clusters, and what is lost of them, are for the slow tests."""
    command = [sys.executable, "-m", "ad_hf.cli", "collect", "--recipe", str(tiny_recipe_file), "--executor", "ray"]
    command += ["--output_dir", str(tmp_path / "histories"), "--num_workers", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "histories") == contents(tiny_histories)
