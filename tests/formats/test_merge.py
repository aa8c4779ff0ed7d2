"""Datasets of one family as one: every history of each, byte for byte, or a refusal that names the difference."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from history_files import make_table, open_dataset, write_dataset
from random_histories import contents

import ad_hf
from ad_hf.cli import main
from ad_hf.histories.schema import read_metadata
from ad_hf.pipeline import collect_recipe
from ad_hf.recipe import load_recipe


@pytest.fixture(scope="module")
def seeds(tiny_histories, tiny_recipe_file, tmp_path_factory):
    """Collections with seeds 0 and 1."""
    recipe = load_recipe(tiny_recipe_file, ["--source.seeds", "[1]"])
    return [tiny_histories, collect_recipe(recipe, tmp_path_factory.mktemp("merge") / "histories", num_workers=0)]


def write(folder, numbers, split="train", kwargs=None, **metadata):
    """A dataset of histories of a few tasks, with some metadata."""
    write_dataset(folder, [make_table([30], first_number=number) for number in numbers], split=split)
    arguments = {number: {"x": number} for number in numbers} | (kwargs or {})
    tasks = [{"task_id": number, "kwargs": arguments[number], "split": split} for number in numbers]
    path = folder / "default" / "metadata.json"
    path.write_text(replace(read_metadata(folder), tasks=tasks, **metadata).to_json())
    return folder


def rows_of(split, *folders):
    shards = [path for folder in folders for path in (folder / "default").glob(f"{split}-*.parquet")]
    rows = pa.concat_tables(map(pq.read_table, shards)).to_pylist()
    return sorted(rows, key=lambda row: (row["history_id"], row["piece"]))


def test_other_seeds_are_one_dataset_whatever_their_order(seeds, tmp_path):
    before = [contents(folder) for folder in seeds]
    merged, other = (
        ad_hf.merge_datasets(folders, tmp_path / name / "merged")
        for name, folders in (("a", seeds), ("b", seeds[::-1]))
    )
    assert contents(merged) == contents(other)
    inodes = {path.stat().st_ino for folder in seeds for path in folder.rglob("*.parquet")}
    assert {path.stat().st_ino for path in merged.rglob("*.parquet")} == inodes  # links, where there can be such
    for split in ("train", "validation", "test"):
        assert rows_of(split, merged) == rows_of(split, *seeds)
        assert len(load_dataset(str(merged), split=split)) == len(rows_of(split, *seeds))
    metadata, parts = read_metadata(merged), [read_metadata(folder) for folder in seeds]
    assert metadata.seeds == [0, 1]
    assert metadata.tasks == parts[0].tasks
    assert metadata.source == parts[0].source
    assert metadata.statistics["train"]["steps"] == sum(part.statistics["train"]["steps"] for part in parts)
    assert metadata.progress["rows"] == sorted(parts[0].progress["rows"] + parts[1].progress["rows"])
    assert len(metadata.progress["rows"]) == 2 * len(metadata.tasks)
    assert metadata.fingerprint not in ("", parts[0].fingerprint, parts[1].fingerprint)
    card = (merged / "README.md").read_text()
    assert all(str(folder) in card and part.fingerprint in card for folder, part in zip(seeds, parts))
    assert "seeds 0, 1" in card
    shutil.rmtree(merged)
    assert [contents(folder) for folder in seeds] == before
    assert list((tmp_path / "a").iterdir()) == []


def test_it_trains_and_the_command_line_says_where_it_is(seeds, tiny_recipe_file, tmp_path, capsys):
    merged, run = tmp_path / "merged", tmp_path / "run"
    assert main(["merge", *map(str, seeds), str(merged)]) == 0
    assert str(merged) in capsys.readouterr().out
    arguments = ["--recipe", str(tiny_recipe_file), "--dataset", str(merged), "--output_dir", str(run)]
    assert main(["train", *arguments, "--training.max_steps", "2", "--streaming"]) == 0
    assert json.loads((run / "run.json").read_text())["dataset"]["fingerprint"] == read_metadata(merged).fingerprint


def test_other_tasks_are_one_dataset_in_the_order_of_their_numbers(tmp_path):
    failures = [{"task_id": number, "seed": 0, "error": "lost"} for number in (10, 5)]
    versions = [{"numpy": "2.1", "torch": "2.9"}, {"numpy": "2.0", "torch": "2.9"}]
    first = write(tmp_path / "first", [2, 3], failures=failures, versions=versions[0])
    other = write(tmp_path / "other", [10, 11], versions=versions[1])
    held_out = write(tmp_path / "held_out", [4], split="test", versions=versions[0])
    merged = ad_hf.merge_datasets([other, held_out, first], tmp_path / "merged")
    metadata = read_metadata(merged)
    assert [task["task_id"] for task in metadata.tasks] == [2, 3, 4, 10, 11]
    assert list(open_dataset(merged).load("train")["history_id"]) == ["2-0-0", "3-0-0", "10-0-0", "11-0-0"]
    assert list(open_dataset(merged).load("test")["history_id"]) == ["4-0-0"]
    assert metadata.failures == failures[1:]  # the other dataset has learnt task 10
    assert metadata.versions == {"numpy": "2.0, 2.1", "torch": "2.9"}


def source(**changes):
    return {"source": {"algorithm": "A2C", "n_envs": 1, "total_timesteps": 100, "hyperparameters": {}} | changes}


DIFFERENCES = [
    ({"env_id": "test/Others-v0"}, "env_id is 'test/Histories-v0' in the one, 'test/Others-v0' in the other"),
    ({"env_kwargs": {"size": 3}}, r"env_kwargs is \{\} in the one, \{'size': 3\}"),
    ({"wrappers": [{"name": "a"}]}, "wrappers is"),
    ({"action_space": {"type": "Discrete", "n": 8}}, "action_space is .*7.*8"),
    (source(total_timesteps=200), "source.total_timesteps is 100 in the one, 200 in the other"),
    (source(hyperparameters={"gamma": 1}), "source.hyperparameters is .*gamma"),
    (source(tasks_per_job=2), "source.tasks_per_job is None in the one, 2"),
    # Other arguments or another split under the same number, and the same arguments under another.
    ({"numbers": [1], "kwargs": {1: {"x": 7}}}, "the one has the task {.*'x': 1}.*'x': 7}.*the section `family`"),
    ({"numbers": [1], "split": "test"}, "the one has the task .*'split': 'train'}, the other .*'split': 'test'}"),
    (
        {"numbers": [2], "kwargs": {2: {"x": 1}}},
        "the one has the task {'task_id': 1, 'kwargs': {'x': 1}.*'task_id': 2",
    ),
    ({"numbers": [0, 1, 9]}, r"both hold the histories 0-0-0, 1-0-0 \(task-seed-stream\); collect .* other seeds"),
]


def test_datasets_that_do_not_fit_together_are_refused_by_what_differs(tmp_path):
    first = write(tmp_path / "first", [0, 1])
    for number, (changes, message) in enumerate(DIFFERENCES):
        other = write(tmp_path / str(number), **{"numbers": [5], **changes})
        with pytest.raises(ValueError, match=rf"{first} and {other} cannot be merged: {message}"):
            ad_hf.merge_datasets([first, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_one_dataset_a_folder_that_is_there_and_no_dataset_are_refused(seeds, tmp_path, capsys):
    assert main(["merge", str(seeds[0]), str(seeds[0]), str(tmp_path / "merged")]) == 2
    assert "both hold the histories 0-0-0, 0-0-1, 0-0-2, 0-0-3, 0-0-4 and 67 more" in capsys.readouterr().err
    with pytest.raises(ValueError, match="two datasets or more"):
        ad_hf.merge_datasets(seeds[:1], tmp_path / "merged")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        ad_hf.merge_datasets(seeds, tmp_path / "merged")
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        ad_hf.merge_datasets([seeds[0], tmp_path / "nothing"], tmp_path / "other")
    assert os.listdir(tmp_path) == ["merged"]
    part = Path(shutil.copytree(seeds[1], tmp_path / "part"))
    next((part / "default").glob("train-*.parquet")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train-.*\.parquet"):
        ad_hf.merge_datasets([seeds[0], part], tmp_path / "other")
