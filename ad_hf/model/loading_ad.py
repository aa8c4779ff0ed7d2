"""Checks of a model that is made or loaded: that it fits into memory, is trusted, and has whole weights of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import safe_open

from .configuration_ad import ADConfig, read_json

# Tensors that an error names at most.
NAMED = 5


def check_fits(size: int, what: str, available: int | None = None) -> None:
    """Refuse something that takes more bytes than are available, by default all memory, where the system tells."""
    if available is None and hasattr(os, "sysconf"):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if available is not None and size > available:
        raise ValueError(f"{what} would take {size:,} bytes, and this machine has {available:,}: make it smaller")


def check_memory(config: ADConfig) -> None:
    """Refuse a model whose weights are larger than this machine's memory."""
    weights = config.weights()
    check_fits(4 * sum(weights.values()), f"a model with this {max(weights, key=lambda name: weights[name])}")


def check_trusted(config: ADConfig, path: Any = None) -> None:
    """Refuse a configuration that came along with a model and can run other people's code."""
    if untrusted := getattr(config, "untrusted", None):
        name = config.name_or_path or path or "the model"
        raise ValueError(
            f"the configuration of {name} can run other people's code by {', '.join(untrusted)}; load it with "
            "trust_remote_code=True if you trust it"
        )


def check_files(path: Any, subfolder: str) -> None:
    """Refuse files of a local folder that are damaged, or pipes, which would be waited for, or the like."""
    folder = Path(str(path), subfolder)
    for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("model*.safetensors"))]:
        if file.exists() and not file.is_file():
            raise OSError(f"{file} is not a regular file")
        if file.name.endswith(".index.json") and not isinstance(read_json(file).get("weight_map"), dict):
            raise OSError(f"{file} is damaged: it must hold a weight_map of tensors to files")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except Exception as error:  # of a type of safetensors' own
                raise OSError(f"{file} is damaged: {error}; get it again") from error


def check_loaded(path: Any, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse weights that are not those of the model, or not finite: a `ValueError` that names tensors."""
    faults = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    faults += [f"{name} is none of the model's" for name in sorted(info["unexpected_keys"])]
    faults += [
        f"{name} has shape {tuple(saved)}, the model's has {tuple(expected)}"
        for name, saved, expected in sorted(info["mismatched_keys"])
    ]
    faults += sorted(str(name) for name in info.get("error_msgs") or ())
    if faults:
        more = f", and {len(faults) - NAMED} more" * (len(faults) > NAMED)
        raise ValueError(
            f"the weights in {path} are not those of its config.json: {'; '.join(faults[:NAMED])}{more}; with "
            "ignore_mismatched_sizes=True, tensors that do not fit are drawn at random"
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise ValueError(f"the weights in {path} are not all finite: {name} holds NaN or infinities")


__all__ = ["check_files", "check_fits", "check_loaded", "check_memory", "check_trusted"]
