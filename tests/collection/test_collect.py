"""Collection: the dataset that it leaves, and the effects of interruptions."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, List, Value, load_dataset
from faulty import contents
from pyarrow import feather

from ad_hf.collection.collect import collect
from ad_hf.envs.spaces import space_from_json
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata
from ad_hf.sources.config import SourceConfig

FAMILY = {
    "env_id": "ad_hf/DarkRoom-v0",
    "tasks": [{"goal": goal} for goal in ([0, 0], [1, 0], [2, 2], [1, 1], [0, 2], [2, 1])],
    "env_kwargs": {"size": 3, "max_episode_steps": 6},
    "num_validation_tasks": 1,
    "num_test_tasks": 1,
    "split_seed": 2,
    "native_vector": True,
}
COLLECTION = {
    "algorithm": "A2C",
    "n_envs": 3,
    "total_timesteps": 930,
    "hyperparameters": {"learning_rate": 0.01, "n_steps": 5, "policy_kwargs": {"net_arch": [16]}},
    "seeds": [0, 3],
    "shard_transitions": 1860,
    "max_piece_steps": 200,
}
SPLITS = ("train", "validation", "test")
STEPS = 310  # of each stream
SCRIPT = """
import json, signal, sys
from ad_hf import TaskFamily, collect

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs of a shell's background ignore
    family, collection = json.loads(sys.argv[1])
    collect(TaskFamily(**family), output_dir=sys.argv[2], **collection)
"""


def collect_to(folder, family=FAMILY, **changes):
    return collect(TaskFamily(**family), output_dir=folder, **{"num_workers": 2, **COLLECTION, **changes})


def file_states(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """An uninterrupted collection by one worker; tests do not change it."""
    return collect_to(tmp_path_factory.mktemp("collected") / "histories", num_workers=1)


@pytest.fixture(scope="module")
def rows(collected, tmp_path_factory):
    """The rows of each split, as `load_dataset` reads them."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {split: load_dataset(str(collected), split=split, cache_dir=cache) for split in SPLITS}


def join_pieces(rows):
    """Histories in the order of their rows, whose pieces stand next to each other."""
    histories = []
    for row in rows:
        if row["piece"] == 0:
            histories.append({name: list(value) if isinstance(value, list) else value for name, value in row.items()})
            assert row["start_step"] == 0
        else:
            history = histories[-1]
            assert history["history_id"] == row["history_id"]
            assert row["piece"] == history["piece"] + 1
            assert row["start_step"] == len(history["rewards"])
            history["piece"] = row["piece"]
            for name, value in row.items():
                if isinstance(value, list):
                    history[name] += value
    return histories


def test_load_dataset_reads_documented_columns_with_small_types(collected, rows):
    cells = List(List(Value("uint8"), length=2))
    features = Features(
        {
            "history_id": Value("string"),
            **{name: Value("int32") for name in ("task_id", "stream", "piece")},
            "start_step": Value("int64"),
            "observations": cells,
            "actions": List(Value("uint8")),
            "rewards": List(Value("float64")),
            **{name: List(Value("bool")) for name in ("terminations", "truncations")},
            "final_observations": cells,
        }
    )
    for split in SPLITS:
        streamed = load_dataset(str(collected), split=split, streaming=True)
        assert rows[split].features == streamed.features == features
        assert list(streamed) == list(rows[split])


def test_rows_are_what_the_real_environment_returns_of_the_tasks_of_their_split(rows):
    family = TaskFamily(**FAMILY)
    for split in SPLITS:
        histories = join_pieces(rows[split])
        tasks = [task.task_id for task in family.tasks(split)]
        ids = {(task, seed, stream) for task in tasks for seed in (0, 3) for stream in range(3)}
        assert sorted(tuple(map(int, history["history_id"].split("-"))) for history in histories) == sorted(ids)
        for history in histories:
            task, _, stream = map(int, history["history_id"].split("-"))
            assert (history["task_id"], history["stream"]) == (task, stream)
            assert len(history["rewards"]) == STEPS
            env = gym.make(FAMILY["env_id"], **FAMILY["env_kwargs"], **FAMILY["tasks"][task])
            finals = iter(history["final_observations"])
            observation, _ = env.reset(seed=0)
            for step in range(STEPS):
                assert history["observations"][step] == observation.tolist()
                observation, reward, terminated, truncated, _ = env.step(history["actions"][step])
                assert history["rewards"][step] == reward
                assert history["terminations"][step] == terminated
                assert history["truncations"][step] == truncated
                if terminated or truncated:
                    assert next(finals) == observation.tolist()
                    observation, _ = env.reset()
            assert next(finals) == observation.tolist()  # of the unfinished last episode
            assert next(finals, None) is None


