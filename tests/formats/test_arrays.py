"""Npz and HDF5 files: every layout becomes histories, and damaged, hostile and malformed ones a clear error each."""

import json
import os
import re
import sys
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from gymnasium import spaces
from history_files import windows_of_folder
from random_histories import ARROWS, CELLS, SPACES, TINY, record

import ad_hf
from ad_hf.cli import ArrayNames, main
from ad_hf.envs.spaces import space_to_json
from ad_hf.formats.array_files import ARRAY_NAMES
from ad_hf.formats.arrays import from_arrays
from ad_hf.histories.schema import read_metadata
from ad_hf.histories.steps import STEPWISE

h5py = pytest.importorskip("h5py")

FINALS_MISSING = pytest.mark.filterwarnings("ignore:the final observations")
RECORDED = [record(SPACES["cells"], num_streams=2, seed=seed) for seed in range(12)]


def arrays_of(recorded, stream=None):
    """What peers publish of some streams, or of one of them: with next observations, true ones at episode ends."""
    ends = recorded.terminations | recorded.truncations
    following = np.roll(recorded.observations, -1, axis=1)
    for row, finals in enumerate(recorded.final_observations):
        stops = np.append(np.flatnonzero(ends[row]), ends.shape[1] - 1)
        following[row, stops] = finals
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


def histories_of(folder, split="train"):
    """The histories of a split by their ids, each of one row, and the metadata."""
    rows, metadata = ad_hf.load_histories(folder, split)
    assert set(rows["piece"]) <= {0}
    return {row["history_id"]: row for row in rows}, metadata


def assert_is(history, recorded, stream=0):
    """That a history is a recorded stream."""
    for name in STEPWISE:
        assert np.array_equal(history[name], getattr(recorded, name)[stream]), name
    assert np.array_equal(history["final_observations"], recorded.final_observations[stream])


