"""Datasets whose rows, shards or metadata are not those that were written are refused, in all ways of reading them."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from history_files import ACTIONS, make_table, of_histories, open_dataset, write_dataset, write_shard

import ad_hf
from ad_hf.evaluation.returns import source_returns
from ad_hf.formats.merge import merge_datasets
from ad_hf.histories.dataset import check_dataset
from ad_hf.histories.selection import Selection
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.hub.push import push_dataset

FIRST, SECOND = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"


def loaded(folder):
    open_dataset(folder).load("train")


def mapped(folder):
    open_dataset(folder).histories("train")


def streamed(folder):
    batches = StreamedBatches(HistoryStream(open_dataset(folder), "train", Selection(), 8), 4)
    for _ in batches:
        if batches.state_dict()["places"][0][0]:
            break


READERS = pytest.mark.parametrize("read", [loaded, mapped, streamed])


def write(folder, action_space=ACTIONS, described=True):
    """Histories of tasks 0 to 5, in pieces, for training in two shards, and of tasks 6 and 7 for testing."""
    settings = {"row_groups": of_histories(1), "write_page_checksum": True}
    tables = [
        make_table([40] * 3, max_piece_steps=15, seed=first, first_number=first, action_space=action_space)
        for first in (0, 3)
    ]
    write_dataset(folder, tables, action_space=action_space, **settings)
    test = make_table([40] * 2, seed=6, first_number=6, action_space=action_space)
    write_shard(folder / "default" / "test-00000-of-00001.parquet", test, **settings)
    metadata = open_dataset(folder).metadata
    metadata.tasks += [{"task_id": task, "kwargs": {}, "split": "test"} for task in (6, 7)]
    if described:
        describe_shards(metadata, folder / "default")
    (folder / "default" / "metadata.json").write_text(metadata.to_json())
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Such a dataset as it is written; tests copy it."""
    return write(tmp_path_factory.mktemp("shards") / "good")


@pytest.fixture(scope="module")
def undescribed(tmp_path_factory):
    """The same, as an earlier release wrote it: the metadata has neither statistics nor a fingerprint."""
    return write(tmp_path_factory.mktemp("shards") / "undescribed", described=False)


def spoilt(folder, target, spoil):
    copy = Path(shutil.copytree(folder, target))
    spoil(copy / "default")
    return copy


def rows(change, name=FIRST):
    """A shard written anew with other rows."""

    def spoil(folder):
        table = change(pq.read_table(folder / name))
        # Row groups begin with a history, as far as there are any.
        starts = [*np.flatnonzero(np.asarray(table["start_step"]) == 0).tolist(), len(table)]
        with pq.ParquetWriter(folder / name, table.schema) as writer:
            for start, stop in zip([0, *starts[1:-1]], starts[1:]):
                writer.write_table(table.slice(start, stop - start))
            if not len(table):
                writer.write_table(table)

    return spoil


def cells(column, value, row=1):
    """A shard in which a row has another value in some column; in one of lists, at step 3."""

    def change(table):
        listed = table.to_pylist()
        if isinstance(listed[row][column], list):
            listed[row][column][3] = value
        else:
            listed[row][column] = value
        return pa.Table.from_pylist(listed, schema=table.schema)

    return rows(change)


def task_of_history(value):
    return rows(
        lambda table: table.set_column(
            1, "task_id", pa.array([value if task == 1 else task for task in table["task_id"].to_pylist()], pa.int32())
        )
    )


def metadata(**changes):
    """Other entries of the metadata, given by a function of what there is."""

    def spoil(folder):
        data = json.loads((folder / "metadata.json").read_text())
        for name, change in changes.items():
            data[name] = change(data[name])
        (folder / "metadata.json").write_text(json.dumps(data))

    return spoil


def without_the_second(folder):
    (folder / SECOND).unlink()


def pipe(folder):
    without_the_second(folder)
    os.mkfifo(folder / SECOND)


def scale(value):
    return metadata(statistics=lambda data: {**data, "train": {**data["train"], "reward_scale": value}})


