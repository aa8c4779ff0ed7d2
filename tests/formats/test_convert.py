"""Conversion: to Minari and back without a loss, other Minari datasets, and npz and HDF5 files of every layout."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import yaml
from datasets import load_dataset
from gymnasium import spaces
from history_files import windows_of_folder

import ad_hf
from ad_hf.cli import ArrayNames, main
from ad_hf.envs.spaces import space_to_json, storage_dtype
from ad_hf.formats.array_files import ARRAY_NAMES
from ad_hf.formats.arrays import from_arrays
from ad_hf.formats.minari import from_minari, to_minari
from ad_hf.histories.schema import HistoryMetadata, history_features, read_metadata
from ad_hf.histories.writer import describe, history_table, new_dataset, write_shards
from ad_hf.sources.recorder import RecordedSteps

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
from minari.data_collector import EpisodeBuffer  # noqa: E402

CELLS, ARROWS = spaces.MultiDiscrete([4, 3]), spaces.Discrete(5)
SPACES = {
    "cells": (CELLS, ARROWS),
    "one number": (spaces.Discrete(300), spaces.MultiDiscrete([2, 3])),
    "bits": (spaces.MultiBinary(4), spaces.MultiBinary(2)),
    "vectors": (spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)),
    "doubles": (spaces.Box(-5, 5, (2,), np.float64), ARROWS),
    "frames": (spaces.Box(0, 255, (32, 40, 3), np.uint8), ARROWS),  # of a size that Minari stores as JPEG
}
TINY = ["--model.hidden_size", "16", "--model.num_attention_heads", "2", "--model.num_hidden_layers", "1"]
TINY += ["--model.intermediate_size", "32", "--model.context_length", "8", "--training.max_steps", "2"]
TINY += ["--training.batch_size", "4", "--training.mixed_precision", "no"]


@pytest.fixture(autouse=True)
def minari_folder(tmp_path, monkeypatch):
    """A place for Minari's datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def elements(space, shape, rng):
    """Random elements of a space, in the dtype that they are stored in."""
    size = (*shape, *(space.shape or ()))
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        return rng.uniform(-1, 1, size).astype(space.dtype)
    if isinstance(space, spaces.Box):
        return rng.integers(0, 256, size, dtype=np.uint8)
    high = space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)
    return rng.integers(0, high, size).astype(storage_dtype(space))


def record(both, num_streams=3, num_steps=40, seed=0, finished=False):
    """Streams with episodes that end in either way; the last one of each is unfinished, unless said otherwise."""
    rng = np.random.default_rng(seed)
    ends = rng.random((num_streams, num_steps)) < 0.2
    ends[:, 3], ends[:, -1] = True, finished
    terminations = ends & (rng.random(ends.shape) < 0.5)
    return RecordedSteps(
        observations=elements(both[0], ends.shape, rng),
        actions=elements(both[1], ends.shape, rng),
        rewards=rng.normal(size=ends.shape),
        terminations=terminations,
        truncations=ends & ~terminations,
        final_observations=[elements(both[0], (int(row.sum()) + (not finished),), rng) for row in ends],
    )


def write_histories(folder, both, env_id="unknown/Env-v0", max_piece_steps=15):
    """Histories of five tasks as a dataset, in several pieces each and the training tasks in several files."""
    features = history_features(*both)
    tasks = [{"task_id": i, "kwargs": {"goal": [i, 0]}, "split": split} for i, split in enumerate(["train"] * 3)]
    tasks += [{"task_id": 3, "kwargs": {"goal": [3, 0]}, "split": "validation"}]
    tasks += [{"task_id": 4, "kwargs": {"goal": [4, 0]}, "split": "test"}]
    metadata = HistoryMetadata(
        env_id, {"size": 4}, tasks, *map(space_to_json, both), {"algorithm": "A2C", "n_envs": 3}, seeds=[7]
    )
    metadata.source |= {"total_timesteps": 120, "hyperparameters": {"gamma": 0.9}}
    tables = [
        (
            task["split"],
            history_table(record(both, seed=task["task_id"]), features, task["task_id"], 7, max_piece_steps),
        )
        for task in tasks
    ]
    histories = [
        (split, table.filter([row == stream for row in table["stream"].to_pylist()]))
        for split, table in tables
        for stream in range(3)
    ]
    with pytest.MonkeyPatch.context() as patch, new_dataset(folder, "default") as new:
        patch.setattr("ad_hf.histories.writer.SHARD_TRANSITIONS", 120)
        write_shards(new / "default", histories)
        describe(new, folder.name, "default", metadata, "", None)
    return folder


