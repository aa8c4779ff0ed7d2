"""The card of a dataset of learning histories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from ad_hf.envs.task_family import SPLITS
from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, is_synthetic, read_metadata, source_label
from ad_hf.storage.cards import CARD, LICENSE, UNKNOWN_LICENSE, card_of, merge_card, render_card
from ad_hf.storage.files import read_text, write_text


def dataset_config(folder: Path, metadata: HistoryMetadata, config_name: str) -> dict[str, Any]:
    """The YAML of a dataset card about a configuration, with the files of each split in its folder."""
    splits = [
        {"split": split, "path": f"{config_name}/{split}-*.parquet"}
        for split in SPLITS
        if any(folder.glob(f"{split}-*.parquet"))
    ]
    # The cache of datasets knows a local folder by its name and these lines alone: the fingerprint tells two apart.
    description = f"{source_label(metadata.source['algorithm'])}, fingerprint {metadata.fingerprint}"
    return {"config_name": config_name, "data_files": splits, "description": description}


def dataset_card(
    metadata: Mapping[str, HistoryMetadata],
    configs: list[dict[str, Any]],
    name: str,
    old: str | None = None,
    license: str | None = None,
) -> str:
    """
    The text of a dataset's card, from the metadata of all configurations and the [`dataset_config`] of the new ones.

    `name` is the argument of `load_dataset`, a Hub id or a folder, and `old` the card so far; see [`merge_card`]. The
    license is by default that of the card so far, else Apache-2.0, or `unknown` for imported histories.
    """
    env_ids = sorted({config.env_id for config in metadata.values()})
    title = f"Learning histories of {', '.join(env_ids)}"
    synthetic = {config_name: is_synthetic(config.source["algorithm"]) for config_name, config in metadata.items()}
    rows = sum(split["histories"] for config in metadata.values() for split in config.statistics.values())
    imported = any(config.source.get("n_envs") is None for config in metadata.values())
    data = DatasetCardData(
        license=UNKNOWN_LICENSE if imported else LICENSE,
        pretty_name=title,
        task_categories=["reinforcement-learning"],
        size_categories=[_size_category(rows)] if rows else None,
        tags=[
            *("in-context-reinforcement-learning", "algorithm-distillation"),
            *(["synthetic"] if any(synthetic.values()) else []),
            *env_ids,
        ],
        configs=configs,
    )
    text = render_card(
        "dataset_cards",
        "learning_histories.md",
        title=title,
        name=name,
        configs=[
            {
                "name": config_name,
                "metadata": config,
                "is_synthetic": synthetic[config_name],
                "source": config.source,
                "source_label": source_label(config.source["algorithm"]),
                "splits": config.statistics,
                "has_frames": has_frames(config.spaces[0]),
                "num_tasks": {split: sum(task["split"] == split for task in config.tasks) for split in SPLITS},
            }
            for config_name, config in sorted(metadata.items())
        ],
    )
    return merge_card(old, data.to_dict(), text, license)


def _size_category(rows: int) -> str:
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((name for bound, name in bounds if rows < bound), "10M<n<100M")


def write_dataset_card(dataset: str | Path, name: str | None = None) -> Path:
    """
    Write the README.md of a learning-history dataset, whose YAML tells `datasets` which files belong to which split.

    Args:
        dataset (`str` or `Path`):
            Folder with one sub-folder per configuration, as [`~ad_hf.collect`] leaves it. Text that people wrote into
            its README.md stays.
        name (`str`, *optional*):
            The argument of `load_dataset`; by default the folder's name.
    """
    dataset = Path(dataset)
    paths = sorted(dataset.glob(f"[!.]*/{METADATA_FILE}"))
    metadata = {path.parent.name: read_metadata(dataset, path.parent.name) for path in paths}
    configs = [dataset_config(dataset / config, metadata[config], config) for config in metadata]
    card = dataset / CARD
    with card_of(*map(str, paths), str(card)):
        text = dataset_card(metadata, configs, name or dataset.name, read_text(card))
    write_text(card, text)
    return card
