"""What fits in memory, told before it is asked for: an allocator's error names no setting."""

from __future__ import annotations

import copy
import math

import numpy as np
import psutil
import torch

from ad_hf.model import ADConfig, ADModel
from ad_hf.model.checks_ad import element_shape


def available_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_fits(what: str, num_bytes: float, device: torch.device | None = None) -> None:
    """
    Refuse what takes more memory than there is.

    Args:
        what (`str`):
            What it is, with the settings that it depends on.
        num_bytes (`float`):
            What it takes at least.
        device (`torch.device`, *optional*):
            Where; by default in the machine's own memory.

    Raises:
        ValueError: if that is not free.
    """
    free = available_memory(device or torch.device("cpu"))
    if num_bytes > free:
        takes = f"{num_bytes / 1e9:,.1f} GB" if math.isfinite(num_bytes) else "what 64 bits do not count"
        raise ValueError(f"{what} takes at least {takes} of memory, {free / 1e9:,.1f} GB are free: make it smaller")


def model_bytes(config: ADConfig) -> float:
    """Bytes of the weights of a model of this package's own blocks, without making them; infinite, beyond 64 bits."""
    if config.backbone_config is not None:
        return 0

    def of_layers(number: int) -> int:
        sized = copy.deepcopy(config)
        sized.num_hidden_layers, sized._attn_implementation = number, "eager"  # others may have to be downloaded
        with torch.device("meta"):
            model = ADModel(sized)
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())

    try:
        one, two = of_layers(1), of_layers(2)
    except (OverflowError, RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        return math.inf
    return one + (config.num_hidden_layers - 1) * (two - one)


def check_model_fits(config: ADConfig, where: str = "", section: str = "") -> None:
    """Refuse a model that does not fit in memory, with its sizes, each of which is called by a section's name."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size")
    sizes = ", ".join(f"{section}{name} {getattr(config, name)}" for name in names)
    check_fits(f"{where}a model of {sizes}", model_bytes(config))


def check_batch_fits(what: str, config: ADConfig, num_windows: int, device: torch.device) -> None:
    """
    Refuse a batch of which not even each block's input fits in memory.

    Args:
        what (`str`):
            What to call it.
        config ([`ADConfig`]):
            Of the model that is trained on it.
        num_windows (`int`):
            Windows of `context_length` steps.
        device (`torch.device`):
            Where.

    Raises:
        ValueError: if it does not fit.
    """
    spaces = (config.observation_space or {}, config.action_space or {})
    observation, action = (int(np.prod(element_shape(space))) for space in spaces)
    layers = getattr(config.backbone_config or config, "num_hidden_layers", 1)
    per_step = observation + 2 * action + 5 + 2 * config.hidden_size * (layers + 1)  # of a byte, and of two
    check_fits(what, num_windows * config.context_length * per_step, device)
