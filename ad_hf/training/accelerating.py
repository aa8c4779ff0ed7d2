"""The accelerator of a run: which devices, and in which precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType, TorchDynamoPlugin, broadcast_object_list, parse_flag_from_env

from ad_hf.training.config import TrainingConfig
from ad_hf.training.precision import choose_precision


def train_on_cpu() -> bool:
    """
    Whether to tell Accelerate to train on the CPU. Without being told, it takes the processes that torchrun starts on
    a machine without accelerators for so many runs of one process, all writing to one folder.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def make_accelerator(config: TrainingConfig, output_dir: Path, say: Callable[[str], None]) -> Accelerator:
    """The accelerator of a run in a folder, in the precision that is asked for or that suits the device."""
    precision = config.mixed_precision
    if precision == "auto":
        # Timed by each process, it could come out differently: the first one's choice is everyone's.
        precision, why = broadcast_object_list([choose_precision(PartialState(cpu=train_on_cpu()).device)])[0]
        say(f"training in {precision if precision != 'no' else 'float32'} ({why})")
    trackers = [str(kind.value) for kind in LoggerType]
    if config.log_with is not None and config.log_with not in trackers:
        raise ValueError(f"training.log_with must be one of {', '.join(trackers)}, got {config.log_with!r}")
    # Accelerate keeps a process's first precision for ever; a second run in it may choose another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=train_on_cpu(),
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.log_with,
        project_dir=str(output_dir),
        dynamo_plugin=TorchDynamoPlugin(backend="inductor") if config.torch_compile else None,
    )
    if config.log_with is not None and not accelerator.log_with:
        raise ValueError(
            f"training.log_with: {config.log_with} is not installed: install it, as with `pip install "
            "'ad_hf[tensorboard]'` (wandb, trackio), or leave the setting out"
        )
    return accelerator
