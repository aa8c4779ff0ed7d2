"""Configuration of Algorithm Distillation models, and the checks that its settings and those of rollouts share."""

# Annotations are not postponed here: `strict` checks values against types, not against their names.
import copy
import json
import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

BOUNDS = {
    "least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}
KINDS: dict[Any, str] = {float: "a finite number", int: "an integer", bool: "True or False"}
SPACE_FIELDS = {"Discrete": {"n"}, "MultiDiscrete": {"nvec"}, "MultiBinary": {"n"}}
SPACE_FIELDS["Box"] = {"shape", "low", "high", "dtype"}
# Settings that the data decides.
OF_THE_DATA = {"observation_space", "action_space", "observation_mean", "observation_scale", "groups"}
# What a group of a model of several has to say, and what it may.
SPACES = ("observation_space", "action_space")
NORMALIZATION = ("reward_scale", "observation_mean", "observation_std")
# Attention implementations that a model's own configuration may ask for without trust. Other names may make
# transformers download and run code, as those of repositories on the Hub do.
ATTENTION = {"eager", "sdpa", "flex_attention"}
KINDS_OF_LAYERS = (FULL := "full_attention", SLIDING := "sliding_attention", LINEAR := "linear_attention")
# Entries that make transformers load something else than the package's own code and weights.
OF_OTHERS = {"quantization_config", "fusion_config", "transformers_weights", "distributed_config", "kernel_config"}


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; a `ValueError` that names the file for anything else."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # both of the encoding and of JSON are ValueErrors
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def setting(default: Any, **bounds: float) -> Any:
    """A field of a dataclass of settings; its bounds, of those in `BOUNDS`, stand in its metadata."""
    return field(default=default, metadata=bounds)


def check_settings(config: Any) -> None:
    """Check words, truth values, and numbers with bounds, of a dataclass: a `ValueError` that names the setting."""
    for each in fields(config):
        value, bounds = getattr(config, each.name), [name for name in BOUNDS if name in each.metadata]
        words = [word for kind in get_args(each.type) if get_origin(kind) is Literal for word in get_args(kind)]
        if value is None or value in words or not (bounds or words or each.type == bool | None):
            continue
        if not bounds and words:
            raise ValueError(f"{each.name} must be one of {', '.join(words)}, got {value!r}")
        kind, expected = next(pair for pair in KINDS.items() if pair[0].__name__ in str(each.type))
        fits = isinstance(value, (int, kind)) and isinstance(value, bool) == (kind is bool) and math.isfinite(value)
        if not fits or not all(BOUNDS[name][1](value, each.metadata[name]) for name in bounds):
            limits = [f"{BOUNDS[name][0]} {each.metadata[name]}" for name in bounds]
            raise ValueError(f"{each.name} must be {', '.join([expected, *limits])}, got {value!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_size, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _fault_of_space(space: Any) -> str | None:
    """What is wrong with a space as JSON."""
    kind = space.get("type") if isinstance(space, dict) else None
    if not isinstance(kind, str) or not SPACE_FIELDS.get(kind, {None}) <= set(space):
        kinds = ", ".join(SPACE_FIELDS)
        return f"it must be a space as JSON, such as {{'type': 'Discrete', 'n': 5}}, with a type of {kinds}"
    if kind == "MultiDiscrete":
        return None if _are_sizes(space["nvec"]) else "its nvec must be a flat list of whole numbers of at least 1"
    if kind != "Box":
        return None if _is_size(space["n"]) else "its n must be a whole number of at least 1"
    shape, bounds = space["shape"], [space["low"], space["high"]]
    if shape != [] and not _are_sizes(shape):
        return "its shape must be a list of whole numbers of at least 1"
    try:
        numeric = isinstance(space["dtype"], str) and np.dtype(space["dtype"]).kind in "biuf"
    except TypeError:
        numeric = False
    if not numeric:
        return "its dtype must be one of numbers, such as 'float32'"
    lengths = {math.prod(shape), 1 if len(shape) > 1 else math.prod(shape)}
    if not all(isinstance(bound, list) and len(bound) in lengths for bound in bounds):
        return f"its low and high must be lists of {' or '.join(map(str, sorted(lengths)))}"
    if not all(value is None or _is_number(value) for bound in bounds for value in bound):
        return "its low and high must hold numbers, or null where there is no bound"
    if any(low > high for low, high in zip(*bounds) if low is not None and high is not None):
        return "its low must not be above its high"
    return None


def _fault_of_observations(space: dict[str, Any]) -> str | None:
    """Why there is no embedding for a space."""
    shape = space.get("shape", [1])
    if len(shape) not in (1, 3):
        return (
            "a Box observation must be a vector or an image (height, width, channels); reshape it with "
            "gymnasium.wrappers.ReshapeObservation"
        )
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] > 4 and shape[0] < shape[1]:
        return (
            "an image must have its channels last, (height, width, channels); turn it with "
            "gymnasium.wrappers.TransformObservation and numpy.moveaxis"
        )
    return None


def _fault_of_actions(space: dict[str, Any]) -> str | None:
    """Why there is no head for a space."""
    if space["type"] == "MultiBinary":
        return "write a MultiBinary space as MultiDiscrete with an nvec of twos"
    if space["type"] != "Box":
        return None
    if len(space["shape"]) != 1 or not all(
        value is not None and math.isfinite(value) for value in [*space["low"], *space["high"]]
    ):
        return "a Box must have one dimension and finite bounds"
    if any(low >= high for low, high in zip(space["low"], space["high"])):
        return "a Box must have lower bounds below its upper ones"
    return None


def entries_to_trust(settings: Any, place: str = "") -> list[str]:
    """Entries of a configuration as JSON, at any depth, that make transformers load and run code of others."""
    if isinstance(settings, list):
        return [entry for value in settings for entry in entries_to_trust(value, place)]
    entries = []
    for name, value in settings.items() if isinstance(settings, dict) else ():
        of_others = name in OF_OTHERS and value is not None
        of_others |= name == "auto_map" and bool(place)  # at the top stands the model's own, which is not used here
        if "attn_implementation" in name or "experts_implementation" in name:
            names = list(value.values()) if isinstance(value, dict) else [value]
            of_others |= any(isinstance(one, str | dict) and one not in ATTENTION for one in names)
        entries += [f"{place}{name}={value!r}"] if of_others else entries_to_trust(value, f"{place}{name}.")
    return entries


def _check_names(config_class: type, settings: dict[str, Any], place: str = "") -> None:
    """Refuse entries that would replace a configuration's methods, or an attribute of its class."""
    names = {each.name for each in fields(config_class)} | {"model_type"}
    for name in settings:
        attribute = getattr(config_class, name, None) if isinstance(name, str) else None
        if attribute is not None and name not in names and not isinstance(attribute, property):
            raise ValueError(f"{place}{name} is no setting of {config_class.__name__}")


def _as_python(value: Any) -> Any:
    """Numpy's numbers and arrays as Python's numbers and lists, at any depth."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _as_python(part) for name, part in value.items()}
    return [_as_python(part) for part in value] if isinstance(value, list | tuple) else value


def _for_users(config_class: Any) -> Any:
    """Let a configuration take numpy's numbers, and raise a `ValueError` with one sentence for wrong values."""
    init = config_class.__init__

    @wraps(init)
    def init_for_users(self: Any, **settings: Any) -> None:
        try:
            init(self, **_as_python(settings))
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

    Its fields are the only declaration of the model's settings: [`ADConfig.own_settings`] lists them, with their
    bounds in their metadata.

    Args:
        observation_space (`dict`):
            Observation space of one environment as JSON: `{"type": "Discrete", "n"}`, `{"type": "MultiDiscrete",
            "nvec"}`, `{"type": "MultiBinary", "n"}` or `{"type": "Box", "shape", "low", "high", "dtype"}`.
        action_space (`dict`):
            Action space of one environment: Discrete, MultiDiscrete or a bounded Box of one dimension.
        groups (`dict[str, dict]`, *optional*):
            In place of these two, the spaces of several kinds of environments by name, each a dict of
            `observation_space`, `action_space` and, *optional*, `observation_mean`, `observation_std` and
            `reward_scale`. Groups with equal spaces share their embedding and head; all share the decoder.
        hidden_size: Width of the tokens.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Attention heads of each block. Few wide heads are faster on CPUs.
        intermediate_size: Width of the blocks' feed-forward layers.
        context_length: Steps that the model sees, in training and at rollout.
        sliding_window: Steps that each block attends to, the current one included, `"auto"` for the context divided by
            the number of blocks, which together reach back as far as the context. A rollout forgets step by step and
            never encodes a step twice. With `None` each block attends to all of the context, and a rollout encodes
            what is left of a full context anew.
        layer_types (`list[str]`, *optional*):
            Kind of each block's attention: `"full_attention"` and `"sliding_attention"` as above, and
            `"linear_attention"`, which sums up all steps so far in a state of fixed size, by the gated delta rule
            (https://huggingface.co/papers/2412.06464). By default all slide, or none if there is no `sliding_window`.
            A rollout of blocks of the last two kinds never forgets at once, and costs the same at every step.
        linear_num_heads: Heads of linear attention, each with a state of its width times its width.
        linear_memory_length: Steps over which linear attention forgets by a factor of e at least, `"auto"` for a third
            of the context, so that a long rollout is like the windows of the training; `None` for no limit. Take more
            for models that are trained by windows that follow on each other.
        rope_theta: Base of the rotary position embedding.
        layer_norm_eps: Epsilon of the layer normalisations.
        initializer_range: Standard deviation of the initial weights.
        dropout: Dropout on the residual branches (paper: 0.1).
        attention_dropout: Dropout on the attention weights (paper: 0.5).
        input_mask_probability: Probability that a step's token is blanked in training (paper: 0.3).
        label_smoothing: Label smoothing of the loss (paper: 0.2 on Dark Room Hard).
        observation_mean (`list[float]`, *optional*):
            Means with which Box vectors are normalised, one number per dimension.
        observation_std (`list[float]`, *optional*):
            Their standard deviations.
        reward_scale: Rewards are divided by it.
        action_distribution: Distribution of Box actions. `"mixture"` is a mixture of Gaussians, clipped to the bounds;
            `"bins"` divides each dimension into bins, independent of those of the other dimensions.
        num_action_components: Gaussians of a mixture.
        num_action_bins: Bins of each dimension of a Box action; the outer ones stand for the bounds.
        image_channels: Channels of the layers that encode an image: a linear map of patches of 4 x 4 pixels, and
            convolutions each of which halves height and width.
        dynamics_weight: Weight, beside the loss of the actions, of the losses of heads that predict what follows a
            step: observation, reward, discounted return of the rest of the episode, and its end. A rollout plans with
            them (`num_beams` of [`RolloutConfig`]). With 0 there are no such heads.
        dynamics_discount: Discount of a step in the returns that are predicted, and in those that a rollout plans by.
        backbone_config: Configuration, with its `model_type`, of a decoder of transformers that takes `inputs_embeds`,
            to use in place of this package's own blocks.

    Raises:
        ValueError: for values of a wrong type, malformed spaces, numbers outside of their range or that do not fit
            together, and backbones that are not causal.
    """

    model_type = "ad"
    keys_to_ignore_at_inference = ["past_key_values"]
    # transformers takes fields with "_std" in their name for scales of initialisers.
    attribute_map = {"observation_std": "observation_scale"}

    observation_space: dict | None = None
    action_space: dict | None = None
    groups: dict | None = None
    hidden_size: int = setting(128, least=1)
    num_hidden_layers: int = setting(4, least=1)
    num_attention_heads: int = setting(2, least=1)
    intermediate_size: int = setting(512, least=1)
    context_length: int = setting(200, least=1)
    sliding_window: int | Literal["auto"] | None = setting("auto", least=1)
    layer_types: list[str] | None = None
    linear_num_heads: int = setting(4, least=1)
    linear_memory_length: int | Literal["auto"] | None = setting("auto", least=1)
    rope_theta: float | int = setting(10000.0, above=0)
    layer_norm_eps: float | int = setting(1e-5, above=0)
    initializer_range: float | int = setting(0.02, above=0)
    dropout: float | int = setting(0.0, least=0, below=1)
    attention_dropout: float | int = setting(0.0, least=0, below=1)
    input_mask_probability: float | int = setting(0.0, least=0, below=1)
    label_smoothing: float | int = setting(0.0, least=0, below=1)
    observation_mean: list | None = None
    observation_scale: list | None = None
    reward_scale: float | int = setting(1.0, above=0)
    action_distribution: Literal["bins", "mixture"] = "bins"
    num_action_components: int = setting(8, least=1)
    num_action_bins: int = setting(21, least=2)
    image_channels: list[int] = field(default_factory=lambda: [32, 64])
    dynamics_weight: float | int = setting(0.0, least=0)
    dynamics_discount: float | int = setting(0.95, least=0, most=1)
    backbone_config: dict | PreTrainedConfig | None = None

    @classmethod
    def own_settings(cls) -> list[Field]:
        """Fields of this class that a user sets: neither the library's nor those that the data decides."""
        inherited = {each.name for each in fields(PreTrainedConfig)}
        return [each for each in fields(cls) if each.name not in inherited | OF_THE_DATA]

    def __post_init__(self, **kwargs):
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
            if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
                raise ValueError(f"{name} must be a floating-point type of torch, such as 'float32', got {dtype!r}")
        if (scale := kwargs.pop("observation_std", None)) is not None:
            self.observation_scale = scale
        if isinstance(self.backbone_config, dict):
            self.backbone_config = _make_backbone_config(self.backbone_config)
        if isinstance(self.backbone_config, PreTrainedConfig):
            _check_backbone(self.backbone_config)
            self.hidden_size = self.backbone_config.hidden_size
        if self.sliding_window == "auto":
            context, layers = self.context_length, self.num_hidden_layers
            sizes_are_right = _is_size(context) and _is_size(layers)  # as the validation looks at them only afterwards
            slides = self.backbone_config is None and (not self.layer_types or SLIDING in self.layer_types)
            self.sliding_window = -(-context // layers) if slides and sizes_are_right else None
        if self.linear_memory_length == "auto":
            has_linear = LINEAR in (self.layer_types or ()) and _is_size(self.context_length)
            self.linear_memory_length = max(1, self.context_length // 3) if has_linear else None
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
        A configuration from the contents of a `config.json`. Entries that make transformers run code of others are
        kept, and named in `untrusted`: an [`ADModel`] is only made of them with `trust_remote_code=True`.
        """
        _check_names(cls, config_dict)
        untrusted = entries_to_trust(config_dict)  # without what the caller sets
        if (
            "transformers_version" in config_dict
        ):  # files of the first models, whose blocks attend to all of the context
            config_dict = {"sliding_window": None, **config_dict}
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
        return {k: v for k, v in super().to_dict().items() if k not in ("automatic_attention", "untrusted")}

    @property
    def kinds_of_layers(self) -> list[str]:
        """`layer_types`, also where it is left to its default."""
        default = FULL if self.sliding_window is None else SLIDING
        return self.layer_types or [default] * self.num_hidden_layers

    @property
    def is_unbounded(self) -> bool:
        """Whether a rollout goes on for as long as one likes without encoding steps anew."""
        return self.backbone_config is None and FULL not in self.kinds_of_layers

    def of_group(self, name: str) -> Any:
        """The configuration of a model of one of the groups."""
        groups: dict[str, Any] = self.groups or {}
        if name not in groups:
            raise ValueError(f"group must be one of {', '.join(groups) or 'none'}, got {name!r}")
        config = copy.deepcopy(self)
        config.groups = None
        for each, value in groups[name].items():
            setattr(config, each, copy.deepcopy(value))
        return config

    def owners(self) -> dict[str, str]:
        """For each group, the first one, by name, with the same spaces, whose embedding and head it has."""
        firsts: dict[str, str] = {}
        groups: dict[str, Any] = self.groups or {}
        spaces = {name: json.dumps([groups[name][each] for each in SPACES], sort_keys=True) for name in sorted(groups)}
        return {name: firsts.setdefault(both, name) for name, both in spaces.items()}

    def weights(self) -> dict[str, int]:
        """Roughly how many weights there are, by the settings that they grow with."""
        if self.groups is not None:
            each = [self.of_group(name).weights() for name in dict.fromkeys(self.owners().values())]
            names = list(each[0])
            return {name: (sum if "space" in name else max)(part[name] for part in each) for name in names}
        width, observation, action = self.hidden_size, self.observation_space or {}, self.action_space or {}
        inputs, outputs = (sum(categories(space)) or math.prod(space["shape"]) for space in (observation, action))
        if len(observation.get("shape", ())) == 3:
            inputs //= 4 ** len(self.image_channels)
        if action["type"] == "Box":
            outputs *= max(self.num_action_bins, 2 * self.num_action_components)
        blocks: Any = self.backbone_config or self
        layers, inner = (getattr(blocks, name, None) or 1 for name in ("num_hidden_layers", "intermediate_size"))
        return {
            "observation_space": inputs * width * (2 if self.dynamics_weight else 1),
            "action_space, num_action_bins or num_action_components": outputs * width,
            "num_hidden_layers, hidden_size and intermediate_size": layers * (4 * width**2 + 2 * width * inner),
            "backbone_config.vocab_size": (getattr(self.backbone_config, "vocab_size", None) or 0) * width,
        }

    def validate_spaces(self):
        """Part of the strict validation: there are an embedding and a head for the spaces."""
        if self.groups is not None:
            return self._validate_groups()
        if self.observation_space is None and self.action_space is None:
            return  # transformers compares every configuration with one made without arguments
        for name, more in (("observation_space", _fault_of_observations), ("action_space", _fault_of_actions)):
            space = getattr(self, name)
            if fault := _fault_of_space(space) or more(space):
                raise ValueError(f"{name}: {fault}; got {space!r}")

    def _validate_groups(self) -> None:
        groups: Any = self.groups
        alone = [name for name in (*SPACES, *NORMALIZATION) if getattr(self, name) not in (None, 1.0)]
        if not groups or alone:
            raise ValueError(f"groups must hold a group and stand alone, got {groups!r} beside {', '.join(alone)}")
        for name, group in groups.items():
            if not (isinstance(name, str) and name.isidentifier()) or hasattr(torch.nn.ModuleDict, name):
                raise ValueError(f"groups need names such as 'dark_room', got {name!r}")
            if not isinstance(group, dict) or not {*SPACES} <= set(group) <= {*SPACES, *NORMALIZATION}:
                known = ", ".join((*SPACES, *NORMALIZATION))
                raise ValueError(f"groups: {name} must hold {known}, got {group!r}")
            config = self.of_group(name)
            try:
                config.validate()
            except (ValueError, StrictDataclassError) as error:
                raise ValueError(f"groups: {name}: {error.__cause__ or error}") from error

    def validate_architecture(self):
        """Part of the strict validation: numbers are within their bounds, and sizes fit together."""
        check_settings(self)
        width, heads, window = self.hidden_size, self.num_attention_heads, cast(int | None, self.sliding_window)
        if width % heads or (width // heads) % 2:
            raise ValueError(f"hidden_size ({width}) must be an even multiple of num_attention_heads ({heads})")
        if not _are_sizes(self.image_channels):
            raise ValueError(f"image_channels must be numbers of at least 1, at least one, got {self.image_channels}")
        continuous = (self.action_space or {}).get("type") == "Box" and self.action_distribution == "mixture"
        if continuous and self.label_smoothing:
            raise ValueError(
                "label_smoothing mixes categories, of which a mixture has none: set it to 0, or action_distribution "
                "to 'bins'"
            )
        self._check_layers()
        if window is not None and self.backbone_config is not None:
            raise ValueError("sliding_window is of this package's own blocks: set that of backbone_config instead")
        if window is not None and window > self.context_length:
            raise ValueError(f"sliding_window must be at most context_length ({self.context_length}), got {window}")
        if self.dynamics_weight and (self.groups or len((self.observation_space or {}).get("shape", ())) == 3):
            kind = "of several groups" if self.groups else "whose observations are images"
            raise ValueError(
                f"dynamics_weight must be 0 for a model {kind}: there are no heads that predict what follows"
            )
        for name, least in (("observation_mean", -math.inf), ("observation_std", 0)):
            values = getattr(self, name)
            if values is None:
                continue
            if [len(values)] != list((self.observation_space or {}).get("shape", [])):
                raise ValueError(f"{name} must hold one number per dimension of a Box observation, got {values}")
            if not all(_is_number(value) and least < value < math.inf for value in values):
                raise ValueError(f"{name} must hold finite numbers{' above 0' * (not least)}, got {values}")
        self._check_attention()

    def _check_layers(self) -> None:
        types, window, heads = self.layer_types, self.sliding_window, self.linear_num_heads
        if types is None:
            return
        if self.backbone_config is not None:
            raise ValueError("layer_types is of this package's own blocks: set that of backbone_config instead")
        if unknown := [kind for kind in types if kind not in KINDS_OF_LAYERS]:
            raise ValueError(f"layer_types must be of {', '.join(KINDS_OF_LAYERS)}, got {unknown[0]!r}")
        if (SLIDING in types) != (window is not None):
            raise ValueError(f"sliding_window is of layers of sliding_attention: got {window} and layer_types {types}")
        if LINEAR in types and self.hidden_size % heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of linear_num_heads ({heads})")

    def _check_attention(self) -> None:
        name = self._attn_implementation
        if name is None or (isinstance(name, str) and ("/" in name or name in ATTENTION)):
            return
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        names = sorted({*ATTENTION, *ALL_ATTENTION_FUNCTIONS.valid_keys()})
        if name not in names:
            raise ValueError(f"attn_implementation must be one of {', '.join(names)}, got {name!r}")


def categories(space: Mapping[str, Any]) -> list[int]:
    """Number of categories of each dimension of a discrete space; none of a Box."""
    if space["type"] == "Discrete":
        return [space["n"]]
    return [2] * space["n"] if space["type"] == "MultiBinary" else list(space.get("nvec", ()))


def _make_backbone_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a backbone from its JSON, of a class of transformers whatever its `auto_map` says."""
    from transformers import CONFIG_MAPPING

    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"backbone_config needs the model_type of a transformers model, got {kind!r}")
    _check_names(CONFIG_MAPPING[kind], settings, "backbone_config.")
    try:
        return CONFIG_MAPPING[kind](**settings)
    except Exception as error:  # whatever the library's many configurations raise
        raise ValueError(f"backbone_config of type {kind}: {error.__cause__ or error}") from error


def _check_backbone(config: Any) -> None:
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


if __package__ == "ad_hf.model":  # a copy beside a model is registered by the Auto class that loads it
    AutoConfig.register(ADConfig.model_type, ADConfig, exist_ok=True)
    ADConfig.register_for_auto_class()  # so that save_pretrained copies this file and points to it in `auto_map`

__all__ = ["ADConfig"]
