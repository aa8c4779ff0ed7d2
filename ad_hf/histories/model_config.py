"""The configuration of a model for a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.statistics import normalization
from ad_hf.model.configuration_ad import NORMALIZATION, SPACES, ADConfig
from ad_hf.storage.parquet import parquet_errors


def _normalization(dataset: HistoryDataset) -> dict[str, Any]:
    """The statistics that normalise the training split, from the metadata, or else from its files."""
    statistics = dataset.metadata.statistics.get("train", {})
    if "reward_scale" not in statistics:
        if "train" not in dataset.splits:
            return {}
        with parquet_errors(f"{dataset}, split train"):
            statistics = normalization(dataset.files("train"), dataset.metadata.spaces[0])
    statistics = {name: statistics[name] for name in NORMALIZATION if name in statistics}
    for name, value in statistics.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(map(math.isfinite, numbers)) or (name != "observation_mean" and min(numbers, default=1.0) <= 0):
            expected = "finite numbers" if name == "observation_mean" else "finite numbers above 0"
            dataset.refuse("train", f"statistics.train.{name} of metadata.json is {value}, expected {expected}")
    return statistics


def config_from_dataset(
    dataset: str | Path | HistoryDataset | Mapping[str, str | Path | HistoryDataset],
    config_name: str | None = None,
    normalize_observations: bool = True,
    **settings: Any,
) -> ADConfig:
    """
    The configuration of a model for a dataset: its spaces are the dataset's, and the statistics with which it
    normalises its inputs those of the dataset's training split.

    Args:
        dataset (`str` or `Path`, or a mapping of them):
            Folder of the dataset, or its id on the Hub, with `@revision` if need be. Of several by name, each becomes
            a group of the model.
        config_name (`str`, *optional*):
            Configuration in it; may be left out if there is only one, or one called `default`.
        normalize_observations (`bool`, *optional*, defaults to `True`):
            Whether observations that are Box vectors are normalised.
        settings:
            Any other field of [`ADConfig`]. `reward_scale` is by default, or as `None`, the mean magnitude of the
            rewards that are not zero: 1 for rewards of 0 and 1.

    Raises:
        ValueError: for settings that `ADConfig` does not have.
    """
    fields = {*ADConfig.__dataclass_fields__, *ADConfig.attribute_map}
    if unknown := sorted(set(settings) - fields):
        raise ValueError(f"ADConfig has no setting {', '.join(map(repr, unknown))}")
    settings = {name: value for name, value in settings.items() if name not in NORMALIZATION or value is not None}
    wanted = set(NORMALIZATION if normalize_observations else NORMALIZATION[:1])
    if not isinstance(dataset, Mapping):
        return ADConfig(
            **{**_of_dataset(HistoryDataset.open(dataset, config_name), wanted - set(settings)), **settings}
        )
    shared = {name: settings.pop(name) for name in NORMALIZATION if name in settings}
    groups = {
        name: {**_of_dataset(HistoryDataset.open(each, config_name), wanted - set(shared)), **shared}
        for name, each in dataset.items()
    }
    return ADConfig(groups=groups, **settings)


def _of_dataset(histories: HistoryDataset, wanted: set[str]) -> dict[str, Any]:
    """The spaces of a dataset, and those of its statistics that are wanted."""
    spaces = {name: getattr(histories.metadata, name) for name in SPACES}
    statistics = _normalization(histories) if wanted else {}
    return spaces | {name: value for name, value in statistics.items() if name in wanted}
