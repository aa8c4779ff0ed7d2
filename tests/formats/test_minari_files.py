"""Minari datasets that are damaged, of another structure, or hostile: one clear error each, and nothing is run."""

import json
import re
import shutil
import sys
import warnings

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from history_files import make_table, write_dataset

from ad_hf.cli import main
from ad_hf.formats.minari import from_minari, to_minari
from ad_hf.histories.schema import read_metadata

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
from minari.data_collector import EpisodeBuffer  # noqa: E402

HOSTILE = """
import pathlib
pathlib.Path({marker!r}).touch()
def make(**kwargs):
    raise SystemExit
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Minari dataset of ours and one of others, in a folder."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        histories = write_dataset(folder / "histories", [make_table([12, 9])])
        to_minari(histories, "ours-v0")
        last = np.array([False, False, True])
        buffer = EpisodeBuffer(
            observations=np.zeros((4, 4), dtype=np.float32),
            actions=np.array([0, 1, 0]),
            rewards=np.ones(3),
            terminations=last,
            truncations=last & False,
            infos={},
        )
        with warnings.catch_warnings(action="ignore"):  # of an author, and so on, that there is none
            minari.create_dataset_from_buffers("others-v0", [buffer] * 3, env="CartPole-v1", algorithm_name="random")
    return folder


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """Copies one of them to where it can be changed."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))

    def copy(name, edit=None):
        folder = tmp_path / name
        shutil.copytree(made / f"{name}-v0", folder)
        if edit is not None:
            path = folder / "data" / "metadata.json"
            metadata = json.loads(path.read_text())
            path.write_text(json.dumps(edit(metadata) or metadata))
        return folder

    return copy


def put(value, *keys):
    """An edit that puts a value into JSON."""

    def edit(metadata):
        for key in keys[:-1]:
            metadata = metadata[key]
        metadata[keys[-1]] = value

    return edit


def drop(*keys):
    def edit(metadata):
        for key in keys[:-1]:
            metadata = metadata[key]
        del metadata[keys[-1]]

    return edit


