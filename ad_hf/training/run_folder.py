"""The folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.hub.model_files import RESULT_FILES
from ad_hf.storage.files import refuse_other, remove_leftovers, write_text
from ad_hf.training.checkpoints import STATE_FILE, list_checkpoints

if TYPE_CHECKING:
    from ad_hf.training.trainer import Trainer


def check_run_folder(output_dir: Path, resumed: bool = False) -> None:
    """
    Refuse a folder for a run in which something else is where its model and checkpoints are to be.

    Raises:
        FileExistsError: naming it.
    """
    refuse_other(output_dir / "model", "config.json")
    for path in list_checkpoints(output_dir):
        if not (resumed and path.is_dir()):  # a damaged one is told from others, if it is to be resumed
            refuse_other(path, STATE_FILE)


def prepare_run_folder(trainer: Trainer, output_dir: Path) -> None:
    """Make the folder of a run, and say in it what is trained on what."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    for name in RESULT_FILES:  # of the model that was there before
        (output_dir / name).unlink(missing_ok=True)
    write_text(output_dir / "recipe.yaml", trainer.recipe.to_yaml())
    run = {
        **trainer.family.env_settings,
        "dataset": trainer.dataset_json,
        "versions": package_versions((*VERSIONED_PACKAGES, "transformers")),
    }
    write_text(output_dir / "run.json", json.dumps(run, indent=2) + "\n")
