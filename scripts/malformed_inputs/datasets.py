"""Datasets: entries of metadata.json of other types, shards that are damaged or hold what they must not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from malformed_inputs.common import (
    DROP,
    METADATA,
    SHARD,
    TEST_SHARD,
    Input,
    Place,
    accepted,
    edit_bytes,
    edit_json,
    edit_rows,
    edit_table,
    in_file,
    refused,
)
from malformed_inputs.shards import BYTES, COLUMNS, ROWS, SAID, pieces, put, row

AREA = "datasets"
NAME = r"train-00000-of-00001"

# Entries of metadata.json by their places in it, what they are set to, and what has to be named beside the file.
ENTRIES: list[tuple[str, Any, str]] = [
    ("schema_version", "1", "schema"),
    ("schema_version", 0, "schema"),
    ("schema_version", [1], "schema"),
    ("env_id", None, "env_id"),
    ("env_id", 5, "env_id"),
    ("env_id", DROP, "env_id"),
    ("env_kwargs", None, "env_kwargs"),
    ("env_kwargs", [["size", 3]], "env_kwargs"),
    ("tasks", {}, "tasks"),
    ("tasks", None, "tasks"),
    ("tasks", "all", "tasks"),
    ("tasks", [], "tasks"),
    ("tasks/1/kwargs", None, "tasks|kwargs"),
    ("tasks/1/split", "dev", "dev|split"),
    ("tasks/1/split", ["train"], "split|tasks"),
    ("tasks/1/task_id", "1", "task"),
    ("tasks/1/task_id", 1.5, "task"),
    ("tasks/1/task_id", 2, "task"),
    ("tasks/2/kwargs", {"goal": [2, 2]}, "kwargs"),
    ("observation_space", None, "observation_space"),
    ("observation_space", {"type": "Sequence"}, "observation_space"),
    ("observation_space", {"type": "MultiDiscrete", "nvec": []}, "observation_space"),
    ("observation_space", {"type": "MultiDiscrete", "nvec": ["3", "3"]}, "observation_space"),
    ("observation_space", {"type": "MultiDiscrete", "nvec": [3, 3, 3]}, "observation"),
    (
        "observation_space",
        {"type": "Box", "shape": [-2], "low": [], "high": [], "dtype": "float32"},
        "observation_space",
    ),
    ("action_space", {"type": "Discrete", "n": 5.5}, "action_space"),
    ("action_space", {"type": "Discrete", "n": -5}, "action_space"),
    ("action_space", {"type": "Discrete", "n": 3}, "action"),
    ("action_space", "Discrete(5)", "action_space"),
    ("source", ["A2C"], "source"),
    ("source", {}, "source"),
    ("seeds", "0", "seeds"),
    ("statistics", "many", "statistics"),
    ("statistics/train", [], "statistics"),
    ("statistics/train/reward_scale", "1", "reward_scale"),
    ("statistics/train/reward_scale", 0, "reward_scale"),
    ("statistics/train/reward_scale", -1.0, "reward_scale"),
    ("statistics/train/reward_scale", float("nan"), "reward_scale"),
    ("statistics/train/histories", 47, "histories"),
    ("statistics/train/steps", 1, "steps"),
    ("fingerprint", 7, "fingerprint"),
    ("wrappers", "gymnasium.wrappers.TimeLimit", "wrappers"),
    ("attributes", {"a": 1}, "attributes"),
    ("notes", "of a later version", "notes"),
]

TEXTS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("nothing in it", lambda data: b""),
    ("its first half", lambda data: data[: len(data) // 2]),
    ("a list", lambda data: b"[" + data + b"]"),
    ("a number", lambda data: b"1"),
    ("UTF-16", lambda data: data.decode().encode("utf-16")),
    ("a trailing comma", lambda data: data.rstrip()[:-1] + b",}"),
]

MODES: dict[str, list[Any]] = {
    "": [],
    " (mapped)": ["--data.keep_in_memory", "false"],
    " (streamed)": ["--streaming"],
}


def _shard(edit: Callable[..., Any], change: Any, shard: str = SHARD) -> Callable[[Place], Any]:
    """A dataset of whose shards one is changed."""

    def make(place: Place) -> Any:
        folder = place.take("h")
        edit(folder / shard, change)
        return folder

    return make


def _undescribed(rows: Any) -> Callable[[Place], Any]:
    """A dataset one of whose shards is changed, and whose metadata says as little of it as that of a first version."""

    def make(place: Place) -> Any:
        folder = _shard(edit_rows, rows)(place)
        edit_json(folder / METADATA, ("fingerprint", ""), ("statistics", DROP))
        return folder

    return make


def _files(change: Callable[[Any], Any]) -> Callable[[Place], Any]:
    """A dataset of whose files something is changed."""

    def make(place: Place) -> Any:
        folder = place.take("h")
        change(folder)
        return folder

    return make


def _trained(dataset: Callable[[Place], Any], *options: Any) -> Callable[[Place], list[Any]]:
    return lambda place: place.train(dataset(place), *options)


def _shown(dataset: Callable[[Place], Any]) -> Callable[[Place], list[Any]]:
    return lambda place: place.rollout(None, "--dataset", dataset(place))


def _evaluated(dataset: Callable[[Place], Any]) -> Callable[[Place], list[Any]]:
    return lambda place: place.evaluate(place.base / "run", "--dataset", dataset(place))


def _converted(dataset: Callable[[Place], Any]) -> Callable[[Place], list[Any]]:
    return lambda place: ["convert", "to-minari", dataset(place), "tiny/other-v0"]


def _to_push(dataset: Callable[[Place], Any]) -> Callable[[Place], Callable[[], Any]]:
    """A push to a Hub on this machine, on which nothing may arrive."""

    def make(place: Place) -> Callable[[], Any]:
        import ad_hf

        folder = dataset(place)

        def call() -> Any:
            with place.hub():
                return ad_hf.push_dataset(folder, "local/data")

        return call

    return make


def _as_pipe(folder: Any) -> None:
    (folder / TEST_SHARD).unlink()
    os.mkfifo(folder / TEST_SHARD)


def _as_folder(folder: Any) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def _dangling(folder: Any) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("nowhere.parquet")


def _validation_as_train(folder: Any) -> None:
    shutil.copy(folder / "default/validation-00000-of-00001.parquet", folder / SHARD)


def _renumbered(folder: Any) -> None:
    (folder / SHARD).rename(folder / "default/train-00000-of-00002.parquet")


def _second_shard(folder: Any) -> None:
    (folder / SHARD).rename(folder / "default/train-00000-of-00002.parquet")
    shutil.copy(folder / "default/train-00000-of-00002.parquet", folder / "default/train-00001-of-00002.parquet")


def _shard_of_others(folder: Any) -> None:
    shutil.copy(folder / "default/validation-00000-of-00001.parquet", folder / "default/train-more.parquet")


def _goals_moved(folder: Any) -> None:
    """Test tasks under other goals: those of two training tasks, which get theirs."""
    tasks = json.loads((folder / METADATA).read_text())["tasks"]
    goals = [task["kwargs"] for task in tasks]
    changes = ((3, 1), (1, 3), (8, 2), (2, 8))
    edit_json(folder / METADATA, *((f"tasks/{to}/kwargs", goals[of]) for to, of in changes))


def _without_tests(folder: Any) -> None:
    (folder / TEST_SHARD).unlink()


def _card(change: Callable[[Any], Any]) -> Callable[[Place], Callable[[], Any]]:
    """The card of a dataset of which something is changed."""

    def make(place: Place) -> Callable[[], Any]:
        from ad_hf.histories.card import write_dataset_card

        folder = place.take("h")
        change(folder)
        return lambda: write_dataset_card(folder)

    return make


def _flipped(position: float) -> Callable[[bytes], bytes]:
    """One bit of a shard's pages, the first half of its file, is the other."""

    def flip(data: bytes) -> bytes:
        index = int(len(data) * position)
        return data[:index] + bytes([data[index] ^ 16]) + data[index + 1 :]

    return flip


