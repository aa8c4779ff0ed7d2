"""Minari: there and back without a loss, datasets of others, and hostile ones, of which nothing runs."""

import json
import re
import shutil
import sys
import warnings
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from gymnasium import spaces
from history_files import make_table, write_dataset
from random_histories import SPACES, TINY, contents, record

import ad_hf
from ad_hf.cli import main
from ad_hf.envs.spaces import space_to_json
from ad_hf.formats.minari import from_minari, to_minari
from ad_hf.histories.schema import HistoryMetadata, history_features, read_metadata
from ad_hf.histories.writer import describe, history_table, new_dataset, write_shards

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
from minari.data_collector import EpisodeBuffer  # noqa: E402

SHARD = "train-00000-of-00001.parquet"
HOSTILE = """
import pathlib
pathlib.Path({marker!r}).touch()
def make(**kwargs):
    raise SystemExit
"""


@pytest.fixture(autouse=True)
def minari_folder(tmp_path, monkeypatch):
    """A place for Minari's datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def write_histories(folder, both, env_id="unknown/Env-v0"):
    """Histories of five tasks as a dataset, in several pieces each and the training tasks in several files."""
    splits = ["train", "train", "train", "validation", "test"]
    tasks = [{"task_id": task, "kwargs": {"goal": [task, 0]}, "split": split} for task, split in enumerate(splits)]
    source = {"algorithm": "A2C", "n_envs": 3, "total_timesteps": 120, "hyperparameters": {"gamma": 0.9}}
    metadata = HistoryMetadata(env_id, {"size": 4}, tasks, *map(space_to_json, both), source, seeds=[7])
    tables = [history_table(record(both, seed=task), history_features(*both), task, 7, 15) for task in range(5)]
    with pytest.MonkeyPatch.context() as patch, new_dataset(folder, "default") as new:
        patch.setattr("ad_hf.histories.writer.SHARD_TRANSITIONS", 240)
        write_shards(new / "default", zip(splits, tables))
        describe(new, folder.name, "default", metadata)
    return folder


# --- There and back


@pytest.mark.parametrize("name", SPACES)
def test_histories_come_back_from_minari_byte_for_byte(name, tmp_path):
    """All columns, splits, pieces, unfinished episodes, shards, metadata.json and the card."""
    folder = write_histories(tmp_path / "histories", SPACES[name])
    before = contents(folder)
    assert len([path for path in before if path.startswith("default/train-")]) > 1
    to_minari(folder, "made/here-v0")
    folder.rename(tmp_path / "original")
    from_minari("made/here-v0", folder)
    assert contents(folder) == before


def test_minari_sees_episodes_and_one_split_comes_back_alone(tmp_path):
    folder = write_histories(tmp_path / "histories", SPACES["cells"], env_id="CartPole-v1")
    to_minari(folder, "here-v0")
    dataset = minari.load_dataset("here-v0")
    assert "here-v0" in minari.list_local_datasets()
    assert dataset.env_spec.kwargs == {"size": 4}
    rows = [row for split in ("train", "validation", "test") for row in ad_hf.load_histories(folder, split)[0]]
    assert dataset.total_steps == sum(len(row["rewards"]) for row in rows)
    assert dataset.total_episodes == sum(len(row["final_observations"]) for row in rows)
    notes = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    assert {note["split"] for note in notes} == {"train", "validation", "test"}
    unfinished = 0
    for note, episode in zip(notes, dataset.iterate_episodes()):
        row = rows[note["row"]]
        assert note["history_id"] == row["history_id"]
        assert len(episode.observations) == len(episode) + 1
        assert episode.observations[-1].tolist() in row["final_observations"]
        assert all(map(dataset.observation_space.contains, episode.observations))
        assert all(map(dataset.action_space.contains, episode.actions))
        ends = episode.terminations | episode.truncations
        assert not ends[:-1].any()
        unfinished += not ends[-1]
    assert unfinished == 5 * 3  # tasks and streams
    assert repr(dataset[0]).startswith("EpisodeData(")

    to_minari(folder, "test-v0", split="test")
    back = from_minari("test-v0", tmp_path / "back", config_name="test_only")
    assert ad_hf.load_histories(back, "test")[0].to_list() == ad_hf.load_histories(folder, "test")[0].to_list()
    metadata = read_metadata(back, "test_only")
    assert [task["task_id"] for task in metadata.tasks] == [4]
    assert list(metadata.statistics) == ["test"]

    with pytest.raises(ValueError, match="other datasets"):
        from_minari(dataset, tmp_path / "again", max_piece_steps=5)
    some = dataset.filter_episodes(lambda episode: len(episode.rewards) > 2)
    with pytest.raises(ValueError, match="histories are whole"):
        from_minari(some, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_collected_histories_go_there_and_back_on_the_command_line(tiny_histories, tmp_path, minari_folder, capsys):
    def fails(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    there = ["convert", "to-minari", str(tiny_histories), "dark_room/a2c-v0", "--split", "validation"]
    assert main(there) == 0
    assert "minari.load_dataset('dark_room/a2c-v0')" in capsys.readouterr().out
    environment = minari.load_dataset("dark_room/a2c-v0").recover_environment(goal=[1, 1])
    assert environment.spec.max_episode_steps == 6
    assert not list(minari_folder.rglob(".*"))
    back = tmp_path / "back"
    assert main(["convert", "from-minari", str(minari_folder / "dark_room" / "a2c-v0"), str(back)]) == 0
    shard = "default/validation-00000-of-00001.parquet"
    assert (back / shard).read_bytes() == (tiny_histories / shard).read_bytes()
    assert "exists already" in fails(*there)
    assert "exists already" in fails("convert", "from-minari", "dark_room/a2c-v0", back)
    assert "no split 'dev'" in fails("convert", "to-minari", tiny_histories, "here-v1", "--split", "dev")
    assert "minari download" in fails("convert", "from-minari", "not/there-v0", tmp_path / "out")
    for name in ("no_version", "../up-v0", "a b-v0", "/root-v0"):
        with pytest.raises(ValueError, match="not an id of a Minari dataset"):
            to_minari(tiny_histories, name)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"ad_hf\[minari\]"):
        from_minari("a-v0", tmp_path / "out")


def without_last_finals(table):
    finals = [row[:-1] for row in table["final_observations"].to_pylist()]
    index, field = table.schema.names.index("final_observations"), table.schema.field("final_observations")
    return table.set_column(index, field, pa.array(finals, field.type))


def test_histories_that_minari_cannot_hold_are_named(tmp_path, minari_folder):
    cases = {
        "final_observations is missing": lambda table: table.drop_columns(["final_observations"]),
        "piece is of type string, expected int32": lambda table: table.set_column(3, "piece", [["0"] * len(table)]),
        r"'0-0-0'.*column final_observations: \d observations for \d episodes": without_last_finals,
    }
    for number, (message, change) in enumerate(cases.items()):
        histories = write_dataset(tmp_path / str(number), [make_table([12])])
        shard = histories / "default" / SHARD
        table = pq.read_table(shard)
        pq.write_table(change(table), shard)
        edit_json(histories / "default" / "metadata.json", ("fingerprint", ""))
        with pytest.raises(ValueError, match=f"{re.escape(SHARD)}.*{message}"):
            to_minari(histories, "a-v0")
    shard.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=f"{re.escape(SHARD)}.*damaged"):
        to_minari(histories, "a-v0")
    assert not list(minari_folder.rglob("*"))
    pq.write_table(table.select(table.schema.names[::-1]), shard)  # in any order
    assert to_minari(histories, "a-v0").is_dir()


# --- Datasets of others


def edit_json(path, *changes):
    """Replace entries of a JSON file, by their paths; `None` removes one."""
    data = json.loads(path.read_text())
    for *keys, value in changes:
        *parents, last = keys
        place = data
        for key in parents:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(data))


def cart_pole_episodes(lengths, **ends):
    """Episodes of CartPole of so many steps, the last step of which is an end, unless other ends are given."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        last = np.arange(length) == length - 1
        yield EpisodeBuffer(
            observations=rng.normal(size=(length + 1, 4)).astype(np.float32),
            actions=rng.integers(0, 2, length),
            rewards=np.full(length, float(number)),
            terminations=ends.get("terminations", last),
            truncations=last & False,
            infos={},
        )


