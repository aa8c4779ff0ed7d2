"""A goal that moves now and then, and a source that finds out by itself and begins anew."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import studies.moving_goal
from studies.moving_goal import MovingGoalVectorEnv, optimal_return

import ad_hf
from ad_hf.evaluation.returns import source_returns

RECIPES = Path(studies.moving_goal.__file__).parent / "recipes"
GOALS = np.array([[[0, 0], [4, 4]], [[2, 2], [1, 3]]])


def test_goals_come_in_turn_and_begin_anew_with_a_reset():
    envs = MovingGoalVectorEnv(2, goals=GOALS, episodes_per_goal=3, size=5, max_episode_steps=2)
    single = gym.make("studies/MovingGoal-v0", goals=GOALS[1], episodes_per_goal=3, size=5, max_episode_steps=2)
    for _ in range(2):
        envs.reset(seed=0)
        for episode in range(9):
            assert np.array_equal(envs.goals, GOALS[:, episode // 3 % 2])
            single.reset()
            rewards = [envs.step(np.full(2, 4))[1] for _ in range(2)]  # stay in the centre
            assert [tuple(each) for each in rewards] == [(0.0, float(episode // 3 != 1))] * 2
            assert [single.step(4)[1] for _ in range(2)] == [each[1] for each in rewards]
        single.unwrapped.vector._episodes[:] = 0


def test_the_source_learns_each_goal_and_notices_by_rewards_alone(tmp_path):
    family = ad_hf.TaskFamily(
        "studies.moving_goal:studies/MovingGoal-v0",
        random={"num_tasks": 20, "values": {"goals": {"low": 0, "high": 4, "integer": True, "shape": [2, 2]}}},
        env_kwargs={"size": 5, "max_episode_steps": 10, "episodes_per_goal": 60},
        optimal_return="studies.moving_goal.optimal_return",
        native_vector=True,
    )
    learner = {"algorithm": "studies.moving_goal.RestartingQ", "n_envs": 2, "tasks_per_job": 20}
    table = {"learning_rate": 1.0, "gamma": 0.9, "initial_value": 5.0}
    ad_hf.collect(family, **learner, total_timesteps=2400, hyperparameters=table, output_dir=tmp_path, num_workers=0)
    tasks = [task for task in family.tasks("train") if task.kwargs["goals"][0] != task.kwargs["goals"][1]]
    returns = source_returns(tmp_path, "train").returns.mean(axis=0)  # (tasks, episodes)
    curve = returns[[task.task_id for task in tasks]].mean(axis=0)
    optima = [
        np.mean([optimal_return(goals=[task.kwargs["goals"][turn]], size=5, max_episode_steps=10) for task in tasks])
        for turn in (0, 1)
    ]
    assert curve[50:60].mean() == pytest.approx(optima[0], abs=0.5)
    assert curve[60:65].mean() < 0.5 * curve[50:60].mean()
    assert curve[110:].mean() == pytest.approx(optima[1], abs=0.5)


@pytest.mark.parametrize("name", ["moving_goal", "dark_room_hard_long", "dark_key_to_door_long"])
def test_histories_of_the_long_recipes_are_many_windows_long(name):
    recipe = ad_hf.load_recipe(RECIPES / f"{name}.yaml")
    steps = recipe.source.total_timesteps // recipe.source.n_envs
    assert steps >= 3000
    assert steps % recipe.model.context_length == 0
    assert steps == recipe.rollout.num_episodes * recipe.family.env_kwargs["max_episode_steps"]
    assert min(len(ad_hf.TaskFamily(recipe.family).tasks(split)) for split in ("train", "validation", "test")) >= 24
