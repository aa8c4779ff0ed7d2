"""ADConfig: spaces that are none, sizes and statistics that fit nothing, backbones that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from malformed_inputs.common import Input, Place, accepted, refused

AREA = "ADConfig"
NAN, INF = float("nan"), float("inf")


def box(shape: Any, low: Any, high: Any, dtype: Any = "float32") -> dict[str, Any]:
    """A Box as JSON."""
    return {"type": "Box", "shape": shape, "low": low, "high": high, "dtype": dtype}


VECTOR = box([3], [None] * 3, [None] * 3)
IMAGE = box([8, 8, 3], [0.0] * 192, [255.0] * 192, "uint8")
ARM = box([2], [-1.0] * 2, [1.0] * 2)
TINY = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 1}

# Settings of a configuration, and what has to be named.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"observation_space": {}}, "observation_space"),
    ({"observation_space": []}, "observation_space"),
    ({"observation_space": {"type": "discrete", "n": 4}}, "observation_space"),
    ({"observation_space": {"type": "Dict", "spaces": {}}}, "observation_space"),
    ({"observation_space": {"type": "Discrete", "n": 0}}, "observation_space"),
    ({"observation_space": {"type": "Discrete", "n": [4]}}, "observation_space"),
    ({"observation_space": {"type": "Discrete", "n": NAN}}, "observation_space"),
    ({"observation_space": {"type": "MultiDiscrete", "nvec": [3, 0]}}, "observation_space"),
    ({"observation_space": {"type": "MultiDiscrete", "nvec": [3, 2.5]}}, "observation_space"),
    ({"observation_space": {"type": "MultiDiscrete", "nvec": "33"}}, "observation_space"),
    ({"observation_space": {"type": "MultiBinary", "n": -3}}, "observation_space"),
    ({"observation_space": {"type": "MultiBinary", "n": [2, 2]}}, "observation_space"),
    ({"observation_space": box([0], [], [])}, "observation_space"),
    ({"observation_space": box([3], [0.0, 0.0], [1.0] * 3)}, "observation_space"),
    ({"observation_space": box([2, 2], [0.0] * 4, [1.0] * 4)}, "observation_space|vector or an image"),
    ({"observation_space": box([3], [0.0] * 3, [1.0] * 3, "complex64")}, "observation_space|dtype"),
    ({"observation_space": box("3", [0.0] * 3, [1.0] * 3)}, "observation_space"),
    ({"observation_space": box([3], ["a"] * 3, [1.0] * 3)}, "observation_space"),
    ({"action_space": {"type": "Discrete", "n": -1}}, "action_space"),
    ({"action_space": {"type": "Discrete", "n": False}}, "action_space"),
    ({"action_space": {"type": "MultiDiscrete", "nvec": [2, -2]}}, "action_space"),
    ({"action_space": {"type": "MultiBinary", "n": 3}}, "action_space"),
    ({"action_space": box([2], [-1.0] * 2, [INF] * 2)}, "action_space"),
    ({"action_space": box([2], [1.0] * 2, [1.0] * 2)}, "action_space"),
    ({"action_space": box([2], [-1.0] * 3, [1.0] * 3)}, "action_space"),
    ({"action_space": box([2], [-1.0, None], [1.0] * 2)}, "action_space"),
    ({"action_space": box([1, 2], [-1.0] * 2, [1.0] * 2)}, "action_space"),
    ({"action_space": box([2], [-1.0] * 2, [NAN, 1.0])}, "action_space"),
    ({"hidden_size": -2}, "hidden_size"),
    ({"hidden_size": 16.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_attention_heads": 16}, "hidden_size.*num_attention_heads"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"intermediate_size": 0}, "intermediate_size"),
    ({"context_length": None}, "context_length"),
    ({"sliding_window": -1}, "sliding_window"),
    ({"layer_types": "linear_attention"}, "layer_types"),
    ({"layer_types": []}, "layer_types"),
    ({"layer_types": ["conv"]}, "layer_types.*conv"),
    ({"layer_types": ["full_attention"] * 2}, "layer_types.*num_hidden_layers"),
    ({"layer_types": ["linear_attention"], "sliding_window": 4}, "sliding_window.*layer_types"),
    ({"layer_types": ["sliding_attention"], "sliding_window": None}, "sliding_window.*layer_types"),
    ({"layer_types": ["linear_attention"], "linear_num_heads": 0}, "linear_num_heads"),
    ({"layer_types": ["linear_attention"], "linear_num_heads": 3}, "hidden_size.*linear_num_heads"),
    ({"linear_memory_length": 0}, "linear_memory_length"),
    ({"linear_memory_length": 2.5}, "linear_memory_length"),
    ({"backbone_config": TINY, "layer_types": ["full_attention"]}, "layer_types.*backbone_config"),
    ({"rope_theta": -INF}, "rope_theta"),
    ({"rope_theta": "10000"}, "rope_theta"),
    ({"layer_norm_eps": INF}, "layer_norm_eps"),
    ({"initializer_range": -0.02}, "initializer_range"),
    ({"initializer_range": INF}, "initializer_range"),
    ({"attention_dropout": 1.5}, "attention_dropout"),
    ({"label_smoothing": NAN}, "label_smoothing"),
    ({"reward_scale": NAN}, "reward_scale"),
    ({"reward_scale": -INF}, "reward_scale"),
    ({"num_action_bins": 1}, "num_action_bins"),
    ({"image_channels": [32, 0]}, "image_channels"),
    ({"image_channels": 32}, "image_channels"),
    ({"observation_space": VECTOR, "observation_mean": [0.0, 0.0, NAN]}, "observation_mean"),
    ({"observation_space": VECTOR, "observation_mean": [0.0, "1", 0.0]}, "observation_mean"),
    ({"observation_space": VECTOR, "observation_std": [1.0, 0.0, 1.0]}, "observation_std"),
    ({"observation_space": VECTOR, "observation_std": [1.0, INF, 1.0]}, "observation_std"),
    ({"observation_space": VECTOR, "observation_std": [1.0, 1.0]}, "observation_std"),
    ({"observation_mean": [0.0]}, "observation_mean"),
    ({"backbone_config": "gpt2"}, "backbone_config"),
    ({"backbone_config": {"model_type": "ad"}}, "backbone_config"),
    ({"backbone_config": {"model_type": "t5"}}, "backbone_config"),
    ({"backbone_config": {"model_type": "vit"}}, "backbone_config"),
    (
        {"backbone_config": {"model_type": "gpt2", "n_embd": 15, "n_head": 4, "n_layer": 1}},
        "backbone_config|n_embd|hidden_size",
    ),
    ({"attn_implementation": "flash"}, "attn_implementation|flash"),
    ({"action_space": ARM, "action_distribution": "mixture", "label_smoothing": 0.1}, "label_smoothing"),
    ({"action_space": ARM, "action_distribution": "mixture", "num_action_components": 0}, "num_action_components"),
]

RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("numbers of numpy", {"hidden_size": np.int64(32), "reward_scale": np.float32(2), "context_length": np.int32(8)}),
    ("a space with numbers of numpy", {"observation_space": {"type": "Discrete", "n": np.int64(4)}}),
    ("one action", {"action_space": {"type": "Discrete", "n": 1}}),
    ("an image", {"observation_space": IMAGE}),
    ("an observation without bounds", {"observation_space": VECTOR, "observation_mean": [1e9] * 3}),
    ("truth values", {"observation_space": {"type": "MultiBinary", "n": 3}}),
    ("an action of one number", {"action_space": box([1], [0.0], [1e-3])}),
    ("a statistic from numpy", {"observation_space": VECTOR, "observation_std": np.ones(3).tolist()}),
    ("a window as long as the context", {"sliding_window": 8, "context_length": 8}),
    ("linear attention of one head", {"layer_types": ["linear_attention"], "linear_num_heads": 1}),
    ("a memory of one step", {"layer_types": ["linear_attention"], "linear_memory_length": 1}),
    (
        "a memory without a limit",
        {"layer_types": ["linear_attention"], "context_length": 1, "linear_memory_length": None},
    ),
    (
        "layers of every kind",
        {"layer_types": ["sliding_attention", "linear_attention", "full_attention"], "num_hidden_layers": 3},
    ),
    ("a backbone", {"backbone_config": TINY}),
]


def _made(changes: dict[str, Any]) -> Callable[[Place], Callable[[], Any]]:
    """A model of the configuration, and what it makes of one step."""

    def make(place: Place) -> Callable[[], Any]:
        import ad_hf

        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        base = {
            "observation_space": {"type": "Discrete", "n": 4},
            "action_space": {"type": "Discrete", "n": 2},
            "context_length": 12,
            **small,
        }
        if "backbone_config" in changes:
            base.pop("hidden_size")

        def call() -> Any:
            settings = {**base, **changes}
            attention = settings.pop("attn_implementation", None)
            config = ad_hf.ADConfig(**settings)
            model = ad_hf.ADModel._from_config(config, **({"attn_implementation": attention} if attention else {}))
            space = model.config.observation_space
            shape = {
                "Discrete": (),
                "MultiDiscrete": (len(np.atleast_1d(space.get("nvec", 0))),),
                "MultiBinary": (space.get("n"),),
                "Box": tuple(space.get("shape", ())),
            }[space["type"]]
            model.init_context(2).act(np.zeros((2, *shape), np.int64 if space["type"] != "Box" else np.float32))
            model.save_pretrained(place.folder / "saved")
            return ad_hf.ADModel.from_pretrained(place.folder / "saved")

        return call

    return make


def inputs() -> Iterator[Input]:
    """Configurations, refused and accepted."""
    for changes, names in WRONG:
        shown = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        yield refused(AREA, f"ADConfig({shown})", _made(changes), names)
    array = {"observation_space": {"type": "MultiDiscrete", "nvec": np.array([3, 3])}}
    yield refused(AREA, "ADConfig: a space whose sizes are an array", _made(array), "observation_space", either=True)
    for what, changes in RIGHT:
        yield accepted(AREA, f"ADConfig: {what}", _made(changes))
