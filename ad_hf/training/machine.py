"""The machine that a run trains on: its devices, the precision that suits them, and its memory."""

from __future__ import annotations

import ctypes
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType, TorchDynamoPlugin, broadcast_object_list, parse_flag_from_env

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.embeddings_ad import element_shape
from ad_hf.model.loading_ad import check_fits
from ad_hf.training.config import TrainingConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL = 128  # rows of matrices whose product takes milliseconds on any machine
LONGEST_WAIT = timedelta(hours=6)  # of other processes, for the one that validates

logger = get_logger(__name__)


def train_on_cpu() -> bool:
    """
    Whether to have Accelerate train on the CPU. By itself it takes the processes that torchrun starts on a machine
    without accelerators for so many runs of one process, all writing to one folder.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def join_processes() -> PartialState:
    """Join the processes of this run, which a launcher may have started."""
    keep_freed_memory()
    return PartialState(cpu=train_on_cpu(), timeout=LONGEST_WAIT)


def make_accelerator(config: TrainingConfig, output_dir: Path) -> Accelerator:
    """The accelerator of a run in a folder, in the precision that the settings name or that suits the device."""
    precision = config.mixed_precision
    if precision == "auto":
        # Each process may measure another one: all take that of the first.
        precision, why = broadcast_object_list([choose_precision(PartialState(cpu=train_on_cpu()).device)])[0]
        logger.info(f"training in {precision if precision != 'no' else 'float32'} ({why})")
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


def matmul_flops(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 1024, repeats: int = 8) -> float:
    """Floating-point operations per second of square matrix products of a size and dtype."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):  # the first are slower; the best is the machine's
        start = time.perf_counter()
        torch.mm(left, right)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def choose_precision(device: torch.device) -> tuple[str, str]:
    """
    The mixed precision for a device, `"bf16"` or `"no"`, and the reason in words. CPUs are timed, since many of them
    only emulate bfloat16.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if supported else "no"), f"{torch.cuda.get_device_name(device)}, bf16 units: {supported}"
    if device.type != "cpu":
        return "no", f"float32 on {device.type}"
    half, full = (matmul_flops(dtype, size=SMALL) for dtype in (torch.bfloat16, torch.float32))
    if 4 * half > full:  # else it is emulated, and large products would take half a minute to tell
        half, full = matmul_flops(torch.bfloat16), matmul_flops(torch.float32)
    figures = f"matmul {half / 1e9:.0f} GFLOP/s in bfloat16, {full / 1e9:.0f} in float32"
    return ("bf16" if half > 1.3 * full else "no"), figures


def keep_freed_memory() -> bool:
    """
    Tell glibc to keep freed memory instead of handing large blocks back to the kernel.

    A training step on a CPU frees and takes the same few hundred megabytes over and over; by default large blocks are
    mapped anew each time, and their pages are cleared and faulted in one by one, which costs a sixth of the speed.
    Arrow uses the same allocator from then on: its own keeps what each thread that read a part of a stream has freed,
    so that a process that streams grows for an epoch, by 100 to 200 MB, and is no faster for it.

    Returns whether it could be set (elsewhere than with glibc, nothing happens).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    pa.set_memory_pool(pa.system_memory_pool())
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def check_batch_fits(config: TrainingConfig, model: ADConfig, accelerator: Accelerator) -> None:
    """Refuse, by the name of the setting, batches of which not even each block's input fits in memory."""
    windows = config.batch_size // (config.gradient_accumulation_steps * accelerator.num_processes)
    groups = model.groups.values() if model.groups else [vars(model)]
    observation, action = (
        max(int(np.prod(element_shape(group[name]))) for group in groups)
        for name in ("observation_space", "action_space")
    )
    layers = getattr(model.backbone_config or model, "num_hidden_layers", 1)
    per_step = observation + 2 * action + 5 + 2 * model.hidden_size * (layers + 1)  # of a byte, and of two
    what = f"a batch of training.batch_size {config.batch_size}, of which {windows} windows are taken at once,"
    device = accelerator.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    check_fits(windows * model.context_length * per_step, what, free)
