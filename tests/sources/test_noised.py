"""Noised policies: histories that look like learning, and say that they are none."""

import json
import shutil
from functools import partial
from importlib import import_module

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from huggingface_hub import DatasetCard
from stable_baselines3 import A2C

import ad_hf
from ad_hf.cli import main
from ad_hf.collection.jobs import Job, learn_job
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.returns import source_returns
from ad_hf.histories.card import write_dataset_card
from ad_hf.histories.schema import read_metadata
from ad_hf.histories.steps import STEPWISE
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.recipe import load_recipe
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.learners import make_learner
from ad_hf.sources.noised import NoisedPolicy
from ad_hf.sources.recorder import RecordedSteps

ROOM = {"env_id": "ad_hf/DarkRoom-v0", "env_kwargs": {"size": 5, "max_episode_steps": 10}}
ROOM_TASKS = [{"goal": [0, 4]}, {"goal": [3, 2]}, {"goal": [2, 2]}]
EXPERT = "ad_hf.envs.dark_room.expert"
WORLDS = {
    "dark_room": (ROOM["env_id"], ROOM["env_kwargs"], ROOM_TASKS, None),
    "dark_key_to_door": (
        "ad_hf/DarkKeyToDoor-v0",
        {"size": 5, "max_episode_steps": 20},
        [{"key": [0, 4], "door": [3, 1]}, {"key": [2, 2], "door": [2, 2]}, {"key": [4, 0], "door": [4, 1]}],
        {"has_key": {"type": "Discrete", "n": 2}},
    ),
    "adversarial_bandit": (
        "ad_hf/AdversarialBandit-v0",
        {"num_arms": 4, "max_episode_steps": 50},
        [{"rewarding": "odd", "task_seed": seed} for seed in range(3)],
        None,
    ),
}