@pytest.fixture
def source(tmp_path):
    """A folder for files to import."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def convert(source, **settings):
    return from_arrays(source, source.parent / "out", **{"env_id": "E-v0", **settings})


def refused(source, message, **settings):
    with pytest.raises(ValueError, match=message) as error:
        convert(source, **settings)
    assert not (source.parent / "out").exists()
    return str(error.value)


# --- Layouts


def test_one_npz_file_per_stream_with_its_goal(source):
    """Files of equal goals are streams of one task; names are in natural order, and spaces are inferred."""
    for number in (10, 2, 1):
        goal = np.array([number % 2, 3.0])
        np.savez_compressed(source / f"history_{number}.npz", goal=goal, **arrays_of(RECORDED[number], 0))
    out = convert(source, env_id="nobody/Knows-v0", env_kwargs={"size": 4}, algorithm="PPO")
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
def test_streams_side_by_side(source, ending, time_first):
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
    histories, _ = histories_of(convert(source, time_first=time_first))
    assert list(histories) == ["0-0-0", "0-0-1", "1-0-0", "1-0-1"]
    for name, history in histories.items():
        assert_is(history, RECORDED[int(name[0])], int(name[-1]))


def test_one_hdf5_file_with_a_group_per_task_and_attributes(source):
    """As XLand-100B does: no next observations, so that the last known observation of each episode stands in."""
    with h5py.File(source / "all.hdf5", "w") as file:
        for number, recorded in enumerate(RECORDED):
            ends = recorded.terminations | recorded.truncations
            arrays = without(arrays_of(recorded), "next_states", "terminals", "timeouts", dones=ends)
            for name, array in arrays.items():
                file.create_dataset(f"{number}/{name}", data=array)
            file[str(number)].attrs["ruleset-id"] = 100 + number
    split = {"num_validation_tasks": 1, "num_test_tasks": 2, "split_seed": 3}
    with pytest.warns(UserWarning, match="final observations .* not in the files"):
        out = from_arrays(source / "all.hdf5", source.parent / "out", "XLand-v0", task_keys=["ruleset-id"], **split)
    metadata = read_metadata(out)
    kwargs = [task["kwargs"] for task in metadata.tasks]
    assert [task["ruleset-id"] for task in kwargs] == list(range(100, 112))
    assert metadata.tasks == [asdict(task) for task in ad_hf.TaskFamily("XLand-v0", kwargs, **split).all_tasks]
    for task in metadata.tasks:
        history = histories_of(out, task["split"])[0][f"{task['task_id']}-0-1"]
        recorded = RECORDED[task["task_id"]]
        ends = recorded.terminations[1] | recorded.truncations[1]
        assert np.array_equal(history["rewards"], recorded.rewards[1])
        assert np.array_equal(history["terminations"], ends)
        assert not any(history["truncations"])
        stops = [*np.flatnonzero(ends), len(ends) - 1]
        assert np.array_equal(history["final_observations"], recorded.observations[1][stops])


def test_next_observations_of_the_next_episode_are_not_taken_for_final_ones(source):
    """Stable-Baselines3's vector environments return the next episode's first observation at an end."""
    recorded = RECORDED[0]
    arrays = arrays_of(recorded, 0)
    arrays["next_states"] = np.concatenate([arrays["states"][1:], recorded.final_observations[0][-1:]])
    np.savez(source / "0.npz", **arrays)
    with pytest.warns(UserWarning, match="is the first one of the next"):
        history = histories_of(convert(source))[0]["0-0-0"]
    stops = np.flatnonzero(recorded.terminations[0] | recorded.truncations[0])
    assert np.array_equal(history["final_observations"][:-1], recorded.observations[0][stops])
    assert np.array_equal(history["final_observations"][-1], recorded.final_observations[0][-1])


def test_ends_are_told_apart_as_well_as_the_arrays_say(source):
    recorded = RECORDED[0]
    ends = recorded.terminations | recorded.truncations
    arrays = {"done": ends, "dones": ends.astype(np.float32), "terminated": recorded.terminations}
    arrays |= {"terminations": recorded.terminations.astype(np.uint8), "terminals": recorded.terminations}
    arrays |= {"timeouts": recorded.truncations, "truncated": recorded.truncations}
    pairs = [("terminated", "done"), ("timeouts", "dones"), ("truncated", "terminations"), ("terminals", "timeouts")]
    for number, names in enumerate(pairs):
        others = {name: arrays[name] for name in names}
        arrays_in_file = without(arrays_of(recorded), "terminals", "timeouts", **others)
        np.savez(source / f"{number}.npz", **{name: array[0] for name, array in arrays_in_file.items()})
    for history in histories_of(convert(source))[0].values():
        assert_is(history, recorded)


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
    assert set(vars(ArrayNames())) == set(ARRAY_NAMES)


# --- Spaces


@FINALS_MISSING
def test_observation_spaces_are_inferred(source, tmp_path):
    inferred = [
        (np.array([3, 0, 7]), spaces.Discrete(8)),
        (np.array([True, False, True]), spaces.Discrete(2)),
        (np.eye(3, 2, dtype=bool), spaces.MultiBinary(2)),
        (np.ones((3, 2), np.float16), spaces.Box(-np.inf, np.inf, (2,), np.float32)),
        (np.ones(3), spaces.Box(-np.inf, np.inf, (1,), np.float64)),
        (np.ones((3, 4, 5, 3), np.uint8), spaces.Box(0, 255, (4, 5, 3), np.uint8)),
        (np.array([[1, 2], [0, 0], [3, 0]], np.uint8), spaces.MultiDiscrete([4, 3])),
    ]
    actions = np.array([[-0.5], [0.5], [0.25]], np.float32)
    for number, (values, expected) in enumerate(inferred):
        np.savez(source / "0.npz", obs=values, actions=actions, rewards=np.zeros(3), dones=np.array([0, 1, 0]))
        metadata = read_metadata(from_arrays(source, tmp_path / str(number), env_id="E-v0"))
        assert metadata.spaces == (expected, spaces.Box(-0.5, 0.5, (1,), np.float32))


@FINALS_MISSING
def test_elements_take_the_shape_of_a_space_that_is_given_and_are_held_to_it(source):
    values = np.arange(3 * 4).reshape(3, 2, 2)
    np.savez(source / "0.npz", obs=values, actions=np.arange(3), rewards=np.zeros(3), dones=np.zeros(3))
    space = {"type": "MultiDiscrete", "nvec": [12, 12, 12, 12]}
    refused(source, "observation_space cannot be inferred")
    refused(source, r"observations: elements of shape \(2, 2\), expected \(\)", observation_space=ARROW_JSON)
    two = {"type": "Discrete", "n": 2}
    message = r"0.npz, actions: 2 at step 2, expected .* Discrete\(2\)"
    refused(source, message, observation_space=space, action_space=two)
    histories, _ = histories_of(convert(source, observation_space=space))
    assert np.array_equal(histories["0-0-0"]["observations"], values.reshape(3, 4))


ARROW_JSON = space_to_json(ARROWS)


# --- Tasks


def test_tasks_and_splits_of_a_file(source, tmp_path):
    for number in range(3):
        np.savez(source / f"{number}.npz", **arrays_of(RECORDED[number]))
    tasks = {"0": {"kwargs": {"goal": 0}, "split": "test"}, "2": {"kwargs": {"goal": 2}, "split": "train"}}
    tasks["1"] = {"kwargs": {"goal": 0}, "split": "test"}
    (source / "tasks.json").write_text(json.dumps(tasks))
    out = convert(source)
    assert read_metadata(out).tasks == [
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
    """With the recipe that comes with them, from memory and streamed; the spaces are the environment's."""
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
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    model = ad_hf.ADModel(ad_hf.config_from_dataset(convert(source), **sizes, context_length=8))
    windows = windows_of_folder(tmp_path / "out", 8)
    loss = model(**windows.batch(windows.epoch_order(0))).loss
    loss.backward()
    assert np.isfinite(loss.item())


