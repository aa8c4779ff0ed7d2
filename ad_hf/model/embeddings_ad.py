"""From what environments return to tokens: elements of spaces, checked, and embedded."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ad import ADConfig, categories

# Standard deviations at which normalised observations are cut off.
OUTLIER = 10.0

# Height and width of the patches into which images are divided.
PATCH = 4

# Beyond it, numbers are infinite for the model.
LARGEST = float(np.finfo(np.float32).max)

# Spaces of rewards and of flags that may be numbers.
NUMBER = {"type": "Box", "shape": []}
FLAG = {"type": "Discrete", "n": 2}


def as_array(values: Any, name: str) -> np.ndarray:
    """Values as an array; a `ValueError` with their name for a ragged sequence."""
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}: {error}") from error


def element_shape(space: dict[str, Any]) -> tuple[int, ...]:
    """Shape of an element of a space that is given as JSON."""
    if space["type"] == "Box":
        return tuple(space["shape"])
    return () if space["type"] == "Discrete" else (len(categories(space)),)


def check_elements(
    values: Any,
    space: dict[str, Any],
    number: int,
    name: str,
    rows: np.ndarray | None = None,
    row: str = "environment",
) -> np.ndarray:
    """
    Elements of a space as an array.

    Args:
        values (`np.ndarray` of shape `(number, ...)`):
            One element for each environment, or step of a history.
        space (`dict`):
            The space as JSON.
        number (`int`):
            The number of elements.
        name (`str`):
            The name of the values, for errors.
        rows (`np.ndarray` of shape `(number,)`, *optional*):
            Elements that count; others may be anything, and become 0 where they are not in the space.
        row (`str`, *optional*, defaults to `"environment"`):
            What an element belongs to, for errors.

    Raises:
        ValueError: for elements of a wrong shape or outside of the space, naming the first.
    """
    array, expected = as_array(values, name), (number, *element_shape(space))
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers of shape {expected}, got {array.dtype} of shape {array.shape}")
    if space["type"] == "Box":
        outside, fault = np.zeros(1, dtype=bool), "not finite in float32"
        if array.dtype.kind == "f":
            outside = ~(np.abs(array) <= LARGEST)
    else:
        sizes = np.reshape(categories(space), expected[1:])
        outside, fault = ~((array >= 0) & (array < sizes)), f"no element of {space}"
        if array.dtype.kind == "f":
            outside |= array != np.floor(array)
    if outside.any():
        wrong = outside.reshape(number, -1).any(axis=1) & (True if rows is None else rows)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise ValueError(f"{name} of {row} {index} are {fault}: {array[index].tolist()}")
        array = np.where(outside, 0, array)
    return array


def check_flags(values: Any, number: int, name: str) -> np.ndarray:
    """Truth values (number,); a `ValueError` for anything else, numbers included, which could be indices."""
    array = as_array(values, name)
    if array.shape != (number,) or array.dtype.kind != "b":
        raise ValueError(
            f"{name} must have shape ({number},), one truth value for each environment, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return array


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor, in a byte order and a type that torch computes with."""
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    return torch.as_tensor(array.astype(np.int64 if wide else array.dtype.newbyteorder("="), copy=False))


def check_inputs(config: ADConfig, inputs: dict[str, torch.Tensor | None]) -> None:
    """Refuse inputs (batch, time, ...) of a forward pass whose shapes disagree, or which are not in their spaces."""
    acted: dict[str, Any] = config.action_space or {}
    with_none = {name: (np.asarray(acted[name]) + 1).tolist() for name in ("n", "nvec") if name in acted}
    spaces: dict[str, Any] = {"observations": config.observation_space, "previous_actions": {**acted, **with_none}}
    spaces["labels"] = acted
    steps = tuple(inputs["observations"].shape[:2])  # type: ignore[union-attr]
    for name, values in inputs.items():
        if values is None:
            continue
        space = spaces.get(name, NUMBER)
        expected = (*steps, *element_shape(space))
        if tuple(values.shape) != expected:
            raise ValueError(
                f"{name} must have shape {expected}, as observations have {steps}, got {tuple(values.shape)}"
            )
        if space["type"] != "Box" and not values.is_meta:
            for index, part in enumerate(values.masked_fill(values == -100, 0) if name == "labels" else values):
                check_elements(part, space, steps[1], name, row=f"row {index}, step")


def input_dtype(layer: nn.Module) -> torch.dtype:
    """Type of a layer's input; a layer that was quantised dynamically has a method `weight`, and takes float32."""
    return getattr(layer.weight, "dtype", torch.float32)


class CategoricalEmbedding(nn.Module):
    """One table per dimension of a Discrete, MultiDiscrete or MultiBinary element, their rows summed."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time) or (batch, time, dimensions), integers -> (batch, time, width)."""
        if values.ndim == 2:
            values = values.unsqueeze(-1)
        values = values.int()
        embedded = self.tables[0](values[..., 0])
        for dimension, table in enumerate(self.tables[1:], start=1):
            embedded = embedded + table(values[..., dimension])
        return embedded