class Reach(gym.Env):
    """A point that is rewarded for moving as a task says, in two dimensions with bounds of their own."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(np.float32([-1, 0]), np.float32([1, 3]))

    def __init__(self, target):
        self.target, self._steps = np.float32(target), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.target / 3, {}

    def step(self, action):
        self._steps += 1
        return self.target / 3, -float(np.abs(action - self.target).sum()), False, self._steps == 5, {}


def reach_expert(observations, envs):
    return np.stack([env.unwrapped.target for env in envs.envs])


def wrong_expert(observations, envs):
    return np.zeros(1)


def make_family(world, native=True):
    env_id, kwargs, tasks, seen = WORLDS[world]
    return TaskFamily(env_id, tasks, kwargs, native_vector=native, source_observation=seen)


def histories(family, steps=2000, n_envs=10, seed=0, **hyperparameters):
    """What streams of all tasks of a family lived through: stream i is of task i modulo their number."""
    tasks = tuple(family.tasks())
    source = SourceConfig("NoisedPolicy", n_envs, steps * n_envs, hyperparameters, tasks_per_job=len(tasks))
    of_tasks = [steps for _, steps, _ in learn_job(family, source, Job(tasks, seed))]
    arrays = {name: np.concatenate(np.stack([getattr(each, name) for each in of_tasks], axis=1)) for name in STEPWISE}
    return RecordedSteps(**arrays, final_observations=[])


def episode_returns(recorded):
    """Returns (streams, episodes) of episodes that all last equally long."""
    length = int(np.flatnonzero(recorded.truncations[0])[0]) + 1
    rewards = recorded.rewards[:, : recorded.rewards.shape[1] // length * length]
    return rewards.reshape(len(rewards), -1, length).sum(axis=2)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("world", WORLDS)
def test_without_noise_the_expert_gets_the_best_return(world, native):
    family = make_family(world, native)
    optimal_return = import_module(f"ad_hf.envs.{world}").optimal_return
    recorded = histories(family, steps=1000, start_epsilon=0.0, expert=f"ad_hf.envs.{world}.expert")
    returns = episode_returns(recorded).reshape(10, len(family.tasks()), -1)
    for index, task in enumerate(family.tasks()):
        best = optimal_return(**family.env_kwargs, **task.kwargs)
        if world == "adversarial_bandit":
            assert returns[:, index].mean() == pytest.approx(best, abs=1)
        else:
            assert (returns[:, index] == best).all()


def test_with_nothing_but_noise_actions_are_uniform():
    actions = histories(make_family("dark_room"), expert=EXPERT, end_epsilon=1.0).actions
    np.testing.assert_allclose(np.bincount(actions.ravel(), minlength=5) / actions.size, 0.2, atol=0.01)


@pytest.mark.parametrize("schedule", ["step", "episode"])
def test_random_actions_get_fewer_until_none_are_left(schedule):
    family = make_family("dark_room")
    recorded = histories(family, n_envs=100, expert=EXPERT, schedule=schedule, decay=0.8)
    envs = family.make_vec(family.tasks(), num_envs=300)
    expert = np.stack([ad_hf.envs.dark_room.expert(seen, envs) for seen in recorded.observations.swapaxes(0, 1)], 1)
    other = (recorded.actions != expert).mean(axis=0) / 0.8  # one random action in five is the expert's
    progress = np.arange(2000) / 2000
    steps = progress if schedule == "step" else progress // 0.005 * 0.005
    epsilon = 1 - np.minimum(steps / 0.8, 1)
    np.testing.assert_allclose(other.reshape(50, 40).mean(axis=1), epsilon.reshape(50, 40).mean(axis=1), atol=0.03)
    assert (other[1600:] == 0).all()

    returns = episode_returns(recorded).mean(axis=0).reshape(10, 20).mean(axis=1)
    assert (np.diff(returns) > -0.05).all()
    assert returns[-1] > returns[0] + 5


def test_noise_is_the_same_throughout_an_episode():
    envs = make_family("dark_room").make_vec(make_family("dark_room").tasks())
    learner = NoisedPolicy("MlpPolicy", SB3VecEnv(envs), EXPERT, schedule="episode", decay=1.0)
    seen = []
    learner.learn(3 * 40, callback=lambda *_: seen.append(learner._epsilon[0]) or True)
    np.testing.assert_allclose(seen, np.repeat([1, 0.75, 0.5, 0.25], 10))


def test_streams_draw_noise_of_their_own():
    envs = SB3VecEnv(gym.make_vec(ROOM["env_id"], 200, vectorization_mode="vector_entry_point"))
    learner = NoisedPolicy("MlpPolicy", envs, EXPERT, end_epsilon=[0.2, 0.6], decay=[0.3, 0.9], seed=0)
    for name, low, high in (("start_epsilon", 1, 1), ("end_epsilon", 0.2, 0.6), ("decay", 0.3, 0.9)):
        drawn = learner.tables[name]
        assert drawn.min() == pytest.approx(low, abs=0.01)
        assert drawn.max() == pytest.approx(high, abs=0.01)
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05)


def test_a_seed_decides_all_of_it():
    family = make_family("dark_key_to_door")
    first, second, other = (
        histories(family, 200, seed=seed, expert="ad_hf.envs.dark_key_to_door.expert").actions for seed in (0, 0, 1)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_continuous_actions_are_drawn_from_their_bounds():
    targets = [[0.5, 1.0], [-1.0, 3.0], [0.0, 2.0]]
    vector = SyncVectorEnv([lambda t=t: Reach(t) for t in targets], autoreset_mode=AutoresetMode.SAME_STEP)
    learner = make_learner("NoisedPolicy", SB3VecEnv(vector), 0, {"expert": f"{__name__}.reach_expert", "decay": 0.5})
    actions = []
    learner.learn(3 * 4000, callback=lambda found, _: actions.append(found["actions"]) or True)
    actions = np.array(actions)
    assert (actions[2000:] == np.float32(targets)).all()
    noise = actions[:100][(actions[:100] != np.float32(targets)).all(axis=2)]
    assert noise.min(axis=0) == pytest.approx([-1, 0], abs=0.1)
    assert noise.max(axis=0) == pytest.approx([1, 3], abs=0.1)
    assert noise.mean(axis=0) == pytest.approx([0, 1.5], abs=0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of a model for each task of a family, by the task's id."""
    folder, family = tmp_path_factory.mktemp("models"), make_family("dark_room")
    for task in family.tasks():
        envs = SB3VecEnv(family.make_vec([task], num_envs=50))
        settings = {"n_steps": 10, "learning_rate": 0.01, "gamma": 0.9, "ent_coef": 0.01}
        learner = make_learner("A2C", envs, 0, settings)
        learner.learn(15_000)
        learner.save(folder / f"{task.task_id}.zip")
    return folder