def test_histories_are_assigned_to_the_tasks_of_a_recipe(source, tmp_path, tiny_recipe_file, capsys):
    """By the goals that the files say."""
    both = (spaces.MultiDiscrete([3, 3]), ARROWS)
    family = ad_hf.TaskFamily.from_recipe(str(tiny_recipe_file))
    for task in family.all_tasks[::-1]:
        goal = np.array(task.kwargs["goal"], dtype=np.float32)
        name = "_".join(map(str, task.kwargs["goal"]))
        np.savez(source / f"{name}.npz", goal=goal, **arrays_of(record(both, seed=task.task_id)))
    arguments = ["convert", "from-arrays", str(source), "--recipe", str(tiny_recipe_file)]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert read_metadata(tmp_path / "out").tasks == [
        {"task_id": task.task_id, "kwargs": {"goal": list(task.kwargs["goal"])}, "split": task.split}
        for task in family.all_tasks
    ]
    np.savez(source / "more.npz", goal=np.array([9, 9]), **arrays_of(RECORDED[0]))
    assert main([*arguments, str(tmp_path / "x")]) == 2
    assert "more.npz: the family has no task {'goal': [9, 9]}" in capsys.readouterr().err


# --- Refusals

GOOD = {
    "observations": np.zeros((6, 2), dtype=np.int64),
    "actions": np.array([0, 1, 2, 0, 1, 2]),
    "rewards": np.linspace(0, 1, 6),
    "dones": np.array([0, 0, 1, 0, 0, 1], dtype=bool),
}
MALFORMED = {
    r"array actions: shape \(5,\), .* begin with \(6,\)": {"actions": np.zeros(5, int)},
    "no array rewards for the rewards; there are": {"rewards": None},
    "no array says where episodes end": {"dones": None},
    "array rewards: nan at step 1": {"rewards": np.array([0, np.nan, 0, 0, 0, 0])},
    "array dones: 2 at step 0, expected 0 or 1": {"dones": np.full(6, 2)},
    "array observations cannot be read: Object arrays cannot be": {"observations": np.array([{}] * 6)},
    "array actions cannot be read: it has elements of type <U4": {"actions": np.array(["left"] * 6)},
    "action_space cannot be inferred from int64 .* -1 to -1": {"actions": np.full(6, -1)},
    "as many categories fit no model": {"actions": np.full(6, 2**40)},
    "observations: expected finite numbers": {"observations": np.full((6, 2), np.inf)},
    r"array rewards: shape \(6, 2, 2\), expected \(num_steps": {"rewards": np.zeros((6, 2, 2))},
    r"array next_obs: shape \(6, 3\), expected that of": {"next_obs": np.zeros((6, 3))},
    "several arrays are called rewards": {"rewards.npy": np.zeros(3)},
}


def test_malformed_arrays_are_refused_with_the_file_and_the_array(source):
    for message, changes in MALFORMED.items():
        arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
        np.savez(source / "0.npz", **arrays)
        if "rewards.npy" in changes:
            with zipfile.ZipFile(source / "0.npz", "a") as archive:
                archive.writestr("rewards", b"again")
        refused(source, message if "inferred" in message or "categories" in message else f"0.npz.*{message}")


