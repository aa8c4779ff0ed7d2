"""Memory: the allocator's part in the speed of training, and batches that do not fit."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pyarrow as pa
import torch

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.embeddings_ad import element_shape
from ad_hf.model.loading_ad import check_fits
from ad_hf.training.config import TrainingConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """
    Tell glibc to keep freed memory instead of handing large blocks back to the kernel.

    A training step on a CPU frees and takes the same few hundred megabytes over and over; by default large blocks are
    mapped anew each time, and their pages are cleared and faulted in one by one, which costs a sixth of the speed.
    Arrow is told to use the same allocator: its own keeps what each thread that read a part of a stream has freed,
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


def check_batch_fits(config: TrainingConfig, model: ADConfig, num_processes: int, device: torch.device) -> None:
    """
    Refuse batches of which not even each block's input fits in memory.

    Args:
        config ([`TrainingConfig`]):
            Whose batches they are.
        model ([`~ad_hf.ADConfig`]):
            Of the model that is trained on them.
        num_processes (`int`):
            Processes that share a batch.
        device (`torch.device`):
            Where this one's part is.

    Raises:
        ValueError: naming the setting, with the bytes.
    """
    windows = config.batch_size // (config.gradient_accumulation_steps * num_processes)
    spaces = (model.observation_space or {}, model.action_space or {})
    observation, action = (int(np.prod(element_shape(space))) for space in spaces)
    layers = getattr(model.backbone_config or model, "num_hidden_layers", 1)
    per_step = observation + 2 * action + 5 + 2 * model.hidden_size * (layers + 1)  # of a byte, and of two
    what = f"a batch of training.batch_size {config.batch_size}, of which {windows} windows are taken at once,"
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    check_fits(windows * model.context_length * per_step, what, free)
