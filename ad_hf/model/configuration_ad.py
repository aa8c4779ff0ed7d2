"""Configuration of Algorithm Distillation models."""

# Annotations are not postponed here: `strict` checks values against types, not against their names.
import math
from dataclasses import field, fields
from functools import wraps
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from .checks_ad import is_number, read_json

SPACE_FIELDS = {
    "Discrete": {"n"},
    "MultiDiscrete": {"nvec"},
    "MultiBinary": {"n"},
    "Box": {"shape", "low", "high", "dtype"},
}

# What numbers must be: in words, and as a test. Infinities and NaN pass none of them.
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
POSITIVE = ("a finite number above 0", lambda value: 0 < value < math.inf)
SHARE = ("in [0, 1)", lambda value: 0 <= value < 1)
RANGES = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), AT_LEAST_1),
    **dict.fromkeys(("context_length", "num_action_components"), AT_LEAST_1),
    "num_action_bins": ("at least 2", lambda value: value >= 2),
    **dict.fromkeys(("rope_theta", "layer_norm_eps", "initializer_range", "reward_scale"), POSITIVE),
    **dict.fromkeys(("dropout", "attention_dropout", "input_mask_probability", "label_smoothing"), SHARE),
}

# What a configuration that comes along with a model may ask of attention without being trusted. Other names may make
# transformers download and run code, as those of repositories on the Hub do.
ATTENTION = {"eager", "sdpa", "flex_attention"}
# Its entries that make the library load something else than what stands in the package.
OF_OTHERS = {"quantization_config", "fusion_config", "transformers_weights", "distributed_config", "kernel_config"}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(_is_size(value) for value in values)


def _fault_of_box(space: dict[str, Any]) -> str | None:
    """What is wrong with a Box as JSON."""
    shape = space["shape"]
    if not _are_sizes(shape):
        return "its shape must be a list of whole numbers of at least 1"
    try:
        known = np.dtype(space["dtype"]).kind in "biuf"
    except (TypeError, ValueError):
        known = False
    if not isinstance(space["dtype"], str) or not known:
        return "its dtype must be one of numbers, such as 'float32'"
    lengths = {math.prod(shape)} | ({1} if len(shape) > 1 else set())
    for bound in (space["low"], space["high"]):
        if not isinstance(bound, list) or len(bound) not in lengths:
            return f"its low and high must be lists of {' or '.join(map(str, sorted(lengths)))}"
        if not all(value is None or (is_number(value) and value == value) for value in bound):
            return "its low and high must hold numbers, or null where there is no bound"
    if any(low > high for low, high in zip(space["low"], space["high"]) if low is not None and high is not None):
        return "its low must not be above its high"
    return None


def _check_space(name: str, space: Any) -> None:
    kind = space.get("type") if isinstance(space, dict) else None
    if not isinstance(kind, str) or kind not in SPACE_FIELDS or not SPACE_FIELDS[kind] <= set(space):
        raise ValueError(
            f"{name} must be a space as JSON, such as {{'type': 'Discrete', 'n': 5}}, with a type of "
            f"{', '.join(SPACE_FIELDS)}; got {space!r}"
        )
    if kind == "Box":
        fault = _fault_of_box(space)
    elif kind == "MultiDiscrete":
        fault = (
            None
            if space["nvec"] and _are_sizes(space["nvec"])
            else "its nvec must be a flat list of whole numbers of at least 1"
        )
    else:
        fault = None if _is_size(space["n"]) else "its n must be a whole number of at least 1"
    if fault is not None:
        raise ValueError(f"{name}: {fault}; got {space!r}")


def _check_observation_box(space: dict[str, Any]) -> None:
    """Refuse a Box that no embedding is made for."""
    shape = space["shape"]
    if len(shape) not in (1, 3):
        raise ValueError(
            f"observation_space: a Box observation must be a vector or an image (height, width, channels), got "
            f"{space!r}; reshape it with gymnasium.wrappers.ReshapeObservation"
        )
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] > 4 and shape[0] < shape[1]:
        raise ValueError(
            f"observation_space: an image must have its channels last, (height, width, channels), got shape {shape}, "
            "which has them first; turn it with gymnasium.wrappers.TransformObservation and numpy.moveaxis"
        )


def _check_action_space(space: dict[str, Any]) -> None:
    """Refuse actions that there is no head for."""
    if space["type"] == "MultiBinary":
        raise ValueError(
            f"action_space: write a MultiBinary space as MultiDiscrete with an nvec of twos, got {space!r}"
        )
    if space["type"] != "Box":
        return
    bounds = [*space["low"], *space["high"]]
    if len(space["shape"]) != 1 or not all(value is not None and math.isfinite(value) for value in bounds):
        raise ValueError(f"action_space: a Box must have one dimension and finite bounds, got {space!r}")
    if any(low >= high for low, high in zip(space["low"], space["high"])):
        raise ValueError(f"action_space: a Box must have lower bounds below its upper ones, got {space!r}")


