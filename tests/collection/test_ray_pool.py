"""Collection on a Ray cluster: the files of the local executor, whatever is lost on the way."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty
import gymnasium as gym
import pytest
from faulty import SMALL, contents, make_family

from ad_hf import CollectionError
from ad_hf.cli import main
from ad_hf.collection import ray_pool
from ad_hf.collection.collect import collect
from ad_hf.collection.executors import run_jobs
from ad_hf.collection.jobs import Job, Outcome
from ad_hf.collection.ray_pool import RayPool
from ad_hf.envs.task_family import TaskFamily

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

# So that a machine that is gone is missed within seconds, and one that is slow is not.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


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


@pytest.mark.slow
def test_dataset_is_that_of_the_local_executor_though_a_machine_is_lost(cluster, further_node, tmp_path):
    family = make_family([None] * 6, 1)
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
    monkeypatch.setattr(ray_pool, "MAX_RETRIES", 1)
    family = make_family([None, "step", "death", None], 1)
    settings = {**SMALL, "tasks_per_job": 2}
    with pytest.raises(CollectionError) as caught:
        collect(family, **settings, output_dir=tmp_path / "ray", executor="ray")
    with pytest.raises(CollectionError) as expected:
        collect(family, **settings, output_dir=tmp_path / "local", num_workers=1)
    assert [failure.task_id for failure in caught.value.failures] == [1, 2]
    assert "ZeroDivisionError: a long story" in caught.value.failures[0].error
    assert "its worker process died, 2 times" in caught.value.failures[1].error
    assert [failure.task_id for failure in expected.value.failures] == [1, 2]
    assert contents(tmp_path / "ray" / "default", "*.parquet") == contents(tmp_path / "local" / "default", "*.parquet")


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
    monkeypatch.setattr(ray_pool, "STRAGGLER_SECONDS", 1.0)
    jobs = [Job((task,), 0) for task in make_family([None] * 6).tasks()]
    counted = []
    start = time.monotonic()
    outcomes = list(run_jobs(RayPool(Once(str(tmp_path), fault), counted.append), jobs))
    assert sorted(outcome.job.tasks[0].task_id for outcome in outcomes) == list(range(6))
    assert not any(outcome.failure for outcome in outcomes)
    assert sum(counted) == 60
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_jobs_are_asked_for_when_there_is_a_core_for_them(cluster, tmp_path):
    asked = []

    def jobs():
        for task in make_family([None] * 6).tasks():
            asked.append(task)
            yield Job((task,), 0)

    (tmp_path / "seen").touch()
    pool = RayPool(Once(str(tmp_path), ""), lambda added: None, 1)
    for number, _ in enumerate(run_jobs(pool, jobs())):
        assert len(asked) <= number + 2


class NoSuchFolder:
    """Runs jobs on a machine that does not share the disk."""

    def __call__(self, job, on_step):
        raise FileNotFoundError("/shared/histories")


@pytest.mark.slow
def test_worker_that_does_not_see_the_folder_is_explained(cluster):
    jobs = [Job((task,), 0) for task in make_family([None] * 2).tasks()]
    with pytest.raises(FileNotFoundError, match=r"/shared/histories.*all machines share, or a URL"):
        list(run_jobs(RayPool(NoSuchFolder(), lambda added: None, 1), jobs))


@pytest.mark.slow
def test_modules_beside_a_recipe_are_found_and_environments_of_the_driver_are_not(cluster, tmp_path):
    text = Path(faulty.__file__).read_text().replace("faulty:", "beside_ray:").replace("-v0", "BesideRay-v0")
    (tmp_path / "beside_ray.py").write_text(text)
    family = {"env_id": "beside_ray:FaultyBesideRay-v0", "tasks": [{"goal": 1}, {"goal": 2}]}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"family": family, "source": SMALL}))
    command = ["collect", "--recipe", str(tmp_path / "recipe.yaml"), "--executor", "ray"]
    try:
        assert main([*command, "--output_dir", str(tmp_path / "histories")]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    gym.register("OfTheDriver-v0", faulty.Faulty, max_episode_steps=5)
    family = TaskFamily("OfTheDriver-v0", [{"goal": 1}])
    with pytest.raises(ValueError, match="worker processes do not know the environment"):
        collect(family, **SMALL, output_dir=tmp_path / "none", executor="ray")


def test_the_command_leaves_the_files_of_the_local_executor(tmp_path, tiny_recipe_file, tiny_histories):
    """On this machine alone; clusters, and what is lost of them, are for the slow tests."""
    command = [sys.executable, "-m", "ad_hf.cli", "collect", "--recipe", str(tiny_recipe_file), "--executor", "ray"]
    command += ["--output_dir", str(tmp_path / "histories"), "--num_workers", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "histories") == contents(tiny_histories)
