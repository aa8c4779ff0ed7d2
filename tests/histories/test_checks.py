"""What is no dataset of learning histories is refused, by row and column, from memory and streamed."""

import json
import re
import shutil
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
    open_dataset,
    rows_to_table,
    windows_of_folder,
    write_dataset,
)

import ad_hf
from ad_hf.cli import main
from ad_hf.histories.selection import Selection
from ad_hf.histories.steps import COLUMNS
from ad_hf.histories.stream import HistoryStream, StreamedBatches

BAD = 4  # number of the malformed row, of six
DISCRETE = spaces.Discrete(7)
OTHER_SPACES = {
    "discrete": (spaces.Discrete(5), DISCRETE),
    "multi_discrete": (spaces.MultiDiscrete([3, 300]), spaces.MultiDiscrete([4, 6])),
    "multi_binary": (spaces.MultiBinary(3), DISCRETE),
    "box_actions": (OBSERVATIONS, spaces.Box(-1.0, 1.0, (2,), np.float32)),
}


def good_rows(observation_space=OBSERVATIONS, action_space=ACTIONS):
    """Six histories of 20 steps."""
    rows = make_histories([20] * 6, action_space=action_space)
    if observation_space is not OBSERVATIONS:
        observation_space.seed(0)
        for row in rows:
            row["observations"] = [np.asarray(observation_space.sample()).tolist() for _ in range(20)]
    return rows


def from_memory(folder):
    """Read all of a dataset, as training does."""
    windows = windows_of_folder(folder, 8)
    windows.batch(windows.epoch_order(0))


def streamed(folder):
    """Read all of a dataset, as training does that streams."""
    stream = HistoryStream(open_dataset(folder), "train", Selection(), 8)
    batches = StreamedBatches(stream, 4)
    for _ in batches:
        if batches.state_dict()["places"][0][0]:
            break


READERS = pytest.mark.parametrize("read", [from_memory, streamed])


def message(read, folder):
    with pytest.raises((ValueError, OSError)) as error:
        read(folder)
    return str(error.value)


def change(name, value, step=None):
    """A change of one row: of a whole column, or of one step in it."""

    def apply(rows):
        if step is None:
            rows[BAD][name] = value
        else:
            rows[BAD][name][step] = value

    return apply


def shorten(name):
    def apply(rows):
        rows[BAD][name] = rows[BAD][name][:-1]

    return apply


def lengthen(name):
    def apply(rows):
        rows[BAD][name] = [*rows[BAD][name], rows[BAD][name][0]]

    return apply


def empty(rows):
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        rows[BAD][name] = []


STEP_COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
CHANGES = {
    **{f"null {name}": (change(name, None), name) for name in COLUMNS},
    **{f"null in {name}": (change(name, None, 13), name) for name in STEP_COLUMNS},
    **{f"shorter {name}": (shorten(name), name) for name in STEP_COLUMNS if name != "rewards"},
    **{f"longer {name}": (lengthen(name), name) for name in STEP_COLUMNS if name != "rewards"},
    **{f"{value} reward": (change("rewards", value, 13), "rewards") for value in (np.nan, np.inf, -np.inf)},
    "null in an observation": (change("observations", [1.0, None], 13), "observations"),
    "NaN in an observation": (change("observations", [1.0, np.nan], 13), "observations"),
    "infinite observation": (change("observations", [np.inf, 1.0], 13), "observations"),
    "action 7 of 7": (change("actions", 7, 13), "actions"),
    "action 255 of 7": (change("actions", 255, 13), "actions"),
    "a history that does not begin": (change("start_step", 5), "start_step"),
    "a negative first step": (change("start_step", -1), "start_step"),
    "no steps": (empty, "rewards"),
}


def assert_names_the_row(told, column, row=BAD, history=None):
    pattern = rf"row {row} \(history {history or repr(f'{row}-0-0')}\), column {column}: "
    assert re.search(pattern, told), told
    assert "\n" not in told


@READERS
@pytest.mark.parametrize("name", list(CHANGES))
def test_a_malformed_row_is_refused_by_its_number_its_history_and_the_column(tmp_path, read, name):
    apply, column = CHANGES[name]
    rows = good_rows()
    read(write_dataset(tmp_path / "good", [rows_to_table(rows)]))
    apply(rows)
    told = message(read, write_dataset(tmp_path / "bad", [rows_to_table(rows)]))
    assert_names_the_row(told, column, history="None" if name == "null history_id" else None)
    if " in " in name:
        assert "at step 13" in told


@READERS
def test_lengths_that_disagree_with_rewards_alone_name_a_column(tmp_path, read):
    """Rewards give the length: if they are the ones that differ, another column is named."""
    for number, apply in enumerate((shorten("rewards"), lengthen("rewards"))):
        rows = good_rows()
        apply(rows)
        told = message(read, write_dataset(tmp_path / str(number), [rows_to_table(rows)]))
        assert_names_the_row(told, "observations")
        assert "20 steps, where rewards has" in told


