"""Settings of a rollout: to `model.rollout` what `GenerationConfig` is to `generate`."""

# Annotations are not postponed here, as in configuration_ad.py.
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers.utils import cached_file

from .configuration_ad import check_settings, read_json

ROLLOUT_CONFIG_FILE = "rollout_config.json"
LIMITS = ("num_episodes", "max_steps")
PLANNING = ("planner", "planning_horizon", "planning_weight")
SEEDS = 2**63


def unset(default: Any, **bounds: float) -> Any:
    """A setting that is `None` until it is resolved; its default and bounds stand in its metadata."""
    return field(default=None, metadata={"default": default, **bounds})


@dataclass
class RolloutConfig:
    """
    Settings of a rollout, saved beside a model as `rollout_config.json`. Those that are left unset (`None`) are taken
    from the model's own settings, and then from the defaults that are named here.

    Args:
        num_episodes: Episodes per environment (default: 100, unless max_steps is given).
        max_steps: Steps per environment at most.
        do_sample: Sample actions, as the source did: AD explores by it (default), or take the most likely ones.
        temperature: Divides the logits (default: 1).
        top_k: Sample from so many likeliest actions of each dimension only; 0 (default) for all.
        top_p: Sample from the likeliest actions that together have this probability only; 1 (default) for all.
        epsilon: Share of actions that are uniformly random instead, in each dimension (default: 0).
        num_beams: Paths of imagined steps by which a model with dynamics heads (`dynamics_weight` of [`ADConfig`])
            plans each action; 1 (default) for none.
        planner: `"beam_search"` (default) values a first action by the best of the paths that begin with it,
            `"policy_iteration"` by the mean of paths that the model's own policy takes.
        planning_horizon: Imagined steps of a path, with its first action; what comes after them is the return that the
            heads predict (default: 2). The context of a model without a sliding window is shorter by as many steps.
        planning_weight: How much a return of the model's `reward_scale` adds to the logits (default: 4).
        context_length: Steps that the context holds at most (default: the model's).
        context_drop: Oldest steps that a full context forgets at once, the others being encoded anew; 1 is the paper's
            queue, which encodes the context at every step. Models with full attention forget a quarter by default,
            others nothing: a sliding window and the states of linear attention go on for as long as one likes.
        mixed_precision: `"bf16"` for products with the blocks' weights in bfloat16 and everything else in the model's
            own type, `"no"` for that type alone; `"auto"` (default) takes bf16 for float32 models on CPUs that have
            instructions for it, from 8 environments on.
        seed: Seed of the environments' resets and of the sampled actions; environment i takes seed + i (default: 0).
        output_steps: Return observations, actions, rewards and ends of episodes, too.
        output_log_probs: Return the log-probabilities with which the actions were chosen, too.
        output_logits: Return the model's logits, too.
        output_frames: Return the rendered pictures of the observations at each step, too.
    """

    num_episodes: int | None = unset(100, least=1)
    max_steps: int | None = unset(None, least=1)
    do_sample: bool | None = unset(True)
    temperature: float | None = unset(1.0, above=0)
    top_k: int | None = unset(0, least=0)
    top_p: float | None = unset(1.0, above=0, most=1)
    epsilon: float | None = unset(0.0, least=0, most=1)
    num_beams: int | None = unset(1, least=1)
    planner: Literal["beam_search", "policy_iteration"] | None = unset("beam_search")
    planning_horizon: int | None = unset(2, least=1)
    planning_weight: float | None = unset(4.0, least=0)
    context_length: int | None = unset(None, least=1)
    context_drop: int | None = unset(None, least=1)
    mixed_precision: Literal["auto", "no", "bf16"] | None = unset("auto")
    seed: int | None = unset(0, least=0, below=SEEDS)
    output_steps: bool | None = unset(False)
    output_log_probs: bool | None = unset(False)
    output_logits: bool | None = unset(False)
    output_frames: bool | None = unset(False)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                setattr(self, name, value.item())
        check_settings(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "RolloutConfig":
        """A configuration from a dict; unknown keys raise a `ValueError` that names them."""
        if not isinstance(settings, Mapping):
            raise ValueError(f"rollout settings must be a dict of them, got {settings!r}")
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(map(str, settings)) - set(names)):
            raise ValueError(f"unknown rollout setting {', '.join(map(repr, unknown))}: expected {', '.join(names)}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resolve(self, *others: "RolloutConfig") -> Any:
        """
        A [`RolloutConfig`] that is this one, with unset settings taken from others, in their order, and then from the
        defaults.

        The length of a rollout, `num_episodes` or `max_steps`, is one setting: a configuration that sets either sets
        both.

        Raises:
            ValueError: for settings of planning where no configuration sets `num_beams`.
        """
        settings = {each.name: each.metadata["default"] for each in fields(RolloutConfig)}
        given: set[str] = set()
        for config in reversed([self, *others]):
            if type(config).__name__ != "RolloutConfig":  # by name, as a model from the Hub brings a class of its own
                raise ValueError(f"rollout_config must be a RolloutConfig, got {config!r}")
            own = config.to_dict()
            if own.keys() & set(LIMITS):
                settings.update(dict.fromkeys(LIMITS))
            settings.update(own)
            given |= own.keys()
        if "num_beams" not in given and (idle := sorted(given & set(PLANNING))):
            raise ValueError(f"nothing is planned without num_beams of at least 2, got {', '.join(idle)} alone")
        return RolloutConfig(**settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `rollout_config.json` into a folder."""
        Path(folder, ROLLOUT_CONFIG_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, model: str | Path, **hub_arguments: Any) -> "RolloutConfig":
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
