"""A saved model: exact, complete, free of pickles, and loadable with and without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from context_reference import BOX, GPT2, LLAMA, VECTOR
from transformers import AutoModel

from ad_hf.model import modeling_ad
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig

VECTORS = {
    "observation_space": VECTOR,
    "action_space": BOX,
    "observation_mean": [1.0, 2.0, 3.0],
    "label_smoothing": 0.1,
}
MODULES = sorted(path.name for path in Path(modeling_ad.__file__).parent.glob("*_ad.py"))

# Run where `ad_hf` cannot be imported, as on the machine of someone who found the model on the Hub.
WITHOUT_THE_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ad_hf", "gymnasium", "stable_baselines3"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import torch
from transformers import AutoModel

folder, inputs, logits, copy = sys.argv[1:]
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded code from the folder without being told to trust it")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert model.rollout_config.num_episodes == 3
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).logits, logits)
actions = model.init_context(2).act(np.array([1, 2]))
assert actions.shape == (2,)
model.save_pretrained(copy)
"""

WITH_THE_PACKAGE = """
import sys

import ad_hf
import torch
from transformers import AutoConfig, AutoModel

folder, inputs, logits, copy = sys.argv[1:]
assert type(AutoConfig.from_pretrained(folder)) is ad_hf.ADConfig
model = AutoModel.from_pretrained(folder)
assert type(model) is ad_hf.ADModel
assert model.rollout_config == ad_hf.RolloutConfig(num_episodes=3)
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).logits, logits)
model.save_pretrained(copy)
"""


def run_elsewhere(script, tmp_path, *arguments):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "settings",
    [{}, VECTORS, {"backbone_config": LLAMA}, {"backbone_config": GPT2}],
    ids=["own blocks", "boxes", "llama", "gpt2"],
)
def test_saved_and_loaded_is_the_same_model(make_model, make_history, tmp_path, settings):
    model = make_model(**settings)
    inputs, labels = make_history(model.config)
    model.save_pretrained(tmp_path)

    loaded, info = ADModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    output, expected = loaded(**inputs, labels=labels), model(**inputs, labels=labels)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


def test_a_model_loads_in_another_precision(make_model, make_history, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)

    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)

    logits = loaded(**make_history(model.config)[0]).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(**make_history(model.config)[0]).logits).abs().mean() < 0.1


def test_a_saved_folder_is_complete_and_holds_no_pickle(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)

    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(["config.json", "model.safetensors", "rollout_config.json", *MODULES])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "modeling_ad.ADModel"}
    assert config["architectures"] == ["ADModel"]


def test_only_the_main_process_writes(make_model, tmp_path):
    make_model().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "rollout_config.json").exists()


@pytest.mark.parametrize("script", [WITH_THE_PACKAGE, WITHOUT_THE_PACKAGE], ids=["with", "without"])
def test_a_saved_folder_loads_with_the_package_or_with_trust_in_its_code(make_model, make_history, tmp_path, script):
    model = make_model()
    model.rollout_config = RolloutConfig(num_episodes=3)
    model.save_pretrained(tmp_path / "model")
    inputs, _ = make_history(model.config)
    torch.save(inputs, tmp_path / "inputs.pt")

    run_elsewhere(script, tmp_path, *(tmp_path / name for name in ("model", "inputs.pt", "logits.pt", "copy")))

    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**inputs).logits)
    copy = tmp_path / "copy"
    assert {path.name for path in copy.iterdir()} == {path.name for path in (tmp_path / "model").iterdir()}
    assert torch.equal(ADModel.from_pretrained(copy)(**inputs).logits, model(**inputs).logits)
