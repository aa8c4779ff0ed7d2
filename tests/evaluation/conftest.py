"""A small family of Dark Rooms and a model for it."""

from __future__ import annotations

import pytest
import torch

from ad_hf.envs.dark_room import goal_distance, optimal_return
from ad_hf.envs.task_family import TaskFamily
from ad_hf.model import ADConfig, ADModel


@pytest.fixture(scope="session")
def dark_room_family():
    """3 x 3 cells, episodes of 4 steps, 9 goals of which 3 are for testing."""
    return TaskFamily(
        "ad_hf/DarkRoom-v0",
        tasks=[{"goal": [x, y]} for x in range(3) for y in range(3)],
        env_kwargs={"size": 3, "max_episode_steps": 4},
        num_validation_tasks=2,
        num_test_tasks=3,
        stratify_by=goal_distance,
        optimal_return=optimal_return,
        native_vector=True,
    )


@pytest.fixture
def dark_room_model():
    """A small model with random weights."""
    torch.manual_seed(0)
    return ADModel(
        ADConfig(
            observation_space={"type": "MultiDiscrete", "nvec": [3, 3]},
            action_space={"type": "Discrete", "n": 5},
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=32,
            context_length=12,
            initializer_range=0.2,
        )
    )