def entries_to_trust(settings: Any, place: str = "") -> list[str]:
    """Entries of a configuration as JSON, at any depth, that make transformers load and run what is not its own."""
    if isinstance(settings, list):
        return [entry for value in settings for entry in entries_to_trust(value, place)]
    if not isinstance(settings, dict):
        return []
    found = []
    for name, value in settings.items():
        of_others = name in OF_OTHERS and value is not None
        of_others |= name == "auto_map" and bool(place)  # at the top stands the model's own, which is not used here
        if "attn_implementation" in name or "experts_implementation" in name:
            names = list(value.values()) if isinstance(value, dict) else [value]
            of_others |= any(isinstance(one, str | dict) and one not in ATTENTION for one in names)
        found += [f"{place}{name}={value!r}"] if of_others else entries_to_trust(value, f"{place}{name}.")
    return found


def _check_names(config_class: type, settings: dict[str, Any], place: str) -> None:
    """Refuse entries that would stand in the place of a configuration's methods, or of what its class says."""
    names = {known.name for known in fields(config_class)}
    for name in settings:
        attribute = getattr(config_class, name, None) if isinstance(name, str) else None
        ours = name in names or isinstance(attribute, property)
        if attribute is not None and not ours and name != "model_type":
            raise ValueError(f"{place}{name} is no setting of {config_class.__name__}")


def _as_python(value: Any, of_space: bool = False) -> Any:
    """Numpy's numbers and arrays as Python's numbers and lists, at any depth."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _as_python(part, of_space) for name, part in value.items()}
    if isinstance(value, list) or (of_space and isinstance(value, tuple)):
        return [_as_python(part, of_space) for part in value]
    return value


def _for_users(config_class: Any) -> Any:
    """Let a configuration take numpy's numbers, and raise a `ValueError` with one sentence for what it cannot take."""
    init = config_class.__init__

    @wraps(init)
    def init_for_users(self: Any, **settings: Any) -> None:
        settings = {name: _as_python(value, name.endswith("_space")) for name, value in settings.items()}
        try:
            init(self, **settings)
        except StrictDataclassError as error:
            raise ValueError(f"{config_class.__name__}: {error.__cause__ or error}") from error
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"{config_class.__name__}: {type(error).__name__}: {error}") from error

    config_class.__init__ = init_for_users
    return config_class


