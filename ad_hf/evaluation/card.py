"""The card of an evaluation, with which it is a dataset of returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from ad_hf.evaluation.headlines import learns_cell, pace_lines
from ad_hf.evaluation.upgrades import upgrade_evaluation
from ad_hf.storage.cards import LICENSE, card_of, merge_card, render_card


def evaluation_card(
    folder: Path, name: str, found: Mapping[str, Any], old: str | None = None, license: str | None = None
) -> str:
    """
    The text of the card of an evaluation, with which it is a dataset of returns.

    Args:
        folder (`Path`):
            Of the evaluation's files.
        name (`str`):
            What `load_dataset` takes: a Hub id or a folder.
        found (`Mapping`):
            What its `evaluation.json` holds.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0.

    Raises:
        ValueError: for an `evaluation.json` that holds something else than it should.
    """
    with card_of(str(folder / "evaluation.json")):
        return _evaluation_card(folder, name, found, old, license)


def _evaluation_card(folder: Path, name: str, found: Mapping[str, Any], old: str | None, license: str | None) -> str:
    title = f"In-context reinforcement learning on {found['env_id']}: returns"
    data = DatasetCardData(
        license=LICENSE,
        pretty_name=title,
        task_categories=["reinforcement-learning"],
        tags=["in-context-reinforcement-learning", "algorithm-distillation", "evaluation", found["env_id"]],
        configs=[{"config_name": "default", "data_files": [{"split": "test", "path": "returns.parquet"}]}],
    )
    pictures = [picture for picture in ("learning_curves.png", "rooms.png") if (folder / picture).is_file()]
    text = render_card(
        "dataset_cards",
        "evaluation.md",
        title=title,
        name=name,
        found=upgrade_evaluation(dict(found)),
        pictures=pictures,
        words={each.__name__: each for each in (learns_cell, pace_lines)},
    )
    return merge_card(old, data.to_dict(), text, license)