def test_trained_models_are_experts_each_of_its_task(trained):
    family = make_family("dark_room")
    model = {"algorithm": "A2C", "path": str(trained / "{task_id}.zip")}
    returns = episode_returns(histories(family, expert=model)).reshape(10, 3, -1)
    for index, task in enumerate(family.tasks()):
        best = ad_hf.envs.dark_room.optimal_return(**family.env_kwargs, **task.kwargs)
        alone = A2C.load(trained / f"{task.task_id}.zip")
        envs = SB3VecEnv(family.make_vec([task]))
        observations, total = envs.reset(), 0.0
        for _ in range(10):
            observations, rewards, _, _ = envs.step(alone.predict(observations, deterministic=True)[0])
            total += rewards[0]
        assert total >= best - 1
        assert (returns[:, index, -10:] == total).all()
        assert returns[:, index, :10].mean() < total / 2 + 1
    model["deterministic"] = False
    first, second = (histories(family, 100, seed=seed, expert=model).actions for seed in (0, 1))
    assert (first != second).mean() > 0.1  # noise does not depend on the seed of a model


def test_a_model_that_is_unpickled_is_an_expert_where_it_is_trusted(trained, tmp_path):
    model = {"algorithm": "A2C", "path": str(trained / "{task_id}.zip")}
    settings = {"algorithm": "NoisedPolicy", "n_envs": 2, "total_timesteps": 200, "num_workers": 0}
    collect = partial(ad_hf.collect, make_family("dark_room"), hyperparameters={"expert": model}, **settings)
    with pytest.raises(ValueError, match=r"unpickled.*--trust_remote_code"):
        collect(output_dir=tmp_path / "untrusted")
    assert not (tmp_path / "untrusted").exists()
    collect(output_dir=tmp_path / "trusted", trust_remote_code=True)
    assert (tmp_path / "trusted" / "default" / "metadata.json").is_file()


def test_a_saved_learner_goes_on_with_its_expert(tmp_path):
    family = make_family("dark_room")
    envs = SB3VecEnv(family.make_vec(family.tasks()))
    learner = NoisedPolicy("MlpPolicy", envs, EXPERT, end_epsilon=[0.1, 0.9], seed=3)
    learner.learn(30)
    learner.save(tmp_path / "noised.zip")
    loaded = NoisedPolicy.load(tmp_path / "noised.zip", env=envs)
    np.testing.assert_array_equal(loaded.tables["end_epsilon"], learner.tables["end_epsilon"])
    seen = envs.reset()
    np.testing.assert_array_equal(loaded.predict(seen)[0], ad_hf.envs.dark_room.expert(seen, envs.envs))


