"""Recipes: what a file and overrides say is what is run, and what they cannot mean is refused by name."""

from dataclasses import asdict, replace

import pytest
import yaml

from ad_hf.envs.recipes import recipe_names, recipe_path
from ad_hf.envs.task_family import TaskFamily
from ad_hf.recipe import Recipe, load_recipe

RECIPE = """
family:
  env_id: ad_hf/DarkRoom-v0
  env_kwargs: {size: 5, max_episode_steps: 10}
  grid: {goal: {shape: [5, 5]}, sparse_reward: [true, false]}
  num_test_tasks: 4
source:
  algorithm: PPO
  hyperparameters: {learning_rate: 3e-4, n_steps: 16, policy_kwargs: {net_arch: [8, 8]}}
  seeds: [0, 4]
data:
  max_episodes: 30
training:
  learning_rate: 1e-3
  max_steps: 7
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def write(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def test_file_is_read_with_its_types(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.family.env_kwargs == {"size": 5, "max_episode_steps": 10}
    assert recipe.family.grid == {"goal": {"shape": [5, 5]}, "sparse_reward": [True, False]}
    assert recipe.source.algorithm == "PPO"
    assert recipe.source.hyperparameters == {
        "learning_rate": 0.0003,
        "n_steps": 16,
        "policy_kwargs": {"net_arch": [8, 8]},
    }
    assert recipe.source.seeds == [0, 4]
    assert recipe.data.max_episodes == 30
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (0.001, 7)


def test_settings_that_a_file_leaves_out_have_their_defaults(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.model == Recipe().model
    assert recipe.rollout == Recipe().rollout
    assert recipe.data.keep_every_episode == Recipe().data.keep_every_episode
    assert recipe.training.batch_size == Recipe().training.batch_size


def test_overrides_take_the_place_of_the_files_settings(recipe_file):
    overrides = [
        "--training.learning_rate",
        "3e-4",
        "--data.max_episodes=null",
        "--source.seeds",
        "[7]",
        "--source.hyperparameters.n_steps",
        "32",
        "--family.env_kwargs.size=7",
        "--source.algorithm",
        "A2C",
        "--rollout.do_sample",
        "false",
    ]
    recipe = load_recipe(recipe_file, overrides)
    expected = load_recipe(recipe_file)
    expected.training.learning_rate = 0.0003
    expected.data.max_episodes = None
    expected.source.seeds = [7]
    expected.source.hyperparameters["n_steps"] = 32
    expected.family.env_kwargs["size"] = 7
    expected.source.algorithm = "A2C"
    expected.rollout.do_sample = False
    assert recipe == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--training.max_step", "3"], "training.max_step"),
        (["--trainer.max_steps", "3"], "trainer.max_steps"),
        (["stray"], "stray"),
        (["--training.max_steps"], "max_steps"),
        (["--training.max_steps", "ten"], "training.max_steps.*ten"),
        (["--training.max_steps", "1.5"], "training.max_steps.*1.5"),
        (["--training.learning_rate", "fast"], "training.learning_rate.*fast"),
        (["--source.seeds", "[a]"], "source.seeds"),
        (["--rollout.do_sample", "3"], "rollout.do_sample"),
        (["--training.max_steps", "0"], "training.max_steps must be at least 1, got 0"),
        (["--training.mixed_precision", "fp8"], "training.mixed_precision.*fp8"),
        (["--rollout.temperature", "-1"], "rollout.temperature must be .*above 0"),
    ],
    ids=str,
)
def test_wrong_overrides_are_refused_by_name(recipe_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_step: 3}", "training.*max_step"),
        ("trainer: {max_steps: 3}", "trainer"),
        ("learning_rate: 3", "learning_rate"),
        ("training: {max_steps: ten}", "training.max_steps.*ten"),
        ("training: {max_steps: 1.5}", "training.max_steps.*1.5"),
        ("source: {seeds: 3.5}", "source.seeds"),
        ("family: {tasks: [3]}", "family.tasks"),
        ("training: {max_steps: 0}", "training.max_steps must be at least 1"),
        ("- training", "recipe.yaml"),
        ("training: {max_steps: [", "recipe.yaml"),
        ("training: 3", "training"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


def test_section_without_settings_has_the_defaults(tmp_path):
    path = write(tmp_path, "data:\n  # max_episodes: 3\ntraining:\n  max_steps: 7\n")
    recipe = load_recipe(path)
    assert recipe.data == Recipe().data
    assert recipe.training.max_steps == 7


def test_quoted_text_stays_text(tmp_path):
    recipe = load_recipe(write(tmp_path, "family: {env_kwargs: {level: '7', lights: 'off', name: lake}}"))
    assert recipe.family.env_kwargs == {"level": "7", "lights": "off", "name": "lake"}


def test_unknown_recipe_is_refused_with_those_that_exist(tmp_path):
    assert "dark_room" in recipe_names()
    for unknown in ("light_room", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected one of .*dark_room.*or a YAML file"):
            load_recipe(unknown)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_with_the_package_are_complete(name):
    recipe = load_recipe(name)
    assert recipe_path(name).is_file()
    assert recipe.family.env_id
    family = TaskFamily(recipe.family)
    assert len(family.tasks("test")) >= 5
    assert len(family.tasks("validation")) >= 3


def test_complete_recipe_comes_back_from_its_yaml(recipe_file, tmp_path):
    overrides = [
        "--training.learning_rate",
        "1e-05",
        "--model.backbone_config",
        "{model_type: llama, rms_norm_eps: 1e-6}",
    ]
    for recipe in (Recipe(), load_recipe(recipe_file, overrides), load_recipe("dark_room")):
        text = recipe.to_yaml()
        complete = replace(recipe, rollout=recipe.rollout.resolve())
        assert load_recipe(write(tmp_path, text)) == complete
        assert yaml.safe_load(text) == asdict(complete)