SETTINGS = [
    ({"env_id": "  "}, "env_id is missing"),
    ({"env_id": None}, "env_id is missing"),
    ({"env_kwargs": [1]}, "env_kwargs must be a mapping, got"),
    ({"max_piece_steps": 0}, "max_piece_steps must be at least 1, got 0"),
    ({"action_space": 5}, "action_space must be a space"),
    ({"action_space": {"type": "Discrete"}}, "action_space: n is missing"),
    ({"names": {"reward": "r"}}, "unknown arrays reward: expected some of observations"),
    ({"names": {"observations": "rewards"}}, "a.npz: the array rewards is taken for the observations"),
    ({"task_keys": ["kwargs"]}, "kwargs of the task's .* its text must hold a mapping"),
    ({"task_keys": ["text"]}, "text of the task's keyword arguments|finite"),
    ({"task_keys": ["seed"]}, "seed of the task's keyword arguments cannot be read: there is no such array"),
    ({"num_test_tasks": 1}, "leave none of 1 tasks"),
    ({"family": ad_hf.TaskFamily("E-v0", tasks=[{}])}, "give nothing else"),
    ({"env_id": "ad_hf/DarkRoom-v0", "env_kwargs": {"sise": 3}}, r"DarkRoom-v0 cannot be made with \{'sise': 3\}"),
]
TASKS = [
    (b"\xff{}", "tasks.json is not UTF-8"),
    (b"{", "tasks.json is not JSON"),
    (b"[" * 10**5, "tasks.json nests too deep"),
    (b'[{"goal": NaN}]', "tasks.json, a: expected keyword arguments of finite numbers"),
    (b"3", "tasks.json: expected a task for each"),
    (b"[3]", "tasks.json, a: expected the task's keyword arguments"),
    (b'{"b": {}}', r"by their names \(a\), got an object of b"),
    (b'[{"kwargs": {}, "split": ["train"]}]', "tasks.json, a: expected .* with split"),
    (b'[{"xml_file": "/etc/passwd"}]', "comes with a.xml_file .* trust_remote_code"),
]


def test_settings_and_tasks_that_are_none_are_refused_by_name(source):
    np.savez(source / "a.npz", kwargs=np.array("[1]"), text=np.array(np.nan), **GOOD)
    for settings, message in SETTINGS:
        refused(source, message, **{"task_keys": [], **settings})
    for text, message in TASKS:
        (source / "tasks.json").write_bytes(text)
        refused(source, message)


def test_what_is_no_source_of_arrays_is_named(source, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist: expected an npz or HDF5 file"):
        convert(source / "no")
    refused(source, "pickles are not read")
    os.mkfifo(source / "a.npz")  # is not waited for
    refused(source, "a.npz cannot be read: it is not a regular file")
    (source / "a.npz").unlink()
    np.savez(source / "a.npz", **GOOD)
    (source / "a.h5").write_bytes((source / "a.npz").read_bytes())
    refused(source, "a.h5 cannot be read")
    with h5py.File(source / "a.h5", "w") as file:
        file["x"] = 1
    refused(source, "a.h5: no array rewards")
    with h5py.File(source / "a.h5", "w") as file:
        file["rewards"] = [1.0]
    refused(source, "several files are called a")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"ad_hf\[hdf5\]"):
        convert(source)


def patched(data, position, value):
    return data[:position] + value + data[position + len(value) :]


def in_both(data, offset, value):
    """Change a field of the last member of a zip where it stands twice."""
    data = patched(data, data.rindex(b"PK\x03\x04") + offset, value)
    return patched(data, data.rindex(b"PK\x01\x02") + offset + 2, value)


NPZ = [
    (lambda data: in_both(data, 6, b"\x01\x00"), "array dones cannot be read: .*encrypted"),
    (lambda data: in_both(data, 8, b"\x63\x00"), "array dones cannot be read: .*compression"),
    (lambda data: data[:-60], "cannot be read: File is not a zip file"),
    (lambda data: b"", "cannot be read: File is not a zip file"),
    (lambda data: patched(data, data.rindex(b"\x93NUMPY") + 128, b"\xff" * 4), "dones cannot be read"),
    (lambda data: data.replace(b"\x93NUMPY", b"\x93NUMPI"), "array observations cannot be read"),
]
HEADERS = [
    ({"shape": (20 * 10**9,)}, "(Unable to allocate|EOF)"),
    ({"shape": (7,)}, "EOF: reading array data, expected 56 bytes got 48"),
    ({"shape": (5,)}, "it holds more than the 40 bytes"),
    ({"shape": (-6, -1)}, "one unknown dimension"),
    ({"descr": "|O"}, "Object arrays cannot be loaded"),
    ({"descr": "__import__('os').system('true')"}, "descr is not a valid dtype"),
]


