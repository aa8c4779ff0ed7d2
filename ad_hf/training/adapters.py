"""LoRA adapters of a model's trunk, through PEFT: a checkpoint keeps them, a saved model has them in its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers.pytorch_utils import Conv1D

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

ADAPTER, ADAPTED = ".lora_", ".base_layer"  # in the names of weights


def add_adapters(model: ADModel, rank: int) -> None:
    """
    Put adapters of a rank beside the linear maps of a model's decoder, and freeze all other weights.

    Raises:
        ImportError: without the package peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("training.trainable lora needs the package peft: pip install 'ad_hf[peft]'") from error
    maps = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.startswith(("blocks.", "backbone."))
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=maps), model)


def is_adapter(weight: str) -> bool:
    """Whether a weight, by its name, is one of an adapter."""
    return ADAPTER in weight


def merge_adapters(weights: Mapping[str, torch.Tensor], config: ADConfig, rank: int) -> dict[str, torch.Tensor]:
    """The weights of a plain model that acts as one with adapters; those of a plain model are as they are."""
    if not any(map(is_adapter, weights)):
        return dict(weights)
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.random.fork_rng(devices=()):  # what is drawn here changes nothing of the run
        model = ADModel(config)
        add_adapters(model, rank)
    model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {name.replace(ADAPTED, ""): each for name, each in model.state_dict().items() if not is_adapter(name)}
