"""The schema of learning histories: what is written comes back, through parquet and JSON."""

import json
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
from datasets import Features, List, Value
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from random_histories import SPACES

from ad_hf.histories.schema import SCHEMA_VERSION, HistoryMetadata, history_features, package_versions, read_metadata
from ad_hf.histories.writer import history_table
from ad_hf.sources.recorder import RecordedSteps


@settings(max_examples=50, deadline=None)
@given(ends=st.lists(st.booleans(), min_size=1, max_size=60), max_piece_steps=st.integers(1, 70))
def test_pieces_are_as_many_whole_episodes_as_fit(ends, max_piece_steps):
    length, ends = len(ends), np.array(ends)
    stops = np.append(np.flatnonzero(ends[:-1]) + 1, length)  # of episodes
    steps = np.arange(length)[None]
    recorded = RecordedSteps(steps, steps % 3, steps * 0.5, ends[None], ends[None] & False, [stops - 1])
    features = history_features(spaces.Discrete(100), spaces.Discrete(3))
    rows = history_table(recorded, features, 0, 0, max_piece_steps).to_pylist()
    assert [row["piece"] for row in rows] == list(range(len(rows)))
    assert [step for row in rows for step in row["observations"]] == list(range(length))
    assert [final for row in rows for final in row["final_observations"]] == (stops - 1).tolist()
    borders = [row["start_step"] for row in rows] + [length]
    for row, start, stop in zip(rows, borders, borders[1:]):
        assert row["observations"] == list(range(start, stop))
        assert stop in stops
        fitting = stops[(stops > start) & (stops <= start + max_piece_steps)]
        assert stop == (fitting[-1] if fitting.size else stops[stops > start][0])
        assert row["final_observations"] == [end - 1 for end in stops if start < end <= stop]


def test_features_are_typed_by_the_spaces():
    features = history_features(spaces.MultiDiscrete([9, 9]), spaces.Box(-1.0, 1.0, (3,), np.float32))
    cells = List(List(Value("uint8"), length=2))
    assert features["observations"] == features["final_observations"] == cells
    assert features["actions"] == List(List(Value("float32"), length=3))
    assert features["rewards"] == List(Value("float64"))
    assert history_features(*SPACES["frames"])["observations"] == Value("binary")
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
    assert metadata.versions["gymnasium"] == gym.__version__
    assert metadata.versions == package_versions(list(metadata.versions))
    for folder, config_name in ((tmp_path / "nowhere", "default"), (tmp_path, "another")):
        with pytest.raises(FileNotFoundError, match=f"{folder / config_name}.*ad-hf collect"):
            read_metadata(folder, config_name)


TEXTS = [
    ("{}", "has schema version None, this version of ad_hf reads 1$"),
    ('{"schema_version": 0}', "has schema version 0, this version of ad_hf reads 1$"),
    ('{"schema_version": "1"}', "has schema version 1, this version of ad_hf reads 1$"),
    ('{"schema_version": 2}', "has schema version 2, this version of ad_hf reads 1: install a newer one"),
    ("[]", "must hold a mapping"),
    ("", "is not JSON"),
    ("[" * 10**5, "nests too deep"),
    ('{"env_id": "\\ud800"}', "is not JSON: 'utf-8' codec can't encode"),
    ('{"schema_version": ' + "9" * 5000 + "}", "is not JSON"),
]
TASK = {"task_id": 0, "kwargs": {}, "split": "train"}
STATISTICS = {"histories": 1, "steps": 9, "episodes": 1, "bytes": 99, "return_first": None, "return_last": 1.0}
ENTRIES = [
    ("env_id", None, "env_id must be text"),
    ("env_id", "", "env_id must be the id of an environment"),
    ("env_kwargs", [["size", 3]], "env_kwargs must be a mapping"),
    ("tasks", [], "tasks must hold one at least"),
    ("tasks", [TASK, 0], r"tasks\[1\] must be a mapping, got 0"),
    ("tasks", [{**TASK, "task_id": True}], r"tasks\[0\]\.task_id must be a whole number"),
    ("tasks", [{**TASK, "task_id": 2**31}], r"tasks\[0\]\.task_id must be from 0 to 2147483647, got 2147483648"),
    ("tasks", [TASK, TASK], "tasks must have different task_id, got 2 of the number 0"),
    ("tasks", [{**TASK, "split": ["train"]}], r"tasks\[0\]\.split must be one of train, validation, test"),
    ("tasks", [{"task_id": 0, "kwargs": {}}], r"tasks\[0\]\.split is missing"),
    ("source", {"n_envs": 1}, "source.algorithm is missing"),
    ("source", {"algorithm": "A2C", "n_envs": 0}, "source.n_envs must be a whole number from 1"),
    ("source", {"algorithm": "A2C", "hyperparameters": 3}, "source.hyperparameters must be a mapping"),
    ("source", {"algorithm": "A2C", "independent_streams": "no"}, "source.independent_streams must be true or false"),
    ("seeds", ["0"], r"seeds\[0\] must be a whole number"),
    ("wrappers", [3], r"wrappers\[0\] must be a mapping"),
    ("attributes", "length", "attributes must be a list"),
    ("statistics", {"train": {}}, "statistics.train.histories is missing"),
    ("statistics", {"train": STATISTICS | {"return_last": np.nan}}, "statistics.train.return_last must be"),
    ("statistics", {"train": STATISTICS | {"observation_std": [1, "0"]}}, r"statistics.train.observation_std\[1\]"),
    ("statistics", {"train": STATISTICS | {"observation_std": [1.0]}}, "statistics.train.observation_std must"),
    ("fingerprint", 3, "fingerprint must be text"),
    ("versions", {"numpy": 2}, "versions.numpy must be text"),
    ("failures", [{"task_id": 0, "seed": 0}], r"failures\[0\]\.error is missing"),
    ("progress", {"columns": ["a", "b"], "rows": [[1]]}, r"progress\.rows\[0\] must have 2 elements"),
    ("progress", {"columns": ["a", "b"], "rows": [[1, "x"]]}, r"progress\.rows: \[0\]\[1\] must be a whole number"),
    ("extra", 3, "extra is not an entry"),
    ("action_space", None, "action_space must be a mapping"),
    ("action_space", {"type": "Text"}, "action_space must be a space"),
    ("observation_space", {"type": "MultiDiscrete", "nvec": [3, 0]}, r"observation_space: nvec\[1\] must be from 1"),
]


def test_what_is_no_metadata_is_refused_by_the_entry():
    texts = [(json.dumps({**asdict(make_metadata()), entry: value}), message) for entry, value, message in ENTRIES]
    for text, message in (*TEXTS, *((text, f": {message}") for text, message in texts)):
        with pytest.raises(ValueError, match=rf"^dir/metadata\.json ?{message}"):
            HistoryMetadata.from_json(text, "dir/metadata.json")
    data = asdict(make_metadata())
    del data["tasks"]
    with pytest.raises(ValueError, match=r"metadata.json: tasks is missing"):
        HistoryMetadata.from_data(data)


def test_metadata_may_lack_what_older_versions_did_not_write():
    data = json.loads(make_metadata().to_json())
    for name in ("wrappers", "attributes", "statistics", "fingerprint", "versions", "failures", "progress"):
        del data[name]
    data["source"] = {"algorithm": "human", "of_others": 3}
    assert HistoryMetadata.from_json(json.dumps(data)).source == data["source"]
    nobody_finished = {"columns": ["task_id", "seed", "return_last"], "rows": [[0, 0, float("nan")]]}
    assert HistoryMetadata.from_json(json.dumps({**data, "progress": nobody_finished})).progress["rows"]
