"""The folder of a run: what it may hold before the run, and its checkpoints."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ad_hf.evaluation.summary import EVALUATION_FILES
from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.hub.model_files import CHECKPOINT_FOLDER, RESULT_FILES, STATE_FILE
from ad_hf.storage.files import local_path, refuse_other, remove_folder, remove_leftovers, write_text
from ad_hf.storage.repositories import HUB_ID, find_repository

VERDICT_FILE = "verdict.json"


def check_run_folder(output_dir: Path, resumed: bool = False) -> None:
    """
    Refuse a folder in which something else is in the place of a run's model or checkpoints.

    Raises:
        FileExistsError: naming it.
    """
    refuse_other(output_dir / "model", "config.json")
    for path in list_checkpoints(output_dir):
        if not (resumed and path.is_dir()):  # a run that is resumed says which of its checkpoints are damaged
            refuse_other(path, STATE_FILE)


def refuse_run(output_dir: Path, checkpoint: Path | None = None) -> None:
    """
    Refuse a folder that holds a run, finished or not, unless it goes on from a checkpoint in the folder.

    Raises:
        FileExistsError: with the ways on.
    """
    held = next(reversed(list_checkpoints(output_dir)), output_dir / "model")
    if not held.exists() or (checkpoint is not None and checkpoint.resolve().parent == output_dir.resolve()):
        return
    raise FileExistsError(
        f"{output_dir} holds a run already, with {held.name}/: go on with it by --resume latest, give another "
        "output_dir, or write over it by --overwrite (resume='latest', overwrite=True)"
    )


def remove_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints of a run that is written over."""
    for path in list_checkpoints(output_dir):
        remove_folder(path)


def prepare_run_folder(output_dir: Path, recipe: str, run: dict[str, Any]) -> None:
    """Make the folder of a run, with its recipe as YAML and, in `run.json`, what it trains on."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    for name in {*RESULT_FILES, *EVALUATION_FILES, VERDICT_FILE}:  # of the model that was there before
        (output_dir / name).unlink(missing_ok=True)
    write_text(output_dir / "recipe.yaml", recipe)
    versions = package_versions((*VERSIONED_PACKAGES, "transformers"))
    write_text(output_dir / "run.json", json.dumps({**run, "versions": versions}, indent=2) + "\n")


def checkpoint_step(path: Path) -> int:
    """The updates in the name of a checkpoint."""
    return int(path.name.removeprefix("checkpoint-"))


def list_checkpoints(output_dir: Path, last: float = math.inf) -> list[Path]:
    """The checkpoints of a run up to an update, oldest first."""
    paths = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted((path for path in paths if checkpoint_step(path) <= last), key=checkpoint_step)


def find_checkpoint(resume: str | Path, output_dir: Path) -> Path | None:
    """
    The checkpoint to resume: with `"latest"`, the newest one in the folder of the run, if it has any; else a folder,
    or a repository on the Hub that checkpoints were pushed to, as `user/name` or `user/name@branch`.

    Raises:
        FileNotFoundError: if there is no checkpoint.
    """
    if str(resume) == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    folder = local_path(resume)
    if not folder.exists() and HUB_ID.fullmatch(str(resume)):
        patterns = [f"{CHECKPOINT_FOLDER}/{name}" for name in ("*.json", "*.safetensors")]
        folder = find_repository(resume, "model").download(patterns) / CHECKPOINT_FOLDER
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"{resume} is no checkpoint: expected `latest`, a folder with {STATE_FILE} in it, or a repository on the "
            f"Hub with one in {CHECKPOINT_FOLDER}/"
        )
    return folder