def test_settings_that_cannot_be_are_refused():
    envs = SB3VecEnv(gym.make_vec(ROOM["env_id"], 2, vectorization_mode="vector_entry_point"))
    for settings, message in (
        ({}, "expert must be the import path of a function"),
        ({"expert": "ad_hf.envs.dark_room.nobody"}, "got 'ad_hf.envs.dark_room.nobody'"),
        ({"expert": f"{__name__}.wrong_expert"}, r"expected actions of shape \(2,\)"),
        ({"expert": {"algorithm": "A2C"}}, "has algorithm, path"),
        ({"expert": {"algorithm": "A2C", "path": "nowhere.zip"}}, "no model 'nowhere.zip'"),
        ({"expert": {"algorithm": "A2C", "path": "{task_id}.zip"}}, "do not tell their tasks"),
        ({"expert": EXPERT, "start_epsilon": 1.5}, r"start_epsilon must be .* got 1.5"),
        ({"expert": EXPERT, "end_epsilon": [0.5, 0.1]}, r"end_epsilon must be .* got \[0.5, 0.1\]"),
        ({"expert": EXPERT, "decay": 0}, "decay must be above 0"),
        ({"expert": EXPERT, "schedule": "cosine"}, "schedule must be one of step, episode"),
    ):
        with pytest.raises(ValueError, match=message):
            make_learner("NoisedPolicy", envs, 0, settings).learn(20)


@pytest.fixture(scope="module")
def synthetic(tiny_recipe_file, tmp_path_factory):
    """A folder of the tiny recipe's tasks, collected by the command line with a noised policy for a source."""
    folder = tmp_path_factory.mktemp("synthetic") / "histories"
    settings = {"algorithm": "NoisedPolicy", "tasks_per_job": 3, "hyperparameters": json.dumps({"expert": EXPERT})}
    options = [part for name, value in settings.items() for part in (f"--source.{name}", str(value))]
    main(["collect", "--recipe", str(tiny_recipe_file), "--output_dir", str(folder), "--num_workers", "0", *options])
    return folder


def test_collected_histories_get_better_and_say_that_they_are_synthetic(synthetic, tiny_histories, tmp_path):
    metadata = read_metadata(synthetic)
    assert metadata.source["algorithm"] == "NoisedPolicy"
    assert metadata.source["hyperparameters"] == {"expert": EXPERT}
    returns = source_returns(synthetic, "train").returns
    assert returns[..., -1].mean() > 2 * returns[..., 0].mean()
    card = DatasetCard((synthetic / "README.md").read_text())
    assert "synthetic" in card.data.tags
    assert "NoisedPolicy (synthetic, no reinforcement learning)" in card.data.configs[0]["description"]
    assert card.text.count("no reinforcement learning took place") == 2  # at the top, and of the configuration
    assert "- Source: NoisedPolicy (synthetic, no reinforcement learning), 8 parallel environments" in card.text
    assert "reinforcement learners lived" not in card.text
    assert "explores as that algorithm did" not in card.text
    assert "ynthetic" not in (tiny_histories / "README.md").read_text()

    shutil.copytree(synthetic / "default", tmp_path / "noised")
    shutil.copytree(tiny_histories / "default", tmp_path / "a2c")
    learnt, noised = DatasetCard(write_dataset_card(tmp_path).read_text()).text.split("## Configuration `noised`")
    assert "reinforcement learners lived" in learnt
    assert "- Source: A2C, 8" in learnt
    assert "ynthetic" not in learnt
    assert "**Synthetic: no reinforcement learning took place.**" in noised
    assert "Synthetic histories explore by" in noised


def test_a_model_of_synthetic_histories_says_so(synthetic, tiny_recipe_file, tmp_path):
    model = ad_hf.train(load_recipe(tiny_recipe_file, ["--training.max_steps", "2"]), synthetic, tmp_path)
    words = "made by a policy whose noise went down, and no reinforcement learning took place"
    card = (tmp_path / "model" / "README.md").read_text()
    assert words in card
    own = EvaluatedModel(model, load_recipe(tiny_recipe_file), synthetic)
    evaluation = evaluate_models([own], tmp_path, num_seeds=1)
    card = (tmp_path / "model" / "README.md").read_text()
    assert words in card
    assert "| source, NoisedPolicy (synthetic, no reinforcement learning) |" in card
    assert "learners did" not in card
    assert evaluation["source"]["algorithm"] == "NoisedPolicy"
    assert evaluation["datasets"][0]["source"] == "NoisedPolicy"
    # How fast noise goes down is a setting.
    assert all(steps["ratio"] is None for steps in evaluation["agents"]["AD"]["steps_to"].values())