def test_every_stream_learns_something_of_its_own(rows):
    histories = join_pieces(rows["train"])
    assert len({tuple(history["actions"]) for history in histories}) == len(histories)
    rewards = np.array([history["rewards"] for history in histories])
    assert rewards[:, -100:].mean() > rewards[:, :100].mean() + 0.05


def test_histories_are_cut_at_episode_borders_and_shards_hold_as_many_learners_as_asked_for(collected, rows):
    for row in rows["train"]:
        steps = len(row["rewards"])
        last = row["start_step"] + steps == STEPS
        assert steps == (112 if last else 198)  # as many episodes of 6 steps as fit in 200
        assert last or row["truncations"][-1]
        assert len(row["final_observations"]) == -(-steps // 6)
    train = [f"train-{index:05d}-of-00004.parquet" for index in range(4)]
    names = {"metadata.json", "test-00000-of-00001.parquet", *train, "validation-00000-of-00001.parquet"}
    assert {path.name for path in (collected / "default").iterdir()} == names
    assert sorted(path.name for path in collected.iterdir()) == ["README.md", "default"]
    for name in train:
        table = pq.read_table(collected / "default" / name)
        assert sum(len(rewards) for rewards in table["rewards"].to_pylist()) == 1860


def test_metadata_describes_tasks_spaces_and_source(collected):
    family = TaskFamily(**FAMILY)
    metadata = read_metadata(collected)
    tasks = [{"task_id": task.task_id, "kwargs": task.kwargs, "split": task.split} for task in family.tasks()]
    assert metadata.tasks == tasks
    assert (metadata.env_id, metadata.env_kwargs) == (FAMILY["env_id"], FAMILY["env_kwargs"])
    envs = family.make_vec(family.tasks()[:1])
    assert space_from_json(metadata.observation_space) == envs.single_observation_space
    assert space_from_json(metadata.action_space) == envs.single_action_space
    source = ("algorithm", "n_envs", "total_timesteps", "hyperparameters")
    settings = {name: COLLECTION[name] for name in source}
    assert metadata.source == {**settings, "tasks_per_job": 1, "independent_streams": False}
    assert metadata.seeds == COLLECTION["seeds"]
    assert metadata.versions["gymnasium"] == gym.__version__


def test_a_second_call_changes_nothing_and_other_settings_are_refused_by_name(collected):
    before = file_states(collected)
    source = SourceConfig(**{each.name: COLLECTION[each.name] for each in fields(SourceConfig)[:5]})
    others = {name: COLLECTION[name] for name in ("shard_transitions", "max_piece_steps")}
    assert collect(TaskFamily(**FAMILY), source, output_dir=collected, **others) == collected
    kwargs = {"size": 3, "max_episode_steps": 7}
    for changes, setting in (
        ({"n_envs": 5}, "source"),
        ({"total_timesteps": 1000}, "source"),
        ({"hyperparameters": {}}, "source"),
        ({"seeds": [0]}, "seeds"),
        ({"split": "test"}, "tasks"),
        ({"family": {**FAMILY, "split_seed": 3}}, "tasks"),
        ({"family": {**FAMILY, "env_kwargs": kwargs}}, "env_kwargs"),
    ):
        with pytest.raises(ValueError, match=rf"already holds histories with {setting} = "):
            collect_to(collected, **changes)
    assert file_states(collected) == before


def test_settings_of_sources_are_keywords_of_collect():
    parameters = inspect.signature(collect).parameters
    for each in fields(SourceConfig):
        assert parameters[each.name].default == getattr(SourceConfig(), each.name)


def test_a_run_killed_before_its_last_touches_is_finished_by_the_next(collected, tmp_path):
    """Half-written files do not get into the dataset; the card is written, and what was left behind is removed."""
    folder = tmp_path / "histories"
    work = folder / ".incomplete" / "default"
    shards = Path(shutil.copytree(collected / "default", work / "shards"))
    (shards / "metadata.json").unlink()
    progress = read_metadata(collected).progress["rows"]
    for path in shards.glob("*.parquet"):
        tasks = set(pq.read_table(path, columns=["task_id"])["task_id"].to_pylist())
        (work / f"progress-{path.name}.json").write_text(json.dumps([row for row in progress if row[0] in tasks]))
    (shards / ".train-00001-of-00004.parquet.123.tmp").write_bytes(b"PAR1 half")
    assert contents(collect_to(folder)) == contents(collected)
    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    work.mkdir(parents=True)
    assert contents(collect_to(folder)) == contents(collected)
    assert (folder / "README.md").read_text() == card


class Running:
    """A collection in a process group of its own."""

    def __init__(self, tmp_path, folder, **changes):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        self.errors = tmp_path / "stderr.txt"
        settings = json.dumps([FAMILY, {"num_workers": 2, **COLLECTION, **changes}])
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(script), settings, str(folder)],
                stderr=errors,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait_for(self, folder, pattern):
        """Wait until a finished file has such a name; returns the processes that are then at work."""
        deadline = time.monotonic() + 120
        while not any(folder.glob(pattern)):
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.002)
        return psutil.Process(self.process.pid).children(recursive=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=15)
    for process in alive:
        process.kill()
    assert not alive


