"""Training from the weights of another model: what is taken of them, and which weights are trained."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate.logging import get_logger

from ad_hf.hub.model_files import weights_digest
from ad_hf.model.configuration_ad import NORMALIZATION, SPACES, ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.training.adapters import add_adapters, is_adapter
from ad_hf.training.config import TrainingConfig

TRUNK, DYNAMICS = "trunk", "dynamics"
# Settings that the trunk's weights mean nothing without.
TRUNK_SETTINGS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rope_theta", "layer_norm_eps"),
)
OF_OBSERVATIONS = NORMALIZATION[1:]  # rewards keep the scale of the new histories
Weights = dict[str, torch.Tensor]

logger = get_logger(__name__)


def _place(weight: str) -> tuple[str, str, str]:
    """The group and the part of a model that a weight belongs to, by its name, and what is left of the name."""
    module, *inner = weight.split(".")
    if module == DYNAMICS:
        return "", DYNAMICS, ".".join(inner)
    if module not in ("embedding", "embeddings", "head", "heads"):
        return "", TRUNK, weight
    group = inner.pop(0) if module in ("embeddings", "heads") else ""
    part = f"embedding.{inner.pop(0)}" if module.startswith("embedding") else "head"
    return group, part, ".".join(inner)


def part_of(weight: str) -> str:
    """The part of a model that a weight belongs to: the trunk, a head, the dynamics heads, or an input's embedding."""
    group, part, _ = _place(weight)
    return f"{group}.{part}" if group else part


def _groups(config: ADConfig) -> dict[str, dict[str, Any]]:
    """The groups of spaces of a model, of which one without `groups` has a single one."""
    if config.groups is not None:
        return config.groups
    return {"": {each: getattr(config, each) for each in (*SPACES, *OF_OBSERVATIONS)}}


def fit_config(config: ADConfig, base: ADConfig, name: str) -> None:
    """
    Let a model's configuration normalise observations as another model does, where it sees the same space.

    Raises:
        ValueError: if the other model, of that name, has another trunk; with the settings to change.
    """
    own, theirs = (_trunk_settings(each) for each in (config, base))
    if own.get("backbone_config") != theirs.get("backbone_config"):
        raise ValueError(
            f"training.init_from: {name} has another decoder than the recipe's model: set model.backbone_config to "
            f"that of its config.json, {theirs.get('backbone_config', {}).get('model_type', 'which has none')}"
        )
    if others := " ".join(f"--model.{each} {value}" for each, value in theirs.items() if own[each] != value):
        raise ValueError(f"training.init_from: {name} is of other sizes than the recipe's model: set {others}")
    for group, settings in _groups(config).items():
        same = {key: each for key, each in _groups(base).items() if each[SPACES[0]] == settings[SPACES[0]]}
        sources = [same[group]] if group in same else list(same.values())
        own, *found = ({name: each.get(name) for name in OF_OBSERVATIONS} for each in (settings, *sources))
        # Several groups of the space may differ in it.
        if found and own != found[0] and all(each == found[0] for each in found):
            settings.update(found[0])
            if config.groups is None:
                config.observation_mean, config.observation_scale = found[0].values()


def _trunk_settings(config: ADConfig) -> dict[str, Any]:
    if config.backbone_config is None:
        return {name: getattr(config, name) for name in TRUNK_SETTINGS}
    return {"backbone_config": config.backbone_config.to_diff_dict()}  # type: ignore[union-attr]


def _parts(model: ADModel) -> dict[str, dict[str, Weights]]:
    """The weights of each part of each group of a model, by what their names end with; the trunk is of group ""."""
    parts: Any = defaultdict(lambda: defaultdict(dict))
    for name, weight in model.state_dict().items():
        group, part, ending = _place(name)
        parts[group][part][ending] = weight
    return parts


def _fits(own: Weights, theirs: Weights) -> bool:
    return {name: weight.shape for name, weight in own.items()} == {name: each.shape for name, each in theirs.items()}


def _spaces(config: ADConfig, group: str) -> list[Any]:
    return [_groups(config).get(group, {}).get(each) for each in SPACES]


@torch.no_grad()
def take_weights(model: ADModel, base: ADModel) -> tuple[list[str], list[str]]:
    """
    Copy the parts of another model whose weights have the names and shapes of the model's own.

    A group takes embeddings and head from the other model's group of the same spaces; where there is none, or its part
    is of another shape, from the group that most of its parts fit.

    Returns the names of the parts that were taken, and of those that are new: they keep the weights that they have.
    """
    theirs = _parts(base)
    taken: list[str] = []
    new: list[str] = []
    for group, parts in _parts(model).items():
        nearness = {
            each: (
                _spaces(base.config, each) == _spaces(model.config, group),
                sum(_fits(weights, others.get(part, {})) for part, weights in parts.items()),
                each == group,
            )
            for each, others in theirs.items()
        }
        sources = [theirs[each] for each in sorted(nearness, key=nearness.__getitem__, reverse=True)]
        for part, weights in parts.items():
            source = next((each[part] for each in sources if _fits(weights, each.get(part, {}))), None)
            (new if source is None else taken).append(f"{group}.{part}" if group else part)
            for ending, weight in (source or {}).items():
                weights[ending].copy_(weight)
    return taken, new


def start_from(model: ADModel, base: ADModel, origin: dict[str, Any], config: TrainingConfig) -> dict[str, Any]:
    """
    Let a model start from the weights of another one, and freeze those that are not to be trained.

    Args:
        model ([`ADModel`]):
            The model to train, whose configuration [`fit_config`] has passed.
        base ([`ADModel`]):
            The model to start from.
        origin (`dict`):
            Its name and revision, from [`~ad_hf.hub.models.load_model`].
        config ([`TrainingConfig`]):
            Says which weights are trained.

    Returns:
        `dict`: the entry of the run's files: name, revision, digest of the weights, parts that were taken, new parts.

    Raises:
        ImportError: for adapters without the package peft.
        ValueError: if nothing would be trained.
    """
    taken, new = take_weights(model, base)
    name = origin["name"] if origin["revision"] is None else f"{origin['name']}@{origin['revision']}"
    logger.info(f"weights from {name}: {', '.join(taken)}; new: {', '.join(new) or 'nothing'}")
    if config.trainable == "new" and not new:
        raise ValueError(
            f"training.trainable is new, and every part of the model is taken from {name}: nothing would be trained; "
            "set it to all or lora"
        )
    if config.trainable == "lora":
        add_adapters(model, config.lora_rank)
    if config.trainable != "all":
        for weight, values in model.named_parameters():
            values.requires_grad_(is_adapter(weight) or part_of(weight) in new)
    return {**origin, "weights_digest": weights_digest(base), "taken": taken, "new": new}
