"""Small models with weights large enough for every input to matter, and random histories for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from context_reference import none_action

from ad_hf.envs.spaces import space_from_json
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

SMALL = {
    "observation_space": {"type": "Discrete", "n": 7},
    "action_space": {"type": "Discrete", "n": 5},
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "context_length": 16,
    "sliding_window": None,
    "initializer_range": 0.3,
}


def _model(model_class: type[ADModel] = ADModel, weights_seed: int = 0, **settings) -> ADModel:
    torch.manual_seed(weights_seed)
    return model_class(ADConfig(**{**SMALL, **settings})).eval()


def _samples(space: dict, batch: int, time: int, seed: int) -> torch.Tensor:
    sampler = space_from_json(space)
    sampler.seed(seed)
    return torch.from_numpy(np.stack([[sampler.sample() for _ in range(time)] for _ in range(batch)]))


def _history(config: ADConfig, batch: int = 3, time: int = 8, seed: int = 0) -> tuple[dict, torch.Tensor]:
    """The model's four inputs, from the first step of a history on, and the actions taken (its labels)."""
    actions = _samples(config.action_space, batch, time, seed)
    previous_actions = actions.roll(1, dims=1)
    previous_actions[:, 0] = none_action(config.action_space)
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(batch, time, generator=generator)
    starts = torch.rand(batch, time, generator=generator) < 0.3
    rewards[:, 0], starts[:, 0] = 0.0, True
    inputs = {
        "observations": _samples(config.observation_space, batch, time, seed + 1),
        "previous_actions": previous_actions,
        "previous_rewards": rewards,
        "episode_starts": starts,
    }
    return inputs, actions


@pytest.fixture(scope="session")  # as the other makers: property tests call them many times
def make_model():
    """`make_model(**settings)`: a small model in evaluation mode, its settings those of `ADConfig`."""
    return _model


@pytest.fixture(scope="session")
def make_history():
    """`make_history(config, batch, time, seed)`: inputs of a model, and labels."""
    return _history


@pytest.fixture
def small_settings():
    """Settings of a small `ADConfig`."""
    return dict(SMALL)
