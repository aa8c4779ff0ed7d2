"""`ad-hf init`: the recipe that it writes is collected as it is, on tasks that differ where they can."""

import re

import pytest

from ad_hf.cli import main
from ad_hf.collection.collect import collect
from ad_hf.envs.task_family import TaskFamily
from ad_hf.recipe import load_recipe

# Environment, options, algorithm, context length, time limit that is set, tasks, their arguments.
DRAFTS = [
    ("drafted_rooms:DraftedRoom-v0", [], "A2C", 200, None, 22, {"goal"}),
    ("worlds.walled_room:WalledRoom-v0", [], "A2C", 200, None, 69, {"goal"}),
    ("drafted_rooms:DraftedMaze-v0", [], "A2C", 400, None, 49, {"treasure"}),
    ("drafted_rooms:DraftedMaze-v0", ["--env_kwargs", '{"treasure": null}'], "A2C", 400, None, 49, {"treasure"}),
    ("drafted_rooms:DraftedField-v0", [], "A2C", 400, None, 77, {"treasure"}),
    ("drafted_rooms:DraftedLock-v0", ["--env_kwargs", '{"code": [3, 0, 1]}'], "PPO", 800, 200, 64, {"code"}),
    ("FrozenLake-v1", [], "A2C", 400, None, 64, {"is_slippery", "success_rate", "reward_schedule"}),
    ("CartPole-v1", [], "PPO", 400, 100, 64, {"gravity", "masspole", "total_mass"}),
    ("Pendulum-v1", [], "SAC", 800, None, 24, {"g"}),
    ("MountainCar-v0", [], "PPO", 800, None, 64, {"min_position", "force", "gravity"}),
    ("Blackjack-v1", [], "PPO", 100, 100, 2, {"sab"}),
]


@pytest.mark.parametrize(("env_id", "options", "algorithm", "context", "limit", "number", "names"), DRAFTS)
def test_a_drafted_recipe_is_collected_as_it_is(
    env_id, options, algorithm, context, limit, number, names, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["init", env_id, *options]) == 0
    (path,) = tmp_path.glob("*.yaml")
    assert f"ad-hf collect --recipe {path.name} --output_dir histories" in capsys.readouterr().out
    assert all("#" in line for line in path.read_text().splitlines() if re.match(r"  (n_envs|context|total)", line))
    recipe = load_recipe(path.name)
    family = TaskFamily(recipe.family)
    tasks = family.tasks()
    assert (recipe.source.algorithm, recipe.model.context_length) == (algorithm, context)
    assert recipe.family.env_kwargs == ({} if limit is None else {"max_episode_steps": limit})
    assert (len(tasks), set(tasks[0].kwargs)) == (number, names)
    assert len(family.tasks("test")) == min(16, max(1, number // 5))
    assert (len(family.tasks("validation")) >= 3) == (number >= 16)
    few = load_recipe(path.name, ["--source.n_envs=2", "--source.total_timesteps=440"])
    family.all_tasks = tasks[:1]
    few.source.hyperparameters |= {"batch_size": 32} if algorithm == "PPO" else {}
    collect(family, few.source, output_dir="histories", num_workers=0)


REFUSED = [
    ("drafted_rooms:DraftedMenu-v0", "has actions of Dict.*expected a Discrete.*family.wrappers"),
    ("drafted_rooms:DraftedLock-v0", "cannot be made without code: give an example of each, as in --env_kwargs"),
    ("no_such_rooms:Room-v0", "No module named 'no_such_rooms'"),
    ("drafted_rooms:DraftedMaze", "error: drafted_rooms:DraftedMaze: No.*: write drafted_rooms:DraftedMaze-v0"),
    ("Xyzzy-v0", "where a module of yours registers it, write module:Xyzzy-v0"),
    ("CartPoll-v1", "doesn't exist. Did you mean: `CartPole`"),
]


@pytest.mark.parametrize(("env_id", "message"), REFUSED)
def test_an_environment_without_a_draft_is_refused_in_one_line(env_id, message, tmp_path, capsys):
    assert main(["init", env_id, str(tmp_path / "recipe.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.iterdir())


def test_a_file_is_never_written_over(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("family: {}\n")
    assert main(["init", "CartPole-v1", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "family: {}\n"


def test_what_cannot_differ_is_said(tmp_path, capsys):
    assert main(["init", "ad_hf/DarkRoom-v0", str(tmp_path / "room.yaml")]) == 0
    captured = capsys.readouterr()
    assert "ad-hf recipes dark_room" in captured.out
    assert "cannot learn from one task" in captured.err + (tmp_path / "room.yaml").read_text()
    assert "give the environment one, as a hidden goal" in (tmp_path / "room.yaml").read_text()
    assert len(TaskFamily(load_recipe(tmp_path / "room.yaml").family).tasks()) == 1


@pytest.mark.parametrize(("name", "says"), [("Maze", ""), ("Field", "0 to 6 and 0 to 10 were tried, a guess: widen")])
def test_a_range_that_is_a_guess_is_said(name, says, tmp_path):
    assert main(["init", f"drafted_rooms:Drafted{name}-v0", str(tmp_path / "maze.yaml")]) == 0
    text = (tmp_path / "maze.yaml").read_text()
    assert says in text
    assert ("a guess" in text) == bool(says)
