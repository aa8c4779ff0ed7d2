"""
Checkpoints: all that a run needs in order to go on as if it had not been interrupted.

A checkpoint is a folder that `from_pretrained` loads, too: the model as it was, beside the state of the optimizers and
random numbers (`training.safetensors`), everything that is no tensor (`training_state.json`), and the model that did
best so far (`best/`). There is no pickle in it, so that it may be pushed and resumed elsewhere. Weights and optimizer
states are stored whole under the weights' names, however they are sharded in memory. Only DeepSpeed's engine writes
files of its own, pickles, which stay on the machine (`deepspeed/`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ad_hf.hub.model_files import (
    BEST_FOLDER,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    MODEL_FILES,
    STATE_FILE,
    TENSORS_FILE,
    WEIGHTS_FILE,
)
from ad_hf.model.modeling_ad import ADModel
from ad_hf.recipe import Recipe
from ad_hf.settings import read_json
from ad_hf.storage.files import atomic_folder, copy_files, leaves_folder, local_path, remove_folder
from ad_hf.storage.repositories import HUB_ID, find_repository
from ad_hf.training.divergence import TrainingDivergedError
from ad_hf.training.saved_state import check_entry, check_state, check_tensors, not_finite, read_tensors

if TYPE_CHECKING:
    from ad_hf.training.trainer import Trainer

DEEPSPEED_FOLDER = "deepspeed"  # of a run with DeepSpeed, the engine's own files: pickles, for this machine alone
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the main process, however it is sharded
# What may be another when a run is resumed: it changes none of the updates.
FREE_SETTINGS = {
    *("training.logging_steps", "training.log_with", "training.save_steps", "training.save_total_limit"),
    "data.keep_in_memory",
}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide how a run goes on, as JSON keeps them."""
    sections = {name: asdict(getattr(recipe, name)) for name in ("family", "data", "model", "training")}
    flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    return json.loads(json.dumps({name: value for name, value in flat.items() if name not in FREE_SETTINGS}))


def _random_states() -> dict[str, torch.Tensor]:
    """States of torch's generators in this process, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


@contextmanager
def _explained(path: Path, output_dir: Path) -> Iterator[None]:
    """Say of what could not be written which state is the last good one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        last = find_checkpoint("latest", output_dir)
        good = "no checkpoint was written before" if last is None else f"the last good one is {last}"
        raise OSError(
            f"{path} could not be written ({error}); {good}: make room, or see to the permissions of {output_dir}, "
            "then go on with --resume latest"
        ) from error


def gather_weights(trainer: Trainer, step: int) -> dict[str, torch.Tensor]:
    """
    Whole weights of the model by name after so many updates, in the main process; every process must call this.

    Raises:
        TrainingDivergedError: in every process, if a number in them is not finite, or a loss before was not.
    """
    trainer.check_loss()
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        weights = trainer.accelerator.get_state_dict(trainer.model)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        gathered: Any = get_model_state_dict(model, options=WHOLE)
        weights = {name: weight.contiguous() for name, weight in gathered.items()}
    wrong = broadcast_object_list([not_finite(weights or {})])[0]
    if wrong is not None:
        raise TrainingDivergedError(f"the weights {wrong} are", step, trainer.learning_rate(step), trainer.checkpoint)
    return weights


