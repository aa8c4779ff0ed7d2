"""Weights that are not those of their model, by the doors that read them: a refusal that names file and tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ad_hf
from ad_hf.hub.models import load_model
from ad_hf.hub.weights import check_weights

SPACES = {
    "observation_space": {"type": "MultiDiscrete", "nvec": [3, 3]},
    "action_space": {"type": "Discrete", "n": 5},
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BIAS, UP = "head.linear.bias", "blocks.1.up.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model in one file, and in parts."""
    folder, model = tmp_path_factory.mktemp("models"), ad_hf.ADModel(ad_hf.ADConfig(**SPACES, **SIZES))
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "parts", max_shard_size="8KB")
    return folder


@pytest.fixture
def copy(models, tmp_path):
    return lambda kind: shutil.copytree(models / kind, tmp_path / "model", symlinks=True)


def cut(share):
    def change(file):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return change


def bytes_(content):
    return lambda file: file.write_bytes(content)


def tensors(change):
    def rewrite(file):
        weights = load_file(file)
        change(weights)
        save_file(weights, file, metadata={"format": "pt"})

    return rewrite


def without(name):
    return tensors(lambda weights: weights.pop(name))


def put(name, value):
    return tensors(lambda weights: weights.update({name: value}))


def spoil(name, value):
    return tensors(lambda weights: weights[name].view(-1)[-1:].fill_(value))


def config(**settings):
    def rewrite(file):
        file = file.with_name("config.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return rewrite


WRONG = {
    "empty file": (bytes_(b""), "model.safetensors is not a whole file of safetensors"),
    "cut in its header": (cut(0.01), "model.safetensors is not a whole file of safetensors"),
    "cut in the middle": (cut(0.5), "model.safetensors is not a whole file of safetensors"),
    "cut at its end": (cut(0.999), "model.safetensors is not a whole file of safetensors"),
    "text": (bytes_(b"weights"), "model.safetensors is not a whole file of safetensors"),
    "endless header": (bytes_(b"\xff" * 7 + b"\x0f{}"), "model.safetensors is not a whole file of safetensors"),
    "gone": (lambda file: file.unlink(), r"model\.safetensors is missing"),
    "a pickle instead": (lambda file: file.rename(file.with_name("pytorch_model.bin")), r"safetensors is missing"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), r"model\.safetensors is missing"),
    "no tensors": (
        tensors(dict.clear),
        r"model\.safetensors .* and \d+ more are miss",
    ),
    "one missing": (without(BIAS), f"{BIAS} is missing"),
    "one too many": (put("blocks.2.up.weight", torch.zeros(3)), r"blocks\.2\.up\.weight is unexpected"),
    "another shape": (put(BIAS, torch.zeros(2)), r"head\.linear\.bias \(\[2\], expected \[5\]\) is of another shape"),
    "a NaN": (spoil(BIAS, float("nan")), rf"model\.safetensors: {BIAS} has numbers that are not finite"),
    "an infinity": (spoil(UP, float("inf")), rf"model\.safetensors: {UP} has numbers that are not finite"),
    "more layers": (config(num_hidden_layers=3), r"blocks\.2\..* are missing"),
    "fewer layers": (config(num_hidden_layers=1), r"blocks\.1\..* are unexpected"),
    "wider": (config(hidden_size=32), r"expected \[.*32.*\]\).* are of another shape"),
    "other actions": (config(action_space={"type": "Discrete", "n": 7}), r"\[5\], expected \[7\]"),
    "endless layers": (config(num_hidden_layers=10**9), r"config\.json: a model of .*num_hidden_layers 1000000000"),
    "endless width": (config(hidden_size=10**12), r"config\.json: a model of hidden_size 1000000000000, .* memory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights_are_refused(copy, name):
    change, expected = WRONG[name]
    folder = copy("whole")
    change(folder / "model.safetensors")
    with pytest.raises((ValueError, OSError), match=expected):
        load_model(folder)


def _index(**entries):
    def change(folder):
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: None, None),
        (lambda folder: next(folder.glob("model-00002-of-*")).unlink(), r"model-00002-of-\d+\.safetensors is missing"),
        (
            lambda folder: cut(0.9)(next(folder.glob("model-00002-of-*"))),
            r"model-00002-of-\d+\.safetensors is not a w",
        ),
        (_index(weight_map={}), "must have a weight_map"),
        (_index(weight_map={"a": 1}), "must have a weight_map"),
        (_index(weight_map={BIAS: "../model.safetensors"}), "outside of its folder"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "must hold a mapping"),
    ],
    ids=["whole", "a part is gone", "a part is cut", "empty", "no text", "elsewhere", "a list"],
)
def test_weights_in_parts(copy, change, expected):
    folder = copy("parts")
    change(folder)
    if expected is None:
        load_model(folder)
        return
    with pytest.raises((ValueError, OSError), match=expected):
        load_model(folder)


def test_the_weights_of_a_backbone_may_be_renamed_by_the_library(tmp_path):
    """As those of experts, which transformers keeps apart in files and together in memory."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    backbone = {"model_type": "mixtral", "hidden_size": 16, "vocab_size": 3, "num_local_experts": 2, **sizes}
    ad_hf.ADModel(ad_hf.ADConfig(**SPACES, backbone_config=backbone)).save_pretrained(tmp_path)
    check_weights(tmp_path)
    name = "backbone.layers.0.block_sparse_moe.experts.1.w1.weight"
    without(name)(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights of"):
        check_weights(tmp_path)
