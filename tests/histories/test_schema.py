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
    history_table,
    package_versions,
    read_metadata,
)
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
        (SCHEMA_VERSION - 1, f"expected {SCHEMA_VERSION}"),
        (None, f"expected {SCHEMA_VERSION}"),
        (str(SCHEMA_VERSION), f"expected {SCHEMA_VERSION}"),
    ],
)
def test_metadata_of_another_schema_is_refused(version, expected):
    data = {**asdict(make_metadata()), "schema_version": version}
    with pytest.raises(ValueError, match=f"schema version {version}.*{expected}"):
        HistoryMetadata.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["{}", "[]", '{"version": 1}', "3"])
def test_json_that_is_no_metadata_is_refused(text):
    with pytest.raises(ValueError, match="schema version None"):
        HistoryMetadata.from_json(text)


def test_missing_dataset_is_told_how_to_collect_one(tmp_path):
    for folder, config_name in ((tmp_path / "nowhere", "default"), (tmp_path, "other")):
        with pytest.raises(FileNotFoundError, match="ad-hf collect") as error:
            read_metadata(folder, config_name)
        assert str(folder / config_name) in str(error.value)