@READERS
@pytest.mark.parametrize(
    ("name", "column", "element"),
    [
        ("discrete", "observations", 5),
        ("multi_discrete", "observations", [1, 300]),
        ("multi_discrete", "observations", [3, 1]),
        ("multi_discrete", "actions", [4, 0]),
        ("multi_discrete", "actions", [0, 6]),
        ("multi_binary", "observations", [0, 2, 1]),
        ("box_actions", "actions", [np.nan, 0.5]),
        ("box_actions", "actions", [0.5, np.inf]),
    ],
)
def test_elements_outside_of_their_space_are_refused(tmp_path, read, name, column, element):
    observation_space, action_space = OTHER_SPACES[name]
    rows = good_rows(observation_space, action_space)
    read(write_dataset(tmp_path / "good", [rows_to_table(rows, *OTHER_SPACES[name])], *OTHER_SPACES[name]))
    rows[BAD][column][13] = element
    bad = write_dataset(tmp_path / "bad", [rows_to_table(rows, *OTHER_SPACES[name])], *OTHER_SPACES[name])
    told = message(read, bad)
    assert_names_the_row(told, column)
    space = observation_space if column == "observations" else action_space
    assert "at step 13" in told
    assert str(space) in told


def cut(row, borders):
    """The pieces of a history."""
    pieces = []
    for piece, (start, stop) in enumerate(zip([0, *borders], [*borders, 20])):
        part = {name: value[start:stop] if isinstance(value, list) else value for name, value in row.items()}
        pieces.append({**part, "piece": piece, "start_step": start})
    return pieces


@READERS
@pytest.mark.parametrize(
    ("order", "row", "steps"),
    [
        ([0, 2, 1], 1, "14, expected 7"),
        ([0, 2], 1, "14, expected 7"),
        ([1, 2], 0, "7, expected 0"),
        ([0, 1, 1, 2], 2, "7, expected 14"),
    ],
    ids=["swapped", "one is missing", "the first is missing", "one is there twice"],
)
def test_pieces_that_are_not_in_order_are_refused(tmp_path, read, order, row, steps):
    rows = good_rows()
    pieces = cut(rows[0], [7, 14])
    read(write_dataset(tmp_path / "good", [rows_to_table([*pieces, *rows[1:]])]))
    table = rows_to_table([*(pieces[number] for number in order), *rows[1:]])
    folder = write_dataset(tmp_path / "bad", [table], row_groups=lambda table: [table])
    told = message(read, folder)
    if row:
        assert_names_the_row(told, "start_step", row, "'0-0-0'")
        assert steps in told
    assert re.search(r"row.*'0-0-0'", told)
    assert "\n" not in told


@READERS
@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path, read, column):
    table = rows_to_table(good_rows()).drop_columns([column])
    told = message(read, write_dataset(tmp_path / "data", [table], row_groups=lambda table: [table]))
    assert "train-00000-of-00001.parquet" in told
    assert f"column {column} is missing, there are " in told


