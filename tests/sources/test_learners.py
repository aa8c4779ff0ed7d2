"""Stable-Baselines3 learners by name."""

import tempfile
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from ad_hf.sources.extractors import SmallCNN
from ad_hf.sources.learners import available_algorithms, check_hyperparameters, find_algorithm, make_learner


class Still(gym.Env):
    """An environment of one space in which nothing happens."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_algorithms_are_found_by_name():
    assert {"DDPG", "PPO", "SAC", "TD3", "NoisedPolicy", "TabularQ", "UCB"} <= set(available_algorithms())
    assert find_algorithm("A2C") is A2C
    assert find_algorithm("DQN") is DQN


def test_unknown_algorithms_and_hyperparameters_are_refused_with_the_known_ones(tmp_path, monkeypatch):
    (tmp_path / "broken_extractors.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("a2c", "REINFORCE", "HerReplayBuffer", ""):
        with pytest.raises(ValueError, match=rf"unknown source algorithm '{name}'.*A2C.*DQN.*PPO"):
            find_algorithm(name)
    for algorithm, hyperparameters, message in (
        ("A2C", {"lr": 1, "batch_size": 3}, "A2C takes no hyper-parameter 'batch_size', 'lr': .*learning_rate"),
        ("A2C", {"env": 1}, "takes no hyper-parameter 'env'"),
        ("TabularQ", {"seed": 1, "common": 2}, "takes no hyper-parameter 'common', 'seed'"),
        ("DQN", {"train_freq": [1, 2]}, r"train_freq must be of type int \| tuple\[int, str\], got \[1, 2\]"),
        ("DQN", {"replay_buffer_class": "broken_extractors.A"}, "broken_extractors.A': .* cannot .*division by zero"),
        *(
            ("DQN", {"policy_kwargs": {"activation_fn": path}}, f"policy_kwargs.activation_fn {message}")
            for path, message in (
                ("torch.nn.Relu", "must be the import path.*got 'torch.nn.Relu': .* no attribute 'Relu'"),
                ("torch.nn.functional.relu", "must be the import path of a class, got 'torch.nn.functional.relu'"),
                ("nothing.Here", "'nothing.Here': No module named 'nothing'"),
                ("ReLU", "'ReLU': No module named 'ReLU'"),
                ("", "must be the import path.*got ''"),
            )
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_hyperparameters(algorithm, hyperparameters)
    check_hyperparameters("PPO", {"batch_size": 3, "policy": "MlpPolicy", "device": "cpu"})
    check_hyperparameters("TabularQ", {"verbose": 1, "policy": "MlpPolicy"})


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        (spaces.Discrete(4), ActorCriticPolicy),
        (spaces.MultiDiscrete([3, 3]), ActorCriticPolicy),
        (spaces.MultiBinary(3), ActorCriticPolicy),
        (spaces.Box(-1.0, 1.0, (3,), np.float32), ActorCriticPolicy),
        (spaces.Box(0, 255, (40, 40, 3), np.uint8), ActorCriticCnnPolicy),
        (spaces.Box(0, 1, (10, 10, 4), np.float32), ActorCriticPolicy),
        (spaces.Box(0, 1, (10, 10, 4), np.bool_), ActorCriticPolicy),
        (spaces.Box(0, 3, (10, 10, 4), np.uint8), ActorCriticPolicy),
        (spaces.Dict({"cell": spaces.Discrete(3), "bit": spaces.MultiBinary(1)}), MultiInputActorCriticPolicy),
    ],
    ids=str,
)
def test_policy_fits_the_observations(space, policy):
    learner = make_learner("A2C", DummyVecEnv([lambda: Still(space)] * 2), 0, {"n_steps": 2})
    assert type(learner.policy) is policy
    learner.learn(8)
    assert learner.num_timesteps == 8


def test_hyperparameters_reach_the_learner():
    envs = DummyVecEnv([lambda: Still(spaces.Discrete(4))])
    arguments = {"gamma": 0.5, "n_steps": 7, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [3]}}
    learner = make_learner("PPO", envs, 5, {**arguments, "batch_size": 7})
    assert isinstance(learner, PPO)
    assert (learner.gamma, learner.n_steps, learner.seed) == (0.5, 7, 5)
    assert learner.policy.action_net.in_features == 3
    assert learner.device.type == "cpu"


def test_classes_may_be_given_by_import_path_and_a_number_with_its_unit_as_a_list():
    kwargs = {
        "features_extractor_class": "ad_hf.sources.extractors.SmallCNN",
        "features_extractor_kwargs": {"features_dim": 5},
        "activation_fn": "torch.nn.ELU",
        "optimizer_class": "torch.optim.SGD",
        "net_arch": [3],
    }
    hyperparameters = {"policy_kwargs": kwargs, "buffer_size": 10, "train_freq": [1, "episode"]}
    before = deepcopy(hyperparameters)
    envs = DummyVecEnv([lambda: Still(spaces.Box(0, 255, (9, 12, 3), np.uint8))])
    learner = make_learner("DQN", envs, 0, hyperparameters)
    assert type(learner.q_net.features_extractor) is SmallCNN
    assert learner.q_net.features_dim == 5
    assert type(learner.q_net.q_net[1]) is nn.ELU
    assert type(learner.policy.optimizer) is torch.optim.SGD
    assert learner.train_freq.unit.value == "episode"
    assert hyperparameters == before  # as the metadata will say them


@pytest.mark.parametrize("name", ["A2C", "DQN"])
def test_learning_leaves_no_folders_behind(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    learner = make_learner(name, DummyVecEnv([lambda: Still(spaces.Discrete(3))]), 0, {})
    learner.learn(200)
    assert not list(tmp_path.iterdir())
