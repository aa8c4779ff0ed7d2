"""Families of packages that are extras, by the packaged examples: collected, trained on and rolled out."""

from pathlib import Path

import numpy as np
import pytest

import ad_hf
from ad_hf.evaluation.summary import last_of
from ad_hf.histories.schema import read_metadata
from ad_hf.pipeline import EvaluatedModel, collect_recipe, evaluate_models
from ad_hf.recipe import load_recipe

EXAMPLES = Path(ad_hf.__file__).parent / "recipes" / "examples"
TINY = {
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 16},
    "training": {"max_steps": 2, "batch_size": 4, "eval_steps": 2, "eval_episodes": 2, "eval_repeats": 1},
    "rollout": {"num_episodes": 2},
}


def tiny(name, *overrides):
    """An example with four tasks and a size that runs in seconds."""
    settings = [f"--{section}.{key}={value}" for section in TINY for key, value in TINY[section].items()]
    return load_recipe(EXAMPLES / f"{name}.yaml", [*settings, "--training.mixed_precision=no", *overrides])


def go_all_the_way(recipe, folder):
    """Collects on two spawned workers, trains and evaluates; returns the histories and the evaluation."""
    histories = collect_recipe(recipe, folder / "histories", num_workers=2)
    model = ad_hf.train(recipe, histories, folder / "run")
    return histories, evaluate_models([EvaluatedModel(model, recipe, histories)], folder / "run", 1, ("gif",))


@pytest.fixture
def four_rooms():
    """The example of MiniGrid with four goals."""
    pytest.importorskip("minigrid")
    return tiny(
        "minigrid",
        "--family.grid={goal_pos: [[1, 1], [3, 5], [3, 6], [7, 7]]}",
        "--family.num_validation_tasks=1",
        "--family.num_test_tasks=1",
        "--family.env_kwargs.max_steps=20",
        "--source.n_envs=2",
        "--source.total_timesteps=128",
    )


@pytest.fixture
def reach():
    """The example of Meta-World with four goals."""
    pytest.importorskip("metaworld")
    return tiny(
        "metaworld_reach",
        "--family.splits={train: {grid: {seed: [0, 1]}}, validation: {grid: {seed: [2]}}, test: {grid: {seed: [3]}}}",
        "--family.env_kwargs.max_episode_steps=20",
        "--source.n_envs=2",
        "--source.total_timesteps=160",
        "--source.hyperparameters.policy_kwargs={net_arch: [8]}",
    )


@pytest.mark.filterwarnings("ignore:.*A seed has been passed to `ReseedWrapper.reset`")
def test_minigrid_goes_all_the_way_and_is_seen(four_rooms, tmp_path):
    histories, evaluation = go_all_the_way(four_rooms, tmp_path)
    metadata = read_metadata(histories)
    assert metadata.env_id == "minigrid:MiniGrid-FourRooms-v0"
    assert metadata.observation_space["shape"] == [75]
    assert 0 <= last_of(evaluation["agents"]["AD"])["return"] <= 1
    assert (tmp_path / "run" / "replay.gif").is_file()
    assert "minigrid:MiniGrid-FourRooms-v0" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_rooms_differ_in_the_goal_alone_in_all_episodes(four_rooms):
    family = ad_hf.TaskFamily(four_rooms.family)
    envs = family.make_vec(family.tasks())
    goals = [task.kwargs["goal_pos"] for task in family.tasks()]
    maps = []
    for _ in range(2):
        envs.reset()
        rooms = [env.unwrapped for env in envs.envs]
        assert [room.grid.get(*goal).type for room, goal in zip(rooms, goals)] == ["goal"] * 4
        assert {(*map(int, room.agent_pos), int(room.agent_dir)) for room in rooms} == {(2, 5, 0)}
        for room, goal in zip(rooms, goals):
            room.grid.set(*goal, None)
        maps += [room.grid.encode() for room in rooms]
    assert maps[0].shape == (9, 9, 3)
    assert all((other == maps[0]).all() for other in maps)


@pytest.mark.filterwarnings("ignore:.*Box", "ignore:there will be no replay")
def test_meta_world_goes_all_the_way(reach, tmp_path):
    histories, evaluation = go_all_the_way(reach, tmp_path)
    metadata = read_metadata(histories)
    assert metadata.env_id == "metaworld:Meta-World/goal_hidden"
    assert metadata.observation_space["dtype"] == "float32"
    assert all(np.isfinite(last_of(agent)["return"]) for agent in evaluation["agents"].values())


@pytest.mark.filterwarnings("ignore:.*Box")
def test_goals_of_meta_world_are_hidden_and_kept_in_all_episodes(reach):
    family = ad_hf.TaskFamily(reach.family)
    tasks = family.tasks("train")
    envs, again = family.make_vec(tasks, num_envs=4), family.make_vec(tasks)
    observations = np.stack([envs.reset(seed=seed)[0] for seed in (0, 1)])
    goals = np.stack([env.unwrapped._target_pos for env in (*envs.envs, *again.envs)])
    assert (goals[:2] == goals[2:4]).all()
    assert (goals[:2] == goals[4:]).all()
    assert np.abs(goals[0] - goals[1]).max() > 0.01
    assert not observations[..., -3:].any()
    assert (observations[0] == observations[1]).all()