def make_foreign(name, buffers):
    """A Minari dataset that is not ours."""
    with warnings.catch_warnings(action="ignore"):  # of an author, and so on, that there is none
        return minari.create_dataset_from_buffers(name, list(buffers), env="CartPole-v1", algorithm_name="random")


def test_a_minari_dataset_of_others_is_one_history_of_one_task(tmp_path):
    dataset = make_foreign("cart/pole-v0", cart_pole_episodes([5, 3, 9, 1, 7]))
    out = tmp_path / "histories"
    assert main(["convert", "from-minari", "cart/pole-v0", str(out), "--max_piece_steps", "10"]) == 0
    rows, metadata = ad_hf.load_histories(out, "train")
    assert [len(row) for row in rows["rewards"]] == [8, 10, 7]
    assert rows["piece"] == [0, 1, 2]
    assert rows["start_step"] == [0, 8, 18]
    assert set(rows["history_id"]) == {"0-0-0"}
    arrays = rows.with_format("numpy")
    for column, part in (("observations", slice(-1)), ("final_observations", slice(-1, None))):
        expected = np.concatenate([episode.observations[part] for episode in dataset.iterate_episodes()])
        assert np.array_equal(np.concatenate(list(arrays[column])), expected)
    assert (metadata.env_id, metadata.tasks) == ("CartPole-v1", [{"task_id": 0, "kwargs": {}, "split": "train"}])
    source = metadata.source
    assert (source["algorithm"], source["n_envs"], source["total_timesteps"]) == ("random", 1, 25)
    recipe, run = str(out / "recipe.yaml"), str(tmp_path / "run")
    assert main(["train", "--recipe", recipe, "--dataset", str(out), "--output_dir", run, *TINY]) == 0
    assert len(load_dataset(str(out), split="train")) == 3


