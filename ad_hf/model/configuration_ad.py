"""Configuration of Algorithm Distillation models."""

# Annotations are not postponed here: `strict` checks values against types, not against their names.
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

SPACE_FIELDS = {
    "Discrete": {"n"},
    "MultiDiscrete": {"nvec"},
    "MultiBinary": {"n"},
    "Box": {"shape", "low", "high", "dtype"},
}


def _check_space(name: str, space: dict[str, Any]) -> None:
    kind = space.get("type") if isinstance(space, dict) else None
    if kind not in SPACE_FIELDS or not SPACE_FIELDS[kind] <= set(space):
        raise ValueError(
            f"{name} must be a space as JSON, such as {{'type': 'Discrete', 'n': 5}}, with a type of "
            f"{', '.join(SPACE_FIELDS)}; got {space!r}"
        )


@strict
class ADConfig(PreTrainedConfig):
    r"""
    Configuration of an [`ADModel`], a causal transformer that continues learning histories
    (https://huggingface.co/papers/2210.14215).

    Args:
        observation_space (`dict`):
            Observation space of one environment as JSON: `{"type": "Discrete", "n"}`, `{"type": "MultiDiscrete",
            "nvec"}`, `{"type": "MultiBinary", "n"}` or `{"type": "Box", "shape", "low", "high", "dtype"}`.
        action_space (`dict`):
            Action space of one environment: Discrete, MultiDiscrete or a bounded Box of one dimension.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Number of transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 2):
            Attention heads of each block. Few wide heads are faster on CPUs.
        intermediate_size (`int`, *optional*, defaults to 512):
            Width of the blocks' feed-forward layers.
        context_length (`int`, *optional*, defaults to 200):
            Steps that the model sees, in training and at rollout.
        sliding_window (`int`, *optional*):
            Steps that each block attends to, the current one included; all of the context by default. With it a
            rollout forgets step by step and never encodes a step twice, at a cost that does not depend on the context.
        rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary position embedding.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer normalisations.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        dropout, attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the residual branches and on the attention weights (paper: 0.1 and 0.5).
        input_mask_probability (`float`, *optional*, defaults to 0.0):
            Probability that a step's token is blanked in training (paper: 0.3).
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the loss (paper: 0.2 on Dark Room Hard).
        observation_mean, observation_std (`list[float]`, *optional*):
            Statistics with which Box vectors are normalised, one number per dimension.
        reward_scale (`float`, *optional*, defaults to 1.0):
            Rewards are divided by it.
        action_distribution (`str`, *optional*, defaults to `"bins"`):
            Distribution of Box actions. `"mixture"` is a mixture of Gaussians, clipped to the bounds; `"bins"` divides
            each dimension into bins, independent of those of the other dimensions.
        num_action_components (`int`, *optional*, defaults to 8):
            Gaussians of a mixture.
        num_action_bins (`int`, *optional*, defaults to 21):
            Bins into which each dimension of a Box action is divided, at least 2; the outer ones stand for the bounds.
        image_channels (`list[int]`, *optional*, defaults to `[32, 64]`):
            Channels of the layers that encode an image: a linear map of patches of 4 x 4 pixels, and convolutions each
            of which halves height and width.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration, with its `model_type`, of a decoder of transformers that takes `inputs_embeds`, to use in
            place of this package's own blocks.

    Raises:
        StrictDataclassError (of `huggingface_hub`): for values of a wrong type, spaces that are none, and numbers that
            do not fit together.
    """

    model_type = "ad"

    observation_space: dict | None = None
    action_space: dict | None = None
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 2
    intermediate_size: int = 512
    context_length: int = 200
    sliding_window: int | None = None
    rope_theta: float | int = 10000.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    input_mask_probability: float | int = 0.0
    label_smoothing: float | int = 0.0
    observation_mean: list | None = None
    observation_std: list | None = None
    reward_scale: float | int = 1.0
    action_distribution: Literal["bins", "mixture"] = "bins"
    num_action_components: int = 8
    num_action_bins: int = 21
    image_channels: list[int] = field(default_factory=lambda: [32, 64])
    backbone_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            from transformers import CONFIG_MAPPING

            kind = self.backbone_config.get("model_type")
            if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config needs the model_type of a transformers model, got {kind!r}")
            self.backbone_config = CONFIG_MAPPING[kind](**self.backbone_config)
        if isinstance(self.backbone_config, PreTrainedConfig):
            self.hidden_size = self.backbone_config.hidden_size
        super().__post_init__(**kwargs)

    def validate_spaces(self):
        """Part of the strict validation: spaces are known, bounded where actions are continuous."""
        if self.observation_space is None and self.action_space is None:
            return  # transformers compares every configuration with one made without arguments
        observation, action = self.observation_space or {}, self.action_space or {}
        _check_space("observation_space", observation)
        _check_space("action_space", action)
        if action["type"] == "Box" and (len(action["shape"]) != 1 or None in action["low"] + action["high"]):
            raise ValueError(f"a Box action_space must have one dimension and finite bounds, got {action!r}")
        if action["type"] == "Box" and any(low >= high for low, high in zip(action["low"], action["high"])):
            raise ValueError(f"a Box action_space must have lower bounds below its upper ones, got {action!r}")
        if action["type"] == "MultiBinary":
            raise ValueError(f"write a MultiBinary action_space as MultiDiscrete with an nvec of twos, got {action!r}")

    def validate_architecture(self):
        """Part of the strict validation: sizes fit together."""
        if self.num_attention_heads < 1:
            raise ValueError(f"num_attention_heads must be at least 1, got {self.num_attention_heads}")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        for name in ("num_hidden_layers", "intermediate_size", "context_length", "num_action_components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_action_bins < 2:
            raise ValueError(f"num_action_bins must be at least 2, got {self.num_action_bins}")
        if not self.image_channels or min(self.image_channels) < 1:
            raise ValueError(f"image_channels must be numbers of at least 1, at least one, got {self.image_channels}")
        continuous = (self.action_space or {}).get("type") == "Box" and self.action_distribution == "mixture"
        if continuous and self.label_smoothing:
            raise ValueError(
                "label_smoothing mixes categories, of which a mixture has none: set it to 0, or action_distribution "
                "to 'bins'"
            )
        if self.sliding_window is not None:
            if self.backbone_config is not None:
                raise ValueError("sliding_window is of this package's own blocks: set that of backbone_config instead")
            if not 1 <= self.sliding_window <= self.context_length:
                raise ValueError(
                    f"sliding_window must be from 1 to context_length ({self.context_length}), got "
                    f"{self.sliding_window}"
                )
        if not self.reward_scale > 0:
            raise ValueError(f"reward_scale must be positive, got {self.reward_scale}")
        for name in ("observation_mean", "observation_std"):
            values = getattr(self, name)
            if values is not None and [len(values)] != list((self.observation_space or {}).get("shape", [])):
                raise ValueError(f"{name} must hold one number per dimension of a Box observation, got {values}")
        if self.observation_std is not None and min(self.observation_std) <= 0:
            raise ValueError(f"observation_std must be positive, got {self.observation_std}")
        for name in ("dropout", "attention_dropout", "input_mask_probability", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


__all__ = ["ADConfig"]
