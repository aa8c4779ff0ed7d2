"""Optimizers and schedules of the learning rate."""

from __future__ import annotations

from itertools import chain, compress
from operator import not_
from typing import Any

import torch
from transformers import get_scheduler

from ad_hf.model.modeling_ad import ADModel
from ad_hf.training.config import TrainingConfig


class Float32Muon(torch.optim.Muon):
    """
    Muon whose products are in float32. Torch's own are in bfloat16, which takes longer than all else of an update on
    CPUs that emulate it.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, as [`torch.optim.Muon`] does with `adjust_lr_fn="match_rms_adamw"` and Nesterov's momentum."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, momentum = float(group["lr"]), group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad, memory_format=torch.preserve_format)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                update = weight.grad.lerp(buffer, momentum)
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update, alpha=-rate * 0.2 * max(weight.shape) ** 0.5)
        return loss


def orthogonalize(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> torch.Tensor:
    """A matrix with about the same singular vectors and singular values near 1, by steps of Newton and Schulz."""
    first, second, third = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = matrix.float().T if is_tall else matrix.float()
    result = result / result.norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=second, alpha=third), result, beta=first)
    return (result.T if is_tall else result).to(matrix.dtype)


def make_optimizers(model: ADModel, config: TrainingConfig, bfloat16: bool = True) -> list[torch.optim.Optimizer]:
    """
    The optimizers of a model's weights, but for those that are frozen: Muon for the matrices of the blocks and AdamW
    for the rest, or AdamW for all.

    Weight decay is for the matrices of linear maps alone: embeddings, norms and biases have none. Muon's step is
    scaled to the size of AdamW's, so that one learning rate serves both (https://huggingface.co/papers/2502.16982).
    Its products are in `bfloat16`, or else in float32.
    """
    embeddings = {id(table.weight) for table in model.modules() if isinstance(table, torch.nn.Embedding)}
    muon: list[torch.nn.Parameter] = []
    if config.optimizer == "muon":
        decoder: Any = model.blocks if model.blocks is not None else model.backbone
        muon = [
            weight
            for weight in chain(decoder.parameters(), [] if model.dynamics is None else model.dynamics.parameters())
            if weight.requires_grad and weight.ndim == 2 and id(weight) not in embeddings
        ]
    by_muon = {id(weight) for weight in muon}
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in by_muon]
    decays = [weight.ndim >= 2 and id(weight) not in embeddings for weight in rest]
    groups = [
        {"params": list(compress(rest, decays)), "weight_decay": config.weight_decay},
        {"params": list(compress(rest, map(not_, decays))), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        betas = config.adam_beta1, config.adam_beta2
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True))
    if muon:
        decay, rate = config.weight_decay, config.learning_rate
        kind = torch.optim.Muon if bfloat16 else Float32Muon
        optimizers.append(kind(muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def make_schedulers(optimizers: list[torch.optim.Optimizer], config: TrainingConfig) -> list[Any]:
    """
    For each optimizer, a linear rise of the learning rate and then a cosine, to be stepped once per update.

    `Accelerator.prepare` must not get them: it would step them once per process.
    """
    return [
        get_scheduler(
            "cosine_with_min_lr",
            optimizer,
            num_warmup_steps=round(config.warmup_ratio * config.max_steps),
            num_training_steps=config.max_steps,
            scheduler_specific_kwargs={"min_lr_rate": config.min_learning_rate_ratio},
        )
        for optimizer in optimizers
    ]


def learning_rate(scheduler: Any, step: int) -> float:
    """Learning rate of the first group of a scheduler's optimizer after so many updates."""
    return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)


def set_step(scheduler: Any, step: int) -> None:
    """Set a scheduler, and the learning rates of its optimizer, to where they are after so many updates."""
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step - 1, "_step_count": step})
    scheduler.step()


def named_groups(optimizers: list[torch.optim.Optimizer], model: torch.nn.Module) -> list[dict[str, Any]]:
    """The groups of all optimizers, with the names of their weights; all as before they are distributed."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = chain.from_iterable(optimizer.param_groups for optimizer in optimizers)
    return [{**group, "params": [names[id(weight)] for weight in group["params"]]} for group in groups]