def _same_values(place: Place, value: Any) -> str | None:
    """Nothing is wrong with a shard that is read as before: a bit of it that means nothing was flipped."""
    changed, honest = (pq.read_table(folder / SHARD) for folder in (place.folder / "h", place.base / "h"))
    return None if changed.equals(honest) else "other values than were written are trained on"


def _large(table: pa.Table) -> pa.Table:
    """Another type for the same lists, which other software writes."""
    for name in ("actions", "rewards"):
        field = table.schema.field(name).type
        values = table[name].cast(pa.large_list(field.value_type))
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def inputs() -> Iterator[Input]:
    """Datasets, refused and accepted."""
    for path, value, names in ENTRIES:
        shown = "left out" if value is DROP else repr(value)
        dataset = _files(in_file(edit_json, METADATA, (path, value)))
        both = rf"metadata\.json.*({names})|({names}).*metadata\.json"
        both = names if names in ("observation", "action", "histories", "steps", "kwargs") else both
        yield refused(AREA, f"metadata.json: {path} {shown}", _trained(dataset), both)
    for what, other in TEXTS:
        dataset = _files(in_file(edit_bytes, METADATA, other))
        yield refused(AREA, f"metadata.json: {what}", _trained(dataset), r"metadata\.json")
    for what, column, names in COLUMNS:
        yield refused(AREA, f"shard: {what}", _trained(_shard(edit_table, column)), rf"{NAME}.*({names})")
    for what, rows, names in ROWS:
        if what not in SAID:
            yield refused(
                AREA, f"shard, of which metadata.json says little: {what}", _trained(_undescribed(rows)), names
            )
    for number, (what, rows, names) in enumerate(ROWS):
        for mode, options in MODES.items():
            if not mode or number % 3 == 0:
                yield refused(AREA, f"shard: {what}{mode}", _trained(_shard(edit_rows, rows), *options), names)
    for number, (what, damage) in enumerate(BYTES):
        for mode, options in MODES.items():
            if not mode or number % 4 == 0:
                yield refused(AREA, f"shard: {what}{mode}", _trained(_shard(edit_bytes, damage), *options), NAME)
    for position in (0.03, 0.11, 0.23, 0.31):
        for mode, options in MODES.items():
            if not mode or position == 0.11:
                yield refused(
                    AREA,
                    f"shard: a bit flipped at {position:.0%}{mode}",
                    _trained(_shard(edit_bytes, _flipped(position)), *options),
                    r"\btrain\b|shards",
                    _same_values,
                    either=True,
                )
    files: list[tuple[str, Callable[[Any], Any], str]] = [
        ("a folder in its place", _as_folder, NAME),
        ("a link to nowhere", _dangling, NAME),
        ("the validation split under its name", _validation_as_train, r"task|validation"),
        ("the first of two, alone", _renumbered, r"train-00001-of-00002"),
        ("the same file as two shards", _second_shard, r"histor|shard|train-0000"),
        ("a further file of another name", _shard_of_others, r"train-more"),
    ]
    for number, (what, change, names) in enumerate(files):
        for mode, options in MODES.items():
            if not mode or number in (2, 4, 5):
                yield refused(AREA, f"shard: {what}{mode}", _trained(_files(change), *options), names)
    of_tests: list[tuple[str, Callable[[Place], Any], str]] = [
        ("of a larger room", lambda place: place.base / "room4", r"size|env_kwargs|task|space"),
        ("of an arm", lambda place: place.base / "box", r"env_id|split|space"),
        ("with other goals", _files(_goals_moved), r"task|goal"),
        ("without its test split", _files(_without_tests), r"test-00000-of-00001"),
        ("with a pipe as its test split", _files(_as_pipe), r"test-00000-of-00001"),
        (
            "with NaN among its rewards",
            _shard(edit_rows, put("rewards", 4, float("nan")), TEST_SHARD),
            r"rewards.*nan",
        ),
        ("with training tasks in its test split", _shard(edit_rows, row("task_id", 1), TEST_SHARD), r"task.*1"),
        (
            "with half of its test split",
            _shard(edit_bytes, lambda data: data[: len(data) // 2], TEST_SHARD),
            r"test-00000-of-00001",
        ),
    ]
    for what, dataset, names in of_tests:
        yield refused(AREA, f"rollout --dataset: {what}", _shown(dataset), names)
        yield refused(AREA, f"evaluate --dataset: {what}", _evaluated(dataset), names)
    yield refused(AREA, "train --dataset: of a larger room", _trained(lambda place: place.base / "room4"), r"size")
    for what, dataset, names in (
        ("a reward is infinite", _shard(edit_rows, put("rewards", 0, float("inf"))), r"rewards.*inf"),
        ("a reward is another", _shard(edit_rows, put("rewards", 0, 7.0)), r"fingerprint|shards"),
        ("a bit is flipped", _shard(edit_bytes, _flipped(0.11)), r"fingerprint|shards|train-0000"),
        ("a history is of a test task", _shard(edit_rows, row("task_id", 3)), r"task.*3"),
        ("a test history is of a training task", _shard(edit_rows, row("task_id", 1), TEST_SHARD), r"task.*1"),
        ("a further shard", _files(_shard_of_others), r"train-more"),
        (
            "a last observation less than episodes",
            _shard(edit_rows, row("final_observations", lambda finals: finals[:-1])),
            r"final_observations|fingerprint",
        ),
        (
            "a last observation that is missing",
            _shard(edit_rows, put("final_observations", 4, None)),
            r"final_observations|fingerprint",
        ),
        (
            "a fingerprint of others",
            _files(lambda folder: edit_json(folder / METADATA, ("fingerprint", "0" * 16))),
            r"fingerprint",
        ),
    ):
        yield refused(AREA, f"push dataset: {what}", _to_push(dataset), names)
    for what, rows, names in (
        (
            "a last observation less than episodes",
            row("final_observations", lambda finals: finals[:-1]),
            r"final_observations",
        ),
        ("a last observation that is missing", put("final_observations", 4, None), r"final_observations"),
        ("a step that is missing", put("observations", 4, None), r"observations"),
        ("a history of a test task", row("task_id", 3), r"task.*3"),
    ):
        yield refused(AREA, f"convert to-minari: {what}", _converted(_undescribed(rows)), names)
    for path, value, names in (
        ("seeds", 7, "seeds"),
        ("versions", ["torch"], "versions"),
        ("source/hyperparameters", [1], "hyperparameters"),
        ("source/n_envs", "eight", "n_envs"),
        ("statistics/train/episodes", "many", "episodes|statistics"),
        ("failures", [5], "failures"),
        ("progress", {"columns": ["task_id"], "rows": [5]}, "progress"),
    ):
        change = in_file(edit_json, METADATA, (path, value))
        yield refused(AREA, f"card of a dataset: {path} {value!r}", _card(change), rf"metadata\.json.*({names})")
    yield from _honest()


def _honest() -> Iterator[Input]:
    """Datasets that are odd, and right."""
    cut = _shard(edit_rows, pieces(lambda both: both))
    for mode, options in MODES.items():
        extra = _shard(edit_table, lambda table: table.append_column("note", pa.array(["x"] * len(table))))
        yield accepted(AREA, f"shard: a column that nobody knows{mode}", _trained(extra, *options))
        yield accepted(AREA, f"shard: a history in two pieces{mode}", _trained(cut, *options))
    yield accepted(
        AREA,
        "shard: columns in another order",
        _trained(_shard(edit_table, lambda table: table.select(table.column_names[::-1]))),
    )
    yield accepted(
        AREA,
        "shard: without what datasets notes in a schema",
        _trained(_shard(edit_table, lambda table: table.replace_schema_metadata(None))),
    )
    yield accepted(
        AREA,
        "shard: row groups of one row",
        _trained(
            _files(lambda folder: pq.write_table(pq.read_table(folder / SHARD), folder / SHARD, row_group_size=1))
        ),
    )
    yield accepted(
        AREA,
        "shard: other compression",
        _trained(
            _files(lambda folder: pq.write_table(pq.read_table(folder / SHARD), folder / SHARD, compression="gzip"))
        ),
    )
    yield refused(
        AREA,
        "shard: lists of another type for the same numbers",
        _trained(_shard(edit_table, _large)),
        r"actions|rewards",
        either=True,
    )
    yield accepted(
        AREA,
        "metadata.json: no fingerprint, as of a first version",
        _trained(_files(lambda folder: edit_json(folder / METADATA, ("fingerprint", "")))),
    )
    yield accepted(
        AREA,
        "metadata.json: without statistics, as of a first version",
        _trained(_files(lambda folder: edit_json(folder / METADATA, ("statistics", DROP), ("progress", DROP)))),
    )
    yield accepted(
        AREA,
        "metadata.json: on one line",
        _trained(
            _files(lambda folder: edit_bytes(folder / METADATA, lambda data: json.dumps(json.loads(data)).encode()))
        ),
    )
    yield accepted(AREA, "a snapshot of the Hub's cache: links to blobs", _trained(_snapshot))
    yield accepted(AREA, "no card", _trained(_files(lambda folder: (folder / "README.md").unlink())))
    yield accepted(
        AREA,
        "a configuration of another name",
        _trained(_files(lambda folder: (folder / "default").rename(folder / "a2c"))),
    )
    yield accepted(
        AREA, "rollout --dataset: without the training split", _shown(_files(lambda folder: (folder / SHARD).unlink()))
    )


def _snapshot(place: Place) -> Any:
    """A dataset as the Hub's cache holds it."""
    repository = place.folder / "hub" / "datasets--somebody--h"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "default").mkdir(parents=True)
    for path in (METADATA, SHARD, TEST_SHARD, "default/validation-00000-of-00001.parquet"):
        blob = repository / "blobs" / path.replace("/", "-")
        shutil.copy(place.base / "h" / path, blob)
        (snapshot / path).symlink_to(os.path.relpath(blob, (snapshot / path).parent))
    return snapshot
