"""Checkpoints: all that a run needs in order to go on as if it had not been interrupted."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from ad_hf.files import atomic_folder
from ad_hf.recipe import Recipe

if TYPE_CHECKING:
    from ad_hf.training.trainer import Trainer

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.pt", "state.json"
BEST_FOLDER = "best"  # the model that did best so far
# What may be another when a run is resumed: it changes none of the updates.
FREE_SETTINGS = {"logging_steps", "log_with", "save_steps", "save_total_limit"}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide how a run goes on, as JSON keeps them."""
    sections = {name: asdict(getattr(recipe, name)) for name in ("family", "data", "model", "training")}
    flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    kept = {name: value for name, value in flat.items() if name.removeprefix("training.") not in FREE_SETTINGS}
    return json.loads(json.dumps(kept))


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def save_checkpoint(trainer: Trainer, step: int) -> None:
    """
    Write `checkpoint-STEP/` of a run, whole or not at all, and drop the oldest ones. Every process must call this.

    Args:
        trainer ([`~ad_hf.training.trainer.Trainer`]):
            The run.
        step (`int`):
            Updates done.
    """
    accelerator = trainer.accelerator
    places = gather_object([trainer.batches.state_dict()])
    random_states = gather_object([_random_state()])
    if accelerator.is_main_process:
        state = {
            "step": step,
            "best": trainer.best,
            "batches": places,
            "dataset": trainer.dataset_json,
            "settings": _settings(trainer.recipe),
        }
        with atomic_folder(trainer.output_dir / f"checkpoint-{step}") as folder:
            weights = accelerator.unwrap_model(trainer.model).state_dict()
            save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / MODEL_FILE)
            torch.save(
                {
                    "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                    "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
                    "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                    "random_states": random_states,
                },
                folder / OPTIMIZER_FILE,
            )
            if trainer.best is not None:
                shutil.copytree(trainer.output_dir / "model", folder / BEST_FOLDER)
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        for old in list_checkpoints(trainer.output_dir)[: -trainer.config.save_total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(resume: str | Path, output_dir: Path) -> Path | None:
    """
    The checkpoint that is to be resumed.

    Args:
        resume (`str` or `Path`):
            `"latest"`, the newest one of the run if it has any, or a folder.
        output_dir (`Path`):
            Folder of the run.

    Raises:
        FileNotFoundError: if the folder is no checkpoint.
    """
    if str(resume) == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    if not (Path(resume) / STATE_FILE).is_file():
        raise FileNotFoundError(f"{resume} is no checkpoint: expected `latest` or a folder with {STATE_FILE} in it")
    return Path(resume)


def load_checkpoint(trainer: Trainer, folder: Path) -> int:
    """
    Set a run to where a checkpoint was saved. Every process must call this.

    Args:
        trainer ([`~ad_hf.training.trainer.Trainer`]):
            The run, made with the same recipe and dataset.
        folder (`Path`):
            The checkpoint.

    Returns:
        `int`: the updates that are done.

    Raises:
        ValueError: if the checkpoint is of another dataset, recipe, or number of processes.
    """
    state = json.loads((folder / STATE_FILE).read_text())
    _check_same(folder, "dataset", state["dataset"], trainer.dataset_json, ignored={"name"})
    _check_same(folder, "setting", state["settings"], _settings(trainer.recipe))
    accelerator = trainer.accelerator
    if len(state["batches"]) != accelerator.num_processes:
        raise ValueError(
            f"{folder} is of a run of {len(state['batches'])} processes, this one has {accelerator.num_processes}"
        )
    model = accelerator.unwrap_model(trainer.model)
    model.load_state_dict(load_file(folder / MODEL_FILE))
    # Tensors and plain values alone: whatever else a file holds is refused.
    saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    for part, states in (("optimizers", saved["optimizers"]), ("schedulers", saved["schedulers"])):
        for loaded, part_state in zip(getattr(trainer, part), states, strict=True):
            loaded.load_state_dict(part_state)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    random_state = saved["random_states"][accelerator.process_index]
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    trainer.batches.load_state_dict(state["batches"][accelerator.process_index])
    trainer.best = None if state["best"] is None else (state["best"][0], state["best"][1])
    if trainer.best is not None and accelerator.is_main_process:
        trainer.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_folder(trainer.output_dir / "model") as model_folder:
            shutil.copytree(folder / BEST_FOLDER, model_folder, dirs_exist_ok=True)
    return int(state["step"])


def _check_same(
    folder: Path, what: str, before: dict[str, Any], now: dict[str, Any], ignored: set[str] | None = None
) -> None:
    for name in sorted({*before, *now} - (ignored or set())):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} cannot be resumed: {what} {name} was {before.get(name)!r}, now it is {now.get(name)!r}"
            )
