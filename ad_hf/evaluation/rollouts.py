"""Rollouts of a model and of random actions on a split of a family's tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.curves import FINAL_EPISODES
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.prompt_ad import Prompt
from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput
from ad_hf.progress import ProgressBar

SECONDS_BETWEEN_LOOKS = 0.1  # at a rollout's returns, for the progress bar


@dataclass
class Evaluation:
    """
    Returns of rollouts on some tasks.

    Attributes:
        tasks (`list[Task]`):
            The tasks.
        returns (`np.ndarray` of shape `(num_seeds, num_tasks, num_episodes)`):
            Return of each episode.
        lengths (`np.ndarray` of the same shape):
            Steps of each episode.
        seed (`int`):
            Seed of the first environment's rollout; environment i of the flattened first two axes has `seed + i`.
        step_rewards (`np.ndarray` of shape `(num_seeds, num_tasks, num_steps)`, *optional*):
            Reward of each step of the first episode, if first episodes are equally long; for a model only where
            rollouts are of a single episode and all learning happens within it.
        streams (`int`, *optional*, defaults to 1):
            Number of environments whose steps count together, such as those that a source learns from together.
        shown (`list[int]`), actions (`np.ndarray` of shape `(num_steps, len(shown), ...)`, *optional*):
            Positions of tasks, and all actions of the first rollout in each, by which it is seen again.
    """

    tasks: list[Task]
    returns: np.ndarray
    lengths: np.ndarray
    seed: int
    step_rewards: np.ndarray | None = None
    streams: int = 1
    shown: list[int] = field(default_factory=list)
    actions: np.ndarray | None = None

    @property
    def final_returns(self) -> np.ndarray:
        """Returns of the last ten episodes (num_seeds, num_tasks, 10)."""
        return self.returns[..., -FINAL_EPISODES:]


class ActionRecorder(VectorWrapper):
    """Keeps the actions in some environments."""

    def __init__(self, envs: VectorEnv, indices: Sequence[int]) -> None:
        super().__init__(envs)
        self.actions: list[np.ndarray] = []
        self._indices = list(indices)

    def step(self, actions: np.ndarray):
        """Keep actions, and step."""
        self.actions.append(np.asarray(actions)[self._indices])
        return self.env.step(actions)


class EpisodeProgress(ProgressBar):
    """
    A progress bar in episodes, with the mean return of the newest one that every environment has finished.

    A rollout calls it at every step; it looks at the returns only a few times a second.
    """

    def __init__(self, description: str, total: int | None, visible: bool) -> None:
        # Updates are few: drawing the bar at each keeps the mean return that of the episodes counted.
        super().__init__(description, total, "episodes", mininterval=0, disable=not visible)
        self._next_look = 0.0

    def __call__(self, output: RolloutOutput) -> None:
        """Show the episodes finished so far, if it is time to."""
        now = monotonic()
        if now >= self._next_look and not self.disable:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            self.show(output)

    def show(self, output: RolloutOutput) -> None:
        """Show the episodes finished so far."""
        returns: np.ndarray = output["episode_returns"]
        finished = ~np.isnan(returns)
        by_all = int(finished.sum(axis=1).min())
        if by_all:
            mean = returns[:, by_all - 1].mean()
            self.set_postfix_str(f"mean return of episode {by_all}: {mean:.2f}", refresh=False)
        self.update(int(finished.sum()) - self.n)


def evaluate(
    model: ADModel,
    family: TaskFamily,
    split: str | Sequence[Task] = "test",
    num_episodes: int | None = None,
    num_seeds: int = 3,
    seed: int | None = None,
    rollout_config: RolloutConfig | None = None,
    progress: bool = False,
    prompt: Prompt | None = None,
    callback: Callable[[RolloutOutput], None] | None = None,
    shown: Sequence[int] = (),
) -> Evaluation:
    r"""
    Roll a model out on every task of a split, or on some tasks, each time from an empty context or from a prompt.

    Args:
        model ([`ADModel`]):
            The model.
        family ([`TaskFamily`]):
            The tasks.
        split (`str` or `Sequence[Task]`, *optional*, defaults to `"test"`):
            `"train"`, `"validation"` or `"test"`, or some tasks of the family.
        num_episodes (`int`, *optional*):
            Episodes per rollout, by default as many as `rollout_config` says, or as every environment finishes in its
            `max_steps`.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per task.
        seed (`int`, *optional*):
            Seed of the first rollout, by default that of `rollout_config`.
        rollout_config ([`RolloutConfig`], *optional*):
            How to act; the model's own config fills in unset fields.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        prompt (`Mapping` or a sequence of them, *optional*):
            Histories that the contexts begin with: one for all, or one for each of `num_seeds` rollouts of each task,
            all tasks of the first seed first.
        callback (`Callable[[RolloutOutput], None]`, *optional*):
            Called after each step with the rollout so far; an error that it raises ends the evaluation.
        shown (`Sequence[int]`, *optional*):
            Positions of tasks whose actions are kept, so that a replay can show their first rollout.

    Raises:
        ValueError: if the family has no task in the split, or an environment finishes no episode in `max_steps`.
    """
    asked = RolloutConfig(num_episodes=num_episodes, seed=seed)
    config = asked.resolve(rollout_config or RolloutConfig(), model.rollout_config)
    if config.num_episodes == 1:
        config = replace(config, output_steps=True)
    tasks = family.tasks(split) if isinstance(split, str) else list(split)
    if not tasks:
        raise ValueError(f"the family has no {split} tasks to evaluate on")
    if not isinstance(num_seeds, (int, np.integer)) or num_seeds < 1:
        raise ValueError(f"num_seeds must be a whole number, at least 1, got {num_seeds!r}")
    envs = ActionRecorder(family.make_vec(tasks, num_envs=len(tasks) * num_seeds), shown)
    named = f"{split} " if isinstance(split, str) else ""
    total = None if config.num_episodes is None else envs.num_envs * config.num_episodes
    with closing(envs), EpisodeProgress(f"rollout on {named}tasks", total, progress) as bar:

        def look(output: RolloutOutput) -> None:
            bar(output)
            if callback is not None:
                callback(output)

        output = model.rollout(envs, config, prompt, look)
        bar.show(output)
    shape = (num_seeds, len(tasks), output["episode_returns"].shape[1])
    returns, lengths = output["episode_returns"].reshape(shape), output["episode_lengths"].reshape(shape)
    finished = int((~np.isnan(returns)).sum(axis=2).min())
    if not finished:
        raise ValueError(f"some environment finished no episode in {config.max_steps} steps: raise rollout.max_steps")
    steps = None
    if config.num_episodes == 1 and (lengths == lengths[0, 0, 0]).all():
        steps = output["rewards"].reshape(*shape[:2], -1)
    actions = np.stack(envs.actions) if shown else None
    values = returns[..., :finished], lengths[..., :finished]
    return Evaluation(tasks, *values, config.seed, steps, shown=list(shown), actions=actions)


def play_at_random(
    family: TaskFamily,
    tasks: list[Task],
    num_episodes: int = 10,
    num_seeds: int = 3,
    seed: int = 0,
    max_steps: int | None = None,
) -> Evaluation | None:
    """
    Take uniformly random actions in some tasks: `num_episodes` in `num_seeds` environments of each, or as many as all
    finish in `max_steps`; `None` if some environment finishes none.
    """
    with closing(family.make_vec(tasks, num_envs=len(tasks) * num_seeds, seed=seed)) as envs:
        envs.reset(seed=seed)
        totals, lengths, steps = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64), []
        count = 0
        episodes: list[list[tuple[float, int]]] = [[] for _ in range(envs.num_envs)]
        while min(map(len, episodes)) < num_episodes and (max_steps is None or count < max_steps):
            _, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
            if not all(episodes):  # some first episode goes on
                steps.append(rewards)
            count += 1
            totals += rewards
            lengths += 1
            for index in np.flatnonzero(terminations | truncations):
                episodes[index].append((float(totals[index]), int(lengths[index])))
                totals[index] = lengths[index] = 0
    finished = min(num_episodes, *map(len, episodes))
    if not finished:
        return None
    values = np.array([each[:finished] for each in episodes]).reshape(num_seeds, len(tasks), finished, 2)
    counts = values[..., 1].astype(np.int64)
    longest, step_rewards = counts[0, 0, 0], None
    if (counts[..., 0] == longest).all():
        step_rewards = np.stack(steps[:longest], axis=1).reshape(num_seeds, len(tasks), longest)
    return Evaluation(tasks, values[..., 0], counts, seed, step_rewards)
