"""ADConfig: what it refuses, and that it comes back from JSON as it was."""

import json

import numpy as np
import pytest
from context_reference import LLAMA as LLAMA_16
from transformers import AutoConfig, GPT2Config, LlamaConfig

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.settings import descriptions

INF, NAN = float("inf"), float("nan")
NO_SIZES = [0, -1, 2.5, "5", True, None, NAN]

BOX = {"type": "Box", "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 2.0], "dtype": "float32"}
UNBOUNDED = {"type": "Box", "shape": [3], "low": [None] * 3, "high": [None] * 3, "dtype": "float32"}
IMAGE = {"type": "Box", "shape": [8, 8, 3], "low": [0], "high": [255], "dtype": "uint8"}
LLAMA = {**LLAMA_16, "hidden_size": 24, "num_hidden_layers": 1}
POSITIVE = ("rope_theta", "layer_norm_eps", "initializer_range", "reward_scale")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]}},
        {"observation_space": {"type": "MultiBinary", "n": 4}},
        {"observation_space": UNBOUNDED, "observation_mean": [0.0, 1.0, 2.0], "observation_std": [1.0, 0.5, 2.0]},
        {"observation_space": IMAGE, "action_space": BOX, "num_action_bins": 7, "image_channels": [8]},
        {"action_space": BOX, "action_distribution": "mixture", "num_action_components": 3},
        {"dropout": 0.1, "attention_dropout": 0.5, "input_mask_probability": 0.3, "label_smoothing": 0.2},
        {"reward_scale": 10.0, "rope_theta": 500.0, "layer_norm_eps": 1e-6, "initializer_range": 0.5},
        {"backbone_config": LLAMA},
    ],
)
def test_comes_back_from_json_as_it_was(tmp_path, small_settings, settings):
    config = ADConfig(**{**small_settings, **settings})
    config.save_pretrained(tmp_path)

    loaded = ADConfig.from_pretrained(tmp_path)

    # transformers writes its version, and once a file was loaded its path, beside the settings
    ours = set(ADConfig.__dataclass_fields__) & set(small_settings | settings)
    assert {name: loaded.to_dict()[name] for name in ours} == {name: config.to_dict()[name] for name in ours}
    assert type(AutoConfig.from_pretrained(tmp_path)) is ADConfig
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "ad"
    assert written["observation_space"] == config.observation_space


NO_SPACES = [{"type": "Dict"}, {"type": "Discrete"}, {"type": "Discrete", "nvec": [3]}, {"type": "Box", "shape": [3]}]
NO_SPACES += [{"n": 3}, "Discrete(3)", None]
REFUSED_SPACES = [
    *((space, "") for space in NO_SPACES),
    *(({"type": kind, "n": n}, "n must be") for kind in ("Discrete", "MultiBinary") for n in NO_SIZES),
    *(({"type": "MultiDiscrete", "nvec": n}, "nvec must be") for n in ([], 5, "23", None, [[2, 2], [2, 2]])),
    *(({"type": "MultiDiscrete", "nvec": [2, n]}, "nvec must be") for n in NO_SIZES),
    *(({**BOX, "shape": [n]}, "shape must be") for n in NO_SIZES),
    *(({**BOX, "shape": shape}, "shape must be") for shape in (2, "2", None, [[2]])),
    *(({**BOX, "dtype": dtype}, "dtype must be") for dtype in ("evil", 3, None, "object", "complex64", "str")),
    *(
        ({**BOX, bound: values}, "low and high must")
        for bound in ("low", "high")
        for values in ([0.0], 0.0, None, "ab", ["a", "b"], [NAN, NAN], [True, False], [0.0] * 3)
    ),
    ({**BOX, "low": [2.0, 0.0]}, "must not be above"),
]
REFUSED_OBSERVATIONS = [
    ({**IMAGE, "shape": [3, 84, 84]}, r"channels last.*numpy\.moveaxis"),
    ({**IMAGE, "shape": [4, 16, 16]}, "channels last"),
    ({**IMAGE, "shape": [8, 8]}, "vector or an image"),
    ({**IMAGE, "shape": []}, "vector or an image"),
]
REFUSED_ACTIONS = [
    ({**BOX, "shape": [2, 1], "low": [0.0], "high": [1.0]}, "one dimension"),
    ({**BOX, "low": [-INF, -INF], "high": [INF, INF]}, "finite bounds"),
    ({**BOX, "low": [None, 0.0]}, "finite bounds"),
    ({**BOX, "high": [1.0, None]}, "finite bounds"),
    ({**BOX, "high": [1.0, 0.0]}, "lower bounds below"),
    ({"type": "MultiBinary", "n": 2}, "MultiDiscrete"),
]


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("observation_space", REFUSED_SPACES + REFUSED_OBSERVATIONS),
        ("action_space", REFUSED_SPACES + REFUSED_ACTIONS),
    ],
)
def test_refuses_spaces_that_fit_nothing_and_names_them(small_settings, name, refused):
    for space, message in refused:
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            ADConfig(**{**small_settings, name: space})