def save_checkpoint(trainer: Trainer, step: int) -> Path:
    """
    Write `checkpoint-STEP/` of a run, whole or not at all, and drop the oldest ones. Every process must call this.

    Args:
        trainer ([`~ad_hf.training.trainer.Trainer`]):
            The run.
        step (`int`):
            Updates done.

    Returns:
        `Path`: the folder.

    Raises:
        OSError: if it cannot be written, with which one is the last good one.
        TrainingDivergedError: if there are weights that are not finite, of which no checkpoint is written.
    """
    accelerator, output_dir = trainer.accelerator, trainer.output_dir
    path = output_dir / f"checkpoint-{step}"
    places = gather_object([trainer.batches.state_dict()])
    random_states = gather_object([_random_states()])
    weights, (tensors, groups) = gather_weights(trainer, step), _optimizer_states(trainer)
    state = {}
    if accelerator.is_main_process:
        tensors |= {f"random/{i}/{kind}": each for i, one in enumerate(random_states) for kind, each in one.items()}
        state = {
            "step": step,
            "best": trainer.best,
            "unvalidated": trainer.unvalidated,
            "batches": places,
            "dataset": trainer.dataset_json,
            "settings": _settings(trainer.recipe),
            "optimizers": groups,
            "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }
    with _explained(path, output_dir), atomic_folder(path) if accelerator.is_main_process else nullcontext() as folder:
        if accelerator.distributed_type == DistributedType.DEEPSPEED:  # each process writes its part
            trainer.model.save_checkpoint(broadcast_object_list([str(folder)])[0], tag=DEEPSPEED_FOLDER)
            accelerator.wait_for_everyone()
        if folder is not None:
            trainer.save_model(folder, weights)
            save_file(tensors, folder / TENSORS_FILE)
            if trainer.best is not None:
                copy_files([*MODEL_FILES, "*_ad.py"], output_dir / "model", folder / BEST_FOLDER)
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
    if accelerator.is_main_process:
        # Newer ones are of a run that went on from here before, and folders without a state are not ours.
        ours = [old for old in list_checkpoints(output_dir) if _number(old) <= step and (old / STATE_FILE).is_file()]
        for old in ours[: -trainer.config.save_total_limit]:
            remove_folder(old)
    accelerator.wait_for_everyone()
    trainer.checkpoint = path
    return path


def _optimizer_states(trainer: Trainer) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """
    Whole tensors of the optimizers' states by weights' names, and their groups' settings, in the main process.

    None with DeepSpeed, whose engine keeps them.
    """
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        return {}, []
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    tensors: dict[str, torch.Tensor] = {}
    groups = []
    for index, optimizer in enumerate(trainer.optimizers):
        state: Any = get_optimizer_state_dict(model, optimizer.optimizer, options=WHOLE)
        for weight, values in state.get("state", {}).items():
            tensors |= {f"optimizer/{index}/{weight}/{name}": value for name, value in values.items()}
        groups.append(state.get("param_groups"))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, groups


def _number(path: Path) -> int:
    """The updates that the name of a checkpoint says."""
    return int(path.name.removeprefix("checkpoint-"))


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(found, key=_number)


def find_checkpoint(resume: str | Path, output_dir: Path) -> Path | None:
    """
    The checkpoint that is to be resumed.

    Args:
        resume (`str` or `Path`):
            `"latest"`, the newest one of the run if it has any; a folder; or a repository on the Hub that a run's
            checkpoints are pushed to, as `user/name` or `user/name@branch`.
        output_dir (`Path`):
            Folder of the run.

    Raises:
        FileNotFoundError: if there is no checkpoint.
    """
    if str(resume) == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    folder = local_path(resume)
    if not folder.exists() and HUB_ID.fullmatch(str(resume)):
        wanted = [f"{CHECKPOINT_FOLDER}/{name}" for name in ("*.json", "*.safetensors")]
        folder = find_repository(resume, "model").download(wanted) / CHECKPOINT_FOLDER
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"{resume} is no checkpoint: expected `latest`, a folder with {STATE_FILE} in it, or a repository on the "
            f"Hub with one in {CHECKPOINT_FOLDER}/"
        )
    return folder


class _DamagedError(ValueError):
    """A checkpoint is not whole, or not what a run writes."""


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of which file of a checkpoint an error is."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error)
        raise _DamagedError(text if str(path) in text else f"{path}: {text}") from error


