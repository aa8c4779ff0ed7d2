"""What is checked when a model is made or loaded: that it fits into memory, and that its weights are whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .checks_ad import check_fits
from .configuration_ad import ADConfig

# Names of so many tensors stand in an error.
NAMED = 5


def check_memory(config: ADConfig) -> None:
    """Refuse a model whose weights are larger than this machine's memory."""
    weights = config.weights()
    largest = max(weights, key=lambda name: weights[name])
    check_fits(4 * sum(weights.values()), f"a model with this {largest}")


def check_trusted(config: ADConfig, path: Any = None) -> None:
    """Refuse a configuration that came along with a model and can run other people's code."""
    if untrusted := getattr(config, "untrusted", None):
        name = config.name_or_path or path or "the model"
        raise ValueError(
            f"the configuration of {name} asks for what can run other people's code: {', '.join(untrusted)}; load it "
            "with trust_remote_code=True if you trust it"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing a table of weights, as an error tells what is wrong with them."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_files(path: Any) -> None:
    """Refuse a local folder in which a file of the model is a pipe, which would be waited for, or the like."""
    for pattern in ("*.json", "*.safetensors"):
        for file in Path(str(path)).glob(pattern):
            if file.exists() and not file.is_file():
                raise OSError(f"{file} is not a regular file")


@contextmanager
def damage_named(path: Any, hub: dict[str, Any]) -> Iterator[None]:
    """Turn what is raised for damaged weights into an `OSError` that names the file."""
    try:
        yield
    except Exception as error:  # of a type of safetensors' own
        folder = Path(str(path), hub.get("subfolder") or "")
        files = sorted(folder.glob("*.safetensors"))
        if not files and not folder.is_dir() and path is not None:
            found = cached_file(str(path), SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
            files = [Path(found)] if found else []
        for file in files:
            try:
                with safe_open(file, framework="pt"):
                    pass
            except Exception as damage:
                raise OSError(f"{file} is damaged: {damage}; get it again") from error
        for file in folder.glob("*.safetensors.index.json"):
            try:
                parts = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
                missing = sorted({str(part) for part in parts if not (folder / part).is_file()})
            except Exception as damage:
                raise OSError(f"{file} is damaged: it must hold a weight_map of tensors to files") from damage
            if missing:
                raise OSError(f"{file} names {', '.join(missing[:NAMED])}, which is not there") from error
        raise


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
            "ignore_mismatched_sizes=True, what does not fit is drawn at random"
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise ValueError(f"the weights in {path} are not all finite: {name} holds NaN or infinities")


__all__ = ["check_files", "check_loaded", "check_memory", "check_trusted", "damage_named", "quiet"]
