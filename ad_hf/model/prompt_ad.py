"""Prompts: histories that a context begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .configuration_ad import ADConfig
from .embeddings_ad import FLAG, NUMBER, as_array, check_elements, to_tensor

Prompt = Mapping[str, Any] | Sequence[Mapping[str, Any] | None]
# observations, actions, previous_actions, rewards, previous_rewards and starts, (time, ...) each
Steps = dict[str, torch.Tensor]


def parse_prompts(histories: Prompt, num_envs: int, config: ADConfig, none: torch.Tensor) -> list[Steps | None]:
    """
    The steps of each environment's history; those that are the same object are parsed once.

    Args:
        histories (`Mapping` or a sequence of them):
            As of [`ADContext.prompt`].
        num_envs (`int`):
            Number of environments.
        config ([`ADConfig`]):
            Of the model.
        none (`torch.Tensor`):
            The action before the first.

    Raises:
        ValueError: for a wrong number of histories, and for columns that are missing, of a wrong shape, or not of the
            model's spaces, naming the environment.
    """
    many: list[Any] = [histories] * num_envs if isinstance(histories, Mapping) else []
    if isinstance(histories, Iterable) and not isinstance(histories, str | Mapping):
        many = list(histories)  # a dataset is one, too
    if len(many) != num_envs:
        raise ValueError(
            f"prompt must be one history for all environments or one (or None) for each of {num_envs}, got "
            f"{len(many) or repr(histories)}"
        )
    parsed: dict[int, Steps] = {}
    for env, history in enumerate(many):
        if history is not None and id(history) not in parsed:
            parsed[id(history)] = _parse(history, config, none, f"prompt of environment {env}")
    return [None if history is None else parsed[id(history)] for history in many]


def _parse(history: Any, config: ADConfig, none: torch.Tensor, name: str) -> Steps:
    names = set(history) if isinstance(history, Mapping) else set()
    ends = ["episode_starts"] if "episode_starts" in names else ["terminations", "truncations"]
    if not {"observations", "actions", "rewards", *ends} <= names:
        raise ValueError(
            f"{name}: expected a mapping of observations, actions, rewards, and terminations and truncations or "
            f"episode_starts; got {', '.join(sorted(names)) or repr(history)}"
        )
    time = len(np.atleast_1d(as_array(history["rewards"], f"{name}: rewards")))
    spaces: dict[str, Any] = {"rewards": NUMBER, "observations": config.observation_space}
    spaces |= {"actions": config.action_space, **dict.fromkeys(ends, FLAG)}
    columns = {
        column: check_elements(history[column], space, time, f"{name}: {column}", row="step")
        for column, space in spaces.items()
    }
    starts = np.any([columns[end] for end in ends], axis=0)
    if len(ends) == 2:  # of the steps before
        starts = np.roll(starts, 1)
    starts[:1] = True
    actions, rewards = to_tensor(columns["actions"]), to_tensor(columns["rewards"].astype(np.float32))
    previous_actions, previous_rewards = actions.to(none.dtype).roll(1, 0), rewards.roll(1, 0)
    previous_actions[:1], previous_rewards[:1] = none, 0.0
    return {
        **{"observations": to_tensor(columns["observations"]), "starts": torch.from_numpy(starts)},
        **{"actions": actions, "previous_actions": previous_actions},
        **{"rewards": rewards, "previous_rewards": previous_rewards},
    }


__all__ = ["Prompt", "Steps", "parse_prompts"]
