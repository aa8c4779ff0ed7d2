"""Settings of a rollout: to `model.rollout` what `GenerationConfig` is to `generate`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import cached_file

from .checks_ad import read_json

ROLLOUT_CONFIG_FILE = "rollout_config.json"

DEFAULTS: dict[str, Any] = {
    **{"num_episodes": 100, "max_steps": None},
    **{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "epsilon": 0.0, "seed": 0},
    **{"context_length": None, "context_drop": None},
    **{"output_steps": False, "output_log_probs": False, "output_logits": False, "output_frames": False},
}
LIMITS = ("num_episodes", "max_steps")
SEEDS = 2**63


@dataclass
class RolloutConfig:
    """
    Settings of a rollout, saved beside a model as `rollout_config.json`. What is left unset (`None`) is taken from the
    model's own settings, and then from the defaults that are named here.

    Args:
        num_episodes: Episodes per environment (default: 100, unless max_steps is given).
        max_steps: Steps per environment at most.
        do_sample: Sample actions, as the source did: AD explores by it (default), or take the most likely ones.
        temperature: Divides the logits (default: 1).
        top_k: Sample from so many likeliest actions of each dimension only; 0 (default) for all.
        top_p: Sample from the likeliest actions that together have this probability only; 1 (default) for all.
        epsilon: Share of actions that are uniformly random instead, in each dimension (default: 0).
        context_length: Steps that the context holds at most (default: the model's).
        context_drop: Oldest steps that a full context forgets at once, the others being encoded anew (default: a
            quarter); 1 is the paper's queue, which encodes the context at every step.
        seed: Seed of the environments' resets and of the sampled actions; environment i takes seed + i (default: 0).
        output_steps: Return observations, actions, rewards and ends of episodes, too.
        output_log_probs: Return the log-probabilities with which the actions were chosen, too.
        output_logits: Return the model's logits, too.
        output_frames: Return the rendered pictures of what was seen at each step, too.
    """

    num_episodes: int | None = None
    max_steps: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    epsilon: float | None = None
    context_length: int | None = None
    context_drop: int | None = None
    seed: int | None = None
    output_steps: bool | None = None
    output_log_probs: bool | None = None
    output_logits: bool | None = None
    output_frames: bool | None = None

    def __post_init__(self) -> None:
        for name in DEFAULTS:
            if isinstance(value := getattr(self, name), np.generic):
                setattr(self, name, value.item())
        for name in ("num_episodes", "max_steps", "context_length", "context_drop"):
            self._check(name, lambda value: value >= 1, "at least 1")
        self._check("top_k", lambda value: value >= 0, "0 or greater")
        self._check("seed", lambda value: 0 <= value < SEEDS, "0 or greater, and below 2**63")
        self._check(
            "temperature", lambda value: 0 < value < math.inf, "positive; do_sample=False takes the likeliest action"
        )
        self._check("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")
        self._check("epsilon", lambda value: 0 <= value <= 1, "from 0 to 1")
        for name in ("do_sample", "output_steps", "output_log_probs", "output_logits", "output_frames"):
            if not isinstance(getattr(self, name), bool | None):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check(self, name: str, allowed: Any, expected: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        whole = not isinstance(DEFAULTS[name], float)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not allowed(value):
            raise ValueError(f"{name} must be {'an integer, ' * whole}{expected}, got {value!r}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RolloutConfig:
        """A configuration from a dict; unknown keys raise a `ValueError` that names them."""
        if not isinstance(settings, Mapping):
            raise ValueError(f"rollout settings must be a dict of them, got {settings!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, settings)) - set(known))
        if unknown:
            raise ValueError(f"unknown rollout setting {', '.join(map(repr, unknown))}: expected {', '.join(known)}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resolve(self, *others: RolloutConfig) -> Any:
        """
        A [`RolloutConfig`] that is this one, with what is unset taken from others, in their order, and then from the
        defaults.

        How long a rollout is, `num_episodes` or `max_steps`, is one setting: whoever sets either sets both.
        """
        settings = dict(DEFAULTS)
        for config in reversed([self, *others]):
            if type(config).__name__ != "RolloutConfig":  # by name, as a model from the Hub brings a class of its own
                raise ValueError(f"rollout_config must be a RolloutConfig, got {config!r}")
            given = config.to_dict()
            if given.keys() & set(LIMITS):
                settings.update(dict.fromkeys(LIMITS))
            settings.update(given)
        return RolloutConfig(**settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `rollout_config.json` into a folder."""
        Path(folder, ROLLOUT_CONFIG_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, model: str | Path, **hub_arguments: Any) -> RolloutConfig:
        """
        The `rollout_config.json` of a model folder or Hub repository, or nothing set if it has none.

        Raises:
            ValueError: for a file that is not JSON, and for unknown settings, naming the file.
        """
        path = cached_file(
            str(model), ROLLOUT_CONFIG_FILE, _raise_exceptions_for_missing_entries=False, **hub_arguments
        )
        if path is None:
            return cls()
        settings = read_json(path)
        try:
            return cls.from_dict(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


__all__ = ["RolloutConfig"]
