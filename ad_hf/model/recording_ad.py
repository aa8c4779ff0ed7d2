"""What a rollout returns, filled in step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import ModelOutput

from .checks_ad import check_fits


@dataclass
class RolloutOutput(ModelOutput):
    """
    Output of a rollout. Episodes and steps beyond those of an environment are padding.

    Attributes:
        episode_returns (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Sum of rewards of each episode, in order; NaN for episodes not finished.
        episode_lengths (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Steps of each episode; 0 for episodes not finished.
        num_steps (`np.ndarray` of shape `(num_envs,)`):
            Steps of each environment that count, those of an unfinished last episode included.
        observations (`np.ndarray` of shape `(num_envs, time, ...)`), actions (`(num_envs, time, ...)`), rewards
        (`(num_envs, time)`), terminations, truncations (`(num_envs, time)`), *optional*, with `output_steps`:
            The steps. `observations[:, t]` led to `actions[:, t]`, which brought `rewards[:, t]`.
        final_observations (`np.ndarray` of shape `(num_envs, num_episodes, ...)`, *optional*, with `output_steps`):
            The last observation of each episode, that of an unfinished last episode included.
        log_probs (`np.ndarray` of shape `(num_envs, time)`, *optional*, with `output_log_probs`):
            Log-probabilities with which the actions were chosen.
        logits (`np.ndarray` of shape `(num_envs, time, n)`, *optional*, with `output_logits`):
            The model's logits.
        frames (`np.ndarray` of shape `(num_envs, time, height, width, 3)`, *optional*, with `output_frames`):
            Pictures of what was seen at each step.
        observation_space, action_space (`dict`, *optional*, with `output_steps`):
            Spaces of one environment as JSON.
    """

    episode_returns: np.ndarray | None = None
    episode_lengths: np.ndarray | None = None
    num_steps: np.ndarray | None = None
    observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminations: np.ndarray | None = None
    truncations: np.ndarray | None = None
    final_observations: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    logits: np.ndarray | None = None
    frames: np.ndarray | None = None
    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None


class GrowingArray:
    """An array (num_envs, length, ...) that is written row by row, and grows as its rows do."""

    def __init__(self, num_envs: int, length: int) -> None:
        # The second axis comes first in memory, so that a step is one contiguous write.
        self._num_envs, self._length = num_envs, max(1, length)
        self._array: np.ndarray | None = None

    def write(self, envs: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        """Write values (number, ...) to some environments' places (number,)."""
        if self._array is None:
            self._array = np.zeros((self._length, self._num_envs, *values.shape[1:]), dtype=values.dtype)
        if len(places) and int(places.max()) >= len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[places, envs] = values

    def cut(self, length: int) -> np.ndarray | None:
        """The array (num_envs, length, ...)."""
        return None if self._array is None else np.ascontiguousarray(np.swapaxes(self._array[:length], 0, 1))


class Recording:
    """
    Counts episodes and steps, and keeps what was asked for.

    Args:
        num_envs (`int`):
            Number of environments.
        config ([`RolloutConfig`]):
            What to keep, all settings set, and when environments are done.
    """

    def __init__(self, num_envs: int, config: Any) -> None:
        self.config, self.num_envs = config, num_envs
        episodes = config.num_episodes or 16
        check_fits(16 * num_envs * episodes, f"num_episodes={episodes} of {num_envs} environments")
        self.output = RolloutOutput(
            episode_returns=np.full((num_envs, episodes), np.nan),
            episode_lengths=np.zeros((num_envs, episodes), dtype=np.int64),
            num_steps=np.zeros(num_envs, dtype=np.int64),
        )
        self.num_steps = np.zeros(num_envs, dtype=np.int64)
        self.output.num_steps = self.num_steps
        self.episodes = np.zeros(num_envs, dtype=np.int64)
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        names = ("observations", "actions", "rewards", "terminations", "truncations") if config.output_steps else ()
        wanted = [name for name in ("log_probs", "logits", "frames") if getattr(config, f"output_{name}")]
        length = min(config.max_steps or 256, 4096)  # it grows
        self._steps = {name: GrowingArray(num_envs, length) for name in (*names, *wanted)}
        self._finals = GrowingArray(num_envs, min(episodes, 4096)) if config.output_steps else None
        self._last: np.ndarray | None = None  # the observations that the last steps led to

    @property
    def longest(self) -> int:
        """Steps of the longest episode under way."""
        return int(self._lengths.max())

    @property
    def done(self) -> np.ndarray:
        """Environments (num_envs,) that have had all their episodes or steps."""
        done = np.zeros(self.num_envs, dtype=bool)
        if self.config.num_episodes is not None:
            done |= self.episodes >= self.config.num_episodes
        if self.config.max_steps is not None:
            done |= self.num_steps >= self.config.max_steps
        return done

    def add(self, envs: np.ndarray, reached: np.ndarray, step: dict[str, Any]) -> None:
        """
        A step of some environments.

        Args:
            envs (`np.ndarray` of shape `(number,)`):
                Their numbers.
            reached (`np.ndarray` of shape `(num_envs, ...)`):
                The observations that it led to.
            step (`dict`):
                `rewards`, `terminations` and `truncations` (num_envs,), and what else is kept, (num_envs, ...) each.
        """
        for name, array in self._steps.items():
            array.write(envs, self.num_steps[envs], np.asarray(step[name])[envs])
        self._returns[envs] += step["rewards"][envs]
        self._lengths[envs] += 1
        self.num_steps[envs] += 1
        if self._finals is not None:
            if self._last is None:
                self._last = np.zeros_like(reached)
            self._last[envs] = reached[envs]
        ended = envs[(step["terminations"] | step["truncations"])[envs]]
        if ended.size:
            self._end(ended)
            if self._finals is not None:
                self._finals.write(ended, self.episodes[ended], reached[ended])
            self.episodes[ended] += 1

    def _end(self, ended: np.ndarray) -> None:
        output, places = self.output, self.episodes[ended]
        returns: Any = output.episode_returns
        lengths: Any = output.episode_lengths
        if int(places.max()) >= returns.shape[1]:
            returns = output.episode_returns = np.concatenate([returns, np.full_like(returns, np.nan)], axis=1)
            lengths = output.episode_lengths = np.concatenate([lengths, np.zeros_like(lengths)], axis=1)
        returns[ended, places], lengths[ended, places] = self._returns[ended], self._lengths[ended]
        self._returns[ended], self._lengths[ended] = 0.0, 0

    def finish(self, spaces: tuple[Any, Any]) -> RolloutOutput:
        """All that was kept, and the spaces of an environment as JSON."""
        output, episodes = self.output, int(self.episodes.max())
        if self.config.num_episodes is None:
            output.episode_returns = output["episode_returns"][:, :episodes]
            output.episode_lengths = output["episode_lengths"][:, :episodes]
        time = int(self.num_steps.max())
        for name, array in self._steps.items():
            setattr(output, name, array.cut(time))
        if self._finals is not None and self._last is not None:
            under_way = np.flatnonzero(self._lengths)
            self._finals.write(under_way, self.episodes[under_way], self._last[under_way])
            output.final_observations = self._finals.cut(int((self.episodes + (self._lengths > 0)).max()))
            output.observation_space, output.action_space = spaces
        return output


__all__ = ["Recording", "RolloutOutput"]