class VectorEmbedding(nn.Module):
    """A linear map of a Box vector, normalised if its mean and standard deviation are known."""

    def __init__(self, size: int, width: int, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)
        self.normalize(mean, std)

    def normalize(self, mean: list[float] | None, std: list[float] | None) -> None:
        """Use another mean and standard deviation from now on."""
        size = self.linear.in_features
        self.normalizes = mean is not None or std is not None
        self.mean, self.std = mean or [0.0] * size, std or [1.0] * size

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time, size) -> (batch, time, width)."""
        # Large means leave nothing of small differences in bfloat16, nor in float32 of those of float64.
        if self.normalizes:
            values = values if values.dtype == torch.float64 else values.float()
            values = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
            values = values.clamp(-OUTLIER, OUTLIER)
        return self.linear(values.to(input_dtype(self.linear)))


class ImageEmbedding(nn.Module):
    """
    A Box image (height, width, channels): a linear map of each of its patches, strided convolutions over them, and a
    linear map of what is left. With patches first, a frame costs a fourth of what convolutions on all pixels do.
    """

    def __init__(self, shape: list[int], width: int, high: float | None, channels: list[int]) -> None:
        super().__init__()
        self.scale = high or 1.0
        height, breadth = shape[:2]
        self.padding = (0, -breadth % PATCH, 0, -height % PATCH)  # so that there are whole patches only
        self.patches = nn.Conv2d(shape[-1], channels[0], kernel_size=PATCH, stride=PATCH)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        step = PATCH * 2 ** len(self.convolutions)
        self.linear = nn.Linear(channels[-1] * math.ceil(height / step) * math.ceil(breadth / step), width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """values (batch, time, height, width, channels) -> (batch, time, width)."""
        frames = F.pad(values.flatten(0, 1).movedim(-1, 1), self.padding)
        frames = self.patches(frames.to(input_dtype(self.patches)) / self.scale)
        for convolution in self.convolutions:
            frames = convolution(F.leaky_relu(frames, negative_slope=0.0, inplace=True))  # as in ADBlock
        frames = F.leaky_relu(frames, negative_slope=0.0, inplace=True)
        return self.linear(frames.flatten(1)).unflatten(0, values.shape[:2])


def make_observation_embedding(config: ADConfig, width: int) -> nn.Module:
    """The embedding of observations, by their space."""
    space: dict[str, Any] = config.observation_space or {}
    if space["type"] != "Box":
        return CategoricalEmbedding(categories(space), width)
    if len(space["shape"]) == 3:
        return ImageEmbedding(space["shape"], width, space["high"][0], config.image_channels)
    return VectorEmbedding(space["shape"][0], width, config.observation_mean, config.observation_std)


def make_action_embedding(space: dict[str, Any], width: int) -> nn.Module:
    """The embedding of actions and of "none", a category of its own; vectors are -1 and 1 at their bounds."""
    if space["type"] != "Box":
        return CategoricalEmbedding([size + 1 for size in categories(space)], width)
    low, high = np.array(space["low"]), np.array(space["high"])
    return VectorEmbedding(len(low), width, ((low + high) / 2).tolist(), ((high - low) / 2).tolist())


class StepEmbedding(nn.Module):
    """
    The token of a step: embed(observation_t) + embed(action_{t-1}) + embed(reward_{t-1}) + embed(episode_start_t).

    Before the first step of a history there is no action; the extra category n (Discrete), nvec (MultiDiscrete), or a
    vector of zeros (Box) stands for it.
    """

    def __init__(self, config: ADConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.reward_scale = config.reward_scale
        self.observation = make_observation_embedding(config, width)
        self.previous_action = make_action_embedding(config.action_space or {}, width)
        self.previous_reward = nn.Linear(1, width)
        self.episode_start = nn.Embedding(2, width)

    def normalized_as(
        self, observation_mean: Any = None, observation_std: Any = None, reward_scale: float = 1.0, **_: Any
    ) -> StepEmbedding:
        """An embedding of the same weights, with the normalisation of a group of `ADConfig.groups`."""
        other = copy.copy(self)  # which has the same parameters, not copies of them
        other.reward_scale = reward_scale
        if isinstance(self.observation, VectorEmbedding):
            observation = copy.copy(self.observation)
            observation.normalize(observation_mean, observation_std)
            other.__dict__["_modules"] = {**self._modules, "observation": observation}
        return other

    def forward(
        self,
        observations: torch.Tensor,
        previous_actions: torch.Tensor,
        previous_rewards: torch.Tensor,
        episode_starts: torch.Tensor,
    ) -> torch.Tensor:
        """Four tensors (batch, time, ...) -> tokens (batch, time, width)."""
        rewards = previous_rewards.to(input_dtype(self.previous_reward)) / self.reward_scale
        return (
            self.observation(observations)
            + self.previous_action(previous_actions)
            + self.previous_reward(rewards.unsqueeze(-1))
            + self.episode_start(episode_starts.int())
        )


__all__ = ["StepEmbedding", "check_elements", "check_flags", "check_inputs", "element_shape", "to_tensor"]