SHARD = "train-00000-of-00001.parquet"
ENTRIES = {
    "shards too small": ("ours", put([1], "ad_hf", "shards", SHARD), "ad_hf.shards says fewer rows"),
    "no shards": ("ours", put({}, "ad_hf", "shards"), "ad_hf.shards says fewer rows"),
    "shards too large": ("ours", put([2, 2], "ad_hf", "shards", SHARD), "ad_hf.shards says more rows"),
    "an empty group": ("ours", put([2, 0], "ad_hf", "shards", SHARD), r"ad_hf\.shards.*\[1\] must be from 1"),
    "shards in a list": ("ours", put([SHARD], "ad_hf", "shards"), "ad_hf.shards must be a mapping"),
    "a shard elsewhere": ("ours", put({"../up.parquet": [2]}, "ad_hf", "shards"), "no name of a shard"),
    "text for ours": ("ours", put("yes", "ad_hf"), "ad_hf must be a mapping"),
    "no number of episodes": ("ours", drop("ad_hf", "episodes"), "ad_hf.episodes is missing"),
    "other metadata": ("ours", put([], "ad_hf", "metadata", "tasks"), "ad_hf.metadata: tasks must hold one"),
    "a configuration elsewhere": ("ours", put("../up", "ad_hf", "config_name"), "config_name must be"),
    "more episodes": ("others", put(9, "total_episodes"), "others-v0, episode 3 cannot be read"),
    "too many episodes": ("others", put(10**12, "total_episodes"), "total_episodes must be from 0"),
    "fewer steps": ("others", put(0, "total_steps"), "others-v0 says that it has 0 steps, .* episodes have 9"),
    "another format": ("others", put("pickle", "data_format"), "data_format must be one of"),
    "no id": ("others", drop("dataset_id"), "dataset_id is missing"),
    "an unknown version": ("others", put("99.0", "minari_version"), "data cannot be read: .*99.0"),
    "a space that is none": ("others", put('{"type": "Graph"}', "action_space"), "data cannot be read"),
    "a space that is no JSON": ("others", put("{", "action_space"), "action_space is not JSON"),
    "a space too large": (
        "others",
        put('{"type": "MultiBinary", "n": 10000000000}', "observation_space"),
        "observations: n must be from 1",
    ),
    "an environment that is none": ("others", put("[]", "env_spec"), "env_spec must hold a mapping"),
    "an environment without an id": ("others", put('{"kwargs": {}}', "env_spec"), "env_spec: id is missing"),
    "a list": ("others", lambda metadata: [metadata], "metadata.json must hold a mapping"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_metadata_that_is_another_is_named(name, copied, tmp_path):
    which, edit, told = ENTRIES[name]
    with pytest.raises(ValueError, match=told):
        from_minari(copied(which, edit), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def elsewhere(link):
    def edit(file):
        del file["episode_1/rewards"]
        link(file["episode_1"])

    return edit


FILES = {
    "an external link": elsewhere(lambda group: group.__setitem__("rewards", h5py.ExternalLink("no.h5", "x"))),
    "external storage": elsewhere(
        lambda group: group.create_dataset("rewards", (3,), dtype="f8", external=[("/etc/passwd", 0, 24)])
    ),
    "no rewards": elsewhere(lambda group: None),
    "rewards of text": elsewhere(lambda group: group.__setitem__("rewards", ["a"] * 3)),
    "rewards of two": elsewhere(lambda group: group.__setitem__("rewards", np.ones((3, 2)))),
}


@pytest.mark.parametrize("name", FILES)
def test_episodes_that_are_elsewhere_or_none_are_named(name, copied, tmp_path):
    folder = copied("others")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        FILES[name](file)
    with pytest.raises(ValueError, match=r"episode.1.*(rewards|cannot be read)"):
        from_minari(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [{"row": "first"}, {"row": None}, {"task_id": None}, {"start_step": [1, 2]}])
def test_a_note_that_is_none_is_named(changed, copied, tmp_path):
    folder = copied("ours")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for name, value in changed.items():
            del file["episode_1"].attrs[name]
            if value is not None:
                file["episode_1"].attrs[name] = value
    with pytest.raises(ValueError, match="ours-v0, note of episode 1 cannot be read"):
        from_minari(folder, tmp_path / "out")


def test_files_that_are_damaged_are_named(copied, tmp_path):
    folder = copied("others")
    (folder / "data" / "main_data.hdf5").write_bytes(b"no hdf5")
    with pytest.raises(ValueError, match=r"main_data\.hdf5 cannot be read"):
        from_minari(folder, tmp_path / "out")
    (folder / "data" / "metadata.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"metadata\.json is not UTF-8"):
        from_minari(folder, tmp_path / "out")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that is there once a hostile module has been imported."""
    (tmp_path / "evil_module.py").write_text(HOSTILE.format(marker=str(tmp_path / "marker")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker"
    sys.modules.pop("evil_module", None)


def hostile_spec(env_id="Evil-v0", **others):
    spec = json.loads(gym.spec("CartPole-v1").to_json())
    return json.dumps({**spec, "id": env_id, "entry_point": "evil_module:make", **others})


def test_an_environment_that_a_minari_dataset_describes_is_not_made(copied, tmp_path, marker):
    def edit(metadata):
        metadata["env_spec"] = hostile_spec()
        del metadata["observation_space"]

    folder = copied("others", edit)
    with pytest.raises(ValueError, match=r"observation_space, which Minari sees by making .*trust_remote_code"):
        from_minari(folder, tmp_path / "out")
    assert not marker.exists()
    with pytest.raises(SystemExit):
        from_minari(folder, tmp_path / "out", trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (hostile_spec("evil_module:Evil-v0"), "environment 'evil_module:Evil-v0', which is not registered"),
        (hostile_spec("GymV21Environment-v0"), "which imports what its keyword arguments name"),
        (hostile_spec("Ant-v5", kwargs={"xml_file": "/etc/passwd"}), "env_kwargs.xml_file"),
    ],
)
def test_names_of_a_minari_dataset_do_not_become_a_recipe_of_the_user(copied, tmp_path, marker, spec, told):
    with pytest.raises(ValueError, match=told):
        from_minari(copied("others", put(spec, "env_spec")), tmp_path / "out")
    assert not marker.exists()


def test_a_name_that_nobody_has_registered_stays_a_name(copied, tmp_path, marker):
    out = from_minari(copied("others", put(hostile_spec("Some-v3"), "env_spec")), tmp_path / "out")
    assert read_metadata(out).env_id == "Some-v3"
    assert not marker.exists()


def test_an_environment_of_histories_is_not_imported_for_minari(tmp_path, monkeypatch, marker):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    histories = write_dataset(tmp_path / "histories", [make_table([12])])
    path = histories / "default" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "env_id": "evil_module:Evil-v0"}))
    assert main(["convert", "to-minari", str(histories), "a-v0"]) == 0
    assert not marker.exists()
    to_minari(histories, "b-v0", trust_remote_code=True)
    assert marker.exists()


def test_columns_may_be_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    histories = write_dataset(tmp_path / "histories", [make_table([12])])
    shard = histories / "default" / SHARD
    table = pq.read_table(shard)
    pq.write_table(table.select(table.schema.names[::-1]), shard)
    assert to_minari(histories, "a-v0").is_dir()


def without_finals(table):
    return table.drop_columns(["final_observations"])


SHARDS = {
    "a column is missing": (without_finals, "column final_observations is missing"),
    "a column of another type": (
        lambda table: table.set_column(table.schema.names.index("piece"), "piece", [["0"] * len(table)]),
        "column piece is of type string, expected int32",
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_histories_that_minari_cannot_hold_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    change, told = SHARDS[name]
    histories = write_dataset(tmp_path / "histories", [make_table([12])])
    shard = histories / "default" / SHARD
    pq.write_table(change(pq.read_table(shard)), shard)
    with pytest.raises(ValueError, match=f"{re.escape(SHARD)}.*{told}"):
        to_minari(histories, "a-v0")
    shard.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=f"{re.escape(SHARD)}.*damaged"):
        to_minari(histories, "a-v0")
    assert not list((tmp_path / "minari").rglob("*"))
