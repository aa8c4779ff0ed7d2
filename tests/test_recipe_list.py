"""The list of recipes: complete, and true to the recipes."""

import pytest

from ad_hf.cli import main
from ad_hf.envs.recipes import recipe_names
from ad_hf.envs.task_family import TaskFamily
from ad_hf.recipe import load_recipe
from ad_hf.recipe_list import COLUMNS, describe, measured, minutes


def test_the_command_lists_every_recipe_with_its_size_and_time(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(COLUMNS)
    listed = lines[1 : lines.index("")]
    assert [line.split()[0] for line in listed] == recipe_names()
    dark_room = next(line for line in listed if line.startswith("dark_room "))
    for part in ("ad_hf/DarkRoom-v0", "57 + 8 + 16", "A2C x 100", "8.1 M", "4 x 128, 200 steps", "78 s", "5 min"):
        assert part in dark_room


def test_options_that_it_does_not_have_are_refused(capsys):
    assert main(["recipes", "--family.env_id", "x"]) == 2
    assert "unknown options" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_makes_its_environments_and_fits_its_learner(name):
    from ad_hf.envs.sb3 import SB3VecEnv
    from ad_hf.envs.source_observation import SourceObservation
    from ad_hf.sources.learners import make_learner

    recipe = load_recipe(name)
    family = TaskFamily(recipe.family)
    for split in ("train", "validation", "test"):
        assert family.tasks(split)
    envs = family.make_vec(family.tasks("train")[:1], num_envs=2, seed=0)
    seen = SourceObservation(envs, family.source_observation) if family.source_observation else envs
    make_learner(recipe.source.algorithm, SB3VecEnv(seen), 0, recipe.source.hyperparameters)
    envs.close()
    assert describe(name)["recipe"] == name


def test_measurements_are_of_recipes_that_exist():
    assert set(measured()) <= set(recipe_names())
    for found in measured().values():
        assert found["collect_seconds"] > 0
        assert found["train_seconds"] > 0
        assert found["megabytes"] > 0


def test_durations_are_said_in_seconds_and_minutes():
    assert [minutes(seconds) for seconds in (None, 7.4, 99, 400)] == ["-", "7 s", "99 s", "7 min"]
