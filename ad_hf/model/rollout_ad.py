"""Rollout: to environments what `generate` is to text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import ModelOutput, cached_file

if TYPE_CHECKING:
    from .modeling_ad import ADModel

ROLLOUT_CONFIG_FILE = "rollout_config.json"


@dataclass
class RolloutConfig:
    """
    Settings of a rollout, saved beside a model as `rollout_config.json`.

    Args:
        num_episodes: Episodes per environment.
        do_sample: Whether to sample actions (as the source did: AD explores by it) or to take the most likely ones.
        temperature: Divides the logits.
        seed: Seed of the environments' resets and of the sampled actions; environment i takes `seed + i`.
    """

    num_episodes: int = 100
    do_sample: bool = True
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {self.num_episodes}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> RolloutConfig:
        """A configuration from a dict; unknown keys raise a `ValueError` that names them."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"unknown rollout setting {', '.join(map(repr, unknown))}: expected {', '.join(known)}")
        return cls(**settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `rollout_config.json` into a folder."""
        Path(folder, ROLLOUT_CONFIG_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, model: str | Path, **hub_arguments: Any) -> RolloutConfig:
        """The `rollout_config.json` of a model folder or Hub repository, or the defaults if it has none."""
        path = cached_file(
            str(model), ROLLOUT_CONFIG_FILE, _raise_exceptions_for_missing_entries=False, **hub_arguments
        )
        return cls() if path is None else cls.from_dict(json.loads(Path(path).read_text()))


@dataclass
class RolloutOutput(ModelOutput):
    """
    Output of a rollout.

    Attributes:
        episode_returns (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Sum of rewards of each episode, in order; NaN for episodes not finished.
        episode_lengths (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Steps of each episode.
    """

    episode_returns: np.ndarray | None = None
    episode_lengths: np.ndarray | None = None


def _check_spaces(model: ADModel, envs: Any) -> None:
    for name, space in (
        ("observation_space", envs.single_observation_space),
        ("action_space", envs.single_action_space),
    ):
        wanted = getattr(model.config, name)
        sizes = {"Discrete": "n", "MultiDiscrete": "nvec", "MultiBinary": "n", "Box": "shape"}
        kind = type(space).__name__
        size = np.array(getattr(space, sizes[kind])).tolist() if kind in sizes else None
        fits = kind == wanted["type"] and size == wanted[sizes[kind]] and not np.any(getattr(space, "start", 0))
        if fits and kind == "Box" and name == "action_space":  # the bins of an action lie between its bounds
            fits = space.low.tolist() == wanted["low"] and space.high.tolist() == wanted["high"]
        if not fits:
            raise ValueError(f"the environments' {name} is {space}, the model was trained for {wanted}")


def rollout(
    model: ADModel,
    envs: Any,
    rollout_config: RolloutConfig | None = None,
    callback: Callable[[RolloutOutput], None] | None = None,
    **overrides: Any,
) -> RolloutOutput:
    """See [`ADModel.rollout`]."""
    config = RolloutConfig.from_dict({**asdict(rollout_config or model.rollout_config), **overrides})
    _check_spaces(model, envs)
    mode = getattr(envs.metadata.get("autoreset_mode"), "value", None)
    if mode not in ("SameStep", "NextStep", "Disabled"):
        raise ValueError(f"the environments must state their autoreset_mode in metadata, got {mode}")
    num_envs = envs.num_envs
    training = model.training
    model.eval()
    context = model.init_context(num_envs, seed=config.seed, rollout_config=config)
    output = RolloutOutput(
        episode_returns=np.full((num_envs, config.num_episodes), np.nan),
        episode_lengths=np.zeros((num_envs, config.num_episodes), dtype=np.int64),
    )
    episodes = np.zeros(num_envs, dtype=np.int64)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
    observations, _ = envs.reset(seed=config.seed)
    context_rewards = np.zeros(num_envs)  # the reward that led to each observation, kept across reset steps
    starts, active = np.ones(num_envs, dtype=bool), np.ones(num_envs, dtype=bool)
    try:
        while episodes.min() < config.num_episodes:
            actions = context.act(observations, context_rewards, starts, active)
            observations, rewards, terminations, truncations, _ = envs.step(actions)
            context_rewards = np.where(active, rewards, context_rewards)
            returns += np.where(active, rewards, 0.0)
            lengths += active
            ended = (terminations | truncations) & active
            counted = np.flatnonzero(ended & (episodes < config.num_episodes))
            output.episode_returns[counted, episodes[counted]] = returns[counted]  # type: ignore[index]
            output.episode_lengths[counted, episodes[counted]] = lengths[counted]  # type: ignore[index]
            episodes += ended
            returns[ended], lengths[ended] = 0.0, 0
            if mode == "NextStep":  # the step after an episode's end resets: it is no experience
                starts, active = ~active, ~ended
            else:
                starts = ended
                if mode == "Disabled" and ended.any():
                    observations, _ = envs.reset(options={"reset_mask": ended})
            if callback is not None:
                callback(output)
    finally:
        model.train(training)
    return output


__all__ = ["RolloutConfig", "RolloutOutput", "rollout"]
