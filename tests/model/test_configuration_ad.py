"""ADConfig: what it refuses, and that it comes back from JSON as it was."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GPT2Config, LlamaConfig

from ad_hf.model import ADConfig

# Strict dataclasses wrap what their validators raise in an error of their own.
ERRORS = (ValueError, StrictDataclassError)

BOX = {"type": "Box", "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 2.0], "dtype": "float32"}
UNBOUNDED = {"type": "Box", "shape": [3], "low": [None] * 3, "high": [None] * 3, "dtype": "float32"}
IMAGE = {"type": "Box", "shape": [8, 8, 3], "low": [0], "high": [255], "dtype": "uint8"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 4,
}


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


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Dict"},
        {"type": "Discrete"},
        {"type": "Discrete", "nvec": [3]},
        {"type": "Box", "shape": [3]},
        {"n": 3},
        "Discrete(3)",
        None,
    ],
)
@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_refuses_what_is_not_a_space_and_names_it(small_settings, name, space):
    with pytest.raises(ERRORS, match=name):
        ADConfig(**{**small_settings, name: space})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({**BOX, "shape": [2, 1]}, "one dimension"),
        ({**BOX, "low": [None, 0.0]}, "finite bounds"),
        ({**BOX, "high": [1.0, None]}, "finite bounds"),
        ({**BOX, "high": [1.0, 0.0]}, "lower bounds below"),
        ({"type": "MultiBinary", "n": 2}, "MultiDiscrete"),
    ],
)
def test_refuses_action_spaces_without_a_head(small_settings, space, message):
    with pytest.raises(ERRORS, match=message):
        ADConfig(**{**small_settings, "action_space": space})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 18, "num_attention_heads": 4}, r"hidden_size \(18\).*num_attention_heads \(4\)"),
        ({"hidden_size": 6, "num_attention_heads": 2}, r"hidden_size \(6\).*even"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"intermediate_size": 0}, "intermediate_size"),
        ({"context_length": 0}, "context_length"),
        ({"num_action_bins": 1}, "num_action_bins"),
        ({"num_action_components": 0}, "num_action_components"),
        ({"action_distribution": "gaussian"}, "action_distribution"),
        ({"image_channels": []}, "image_channels"),
        ({"image_channels": [8, 0]}, "image_channels"),
        ({"action_space": BOX, "action_distribution": "mixture", "label_smoothing": 0.1}, "label_smoothing"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_dropout": -0.1}, "attention_dropout"),
        ({"input_mask_probability": 2}, "input_mask_probability"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"reward_scale": 0}, "reward_scale"),
        ({"observation_space": UNBOUNDED, "observation_mean": [0.0, 0.0]}, "observation_mean"),
        ({"observation_space": UNBOUNDED, "observation_std": [1.0]}, "observation_std"),
        ({"observation_space": UNBOUNDED, "observation_std": [1.0, 0.0, 1.0]}, "observation_std"),
    ],
)
def test_refuses_numbers_that_do_not_fit_and_names_them(small_settings, settings, message):
    with pytest.raises(ERRORS, match=message):
        ADConfig(**{**small_settings, **settings})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 16.0),
        ("hidden_size", "16"),
        ("context_length", "8"),
        ("num_hidden_layers", None),
        ("reward_scale", "1"),
        ("rope_theta", "ten thousand"),
        ("dropout", "0.1"),
        ("observation_mean", 3.0),
        ("observation_space", ["Discrete", 3]),
        ("backbone_config", "llama"),
    ],
)
def test_refuses_values_of_a_wrong_type_and_names_the_setting(small_settings, name, value):
    with pytest.raises(ERRORS, match=name):
        ADConfig(**{**small_settings, name: value})


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


@pytest.mark.parametrize("backbone", [{"hidden_size": 16}, {"model_type": "no_such_model"}])
def test_refuses_a_backbone_of_no_known_type(small_settings, backbone):
    with pytest.raises(ERRORS, match="model_type"):
        ADConfig(**{**small_settings, "backbone_config": backbone})
