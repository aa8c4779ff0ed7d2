"""A step as ONNX is the step of a rollout, for as long as the rollout goes on."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import ad_hf
from ad_hf.cli import main
from ad_hf.envs.dark_room import DarkRoomVectorEnv
from ad_hf.export.onnx_files import export_onnx

ROOM = {"observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]}, "action_space": {"type": "Discrete", "n": 5}}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "context_length": 24}


def small_model(**settings):
    torch.manual_seed(0)
    return ad_hf.ADModel(ad_hf.ADConfig(**{**ROOM, **SMALL, "initializer_range": 0.3, **settings})).eval()


class Steps:
    """Steps of an export in several rows, as the page takes them in one."""

    def __init__(self, folder, rows):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self.description = json.loads((folder / "model.json").read_text())
        self.rows, self.held = rows, []
        self.clear()

    def clear(self):
        self.cache = {
            name: np.zeros([self.rows if size == "batch" else size for size in each["shape"]], each["type"])
            for name, each in self.description["cache"].items()
        }

    def run(self, step):
        logits, *cache = self.session.run(self.description["outputs"], {**step, **self.cache})
        self.cache = dict(zip(self.cache, cache))
        return logits

    def add(self, step):
        drop, window = self.description["context_drop"], self.description["window"]
        if drop is not None:
            if len(self.held) == window:
                self.held = self.held[drop:]
                self.clear()
                for old in self.held:
                    self.run(old)
            self.held.append(step)
        return self.run(step)


def largest_difference(folder, model, num_steps=500):
    """Between the logits of an export and those of `model.rollout`, over steps with episode ends, in each step."""
    envs = DarkRoomVectorEnv(2, goal=[(4, 5), (3, 4)], max_episode_steps=7)
    out = model.rollout(envs, max_steps=num_steps, epsilon=0.5, output_steps=True, output_logits=True, seed=3)
    steps, differences = Steps(folder, 2), []
    actions = np.roll(out.actions, 1, axis=1).astype(np.int32)
    rewards = np.roll(out.rewards, 1, axis=1).astype(np.float32)
    actions[:, 0], rewards[:, 0] = 5, 0
    for time in range(num_steps):
        step = {"observations": out.observations[:, time].astype(np.int32), "previous_actions": actions[:, time]}
        step |= {"previous_rewards": rewards[:, time], "episode_starts": np.full(2, time % 7 == 0, np.int32)}
        differences.append(np.abs(steps.add(step) - out.logits[:, time]).max())
    assert np.ptp(out.logits) > 1
    assert out.rewards.sum() > 0
    return np.array(differences)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    """A model whose window slides, and its export in half precision."""
    model = small_model()
    return model, export_onnx(model, tmp_path_factory.mktemp("export"))


def test_a_window_that_slides_stays_exact_long_after_it_is_full(sliding):
    model, folder = sliding
    half = small_model().half().float()
    differences = largest_difference(folder, half)
    assert differences.max() < 1e-4
    rounded = largest_difference(folder, model, 100)  # of other weights, the rounding of which shows
    assert 1e-5 < rounded.max() < 0.05


@pytest.mark.parametrize("context_drop", [None, 5])
@pytest.mark.parametrize("layers", ["full", "sliding", "linear", "sliding linear", "linear full", "full sliding"])
def test_every_kind_of_layer_is_the_one_of_a_rollout(tmp_path, layers, context_drop):
    kinds = [f"{kind}_attention" for kind in (layers.split() * 2)[:2]]
    model = small_model(layer_types=kinds, sliding_window=7 if "sliding" in layers else None)
    model.rollout_config.context_drop = context_drop
    assert largest_difference(export_onnx(model, tmp_path, precision="fp32"), model, 150).max() < 1e-4


def test_the_file_tells_nothing_of_the_machine_and_is_the_same_each_time(sliding, tmp_path):
    model, folder = sliding
    again = export_onnx(model, tmp_path)
    content = (folder / "model.onnx").read_bytes()
    assert (again / "model.onnx").read_bytes() == content
    assert b".py" not in content
    graph = onnx.load(folder / "model.onnx").graph
    sizes = {each.data_type: 0 for each in graph.initializer}
    for each in graph.initializer:
        sizes[each.data_type] += np.prod(each.dims)
    assert sizes[onnx.TensorProto.FLOAT16] > 0.97 * sum(weight.numel() for weight in model.parameters())


def test_a_run_tells_its_tasks_and_what_its_source_did(tiny_run, tmp_path, capsys):
    assert main(["export", "onnx", str(tiny_run), "--output_dir", str(tmp_path), "--precision", "fp32"]) == 0
    assert f"step: {tmp_path}/model.onnx" in capsys.readouterr().out
    description = json.loads((tmp_path / "model.json").read_text())
    assert {split: len(tasks) for split, tasks in description["family"]["tasks"].items()} == {
        "train": 6,
        "validation": 1,
        "test": 2,
    }
    assert description["window"] == 12
    assert (description["model"], description["dataset"]) == (None, None)  # folders of this machine


def test_what_cannot_be_exported_is_named(tmp_path):
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama |= {"intermediate_size": 16, "num_key_value_heads": 2, "vocab_size": 2}
    with pytest.raises(ValueError, match="own blocks are exported, this one has a llama backbone"):
        export_onnx(small_model(backbone_config=llama, sliding_window=None), tmp_path)
    model = small_model()
    model.blocks[0].up.register_forward_hook(print)
    with pytest.raises(ValueError, match="has adapters, quantised layers or hooks"):
        export_onnx(model, tmp_path)
    model = small_model()
    with torch.no_grad():
        model.head.linear.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="beyond what half precision holds"):
        export_onnx(model, tmp_path)
