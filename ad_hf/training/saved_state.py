"""What a checkpoint must hold for a run to go on from it."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

import torch

from ad_hf.training.trainer import Trainer, not_finite

# Tensors of the optimizers' states, of the shape of their weight but for the number of steps.
ADAMW_TENSORS, MUON_TENSORS = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
LOGGED = ("loss", "learning_rate", "tokens_per_second")  # metrics of an update, if it has any


class Scale(TypedDict):
    """Of a gradient scaler."""

    scale: float
    _growth_tracker: Annotated[int, range(2**31)]


class Origin(TypedDict):
    """The model that a run started from, as far as it may not change."""

    weights_digest: str


class SavedState(TypedDict):
    """`training_state.json`; in those of earlier versions, states of optimizers and schedulers are left unread."""

    step: int
    best: list[float] | None
    unvalidated: dict[str, float] | None
    batches: list[dict[str, Any]]
    dataset: dict[str, Any]
    init_from: NotRequired[Origin | None]  # earlier versions had none
    settings: dict[str, Any]
    scaler: Scale | None


def check_state(trainer: Trainer, state: dict[str, Any], number: int | None) -> None:
    """
    Refuse a [`SavedState`] that a run would not have written after so many updates, as the checkpoint's name says.

    Raises:
        ValueError: naming the entry.
    """
    step, best, scaler = state["step"], state["best"], trainer.accelerator.scaler
    most = trainer.config.max_steps if number is None else number
    if not (1 if number is None else number) <= step <= most:
        raise ValueError(f"step must be {f'from 1 to {most}' if number is None else number}, got {step}")
    if best is not None and (len(best) != 2 or best[1] not in range(1, step + 1)):
        raise ValueError(f"best must be a return and an update from 1 to {step}, got {best}")
    for name in LOGGED:
        if state["unvalidated"] and name not in state["unvalidated"]:
            raise ValueError(f"unvalidated.{name} is missing")
    if (scaler is None) != (state["scaler"] is None) or (scaler is not None and state["scaler"]["scale"] <= 0):
        expected = "null" if scaler is None else "that of a gradient scaler, its scale above 0"
        raise ValueError(f"scaler must be {expected}, got {state['scaler']}")
    if not state["batches"]:
        raise ValueError("batches must have an entry for each process, got none")
    for rank, place in enumerate(state["batches"]):
        trainer.batches.check_state_dict(place, rank, step * trainer.config.gradient_accumulation_steps)


def _expected_shapes(
    trainer: Trainer, tensors: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of optimizers and random numbers, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        f"random/{rank}/cpu": torch.get_rng_state().shape for rank in range(trainer.accelerator.num_processes)
    }
    shapes |= {f"adapter/{name}": shape for name, shape in trainer.adapters.items()}
    if trainer.carries is not None:
        shapes |= trainer.carries.shapes(trainer.accelerator.num_processes)
    trained = {name: weight.shape for name, weight in weights.items()} | trainer.adapters
    for group in [] if trainer.with_deepspeed else trainer.groups:
        kinds = MUON_TENSORS if "momentum" in group else ADAMW_TENSORS
        for weight in group["params"]:
            own = {f"optimizer/{weight}/{kind}": () if kind == "step" else trained[weight] for kind in kinds}
            # A backbone has weights that no gradient reaches, such as its own embeddings: these have no state.
            if not weight.startswith("backbone.") or not own.keys().isdisjoint(tensors):
                shapes |= own
    return shapes


def check_tensors(
    trainer: Trainer, tensors: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], step: int
) -> None:
    """
    Refuse tensors of optimizers and random numbers that are not those of a run after so many updates.

    Raises:
        ValueError: naming a tensor that is missing, unexpected, of another shape, or has impossible numbers.
    """
    expected = _expected_shapes(trainer, tensors, weights)
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        if tensors[name].shape != shape:
            raise ValueError(f"{name} is of shape {list(tensors[name].shape)}, expected {list(shape)}")
    for name, tensor in tensors.items():
        if name not in expected and not name.startswith("random/"):
            raise ValueError(f"{name} is unexpected")
        if name.startswith("random/") != (tensor.dtype == torch.uint8):
            raise ValueError(f"{name} holds numbers of type {tensor.dtype}")
        if name.endswith(("/step", "/exp_avg_sq", "/lengths")) and (tensor < 0).any():
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
