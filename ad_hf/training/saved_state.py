"""What the state in a checkpoint must be for a run to go on from it: that which the run itself would have written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ad_hf.settings import shown

if TYPE_CHECKING:
    from ad_hf.training.trainer import Trainer

# Tensors of each optimizer's state, by whether they are of the shape of their weight, or single numbers.
OPTIMIZER_TENSORS: dict[type, dict[str, bool]] = {
    torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
    torch.optim.Muon: {"momentum_buffer": True},
}
LOGGED = ("loss", "learning_rate", "tokens_per_second")  # metrics of an update, if it has any
NOT_NEGATIVE = ("/step", "/exp_avg_sq")


@dataclass(frozen=True)
class Number:
    """An entry that may be any finite number of a range."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False

    def __repr__(self) -> str:
        bounds = "" if math.isinf(self.least) else f" from {self.least}"
        bounds += "" if math.isinf(self.most) else f" to {self.most}"
        return f"a {'whole' if self.whole else 'finite'} number{bounds}"

    def __contains__(self, value: Any) -> bool:
        kinds = int if self.whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and self.least <= value <= self.most


@dataclass(frozen=True)
class IfThere:
    """An entry that another version of a library may not have written."""

    expected: Any


def check_entry(found: Any, expected: Any, name: str) -> None:
    """
    Refuse an entry of JSON that is not what is expected.

    Args:
        found:
            The entry.
        expected:
            A [`Number`], a value, or a list or dictionary of what is expected; further entries of a dictionary may be
            anything. Floating-point numbers may differ by their last digits, as between machines.
        name (`str`):
            What to call it; empty for the whole.

    Raises:
        ValueError: naming the innermost entry that is missing or another.
    """
    if isinstance(expected, Number):
        fits = found in expected
    elif isinstance(expected, dict):
        fits = isinstance(found, dict)
        for key, inner in expected.items() if fits else ():
            where = f"{name}.{key}" if name else key
            if key in found:
                check_entry(found[key], inner.expected if isinstance(inner, IfThere) else inner, where)
            elif not isinstance(inner, IfThere):
                raise ValueError(f"{where} is missing")
    elif isinstance(expected, list):
        fits = isinstance(found, list) and len(found) == len(expected)
        for index, inner in enumerate(expected if fits else ()):
            check_entry(found[index], inner, f"{name}[{index}]")
    elif isinstance(expected, float):
        fits = found in Number() and math.isclose(found, expected, rel_tol=1e-6)
    else:
        fits = type(found) is type(expected) and found == expected
    if not fits:
        kinds: dict[type, str] = {dict: "a mapping", list: "a list"}
        if isinstance(expected, list) and isinstance(found, list):
            raise ValueError(f"{name} must have {len(expected)} entries, got {shown(found)}")
        raise ValueError(f"{name} must be {kinds.get(type(expected)) or shown(expected)}, got {shown(found)}")


