"""Loading learning-history datasets, and what they say about the models that can be trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from ad_hf.histories.schema import HistoryMetadata, read_metadata
from ad_hf.model.configuration_ad import ADConfig


def load_histories(
    dataset: str | Path, split: str, config_name: str = "default", columns: list[str] | None = None
) -> tuple[Dataset, HistoryMetadata]:
    """
    A split of a learning-history dataset and the dataset's metadata.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset.
        split (`str`):
            `"train"`, `"validation"` or `"test"`.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration in it.
        columns (`list[str]`, *optional*):
            Columns to keep; all by default.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it has no such split.
    """
    metadata = read_metadata(dataset, config_name)
    splits = sorted({task["split"] for task in metadata.tasks})
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}: expected one of {', '.join(splits)}")
    # By its files and not by its folder: datasets caches a local folder by its name alone, so that another folder of
    # that name, or this one collected anew, would be taken for it.
    files = sorted(str(path) for path in (Path(dataset) / config_name).resolve().glob(f"{split}-*.parquet"))
    rows = load_dataset("parquet", data_files={split: files}, split=split)
    return (rows if columns is None else rows.select_columns(columns)), metadata


def config_from_dataset(dataset: str | Path, config_name: str = "default", **settings: Any) -> ADConfig:
    """
    The configuration of a model for a dataset: its spaces are the dataset's.

    Args:
        dataset (`str` or `Path`):
            Folder of the dataset.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration in it.
        settings:
            Any other field of [`ADConfig`].

    Raises:
        ValueError: for settings that `ADConfig` does not have.
    """
    known = set(ADConfig.__dataclass_fields__)
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"ADConfig has no setting {', '.join(map(repr, unknown))}")
    metadata = read_metadata(dataset, config_name)
    spaces = {"observation_space": metadata.observation_space, "action_space": metadata.action_space}
    return ADConfig(**{**spaces, **settings})
