"""
Checkpoints: all that a run needs in order to go on as if it had not been interrupted.

A checkpoint is a folder that `from_pretrained` loads, too: the model as it was, beside the tensors of optimizers and
random numbers (`training.safetensors`), everything else (`training_state.json`), and the model that did best so far
(`best/`). It holds no pickle, so that it may be pushed and resumed elsewhere. Weights and optimizer states are stored
whole under the weights' names, however they are sharded in memory. Only DeepSpeed's engine writes files of its own,
pickles, which stay on the machine (`deepspeed/`).
"""

from __future__ import annotations

import json
import re
from collections import ChainMap, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ad_hf.hub.model_files import BEST_FOLDER, CONFIG_FILE, MODEL_FILES, STATE_FILE, TENSORS_FILE, WEIGHTS_FILE
from ad_hf.model.modeling_ad import ADModel
from ad_hf.settings import read_json
from ad_hf.storage.files import atomic_folder, copy_files, leaves_folder, remove_folder
from ad_hf.structure import check_structure
from ad_hf.training.adapters import is_adapter
from ad_hf.training.optimizers import set_step
from ad_hf.training.run_folder import checkpoint_step, find_checkpoint, list_checkpoints
from ad_hf.training.saved_state import SavedState, Scale, check_state, check_tensors
from ad_hf.training.trainer import WHOLE, Trainer

DEEPSPEED_FOLDER = "deepspeed"
FROM_WHOLE = StateDictOptions(full_state_dict=True)
BESIDE = StateDictOptions(full_state_dict=True, strict=False)
# Settings that change none of the updates: a run may go on with others.
FREE_SETTINGS = {
    *("training.logging_steps", "training.log_with", "training.save_steps", "training.save_total_limit"),
    *("data.keep_in_memory", "training.init_from"),  # the weights of init_from have to be the same, not its name
}


