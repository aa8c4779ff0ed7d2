"""Feature extractors for small frames."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.sources.extractors import SmallCNN
from ad_hf.sources.learners import make_learner


def test_frames_become_features_unless_they_are_too_small():
    for shape in ((3, 8, 8), (3, 18, 24), (1, 24, 32)):
        extractor = SmallCNN(spaces.Box(0, 255, shape, np.uint8), features_dim=10, channels=4)
        frames = torch.rand(2, *shape, requires_grad=True)
        features = extractor(frames)
        assert features.shape == (2, 10) == (2, extractor.features_dim)
        features.sum().backward()
        assert (frames.grad.abs().sum(dim=1)[:, :-3, :-3] > 0).float().mean() > 0.5  # it sees the frame
    for shape in ((3, 7, 24), (9, 9)):
        with pytest.raises(ValueError, match="at least 8 x 8 pixels, got the shape"):
            SmallCNN(spaces.Box(0, 255, shape, np.uint8))


def test_dqn_learns_a_near_platform_from_small_frames():
    kwargs = {"platform": (0.3, 0.0), "height": 9, "width": 12, "random_heading": False}
    envs = gym.make_vec("ad_hf/Watermaze-v0", 8, vectorization_mode="vector_entry_point", **kwargs)
    rewards = []
    settings = {"buffer_size": 4000, "learning_starts": 200, "learning_rate": 1e-3, "gamma": 0.9, "n_steps": 3}
    settings |= {"train_freq": 1, "target_update_interval": 200, "exploration_fraction": 0.5}
    settings |= {"policy_kwargs": {"features_extractor_class": "ad_hf.sources.extractors.SmallCNN"}}
    learner = make_learner("DQN", SB3VecEnv(envs), 0, settings)
    learner.learn(4000, callback=lambda values, _: rewards.append(values["rewards"].sum()) or True)
    assert len(rewards) == 500
    assert np.sum(rewards[-50:]) >= 7  # of the 8 last episodes
