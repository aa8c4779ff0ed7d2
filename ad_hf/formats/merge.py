"""Merging datasets of learning histories of one family, collected with other seeds or of other tasks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.task_family import SPLITS, FamilyConfig
from ad_hf.histories.dataset import HistoryDataset, check_dataset
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.writer import RECIPE_FILE, describe, new_dataset
from ad_hf.settings import make_section, read_yaml, shown
from ad_hf.storage.files import link_or_copy, local_path

SAME = ("env_id", "env_kwargs", "wrappers", "attributes", "observation_space", "action_space")  # in all datasets
NAMED = 5  # histories in an error


class _Part(NamedTuple):
    """A dataset to merge, its files by split, and the ids of its histories."""

    dataset: HistoryDataset
    files: dict[str, list[Path]]
    ids: set[str]


def _read(dataset: str | Path | HistoryDataset, config_name: str | None) -> _Part:
    opened = HistoryDataset.open(dataset, config_name)
    check_dataset(opened)
    files = {split: opened.files(split) for split in opened.splits}
    ids: set[str] = set()
    for shard in (shard for shards in files.values() for shard in shards):
        ids.update(pq.read_table(shard, columns=["history_id"])["history_id"].to_pylist())
    return _Part(opened, files, ids)


def _numbers(history: str) -> tuple[list[int], str]:
    """By what histories are ordered: the numbers of which an id is made, task-seed-stream."""
    return [int(number) for number in re.findall(r"\d+", history)], history


def _check_same(first: HistoryDataset, other: HistoryDataset) -> None:
    """Refuse two datasets of different environments or sources."""
    here, there = first.metadata, other.metadata
    found: dict[str, tuple[Any, Any]] = {name: (getattr(here, name), getattr(there, name)) for name in SAME}
    for name in sorted({*here.source, *there.source}):
        found[f"source.{name}"] = here.source.get(name), there.source.get(name)
    for name, (of_first, of_other) in found.items():
        if of_first != of_other:
            raise ValueError(
                f"{first} and {other} cannot be merged: {name} is {of_first!r} in the one, {of_other!r} in the other"
            )


def _check_tasks(first: HistoryDataset, other: HistoryDataset) -> None:
    """Refuse two datasets that number or split their tasks differently."""
    known = {task["task_id"]: task for task in first.metadata.tasks}
    for task in other.metadata.tasks:
        there = known.get(task["task_id"])
        if there is None and task["kwargs"]:  # conversions may know nothing of several tasks
            there = next((same for same in known.values() if same["kwargs"] == task["kwargs"]), None)
        if there not in (None, task):
            raise ValueError(
                f"{first} and {other} cannot be merged: the one has the task {there}, the other {task}; tasks have "
                "the same number, arguments and split where the section `family` of the recipe is the same"
            )


def _check_histories(first: _Part, other: _Part) -> None:
    """Refuse two datasets that hold histories of the same ids."""
    both = sorted(first.ids & other.ids, key=_numbers)
    if both:
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        raise ValueError(
            f"{first.dataset} and {other.dataset} cannot be merged: both hold the histories "
            f"{', '.join(both[:NAMED])}{more} (task-seed-stream); collect one of them with other seeds"
        )


def _merge_metadata(parts: Sequence[_Part]) -> HistoryMetadata:
    """What `metadata.json` says of all of some datasets, but for their shards."""
    all_metadata = [part.dataset.metadata for part in parts]
    tasks = {task["task_id"]: task for metadata in all_metadata for task in metadata.tasks}
    learnt = {history.rpartition("-")[0] for part in parts for history in part.ids}  # task-seed
    failures = {
        (failure["task_id"], failure["seed"]): failure
        for metadata in all_metadata
        for failure in metadata.failures
        if f"{failure['task_id']}-{failure['seed']}" not in learnt  # by another dataset's source it may have been
    }
    tables = [metadata.progress for metadata in all_metadata if metadata.progress]
    columns = [table["columns"] for table in tables]
    if any(names != columns[0] for names in columns):
        raise ValueError(f"the datasets cannot be merged: their progress has different columns, {columns}")
    rows = sorted((row for table in tables for row in table["rows"]), key=lambda row: row[:2])
    versions: dict[str, set[str]] = {}
    for metadata in all_metadata:
        for package, version in metadata.versions.items():
            versions.setdefault(package, set()).add(version)
    return replace(
        all_metadata[0],
        tasks=[tasks[number] for number in sorted(tasks)],
        seeds=sorted({seed for metadata in all_metadata for seed in metadata.seeds}),
        versions={package: ", ".join(sorted(found)) for package, found in sorted(versions.items())},
        failures=[failures[key] for key in sorted(failures)],
        progress={"columns": columns[0], "rows": rows} if tables else {},
    )


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy, where there can be no such link or the file cannot be written to."""
    if os.access(source, os.W_OK):  # it is opened to be put on disk
        link_or_copy(source, target)
    else:
        shutil.copyfile(source, target)


def _family_of(parts: Sequence[_Part], trust_remote_code: bool) -> dict[str, Any] | None:
    """
    The section `family` of the recipe beside each dataset, as conversions write it, if all have the same.

    It becomes a file of the user's own, so that names in it have to be known ones, or trusted.
    """
    found = []
    for part in parts:
        repository = part.dataset.repository
        if RECIPE_FILE not in repository.files():
            return None
        path = repository.download([RECIPE_FILE]) / RECIPE_FILE
        family = read_yaml(path).get("family")
        if not isinstance(family, dict):
            raise ValueError(f"{path}: expected a section family, with settings, got {shown(family)}")
        if not trust_remote_code:
            check_family_section(family, f"the dataset {part.dataset}")
        make_section(FamilyConfig, family, "family")
        found.append(family)
    return found[0] if all(family == found[0] for family in found) else None


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
        ValueError: if they do not fit together, with what differs: environments, spaces, sources, the numbers,
            arguments or splits of tasks; if two hold the same histories; if there is something at `output_dir`.
    """
    if len(datasets) < 2:
        raise ValueError(f"expected two datasets or more to merge, got {', '.join(map(str, datasets)) or 'none'}")
    parts = [_read(dataset, config_name) for dataset in datasets]
    for index, other in enumerate(parts):
        for first in parts[:index]:
            _check_same(first.dataset, other.dataset)
            _check_tasks(first.dataset, other.dataset)
            _check_histories(first, other)
    parts.sort(key=lambda part: min(map(_numbers, part.ids)))
    metadata, family = _merge_metadata(parts), _family_of(parts, trust_remote_code)
    names = {part.dataset.config_name for part in parts}
    name = names.pop() if len(names) == 1 else "default"
    with new_dataset(output_dir, name) as folder:
        for split in SPLITS:
            shards = [shard for part in parts for shard in part.files.get(split, [])]
            for index, shard in enumerate(shards):
                _link(shard.resolve(), folder / name / f"{split}-{index:05d}-of-{len(shards):05d}.parquet")
        merged = [f"- {part.dataset} (fingerprint {part.dataset.metadata.fingerprint})" for part in parts]
        origin = "Merged by `ad-hf merge` from:\n\n" + "\n".join(merged)
        describe(folder, Path(output_dir).name, name, metadata, origin, family)
    return local_path(output_dir)
