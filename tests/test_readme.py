"""What the documentation shows runs as it is written."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

import ad_hf
from ad_hf.cli import main
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.sources.learners import check_source

ROOT = Path(__file__).parent.parent


def python_blocks(file: str, heading: str) -> list[str]:
    """The Python code under a heading of a markdown file."""
    section = (ROOT / file).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def file_of(page: str, name: str) -> str:
    """The file that a page shows whole: the block of code whose first line names it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (content,) = re.findall(rf"```[a-z]+\n(# {re.escape(name)}\n.*?)```", text, flags=re.DOTALL)
    return content


def small_model(observation_space, action_space, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 200}
    return ADModel(
        ADConfig(observation_space=observation_space, action_space=action_space, **sizes, **settings)
    ).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of somebody who has followed the README up to its section on rollouts, in small."""
    monkeypatch.chdir(tmp_path)
    spaces = {"type": "MultiDiscrete", "nvec": [9, 9]}, {"type": "Discrete", "n": 5}
    small_model(*spaces).save_pretrained("runs/dark_room/model")
    recipe = ad_hf.load_recipe("dark_room")
    family = TaskFamily.from_recipe("dark_room")
    kept = [task.kwargs for task in family.tasks()]
    few = TaskFamily(family.env_id, kept, family.env_kwargs, native_vector=True)
    few.all_tasks = family.tasks("test")[:3]  # with the numbers and the split that they have in the recipe
    ad_hf.collect(few, recipe.source.algorithm, n_envs=2, total_timesteps=800, output_dir="histories", num_workers=1)
    return tmp_path


def test_the_readmes_section_on_rollouts_runs_as_written(folder, capsys):
    blocks = python_blocks("README.md", "Rollout") + python_blocks("docs/guides/rollout.md", "By example")
    assert len(blocks) == 3
    names: dict = {}

    exec(blocks[0], names)
    assert names["out"].episode_returns.shape == (3, 100)
    assert str(names["out"].episode_returns.round(1)) in capsys.readouterr().out

    exec(blocks[1], names)
    assert len(names["histories"]) == 2
    assert names["histories"].column_names[:2] == ["history_id", "task_id"]
    assert [len(prompt["rewards"]) for prompt in names["prompts"]] == [200, 200, 200]
    assert np.isfinite(names["out"].episode_returns).all()

    exec(blocks[2], names)
    assert names["context"].lengths.tolist() == [200, 200, 200]


def test_the_example_of_evaluate_policy_runs_as_written():
    (block,) = python_blocks("docs/guides/rollout.md", "Stable-Baselines3")
    box = {"type": "Box", "shape": [4], "low": [None] * 4, "high": [None] * 4, "dtype": "float32"}
    names: dict = {"model": small_model(box, {"type": "Discrete", "n": 2})}

    exec(block, names)

    assert names["mean"] > 5


def test_the_example_of_planning_runs_as_written():
    (block,) = python_blocks("docs/guides/planning.md", "By example")
    spaces = {"type": "Discrete", "n": 16}, {"type": "Discrete", "n": 4}
    names: dict = {"model": small_model(*spaces, dynamics_weight=0.1)}

    exec(block, names)

    assert names["out"].episode_returns.shape == (1, 5)


def test_the_step_api_is_as_the_documentation_shows_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("docs/guides/rollout.md", "The step API")
    model = small_model({"type": "Discrete", "n": 4}, {"type": "Discrete", "n": 2})
    names: dict = {"model": model, "num_envs": 2, "observations": np.array([1, 2]), "rewards": np.zeros(2)}
    names |= {"episode_starts": np.ones(2, dtype=bool), "mask": np.array([True, False])}

    exec(f"import safetensors.torch\n{block}", names)

    assert names["branch"].lengths.tolist() == [0, 1]
    restored = model.init_context(2)
    import safetensors.torch

    restored.load_state_dict(safetensors.torch.load_file("context.safetensors"))
    np.testing.assert_array_equal(restored.act(names["observations"]), names["branch"].act(names["observations"]))


def test_the_learners_of_ones_own_learn_as_their_page_shows(tmp_path, monkeypatch):
    page = "docs/guides/your_own_learner.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    for name in ("my_learners.py", "my_recipe.yaml", "try_ppo.py"):
        Path(name).write_text(file_of(page, name))
    text = (ROOT / page).read_text(encoding="utf-8").replace("\n--", " --")
    collect, train, evaluate = re.findall(r"^ad-hf (.*)$", text, re.MULTILINE)
    assert main([*shlex.split(collect), "--num_workers", "0"]) == 0
    assert main([*shlex.split(train), "--training.max_steps", "1", "--training.eval_episodes", "1"]) == 0
    assert main([*shlex.split(evaluate), "--num_seeds", "1"]) == 0
    ((recipe, options),) = re.findall(r"`ad-hf collect --recipe (\S+)\s([^`]*)\s--output_dir histories_ppo`", text)
    check_source(ad_hf.load_recipe(recipe, shlex.split(options)).source)
    runpy.run_path("try_ppo.py")
    for folder, label in (("histories", "ExpectedSarsa"), ("tried", "AnnealedPPO")):
        assert f"- Source: {label} (`my_learners.{label}`)" in Path(folder, "README.md").read_text()
    rows = read_metadata("histories").progress["rows"]
    first, last = np.mean([row[4:6] for row in rows], axis=0)
    assert last > first + 2  # of returns of at most 12


def test_histories_of_ones_own_lead_to_a_rollout_as_their_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "your_own_histories.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code.replace("STREAMS, STEPS, SIZE = 8, 1000, 7", "STREAMS, STEPS, SIZE = 2, 200, 7"), {})
    convert, inspect, train, rollout = re.findall(r"^ad-hf (.*)$", text, re.MULTILINE)
    assert main(shlex.split(convert)) == 0
    assert main(shlex.split(inspect)) == 0
    few = ["--training.max_steps=2", "--training.eval_steps=2", "--training.eval_episodes=2"]
    assert main([*shlex.split(train), *few, "--rollout.num_episodes=3", "--model.context_length=40"]) == 0
    assert "other settings of the packaged recipe dark_room" in capsys.readouterr().err
    assert main([*shlex.split(rollout), "--num_seeds", "1"]) == 0
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert [*evaluation["agents"]] == ["AD", "random", "source"]
    assert evaluation["source"]["algorithm"] == "Q-learning"
    assert evaluation["agents"]["AD"]["num_tasks"] == 10


def test_a_model_of_groups_is_as_its_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("docs/guides/mixtures.md", "In Python")

    exec(block, {})

    assert capsys.readouterr().out == "(2, 3)\n"
    assert AutoModel.from_pretrained("room").config.groups is None


def test_the_recipe_of_a_mixture_is_one(tmp_path):
    text = (ROOT / "docs" / "guides" / "mixtures.md").read_text(encoding="utf-8")
    (tmp_path / "mixed.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])

    recipe = ad_hf.load_recipe(tmp_path / "mixed.yaml")

    assert set(recipe.members()) == {"dark_room", "dark_key_to_door", "frozen_lake", "cartpole"}
    assert recipe.mixture.weights == {"cartpole": 0.5}
