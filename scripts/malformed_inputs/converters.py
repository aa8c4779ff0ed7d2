"""Converters: npz and HDF5 files, Minari datasets, tasks.json and options."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from malformed_inputs.common import DROP, Input, Place, accepted, command, edit_bytes, refused

AREA = "converters"
NAN = float("nan")
T = 12
GOOD: dict[str, Any] = {
    "observations": np.zeros((T, 2), np.float32),
    "actions": np.arange(T) % 3,
    "rewards": np.ones(T),
    "dones": np.arange(T) % 4 == 3,
}
ARM = {"type": "Box", "shape": [1], "low": [-1.0], "high": [1.0], "dtype": "float32"}


def _npz(place: Place, name: str = "a.npz", **changes: Any) -> Path:
    """An npz file of a stream of twelve steps, with some arrays changed."""
    path = place.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: each for key, each in {**GOOD, **changes}.items() if each is not DROP})
    return path


def _convert(source: Any, place: Place, *options: Any) -> list[Any]:
    given = [] if "--env_id" in options or "--recipe" in options else ["--env_id", "Foo-v0"]
    return ["convert", "from-arrays", source, place.out, *given, *options]


def _arrays(*options: Any, **changes: Any) -> Callable[[Place], list[Any]]:
    """The conversion of a file with some arrays changed."""
    return lambda place: _convert(_npz(place, **changes), place, *options)


def _compressed(place: Place) -> list[Any]:
    np.savez_compressed(place.folder / "a.npz", **GOOD)
    return _convert(place.folder / "a.npz", place)


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Place], list[Any]]:
    return lambda place: _convert(edit_bytes(_npz(place), change), place)


def _hdf5(fill: Callable[[Any, Place], Any], *options: Any) -> Callable[[Place], list[Any]]:
    """The conversion of an HDF5 file of a good stream, to which something is done."""

    def make(place: Place) -> list[Any]:
        import h5py

        with h5py.File(place.folder / "a.hdf5", "w") as file:
            for name, each in GOOD.items():
                file[name] = each
            fill(file, place)
        return _convert(place.folder / "a.hdf5", place, *options)

    return make


def _tasks(text: str | bytes, count: int = 2) -> Callable[[Place], list[Any]]:
    """The conversion of a folder of files, with a tasks.json."""

    def make(place: Place) -> list[Any]:
        for index in range(count):
            _npz(place, f"files/{index}.npz")
        place.text(text, "files/tasks.json")
        return _convert(place.folder / "files", place)

    return make


def _header_of(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A .npy file that claims a shape and has no data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _replaced(name: str, content: bytes) -> Callable[[Place], list[Any]]:
    """An npz file, one of whose arrays is other bytes."""

    def make(place: Place) -> list[Any]:
        path = _npz(place, **{name: DROP})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", content)
        return _convert(path, place)

    return make


def _corrupted(place: Place) -> list[Any]:
    """An npz file whose compressed bytes are others."""
    path = place.folder / "a.npz"
    np.savez_compressed(path, **{**GOOD, "observations": np.random.default_rng(0).random((T, 200))})
    return _convert(edit_bytes(path, lambda data: data[:900] + bytes(400) + data[1300:]), place)


ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("no rewards", {"rewards": DROP}, r"rewards"),
    ("no ends", {"dones": DROP}, r"dones"),
    ("a reward of NaN", {"rewards": np.where(np.arange(T) == 5, NAN, 1.0)}, r"rewards.*nan.*5"),
    ("a reward beyond float32", {"rewards": np.full(T, -1e39)}, r"rewards.*1e\+?39"),
    ("rewards that are complex", {"rewards": np.ones(T, complex)}, r"rewards"),
    ("rewards as text", {"rewards": np.full(T, "1.0")}, r"rewards"),
    ("rewards as objects", {"rewards": np.array([1.0, None] * 6, dtype=object)}, r"rewards"),
    ("rewards of a step alone", {"rewards": np.array(1.0)}, r"rewards"),
    ("rewards of two numbers a step", {"rewards": np.ones((T, 2))}, r"rewards|shape"),
    ("an observation of NaN", {"observations": np.full((T, 2), NAN, np.float32)}, r"observations.*(nan|finite)"),
    ("an infinite action", {"actions": np.full((T, 1), np.inf)}, r"actions.*(inf|finite)"),
    ("an action less than steps", {"actions": np.arange(T - 1)}, r"actions"),
    ("ends that are 2", {"dones": np.full(T, 2)}, r"dones.*2"),
    ("ends that are halves", {"dones": np.full(T, 0.5)}, r"dones.*0\.5"),
    ("ends that are NaN", {"dones": np.full(T, NAN)}, r"dones.*nan"),
    ("no steps", {name: each[:0] for name, each in GOOD.items()}, r"a\.npz"),
    ("next observations of another width", {"next_observations": np.zeros((T, 3), np.float32)}, r"next_observations"),
    ("actions below 0, as of a space that begins elsewhere", {"actions": np.arange(T) % 3 - 1}, r"action.*-1"),
    ("dates as observations", {"observations": np.full((T, 2), "2024-01-01", "datetime64[D]")}, r"observations"),
    ("records as observations", {"observations": np.zeros(T, [("x", "f4"), ("y", "f4")])}, r"observations"),
    ("float64 observations that float32 cannot hold", {"observations": np.full((T, 2), 1e300)}, r"observations"),
    ("actions as large as 2**40", {"actions": np.arange(T) + 2**40}, r"action"),
]

OPTIONS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("an env_id of spaces", ["--env_id", "  "], {}, r"env_id"),
    ("env_kwargs as text", ["--env_kwargs", '"size"'], {}, r"env_kwargs"),
    ("env_kwargs that are no JSON", ["--env_kwargs", "{size: 3}"], {}, r"env_kwargs"),
    ("pieces of no steps", ["--max_piece_steps", "-3"], {}, r"max_piece_steps"),
    ("more held out than there is", ["--num_test_tasks", "5"], {}, r"test"),
    ("held out below none", ["--num_validation_tasks", "-1"], {}, r"num_validation_tasks|validation"),
    ("an action space as a list", ["--action_space", "[3]"], {}, r"action_space"),
    ("an action space of no actions", ["--action_space", '{"type": "Discrete", "n": 0}'], {}, r"action_space"),
    ("an action space of nothing known", ["--action_space", '{"type": "Graph"}'], {}, r"action_space"),
    ("an action space that is too small", ["--action_space", '{"type": "Discrete", "n": 2}'], {}, r"actions"),
    (
        "actions outside of their Box",
        ["--action_space", json.dumps(ARM)],
        {"actions": np.full((T, 1), -1.5)},
        r"actions",
    ),
    (
        "an observation space of another width",
        ["--observation_space", json.dumps({**ARM, "shape": [3], "low": [0.0] * 3, "high": [1.0] * 3})],
        {},
        r"observations",
    ),
    ("a name of an array that there is not", ["--rewards", "payoff"], {}, r"payoff"),
    ("one array twice", ["--truncations", "actions"], {}, r"actions.*2"),
    ("time first, of one stream", ["--time_first", "--rewards", "observations"], {}, r"rewards|observations|shape"),
    ("a key of tasks that there is not", ["--task_keys", "maze"], {}, r"maze"),
    ("a key of tasks that is text, and no JSON", ["--task_keys", "kwargs"], {"kwargs": np.array("{size")}, r"kwargs"),
    ("a recipe and an environment", ["--recipe", "dark_room", "--env_id", "Foo-v0"], {}, r"family|env_id|recipe"),
    ("a configuration outside of the folder", ["--config_name", "../x"], {}, r"config_name|\.\./x"),
    ("a configuration without a name", ["--config_name", ""], {}, r"config_name|configuration"),
]

TASKS: list[tuple[str, str | bytes, str]] = [
    ("one task for two files", '[{"goal": 1}]', r"tasks"),
    ("tasks by names of others", '{"a": {}, "b": {}}', r"tasks.*0"),
    ("a number as a task", "[1, 2]", r"tasks.*0"),
    ("a split of another name", '[{"kwargs": {}, "split": "dev"}, {"kwargs": {"a": 1}, "split": "train"}]', r"dev"),
    ("a split for one task alone", '[{"kwargs": {"a": 0}, "split": "test"}, {"a": 1}]', r"split"),
    (
        "one task in two splits",
        '[{"kwargs": {"a": 1}, "split": "test"}, {"kwargs": {"a": 1}, "split": "train"}]',
        r"split",
    ),
    ("nothing as a task", '[{"kwargs": null, "split": "train"}, {"kwargs": {"a": 1}, "split": "train"}]', r"tasks.*0"),
    ("infinity", '[{"a": Infinity}, {"a": 1}]', r"tasks\.json"),
    ("its first half", '[{"a": 1}, {"a"', r"tasks\.json"),
    ("UTF-16", '[{"a": 1}, {"a": 2}]'.encode("utf-16"), r"tasks\.json"),
    ("nested 20,000 deep", "[" * 20_000 + "]" * 20_000, r"tasks\.json"),
]


def _dtype(space: str, dtype: str) -> Callable[[Place, Any], str | None]:
    def check(place: Place, value: Any) -> str | None:
        found = json.loads((place.out / "default" / "metadata.json").read_text())[space]
        return None if found.get("dtype") == dtype or found["type"] == dtype else f"{space} is {found}"

    return check


def _values(name: str, expected: Any) -> Callable[[Place, Any], str | None]:
    """What the first history has in a column."""

    def check(place: Place, value: Any) -> str | None:
        import pyarrow.parquet as pq

        found = np.array(pq.read_table(place.out / "default/train-00000-of-00001.parquet")[name][0].as_py())
        return None if np.array_equal(found, np.asarray(expected)) else f"{name} is {found[:5].tolist()}"

    return check


def _opened(place: Place) -> Callable[[], Any]:
    """What training makes of converted histories: rows, and a configuration."""
    import ad_hf

    box = place.base / "box"
    return lambda: (len(ad_hf.load_histories(box, "train")[0]), ad_hf.config_from_dataset(box, hidden_size=16))


def _of_known_tasks(place: Place) -> list[Any]:
    """Histories of the recipe's own tasks, as arrays, to show beside a model."""
    for index in np.ndindex(3, 3):
        seen = np.tile([[1, 1], [0, 1]], (6, 1))
        changes = {"observations": seen, "dones": np.arange(T) % 6 == 5, "goal": np.array(index)}
        _npz(place, f"rooms/{index[0]}-{index[1]}.npz", **changes)
    argv = ["convert", "from-arrays", place.folder / "rooms", place.folder / "rooms_h", "--recipe"]
    if command([*argv, place.base / "tiny.yaml"]):
        raise RuntimeError("they cannot be converted")
    return place.rollout(None, "--dataset", place.folder / "rooms_h")


