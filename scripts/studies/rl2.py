"""
RL2 (https://huggingface.co/papers/1611.02779): a recurrent learner whose memory runs across the episodes of a task.

It is trained by sb3-contrib's RecurrentPPO on all training tasks at once, on trials of several episodes of one task
each, and sees its last action and reward, so that it can learn within a trial. Unlike AD it needs the environments to
train in, and no histories.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from tqdm.auto import tqdm

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.rollouts import Evaluation
from ad_hf.storage.files import atomic_path

MODEL_FILE = "rl2.zip"


@dataclass
class RL2Config:
    """How RL2 is trained.

    Args:
        total_timesteps: Environment steps, over all tasks.
        episodes_per_trial: Episodes of a task, at whose end the memory is emptied.
        hyperparameters: Arguments of RecurrentPPO; `n_steps` is a trial's length unless given.
        save_every: Rollouts of the learner after each of which it is saved, to go on from there.
    """

    total_timesteps: int = 2_000_000
    episodes_per_trial: int = 10
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    save_every: int = 20


def one_hot_size(space: spaces.Space) -> int:
    """Numbers that [`one_hot`] makes of an element of a space."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise ValueError(f"RL2 takes Discrete, MultiDiscrete and one-dimensional Box spaces, got {space}")


def one_hot(values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Elements (num_envs, ...) of a space as vectors (num_envs, size): whole numbers one-hot, others as they are."""
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[values - space.start]
    if isinstance(space, spaces.MultiDiscrete):
        ones = [np.eye(int(n), dtype=np.float32)[values[:, index]] for index, n in enumerate(space.nvec)]
        return np.concatenate(ones, axis=1)
    return values.astype(np.float32)


class TrialVecEnv(VecEnvWrapper):
    """
    Trials of several episodes as the episodes of a learner, which sees its last action and reward, too.

    Observations are (num_envs, size): the observation and the last action, one-hot, the last reward, and whether an
    episode starts.

    Args:
        venv (`VecEnv`):
            The environments, each with a task that it keeps.
        episodes_per_trial (`int`):
            Episodes of a trial.

    Attributes:
        returns, lengths (`list[list]`):
            Of each environment's finished episodes.
    """

    def __init__(self, venv: VecEnv, episodes_per_trial: int) -> None:
        self._inner, self._actions = venv.observation_space, venv.action_space
        size = one_hot_size(self._inner) + one_hot_size(self._actions) + 2
        super().__init__(venv, spaces.Box(-np.inf, np.inf, (size,), np.float32))
        self.episodes_per_trial = episodes_per_trial
        self.returns: list[list[float]] = [[] for _ in range(self.num_envs)]
        self.lengths: list[list[int]] = [[] for _ in range(self.num_envs)]
        self._totals, self._counts = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._taken: Any = None

    def _seen(self, observations: Any, actions: Any, rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
        last = np.zeros((self.num_envs, one_hot_size(self._actions)), dtype=np.float32)
        if actions is not None:
            last = one_hot(np.asarray(actions), self._actions)
        parts = [one_hot(observations, self._inner), last, rewards[:, None], starts[:, None]]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def reset(self) -> np.ndarray:
        """Begin a trial in every environment."""
        observations = self.venv.reset()
        self._totals[:] = self._counts[:] = self._episodes[:] = 0
        return self._seen(observations, None, np.zeros(self.num_envs), np.ones(self.num_envs))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (num_envs, ...) for `step_wait`."""
        self._taken = actions
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Step all environments; done are those whose trial has ended."""
        observations, rewards, ends, _ = self.venv.step_wait()
        self._totals += rewards
        self._counts += 1
        for index in np.flatnonzero(ends):
            self.returns[index].append(float(self._totals[index]))
            self.lengths[index].append(int(self._counts[index]))
        self._totals[ends] = self._counts[ends] = 0
        self._episodes += ends
        dones = self._episodes >= self.episodes_per_trial
        self._episodes[dones] = 0
        seen = self._seen(observations, self._taken, rewards, ends)
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        if dones.any():
            for index in np.flatnonzero(dones):
                infos[index] = {"terminal_observation": seen[index].copy(), "TimeLimit.truncated": False}
            first = self._seen(observations, None, np.zeros(self.num_envs), np.ones(self.num_envs))
            seen[dones] = first[dones]
        return seen, rewards, dones, infos


class _Progress(BaseCallback):
    """A bar in environment steps, and a copy of the learner every so many rollouts."""

    def __init__(self, folder: Path, envs: TrialVecEnv, config: RL2Config) -> None:
        super().__init__()
        self._folder, self._envs, self._config, self._rollouts = folder, envs, config, 0

    def _on_training_start(self) -> None:
        self._bar = tqdm(
            desc="RL2", total=self._config.total_timesteps, initial=self.num_timesteps, unit=" steps", unit_scale=True
        )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        last = [returns[-self._envs.episodes_per_trial :] for returns in self._envs.returns if returns]
        if last:
            self._bar.set_postfix_str(f"return {np.mean([np.mean(each) for each in last]):.2f}", refresh=False)
        self._bar.update(self.num_timesteps - self._bar.n)
        if self._rollouts % self._config.save_every == 0:
            save_rl2(self.model, self._folder)

    def _on_training_end(self) -> None:
        self._bar.close()


def save_rl2(model: Any, folder: Path) -> None:
    """Save a learner, whole or not at all; the file is a pickle, for this machine alone."""
    with atomic_path(folder / MODEL_FILE) as temporary, open(temporary, "wb") as opened:
        model.save(opened)


def train_rl2(family: TaskFamily, folder: str | Path, config: RL2Config, seed: int = 0) -> Any:
    """
    Train RL2 on the training tasks of a family, from where the folder has it.

    Args:
        family ([`~ad_hf.TaskFamily`]):
            The tasks; every one has an environment.
        folder (`str` or `Path`):
            In which it is saved, and found again.
        config ([`RL2Config`]):
            How.
        seed (`int`, *optional*, defaults to 0):
            Of weights and actions.

    Returns:
        `sb3_contrib.RecurrentPPO`

    Raises:
        ImportError: without sb3-contrib.
        ValueError: for spaces that it does not take.
    """
    try:
        from sb3_contrib import RecurrentPPO
    except ImportError as error:
        raise ImportError("RL2 needs sb3-contrib: pip install 'ad_hf[contrib]'") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    envs = TrialVecEnv(SB3VecEnv(family.make_vec(family.tasks("train"))), config.episodes_per_trial)
    with closing(envs):
        if (folder / MODEL_FILE).is_file():
            model = RecurrentPPO.load(folder / MODEL_FILE, envs, device="cpu")
        else:
            settings: dict[str, Any] = {"n_steps": 200, **config.hyperparameters}
            model = RecurrentPPO("MlpLstmPolicy", envs, seed=seed, device="cpu", **settings)
        left = config.total_timesteps - model.num_timesteps
        if left > 0:
            model.learn(left, _Progress(folder, envs, config), reset_num_timesteps=False)
            save_rl2(model, folder)
    return model


def evaluate_rl2(
    model: Any,
    family: TaskFamily,
    num_episodes: int,
    num_seeds: int = 3,
    seed: int = 0,
    split: str = "test",
    callback: Callable[[int], None] = lambda episodes: None,
) -> Evaluation:
    """
    Let RL2 play the tasks of a split, with a memory that is never emptied.

    Args:
        model (`sb3_contrib.RecurrentPPO`):
            As of [`train_rl2`].
        family ([`~ad_hf.TaskFamily`]):
            The tasks.
        num_episodes (`int`), num_seeds (`int`, *optional*, defaults to 3):
            Episodes of a rollout, and rollouts of each task.
        seed (`int`, *optional*, defaults to 0):
            Of the environments and actions.
        split (`str`, *optional*, defaults to `"test"`):
            Which tasks.
        callback (`Callable[[int], None]`, *optional*):
            Called with the episodes that all have finished.

    Returns:
        [`~ad_hf.Evaluation`]
    """
    tasks = family.tasks(split)
    inner = SB3VecEnv(family.make_vec(tasks, num_envs=len(tasks) * num_seeds))
    with closing(TrialVecEnv(inner, num_episodes + 1)) as envs:
        model.set_random_seed(seed)
        envs.seed(seed)
        observations: Any = envs.reset()
        state = None
        starts = np.ones(envs.num_envs, dtype=bool)
        while (finished := min(map(len, envs.returns))) < num_episodes:
            actions, state = model.predict(observations, state, starts, deterministic=False)
            starts[:] = False
            observations, *_ = envs.step(actions)
            callback(finished)
        shape = (num_seeds, len(tasks), num_episodes)
        returns = np.array([each[:num_episodes] for each in envs.returns]).reshape(shape)
        lengths = np.array([each[:num_episodes] for each in envs.lengths]).reshape(shape)
    return Evaluation(tasks, returns, lengths, seed)