@dataclass(frozen=True)
class OptimizerLayout:
    """
    What an optimizer keeps.

    Attributes:
        groups (`list[dict]`):
            Settings of its groups as JSON, `params` as names of weights.
        shapes (`dict[str, dict[str, tuple[int, ...]]]`):
            Shape of each tensor of its state, by weight and by name.
    """

    groups: list[dict[str, Any]]
    shapes: dict[str, dict[str, tuple[int, ...]]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> OptimizerLayout:
        """The layout of an optimizer of a model, both as they are before they are distributed."""
        names = {id(weight): name for name, weight in model.named_parameters()}
        groups = [
            {**group, "params": [names[id(weight)] for weight in group["params"]]} for group in optimizer.param_groups
        ]
        kinds = OPTIMIZER_TENSORS[type(optimizer)]
        shapes = {
            names[id(weight)]: {kind: tuple(weight.shape) if like_it else () for kind, like_it in kinds.items()}
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        return cls(json.loads(json.dumps(groups)), shapes)


def learning_rates(scheduler: Any, step: int) -> list[float]:
    """Learning rate of each group of a scheduler's optimizer after so many updates."""
    return [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]


def check_state(trainer: Trainer, state: dict[str, Any], number: int | None, sharded: bool) -> None:
    """
    Refuse the state of another run, and of no run at all; see [`check_entry`].

    Args:
        trainer ([`~ad_hf.training.trainer.Trainer`]):
            The run that is to go on.
        state (`dict`):
            What `training_state.json` holds.
        number (`int`, *optional*):
            The updates that the checkpoint's name says.
        sharded (`bool`):
            Whether an engine keeps the optimizers' state in files of its own.
    """
    last = trainer.config.max_steps
    check_entry(state, {"step": Number(1, last, whole=True) if number is None else number}, "")
    step = state["step"]
    groups, schedulers = [], []
    for layout, scheduler in zip(trainer.layouts, trainer.schedulers, strict=True):
        rates = learning_rates(scheduler, step)
        required = [{"lr": rate, "params": group["params"]} for group, rate in zip(layout.groups, rates, strict=True)]
        settings = [{name: IfThere(value) for name, value in group.items()} for group in layout.groups]
        groups.append([setting | must for setting, must in zip(settings, required, strict=True)])
        schedulers.append(
            {"base_lrs": scheduler.base_lrs, "last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        )
    scaler = trainer.accelerator.scaler
    best, unvalidated = state.get("best"), state.get("unvalidated")
    expected: dict[str, Any] = {
        "best": None if best is None else [Number(), Number(1, step, whole=True)],
        "unvalidated": dict.fromkeys(LOGGED if unvalidated else (), Number())
        if isinstance(unvalidated, dict)
        else None,
        "batches": [{}] * trainer.accelerator.num_processes,
        "optimizers": [] if sharded else groups,
        "schedulers": schedulers,
        "scaler": None
        if scaler is None
        else {**scaler.state_dict(), "scale": Number(1e-38), "_growth_tracker": Number(0, whole=True)},
    }
    check_entry(state, expected, "")
    for rank, place in enumerate(state["batches"]):
        trainer.batches.check_state_dict(place, rank, step * trainer.config.gradient_accumulation_steps)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a file of safetensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole file of safetensors: {error}") from error


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that has a number that is not finite."""
    found = (name for name, each in tensors.items() if each.is_floating_point() and not each.isfinite().all())
    return next(found, None)


def check_tensors(trainer: Trainer, tensors: dict[str, torch.Tensor], step: int, sharded: bool) -> None:
    """
    Refuse tensors of optimizers and random numbers that are not those of a run after so many updates.

    Raises:
        ValueError: naming a tensor that is missing, unexpected, of another shape, or has impossible numbers.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for index, layout in enumerate([] if sharded else trainer.layouts):
        for weight, shapes in layout.shapes.items():
            prefix = f"optimizer/{index}/{weight}"
            # A backbone has weights that no gradient reaches, such as its own embeddings: these have no state.
            if not weight.startswith("backbone.") or any(f"{prefix}/{kind}" in tensors for kind in shapes):
                expected |= {f"{prefix}/{kind}": shape for kind, shape in shapes.items()}
    for rank in range(trainer.accelerator.num_processes):
        expected[f"random/{rank}/cpu"] = tuple(torch.get_rng_state().shape)
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} is of shape {list(tensors[name].shape)}, expected {list(shape)}")
    for name, tensor in tensors.items():
        if name not in expected and not name.startswith("random/"):
            raise ValueError(f"{name} is unexpected")
        if name.startswith("random/") != (tensor.dtype == torch.uint8):
            raise ValueError(f"{name} holds numbers of type {tensor.dtype}")
        if name.endswith(NOT_NEGATIVE) and (tensor < 0).any():
            raise ValueError(f"{name} has numbers below 0")
        if name.endswith("/step") and tensor > step:
            raise ValueError(f"{name} is {float(tensor)}, after {step} updates")
        if name.startswith("random/") and name.endswith("/cpu"):
            try:
                torch.Generator().set_state(tensor)
            except RuntimeError as error:
                raise ValueError(f"{name} is no state of random numbers: {error}") from error
    wrong = not_finite(tensors)
    if wrong is not None:
        raise ValueError(f"{wrong} has numbers that are not finite")