def _empty() -> Any:
    import h5py

    return h5py.Empty("f8")


def _nowhere() -> Any:
    import h5py

    return h5py.SoftLink("/nothing")


def _pipe(place: Place) -> list[Any]:
    os.mkfifo(place.folder / "a.hdf5")
    return _convert(place.folder / "a.hdf5", place)


def _archive_in_archive(place: Place) -> list[Any]:
    with zipfile.ZipFile(place.folder / "a.npz", "w") as archive:
        archive.writestr("README", "no arrays")
    return _convert(place.folder / "a.npz", place)


def inputs() -> Iterator[Input]:
    """Files to convert, refused and accepted."""
    for what, changes, names in ARRAYS:
        yield refused(AREA, f"npz: {what}", _arrays(**changes), names)
    for what, options, changes, names in OPTIONS:
        yield refused(AREA, f"from-arrays: {what}", _arrays(*options, **changes), names)
    for what, text, names in TASKS:
        yield refused(AREA, f"tasks.json: {what}", _tasks(text), names)
    for what, content in (
        ("nothing in it", lambda data: b""),
        ("its first 300 bytes", lambda data: data[:300]),
        ("no table of contents", lambda data: data[:-100]),
        ("text", lambda data: b"observations,actions\n"),
    ):
        yield refused(AREA, f"npz: {what}", _bytes(content), r"a\.npz")
    yield refused(AREA, "npz: no arrays", _archive_in_archive, r"a\.npz")
    yield refused(AREA, "npz: compressed bytes that are others", _corrupted, r"a\.npz")
    yield refused(
        AREA,
        "npz: an array that claims 40 GB",
        _replaced("rewards", _header_of("<f8", (5 * 10**9,))),
        r"a\.npz.*rewards",
    )
    yield refused(
        AREA, "npz: an array of a negative shape", _replaced("rewards", _header_of("<f8", (-12,))), r"a\.npz.*rewards"
    )
    yield refused(AREA, "npz: an array that is text", _replaced("actions", b"1 2 3"), r"a\.npz.*actions")
    yield refused(
        AREA, "npz: an array without its numbers", _replaced("actions", _header_of("<i8", (T,))), r"a\.npz.*actions"
    )
    yield refused(AREA, "from-arrays: a folder without files", lambda place: _convert(place.folder, place), r"npz")
    yield refused(AREA, "from-arrays: nothing", lambda place: _convert("nowhere.npz", place), r"nowhere\.npz")
    yield refused(
        AREA, "from-arrays: a pickle", lambda place: _convert(place.text(b"\x80\x04.", "a.pkl"), place), r"a\.pkl"
    )
    yield refused(AREA, "HDF5: a pipe", _pipe, r"a\.hdf5")
    yield refused(AREA, "HDF5: text", lambda place: _convert(place.text("text", "a.h5"), place), r"a\.h5")
    yield refused(
        AREA,
        "HDF5: observations are a group",
        _hdf5(lambda file, place: [file.__delitem__("observations"), file.create_group("observations")]),
        r"observations",
    )
    yield refused(
        AREA,
        "HDF5: rewards as text",
        _hdf5(lambda file, place: [file.__delitem__("rewards"), file.create_dataset("rewards", data=[b"1"] * T)]),
        r"rewards",
    )
    yield refused(
        AREA,
        "HDF5: rewards are empty",
        _hdf5(lambda file, place: [file.__delitem__("rewards"), file.create_dataset("rewards", data=_empty())]),
        r"rewards",
    )
    yield refused(
        AREA,
        "HDF5: a link to nothing",
        _hdf5(lambda file, place: [file.__delitem__("actions"), file.__setitem__("actions", _nowhere())]),
        r"actions",
    )
    yield refused(
        AREA,
        "HDF5: an attribute of tasks that is no JSON",
        _hdf5(lambda file, place: file.attrs.update(kwargs="{size"), "--task_keys", "kwargs"),
        r"kwargs",
    )
    yield from _honest()