def _settings(sections: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide how a run goes on, as JSON keeps them."""
    flat = {f"{section}.{name}": value for section, each in sections.items() for name, value in asdict(each).items()}
    return json.loads(json.dumps({name: value for name, value in flat.items() if name not in FREE_SETTINGS}))


def _random_modules() -> dict[str, Any]:
    """The modules of torch that hold states of random numbers, by kind of device."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return {"cpu": torch} if device is None else {"cpu": torch, device.type: torch.get_device_module(device)}


@contextmanager
def _explained(path: Path, output_dir: Path) -> Iterator[None]:
    """Name the last good checkpoint in the error of one that cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        last = find_checkpoint("latest", output_dir)
        good = "no checkpoint was written before" if last is None else f"the last good one is {last}"
        raise OSError(
            f"{path} could not be written ({error}); {good}: make room, or see to the permissions of {output_dir}, "
            "then go on with --resume latest"
        ) from error


def save_checkpoint(trainer: Trainer, step: int) -> Path:
    """
    Write `checkpoint-STEP/` of a run, whole or not at all, and drop the oldest ones. Every process must call this.

    Raises:
        OSError: if it cannot be written, with the last good one.
        TrainingDivergedError: if weights are not finite; then no checkpoint is written.
    """
    accelerator, output_dir = trainer.accelerator, trainer.output_dir
    path = output_dir / f"checkpoint-{step}"
    state = {
        "step": step,
        "best": trainer.best,
        "unvalidated": trainer.unvalidated,
        "batches": gather_object([trainer.batches.state_dict()]),
        "dataset": trainer.dataset_json,
        "init_from": trainer.origin,
        "settings": _settings(trainer.sections),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }
    own = f"random/{accelerator.process_index}"
    random = gather_object([{f"{own}/{kind}": each.get_rng_state() for kind, each in _random_modules().items()}])
    carried = [] if trainer.carries is None else gather_object([trainer.carries.state_dict(accelerator.process_index)])
    weights, tensors = trainer.gather_weights(step), _optimizer_tensors(trainer)
    with _explained(path, output_dir), atomic_folder(path) if accelerator.is_main_process else nullcontext() as folder:
        if trainer.with_deepspeed:  # each process writes its part
            trainer.model.save_checkpoint(broadcast_object_list([str(folder)])[0], tag=DEEPSPEED_FOLDER)
            accelerator.wait_for_everyone()
        if folder is not None:
            trainer.save_model(folder, weights)
            adapters = {f"adapter/{name}": each for name, each in weights.items() if is_adapter(name)}
            save_file(dict(ChainMap(tensors, adapters, *random, *carried)), folder / TENSORS_FILE)
            if trainer.best is not None:
                copy_files([*MODEL_FILES, "*_ad.py"], output_dir / "model", folder / BEST_FOLDER)
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
    if accelerator.is_main_process:
        # Newer ones are of a run that went on from here before, and folders without a state are not ours.
        ours = [old for old in list_checkpoints(output_dir, step) if (old / STATE_FILE).is_file()]
        for old in ours[: -trainer.config.save_total_limit]:
            remove_folder(old)
    accelerator.wait_for_everyone()
    trainer.checkpoint = path
    return path


def _optimizer_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Whole tensors of the optimizers' states, in the main process; none with DeepSpeed, whose engine keeps them."""
    if trainer.with_deepspeed:
        return {}
    states: Any = get_optimizer_state_dict(trainer.plain_model, trainer.plain_optimizers, options=WHOLE)
    return {
        f"optimizer/{weight}/{name}": value.contiguous()
        for weight, values in states.get("state", {}).items()
        for name, value in values.items()
    }


class _DamagedError(ValueError):
    """A checkpoint is not whole, or not what a run writes."""


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file of a checkpoint that an error is about."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        text = str(error)
        raise _DamagedError(text if str(path) in text else f"{path}: {text}") from error


def _read_checkpoint(trainer: Trainer, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[Any]]:
    """
    State, tensors, weights and best weights of a checkpoint, all of it checked; every process does the same.

    Raises:
        ValueError: if the checkpoint is of another dataset, recipe, or number of processes; or damaged.
    """
    file = folder / STATE_FILE
    with _damage(file):
        state = read_json(file)
        check_structure(state, SavedState, str(file))
    _check_same(folder, "dataset", _unnamed(state["dataset"]), _unnamed(trainer.dataset_json))
    _check_same(folder, "the model of", _origin(state.get("init_from")), _origin(trainer.origin))
    defaults = _settings({name: type(section)() for name, section in trainer.sections.items()})
    _check_same(folder, "setting", {**defaults, **state["settings"]}, _settings(trainer.sections))
    processes = trainer.accelerator.num_processes
    if len(state["batches"]) not in (0, processes):
        raise ValueError(f"{folder} is of a run of {len(state['batches'])} processes, this one has {processes}")
    with _damage(file):
        check_state(trainer, state, checkpoint_step(folder) if folder in list_checkpoints(folder.parent) else None)
    with _damage(folder / TENSORS_FILE):
        tensors = load_file(folder / TENSORS_FILE)
        for name in list(tensors):  # earlier versions numbered the optimizers
            tensors[re.sub("^optimizer/[0-9]+/", "optimizer/", name)] = tensors.pop(name)
    weights = []
    for model in [folder] if state["best"] is None else [folder, folder / BEST_FOLDER]:
        with _damage(model / WEIGHTS_FILE):
            for path in model.iterdir():
                if leaves_folder(path, folder):
                    raise ValueError(f"{path} is a link out of the checkpoint")
            read_json(model / CONFIG_FILE)
            weights.append(ADModel.from_pretrained(model, config=trainer.model_config).state_dict())
    with _damage(folder / TENSORS_FILE):
        check_tensors(trainer, tensors, weights[0], state["step"])
    return state, tensors, weights


def _unnamed(dataset: dict[str, Any]) -> dict[str, Any]:
    """What is said of a dataset, or of several, without the places that they are at."""
    return {
        name: _unnamed(value) if isinstance(value, dict) else value
        for name, value in dataset.items()
        if name != "name"
    }


def _origin(init_from: dict[str, Any] | None) -> dict[str, Any]:
    """What may not change in the model that a run starts from."""
    return {} if init_from is None else {"training.init_from": init_from["weights_digest"]}


def _check_same(folder: Path, what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} cannot be resumed: {what} {name} was {before.get(name)!r}, now it is {now.get(name)!r}"
            )


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
    Set a run to where a checkpoint was saved, and return the updates done. Every process must call this.

    Raises:
        ValueError: if the checkpoint is of another dataset, recipe, or number of processes; if it is damaged, naming
            file and entry, and the newest one that is whole.
    """
    try:
        state, tensors, weights = _read_checkpoint(trainer, folder)
    except _DamagedError as error:
        raise ValueError(f"{folder} is damaged ({error}): {_other_way(trainer, folder)}") from error
    accelerator = trainer.accelerator
    if trainer.with_deepspeed:
        trainer.model.load_checkpoint(str(folder), tag=DEEPSPEED_FOLDER)
    else:
        _set_optimizer_tensors(trainer, tensors)
        # Weights beside adapters are frozen, and those that the run started from; the checkpoint's have these added.
        own = trainer.plain_model.state_dict().keys()
        whole = weights[0] | {name: tensors[f"adapter/{name}"] for name in trainer.adapters}
        whole = {name: each for name, each in whole.items() if name in own}
        set_model_state_dict(trainer.plain_model, whole, options=FROM_WHOLE if not trainer.adapters else BESIDE)
    for scheduler in trainer.schedulers:
        set_step(scheduler, state["step"])
    if accelerator.scaler is not None:
        scale = {name: state["scaler"][name] for name in Scale.__annotations__}
        accelerator.scaler.load_state_dict({**accelerator.scaler.state_dict(), **scale})
    trainer.batches.load_state_dict(state["batches"][accelerator.process_index])
    if trainer.carries is not None:
        trainer.carries.load_state_dict(tensors, accelerator.process_index)
    trainer.unvalidated, trainer.checkpoint = state["unvalidated"], folder
    trainer.best = None if state["best"] is None else tuple(state["best"])
    if trainer.best is not None and accelerator.is_main_process:
        trainer.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_folder(trainer.output_dir / "model") as model_folder:  # anew, and nothing else that lies there
            trainer.save_model(model_folder, weights[-1])
    for kind, module in _random_modules().items():
        if (name := f"random/{accelerator.process_index}/{kind}") in tensors:
            module.set_rng_state(tensors[name])
    return state["step"]


def _set_optimizer_tensors(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> None:
    """The optimizers' states from whole tensors. Their settings are those of this run, which are the same."""
    states: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, weight, kind = name.split("/")
            states[weight][kind] = tensor
    whole: Any = {"state": states, "param_groups": trainer.groups}
    set_optimizer_state_dict(trainer.plain_model, trainer.plain_optimizers, optim_state_dict=whole, options=FROM_WHOLE)
