"""Families of packages that are extras, by the packaged recipes: collected, trained on and rolled out."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
from test_readme import python_blocks

import ad_hf
from ad_hf.evaluation.summary import last_of
from ad_hf.histories.schema import read_metadata
from ad_hf.pipeline import EvaluatedModel, collect_recipe, evaluate_models
from ad_hf.recipe import load_recipe

TINY = {
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "context_length": 16,
        "sliding_window": 8,
    },
    "training": {"max_steps": 2, "batch_size": 4, "eval_steps": 2, "eval_episodes": 2, "eval_repeats": 1},
    "rollout": {"num_episodes": 2},
}


def tiny(name, *overrides):
    """A recipe with four tasks and a size that runs in seconds."""
    settings = [f"--{section}.{key}={value}" for section in TINY for key, value in TINY[section].items()]
    return load_recipe(name, [*settings, "--training.mixed_precision=no", *overrides])


def go_all_the_way(recipe, folder):
    """Collects on two spawned workers, trains and evaluates; returns the histories and the evaluation."""
    histories = collect_recipe(recipe, folder / "histories", num_workers=2)
    model = ad_hf.train(recipe, histories, folder / "run")
    return histories, evaluate_models([EvaluatedModel(model, recipe, histories)], folder / "run", 1, ("gif",))


@pytest.fixture
def fetch():
    """The recipe of MiniGrid with four rooms."""
    pytest.importorskip("minigrid")
    return tiny(
        "minigrid_fetch",
        "--family.grid={layout: [0, 1, 2, 3]}",
        "--family.num_validation_tasks=1",
        "--family.num_test_tasks=1",
        "--family.env_kwargs.max_steps=20",
        "--source.n_envs=2",
        "--source.total_timesteps=128",
    )


@pytest.fixture
def reach():
    """The recipe of Meta-World with four goals."""
    pytest.importorskip("metaworld")
    return tiny(
        "metaworld_reach",
        "--family.splits={train: {grid: {seed: [0, 1]}}, validation: {grid: {seed: [2]}}, test: {grid: {seed: [3]}}}",
        "--family.env_kwargs.max_episode_steps=20",
        "--source.n_envs=2",
        "--source.total_timesteps=160",
        "--source.hyperparameters.policy_kwargs={net_arch: [8]}",
    )


def test_minigrid_goes_all_the_way_and_is_seen(fetch, tmp_path):
    histories, evaluation = go_all_the_way(fetch, tmp_path)
    assert read_metadata(histories).observation_space == {"type": "MultiDiscrete", "nvec": [15] * 25}
    assert 0 <= last_of(evaluation["agents"]["AD"])["return"] <= 1
    assert (tmp_path / "run" / "replay.gif").is_file()
    assert "ad_hf/SilentFetch-v0" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize("layout", range(20))
def test_rooms_stay_as_they_are_and_pay_for_one_kind_of_object(layout):
    constants = pytest.importorskip("minigrid.core.constants")
    env = gym.make("ad_hf/SilentFetch-v0", layout=layout)
    room = env.unwrapped
    first = [env.reset(seed=seed)[0] for seed in (0, 1)]
    assert first[0].tolist() == first[1].tolist()
    cells = room.grid.encode()
    places = [(x, y) for x in range(1, 6) for y in range(1, 6) if room.grid.get(x, y)]
    assert len(places) == 5
    paid = []
    for x, y in places:
        assert (x in (1, 5)) != (y in (1, 5))  # along a wall, so that a cell of the middle is before it
        env.reset()
        assert (room.grid.encode() == cells).all()
        assert all(2 <= each <= 4 for each in room.agent_pos)
        there = room.grid.get(x, y)
        room.agent_dir = [(5, y), (x, 5), (1, y), (x, 1)].index((x, y))
        room.agent_pos = (x, y) - room.dir_vec
        seen = room.gen_obs().reshape(5, 5)[2, 3]  # the cell before the agent
        assert seen == 3 + 6 * (there.type == "ball") + constants.COLOR_TO_IDX[there.color]
        _, reward, terminated, _, _ = env.step(3)
        assert terminated
        assert (reward > 0.9) == ((there.type, there.color) == (room.targetType, room.targetColor))
        paid.append(reward > 0)
    assert 1 <= sum(paid) < 5


@pytest.mark.filterwarnings("ignore:.*Box", "ignore:there will be no replay")
def test_meta_world_goes_all_the_way_and_success_is_counted_as_documented(reach, tmp_path, monkeypatch):
    histories, evaluation = go_all_the_way(reach, tmp_path)
    metadata = read_metadata(histories)
    assert metadata.env_id == "metaworld:Meta-World/goal_hidden"
    assert metadata.observation_space["dtype"] == "float32"
    assert all(np.isfinite(last_of(agent)["return"]) for agent in evaluation["agents"].values())

    (block,) = python_blocks("docs/guides/families.md", "MiniGrid and Meta-World")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "run" / "model", "runs/metaworld_reach/model")
    names: dict = {}
    exec(block.replace("num_episodes=20", "num_episodes=2"), names)
    assert names["success"].shape == (20, 2)


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
