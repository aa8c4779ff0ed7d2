"""
transformers' own tests of models and configurations, of the installed version, hold for ours.

They are in no wheel, but in the source distribution: that is taken from the folder `TRANSFORMERS_SOURCE`, or
downloaded to `build/`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import unittest
from pathlib import Path

import pytest
import torch
import transformers

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

pytestmark = pytest.mark.slow

BUILD = Path(__file__).resolve().parents[2] / "build" / f"transformers-{transformers.__version__}"

# The distribution lacks the modules below the tests' own folder; of these names alone the common tests make use.
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'output_attentions': True, "
        "'dtype': 'float16', 'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'}, "
        "'label2id': {'label': 0}, 'problem_type': 'regression'}\n"
    ),
}

# Tests that are about text tokens: token ids and their embeddings, which a model of steps has none of.
OF_TOKENS = {
    "test_inputs_embeds",
    "test_inputs_embeds_matches_input_ids",
    "test_resize_tokens_embeddings",
    "test_resize_embeddings_untied",
    "test_resize_embeddings_untied_no_reinit_on_post_init",
    "test_model_get_set_embeddings",
}

# Tests that look at attention weights; all others hold for layers of linear attention alone, too.
OF_ATTENTION_WEIGHTS = {"test_attention_outputs", "test_retain_grad_hidden_states_attentions"}


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def common():
    """The modules `test_modeling_common` and `test_configuration_common` of transformers."""
    source = Path(os.environ.get("TRANSFORMERS_SOURCE", BUILD / f"transformers-{transformers.__version__}"))
    if not (source / "tests").is_dir():
        requirement = f"transformers=={transformers.__version__}"
        try:
            pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(BUILD), requirement)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the source of {requirement} cannot be had: {error}; unpack it and set TRANSFORMERS_SOURCE")
        with tarfile.open(next(BUILD.glob("*.tar.gz"))) as archive:
            archive.extractall(BUILD, filter="data")
    for name, text in STUBS.items():
        file = source / "tests" / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
    try:
        importlib.import_module("parameterized")
    except ImportError:  # which the common tests need, and nothing else does
        pip("install", "--no-deps", "--target", str(BUILD / "packages"), "parameterized")
    paths = [str(source), str(BUILD / "packages")]
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "tests"}
    sys.path[:0] = paths
    try:
        yield [
            importlib.import_module(f"tests.{name}") for name in ("test_modeling_common", "test_configuration_common")
        ]
    finally:
        sys.path[:] = [path for path in sys.path if path not in paths]
        sys.modules.update(hidden)


SPACES = {"observation_space": {"type": "Discrete", "n": 7}, "action_space": {"type": "Discrete", "n": 5}}


class Tester:
    """What the common tests ask for a small configuration, inputs, and the sizes of both."""

    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_attention_heads, expected_num_hidden_layers = (
        16,
        2,
        3,
    )  # the tokens, and what 2 blocks make of them

    def __init__(self, parent, **settings):
        self.parent, self.settings = parent, settings
        kinds = settings.get("layer_types", ["sliding_attention"] * 2)
        self.num_hidden_layers = len(kinds) - kinds.count(
            "linear_attention"
        )  # of which attention weights are expected

    def get_config(self):
        sizes = {name: getattr(self, name) for name in ("hidden_size", "num_attention_heads")}
        sizes |= {"num_hidden_layers": 2, "intermediate_size": 32, "context_length": 16}
        return ADConfig(**{**SPACES, **sizes, **self.settings})

    def prepare_config_and_inputs_for_common(self):
        config, shape = self.get_config(), (self.batch_size, self.seq_length)
        vector = config.observation_space["type"] == "Box"
        return config, {
            "observations": torch.randn(*shape, 3) if vector else torch.randint(7, shape),
            "previous_actions": torch.rand(*shape, 2) if vector else torch.randint(6, shape),
            "previous_rewards": torch.rand(shape),
            "episode_starts": torch.randint(2, shape),
        }


VECTOR = {"type": "Box", "shape": [3], "low": [None] * 3, "high": [None] * 3, "dtype": "float32"}
BOX = {"type": "Box", "shape": [2], "low": [0.0, 0.0], "high": [1.0, 2.0], "dtype": "float32"}
SCALES = {"observation_mean": [0.0] * 3, "observation_std": [2.0] * 3}
VECTORS = {"observation_space": VECTOR, "action_space": BOX, **SCALES}
MODELS = {
    "discrete": {},
    "vectors": VECTORS,
    "linear": {"layer_types": ["linear_attention"] * 2},
    "linear and sliding": {"layer_types": ["linear_attention", "sliding_attention"]},
    "full and linear": {"layer_types": ["full_attention", "linear_attention"]},
    "sliding and full": {"layer_types": ["sliding_attention", "full_attention"]},
}


def run(case):
    """The result of all tests of a case, and one line on it."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    bad = result.failures + result.errors
    passed = result.testsRun - len({str(test) for test, _ in bad}) - len(result.skipped)
    print(f"\n{case.__name__}: {passed} passed, {len(bad)} failed, {len(result.skipped)} skipped")
    for test, reason in result.skipped:
        print(f"  skipped {test.id().rpartition('.')[2]}: {reason}")
    return bad, result.skipped


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_the_common_tests_of_models_hold(common, settings, monkeypatch):
    modeling, _ = common
    skipped = dict.fromkeys(OF_TOKENS, "of text tokens")
    kinds, assign = settings.get("layer_types", ["sliding_attention"]), ADConfig.__setattr__
    if "sliding_attention" not in kinds:  # they set the window of every configuration that has such a field

        def assign_but_the_window(self, name, value):
            assign(self, name, None if name == "sliding_window" else value)

        monkeypatch.setattr(ADConfig, "__setattr__", assign_but_the_window)
    if {*kinds} == {"linear_attention"}:
        skipped |= dict.fromkeys(OF_ATTENTION_WEIGHTS, "of attention weights")

    def set_up(self):
        self.model_tester = Tester(self, **settings)

    labelled = modeling.ModelTesterMixin._prepare_for_class

    def prepare(self, inputs, model_class, return_labels=False):
        inputs = labelled(self, inputs, model_class, return_labels)
        if return_labels:
            inputs["labels"] = inputs["previous_actions"].clamp(max=4)
        return inputs

    body = {
        "all_model_classes": (ADModel,),
        "additional_model_inputs": ["previous_actions", "previous_rewards", "episode_starts"],
        "test_resize_embeddings": False,
        "test_can_init_all_missing_weights_before_2023": True,  # ours has no year in its file
        "setUp": set_up,
        "_prepare_for_class": prepare,
    }
    for name in skipped.keys() & set(dir(modeling.ModelTesterMixin)):
        body[name] = unittest.skip(skipped[name])(lambda self: None)
    bad, _ = run(type("ADModelTest", (modeling.ModelTesterMixin, unittest.TestCase), body))

    assert not bad, "\n".join(f"{test.id()}: {error[-1500:]}" for test, error in bad)


def test_the_common_tests_of_configurations_hold(common):
    _, configuration = common

    def test_config(self):
        settings = {"config_class": ADConfig, "has_text_modality": False, **SPACES, "hidden_size": 16}
        tester = configuration.ConfigTester(self, **settings)
        self.model_tester = Tester(self)
        tester.run_common_tests()

    bad, skipped = run(type("ADConfigTest", (unittest.TestCase,), {"test_config": test_config}))

    assert not bad, bad
    assert not skipped
