"""Datasets whose rows, shards or metadata are not those that were written are refused, in all ways of reading them."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from history_files import (
    ACTIONS,
    OBSERVATIONS,
    make_histories,
    make_table,
    of_histories,
    open_dataset,
    rows_to_table,
    write_dataset,
    write_shard,
)

import ad_hf
from ad_hf.evaluation.returns import source_returns
from ad_hf.formats.merge import merge_datasets
from ad_hf.histories.dataset import check_dataset
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.steps import COLUMNS, STEPWISE
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.hub.push import push_dataset

FIRST, SECOND = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
NAN = float("nan")


def load(folder):
    return open_dataset(folder).load("train")


def histories(folder):
    return open_dataset(folder).histories("train")


def stream(folder):
    batches = StreamedBatches(HistoryStream(open_dataset(folder), "train", DataConfig(), 8), 4)
    for _ in batches:
        if batches.state_dict()["places"][0][0]:
            break


READERS = (load, histories, stream)


def assert_refused(folder, pattern, readers=READERS):
    """Every reader refuses a dataset, in one line."""
    for read in readers:
        with pytest.raises((ValueError, OSError), match=pattern) as error:
            read(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 800


@pytest.fixture(scope="module")
def undescribed(tmp_path_factory):
    """
    Histories of tasks 0 to 5, in pieces, for training in two shards, and of tasks 6 and 7 for testing; as an earlier
    release wrote them, with neither statistics nor a fingerprint in the metadata.
    """
    folder = tmp_path_factory.mktemp("checks") / "undescribed"
    settings = {"row_groups": of_histories(1), "write_page_checksum": True}
    write_dataset(folder, [make_table([40] * 3, 2, 15, first, first) for first in (0, 3)], **settings)
    write_shard(folder / "default" / "test-00000-of-00001.parquet", make_table([40] * 2, 2, 15, 6, 6), **settings)
    data = open_dataset(folder).metadata
    data.tasks += [{"task_id": task, "kwargs": {}, "split": "test"} for task in (6, 7)]
    (folder / "default" / "metadata.json").write_text(data.to_json())
    return folder


@pytest.fixture(scope="module")
def described(undescribed, tmp_path_factory):
    """The same with statistics and a fingerprint."""
    folder = Path(shutil.copytree(undescribed, tmp_path_factory.mktemp("checks") / "described"))
    data = open_dataset(folder).metadata
    describe_shards(data, folder / "default")
    (folder / "default" / "metadata.json").write_text(data.to_json())
    return folder


def spoilt(folder, target, spoil):
    copy = Path(shutil.copytree(folder, target))
    spoil(copy / "default")
    return copy


def table(change, name=FIRST):
    """A shard written anew from another table."""

    def spoil(folder):
        rows = change(pq.read_table(folder / name))
        starts = [0] * ("start_step" not in rows.column_names)
        starts = starts or np.flatnonzero(np.asarray(rows["start_step"]) == 0).tolist()
        with pq.ParquetWriter(folder / name, rows.schema) as writer:  # row groups begin with a history, if they can
            for start, stop in zip([0, *starts[1:]], [*starts[1:], len(rows)]):
                writer.write_table(rows.slice(start, stop - start))

    return spoil


def listed(change):
    """A shard with other rows, which a function changes in place or returns anew."""

    def changed(rows):
        values = rows.to_pylist()
        return pa.Table.from_pylist(change(values) or values, schema=rows.schema)

    return table(changed)


def cell(column, value, step=None, row=1):
    """A shard in which a row has another value in some column, or at one step."""

    def change(rows):
        if step is None:
            rows[row][column] = value(rows[row][column]) if callable(value) else value
        else:
            rows[row][column][step] = value

    return listed(change)


def order(*numbers):
    """A shard that begins with these pieces of its first history, of which it had four."""
    return listed(lambda rows: [rows[number] for number in (*numbers, *range(4, len(rows)))])


def task_of_history(task):
    return listed(lambda rows: [{**row, "task_id": task if row["task_id"] == 1 else row["task_id"]} for row in rows])


def column_of(kind, column):
    """A shard with a column of another type."""

    def change(rows):
        cells = list(range(len(rows))) if column == "history_id" else rows[column].to_pylist()
        if column == "terminations":
            cells = [[int(end) for end in ends] for ends in cells]
        rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(cells, type=kind))
        return rows.replace_schema_metadata(None)  # else datasets casts it to what it was

    return table(change)


def metadata(**changes):
    """Other entries of the metadata, given by a function of what there is."""

    def spoil(folder):
        data = json.loads((folder / "metadata.json").read_text())
        data |= {name: change(data[name]) for name, change in changes.items()}
        (folder / "metadata.json").write_text(json.dumps(data))

    return spoil


def statistics(**changes):
    return metadata(statistics=lambda data: {**data, "train": {**data["train"], **changes}})


def in_place_of_the_second(make):
    def spoil(folder):
        (folder / SECOND).unlink()
        make(folder / SECOND)

    return spoil


def copied(source, target):
    return lambda folder: shutil.copy(folder / source, folder / target)


def truncated(size):
    return lambda folder: (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:size])


def damaged(*places, flip=None):
    """A shard with a bit flipped, or zeros from some place on, in its rewards."""

    def spoil(folder):
        part = pq.ParquetFile(folder / SECOND).metadata.row_group(1).column(7)
        content = bytearray((folder / SECOND).read_bytes())
        for index in range(part.total_compressed_size)[slice(*places)]:
            content[part.data_page_offset + index] = content[part.data_page_offset + index] ^ flip if flip else 0
        (folder / SECOND).write_bytes(content)

    return spoil


def without_steps(rows):
    rows[1].update({name: [] for name in STEPWISE})


def at(row, column, told=""):
    return rf"{FIRST}: row {row} \(history .*\), column {column}: {told}"


BOTH = rf"is both in default/{FIRST} and in default/{SECOND}"
WRONG = {
    **{f"no {name}": (cell(name, None), at(1, name, "no value")) for name in COLUMNS if name != "start_step"},
    **{f"no {name} at a step": (cell(name, None, 3), at(1, name, "no value at step 3")) for name in STEPWISE},
    **{f"{name} of {value}": (cell(name, value, 3), at(1, name, rf"{re.escape(str(value))} at step 3, expected"))
       for name, value in [*(("rewards", value) for value in (NAN, np.inf, -np.inf, 1e308, -3.5e38)),
                           ("observations", [1.0, NAN]), ("observations", [np.inf, 1.0]), ("actions", 7),
                           ("actions", 255)]},
    **{f"{name} one step {what}": (cell(name, change), at(1, name if name != "rewards" else "observations",
                                                          r"\d+ steps, where rewards has \d+"))
       for name in STEPWISE
       for what, change in (("shorter", lambda cell: cell[:-1]), ("longer", lambda cell: [*cell, cell[0]]))},
    "half an observation": (cell("observations", [1.0, None], 3), at(1, "observations", "no value at step 3")),
    "no steps": (listed(without_steps), at(1, "rewards", "no steps")),
    "another first step": (cell("start_step", 5), at(1, "start_step", r"5, expected \d+; the pieces")),
    "a negative first step": (cell("start_step", -1), at(1, "start_step", "-1, expected")),
    "pieces in another order": (order(0, 2, 1, 3), at(1, "start_step", r"\d+, expected \d+; the pieces")),
    "a piece less": (order(0, 2, 3), at(1, "start_step")),
    "no first piece": (order(1, 2, 3), r"row.*'0-0-0'"),
    "a piece twice": (order(0, 1, 1, 2, 3), at(2, "start_step")),
    **{f"no column {name}": (table(lambda rows, name=name: rows.drop_columns([name])),
                             rf"{FIRST}.*column {name} is missing, there are ") for name in COLUMNS},
    **{f"{name} of type {kind}": (column_of(kind, name), rf"{FIRST}.*column {name} is of type .*, expected {expected}")
       for name, kind, expected in [("history_id", pa.int64(), "string"), ("start_step", pa.int32(), "int64"),
                                    ("observations", pa.list_(pa.list_(pa.float64(), 2)), r"list<.*float>\[2\]>"),
                                    ("observations", pa.list_(pa.list_(pa.float32())), r"list<.*float>\[2\]>"),
                                    ("actions", pa.list_(pa.int64()), "list<.*uint8>"),
                                    ("rewards", pa.list_(pa.float32()), "list<.*double>"),
                                    ("terminations", pa.list_(pa.int8()), "list<.*bool>")]},
    **{f"task {task}": (task_of_history(task), at(4, "task_id", f"{task}, which metadata.json does not have"))
       for task in (999, -1, 6)},
    "pieces of two tasks": (cell("task_id", 2), at(1, "task_id", "2, where the history began with 0")),
    "a test shard by the name of a train shard": (copied("test-00000-of-00001.parquet", SECOND),
                                                  "task_id: 6, which metadata.json does not have as a task of this"),
    "a task less": (metadata(tasks=lambda tasks: tasks[1:]), at(0, "task_id", "0")),
    "a history twice, apart": (table(lambda rows: pa.concat_tables([rows, rows.slice(0, 4)])),
                               at(12, "history_id", "there was such a history before")),
    "a history of another shard": (
        lambda folder: table(lambda rows: pa.concat_tables([rows, pq.read_table(folder / SECOND)]))(folder),
        rf"history '3-0-0' {BOTH}"),
    "a shard twice": (copied(FIRST, SECOND), rf"history '0-0-0' {BOTH}"),
    "a shard of another name": (copied(FIRST, "train-extra.parquet"), "holds train-extra.parquet beside the 2 shards"),
    "a shard of another number of shards": (copied(FIRST, "train-00000-of-00001.parquet"),
                                            "holds train-00000-of-00001.parquet beside the 2 shards"),
    "no rows": (table(lambda rows: rows.slice(0, 0)), f"{FIRST}: it holds no rows"),
    "a shard less": (lambda folder: (folder / SECOND).unlink(), rf"lacks {SECOND}"),
    "a folder as a shard": (in_place_of_the_second(Path.mkdir), f"{SECOND} is no regular file"),
    "a pipe as a shard": (in_place_of_the_second(os.mkfifo), f"{SECOND} is no regular file"),
    **{f"a shard of {size} bytes": (truncated(size), rf"{SECOND}.*no parquet file, or a damaged one")
       for size in (0, 3, 500, -200)},
    "zeros in a shard": (damaged(30, None), SECOND),
    "no metadata": (lambda folder: (folder / "metadata.json").write_text("{"), r"default/metadata\.json is not JSON"),
}  # fmt: skip
CHANGED = {
    "a history less": (table(lambda rows: rows.slice(4)), "train hold 200 steps, metadata.json says 240"),
    "a task that nobody knows": (task_of_history(999), at(4, "task_id", "999")),
    "a flipped bit": (damaged(-9, -8, flip=4), SECOND),
    "a scale of rewards that is too large": (statistics(reward_scale=1e30), "scale is 1e.30, expected the mean magn"),
    "a scale of rewards that is too small": (statistics(reward_scale=1e-30), "scale is 1e-30, expected the mean magn"),
    "a row without steps": (listed(without_steps), at(1, "rewards", "no steps")),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_dataset_that_is_wrong_is_refused_by_what_is_wrong(undescribed, tmp_path, name):
    spoil, pattern = WRONG[name]
    assert_refused(spoilt(undescribed, tmp_path / "data", spoil), pattern)


@pytest.mark.parametrize("name", list(CHANGED))
def test_a_dataset_that_is_not_the_one_described_is_refused(described, tmp_path, name):
    spoil, pattern = CHANGED[name]
    assert_refused(spoilt(described, tmp_path / "data", spoil), pattern)


def of_other_seed(folder):
    """A shard of other histories of the same tasks, lengths and ids."""
    write_shard(folder / SECOND, make_table([40] * 3, 2, 15, seed=99, first_number=3), of_histories(1))


def test_other_contents_are_refused_when_they_are_first_read(described, tmp_path):
    for name, (spoil, pattern) in {
        "fingerprint": (metadata(fingerprint=lambda _: "0123456789abcdef"), "fingerprint of its shards is .*01234567"),
        "seed": (of_other_seed, "shards of the split train are not those described: their (episodes|return_first) is"),
        "histories": (statistics(histories=5), "train holds 6 histories, and statistics.train.histories .* is 5"),
    }.items():  # fmt: skip
        assert_refused(spoilt(described, tmp_path / name, spoil), pattern, (load, histories))


def test_what_is_right_is_read(described, undescribed, tmp_path):
    """As it was written, and written anew with other settings of parquet."""
    for folder in (described, undescribed):
        for number, spoil in enumerate((lambda folder: None, table(lambda rows: rows))):
            copy = spoilt(folder, tmp_path / f"{folder.name}{number}", spoil)
            for read in READERS:
                read(copy)
            assert load(copy).to_list() == load(undescribed).to_list()


SPACES = [
    (spaces.Discrete(5), ACTIONS, {"observations": [5]}),
    (spaces.MultiDiscrete([3, 300]), spaces.MultiDiscrete([4, 6]),
     {"observations": [[1, 300], [3, 1]], "actions": [[4, 0], [0, 6]]}),
    (spaces.MultiBinary(3), ACTIONS, {"observations": [[0, 2, 1]]}),
    (OBSERVATIONS, spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32)),
     {"actions": [[NAN, 0.5], [0.5, np.inf], [50.0, 0.5]]}),
]  # fmt: skip


@pytest.mark.parametrize(("observation_space", "action_space", "wrong"), SPACES, ids=str)
def test_elements_outside_of_their_space_are_refused(tmp_path, observation_space, action_space, wrong):
    both = observation_space, action_space
    rows = make_histories([20] * 6, action_space=action_space)
    if observation_space is not OBSERVATIONS:
        observation_space.seed(0)
        for row in rows:
            row["observations"] = [np.asarray(observation_space.sample()).tolist() for _ in range(20)]
    good = write_dataset(tmp_path / "good", [rows_to_table(rows[:3], *both), rows_to_table(rows[3:], *both)], *both)
    for read in READERS:
        read(good)
    for column, elements in wrong.items():
        for element in elements:
            folder = spoilt(good, tmp_path / f"{column}{element}", cell(column, element, 13))
            space = re.escape(str(observation_space if column == "observations" else action_space))
            assert_refused(folder, at(1, column, f".* at step 13, expected an element of {space}"))


def test_all_of_a_dataset_is_checked_before_it_is_pushed_or_merged(described, undescribed, tmp_path):
    def push(folder):
        push_dataset(folder, "somebody/histories")

    def merge(folder):
        merge_datasets([folder, described], tmp_path / "merged")

    check_dataset(open_dataset(described))
    check_dataset(open_dataset(undescribed))
    for number, (folder, spoil, pattern) in enumerate([
        (undescribed, cell("rewards", NAN, 3), at(1, "rewards", "nan")),
        (described, metadata(fingerprint=lambda _: "0123456789abcdef"), "the fingerprint of its shards is"),
        (described, table(lambda rows: rows), "the fingerprint of its shards is"),
    ]):  # fmt: skip
        bad = spoilt(folder, tmp_path / str(number), spoil)
        assert_refused(bad, pattern, (push, merge))


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "x::y", "~", " spaces  ", "höhe ☃", "{a},b", "%20#=&"])
def test_a_folder_may_have_any_name(described, undescribed, tmp_path, name):
    shutil.copytree(undescribed, tmp_path / "run1")  # which run[1] is a pattern of
    folder = Path(shutil.copytree(described, tmp_path / name / "data"))
    os.replace(folder / "default", folder / "a[1]")
    for read in READERS:
        read(folder)
    spoilt(undescribed, folder / "other", lambda configuration: os.replace(configuration, folder / "a1"))
    rows = ad_hf.load_histories(folder, "train", "a[1]")[0]
    assert rows.to_list() == load(described).to_list()


def test_a_tilde_is_the_home(described, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(described, tmp_path / "data")
    assert len(set(ad_hf.load_histories("~/data", "test")[0]["history_id"])) == 2


def test_that_no_episode_ends_is_said(undescribed, tmp_path):
    def endless(rows):
        for column in ("terminations", "truncations"):
            never = pa.array([[False] * len(row) for row in rows["rewards"].to_pylist()])
            rows = rows.set_column(rows.schema.get_field_index(column), column, never)
        return rows

    folder = spoilt(undescribed, tmp_path / "data", table(endless))
    spoilt(folder, tmp_path / "other", table(endless, SECOND))
    for read in READERS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(folder)
        with pytest.warns(UserWarning, match="split train: no episode ever ends"):
            read(tmp_path / "other")
    with (
        pytest.warns(UserWarning, match="no episode ever ends"),
        pytest.raises(ValueError, match="split train: a history of task 0 has no finished episode"),
    ):
        source_returns(open_dataset(tmp_path / "other"), "train")


def test_statistics_that_cannot_be_make_no_model(described, tmp_path):
    for number, (changes, pattern) in enumerate([
        ({"reward_scale": float("inf")}, "reward_scale"),
        ({"reward_scale": -1.0}, "reward_scale of metadata.json is -1.0, expected finite numbers above 0"),
        ({"observation_mean": [NAN, 0.0]}, "observation_mean"),
        ({"observation_std": [1.0, 0.0]}, r"observation_std .* is \[1.0, 0.0\], expected finite numbers above 0"),
    ]):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            ad_hf.config_from_dataset(spoilt(described, tmp_path / str(number), statistics(**changes)))


def test_histories_of_other_spaces_are_refused_by_training(tiny_recipe, tiny_histories, tmp_path):
    folder = spoilt(tiny_histories, tmp_path / "data", metadata(action_space=lambda space: {**space, "n": 6}))
    with pytest.raises(ValueError, match="action_space"):
        ad_hf.train(tiny_recipe, folder, tmp_path / "run")