def test_unfinished_episodes_of_others_are_truncated_unless_they_are_the_last(tmp_path):
    dataset = make_foreign("open-v0", cart_pole_episodes([2, 2, 2, 2, 2], terminations=np.zeros(2, dtype=bool)))
    rows, metadata = ad_hf.load_histories(from_minari(dataset, tmp_path / "out", episodes_per_history=2), "train")
    assert rows["truncations"] == [[False, True, False, False]] * 2 + [[False, False]]
    assert [len(finals) for finals in rows["final_observations"]] == [2, 2, 1]
    assert rows["history_id"] == ["0-0-0", "0-0-1", "0-0-2"]
    assert metadata.source["n_envs"] == 3
    for name in ("episodes_per_history", "max_piece_steps"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            from_minari(dataset, tmp_path / "other", **{name: 0})


@pytest.mark.filterwarnings("ignore:`.*` is set to None", "ignore:env_spec is None")
def test_malformed_minari_datasets_of_others_are_refused(tmp_path):
    dataset = make_foreign("twice-v0", cart_pole_episodes([3, 3], terminations=np.array([True, False, True])))
    with pytest.raises(ValueError, match="twice-v0, episode 0: it ends at step 0"):
        from_minari(dataset, tmp_path / "out")
    buffer = asdict(next(cart_pole_episodes([3])))
    dataset = minari.create_dataset_from_buffers(
        "dict-v0",
        [EpisodeBuffer(**{**buffer, "observations": {"a": buffer["observations"]}})],
        observation_space=spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (4,), np.float32)}),
        action_space=spaces.Discrete(2),
    )
    with pytest.raises(ValueError, match="give env_id"):
        from_minari(dataset, tmp_path / "out")
    with pytest.raises(ValueError, match="env_kwargs must be a mapping"):
        from_minari(dataset, tmp_path / "out", env_id="E-v0", env_kwargs=[1])
    with pytest.raises(ValueError, match=r"observations: .*FlattenObservation"):
        from_minari(dataset, tmp_path / "out", env_id="E-v0")
    assert not (tmp_path / "out").exists()


# --- Files that are changed, damaged or hostile


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Minari dataset of ours and one of others, in a folder."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        to_minari(write_dataset(folder / "histories", [make_table([12, 9])]), "ours-v0")
        make_foreign("others-v0", cart_pole_episodes([3, 3, 3]))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """Copies one of them to where it can be changed, with other entries of its metadata."""

    def copy(name, *changes):
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made / f"{name}-v0", folder)
        edit_json(folder / "data" / "metadata.json", *changes)
        return folder

    return copy


def spec(env_id="Evil-v0", **others):
    """What a Minari dataset says of its environment, which a hostile module makes."""
    known = json.loads(gym.spec("CartPole-v1").to_json())
    return json.dumps({**known, "id": env_id, "entry_point": "evil_module:make", **others})


