"""Learners that are not Stable-Baselines3's: what they have to offer, and the environments that they are given."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.utils import set_random_seed

from ad_hf.envs.spaces import Elements, categories
from ad_hf.sources.convergence import StopWhenConverged


class VectorLearner(Protocol):
    r"""
    What `source.algorithm` may name beside the classes of Stable-Baselines3: a class that learns on a vector of
    environments. It derives from nothing.

    `envs` is a gymnasium `VectorEnv` of `num_envs` environments of one task, with autoreset in the same step. Every
    step of it is recorded, and the streams of these steps are the histories.

    - `envs.reset()` returns observations (num_envs, ...) and infos. The first one takes `seed`, unless it is given
      another: environment i has the seed `seed + i`.
    - `envs.step(actions)` takes actions (num_envs, ...), elements of `envs.single_action_space`, and returns
      observations (num_envs, ...), rewards, terminations and truncations (num_envs,), and infos.
    - Where an episode has ended, the observation is the first of the next episode; `infos["final_obs"][i]` is the last
      one of the episode that ended, of which a learner needs the value if a time limit truncated it.
    - `envs.single_observation_space` is that of the environment, or of the family's `source_observation`.

    Everything that the learner draws should come from `seed`. The global random numbers of Python, numpy and torch,
    and those of the spaces, are seeded with it, too.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            The environments.
        seed (`int`):
            A number of its own for each task and seed.
        hyperparameters:
            Those of `source.hyperparameters`, as keywords. They are checked against the signature.

    Attributes:
        independent_streams (`bool`, *optional*):
            Of the class: whether each environment is learnt as if there were no other. If a class does not say so,
            evaluations do not compare a model's steps with the source's.
    """

    def __init__(self, envs: VectorEnv, seed: int, **hyperparameters: Any) -> None: ...

    def learn(self, total_timesteps: int) -> Any:
        """
        Learn from so many transitions, over all environments.

        A learner may stop sooner: its histories are the steps that it made. One that goes on is stopped in its next
        `envs.step`, and so is one whose returns have converged (`source.until_converged`).
        """


class LearningEnds(BaseException):
    """Ends `learn` from inside of `envs.step`; no `Exception`, which a learner may catch."""


class LearnerEnvs(VectorWrapper):
    """
    The environments of a [`VectorLearner`]: their first reset and their spaces are seeded, they check actions, and
    they end its `learn`.
    """

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        super().__init__(envs)
        self._seed: int | None = seed
        for space in (self.single_observation_space, self.single_action_space, self.observation_space):
            space.seed(seed)
        self.action_space.seed(seed)
        self._actions = Elements(self.single_action_space, is_bounded=True)
        self._kinds = "fiu" if categories(self.single_action_space) is None else "biu"
        self._steps = 0
        self._most_steps: int | None = None  # until `learn` is called
        self._convergence: StopWhenConverged | None = None

    def limit(self, most_steps: int, convergence: StopWhenConverged | None) -> None:
        """Let `learn` make so many steps, or those until returns have converged."""
        self._most_steps, self._convergence = most_steps, convergence
        if convergence is not None:
            convergence.begin(self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Reset all environments; the first time with a seed in any case."""
        if options and "reset_mask" in options:
            raise ValueError("a learner resets all environments together: they reset themselves when episodes end")
        seed, self._seed = self._seed if seed is None else seed, None
        if self._convergence is not None:
            self._convergence.drop_episodes()
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any):
        """Step all environments with elements of the action space."""
        if self._seed is not None or self._most_steps is None:
            raise ValueError("the learner steps its environments too soon: in learn, and after envs.reset()")
        if self._steps == self._most_steps:
            raise LearningEnds
        actions = np.asarray(actions)
        expected = f"at step {self._steps}, expected elements of {self.single_action_space}"
        if actions.shape != self.action_space.shape or actions.dtype.kind not in self._kinds:
            raise ValueError(
                f"the learner gave actions of shape {actions.shape} and dtype {actions.dtype} {expected} in shape "
                f"{self.action_space.shape}"
            )
        if (wrong := self._actions.store(actions)[1]).any():
            raise ValueError(f"the learner gave the action {actions[int(np.argmax(wrong))]} {expected}")
        returned = self.env.step(actions)
        self._steps += 1
        _, rewards, terminations, truncations, _ = returned
        if self._convergence is not None and not self._convergence.add(rewards, terminations | truncations):
            self._most_steps = self._steps
        return returned


class RecordedLearner:
    """A [`VectorLearner`] of a class, made on environments with hyper-parameters, whose `learn` ends in time."""

    def __init__(self, algorithm: Any, envs: VectorEnv, seed: int, hyperparameters: dict[str, Any]) -> None:
        set_random_seed(seed)
        self.envs = LearnerEnvs(envs, seed)
        self.learner = algorithm(envs=self.envs, seed=seed, **hyperparameters)

    def learn(self, total_timesteps: int, convergence: StopWhenConverged | None) -> None:
        """Learn from so many transitions, over all environments, or until returns have converged."""
        self.envs.limit(-(-total_timesteps // self.envs.num_envs), convergence)
        with suppress(LearningEnds):
            self.learner.learn(total_timesteps)
