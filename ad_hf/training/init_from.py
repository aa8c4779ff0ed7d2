"""Training from the weights of another model: what is taken of them, and which weights are trained."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate.logging import get_logger

from ad_hf.hub.model_files import weights_digest
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.training.config import TrainingConfig

TRUNK = "trunk"
# Settings that the trunk's weights mean nothing without.
TRUNK_SETTINGS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rope_theta", "layer_norm_eps"),
)

logger = get_logger(__name__)


def part_of(weight: str) -> str:
    """The part of a model that a weight belongs to, by its name: an embedding of one input, the head, or the trunk."""
    module, *inner = weight.split(".")
    if module in ("embedding", "embeddings"):
        return ".".join([module, *inner[: 1 + (module == "embeddings")]])
    return module if module == "head" else f"heads.{inner[0]}" if module == "heads" else TRUNK


def fit_config(config: ADConfig, base: ADModel, name: str) -> None:
    """
    Let a model's configuration normalise observations as another model does, if it sees the same space.

    Raises:
        ValueError: if the other model, of that name, has another trunk; with the settings to change.
    """
    own, theirs = (_trunk_settings(each) for each in (config, base.config))
    if own.keys() != theirs.keys() or own.get("backbone_config") != theirs.get("backbone_config"):
        raise ValueError(
            f"training.init_from: {name} has another decoder than the recipe's model: set model.backbone_config to "
            f"that of its config.json, which is {theirs.get('backbone_config', {}).get('model_type')}"
        )
    if others := [f"--model.{each} {value}" for each, value in theirs.items() if own[each] != value]:
        raise ValueError(
            f"training.init_from: {name} is of other sizes than the recipe's model: set {' '.join(others)}"
        )
    if config.observation_space == base.config.observation_space:
        config.observation_mean = base.config.observation_mean
        config.observation_scale = base.config.observation_scale


def _trunk_settings(config: ADConfig) -> dict[str, Any]:
    if config.backbone_config is None:
        return {name: getattr(config, name) for name in TRUNK_SETTINGS}
    return {"backbone_config": config.backbone_config.to_diff_dict()}  # type: ignore[union-attr]


def _parts(model: ADModel) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each part of a model, by name."""
    parts: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, weight in model.state_dict().items():
        parts[part_of(name)][name] = weight
    return parts


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


@torch.no_grad()
def take_weights(model: ADModel, base: ADModel) -> tuple[list[str], list[str]]:
    """
    Copy the parts of another model whose weights have the names and shapes of the model's own.

    Returns the names of the parts that were taken, and of those that are new: they keep the weights that they have.
    """
    own, theirs = _parts(model), _parts(base)
    taken = [part for part, weights in own.items() if _shapes(weights) == _shapes(theirs.get(part, {}))]
    for part in taken:
        for name, weight in own[part].items():
            weight.copy_(theirs[part][name])
    return taken, [part for part in own if part not in taken]


def start_from(model: ADModel, base: ADModel, origin: dict[str, Any], config: TrainingConfig) -> dict[str, Any]:
    """
    Let a model start from the weights of another one, and freeze those that are not to be trained.

    Args:
        model ([`ADModel`]):
            The model to train, which [`fit_config`] has passed.
        base ([`ADModel`]):
            The model to start from.
        origin (`dict`):
            Its name and revision, from [`~ad_hf.hub.models.load_model`].
        config ([`TrainingConfig`]):
            Says which weights are trained.

    Returns:
        `dict`: the entry of the run's files: name, revision, digest of the weights, parts that were taken, new parts.

    Raises:
        ValueError: if nothing would be trained.
    """
    taken, new = take_weights(model, base)
    name = origin["name"] if origin["revision"] is None else f"{origin['name']}@{origin['revision']}"
    logger.info(f"weights from {name}: {', '.join(taken)}; new: {', '.join(new) or 'nothing'}")
    if config.trainable == "new":
        if not new:
            raise ValueError(
                f"training.trainable is new, and every part of the model is taken from {name}: nothing would be "
                "trained; set it to all or lora"
            )
        for weight, values in model.named_parameters():
            values.requires_grad_(part_of(weight) in new)
    return {**origin, "weights_digest": weights_digest(base), "taken": taken, "new": new}