# Of a dataset without statistics: what is wrong with it, and what is told.
WRONG = {
    "a task that nobody knows": (task_of_history(999), r"row 4 \(history '1-0-0'\), column task_id: 999, which"),
    "task -1": (task_of_history(-1), r"row 4 \(history '1-0-0'\), column task_id: -1, which"),
    "a test task": (task_of_history(6), r"row 4 \(history '1-0-0'\), column task_id: 6, which"),
    "pieces of two tasks": (cells("task_id", 2), r"row 1 \(history '0-0-0'\), column task_id: 2, where .* with 0"),
    "a test shard by the name of a train shard": (
        lambda folder: shutil.copy(folder / "test-00000-of-00001.parquet", folder / SECOND),
        r"column task_id: 6, which metadata.json does not have as a task of this split",
    ),
    "a task less": (metadata(tasks=lambda tasks: tasks[1:]), r"row 0 \(history '0-0-0'\), column task_id: 0"),
    "a history twice, apart": (
        rows(lambda table: pa.concat_tables([table, table.slice(0, 4)])),
        r"row 12 \(history '0-0-0'\), column history_id: there was such a history before",
    ),
    "a history of another shard": (
        lambda folder: rows(lambda table: pa.concat_tables([table, pq.read_table(folder / SECOND)]))(folder),
        rf"history '3-0-0' is both in default/{FIRST} and in default/{SECOND}",
    ),
    "a shard twice": (
        lambda folder: shutil.copy(folder / FIRST, folder / SECOND),
        rf"history '0-0-0' is both in default/{FIRST} and in default/{SECOND}",
    ),
    "a shard of another name": (
        lambda folder: shutil.copy(folder / FIRST, folder / "train-extra.parquet"),
        "holds train-extra.parquet beside the 2 shards of the split train",
    ),
    "a shard of another number of shards": (
        lambda folder: shutil.copy(folder / FIRST, folder / "train-00000-of-00001.parquet"),
        "holds train-00000-of-00001.parquet beside the 2 shards",
    ),
    "no rows": (rows(lambda table: table.slice(0, 0)), f"{FIRST}: it holds no rows"),
    "a piece less": (rows(lambda table: table.filter(np.arange(len(table)) != 1)), r"row 1 .*column start_step"),
    "a folder as a shard": (
        lambda folder: [without_the_second(folder), (folder / SECOND).mkdir()],
        f"{SECOND} is no regular file",
    ),
    "a pipe as a shard": (pipe, f"{SECOND} is no regular file"),
    **{
        f"a reward of {value}": (
            cells("rewards", value),
            rf"row 1 .*column rewards: {re.escape(str(value))} at step 3",
        )
        for value in (float("nan"), float("inf"), 1e308, -3.5e38)
    },
}


@READERS
@pytest.mark.parametrize("name", list(WRONG))
def test_a_dataset_that_is_wrong_is_refused_by_what_is_wrong(undescribed, tmp_path, read, name):
    spoil, told = WRONG[name]
    with pytest.raises(ValueError, match=told) as error:
        read(spoilt(undescribed, tmp_path / "data", spoil))
    assert "\n" not in str(error.value)


def flip(folder):
    """One bit of the rewards of a shard."""
    column = pq.ParquetFile(folder / SECOND).metadata.row_group(1).column(7)
    content = bytearray((folder / SECOND).read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 9] ^= 4
    (folder / SECOND).write_bytes(content)


def of_other_seed(folder):
    """A shard of other histories of the same tasks, lengths and ids."""
    write_shard(folder / SECOND, make_table([40] * 3, 2, 15, seed=99, first_number=3), of_histories(1))


# Of one with statistics and a fingerprint.
CHANGED = {
    "a history less": (rows(lambda table: table.slice(4)), "the split train hold 200 steps, metadata.json says 240"),
    "a task that nobody knows": (task_of_history(999), r"row 4 \(history '1-0-0'\), column task_id: 999, which"),
    "a flipped bit": (flip, SECOND),
    "a scale of rewards that is too large": (scale(1e30), "reward_scale is 1e.30, expected the mean magnitude"),
    "a scale of rewards that is too small": (scale(1e-30), "reward_scale is 1e-30, expected the mean magnitude"),
}


@READERS
@pytest.mark.parametrize("name", list(CHANGED))
def test_a_dataset_that_is_not_the_one_described_is_refused(good, tmp_path, read, name):
    spoil, told = CHANGED[name]
    with pytest.raises(ValueError, match=told):
        read(spoilt(good, tmp_path / "data", spoil))


@pytest.mark.parametrize("read", [loaded, mapped])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (metadata(fingerprint=lambda _: "0123456789abcdef"), "the fingerprint of its shards is .*0123456789abcdef"),
        (of_other_seed, "shards of the split train are not those described: their (episodes|return_first) is"),
    ],
    ids=["another fingerprint", "histories of another seed"],
)
def test_contents_that_are_not_those_described_are_refused_when_they_are_first_read(good, tmp_path, read, spoil, told):
    read(spoilt(good, tmp_path / "same", lambda folder: None))
    with pytest.raises(ValueError, match=told):
        read(spoilt(good, tmp_path / "data", spoil))