SHARDS = ("ad_hf", "shards")
ENTRIES = {
    "ad_hf.shards says fewer rows": ("ours", *SHARDS, {SHARD: [1]}),
    "ad_hf.shards says more rows": ("ours", *SHARDS, {SHARD: [2, 2]}),
    r"ad_hf\.shards.*\[1\] must be from 1": ("ours", *SHARDS, {SHARD: [2, 0]}),
    "ad_hf.shards must be a mapping": ("ours", *SHARDS, [SHARD]),
    "not the name of a shard": ("ours", *SHARDS, {"../up.parquet": [2]}),
    "ad_hf must be a mapping": ("ours", "ad_hf", "yes"),
    "ad_hf.episodes is missing": ("ours", "ad_hf", "episodes", None),
    "ad_hf.metadata: tasks must hold one": ("ours", "ad_hf", "metadata", "tasks", []),
    "config_name must be": ("ours", "ad_hf", "config_name", "../up"),
    "others-v0, episode 3 cannot be read": ("others", "total_episodes", 9),
    "total_episodes must be from 0": ("others", "total_episodes", 10**12),
    "others-v0 says that it has 0 steps, .* episodes have 9": ("others", "total_steps", 0),
    "data_format must be one of": ("others", "data_format", "pickle"),
    "dataset_id is missing": ("others", "dataset_id", None),
    "data cannot be read: .*99.0": ("others", "minari_version", "99.0"),
    "data cannot be read": ("others", "action_space", '{"type": "Graph"}'),
    "action_space is not JSON": ("others", "action_space", "{"),
    "observations: n must be from 1": ("others", "observation_space", '{"type": "MultiBinary", "n": 10000000000}'),
    "env_spec must hold a mapping": ("others", "env_spec", "[]"),
    "env_spec: id is missing": ("others", "env_spec", '{"kwargs": {}}'),
    # Names of others do not become a recipe of the user's.
    "environment 'evil_module:Evil-v0', which is not registered": ("others", "env_spec", spec("evil_module:Evil-v0")),
    "which imports what its keyword arguments name": ("others", "env_spec", spec("GymV21Environment-v0")),
    "env_kwargs.xml_file": ("others", "env_spec", spec("Ant-v5", kwargs={"xml_file": "/etc/passwd"})),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that is there once a hostile module has been imported."""
    (tmp_path / "evil_module.py").write_text(HOSTILE.format(marker=str(tmp_path / "marker")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker"
    sys.modules.pop("evil_module", None)


def test_an_entry_of_metadata_that_is_another_is_named(copied, tmp_path, marker):
    for message, (name, *change) in ENTRIES.items():
        with pytest.raises(ValueError, match=message):
            from_minari(copied(name, change), tmp_path / "out")
    folder = copied("others")
    for text, message in ((b"[]", "must hold a mapping"), (b"\xff", r"metadata\.json is not UTF-8")):
        (folder / "data" / "metadata.json").write_bytes(text)
        with pytest.raises(ValueError, match=message):
            from_minari(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not marker.exists()


def test_episodes_that_are_elsewhere_or_none_are_named(copied, tmp_path):
    elsewhere = {"dtype": "f8", "external": [("/etc/passwd", 0, 24)]}
    changes = [
        lambda group: group.__setitem__("rewards", h5py.ExternalLink("no.h5", "x")),
        lambda group: group.create_dataset("rewards", (3,), **elsewhere),
        lambda group: None,
        lambda group: group.__setitem__("rewards", ["a"] * 3),
        lambda group: group.__setitem__("rewards", np.ones((3, 2))),
        lambda group: group.__setitem__("rewards", np.ones(2)),
        lambda group: group.__setitem__("rewards", [1.0, np.nan, 1.0]),
    ]
    for change in changes:
        folder = copied("others")
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_1/rewards"]
            change(file["episode_1"])
        with pytest.raises(ValueError, match=r"episode.1.*(rewards|cannot be read|are float)"):
            from_minari(folder, tmp_path / "out")
    for note in ({"row": "first"}, {"row": None}, {"task_id": None}, {"start_step": [1, 2]}):
        folder = copied("ours")
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            for name, value in note.items():
                del file["episode_1"].attrs[name]
                if value is not None:
                    file["episode_1"].attrs[name] = value
        with pytest.raises(ValueError, match="ours-v0, note of episode 1 cannot be read"):
            from_minari(folder, tmp_path / "out")
    (folder / "data" / "main_data.hdf5").write_bytes(b"no hdf5")
    with pytest.raises(ValueError, match=r"main_data\.hdf5 cannot be read"):
        from_minari(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_environment_is_made_or_imported_without_trust(copied, tmp_path, marker):
    out = from_minari(copied("others", ("env_spec", spec("Some-v3"))), tmp_path / "named")
    assert read_metadata(out).env_id == "Some-v3"  # a name that nobody has registered stays a name
    folder = copied("others", ("env_spec", spec()), ("observation_space", None))
    with pytest.raises(ValueError, match=r"observation_space, which Minari sees by making .*trust_remote_code"):
        from_minari(folder, tmp_path / "out")
    histories = write_dataset(tmp_path / "histories", [make_table([12])])
    edit_json(histories / "default" / "metadata.json", ("env_id", "evil_module:Evil-v0"))
    to_minari(histories, "a-v0")
    assert not marker.exists()
    with pytest.raises(SystemExit):
        from_minari(folder, tmp_path / "out", trust_remote_code=True)
    assert marker.exists()
    marker.unlink()
    sys.modules.pop("evil_module")
    to_minari(histories, "b-v0", trust_remote_code=True)
    assert marker.exists()
