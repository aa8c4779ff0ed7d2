"""Records all steps of a learner's parallel environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ad_hf.envs.spaces import Elements, storage_dtype
from ad_hf.envs.vector import check_same_step, checked_reset, checked_step, final_observations
from ad_hf.histories.steps import STEPWISE, Steps


class RecordedSteps(Steps):
    """
    The histories of the streams of one learner: arrays (num_envs, num_steps, ...), and for each stream the final
    observations (num_episodes, ...). Iterating gives the steps of each stream.
    """

    def __getitem__(self, streams: int | slice) -> RecordedSteps:
        """One of the streams, or several."""
        return RecordedSteps(**{name: values[streams] for name, values in vars(self).items()})

    def until(self, step: int) -> RecordedSteps:
        """The first steps only."""
        if step >= self.rewards.shape[1]:
            return self
        arrays = {name: getattr(self, name)[:, :step] for name in STEPWISE}
        ends = self.ends[:, :step]
        finals = [of_stream[:episodes] for of_stream, episodes in zip(self.final_observations, ends.sum(axis=1))]
        if step:
            for stream in np.flatnonzero(~ends[:, -1]):  # in the middle of an episode
                finals[stream] = np.concatenate([finals[stream], self.observations[stream, step : step + 1]])
        return RecordedSteps(**arrays, final_observations=finals)


class HistoryRecorder(VectorWrapper):
    r"""
    Keeps every step of a gymnasium vector environment, with on- and off-policy learners alike.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            Environments in SAME_STEP mode.
        num_steps (`int`):
            Expected number of steps per environment; further ones cost a copy.
        on_step (`Callable[[int], None]`, *optional*):
            Called at each step with the number of transitions it added, e.g. by a progress bar.

    Raises:
        ValueError: if the environments do not autoreset in the same step; at a reset or step, for results unlike those
            of gymnasium's vector environments, and for observations, actions and rewards that a model cannot take: see
            [`~ad_hf.envs.spaces.Elements`].
        Exception: whatever the environments raise, with a note of the step.
    """

    def __init__(self, envs: VectorEnv, num_steps: int, on_step: Callable[[int], None] | None = None) -> None:
        super().__init__(envs)
        check_same_step(envs)
        self._on_step = on_step
        self._num_steps = 0
        observations, actions = envs.single_observation_space, envs.single_action_space
        self._elements = Elements(observations, is_bounded=storage_dtype(observations).kind != "f")
        self._rewards_allowed, self._actions_allowed = Elements(), Elements(actions, is_bounded=True)
        shapes = {"observations": observations.shape, "actions": actions.shape}
        dtypes = {"observations": self._elements.dtype, "actions": storage_dtype(actions), "rewards": np.float64}
        # Time comes first while recording, so that a step is one contiguous write.
        self._arrays = {
            name: np.empty((max(1, num_steps), envs.num_envs, *(shapes.get(name) or ())), dtypes.get(name, np.bool_))
            for name in STEPWISE
        }
        self._final_observations: list[list[np.ndarray]] = [[] for _ in range(envs.num_envs)]
        self._last_observations: np.ndarray | None = None

    def _ended(self) -> np.ndarray:
        """A mask (num_envs,) of the environments in which the last step ended an episode."""
        last = self._num_steps - 1
        return self._arrays["terminations"][last] | self._arrays["truncations"][last]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Reset the environments; the last step truncates episodes under way."""
        last = self._last_observations
        if self._num_steps:
            under_way = ~self._ended()
            self._arrays["truncations"][self._num_steps - 1, under_way] = True
            self._keep_final(np.flatnonzero(under_way), last)
        try:
            returned = self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.add_note(f"(in the reset before step {self._num_steps})")
            raise
        observations, infos = checked_reset(returned, self.env, self._num_steps)
        self._last_observations = self._checked(observations, np.arange(self.num_envs))
        return observations, infos

    def _checked(self, observations: Any, indices: np.ndarray) -> np.ndarray:
        """A copy of observations (number, ...) of some environments (number,), in the dtype of a dataset."""
        values, space = np.asarray(observations), self.env.single_observation_space
        if values.shape[1:] != space.shape:
            raise ValueError(
                f"environment {indices[0]} gave an observation of shape {values.shape[1:]} at step {self._num_steps}, "
                f"expected an element of {space}"
            )
        elements, wrong = self._elements.store(values)
        if wrong.any():
            first = int(np.argmax(wrong))
            expected = "finite numbers" if elements.dtype.kind == "f" else "an element"
            raise ValueError(
                f"environment {indices[first]} gave the observation {_shortened(values[first])} at step "
                f"{self._num_steps}, expected {expected} of {space}"
            )
        return elements

    def _keep_final(self, indices: np.ndarray, last: Any) -> None:
        if indices.size:
            # gymnasium's own vectors give final observations as an array of objects
            finals = self._checked(np.stack(list(last[indices])), indices)
            for index, final in zip(indices.tolist(), finals):
                self._final_observations[index].append(final)

    def step(self, actions: np.ndarray):
        """Step the environments and keep what they return."""
        step, arrays, allowed = self._num_steps, self._arrays, self._actions_allowed
        if allowed.dtype.kind == "f" and allowed.outside(np.asarray(actions)).any():  # of others there is no NaN
            text, space = _shortened(np.asarray(actions)), self.env.single_action_space
            raise ValueError(f"the source gave the actions {text} at step {step}, expected elements of {space}")
        try:
            returned = self.env.step(actions)
        except Exception as error:
            error.add_note(f"(in step {step})")
            raise
        observations, rewards, terminations, truncations, infos = checked_step(returned, self.env, step)
        if (wrong := self._rewards_allowed.outside(rewards)).any():
            index = int(np.argmax(wrong))
            raise ValueError(f"environment {index} gave the reward {rewards[index]} at step {step}, expected a number")
        if step == len(arrays["rewards"]):
            self._arrays = arrays = {
                name: np.concatenate([array, np.empty_like(array)]) for name, array in arrays.items()
            }
        for name, values in zip(STEPWISE, (self._last_observations, actions, rewards, terminations, truncations)):
            arrays[name][step] = values
        self._num_steps += 1
        ended = np.flatnonzero(terminations | truncations)
        if ended.size:
            self._keep_final(ended, final_observations(infos, self.env, step))
        self._last_observations = self._checked(observations, np.arange(self.num_envs))
        if self._on_step is not None:
            self._on_step(self.env.num_envs)
        return observations, rewards, terminations, truncations, infos

    def recorded(self) -> RecordedSteps:
        """The steps so far, streams first."""
        finals = [list(of_stream) for of_stream in self._final_observations]
        if self._num_steps:
            for index in np.flatnonzero(~self._ended()):
                finals[index].append(self._last_observations[index])  # type: ignore[index]
        shape, dtype = self.env.single_observation_space.shape or (), self._elements.dtype
        arrays = {
            name: np.ascontiguousarray(np.swapaxes(array[: self._num_steps], 0, 1))
            for name, array in self._arrays.items()
        }
        stacked = [np.array(of_stream, dtype=dtype).reshape(len(of_stream), *shape) for of_stream in finals]
        return RecordedSteps(**arrays, final_observations=stacked)


def _shortened(observation: np.ndarray) -> str:
    return np.array2string(observation, threshold=20, separator=", ").replace("\n", "")
