"""The schema of learning histories: what is written comes back, through parquet and JSON."""

import itertools
import json
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, List, Value, load_dataset
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ad_hf.histories.frames import decompress_frames
from ad_hf.histories.schema import (
    SCHEMA_VERSION,
    HistoryMetadata,
    history_features,
    package_versions,
    read_metadata,
)
from ad_hf.histories.writer import history_table
from ad_hf.sources.recorder import HistoryRecorder


class RandomEnv(gym.Env):
    """Any spaces at all; episodes of random lengths end in either way."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        terminated, truncated = (self.np_random.random(2) < 0.1).tolist()
        return self.observation_space.sample(), self.np_random.normal(), terminated, truncated, {}


SPACES = {
    "Discrete": (spaces.Discrete(300), spaces.Discrete(4)),
    "MultiDiscrete": (spaces.MultiDiscrete([9, 9]), spaces.MultiDiscrete([3, 256])),
    "MultiBinary": (spaces.MultiBinary(5), spaces.Discrete(2)),
    "Box": (spaces.Box(-5.0, 5.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "Box float64": (spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Discrete(2)),
    "image": (spaces.Box(0, 255, (4, 3, 2), np.uint8), spaces.Discrete(2)),
}


def record(observation_space, action_space, num_steps=60, num_envs=3):
    envs = SyncVectorEnv(
        [lambda: RandomEnv(observation_space, action_space) for _ in range(num_envs)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    recorder = HistoryRecorder(envs, num_steps)
    recorder.reset(seed=0)
    recorder.action_space.seed(0)
    for _ in range(num_steps):
        recorder.step(recorder.action_space.sample())
    return recorder.recorded()


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("max_piece_steps", [1, 25, 1000])
def test_histories_come_back_from_parquet(name, max_piece_steps, tmp_path):
    recorded = record(*SPACES[name])
    features = history_features(*SPACES[name])
    pq.write_table(history_table(recorded, features, 7, 2, max_piece_steps), tmp_path / "train.parquet")
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features == features
    assert set(rows["task_id"]) == {7}
    for stream in range(3):
        pieces = [row for row in rows if row["stream"] == stream]
        assert {row["history_id"] for row in pieces} == {f"7-2-{stream}"}
        assert [row["piece"] for row in pieces] == list(range(len(pieces)))
        lengths = [len(row["rewards"]) for row in pieces]
        assert [row["start_step"] for row in pieces] == np.cumsum([0, *lengths[:-1]]).tolist()
        for row in pieces:
            ends = np.array(row["terminations"]) | np.array(row["truncations"])
            num_episodes = ends.sum() + (not ends[-1])
            if name == "image":  # one binary for all the frames of a row
                for column, count in (("observations", len(ends)), ("final_observations", num_episodes)):
                    row[column] = decompress_frames(row[column], count, SPACES[name][0].shape)
            assert len(row["final_observations"]) == num_episodes
        for column in ("observations", "actions", "rewards", "terminations", "truncations"):
            joined = [step for row in pieces for step in row[column]]
            np.testing.assert_array_equal(joined, getattr(recorded, column)[stream])
        finals = [observation for row in pieces for observation in row["final_observations"]]
        np.testing.assert_array_equal(finals, recorded.final_observations[stream])
    assert (len(rows) == 3) == (max_piece_steps == 1000)


def test_pieces_are_cut_at_episode_borders_only():
    recorded = record(*SPACES["Discrete"], num_steps=200)
    table = history_table(recorded, history_features(*SPACES["Discrete"]), 0, 0, max_piece_steps=30)
    for stream in range(3):
        rows = [row for row in table.to_pylist() if row["stream"] == stream]
        for row in rows[:-1]:
            assert row["terminations"][-1] or row["truncations"][-1]
        for row, later in itertools.pairwise(rows):
            ends = np.flatnonzero(np.array(later["terminations"]) | np.array(later["truncations"]))
            next_episode = ends[0] + 1 if ends.size else len(later["rewards"])
            assert len(row["rewards"]) + next_episode > 30  # the next episode would not have fitted
            episodes = np.array(row["terminations"]) | np.array(row["truncations"])
            assert len(row["rewards"]) <= 30 or episodes.sum() == 1


def test_features_are_typed_by_the_spaces():
    features = history_features(spaces.MultiDiscrete([9, 9]), spaces.Box(-1.0, 1.0, (3,), np.float32))
    cells = List(List(Value("uint8"), length=2))
    assert features["observations"] == features["final_observations"] == cells
    assert features["actions"] == List(List(Value("float32"), length=3))
    assert features["rewards"] == List(Value("float64"))
    assert history_features(*SPACES["image"])["observations"] == Value("binary")
    floats = history_features(spaces.Box(0.0, 1.0, (4, 3, 2), np.float32), spaces.Discrete(2))["observations"]
    assert floats == List(List(List(List(Value("float32"), length=2), length=3), length=4))
    assert isinstance(features, Features)


def make_metadata():
    return HistoryMetadata(
        env_id="ad_hf/DarkRoom-v0",
        env_kwargs={"size": 3},
        tasks=[{"task_id": 0, "kwargs": {"goal": [0, 1]}, "split": "train"}],
        observation_space={"type": "MultiDiscrete", "nvec": [3, 3]},
        action_space={"type": "Discrete", "n": 5},
        source={"algorithm": "A2C", "n_envs": 2, "total_timesteps": 10, "hyperparameters": {"gamma": 0.9}},
        seeds=[0, 1],
    )


def test_metadata_comes_back_from_its_file(tmp_path):
    metadata = make_metadata()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metadata.json").write_text(metadata.to_json())
    assert read_metadata(tmp_path, "other") == metadata
    assert asdict(metadata) == json.loads(metadata.to_json())
    assert metadata.schema_version == SCHEMA_VERSION


def test_metadata_names_the_versions_that_made_the_data():
    versions = make_metadata().versions
    assert versions["gymnasium"] == gym.__version__
    assert versions["numpy"] == np.__version__
    assert versions == package_versions(list(versions))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (SCHEMA_VERSION + 1, f"reads {SCHEMA_VERSION}: install a newer one"),
        (SCHEMA_VERSION - 1, f"reads {SCHEMA_VERSION}$"),
        (None, f"reads {SCHEMA_VERSION}$"),
        (str(SCHEMA_VERSION), f"reads {SCHEMA_VERSION}$"),
    ],
)
def test_metadata_of_another_schema_is_refused(version, expected):
    data = {**asdict(make_metadata()), "schema_version": version}
    with pytest.raises(ValueError, match=f"schema version {version}.*{expected}"):
        HistoryMetadata.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "has schema version None"),
        ('{"version": 1}', "has schema version None"),
        ("[]", "must hold a mapping"),
        ("3", "must hold a mapping"),
        ("", "is not JSON"),
        ("[" * 10**5, "nests too deep"),
        ('{"env_id": "\\ud800"}', "is not JSON: 'utf-8' codec can't encode"),
        ('{"schema_version": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_json_that_is_no_metadata_is_refused(text, told):
    with pytest.raises(ValueError, match=rf"^dir/metadata\.json {told}"):
        HistoryMetadata.from_json(text, "dir/metadata.json")


TASK = {"task_id": 0, "kwargs": {}, "split": "train"}
STATISTICS = {"histories": 1, "steps": 9, "episodes": 1, "bytes": 99, "return_first": None, "return_last": 1.0}
BOX = {"type": "Box", "shape": [2], "low": [None], "high": [1.0, 2.0], "dtype": "float32"}
WRONG = [
    ("env_id", 3, "env_id must be text"),
    ("env_id", None, "env_id must be text"),
    ("env_id", "", "env_id must be the id of an environment"),
    ("env_kwargs", [["size", 3]], "env_kwargs must be a mapping"),
    ("tasks", {}, "tasks must be a list"),
    ("tasks", [], "tasks must hold one at least"),
    ("tasks", [TASK, 0], r"tasks\[1\] must be a mapping, got 0"),
    ("tasks", [{**TASK, "task_id": [0]}], r"tasks\[0\]\.task_id must be a whole number"),
    ("tasks", [{**TASK, "task_id": True}], r"tasks\[0\]\.task_id must be a whole number"),
    ("tasks", [{**TASK, "task_id": -1}], r"tasks\[0\]\.task_id must be from 0 to 2147483647, got -1"),
    ("tasks", [{**TASK, "task_id": 2**31}], r"tasks\[0\]\.task_id must be from 0"),
    ("tasks", [TASK, TASK], "tasks must have different task_id, got 2 of the number 0"),
    ("tasks", [{**TASK, "kwargs": None}], r"tasks\[0\]\.kwargs must be a mapping"),
    ("tasks", [{**TASK, "split": ["train"]}], r"tasks\[0\]\.split must be one of train, validation, test"),
    ("tasks", [{"task_id": 0, "kwargs": {}}], r"tasks\[0\]\.split is missing"),
    ("source", None, "source must be a mapping, got None"),
    ("source", {"n_envs": 1}, "source.algorithm is missing"),
    ("source", {"algorithm": "A2C", "n_envs": 0}, "source.n_envs must be a whole number from 1"),
    ("source", {"algorithm": "A2C", "n_envs": 2.5}, "source.n_envs must be a whole number"),
    ("source", {"algorithm": "A2C", "hyperparameters": 3}, "source.hyperparameters must be a mapping"),
    ("source", {"algorithm": "A2C", "independent_streams": "no"}, "source.independent_streams must be true or false"),
    ("seeds", 0, "seeds must be a list"),
    ("seeds", ["0"], r"seeds\[0\] must be a whole number"),
    ("wrappers", [3], r"wrappers\[0\] must be a mapping"),
    ("attributes", "length", "attributes must be a list"),
    ("statistics", [], "statistics must be a mapping"),
    ("statistics", {"train": {}}, "statistics.train.histories is missing"),
    ("statistics", {"train": {**STATISTICS, "steps": "9"}}, "statistics.train.steps must be a whole number"),
    (
        "statistics",
        {"train": {**STATISTICS, "return_last": float("nan")}},
        "statistics.train.return_last must be a finite number",
    ),
    (
        "statistics",
        {"train": {**STATISTICS, "observation_mean": "0"}},
        "statistics.train.observation_mean must be a list",
    ),
    (
        "statistics",
        {"train": {**STATISTICS, "observation_std": [1, float("inf")]}},
        r"statistics.train.observation_std\[1\] must be",
    ),
    (
        "statistics",
        {"train": {**STATISTICS, "observation_std": [1.0]}},
        "statistics.train.observation_std must have a",
    ),
    ("fingerprint", 3, "fingerprint must be text"),
    ("versions", [], "versions must be a mapping"),
    ("versions", {"numpy": 2}, "versions.numpy must be text"),
    ("failures", {"task_id": 0}, "failures must be a list"),
    ("failures", [{"task_id": 0, "seed": 0}], r"failures\[0\]\.error is missing"),
    ("progress", [], "progress must be a mapping"),
    ("progress", {"columns": ["a", "b"], "rows": [[1]]}, r"progress\.rows\[0\] must have 2 elements"),
    ("progress", {"columns": ["a", "b"], "rows": [[1, "x"]]}, r"progress\.rows: \[0\]\[1\] must be a whole number"),
    ("extra", 3, "extra is no entry"),
    ("action_space", None, "action_space must be a mapping"),
    ("action_space", {"type": ["Box"]}, "action_space must be a space"),
    ("action_space", {"type": "Text"}, "action_space must be a space"),
    ("action_space", {"type": "Discrete"}, "action_space: n is missing"),
    ("action_space", {"type": "Discrete", "n": 10**30}, "action_space: n must be from 1 to"),
    ("action_space", {"type": "Discrete", "n": 2**40}, "action_space: n must be from 1 to"),
    ("action_space", {"type": "Discrete", "n": 5.0}, "action_space: n must be a whole number"),
    ("action_space", {"type": "MultiDiscrete", "nvec": []}, "action_space: nvec must have 1 to"),
    ("action_space", {"type": "MultiDiscrete", "nvec": [3, 0]}, r"action_space: nvec\[1\] must be from 1"),
    ("action_space", {"type": "MultiBinary", "n": 10**9}, "action_space: n must be from 1"),
    ("observation_space", {**BOX, "shape": [10**5, 10**5]}, "observation_space: shape must have at most"),
    ("observation_space", {**BOX, "shape": [1] * 40}, "observation_space: shape must have at most"),
    ("observation_space", {**BOX, "shape": [-1]}, r"observation_space: shape\[0\] must be from 1"),
    ("observation_space", {**BOX, "shape": [3]}, "observation_space: high must have 1 number or 3"),
    ("observation_space", {**BOX, "dtype": "object"}, "observation_space: dtype must be one of"),
    ("observation_space", {**BOX, "low": [3.0]}, "observation_space: .* is no space: Box all low values"),
    ("observation_space", {**BOX, "low": [float("nan")]}, r"observation_space: low\[0\] must be a finite number"),
    ("observation_space", {**BOX, "dtype": "uint8"}, "observation_space: .* is no space"),
]


@pytest.mark.parametrize(("entry", "value", "told"), WRONG, ids=lambda value: str(value)[:30])
def test_an_entry_of_another_kind_is_refused_by_its_name(entry, value, told):
    data = {**asdict(make_metadata()), entry: value}
    with pytest.raises(ValueError, match=f"^dir/metadata.json: {told}"):
        HistoryMetadata.from_json(json.dumps(data), "dir/metadata.json")


def test_metadata_may_lack_what_older_versions_did_not_write():
    data = json.loads(make_metadata().to_json())
    for name in ("wrappers", "attributes", "statistics", "fingerprint", "versions", "failures", "progress"):
        del data[name]
    data["source"] = {"algorithm": "human", "of_others": 3}
    data["observation_space"] = BOX
    assert HistoryMetadata.from_json(json.dumps(data)).source == data["source"]
    nobody_finished = {"columns": ["task_id", "seed", "return_last"], "rows": [[0, 0, float("nan")]]}
    assert HistoryMetadata.from_json(json.dumps({**data, "progress": nobody_finished})).progress["rows"]


def test_missing_dataset_is_told_how_to_collect_one(tmp_path):
    for folder, config_name in ((tmp_path / "nowhere", "default"), (tmp_path, "other")):
        with pytest.raises(FileNotFoundError, match="ad-hf collect") as error:
            read_metadata(folder, config_name)
        assert str(folder / config_name) in str(error.value)
