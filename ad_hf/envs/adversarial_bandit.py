"""Adversarial Bandit: other arms pay in training than in testing (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ad_hf.envs.vector import NativeVectorEnv, SingleEnv, of_each

ARM_DISTRIBUTIONS = ("odd", "even", "uniform")
BLOCK = 100  # trials of one draw of luck
USUAL = 0.95  # probability that the arms which usually pay more do


def draw_arm_means(rewarding: str, task_seed: int, num_arms: int = 10) -> np.ndarray:
    """
    Probability of a reward of each arm (num_arms,), counted from 1 as the paper does: arm 0 of the environment is odd.

    The `rewarding` arms, `"odd"` or `"even"` ones, pay more in 95% of the tasks, and in the other 5% the others do.
    The means of the arms that pay more are uniform in [0.5, 1], those of the others in [0, 0.5]. With `"uniform"`, all
    are uniform in [0, 1].
    """
    if rewarding not in ARM_DISTRIBUTIONS:
        raise ValueError(f"rewarding must be one of {', '.join(ARM_DISTRIBUTIONS)}, got {rewarding!r}")
    if num_arms < 1 or task_seed < 0:
        raise ValueError(f"num_arms must be at least 1 and task_seed at least 0, got {num_arms} and {task_seed}")
    rng = np.random.default_rng([ARM_DISTRIBUTIONS.index(rewarding), task_seed])
    usual, means = rng.random() < USUAL, rng.random(num_arms)
    if rewarding == "uniform":
        return means
    is_odd = np.arange(num_arms) % 2 == 0
    pays_more = is_odd if usual == (rewarding == "odd") else ~is_odd
    return means / 2 + 0.5 * pays_more


def optimal_return(
    *, rewarding: str = "odd", task_seed: int = 0, num_arms: int = 10, max_episode_steps: int = 100, **_: Any
) -> float:
    """Expected return of an episode in which the best arm is pulled at every trial."""
    return float(max_episode_steps * draw_arm_means(str(rewarding), int(task_seed), num_arms).max())


def random_return(
    *, rewarding: str = "odd", task_seed: int = 0, num_arms: int = 10, max_episode_steps: int = 100, **_: Any
) -> float:
    """Expected return of an episode in which every trial pulls any arm, with even chances."""
    return float(max_episode_steps * draw_arm_means(str(rewarding), int(task_seed), num_arms).mean())


def expert(observations: np.ndarray, envs: Any) -> np.ndarray:
    """Optimal actions (num_envs,): the best arms; for [`~ad_hf.sources.noised.NoisedPolicy`]."""
    return of_each(envs, "means").argmax(axis=1)


class AdversarialBanditVectorEnv(NativeVectorEnv):
    r"""
    Bandits with arms that pay 1 or 0, each with a probability of its own. There is nothing to see: the only
    observation is 0. The seed of an episode decides the luck of all its trials.

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of bandits.
        rewarding (`str` or array of shape `(num_envs,)`, *optional*, defaults to `"odd"`), task_seed (`int` or array
        of shape `(num_envs,)`, *optional*, defaults to 0):
            The task of each bandit, that is, its arms' means, or one for all: see [`draw_arm_means`].
        num_arms (`int`, *optional*, defaults to 10):
            Number of arms, shared by all bandits.
        max_episode_steps (`int`, *optional*, defaults to 100):
            Trials after which an episode is truncated.
        autoreset_mode:
            As in [`~ad_hf.envs.vector.NativeVectorEnv`].
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        num_envs: int = 1,
        rewarding: Any = "odd",
        task_seed: Any = 0,
        num_arms: int = 10,
        max_episode_steps: int = 100,
        **vector: Any,
    ) -> None:
        settings = (np.broadcast_to(setting, num_envs).tolist() for setting in (rewarding, task_seed))
        tasks = list(zip(*settings))
        means = {(which, seed): draw_arm_means(which, seed, num_arms) for which, seed in set(tasks)}
        self.means = np.stack([means[task] for task in tasks])
        spaces = gym.spaces.Discrete(1), gym.spaces.Discrete(num_arms)
        super().__init__(num_envs, *spaces, max_episode_steps, **vector)
        self._episodes: list[np.random.Generator] = [np.random.default_rng(0)] * num_envs
        self._luck = np.zeros((num_envs, BLOCK))
        self._rows = np.arange(num_envs)

    def _start(self, indices: np.ndarray) -> None:
        for index in indices:
            self._episodes[index] = np.random.default_rng(self._generator(index).integers(2**63))
        self._draw(indices)

    def _draw(self, indices: np.ndarray) -> None:
        """Draw the luck of the next trials."""
        for index in indices:
            self._episodes[index].random(out=self._luck[index])

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trials = self._elapsed % BLOCK
        if not trials.all():
            self._draw(np.flatnonzero((trials == 0) & (self._elapsed > 0)))
        luck = self._luck[self._rows, trials]
        return (luck < self.means[self._rows, actions]).astype(np.float64), np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> np.ndarray:
        return np.zeros(self.num_envs, dtype=np.int64)


class AdversarialBanditEnv(SingleEnv):
    """One bandit, with the arguments of [`AdversarialBanditVectorEnv`] for one."""

    vector_class = AdversarialBanditVectorEnv
    metadata = AdversarialBanditVectorEnv.metadata