def test_a_damaged_npz_file_is_named_with_the_array(source):
    np.savez(source / "a.npz", **GOOD)
    whole = (source / "a.npz").read_bytes()
    for damage, message in NPZ:
        (source / "a.npz").write_bytes(damage(whole))
        refused(source, f"^{re.escape(str(source / 'a.npz'))}.*{message}")
    for changes, message in HEADERS:
        with zipfile.ZipFile(source / "a.npz", "w") as archive:
            for key, array in GOOD.items():
                header = np.lib.format.header_data_from_array_1_0(array) | (changes if key == "rewards" else {})
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(array.tobytes())
        refused(source, f"a.npz, array rewards cannot be read: .*{message}")
    np.savez(source / "a.npz", **GOOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100}))
        refused(source, "array observations cannot be read: it takes .* GB of memory")


def write_hdf5(path, *left_out, **settings):
    file = h5py.File(path, "w", **settings)
    for name, array in GOOD.items():
        if name not in left_out:
            file[name] = array
    return file


def put(item):
    return lambda file, secret: file.__setitem__("observations", item)


def external_group(file, secret):
    for name in ("rewards", "actions", "dones"):
        file.move(name, f"inner/{name}")
    file["inner/observations"] = h5py.ExternalLink(secret, "observations")


def external_storage(file, secret):
    file.create_dataset("observations", (6, 2), dtype="i8", external=[(str(secret), 0, 96)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((6, 2), dtype="i8")
    layout[:] = h5py.VirtualSource(secret, "observations", (6, 2))
    file.create_virtual_dataset("observations", layout)


def larger_than_memory(file, secret):
    for name, array in {**GOOD, "observations": np.zeros((6, 2))}.items():
        if name in file:
            del file[name]
        file.create_dataset(name, (10**13, *array.shape[1:]), chunks=(6, *array.shape[1:]), dtype="f8")[:6] = array


ELSEWHERE = [
    (lambda file, secret: put(h5py.ExternalLink(secret, "observations"))(file, secret), "to elsewhere, <ExternalLink"),
    (put(h5py.ExternalLink("no.h5", "observations")), "is a link to elsewhere"),
    (external_group, "inner/observations: it is a link"),
    (external_storage, "its elements are in other files"),
    (virtual, "its elements are in other files"),
    (put(h5py.SoftLink("/actions")), "is a link to elsewhere, <SoftLink"),
    (put(h5py.SoftLink("/observations")), "is a link to elsewhere"),
    (lambda file, secret: file.create_dataset("observations", (10**10, 2), dtype="f8"), "nothing was ever written"),
    (larger_than_memory, r"array observations cannot be read: it takes 160,000.0 GB of memory"),
    (lambda file, secret: file.create_group("observations"), "a single number or a group"),
    (lambda file, secret: file.create_dataset("observations", dtype=h5py.Empty("f4")), "it is empty"),
    (put(["a"] * 6), "elements of type object, expected numbers"),
]


def test_what_an_hdf5_file_has_elsewhere_is_not_read(source):
    secret, path = source.parent / "secret.hdf5", source / "a.hdf5"
    write_hdf5(secret).close()
    for write, message in ELSEWHERE:
        with write_hdf5(path, "observations") as file:
            write(file, secret)
        assert refused(source, message).startswith(str(path))
    with write_hdf5(path) as file:
        file["goal"] = h5py.ExternalLink("../secret.hdf5", "rewards")
    refused(source, "a.hdf5 cannot be read: goal: it is a link to elsewhere")
    write_hdf5(path).close()
    whole = path.read_bytes()
    for part in (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"rewards"):
        path.write_bytes(whole.replace(part, b"\xff" * len(part)))
        refused(source, re.escape(str(path)))


def test_an_hdf5_file_may_have_groups_in_cycles_and_a_user_block(source):
    with write_hdf5(source / "a.hdf5", userblock_size=512) as file:
        file["inner"] = file["/"]
    with pytest.warns(UserWarning, match="final observations"):
        assert (convert(source) / "recipe.yaml").is_file()