def _honest() -> Iterator[Input]:
    """Files that are odd, and right."""
    fortran = np.asfortranarray(np.arange(2.0 * T).reshape(T, 2).astype(np.float32))
    yield accepted(
        AREA, "npz: arrays of Fortran's order", _arrays(observations=fortran), _values("observations", fortran)
    )
    big = np.arange(2.0 * T).reshape(T, 2).astype(">f4")
    yield accepted(
        AREA, "npz: numbers of the other byte order", _arrays(observations=big), _values("observations", big)
    )
    yield accepted(
        AREA,
        "npz: compressed",
        _compressed,
    )
    yield accepted(AREA, "npz: a column of rewards", _arrays(rewards=np.ones((T, 1))), _values("rewards", np.ones(T)))
    yield accepted(
        AREA, "npz: rewards as whole numbers", _arrays(rewards=np.arange(T)), _values("rewards", np.arange(T))
    )
    yield accepted(AREA, "npz: half precision", _arrays(observations=np.ones((T, 2), np.float16)))
    yield accepted(AREA, "npz: ends as numbers", _arrays(dones=(np.arange(T) % 4 == 3).astype(np.float32)))
    yield accepted(AREA, "npz: arrays that nobody needs", _arrays(values=np.array(["a"] * T), returns=np.zeros(3)))
    yield accepted(AREA, "npz: an episode that does not end", _arrays(dones=np.zeros(T, bool)))
    yield accepted(
        AREA, "npz: names of letters and spaces", lambda place: _convert(_npz(place, "Lauf [1] *.npz"), place)
    )
    yield accepted(AREA, "tasks.json: tasks in the order of the files", _tasks('[{"a": 1}, {"a": 2}]'))
    yield accepted(AREA, "tasks.json: tasks that are equal", _tasks('[{"a": 1}, {"a": 1}]'))
    yield accepted(
        AREA,
        "HDF5: compressed, in chunks",
        _hdf5(
            lambda file, place: file.create_dataset(
                "extra", data=np.zeros((T, 50)), compression="gzip", chunks=(3, 50)
            )
        ),
    )
    yield accepted(
        AREA,
        "HDF5: groups with a space in their names",
        _hdf5(lambda file, place: [file.move(name, f"run 1/{name}") for name in list(GOOD)]),
    )
    yield accepted(AREA, "HDF5: a goal as an attribute", _hdf5(lambda file, place: file.attrs.update(goal=[1, 2])))
    yield accepted(AREA, "from-arrays: what it has written is read", _opened)
    yield accepted(AREA, "from-arrays: what it has written is shown beside a model", _of_known_tasks)
    yield accepted(
        AREA,
        "from-arrays: actions on the bounds of their Box",
        _arrays("--action_space", json.dumps(ARM), actions=np.tile([[-1.0], [1.0]], (T // 2, 1))),
        _dtype("action_space", "float32"),
    )