@READERS
@pytest.mark.parametrize("described", [True, False])
def test_what_is_right_is_read(good, undescribed, tmp_path, read, described):
    """As it was written, and written anew with other settings of parquet."""
    read(good if described else undescribed)
    read(spoilt(good if described else undescribed, tmp_path / "data", rows(lambda table: table)))


def test_all_of_a_dataset_is_checked_before_it_is_pushed_or_merged(good, undescribed, tmp_path):
    check_dataset(open_dataset(good))
    check_dataset(open_dataset(undescribed))
    wrong = [
        (undescribed, cells("rewards", float("nan")), "row 1 .*column rewards: nan"),
        (good, metadata(fingerprint=lambda _: "0123456789abcdef"), "the fingerprint of its shards is"),
        (good, rows(lambda table: table), "the fingerprint of its shards is"),
    ]
    for number, (folder, spoil, told) in enumerate(wrong):
        bad = spoilt(folder, tmp_path / str(number), spoil)
        with pytest.raises(ValueError, match=told):
            push_dataset(bad, "somebody/histories")
        with pytest.raises(ValueError, match=told):
            merge_datasets([bad, good], tmp_path / "merged")


BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))


@READERS
def test_actions_outside_of_their_box_are_refused(tmp_path, read):
    folder = write(tmp_path / "good", BOX, described=False)
    read(folder)
    with pytest.raises(ValueError, match=r"row 1 .*actions: \[50.0, 0.5\] at step 3, expected an element of Box"):
        read(spoilt(folder, tmp_path / "bad", cells("actions", [50.0, 0.5])))


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "x::y", "~", " spaces  ", "höhe ☃", "{a},b", "%20#=&"])
@READERS
def test_a_folder_may_have_any_name(good, tmp_path, read, name):
    write(tmp_path / "run1", described=False)  # which run[1] is a pattern of
    folder = Path(shutil.copytree(good, tmp_path / name / "data"))
    read(folder)
    found, expected = ad_hf.load_histories(folder, "train")[0], ad_hf.load_histories(good, "train")[0]
    assert found.to_list() == expected.to_list()


def test_the_folder_of_a_configuration_is_no_pattern(good, tmp_path):
    folder = Path(shutil.copytree(good, tmp_path / "data"))
    os.replace(folder / "default", folder / "a[1]")
    shutil.copytree(spoilt(good, tmp_path / "other", rows(lambda table: table.slice(0, 3))) / "default", folder / "a1")
    assert len(ad_hf.load_histories(folder, "train", "a[1]")[0]) == len(ad_hf.load_histories(good, "train")[0])


def test_a_tilde_is_the_home(good, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(good, tmp_path / "data")
    assert len(ad_hf.load_histories("~/data", "test")[0]) == 2


@READERS
def test_that_no_episode_ends_is_said(undescribed, tmp_path, read):
    def endless(table):
        never = pa.array([[False] * len(row) for row in table["rewards"].to_pylist()])
        for column in ("terminations", "truncations"):
            table = table.set_column(table.schema.get_field_index(column), column, never)
        return table

    def spoil(folder):
        for name in (FIRST, SECOND):
            rows(endless, name)(folder)

    folder = spoilt(undescribed, tmp_path / "data", spoil)
    with pytest.warns(UserWarning, match="split train: no episode ever ends"):
        read(folder)
    with (
        pytest.warns(UserWarning, match="no episode ever ends"),
        pytest.raises(ValueError, match="split train: a history of task 0 has no finished episode"),
    ):
        source_returns(open_dataset(folder), "train")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward_scale": float("inf")}, "reward_scale"),
        ({"reward_scale": -1.0}, "reward_scale of metadata.json is -1.0, expected finite numbers above 0"),
        ({"observation_mean": [float("nan"), 0.0]}, "observation_mean"),
        (
            {"observation_std": [1.0, 0.0]},
            r"observation_std of metadata.json is \[1.0, 0.0\], expected finite numbers above 0",
        ),
    ],
)
def test_statistics_that_cannot_be_make_no_model(good, tmp_path, change, told):
    spoil = metadata(statistics=lambda data: {**data, "train": {**data["train"], **change}})
    with pytest.raises(ValueError, match=told):
        ad_hf.config_from_dataset(spoilt(good, tmp_path / "data", spoil))
