"""Rollout: to environments what `generate` is to text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .environments_ad import Environments, make_envs
from .prompt_ad import Prompt
from .recording_ad import Recording, RolloutOutput
from .rollout_config_ad import RolloutConfig

if TYPE_CHECKING:
    from .modeling_ad import ADModel

logger = logging.get_logger(__name__)

# Steps of an episode after which it is asked whether it will ever end.
LONG = 100_000


def rollout(
    model: ADModel,
    envs: Any,
    rollout_config: RolloutConfig | None = None,
    prompt: Prompt | None = None,
    callback: Callable[[RolloutOutput], Any] | None = None,
    env_kwargs: Any = None,
    **overrides: Any,
) -> RolloutOutput:
    """See [`ADModel.rollout`]."""
    config = RolloutConfig.from_dict(overrides).resolve(rollout_config or RolloutConfig(), model.rollout_config)
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be a function of what is known so far, got {callback!r}")
    made = make_envs(envs, env_kwargs)
    training = model.training
    model.eval()
    try:
        return _rollout(model, Environments(made, model.config, config.output_steps), config, prompt, callback)
    finally:
        model.train(training)
        if isinstance(envs, str):
            made.close()


def _rollout(
    model: ADModel,
    envs: Environments,
    config: Any,
    prompt: Prompt | None,
    callback: Callable[[RolloutOutput], Any] | None,
) -> RolloutOutput:
    context = model.init_context(envs.num_envs, prompt, rollout_config=config)
    recording = Recording(envs.num_envs, config)
    envs.reset(config.seed)
    done, steps = recording.done, 0
    while not done.all():
        counted = ~envs.resetting & ~done
        step: dict[str, Any] = {"observations": np.array(envs.observations)} if config.output_steps else {}
        if config.output_frames:
            step["frames"] = render(envs.envs)
        actions = context.act(envs.observations, envs.rewards, envs.starts, counted)
        step |= {"actions": actions, "log_probs": context.log_probs, "logits": context.logits}
        terminations, truncations, reached = envs.step(actions)
        step |= {"rewards": envs.rewards, "terminations": terminations, "truncations": truncations}
        recording.add(np.flatnonzero(counted), reached, step)
        done = recording.done
        steps += 1
        if steps % LONG == 0 and config.max_steps is None and recording.longest >= LONG:
            logger.warning_once(
                f"an episode has not ended after {LONG} steps: environments that never end one need max_steps"
            )
        if callback is not None and callback(recording.output) is True:
            break
    return recording.finish((model.config.observation_space, model.config.action_space))


def render(envs: Any) -> np.ndarray:
    """Pictures (num_envs, height, width, 3) of environments, which must render to arrays."""
    try:
        frames = envs.render()
    except NotImplementedError:
        frames = None
    if frames is None or any(frame is None for frame in frames):
        raise ValueError(
            "output_frames needs environments that render to arrays: make them with render_mode='rgb_array'"
        )
    return np.stack(frames)


__all__ = ["RolloutConfig", "RolloutOutput", "rollout"]
