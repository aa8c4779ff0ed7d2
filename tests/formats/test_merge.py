"""Datasets of one family as one: every history of each, byte for byte, or a refusal that says what does not fit."""

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

import ad_hf
from ad_hf.cli import main
from ad_hf.histories.schema import read_metadata
from ad_hf.pipeline import collect_recipe
from ad_hf.recipe import load_recipe


@pytest.fixture(scope="module")
def collect(tiny_recipe_file, tmp_path_factory):
    """Collects the tiny recipe with some settings."""

    def run(*overrides):
        recipe = load_recipe(tiny_recipe_file, ["--source.total_timesteps", "480", *overrides])
        return collect_recipe(recipe, tmp_path_factory.mktemp("merge") / "histories", num_workers=1)

    return run


@pytest.fixture(scope="module")
def seeds(collect):
    """Collections with seeds 0 and 1."""
    return [collect("--source.seeds", f"[{seed}]") for seed in (0, 1)]


def write(folder, numbers, split="train", kwargs=None, **metadata):
    """A dataset of histories of a few tasks, with some metadata."""
    tables = [make_table([30], first_number=number) for number in numbers]
    write_dataset(folder, tables, split=split)
    tasks = [
        {"task_id": number, "kwargs": (kwargs or {}).get(number, {"x": number}), "split": split} for number in numbers
    ]
    edit(folder, tasks=tasks, **metadata)
    return folder


def edit(folder, **changes):
    path = folder / "default" / "metadata.json"
    path.write_text(replace(read_metadata(folder), **changes).to_json())


def rows_of(folder, split):
    table = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "default").glob(f"{split}-*.parquet")))
    return sorted(table.to_pylist(), key=lambda row: (row["history_id"], row["piece"]))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_seeds_are_one_dataset_with_all_histories_and_what_is_known_of_them(seeds, tmp_path):
    merged = ad_hf.merge_datasets(seeds, tmp_path / "merged")
    for split in ("train", "validation", "test"):
        expected = [row for folder in seeds for row in rows_of(folder, split)]
        assert rows_of(merged, split) == sorted(expected, key=lambda row: (row["history_id"], row["piece"]))
        assert len(load_dataset(str(merged), split=split)) == len(expected)
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


def test_the_result_does_not_depend_on_the_order_and_leaves_the_parts_alone(seeds, tmp_path):
    before = [contents(folder) for folder in seeds]
    one, other = (
        ad_hf.merge_datasets(folders, tmp_path / name / "merged")
        for name, folders in (("a", seeds), ("b", seeds[::-1]))
    )
    assert contents(one) == contents(other)
    shutil.rmtree(one)
    assert [contents(folder) for folder in seeds] == before
    assert list((tmp_path / "a").iterdir()) == []


def test_shards_are_links_where_there_can_be_such(seeds, tmp_path):
    merged = ad_hf.merge_datasets(seeds, tmp_path / "merged")
    inodes = {path.stat().st_ino for folder in seeds for path in folder.rglob("*.parquet")}
    assert {path.stat().st_ino for path in merged.rglob("*.parquet")} == inodes


def test_it_trains_and_the_command_line_says_where_it_is(seeds, tiny_recipe_file, tmp_path, capsys):
    merged, run = tmp_path / "merged", tmp_path / "run"
    assert main(["merge", *map(str, seeds), str(merged)]) == 0
    assert str(merged) in capsys.readouterr().out
    arguments = ["--recipe", str(tiny_recipe_file), "--dataset", str(merged), "--output_dir", str(run)]
    for streaming in ([], ["--streaming"]):
        assert main(["train", *arguments, "--training.max_steps", "2", *streaming]) == 0
    assert json.loads((run / "run.json").read_text())["dataset"]["fingerprint"] == read_metadata(merged).fingerprint


def test_other_tasks_are_one_dataset_in_the_order_of_their_numbers(tmp_path):
    first, other = write(tmp_path / "first", [10, 11]), write(tmp_path / "other", [2, 3])
    held_out = write(tmp_path / "held_out", [4], split="test")
    merged = ad_hf.merge_datasets([first, held_out, other], tmp_path / "merged")
    assert [task["task_id"] for task in read_metadata(merged).tasks] == [2, 3, 4, 10, 11]
    ids = open_dataset(merged).load("train")["history_id"]
    assert list(ids) == ["2-0-0", "3-0-0", "10-0-0", "11-0-0"]
    assert list(open_dataset(merged).load("test")["history_id"]) == ["4-0-0"]


