"""Recipes: the file and overrides decide what is run, and what they cannot mean is refused by name."""

from dataclasses import asdict, fields, replace

import pytest
import yaml

from ad_hf.cli import main
from ad_hf.envs.recipes import recipe_names
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.task_family import TaskFamily
from ad_hf.recipe import SECTIONS, Recipe, load_recipe, settings_help
from ad_hf.recipe_list import COLUMNS, describe, measured, minutes
from ad_hf.sources.learners import make_learner

# Recipes whose environments need a package that is not installed by default.
EXTRAS = {"metaworld_reach": "metaworld", "minigrid_fetch": "minigrid"}

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
  # max_episodes: 3
training:
  learning_rate: 1e-3
  max_steps: 7
"""


@pytest.fixture
def load(tmp_path):
    """Load a recipe of some text."""

    def read(text, overrides=()):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return read


def test_a_file_is_read_with_its_types_and_the_rest_has_its_defaults(load):
    recipe, expected = load(RECIPE), Recipe()
    expected.family.env_id, expected.family.num_test_tasks = "ad_hf/DarkRoom-v0", 4
    expected.family.env_kwargs = {"size": 5, "max_episode_steps": 10}
    expected.family.grid = {"goal": {"shape": [5, 5]}, "sparse_reward": [True, False]}
    expected.source.algorithm, expected.source.seeds = "PPO", [0, 4]
    network = {"net_arch": [8, 8]}
    expected.source.hyperparameters = {"learning_rate": 0.0003, "n_steps": 16, "policy_kwargs": network}
    expected.training.learning_rate, expected.training.max_steps = 0.001, 7
    assert recipe == expected
    recipe = load("family: {env_kwargs: {level: '7', lights: 'off', name: lake}}")
    assert recipe.family.env_kwargs == {"level": "7", "lights": "off", "name": "lake"}


def test_overrides_take_the_place_of_the_files_settings(load):
    overrides = """--training.learning_rate 3e-4 --data.max_episodes=null --source.seeds [7] --data.labels 7
        --source.hyperparameters.n_steps 32 --family.env_kwargs.size=7 --source.algorithm A2C
        --rollout.do_sample false --rollout.mixed_precision no --model.sliding_window null"""
    recipe, expected = load(RECIPE, overrides.split()), load(RECIPE)
    expected.training.learning_rate = 0.0003
    expected.data.max_episodes, expected.data.labels = None, "7"
    expected.source.seeds, expected.source.algorithm = [7], "A2C"
    expected.source.hyperparameters["n_steps"] = 32
    expected.family.env_kwargs["size"] = 7
    expected.rollout.do_sample, expected.rollout.mixed_precision = False, "no"
    expected.model.sliding_window = None
    assert recipe == expected


OVERRIDES = [
    ("--training.max_step 3", "training.max_step"),
    ("--trainer.max_steps 3", "trainer.max_steps"),
    ("stray", "stray"),
    ("--training.max_steps", "max_steps needs a value"),
    ("--training.max_steps --training.seed 3", "max_steps needs a value"),
    ("--training.max_steps ten", "training.max_steps.*ten"),
    ("--training.max_steps 1.5", "training.max_steps.*1.5"),
    ("--training.learning_rate fast", "training.learning_rate.*fast"),
    ("--training.optimizer.kind adamw", "training.optimizer"),
    ("--source.algorithm.kind A2C", "source.algorithm is 'PPO', which has no settings"),
    ("--source.seeds [a]", "source.seeds"),
    ("--rollout.do_sample 3", "rollout.do_sample"),
    ("--training.max_steps 0", "training.max_steps must be at least 1, got 0"),
    ("--training.mixed_precision fp8", "training.mixed_precision.*fp8"),
    ("--rollout.temperature -1", "rollout.temperature must be .*above 0"),
    ("--model.hidden_size 0", "model.hidden_size must be at least 1, got 0"),
]
FILES = [
    ("training: {max_step: 3}", "training.*max_step"),
    ("trainer: {max_steps: 3}", "trainer"),
    ("learning_rate: 3", "learning_rate"),
    ("training: {max_steps: ten}", "training.max_steps.*ten"),
    ("source: {seeds: 3.5}", "source.seeds"),
    ("family: {tasks: [3]}", "family.tasks"),
    ("model: {hidden: 3}", "unknown setting model.hidden"),
    ("model: {observation_space: {type: Discrete, n: 3}}", "unknown setting model.observation_space"),
    ("- training", "recipe.yaml"),
    ("training: {max_steps: [", "recipe.yaml"),
    ("training: 3", "training"),
]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [*((RECIPE, option, message) for option, message in OVERRIDES), *((text, "", message) for text, message in FILES)],
)
def test_wrong_files_and_overrides_are_refused_by_name(load, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(text, overrides.split())


def test_unknown_recipe_is_refused_with_those_that_exist(tmp_path):
    assert "dark_room" in recipe_names()
    for unknown in ("light_room", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected one of .*dark_room.*or a YAML file"):
            load_recipe(unknown)


def test_complete_recipe_comes_back_from_its_yaml(load):
    overrides = [
        "--training.learning_rate",
        "1e-05",
        "--model.backbone_config",
        "{model_type: llama, rope_theta: 1e6}",
    ]
    for recipe in (Recipe(), load(RECIPE, overrides), load_recipe("dark_room")):
        complete = replace(recipe, rollout=recipe.rollout.resolve())
        assert load(recipe.to_yaml()) == complete
        assert yaml.safe_load(recipe.to_yaml()) == asdict(complete)


def test_the_help_describes_every_setting():
    text = settings_help(list(SECTIONS), 100)
    for section, declared in SECTIONS.items():
        for each in fields(declared):
            assert f"--{section}.{each.name} " in text
    assert "Width of the tokens (default: 128)" in " ".join(text.split())


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_makes_its_environments_and_fits_its_learner(name):
    assert describe(name)["recipe"] == name
    recipe = load_recipe(name)
    if recipe.mixture.recipes:
        assert set(recipe.members()) < set(recipe_names())
        return
    family = TaskFamily(recipe.family)
    assert family.tasks("train")
    assert len(family.tasks("test")) >= 5
    assert len(family.tasks("validation")) >= 3
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    envs = family.make_vec(family.tasks("train")[:1], num_envs=2, seed=0)
    observed = SourceObservation(envs, family.source_observation) if family.source_observation else envs
    make_learner(recipe.source.algorithm, SB3VecEnv(observed), 0, recipe.source.hyperparameters)
    envs.close()


def test_the_command_lists_every_recipe_with_its_size_and_time(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(COLUMNS)
    listed = lines[1 : lines.index("")]
    assert [line.split()[0] for line in listed] == recipe_names()
    dark_room = next(line for line in listed if line.startswith("dark_room "))
    for part in ("ad_hf/DarkRoom-v0", "57 + 8 + 16", "A2C x 50", "4.0 M", "4 x 128, 200 steps", "26 s", "46 s"):
        assert part in dark_room
    assert set(measured()) <= set(recipe_names())
    assert [minutes(seconds) for seconds in (None, 7.4, 99, 400)] == ["-", "7 s", "99 s", "7 min"]
