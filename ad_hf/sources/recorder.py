"""Records all that a learner's parallel environments live through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ad_hf.envs.spaces import Elements, storage_dtype
from ad_hf.envs.vector import check_same_step, checked_reset, checked_step, final_observations


@dataclass
class RecordedSteps:
    """
    The histories of the streams of one learner; step t of a stream holds what it saw, did and got at that step.

    Attributes:
        observations (`np.ndarray` of shape `(num_envs, num_steps, ...)`), actions (`(num_envs, num_steps, ...)`),
        rewards, terminations, truncations (`(num_envs, num_steps)`):
            The steps. `observations[:, t]` led to `actions[:, t]`, which brought `rewards[:, t]`.
        final_observations (`list[np.ndarray]` of shape `(num_episodes, ...)`):
            Per stream, the last observation of each episode, that of an unfinished last episode included.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    final_observations: list[np.ndarray]

    def streams(self, chosen: slice) -> RecordedSteps:
        """Some of the streams."""
        arrays = {
            name: getattr(self, name)[chosen]
            for name in ("observations", "actions", "rewards", "terminations", "truncations")
        }
        return RecordedSteps(**arrays, final_observations=self.final_observations[chosen])

    def until(self, step: int) -> RecordedSteps:
        """The first steps only."""
        if step >= self.rewards.shape[1]:
            return self
        ends = self.terminations[:, :step] | self.truncations[:, :step]
        finals = [kept[:episodes] for kept, episodes in zip(self.final_observations, ends.sum(axis=1))]
        if step:
            for stream in np.flatnonzero(~ends[:, -1]):  # in the middle of an episode
                finals[stream] = np.concatenate([finals[stream], self.observations[stream, step : step + 1]])
        arrays = {
            name: getattr(self, name)[:, :step]
            for name in ("observations", "actions", "rewards", "terminations", "truncations")
        }
        return RecordedSteps(**arrays, final_observations=finals)