def test_what_failed_in_one_and_was_learnt_in_the_other_is_not_missing(tmp_path):
    failures = [{"task_id": number, "seed": 0, "error": "lost"} for number in (1, 2)]
    first = write(tmp_path / "first", [0], failures=failures)
    other = write(tmp_path / "other", [1])
    assert read_metadata(ad_hf.merge_datasets([first, other], tmp_path / "merged")).failures == failures[1:]


def test_versions_that_differ_are_all_named(tmp_path):
    first = write(tmp_path / "first", [0], versions={"numpy": "2.1", "torch": "2.9"})
    other = write(tmp_path / "other", [1], versions={"numpy": "2.0", "torch": "2.9"})
    merged = ad_hf.merge_datasets([first, other], tmp_path / "merged")
    assert read_metadata(merged).versions == {"numpy": "2.0, 2.1", "torch": "2.9"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env_id": "test/Others-v0"}, "env_id is 'test/Histories-v0' in the one, 'test/Others-v0' in the other"),
        ({"env_kwargs": {"size": 3}}, r"env_kwargs is \{\} in the one, \{'size': 3\}"),
        ({"wrappers": [{"name": "a"}]}, "wrappers is"),
        ({"action_space": {"type": "Discrete", "n": 8}}, "action_space is .*7.*8"),
        (
            {"source": {"algorithm": "A2C", "n_envs": 1, "total_timesteps": 200, "hyperparameters": {}}},
            "source.total_timesteps is 100 in the one, 200 in the other",
        ),
        (
            {"source": {"algorithm": "A2C", "n_envs": 1, "total_timesteps": 100, "hyperparameters": {"gamma": 1}}},
            "source.hyperparameters is .*gamma",
        ),
    ],
    ids=str,
)
def test_other_environments_and_sources_are_refused_by_what_differs(tmp_path, changes, expected):
    first, other = write(tmp_path / "first", [0]), write(tmp_path / "other", [1], **changes)
    with pytest.raises(ValueError, match=rf"{first} and {other} cannot be merged: {expected}"):
        ad_hf.merge_datasets([first, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_task_of_two_splits_is_refused(tmp_path):
    first, other = write(tmp_path / "first", [0, 1]), write(tmp_path / "other", [1], split="test")
    with pytest.raises(ValueError, match=r"'task_id': 1.*'split': 'train'.*'task_id': 1.*'split': 'test'"):
        ad_hf.merge_datasets([first, other], tmp_path / "merged")


@pytest.mark.parametrize(("number", "kwargs"), [(1, {"x": 7}), (2, {"x": 1})])
def test_tasks_that_are_numbered_otherwise_are_refused(tmp_path, number, kwargs):
    """Other arguments under the same number, and the same under another."""
    first, other = write(tmp_path / "first", [0, 1]), write(tmp_path / "other", [number], kwargs={number: kwargs})
    with pytest.raises(ValueError, match=r"'task_id': 1, 'kwargs': \{'x': 1\}.*the section `family`"):
        ad_hf.merge_datasets([first, other], tmp_path / "merged")


def test_histories_that_two_hold_are_refused_by_their_names(seeds, collect, tmp_path, capsys):
    both = collect("--source.seeds", "[1, 2]")
    with pytest.raises(ValueError, match=r"both hold the histories 0-1-0, 0-1-1, .* and \d+ more .*other seeds"):
        ad_hf.merge_datasets([*seeds, both], tmp_path / "merged")
    assert main(["merge", str(seeds[0]), str(seeds[0]), str(tmp_path / "merged")]) == 2
    assert "both hold the histories 0-0-0" in capsys.readouterr().err


def test_one_dataset_a_folder_that_is_there_and_no_dataset_are_refused(seeds, tmp_path):
    with pytest.raises(ValueError, match="two datasets or more"):
        ad_hf.merge_datasets(seeds[:1], tmp_path / "merged")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        ad_hf.merge_datasets(seeds, tmp_path / "merged")
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        ad_hf.merge_datasets([seeds[0], tmp_path / "nothing"], tmp_path / "other")
    assert os.listdir(tmp_path) == ["merged"]


def test_a_dataset_that_lacks_shards_is_refused(seeds, tmp_path):
    part = Path(shutil.copytree(seeds[1], tmp_path / "part"))
    next((part / "default").glob("train-*.parquet")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train-.*\.parquet"):
        ad_hf.merge_datasets([seeds[0], part], tmp_path / "merged")