def _read_checkpoint(trainer: Trainer, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[Any]]:
    """
    State, tensors, weights and best weights of a checkpoint, once all of it is known to be whole; every process does
    the same.

    Raises:
        ValueError: if the checkpoint is of another dataset, recipe, or number of processes; or damaged.
    """
    file, sharded = folder / STATE_FILE, trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
    with _damage(file):
        state = read_json(file)
        check_entry(state, {"dataset": {}, "settings": {}}, "")
    _check_same(folder, "dataset", state["dataset"], trainer.dataset_json, ignored={"name"})
    _check_same(folder, "setting", state["settings"], _settings(trainer.recipe))
    processes, places = trainer.accelerator.num_processes, state.get("batches")
    if isinstance(places, list) and len(places) not in (0, processes):
        raise ValueError(f"{folder} is of a run of {len(places)} processes, this one has {processes}")
    with _damage(file):
        check_state(trainer, state, _number(folder) if folder in list_checkpoints(folder.parent) else None, sharded)
    with _damage(folder / TENSORS_FILE):
        tensors = read_tensors(folder / TENSORS_FILE)
        check_tensors(trainer, tensors, state["step"], sharded)
    weights = []
    for model in [folder] if state["best"] is None else [folder, folder / BEST_FOLDER]:
        with _damage(model / WEIGHTS_FILE):
            for path in model.iterdir():
                if leaves_folder(path, folder):
                    raise ValueError(f"{path} is a link out of the checkpoint")
            read_json(model / CONFIG_FILE)
            weights.append(ADModel.from_pretrained(model, config=trainer.model_config).state_dict())
    return state, tensors, weights


def _other_way(trainer: Trainer, folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    for other in reversed(list_checkpoints(folder.parent)):
        if other != folder:
            try:
                _read_checkpoint(trainer, other)
            except ValueError:
                continue
            return f"go on from {other.name} with --resume {other}, or remove {folder.name}"
    return "there is no other one that is whole: train without --resume"


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
        ValueError: if the checkpoint is of another dataset, recipe, or number of processes; if it is damaged, naming
            file and entry, and the newest one that is whole.
    """
    try:
        state, tensors, weights = _read_checkpoint(trainer, folder)
    except _DamagedError as error:
        raise ValueError(f"{folder} is damaged ({error}): {_other_way(trainer, folder)}") from error
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        trainer.model.load_checkpoint(str(folder), tag=DEEPSPEED_FOLDER)
    else:
        model = accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        _set_optimizer_states(trainer, model, tensors, state["optimizers"])
        set_model_state_dict(model, weights[0], options=StateDictOptions(full_state_dict=True))
    for scheduler, saved in zip(trainer.schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    trainer.batches.load_state_dict(state["batches"][accelerator.process_index])
    trainer.unvalidated = state["unvalidated"]
    trainer.best = None if state["best"] is None else (state["best"][0], state["best"][1])
    if trainer.best is not None and accelerator.is_main_process:
        trainer.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_folder(trainer.output_dir / "model") as model_folder:  # anew, and nothing else that lies there
            trainer.save_model(model_folder, weights[-1])
    own = f"random/{accelerator.process_index}/"
    _set_random_states({name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)})
    trainer.checkpoint = folder
    return int(state["step"])


def _set_optimizer_states(trainer: Trainer, model: Any, tensors: dict[str, torch.Tensor], groups: list[Any]) -> None:
    for index, (optimizer, saved) in enumerate(zip(trainer.optimizers, groups, strict=True)):
        # JSON has no tuples, which the optimizers' settings are where they are several numbers.
        known = [
            {
                name: tuple(value) if isinstance(value, list) and name != "params" else value
                for name, value in group.items()
            }
            for group in saved
        ]
        state: dict[str, dict[str, torch.Tensor]] = {}
        prefix = f"optimizer/{index}/"
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                weight, _, value = name.removeprefix(prefix).rpartition("/")
                state.setdefault(weight, {})[value] = tensor
        whole: Any = {"state": state, "param_groups": known}
        set_optimizer_state_dict(
            model, optimizer.optimizer, optim_state_dict=whole, options=StateDictOptions(full_state_dict=True)
        )


def _check_same(
    folder: Path, what: str, before: dict[str, Any], now: dict[str, Any], ignored: set[str] | None = None
) -> None:
    for name in sorted({*before, *now} - (ignored or set())):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} cannot be resumed: {what} {name} was {before.get(name)!r}, now it is {now.get(name)!r}"
            )