def contents(folder):
    """The bytes of every file of a dataset."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def histories_of(folder, split="train", config_name=None):
    """The histories of a split by their ids, each of one row."""
    rows, metadata = ad_hf.load_histories(folder, split, config_name)
    assert set(rows["piece"]) <= {0}
    names = ("rewards", "terminations", "truncations", "observations", "actions", "final_observations")
    found = {row["history_id"]: SimpleNamespace(**{name: np.array(row[name]) for name in names}) for row in rows}
    return found, metadata


def fails(capsys, *arguments):
    """Run a command that must fail with one clear line; returns the line."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


# --- Minari and back


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


def test_minari_sees_episodes(tmp_path):
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


def test_one_split_goes_to_minari_and_back(tmp_path):
    folder = write_histories(tmp_path / "histories", SPACES["cells"])
    to_minari(folder, "here-v0", split="test")
    back = from_minari("here-v0", tmp_path / "back", config_name="test_only")
    assert ad_hf.load_histories(back, "test")[0].to_list() == ad_hf.load_histories(folder, "test")[0].to_list()
    metadata = read_metadata(back, "test_only")
    assert [task["task_id"] for task in metadata.tasks] == [4]
    assert list(metadata.statistics) == ["test"]
    assert contents(back)["test_only/test-00000-of-00001.parquet"]
    assert main(["convert", "to-minari", str(folder), "here-v1", "--split", "dev"]) == 2


def test_collected_histories_go_there_and_back_on_the_command_line(tiny_histories, tmp_path, minari_folder, capsys):
    arguments = ["convert", "to-minari", str(tiny_histories), "dark_room/a2c-v0", "--split", "validation"]
    assert main(arguments) == 0
    assert "minari.load_dataset('dark_room/a2c-v0')" in capsys.readouterr().out
    environment = minari.load_dataset("dark_room/a2c-v0").recover_environment(goal=[1, 1])
    assert environment.spec.max_episode_steps == 6
    assert not list(minari_folder.rglob(".*"))
    back = tmp_path / "back"
    assert main(["convert", "from-minari", str(minari_folder / "dark_room" / "a2c-v0"), str(back)]) == 0
    shard = "default/validation-00000-of-00001.parquet"
    assert (back / shard).read_bytes() == (tiny_histories / shard).read_bytes()
    assert "exists already" in fails(capsys, *arguments)
    assert "exists already" in fails(capsys, "convert", "from-minari", "dark_room/a2c-v0", back)
    assert "other datasets" in fails(
        capsys, "convert", "from-minari", "dark_room/a2c-v0", tmp_path / "x", "--env_id", "E-v0"
    )


@pytest.mark.parametrize("name", ["no_version", "../up-v0", "a b-v0", "/root-v0"])
def test_malformed_minari_ids_are_refused(name, tiny_histories):
    with pytest.raises(ValueError, match="no id of a Minari dataset"):
        to_minari(tiny_histories, name)


def test_an_episode_without_its_last_observation_is_refused_and_nothing_is_left(tmp_path, minari_folder):
    folder = tmp_path / "histories"
    with new_dataset(folder, "default") as new:
        recorded = record(SPACES["cells"])
        recorded.final_observations = [finals[:-1] for finals in recorded.final_observations]
        rows = history_table(recorded, history_features(*SPACES["cells"]), 0, 0, 1000)
        write_shards(new / "default", [("train", rows)])
        tasks = [{"task_id": 0, "kwargs": {}, "split": "train"}]
        source = {"algorithm": "A2C", "n_envs": 3, "total_timesteps": 120, "hyperparameters": {}}
        metadata = HistoryMetadata("E-v0", {}, tasks, *map(space_to_json, SPACES["cells"]), source, [])
        describe(new, "histories", "default", metadata, "", None)
    with pytest.raises(ValueError, match=r"'0-0-0'.*final_observations"):
        to_minari(folder, "here-v0")
    assert not list(minari_folder.rglob("*"))


