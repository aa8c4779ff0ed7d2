"""The whole way over the Hub: histories go up, a run is interrupted and resumed, its model works elsewhere."""

import json
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ad_hf import ADConfig, ADModel

STEPS = ["--training.max_steps", "60", "--training.save_steps", "10", "--training.eval_steps", "30"]

# Dark Room once more, as someone would write it who has the model and not the package.
ROLLOUT = """
import json
import sys

import gymnasium as gym
import numpy as np
from transformers import AutoModel

name, options, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
taken = []


class Room(gym.Env):
    observation_space = gym.spaces.MultiDiscrete([3, 3])
    action_space = gym.spaces.Discrete(5)
    moves = np.array([[-1, 0], [1, 0], [0, 1], [0, -1], [0, 0]])

    def __init__(self, goal):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = np.array([1, 1]), 0
        return self.position.copy(), {}

    def step(self, action):
        taken.append(int(action))
        self.position = np.clip(self.position + self.moves[action], 0, 2)
        self.steps += 1
        return self.position.copy(), float(tuple(self.position) == self.goal), False, self.steps == 6, {}


model = AutoModel.from_pretrained(name, **options)
envs = gym.vector.SyncVectorEnv([lambda goal=goal: Room(goal) for goal in [(0, 0), (2, 1), (1, 2)]])
out = model.rollout(envs, num_episodes=15, seed=3)
context = model.init_context(2, seed=5)
fixed = [context.act(np.array([[0, step % 3], [1, 2]]), np.array([1.0, 0.0])).tolist() for step in range(40)]
acted = {"returns": out.episode_returns.tolist(), "lengths": out.episode_lengths.tolist(), "taken": taken}
with open(output, "w") as file:
    json.dump({**acted, "fixed": fixed, "class": str(type(model))}, file)
"""

# The same model in two kinds of environments, as it chooses its group by their spaces.
BOTH = """
carts = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
played = [model.rollout(carts, num_episodes=3, seed=3), model.rollout(envs, num_episodes=3, seed=4)]
context = model.group("cart").init_context(1, seed=5)
acted = [part.episode_returns.tolist() for part in played] + [context.act(np.zeros((1, 4), np.float32)).tolist()]
with open(output, "w") as file:
    json.dump({"acted": acted, "class": str(type(model))}, file)
"""
GROUPS_ROLLOUT = ROLLOUT.partition("out = ")[0] + BOTH

WITHOUT_THE_PACKAGE = """
try:
    import ad_hf
    raise SystemExit("this was to be an environment without ad_hf")
except ImportError:
    pass
"""


@pytest.fixture
def python_without_ad_hf(tmp_path):
    """The interpreter of a virtual environment that has all packages of this one but ad_hf."""
    venv, packages = tmp_path / "venv", tmp_path / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages.mkdir()
    folders = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    for entry in (entry for folder in folders if Path(folder).is_dir() for entry in Path(folder).iterdir()):
        if "ad_hf" not in entry.name and entry.suffix != ".pth" and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(f"{packages}\n")
    return venv / "bin" / "python"


def losses(run):
    """Loss and validation return by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_return")) for line in lines]


def stopped_early(whole, run):
    """What a run leaves that is stopped some updates after a checkpoint of another."""
    checkpoint = min(whole.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.copytree(checkpoint, run / checkpoint.name)
    written = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(written[:-5]))


def test_from_histories_over_an_interrupted_run_to_a_model_that_acts_the_same_without_the_package(
    hub, ad_hf_with_hub, run_with_hub, python_without_ad_hf, tiny_histories, tiny_recipe_file, tmp_path
):
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/histories")
    train = ["train", "--recipe", tiny_recipe_file, "--dataset", "local/histories", "--streaming", *STEPS]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ad_hf_with_hub(*train, "--output_dir", whole)

    stopped_early(whole, parts)
    ad_hf_with_hub(*train, "--output_dir", parts, "--resume", "latest")

    assert losses(parts) == losses(whole)
    assert [step for step, _, _ in losses(whole)] == list(range(1, 61))
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (parts, whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())

    ad_hf_with_hub(parts / "model", "{}", tmp_path / "before.json", script=ROLLOUT)
    ad_hf_with_hub("push", "model", parts, "local/model")
    commit = hub.commits("model", "local/model")[0]
    trusted = json.dumps({"trust_remote_code": True, "revision": commit})
    script = WITHOUT_THE_PACKAGE + ROLLOUT
    command = [python_without_ad_hf, "-c", script, "local/model", trusted, tmp_path / "after.json"]
    run_with_hub(command, environment={"PYTHONPATH": ""})

    before, after = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before.pop("class") == "<class 'ad_hf.model.modeling_ad.ADModel'>"
    assert after.pop("class").startswith("<class 'transformers_modules.")
    assert len(set(before["taken"])) > 1
    assert after == before


def test_a_model_of_several_groups_acts_in_each_without_the_package(
    hub, ad_hf_with_hub, run_with_hub, python_without_ad_hf, tmp_path
):
    cart: dict = {"type": "Box", "shape": [4], "low": [None] * 4, "high": [None] * 4, "dtype": "float32"}
    groups = {
        "room": {
            "observation_space": {"type": "MultiDiscrete", "nvec": [3, 3]},
            "action_space": {"type": "Discrete", "n": 5},
        },
        "cart": {"observation_space": cart, "action_space": {"type": "Discrete", "n": 2}},
    }
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "initializer_range": 0.5}
    ADModel(ADConfig(groups=groups, **settings)).save_pretrained(tmp_path / "model")
    ad_hf_with_hub("push", "model", tmp_path / "model", "local/generalist")
    ad_hf_with_hub(tmp_path / "model", "{}", tmp_path / "before.json", script=GROUPS_ROLLOUT)
    trusted = json.dumps({"trust_remote_code": True, "revision": hub.commits("model", "local/generalist")[0]})
    script = WITHOUT_THE_PACKAGE + GROUPS_ROLLOUT
    run_with_hub(
        [python_without_ad_hf, "-c", script, "local/generalist", trusted, tmp_path / "after.json"],
        environment={"PYTHONPATH": ""},
    )

    before, after = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("before", "after"))
    assert after.pop("class").startswith("<class 'transformers_modules.")
    del before["class"]
    assert len(np.unique(np.concatenate(after["acted"][:2], axis=None))) > 1
    assert after == before