def test_killed_collection_leaves_no_orphans_and_resumes_to_the_same_bytes(collected, tmp_path):
    """The bytes are those of a single worker, too."""
    folder = tmp_path / "histories"
    with Running(tmp_path, folder) as running:
        workers = running.wait_for(folder, ".incomplete/default/shards/*.parquet")
        assert len(workers) >= 2
        running.process.kill()
        assert_gone(workers)
    assert not (folder / "default").exists()
    with pytest.raises(FileNotFoundError, match="ad-hf collect"):
        read_metadata(folder)
    shards = list((folder / ".incomplete" / "default" / "shards").glob("*.parquet"))
    states = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}
    assert 0 < len(shards) < 6

    assert contents(collect_to(folder)) == contents(collected)
    for name, state in states.items():
        stat = (folder / "default" / name).stat()
        assert (stat.st_ino, stat.st_mtime_ns) == state


INTERRUPTED = {"config_name": "other", "shard_transitions": 100_000, "num_workers": 1}


def mark(part: Path):
    """Replace a part's rewards by sevens, by which it can be told whether it was computed again."""
    table = feather.read_table(part)
    field = table.schema.field("rewards")
    rewards = [[7.0] * len(values) for values in table["rewards"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("rewards"), field, pa.array(rewards, type=field.type))
    feather.write_feather(table, part)


def test_interrupted_collection_goes_on_without_running_finished_learners_again(collected, rows, tmp_path):
    """Another configuration is interrupted as by Ctrl-C, with some learners finished; other settings are refused."""
    folder = shutil.copytree(collected, tmp_path / "histories")
    with Running(tmp_path, folder, **INTERRUPTED) as running:
        workers = running.wait_for(folder, ".incomplete/other/part-*.arrow")
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(timeout=30) != 0
        assert_gone(workers)
    assert "KeyboardInterrupt" in running.errors.read_text()
    assert "BrokenProcessPool" not in running.errors.read_text()
    parts = list((folder / ".incomplete" / "other").glob("part-*.arrow"))
    assert 0 < len(parts) < 12

    before = file_states(folder)
    for changes, message in (
        ({"max_piece_steps": 100}, "max_piece_steps = 200, now it is 100"),
        ({"shard_transitions": 5}, "shard_transitions = 100000, now it is 5"),
        ({"seeds": [0]}, r"seeds = \[0, 3\], now it is \[0\]"),
    ):
        with pytest.raises(ValueError, match=f"holds a collection with {message}"):
            collect_to(folder, **{**INTERRUPTED, **changes})
    collect_to(folder)  # the finished configuration
    assert file_states(folder) == before

    for part in parts:
        mark(part)
    collect_to(folder, **INTERRUPTED)
    marked = {tuple(map(int, part.stem.split("-")[1:])) for part in parts}
    for split in SPLITS:
        others = load_dataset(str(folder), "other", split=split, cache_dir=str(tmp_path / "cache")).to_list()
        for row, expected in zip(others, rows[split].to_list(), strict=True):
            task, seed, _ = map(int, row["history_id"].split("-"))
            if (task, seed) in marked:
                assert set(row["rewards"]) == {7.0}
                row["rewards"] = expected["rewards"]
            assert row == expected
    default = contents(collected)
    assert {name: data for name, data in contents(folder).items() if name in default} == default