def test_a_dataset_of_ours_that_was_changed_is_refused(tmp_path):
    to_minari(write_histories(tmp_path / "histories", SPACES["cells"]), "here-v0")
    dataset = minari.load_dataset("here-v0")
    with pytest.raises(ValueError, match="other datasets"):
        from_minari(dataset, tmp_path / "back", max_piece_steps=5)
    some = dataset.filter_episodes(lambda episode: len(episode.rewards) > 2)
    with pytest.raises(ValueError, match="histories are whole"):
        from_minari(some, tmp_path / "back")
    metadata = json.loads((dataset.storage.data_path / "metadata.json").read_text())
    metadata["ad_hf"]["shards"] = {"../../escaped.parquet": [1]}
    (dataset.storage.data_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="no name of a shard"):
        from_minari("here-v0", tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


# --- Minari datasets of others


def cart_pole_episodes(lengths, **ends):
    """Episodes of CartPole of so many steps, the last step of which is an end, unless said otherwise."""
    env = gym.make("CartPole-v1")
    env.action_space.seed(0)
    for number, length in enumerate(lengths):
        observations = [env.reset(seed=number)[0]]
        for _ in range(length):
            observations.append(env.unwrapped.step(action := env.action_space.sample())[0])
        last = np.arange(length) == length - 1
        actions = [action] * length
        yield EpisodeBuffer(
            observations=np.array(observations),
            actions=np.array(actions),
            rewards=np.full(length, float(number)),
            terminations=ends.get("terminations", last),
            truncations=last & False,
        )


def make_foreign(name, buffers):
    """A Minari dataset that is not ours."""
    return minari.create_dataset_from_buffers(name, list(buffers), env="CartPole-v1", algorithm_name="random")


@pytest.mark.filterwarnings("ignore:`.*` is set to None")
def test_a_minari_dataset_of_others_is_one_history_of_one_task(tmp_path, capsys):
    make_foreign("cart/pole-v0", cart_pole_episodes([5, 3, 9, 4, 7]))
    out = tmp_path / "histories"
    assert main(["convert", "from-minari", "cart/pole-v0", str(out), "--max_piece_steps", "10"]) == 0
    assert "recipe.yaml" in capsys.readouterr().out
    rows, metadata = ad_hf.load_histories(out, "train")
    assert [len(row) for row in rows["rewards"]] == [8, 9, 4, 7]
    assert rows["piece"] == [0, 1, 2, 3]
    assert rows["start_step"] == [0, 8, 17, 21]
    assert set(rows["history_id"]) == {"0-0-0"}
    episodes = list(minari.load_dataset("cart/pole-v0").iterate_episodes())
    assert np.array_equal(
        np.concatenate([row["observations"] for row in rows.with_format("numpy")]),
        np.concatenate([episode.observations[:-1] for episode in episodes]),
    )
    finals = np.concatenate([row["final_observations"] for row in rows.with_format("numpy")])
    assert np.array_equal(finals, [episode.observations[-1] for episode in episodes])
    assert (metadata.env_id, metadata.tasks) == ("CartPole-v1", [{"task_id": 0, "kwargs": {}, "split": "train"}])
    assert metadata.source["algorithm"] == "random"
    assert (metadata.source["n_envs"], metadata.source["total_timesteps"]) == (1, 28)
    recipe, run = str(out / "recipe.yaml"), str(tmp_path / "run")
    assert main(["train", "--recipe", recipe, "--dataset", str(out), "--output_dir", run, *TINY]) == 0
    assert len(load_dataset(str(out), split="train")) == 4


@pytest.mark.filterwarnings("ignore:`.*` is set to None")
def test_unfinished_episodes_of_others_are_truncated_unless_they_are_the_last(tmp_path):
    dataset = make_foreign("open-v0", cart_pole_episodes([2, 2, 2, 2, 2], terminations=np.zeros(2, dtype=bool)))
    histories, metadata = histories_of(from_minari(dataset, tmp_path / "out", episodes_per_history=2))
    assert [history.truncations.tolist() for history in histories.values()] == [[False, True, False, False]] * 2 + [
        [False, False]
    ]
    assert [len(history.final_observations) for history in histories.values()] == [2, 2, 1]
    assert list(histories) == ["0-0-0", "0-0-1", "0-0-2"]
    assert metadata.source["n_envs"] == 3


@pytest.mark.filterwarnings("ignore:`.*` is set to None", "ignore:env_spec is None")
def test_malformed_minari_datasets_of_others_are_refused(tmp_path, capsys):
    assert "minari download" in fails(capsys, "convert", "from-minari", "not/there-v0", tmp_path / "out")
    dataset = make_foreign("twice-v0", cart_pole_episodes([3, 3], terminations=np.array([True, False, True])))
    with pytest.raises(ValueError, match="twice-v0, episode 0: it ends at step 0"):
        from_minari(dataset, tmp_path / "out")
    box = spaces.Box(-1, 1, (4,), np.float32)
    buffers = list(cart_pole_episodes([3]))
    dict_space = spaces.Dict({"a": box})
    dataset = minari.create_dataset_from_buffers(
        "dict-v0",
        [EpisodeBuffer(**{**asdict(buffers[0]), "observations": {"a": buffers[0].observations}})],
        observation_space=dict_space,
        action_space=spaces.Discrete(2),
    )
    with pytest.raises(ValueError, match="give env_id"):
        from_minari(dataset, tmp_path / "out")
    with pytest.raises(ValueError, match=r"observations: .*FlattenObservation"):
        from_minari(dataset, tmp_path / "out", env_id="E-v0")
    assert not list(tmp_path.glob("*out*"))


# --- npz and HDF5 of others


def arrays_of(recorded, stream=None):
    """What peers publish of some streams, or of one of them: with next observations, true ones at episode ends."""
    ends = recorded.terminations | recorded.truncations
    following = np.roll(recorded.observations, -1, axis=1)
    for row, finals in enumerate(recorded.final_observations):
        stops = np.flatnonzero(ends[row])
        following[row, stops] = finals[: len(stops)]
        following[row, -1] = finals[-1]
    arrays = {
        "states": recorded.observations,
        "actions": recorded.actions.astype(np.int64),
        "rewards": recorded.rewards,
        "terminals": recorded.terminations,
        "timeouts": recorded.truncations,
        "next_states": following,
    }
    return arrays if stream is None else {name: array[stream] for name, array in arrays.items()}


def without(arrays, *names, **others):
    return {**{name: array for name, array in arrays.items() if name not in names}, **others}


def assert_is(history, recorded, stream=0, with_finals=True):
    """That a history is a recorded stream."""
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        assert np.array_equal(getattr(history, name), getattr(recorded, name)[stream]), name
    assert (not with_finals) or np.array_equal(history.final_observations, recorded.final_observations[stream])


@pytest.fixture
def source(tmp_path):
    """A folder for files to import."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


RECORDED = [record(SPACES["cells"], num_streams=2, seed=seed) for seed in range(12)]


def test_one_npz_file_per_stream_with_its_goal(source, tmp_path):
    """Files of equal goals are streams of one task; names are in natural order, and spaces are inferred."""
    for number in (10, 2, 1):
        goal = np.array([number % 2, 3.0])
        np.savez_compressed(source / f"history_{number}.npz", goal=goal, **arrays_of(RECORDED[number], 0))
    out = from_arrays(source, tmp_path / "out", env_id="nobody/Knows-v0", env_kwargs={"size": 4}, algorithm="PPO")
    histories, metadata = histories_of(out)
    assert list(histories) == ["0-0-0", "1-0-0", "1-0-1"]
    for history, number in zip(histories.values(), (1, 2, 10)):
        assert_is(history, RECORDED[number])
    assert [task["kwargs"] for task in metadata.tasks] == [{"goal": [1.0, 3.0]}, {"goal": [0.0, 3.0]}]
    assert (metadata.observation_space, metadata.action_space) == (space_to_json(CELLS), space_to_json(ARROWS))
    converted = metadata.source.pop("converted_from")
    assert converted["final_observations"] == "in the files"
    assert converted["arrays"]["next_observations"] == "next_states"
    assert metadata.source == {"algorithm": "PPO", "n_envs": 2, "total_timesteps": 80, "hyperparameters": {}}
    assert metadata.statistics["train"]["steps"] == 120
    assert "Converted from `source`" in (out / "README.md").read_text()
    assert len(load_dataset(str(out), split="train")) == 3


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("ending", ["npz", "hdf5"])
def test_streams_side_by_side(source, tmp_path, ending, time_first):
    for number in range(2):
        arrays = arrays_of(RECORDED[number])
        if time_first:
            arrays = {name: np.swapaxes(array, 0, 1) for name, array in arrays.items()}
        if ending == "npz":
            np.savez(source / f"{number}.npz", **arrays)
        else:
            with h5py.File(source / f"{number}.hdf5", "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array, compression="gzip")
    histories, _ = histories_of(from_arrays(source, tmp_path / "out", env_id="E-v0", time_first=time_first))
    assert list(histories) == ["0-0-0", "0-0-1", "1-0-0", "1-0-1"]
    for stream in range(2):
        assert_is(histories[f"0-0-{stream}"], RECORDED[0], stream)
        assert_is(histories[f"1-0-{stream}"], RECORDED[1], stream)


def test_one_hdf5_file_with_a_group_per_task_and_attributes(source, tmp_path):
    """As XLand-100B does: no next observations, so that the last known observation of each episode stands in."""
    with h5py.File(source / "all.hdf5", "w") as file:
        for number in range(12):
            recorded = RECORDED[number]
            arrays = without(arrays_of(recorded), "next_states", "terminals", "timeouts")
            arrays["dones"] = recorded.terminations | recorded.truncations
            for name, array in arrays.items():
                file.create_dataset(f"{number}/{name}", data=array)
            file[str(number)].attrs["ruleset-id"] = 100 + number
    with pytest.warns(UserWarning, match="final observations .* not in the files"):
        out = from_arrays(
            source / "all.hdf5",
            tmp_path / "out",
            env_id="XLand-v0",
            task_keys=["ruleset-id"],
            num_validation_tasks=1,
            num_test_tasks=2,
            split_seed=3,
            max_piece_steps=1000,
        )
    metadata = read_metadata(out)
    assert [task["kwargs"]["ruleset-id"] for task in metadata.tasks] == list(range(100, 112))
    kwargs = [task["kwargs"] for task in metadata.tasks]
    family = ad_hf.TaskFamily("XLand-v0", kwargs, num_validation_tasks=1, num_test_tasks=2, split_seed=3)
    assert metadata.tasks == [asdict(task) for task in family.all_tasks]
    for task in metadata.tasks:
        history = histories_of(out, task["split"])[0][f"{task['task_id']}-0-1"]
        recorded = RECORDED[task["task_id"]]
        ends = recorded.terminations[1] | recorded.truncations[1]
        assert np.array_equal(history.rewards, recorded.rewards[1])
        assert np.array_equal(history.terminations, ends)
        assert not history.truncations.any()
        stops = [*np.flatnonzero(ends), len(ends) - 1]
        assert np.array_equal(history.final_observations, recorded.observations[1][stops])


def test_next_observations_of_the_next_episode_are_not_taken_for_final_ones(source, tmp_path):
    """Stable-Baselines3's vector environments return the next episode's first observation at an end."""
    recorded = RECORDED[0]
    arrays = arrays_of(recorded, 0)
    arrays["next_states"] = np.concatenate([arrays["states"][1:], recorded.final_observations[0][-1:]])
    np.savez(source / "0.npz", **arrays)
    with pytest.warns(UserWarning, match="is the first one of the next"):
        out = from_arrays(source, tmp_path / "out", env_id="E-v0")
    history = histories_of(out)[0]["0-0-0"]
    stops = np.flatnonzero(recorded.terminations[0] | recorded.truncations[0])
    assert np.array_equal(history.final_observations[:-1], recorded.observations[0][stops])
    assert np.array_equal(history.final_observations[-1], recorded.final_observations[0][-1])


@pytest.mark.parametrize(
    "names", [("terminated", "done"), ("timeouts", "dones"), ("truncated", "terminations"), ("terminals", "timeouts")]
)
def test_ends_are_told_apart_as_well_as_the_arrays_say(source, tmp_path, names):
    recorded = RECORDED[0]
    ends = recorded.terminations | recorded.truncations
    meaning = {"done": ends, "dones": ends.astype(np.float32), "terminated": recorded.terminations}
    meaning |= {"terminations": recorded.terminations.astype(np.uint8), "terminals": recorded.terminations}
    meaning |= {"timeouts": recorded.truncations, "truncated": recorded.truncations}
    arrays = without(arrays_of(recorded), "terminals", "timeouts", **{name: meaning[name] for name in names})
    np.savez(source / "0.npz", **{name: array[0] for name, array in arrays.items()})
    histories, _ = histories_of(from_arrays(source, tmp_path / "out", env_id="E-v0"))
    assert_is(histories["0-0-0"], recorded)


def test_columns_of_a_replay_buffer_and_other_names(source, tmp_path):
    arrays = arrays_of(RECORDED[0], 0)
    named = {"o": arrays["states"], "a": arrays["actions"][:, None], "r": arrays["rewards"][:, None]}
    np.savez(
        source / "0.npz", **named, end=arrays["terminals"][:, None], cut=arrays["timeouts"], o2=arrays["next_states"]
    )
    out = tmp_path / "out"
    arguments = ["--observations", "o", "--actions", "a", "--rewards", "r", "--terminations", "end"]
    arguments += ["--truncations", "cut", "--next_observations", "o2", "--env_id", "E-v0"]
    arguments += ["--action_space", json.dumps(space_to_json(ARROWS))]
    assert main(["convert", "from-arrays", str(source), str(out), *arguments]) == 0
    assert_is(histories_of(out)[0]["0-0-0"], RECORDED[0])


INFERRED = {
    "one number": (np.array([3, 0, 7]), spaces.Discrete(8)),
    "bit": (np.array([True, False, True]), spaces.Discrete(2)),
    "bits": (np.eye(3, 2, dtype=bool), spaces.MultiBinary(2)),
    "floats": (np.ones((3, 2), np.float16), spaces.Box(-np.inf, np.inf, (2,), np.float32)),
    "doubles": (np.ones(3), spaces.Box(-np.inf, np.inf, (1,), np.float64)),
    "frames": (np.ones((3, 4, 5, 3), np.uint8), spaces.Box(0, 255, (4, 5, 3), np.uint8)),
    "bytes": (np.array([[1, 2], [0, 0], [3, 0]], np.uint8), spaces.MultiDiscrete([4, 3])),
}


@pytest.mark.filterwarnings("ignore:the final observations")
@pytest.mark.parametrize("name", INFERRED)
def test_observation_spaces_are_inferred(source, tmp_path, name):
    values, expected = INFERRED[name]
    actions = np.array([[-0.5], [0.5], [0.25]], np.float32)
    np.savez(source / "0.npz", obs=values, actions=actions, rewards=np.zeros(3), dones=np.array([0, 1, 0]))
    metadata = read_metadata(from_arrays(source, tmp_path / "out", env_id="E-v0"))
    assert metadata.spaces == (expected, spaces.Box(-0.5, 0.5, (1,), np.float32))


@pytest.mark.filterwarnings("ignore:the final observations")
def test_elements_take_the_shape_of_a_space_that_is_given(source, tmp_path):
    values = np.arange(3 * 4).reshape(3, 2, 2)
    np.savez(source / "0.npz", obs=values, actions=np.zeros(3, int), rewards=np.zeros(3), dones=np.zeros(3))
    with pytest.raises(ValueError, match="observation_space cannot be inferred"):
        from_arrays(source, tmp_path / "out", env_id="E-v0")
    space = {"type": "MultiDiscrete", "nvec": [12, 12, 12, 12]}
    histories, _ = histories_of(from_arrays(source, tmp_path / "out", env_id="E-v0", observation_space=space))
    assert np.array_equal(histories["0-0-0"].observations, values.reshape(3, 4))


def test_tasks_and_splits_of_a_file(source, tmp_path):
    for number in range(3):
        np.savez(source / f"{number}.npz", **arrays_of(RECORDED[number]))
    tasks = {"0": {"kwargs": {"goal": 0}, "split": "test"}, "2": {"kwargs": {"goal": 2}, "split": "train"}}
    tasks["1"] = {"kwargs": {"goal": 0}, "split": "test"}
    (source / "tasks.json").write_text(json.dumps(tasks))
    out = from_arrays(source, tmp_path / "out", env_id="E-v0")
    metadata = read_metadata(out)
    assert metadata.tasks == [
        {"task_id": 0, "kwargs": {"goal": 0}, "split": "test"},
        {"task_id": 1, "kwargs": {"goal": 2}, "split": "train"},
    ]
    assert list(histories_of(out, "test")[0]) == ["0-0-0", "0-0-1", "0-0-2", "0-0-3"]
    assert not (out / "recipe.yaml").exists()  # none says these splits
    by_order = from_arrays(source, tmp_path / "by_order", env_id="E-v0", tasks=[{"goal": 5}, {"goal": 6}, {"goal": 7}])
    assert [task["kwargs"]["goal"] for task in read_metadata(by_order).tasks] == [5, 6, 7]
    section = yaml.safe_load((by_order / "recipe.yaml").read_text())["family"]
    assert section["tasks"] == [{"goal": 5}, {"goal": 6}, {"goal": 7}]


def test_imported_histories_are_trained_on(source, tmp_path):
    """With the recipe that comes with them, from memory and as a stream; the spaces are the environment's."""
    for number in range(4):
        np.savez(source / f"{number}.npz", goal=np.array([number, 0]), **arrays_of(RECORDED[number]))
    out = str(tmp_path / "out")
    arguments = ["--env_id", "ad_hf/DarkRoom-v0", "--env_kwargs", '{"size": 7}', "--num_test_tasks", "1"]
    assert main(["convert", "from-arrays", str(source), out, *arguments, "--max_piece_steps", "15"]) == 0
    assert read_metadata(out).spaces[0] == spaces.MultiDiscrete([7, 7])
    for streaming in ([], ["--streaming"]):
        run = tmp_path / f"run{len(streaming)}"
        arguments = ["--recipe", f"{out}/recipe.yaml", "--dataset", out, "--output_dir", str(run)]
        assert main(["train", *arguments, *streaming, *TINY]) == 0
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"] > 0


@pytest.mark.parametrize("name", ["vectors", "frames", "bits"])
def test_histories_of_environments_that_nobody_knows_are_learnt_from(source, tmp_path, name):
    recorded = record(SPACES[name], seed=1)
    np.savez(source / "0.npz", **without(arrays_of(recorded), actions=recorded.actions))
    from_arrays(source, tmp_path / "out", env_id="E-v0")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    model = ad_hf.ADModel(ad_hf.config_from_dataset(tmp_path / "out", **sizes, context_length=8))
    windows = windows_of_folder(tmp_path / "out", 8)
    loss = model(**windows.batch(windows.epoch_order(0))).loss
    loss.backward()
    assert np.isfinite(loss.item())


def test_histories_are_assigned_to_the_tasks_of_a_recipe(source, tmp_path, tiny_recipe_file, capsys):
    """By the goals that the files say; the recipe then trains on them and is evaluated on its validation task."""
    both = (spaces.MultiDiscrete([3, 3]), ARROWS)
    family = ad_hf.TaskFamily.from_recipe(str(tiny_recipe_file))
    for task in family.all_tasks[::-1]:
        goal = np.array(task.kwargs["goal"], dtype=np.float32)
        name = "_".join(map(str, task.kwargs["goal"]))
        np.savez(source / f"{name}.npz", goal=goal, **arrays_of(record(both, seed=task.task_id)))
    out = tmp_path / "out"
    arguments = ["convert", "from-arrays", str(source), str(out), "--recipe", str(tiny_recipe_file)]
    assert main(arguments) == 0
    assert read_metadata(out).tasks == [
        {"task_id": task.task_id, "kwargs": {"goal": list(task.kwargs["goal"])}, "split": task.split}
        for task in family.all_tasks
    ]
    arguments = ["--recipe", str(tiny_recipe_file), "--dataset", str(out), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *arguments, *TINY, "--training.eval_episodes", "2"]) == 0
    np.savez(source / "more.npz", goal=np.array([9, 9]), **arrays_of(RECORDED[0]))
    line = fails(capsys, "convert", "from-arrays", source, tmp_path / "x", "--recipe", tiny_recipe_file)
    assert "more.npz: the family has no task {'goal': [9, 9]}" in line