@_for_users
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
        ValueError: for values of a wrong type, spaces that are none, numbers outside of their range or that do not fit
            together, and backbones that are not causal.
    """

    model_type = "ad"
    keys_to_ignore_at_inference = ["past_key_values"]
    # transformers takes fields with "_std" in their name for scales of initialisers.
    attribute_map = {"observation_std": "observation_scale"}

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
    observation_scale: list | None = None
    reward_scale: float | int = 1.0
    action_distribution: Literal["bins", "mixture"] = "bins"
    num_action_components: int = 8
    num_action_bins: int = 21
    image_channels: list[int] = field(default_factory=lambda: [32, 64])
    backbone_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
            if dtype is not None and not (isinstance(known, torch.dtype) and known.is_floating_point):
                raise ValueError(f"{name} must be a floating-point type of torch, such as 'float32', got {dtype!r}")
        if (scale := kwargs.pop("observation_std", None)) is not None:
            self.observation_scale = scale
        if isinstance(self.backbone_config, dict):
            self.backbone_config = _backbone_config(self.backbone_config)
        if isinstance(self.backbone_config, PreTrainedConfig):
            self.hidden_size = _checked_backbone(self.backbone_config).hidden_size
        super().__post_init__(**kwargs)

    @property
    def _attn_implementation(self) -> Any:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        # A model fills in the library's default, which takes no account of device and window, in another way.
        self.automatic_attention = value is None
        PreTrainedConfig._attn_implementation.__set__(self, value)  # type: ignore[attr-defined]
        if value is not None and isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config._attn_implementation = value

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        A configuration from the contents of a `config.json`. Entries that make transformers run what is not its own
        are kept, and named in `untrusted`: an [`ADModel`] is only made of them with `trust_remote_code=True`.
        """
        _check_names(cls, config_dict, "")
        untrusted = entries_to_trust(config_dict)  # without what the caller sets
        loaded = super().from_dict(config_dict, **kwargs)
        if untrusted:
            (loaded[0] if isinstance(loaded, tuple) else loaded).untrusted = untrusted
        return loaded

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """A configuration from a JSON file."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        return cls._decode_special_floats(read_json(json_file))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        settings = super().to_dict()
        for name in ("automatic_attention", "untrusted"):
            settings.pop(name, None)
        return settings

    def weights(self) -> dict[str, int]:
        """Roughly how many weights there are, by the settings that they grow with."""
        width, observation, action = self.hidden_size, self.observation_space or {}, self.action_space or {}
        shape = observation.get("shape", [])
        inputs = sum(categories(observation)) if observation["type"] != "Box" else shape[0] if len(shape) == 1 else 0
        if len(shape) == 3:
            inputs = self.image_channels[-1] * math.prod(shape[:2]) // (16 * 4 ** (len(self.image_channels) - 1))
        dimensions = math.prod(action.get("shape", [0]))
        outputs = sum(categories(action)) if action["type"] != "Box" else dimensions * self.num_action_bins
        if self.action_distribution == "mixture" and action["type"] == "Box":
            outputs = self.num_action_components * (1 + 2 * dimensions)
        blocks: Any = self.backbone_config or self
        layers, inner = (getattr(blocks, name, None) or 1 for name in ("num_hidden_layers", "intermediate_size"))
        return {
            "observation_space": inputs * width,
            "action_space, num_action_bins or num_action_components": outputs * width,
            "num_hidden_layers, hidden_size and intermediate_size": layers * (4 * width**2 + 2 * width * inner),
            "backbone_config.vocab_size": (getattr(self.backbone_config, "vocab_size", None) or 0) * width,
        }

    def validate_spaces(self):
        """Part of the strict validation: spaces are known, bounded where actions are continuous."""
        if self.observation_space is None and self.action_space is None:
            return  # transformers compares every configuration with one made without arguments
        observation, action = self.observation_space or {}, self.action_space or {}
        _check_space("observation_space", observation)
        _check_space("action_space", action)
        if observation["type"] == "Box":
            _check_observation_box(observation)
        _check_action_space(action)

    def validate_architecture(self):
        """Part of the strict validation: numbers are in their ranges, and sizes fit together."""
        for name, (expected, allowed) in RANGES.items():
            value = getattr(self, name)
            if not is_number(value) or not allowed(value):
                raise ValueError(f"{name} must be {expected}, got {value}")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if not self.image_channels or not _are_sizes(self.image_channels):
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
        self._check_statistics()
        self._check_attention()

    def _check_statistics(self) -> None:
        for name in ("observation_mean", "observation_std"):
            values = getattr(self, name)
            if values is None:
                continue
            if [len(values)] != list((self.observation_space or {}).get("shape", [])):
                raise ValueError(f"{name} must hold one number per dimension of a Box observation, got {values}")
            if not all(is_number(value) and math.isfinite(value) for value in values):
                raise ValueError(f"{name} must hold finite numbers, got {values}")
        if self.observation_std is not None and min(self.observation_std) <= 0:
            raise ValueError(f"observation_std must be positive, got {self.observation_std}")

    def _check_attention(self) -> None:
        name = self._attn_implementation
        if name is None or (isinstance(name, str) and ("/" in name or name in ATTENTION)):
            return
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        known = sorted({*ATTENTION, *ALL_ATTENTION_FUNCTIONS.valid_keys()})
        if name not in known:
            raise ValueError(f"attn_implementation must be one of {', '.join(known)}, got {name!r}")


def categories(space: dict[str, Any]) -> list[int]:
    """Number of categories of each dimension of a discrete space."""
    if space["type"] == "Discrete":
        return [space["n"]]
    return list(space["nvec"]) if space["type"] == "MultiDiscrete" else [2] * space["n"]


def _backbone_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a backbone from its JSON, of a class of transformers whatever its `auto_map` says."""
    from transformers import CONFIG_MAPPING

    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"backbone_config needs the model_type of a transformers model, got {kind!r}")
    _check_names(CONFIG_MAPPING[kind], settings, "backbone_config.")
    try:
        return CONFIG_MAPPING[kind](**settings)
    except Exception as error:  # whatever the library's many configurations raise for what they cannot take
        raise ValueError(f"backbone_config of type {kind}: {error.__cause__ or error}") from error


def _checked_backbone(config: Any) -> Any:
    """Refuse a backbone that does not continue sequences of vectors from left to right."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # BERT and its kin, which see what comes later unless told not to
        causal = causal and bool(getattr(config, "is_decoder", False))
    if not causal or not _is_size(getattr(config, "hidden_size", None)):
        raise ValueError(
            f"backbone_config must be of a causal decoder of transformers, such as llama or gpt2, got {kind!r}"
        )
    return config


if __package__ == "ad_hf.model":  # a copy beside a model is registered by the Auto class that loads it
    AutoConfig.register(ADConfig.model_type, ADConfig, exist_ok=True)
    ADConfig.register_for_auto_class()  # so that save_pretrained copies this file and points to it in `auto_map`

__all__ = ["ADConfig"]