@READERS
@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("history_id", pa.int64()),
        ("start_step", pa.int32()),
        ("observations", pa.list_(pa.list_(pa.float64(), 2))),
        ("observations", pa.list_(pa.list_(pa.float32()))),
        ("actions", pa.list_(pa.int64())),
        ("rewards", pa.list_(pa.float32())),
        ("terminations", pa.list_(pa.int8())),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_named_with_both_types(tmp_path, read, column, kind):
    table = rows_to_table(good_rows())
    cells = list(range(6)) if column == "history_id" else table[column].to_pylist()
    if column == "terminations":
        cells = [[int(end) for end in ends] for ends in cells]
    index = table.schema.get_field_index(column)
    expected = table.schema.field(column).type
    table = table.set_column(index, column, pa.array(cells, type=kind))
    table = table.replace_schema_metadata(None)  # else datasets casts it to what it was
    told = message(read, write_dataset(tmp_path / "data", [table]))
    assert "train-00000-of-00001.parquet" in told
    assert f"column {column} is of type " in told
    assert str(expected) in told.replace("element: ", "item: ") or str(expected) in told


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A dataset of two shards; tests copy it."""
    rows = make_histories([20] * 12)
    tables = [rows_to_table(rows[:6]), rows_to_table(rows[6:])]
    return write_dataset(tmp_path_factory.mktemp("validation") / "good", tables)


@READERS
def test_good_data_is_read(good, read):
    read(good)


def with_metadata(good, folder, text):
    copy = Path(shutil.copytree(good, folder))
    (copy / "default" / "metadata.json").write_text(text)
    return copy


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda data: "{not json", "is not JSON"),
        (lambda data: "", "is not JSON"),
        (lambda data: "[1, 2]", "must hold a mapping"),
        (lambda data: json.dumps({**data, "schema_version": 99}), "schema version 99.*install a newer one"),
        (lambda data: json.dumps({**data, "colour": "red"}), "colour"),
        (lambda data: json.dumps({name: data[name] for name in data if name != "tasks"}), "tasks"),
        (lambda data: json.dumps({**data, "observation_space": {"type": "Graph"}}), "space.*Graph"),
        (lambda data: json.dumps({**data, "action_space": {"type": "Discrete"}}), "action_space|Discrete"),
        (lambda data: json.dumps({**data, "tasks": [{"task_id": 0}]}), "tasks"),
        (lambda data: json.dumps({**data, "tasks": 3}), "tasks"),
    ],
    ids=["broken", "empty", "a list", "newer", "unknown", "lacking", "space", "half a space", "task", "3"],
)
def test_metadata_that_is_none_is_refused_by_its_path(good, tmp_path, edit, told):
    data = json.loads((good / "default" / "metadata.json").read_text())
    folder = with_metadata(good, tmp_path / "data", edit(data))
    with pytest.raises(ValueError, match=told) as error:
        from_memory(folder)
    assert str(Path("default") / "metadata.json") in str(error.value)


def test_metadata_of_before_statistics_is_read(good, tmp_path):
    """As an earlier release wrote it."""
    data = json.loads((good / "default" / "metadata.json").read_text())
    del data["statistics"], data["fingerprint"]
    folder = with_metadata(good, tmp_path / "data", json.dumps(data))
    from_memory(folder)
    streamed(folder)
    assert open_dataset(folder).metadata.fingerprint == ""


@READERS
def test_a_missing_shard_is_named(good, tmp_path, read):
    folder = Path(shutil.copytree(good, tmp_path / "data"))
    (folder / "default" / "train-00001-of-00002.parquet").unlink()
    assert "train-00001-of-00002.parquet" in message(read, folder)


@READERS
@pytest.mark.parametrize("keep", [0, 3, 500, -200])
def test_a_truncated_file_is_named(good, tmp_path, read, keep):
    folder = Path(shutil.copytree(good, tmp_path / "data"))
    path = folder / "default" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    told = message(read, folder)
    assert "train-00001-of-00002.parquet" in told


@READERS
def test_a_file_with_damaged_contents_is_named(good, tmp_path, read):
    folder = Path(shutil.copytree(good, tmp_path / "data"))
    path = folder / "default" / "train-00001-of-00002.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(7)  # rewards
    content = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first + 30 : first + column.total_compressed_size] = bytes(column.total_compressed_size - 30)
    path.write_bytes(content)
    told = message(read, folder)
    assert "train-00001-of-00002.parquet" in told
    assert len(told) < 500


def damaged_histories(tiny_histories, folder, name, value):
    """A real dataset with one element changed in its last shard of training data."""
    copy = Path(shutil.copytree(tiny_histories, folder))
    path = sorted((copy / "default").glob("train-*.parquet"))[-1]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[3][name][17] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, compression="zstd")
    return copy, rows[3]["history_id"]


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [("rewards", float("nan"), []), ("actions", 5, ["--streaming"]), ("observations", [0, 3], ["--streaming"])],
)
def test_train_refuses_malformed_data_with_one_line(
    capsys, tiny_histories, tiny_recipe_file, tmp_path, name, value, options
):
    folder, history = damaged_histories(tiny_histories, tmp_path / "data", name, value)
    arguments = ["--recipe", str(tiny_recipe_file), "--dataset", str(folder), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *arguments, *options]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    line = printed.strip().splitlines()[-1]
    assert line.startswith("ad-hf: error: ")
    assert f"row 3 (history '{history}'), column {name}: " in line
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_of_other_spaces_is_not_rolled_out(tiny_recipe):
    family = ad_hf.TaskFamily(tiny_recipe.family)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 8}
    rooms = {"type": "MultiDiscrete", "nvec": [3, 3]}
    wrong = {
        "observation_space": ({"type": "MultiDiscrete", "nvec": [4, 3]}, {"type": "Discrete", "n": 5}),
        "action_space": (rooms, {"type": "Discrete", "n": 4}),
    }
    for name, (observations, actions) in wrong.items():
        model = ad_hf.ADModel(ad_hf.ADConfig(observation_space=observations, action_space=actions, **sizes))
        with pytest.raises(ValueError, match=f"the environments' {name} is .*, the model was trained for"):
            ad_hf.evaluate(model, family, "test", num_episodes=1, num_seeds=1)


def test_training_on_a_dataset_of_other_spaces_is_refused(tiny_recipe, tiny_histories, tmp_path):
    """Whose metadata names the recipe's environment, and other spaces than the environment has."""
    folder = Path(shutil.copytree(tiny_histories, tmp_path / "data"))
    path = folder / "default" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["action_space"] = {"type": "Discrete", "n": 6}
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="action_space"):
        ad_hf.train(tiny_recipe, folder, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()
