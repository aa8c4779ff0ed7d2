"""Prompts: histories that a context begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .checks_ad import as_array, as_elements, as_flags, check_rewards

if TYPE_CHECKING:
    from .modeling_ad import ADModel

Prompt = Mapping[str, Any] | Sequence[Mapping[str, Any] | None]


def prompt_steps(history: Mapping[str, Any], model: ADModel, none: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """
    The steps of a history as a model takes them.

    Args:
        history (`Mapping`):
            `observations` (time, ...), `actions` (time, ...), `rewards` (time,), and `terminations` and `truncations`
            (time,) or else `episode_starts` (time,).
        model ([`ADModel`]):
            For its spaces.
        none (`torch.Tensor`):
            What stands for the action before the first.
        name (`str`):
            What to call the history in an error.

    Returns:
        `dict[str, torch.Tensor]`: `observations`, `actions`, `previous_actions`, `rewards`, `previous_rewards` and
        `starts`, (time, ...) each.

    Raises:
        ValueError: for what is missing, of a wrong shape, or no element of the model's spaces.
    """
    given = {"observations", "actions", "rewards"} - set(history)
    if given or not ("episode_starts" in history or {"terminations", "truncations"} <= set(history)):
        raise ValueError(
            f"{name}: expected observations, actions, rewards, and terminations and truncations or episode_starts; "
            f"got {', '.join(sorted(history)) or 'nothing'}"
        )
    rewards = as_array(history["rewards"], f"{name}: rewards")
    if rewards.ndim != 1:
        raise ValueError(
            f"{name}: rewards must be numbers of shape (time,), got {rewards.dtype} of shape {rewards.shape}"
        )
    time = len(rewards)
    every = np.ones(time, dtype=bool)
    try:
        observations = as_elements(history["observations"], model.config.observation_space or {}, time, every)
        actions = as_elements(history["actions"], model.config.action_space or {}, time, every, "actions")
        paid = torch.from_numpy(check_rewards(rewards, time, every))
        starts = _episode_starts(history, time)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).replace('environment', 'step')}") from error
    previous_actions, previous_rewards = actions.to(none.dtype).roll(1, 0), paid.roll(1, 0)
    if time:
        previous_actions[0], previous_rewards[0] = none, 0.0
    return {
        **{"observations": observations, "actions": actions, "previous_actions": previous_actions},
        **{"rewards": paid, "previous_rewards": previous_rewards, "starts": starts},
    }


def _episode_starts(history: Mapping[str, Any], time: int) -> torch.Tensor:
    """Which steps (time,) are the first of their episode."""
    names = ("episode_starts",) if "episode_starts" in history else ("terminations", "truncations")
    columns = [as_flags(history[name], time, name, numbers=True).numpy() for name in names]
    starts = columns[0].copy() if len(columns) == 1 else np.roll(columns[0] | columns[1], 1)
    starts[:1] = True
    return torch.from_numpy(starts)


__all__ = ["Prompt", "prompt_steps"]
