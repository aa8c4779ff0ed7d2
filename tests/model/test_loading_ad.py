"""Loading a model: what is damaged, of another model, or can run other people's code is refused by name."""

import json
import os
import re
import shutil

import pytest
import torch
from context_reference import LLAMA
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ad_hf.model.modeling_ad import ADModel

DOORS = [ADModel.from_pretrained, AutoModel.from_pretrained]
KERNEL = "somebody/kernel"


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


REFUSED_WEIGHTS = [
    (lambda weights: weights.pop("norm.weight"), "norm.weight is missing"),
    (lambda weights: weights.update(more=torch.zeros(2)), "more is none of the model's"),
    (lambda weights: weights.clear(), "and 26 more"),
    (lambda weights: weights.update({"head.linear.bias": torch.zeros(7)}), r"head.linear.bias has shape \(7,.* \(5,"),
    (lambda weights: weights["norm.bias"].fill_(torch.nan), "not all finite: norm.bias"),
    (lambda weights: weights["head.linear.bias"][:1].fill_(torch.inf), "not all finite: head.linear.bias"),
]


def test_weights_of_another_model_are_refused_by_name(saved, tmp_path):
    for number, (change, message) in enumerate(REFUSED_WEIGHTS):
        folder = shutil.copytree(saved, tmp_path / str(number))
        change_weights(folder, change)
        for load in DOORS:
            with pytest.raises(ValueError, match=f"{re.escape(str(folder))}.*{message}"):
                load(folder)


def test_weights_of_another_model_are_the_librarys_matter_when_asked_for(folder):
    change_weights(folder, lambda weights: weights.update({"head.linear.bias": torch.zeros(7)}))
    change_weights(folder, lambda weights: weights.pop("norm.bias"))

    model, info = ADModel.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)

    assert info["missing_keys"] == {"norm.bias"}
    assert model.head.linear.bias.shape == (5,)
    assert ADModel.from_pretrained(folder, ignore_mismatched_sizes=True).config == model.config


def test_damaged_weights_are_named(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, -1):
        file.write_bytes(whole[:size])
        with pytest.raises(OSError, match=f"{re.escape(str(file))} is damaged"):
            ADModel.from_pretrained(folder)
    file.write_bytes(whole)
    for index, message in (("[]", "must hold a JSON object"), ("{}", "must hold a weight_map")):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises((OSError, ValueError), match=f"model.safetensors.index.json.*{message}"):
            ADModel.from_pretrained(folder)


def test_pickles_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    os.remove(folder / "model.safetensors")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("load", DOORS, ids=["ADModel", "AutoModel"])
@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": KERNEL},
        {"attn_implementation": {"": KERNEL}},
        {"attn_implementation": "flash_attention_2"},  # whose kernel is downloaded where it is not installed
        {"_attn_implementation": KERNEL},
        {"_experts_implementation": KERNEL},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"fusion_config": {"patch_embeddings": True}},
        {"transformers_weights": "other.safetensors"},
        {"backbone_config": {**LLAMA, "attn_implementation": KERNEL}},
        {"backbone_config": {**LLAMA, "auto_map": {"AutoModel": "somebody/model--modeling.Model"}}},
        {"backbone_config": {**LLAMA, "text_config": {"quantization_config": {"bits": 4}}}},
    ],
    ids=str,
)
def test_what_can_run_other_peoples_code_needs_to_be_trusted(folder, load, entries):
    change_config(folder, **entries)
    with pytest.raises(ValueError, match=f"{'.*'.join(entries)}.*trust_remote_code=True"):
        load(folder)
    try:  # whatever becomes of it in the library
        load(folder, trust_remote_code=True)
    except Exception as error:
        assert "trust_remote_code" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("load", DOORS, ids=["ADModel", "AutoModel"])
def test_what_is_trusted_loads(make_model, tmp_path, load):
    make_model(backbone_config=LLAMA).save_pretrained(tmp_path)
    change_config(tmp_path, backbone_config={**LLAMA, "auto_map": {"AutoModel": "nobody/nothing--modeling.Model"}})

    model = load(tmp_path, trust_remote_code=True)

    assert type(model.backbone).__module__.startswith("transformers.models.llama")
    model.save_pretrained(tmp_path / "copy")
    assert "untrusted" not in (tmp_path / "copy" / "config.json").read_text()


def test_what_a_user_says_is_the_users_own(folder):
    assert AutoModel.from_pretrained(folder, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(ImportError, match="kernels"):
        AutoModel.from_pretrained(folder, attn_implementation=KERNEL)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"dtype": "evil"}, "dtype must be a floating-point type"),
        ({"dtype": "load"}, "dtype must be a floating-point type"),
        ({"torch_dtype": "int8"}, "torch_dtype must be a floating-point type"),
        ({"to_dict": 1}, "to_dict is no setting of ADConfig"),
        ({"attribute_map": {"seed": "hidden_size"}}, "attribute_map is no setting"),
        ({"backbone_config": {**LLAMA, "save_pretrained": 1}}, "backbone_config.save_pretrained is no setting"),
        ({"backbone_config": {**LLAMA, "dtype": "evil"}}, "backbone_config of type llama: .*evil"),
        ({"hidden_size": 10**9}, "hidden_size.*bytes"),
        ({"rope_theta": 0}, "rope_theta must be"),
    ],
)
def test_settings_that_are_none_are_named(folder, entries, message):
    change_config(folder, **entries)
    for load in DOORS:
        with pytest.raises(ValueError, match=message):
            load(folder)


@pytest.mark.parametrize("name", ["config.json", "rollout_config.json"])
def test_files_that_are_not_json_objects_are_named(folder, name):
    for content in (b"", b"{", b"null", b"[1]", b"5", b"[" * 100_000, b"\xff\xfe"):
        (folder / name).write_bytes(content)
        with pytest.raises((ValueError, OSError), match=re.escape(str(folder / name))):
            ADModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"), [('{"nope": 1}', "unknown rollout setting 'nope'"), ('{"top_p": 2}', "top_p")]
)
def test_rollout_settings_of_a_model_are_checked(folder, text, message):
    (folder / "rollout_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"rollout_config\.json: {message}"):
        ADModel.from_pretrained(folder)


def test_weights_are_as_readable_as_other_files(make_model, tmp_path):
    before = os.umask(0o027)
    try:
        make_model().save_pretrained(tmp_path, max_shard_size="4KB")
    finally:
        os.umask(before)
    files = [*tmp_path.glob("*.safetensors"), tmp_path / "config.json"]
    assert len(files) > 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}


def test_models_of_older_versions_load(make_model, make_history, tmp_path):
    space = {"type": "Box", "shape": [2], "low": [None] * 2, "high": [None] * 2, "dtype": "float32"}
    model = make_model(observation_space=space, observation_mean=[1.0, 2.0], observation_std=[3.0, 4.0])
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("observation_scale", "observation_std"))

    loaded = AutoModel.from_pretrained(tmp_path)

    assert loaded.config.observation_std == [3.0, 4.0]
    inputs, _ = make_history(model.config)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
