"""Feature extractors for observations that those of Stable-Baselines3 do not fit."""

from __future__ import annotations

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class SmallCNN(BaseFeaturesExtractor):
    r"""
    Two convolutions and a linear layer, for frames too small for SB3's `NatureCNN`, which needs 36 x 36 pixels.

    In a recipe: `policy_kwargs: {features_extractor_class: ad_hf.sources.extractors.SmallCNN}`.

    Args:
        observation_space (`gymnasium.spaces.Box`):
            Frames (channels, height, width), of at least 8 x 8 pixels.
        features_dim (`int`, *optional*, defaults to 128):
            Number of features.
        channels (`int`, *optional*, defaults to 16):
            Of the first convolution; the second has twice as many.

    Raises:
        ValueError: if the frames are smaller.
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128, channels: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        if len(observation_space.shape) != 3 or min(observation_space.shape[1:]) < 8:
            raise ValueError(
                "SmallCNN needs frames (channels, height, width) of at least 8 x 8 pixels, got the shape "
                f"{observation_space.shape}"
            )
        self.convolutions = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], channels, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(size, features_dim), nn.ReLU())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Features (batch, features_dim) of frames (batch, channels, height, width)."""
        return self.linear(self.convolutions(observations))