def test_takes_the_numbers_of_numpy(small_settings):
    spaces = {
        "observation_space": {"type": "MultiDiscrete", "nvec": np.array([9, 9])},
        "action_space": {**BOX, "shape": (np.int64(2),), "low": np.zeros(2), "high": np.ones(2)},
    }
    config = ADConfig(**{**small_settings, **spaces, "hidden_size": np.int64(16), "reward_scale": np.float32(0.5)})

    assert json.loads(config.to_json_string())["hidden_size"] == 16
    assert config.observation_space["nvec"] == [9, 9]
    assert config.action_space["shape"] == [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation_space": {"type": "Discrete", "n": 10**13}}, r"observation_space.* [\d,]+ bytes"),
        ({"action_space": {"type": "MultiDiscrete", "nvec": [5, 10**13]}}, r"action_space.* bytes"),
        ({"hidden_size": 10**12}, r"hidden_size.* bytes"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers.* bytes"),
        ({"backbone_config": {**LLAMA, "num_hidden_layers": 10**12}}, r"num_hidden_layers.* bytes"),
    ],
)
def test_models_that_do_not_fit_into_memory_are_refused(small_settings, settings, message):
    config = ADConfig(**{**small_settings, **settings})
    with pytest.raises(ValueError, match=message):
        ADModel(config)


STATISTICS = [["a", 0.0, 0.0], [None] * 3, [NAN, 1.0, 1.0], [INF, 1.0, 1.0], [True, 1.0, 1.0], [0.0, 0.0]]
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "context_length")
SIZES += ("num_action_components",)
SHARES = ("dropout", "attention_dropout", "input_mask_probability", "label_smoothing")
REFUSED_VALUES = [
    *((name, value, f"{name} must be an integer, at least 1") for name in SIZES for value in (0, -16)),
    *((name, value, name) for name in SIZES for value in (16.0, "16", None, True)),
    *((name, value, f"{name} must be a finite number, above 0") for name in POSITIVE for value in (0, -1.0, INF, NAN)),
    *((name, value, f"{name} must be .* at least 0, below 1") for name in SHARES for value in (1.0, -0.1, 2, NAN)),
    *((name, "0.1", name) for name in (*POSITIVE, *SHARES)),
    *(("observation_mean", values, "observation_mean") for values in STATISTICS),
    *(("observation_std", values, "observation_std") for values in [*STATISTICS, [1.0], [1.0, 0.0, 1.0]]),
    *(("image_channels", value, "image_channels") for value in ([], [True], [8, 0])),
    ("num_action_bins", 1, "num_action_bins must be an integer, at least 2, got 1"),
    ("action_distribution", "gaussian", "action_distribution"),
    ("sliding_window", 0, "sliding_window must be an integer, at least 1"),
    ("sliding_window", 17, r"sliding_window must be at most context_length \(16\)"),
    ("attn_implementation", "nope", "attn_implementation must be one of .*eager.*'nope'"),
    ("observation_mean", 3.0, "observation_mean"),
    ("observation_space", ["Discrete", 3], "observation_space"),
    ("backbone_config", "llama", "backbone_config"),
    *(("backbone_config", {"model_type": kind}, "model_type") for kind in (None, "no_such_model")),
    *(
        ("backbone_config", {"model_type": kind}, f"backbone_config must be of a causal decoder.*'{kind}'")
        for kind in ("bert", "roberta", "clip", "ad", "t5", "bart", "vit")
    ),
]


def test_refuses_values_that_do_not_fit_and_names_the_setting(small_settings):
    for name, value, message in REFUSED_VALUES:
        space = {"observation_space": UNBOUNDED} if name in ("observation_mean", "observation_std") else {}
        with pytest.raises(ValueError, match=message):
            ADConfig(**{**small_settings, **space, name: value})
    for settings, message in (
        ({"hidden_size": 18, "num_attention_heads": 4}, r"hidden_size \(18\).*num_attention_heads \(4\)"),
        ({"hidden_size": 6, "num_attention_heads": 2}, r"hidden_size \(6\).*even"),
        ({"action_space": BOX, "action_distribution": "mixture", "label_smoothing": 0.1}, "label_smoothing"),
        ({"backbone_config": LLAMA, "sliding_window": 4}, "set that of backbone_config"),
    ):
        with pytest.raises(ValueError, match=message):
            ADConfig(**{**small_settings, **settings})


def test_own_settings_are_declared_with_their_bounds():
    own = {each.name: each for each in ADConfig.own_settings()}
    assert own["hidden_size"].metadata["least"] == 1
    assert own["dropout"].metadata["below"] == 1
    assert own["image_channels"].default_factory() == [32, 64]
    assert not {"observation_space", "observation_scale", "output_attentions", "dtype"} & own.keys()
    assert own.keys() <= descriptions(ADConfig).keys()


@pytest.mark.parametrize("backbone", [LLAMA, LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})])
def test_backbone_may_be_a_dict_or_a_config_and_sets_the_width(tmp_path, small_settings, backbone):
    config = ADConfig(**{**small_settings, "backbone_config": backbone})

    assert isinstance(config.backbone_config, LlamaConfig)
    assert config.hidden_size == config.backbone_config.hidden_size == 24
    config.save_pretrained(tmp_path)
    loaded = ADConfig.from_pretrained(tmp_path)
    assert isinstance(loaded.backbone_config, LlamaConfig)
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_width_is_the_backbones_whatever_that_calls_it(small_settings):
    backbone = GPT2Config(n_embd=20, n_layer=1, n_head=2, vocab_size=4)

    assert ADConfig(**{**small_settings, "backbone_config": backbone}).hidden_size == 20