class HistoryRecorder(VectorWrapper):
    r"""
    Keeps every step of a gymnasium vector environment, whoever drives it, on- and off-policy learners alike.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            Environments in SAME_STEP mode.
        num_steps (`int`):
            Expected number of steps per environment; more are kept as well, at the cost of a copy.
        on_step (`Callable[[int], None]`, *optional*):
            Called at each step with the number of transitions it added, e.g. by a progress bar.

    Raises:
        ValueError: if the environments do not autoreset in the same step; at a reset or step, if they return something
            else than gymnasium's vector environments do, and for observations, actions and rewards that a model cannot
            take: see [`~ad_hf.envs.spaces.Elements`].
        Exception: whatever the environments raise, with a note of the step.
    """

    def __init__(self, envs: VectorEnv, num_steps: int, on_step: Callable[[int], None] | None = None) -> None:
        super().__init__(envs)
        check_same_step(envs)
        self._on_step = on_step
        self._num_steps = 0
        observations, actions = envs.single_observation_space, envs.single_action_space
        self._observation_dtype = storage_dtype(observations)
        self._elements = Elements(observations, is_bounded=self._observation_dtype.kind != "f")
        self._rewards_allowed, self._actions_allowed = Elements(), Elements(actions, is_bounded=True)
        # Time comes first while recording, so that a step is one contiguous write.
        self._observations = self._empty(num_steps, observations.shape, self._observation_dtype)
        self._actions = self._empty(num_steps, actions.shape, storage_dtype(actions))
        self._rewards = self._empty(num_steps, (), np.float64)
        self._terminations = self._empty(num_steps, (), np.bool_)
        self._truncations = self._empty(num_steps, (), np.bool_)
        self._final_observations: list[list[np.ndarray]] = [[] for _ in range(envs.num_envs)]
        self._last_observations: np.ndarray | None = None

    def _empty(self, num_steps: int, shape: tuple[int, ...] | None, dtype: Any) -> np.ndarray:
        return np.empty((max(1, num_steps), self.env.num_envs, *(shape or ())), dtype=dtype)

    def _grow(self) -> None:
        for name in ("_observations", "_actions", "_rewards", "_terminations", "_truncations"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.empty_like(array)]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Reset the environments; episodes under way are recorded as truncated at their last step."""
        last = self._last_observations
        if self._num_steps and last is not None:
            ended = self._terminations[self._num_steps - 1] | self._truncations[self._num_steps - 1]
            self._truncations[self._num_steps - 1, ~ended] = True
            self._keep_final(np.flatnonzero(~ended), last)
        try:
            returned = self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.add_note(f"(in the reset before step {self._num_steps})")
            raise
        observations, infos = checked_reset(returned, self.env, self._num_steps)
        self._last_observations = self._checked(observations, np.arange(self.num_envs))
        return observations, infos

    def _checked(self, observations: Any, indices: np.ndarray) -> np.ndarray:
        """A copy of observations (number, ...) of some environments (number,), as they are stored."""
        given, space = np.asarray(observations), self.env.single_observation_space
        if given.shape[1:] != space.shape:
            raise ValueError(
                f"environment {indices[0]} gave an observation of shape {given.shape[1:]} at step {self._num_steps}, "
                f"expected an element of {space}"
            )
        stored, wrong = self._elements.store(given)
        if wrong.any():
            first = int(np.argmax(wrong))
            expected = "finite numbers" if stored.dtype.kind == "f" else "an element"
            raise ValueError(
                f"environment {indices[first]} gave the observation {_shortened(given[first])} at step "
                f"{self._num_steps}, expected {expected} of {space}"
            )
        return stored

    def _keep_final(self, indices: np.ndarray, last: Any) -> None:
        if indices.size:
            # gymnasium's own vectors give final observations as an array of objects
            finals = self._checked(np.stack(list(last[indices])), indices)
            for index, final in zip(indices.tolist(), finals):
                self._final_observations[index].append(final)

    def step(self, actions: np.ndarray):
        """Step the environments and keep what they return."""
        step = self._num_steps
        if self._actions_allowed.outside(np.asarray(actions)).any():
            given, space = _shortened(np.asarray(actions)), self.env.single_action_space
            raise ValueError(f"the source gave the actions {given} at step {step}, expected elements of {space}")
        try:
            returned = self.env.step(actions)
        except Exception as error:
            error.add_note(f"(in step {step})")
            raise
        observations, rewards, terminations, truncations, infos = checked_step(returned, self.env, step)
        if (wrong := self._rewards_allowed.outside(rewards)).any():
            index = int(np.argmax(wrong))
            raise ValueError(f"environment {index} gave the reward {rewards[index]} at step {step}, expected a number")
        if step == len(self._rewards):
            self._grow()
        self._observations[step] = self._last_observations
        self._actions[step] = actions
        self._rewards[step] = rewards
        self._terminations[step] = terminations
        self._truncations[step] = truncations
        self._num_steps += 1
        ended = np.flatnonzero(terminations | truncations)
        if ended.size:
            self._keep_final(ended, final_observations(infos, self.env, step))
        self._last_observations = self._checked(observations, np.arange(self.num_envs))
        if self._on_step is not None:
            self._on_step(self.env.num_envs)
        return observations, rewards, terminations, truncations, infos

    def recorded(self) -> RecordedSteps:
        """Everything recorded so far, streams first."""
        steps = self._num_steps
        finals = []
        for index, kept in enumerate(self._final_observations):
            ended = steps and (self._terminations[steps - 1, index] or self._truncations[steps - 1, index])
            if steps and not ended and self._last_observations is not None:
                kept = [*kept, self._last_observations[index]]
            shape = (len(kept), *self._observations.shape[2:])
            finals.append(np.array(kept, dtype=self._observation_dtype).reshape(shape))

        def streams_first(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.swapaxes(array[:steps], 0, 1))

        return RecordedSteps(
            observations=streams_first(self._observations),
            actions=streams_first(self._actions),
            rewards=streams_first(self._rewards),
            terminations=streams_first(self._terminations),
            truncations=streams_first(self._truncations),
            final_observations=finals,
        )


def _shortened(observation: np.ndarray) -> str:
    return np.array2string(observation, threshold=20, separator=", ").replace("\n", "")
