"""Merging datasets of learning histories of one family, collected with other seeds or of other tasks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.task_family import SPLITS, FamilyConfig
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.writer import RECIPE_FILE, describe, new_dataset
from ad_hf.settings import excerpt, make_section, read_yaml
from ad_hf.storage.files import link_or_copy, local_path

SAME = ("env_id", "env_kwargs", "wrappers", "attributes", "observation_space", "action_space")  # in all datasets
NAMED = 5  # histories in an error


class _Part(NamedTuple):
    """A dataset to merge, its files by split, and the ids of its histories."""

    dataset: HistoryDataset
    files: dict[str, list[Path]]
    ids: set[str]

    @classmethod
    def open(cls, dataset: str | Path | HistoryDataset, config_name: str | None) -> _Part:
        opened = HistoryDataset.open(dataset, config_name)
        check_dataset(opened)
        files = {split: opened.files(split) for split in opened.splits}
        tables = [pq.read_table(shard, columns=["history_id"]) for shards in files.values() for shard in shards]
        return cls(opened, files, {history for table in tables for history in table["history_id"].to_pylist()})

    @property
    def metadata(self) -> HistoryMetadata:
        return self.dataset.metadata


def _numbers(history: str) -> tuple[list[int], str]:
    """A key to order histories by: the numbers in an id, task-seed-stream."""
    return [int(number) for number in re.findall(r"\d+", history)], history


def _check_pair(first: _Part, other: _Part) -> None:
    """Refuse two datasets of different environments, sources or tasks, and those that hold the same histories."""

    def refuse(reason: str) -> None:
        raise ValueError(f"{first.dataset} and {other.dataset} cannot be merged: {reason}")

    here, there = (
        {name: getattr(metadata, name) for name in SAME}
        | {f"source.{name}": value for name, value in sorted(metadata.source.items())}
        for metadata in (first.metadata, other.metadata)
    )
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            refuse(f"{name} is {here.get(name)!r} in the one, {there.get(name)!r} in the other")
    tasks = {task["task_id"]: task for task in first.metadata.tasks}
    for task in other.metadata.tasks:
        match = tasks.get(task["task_id"])
        if match is None and task["kwargs"]:  # conversions may know nothing of several tasks
            match = next((each for each in tasks.values() if each["kwargs"] == task["kwargs"]), None)
        if match not in (None, task):
            refuse(
                f"the one has the task {match}, the other {task}; tasks have the same number, arguments and split "
                "where the section `family` of the recipe is the same"
            )
    if both := sorted(first.ids & other.ids, key=_numbers):
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        refuse(
            f"both hold the histories {', '.join(both[:NAMED])}{more} (task-seed-stream); collect one of them with "
            "other seeds"
        )


def _merge_metadata(parts: Sequence[_Part]) -> HistoryMetadata:
    """The metadata of all of some datasets, but for their shards."""
    tasks = {task["task_id"]: task for part in parts for task in part.metadata.tasks}
    learners = {history.rpartition("-")[0] for part in parts for history in part.ids}  # task-seed
    failures = {
        (failure["task_id"], failure["seed"]): failure
        for part in parts
        for failure in part.metadata.failures
        if f"{failure['task_id']}-{failure['seed']}" not in learners  # another dataset may have learnt it
    }
    tables = [part.metadata.progress for part in parts if part.metadata.progress]
    columns = [table["columns"] for table in tables]
    if any(names != columns[0] for names in columns):
        raise ValueError(f"the datasets cannot be merged: their progress has different columns, {columns}")
    rows = sorted((row for table in tables for row in table["rows"]), key=lambda row: row[:2])
    versions = sorted({pair for part in parts for pair in part.metadata.versions.items()})
    return replace(
        parts[0].metadata,
        tasks=[tasks[number] for number in sorted(tasks)],
        seeds=sorted({seed for part in parts for seed in part.metadata.seeds}),
        versions={
            package: ", ".join(version for _, version in pairs) for package, pairs in groupby(versions, itemgetter(0))
        },
        failures=[failures[key] for key in sorted(failures)],
        progress={"columns": columns[0], "rows": rows} if tables else {},
    )


def _family_of(parts: Sequence[_Part], trust_remote_code: bool) -> dict[str, Any] | None:
    """
    The section `family` of the recipe beside each dataset, as conversions write it, if all have the same.

    It becomes a file of the user's own, so the names in it have to be in our tables, or trusted.
    """
    families = []
    for part in parts:
        repository = part.dataset.repository
        if RECIPE_FILE not in repository.files():
            return None
        path = repository.download([RECIPE_FILE]) / RECIPE_FILE
        family = read_yaml(path).get("family")
        if not isinstance(family, dict):
            raise ValueError(f"{path}: expected a section family, with settings, got {excerpt(family)}")
        if not trust_remote_code:
            check_family_section(family, f"the dataset {part.dataset}")
        make_section(FamilyConfig, family, "family")
        families.append(family)
    return families[0] if all(family == families[0] for family in families) else None


def merge_datasets(
    datasets: Sequence[str | Path | HistoryDataset],
    output_dir: str | Path,
    config_name: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    r"""
    Join datasets of learning histories of one family, collected with other seeds, of other tasks, or both.

    Shards stay as they are, under new numbers. The result is the same whatever the order of the datasets, and is
    written whole or not at all.

    Args:
        datasets (`Sequence[str | Path]`):
            Two or more: folders, or ids on the Hub, with `@revision` if need be.
        output_dir (`str` or `Path`):
            Folder of the dataset to write, which must not exist.
        config_name (`str`, *optional*):
            Configuration of each of them, and of the result; may be left out where there is only one, or one called
            `default`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the recipe beside the datasets, which the result takes over, may name code to import.

    Returns:
        `Path`: the folder of the dataset.

    Raises:
        FileNotFoundError: if one of them is not there, or lacks files.
        ValueError: naming the difference, if their environments, spaces, sources or tasks (numbers, arguments,
            splits) differ; if two hold the same histories; if there is something at `output_dir`.
    """
    if len(datasets) < 2:
        raise ValueError(f"expected two datasets or more to merge, got {', '.join(map(str, datasets)) or 'none'}")
    parts = [_Part.open(dataset, config_name) for dataset in datasets]
    for pair in combinations(parts, 2):
        _check_pair(*pair)
    parts.sort(key=lambda part: min(map(_numbers, part.ids)))
    metadata, family = _merge_metadata(parts), _family_of(parts, trust_remote_code)
    names = {part.dataset.config_name for part in parts}
    name = names.pop() if len(names) == 1 else "default"
    with new_dataset(output_dir, name) as folder:
        for split in SPLITS:
            shards = [shard.resolve() for part in parts for shard in part.files.get(split, [])]
            for index, shard in enumerate(shards):
                # A link has to be writable, to be put on disk.
                copy = link_or_copy if os.access(shard, os.W_OK) else shutil.copyfile
                copy(shard, folder / name / f"{split}-{index:05d}-of-{len(shards):05d}.parquet")
        merged = [f"- {part.dataset} (fingerprint {part.metadata.fingerprint})" for part in parts]
        origin = "Merged by `ad-hf merge` from:\n\n" + "\n".join(merged)
        describe(folder, Path(output_dir).name, name, metadata, origin, family)
    return local_path(output_dir)