MALFORMED = {
    "lengths that disagree": ({"actions": np.zeros(39, int)}, r"array actions: shape \(39,\), .* begin with \(40,\)"),
    "no rewards": ({"rewards": None}, "no array rewards for the rewards; there are"),
    "no ends": ({"terminals": None, "timeouts": None}, "no array says where episodes end"),
    "a reward that is not a number": ({"rewards": np.r_[0, np.nan, np.zeros(38)]}, "array rewards: nan at step 1"),
    "ends that are neither": ({"terminals": np.full(40, 2)}, "array terminals: 2 at step 0, expected 0 or 1"),
    "pickles": ({"states": np.array([{}] * 40)}, "array states cannot be read: Object arrays cannot"),
    "text": ({"actions": np.array(["left"] * 40)}, "array actions: elements of type <U4"),
    "negative numbers": ({"actions": np.full(40, -1)}, "action_space cannot be inferred from int64 .* -1 to 4"),
    "not finite": ({"states": np.full((40, 2), np.inf)}, "observations: expected finite numbers"),
    "many dimensions": ({"rewards": np.zeros((40, 2, 2))}, r"array rewards: shape \(40, 2, 2\), expected \(num_steps"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_arrays_are_refused_with_the_file_and_the_array(source, tmp_path, name):
    changed, message = MALFORMED[name]
    arrays = {**without(arrays_of(RECORDED[0], 0), "next_states"), **changed}
    good = arrays_of(RECORDED[1], 0)
    np.savez(source / "0.npz", **good)
    np.savez(source / "1.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=f"{'' if 'inferred' in message else '1.npz.*'}{message}"):
        from_arrays(source, tmp_path / "out", env_id="E-v0")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.filterwarnings("ignore:the final observations")
def test_elements_outside_of_a_space_that_is_given_are_refused(source, tmp_path):
    arrays = without(arrays_of(RECORDED[0], 0), "next_states")
    np.savez(source / "0.npz", **arrays)
    step = int(np.argmax(arrays["actions"] >= 2))
    given = {"observation_space": space_to_json(CELLS), "action_space": {"type": "Discrete", "n": 2}}
    with pytest.raises(ValueError, match=rf"0.npz, actions: \d at step {step}, expected .* Discrete\(2\)"):
        from_arrays(source, tmp_path / "out", env_id="E-v0", **given)
    given["observation_space"] = {"type": "Discrete", "n": 9}
    with pytest.raises(ValueError, match=r"observations: elements of shape \(2,\), expected \(\)"):
        from_arrays(source, tmp_path / "out", env_id="E-v0", **given)
    assert not list(tmp_path.glob("*out*"))


def test_what_is_no_source_of_arrays_is_told(source, tmp_path, capsys):
    def line(*arguments):
        return fails(capsys, "convert", "from-arrays", source, tmp_path / "out", "--env_id", "E-v0", *arguments)

    assert "pickles are not read" in line()
    (source / "a.npz").write_bytes(b"no zip")
    assert "a.npz cannot be read" in line()
    (source / "a.npz").unlink()
    (source / "a.hdf5").write_bytes(b"no hdf5")
    assert "a.hdf5 cannot be read" in line()
    with h5py.File(source / "a.hdf5", "w") as file:
        file["x"] = 1
    assert "a.hdf5: no array rewards" in line()
    (source / "a.hdf5").unlink()
    np.savez(source / "a.npz", **arrays_of(RECORDED[0]))
    (source / "a.h5").write_bytes((source / "a.npz").read_bytes())
    assert "a.h5 cannot be read" in line()
    with h5py.File(source / "a.h5", "w") as file:
        file["rewards"] = [1.0]
    assert "several files are called a" in line()
    (source / "a.h5").unlink()
    assert "seed of the task's keyword arguments cannot be read: there is no such array" in line("--task_keys", "seed")
    (source / "tasks.json").write_text('{"b": {}}')
    assert "by their names (a), got an object of b" in line()
    (source / "tasks.json").write_text("[3]")
    assert "tasks.json, a: expected the task's keyword arguments" in line()
    (source / "tasks.json").unlink()
    assert "unknown options: --gaol" in line("--gaol")
    assert "leave none of 1 tasks" in line("--num_test_tasks", "1")
    assert "does not exist" in fails(capsys, "convert", "from-arrays", source / "no", tmp_path / "out")
    assert "env_id is missing" in fails(capsys, "convert", "from-arrays", source, tmp_path / "out")
    assert "give nothing else" in line("--recipe", "dark_room")
    arguments = ["--env_id", "ad_hf/DarkRoom-v0", "--env_kwargs", '{"sise": 3}']
    with_unknown = fails(capsys, "convert", "from-arrays", source, tmp_path / "out", *arguments)
    assert "ad_hf/DarkRoom-v0 cannot be made with {'sise': 3} and {}" in with_unknown
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_with_the_extra_that_has_it(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    assert "ad_hf[minari]" in fails(capsys, "convert", "from-minari", "a-v0", tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (source / "a.h5").write_bytes(b"")
    assert "ad_hf[hdf5]" in fails(capsys, "convert", "from-arrays", source, tmp_path / "out", "--env_id", "E-v0")


def test_the_command_line_knows_all_arrays():
    assert set(vars(ArrayNames())) == set(ARRAY_NAMES)
