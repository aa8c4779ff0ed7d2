"""Rollouts on a split of a family's tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutOutput


@dataclass
class Evaluation:
    """
    Returns of an evaluation.

    Attributes:
        tasks (`list[Task]`):
            The tasks.
        returns (`np.ndarray` of shape `(num_seeds, num_tasks, num_episodes)`):
            Return of each episode.
        lengths (`np.ndarray` of the same shape):
            Steps of each episode.
        seed (`int`):
            Seed of the first environment's rollout; environment i of the flattened first two axes has `seed + i`.
    """

    tasks: list[Task]
    returns: np.ndarray
    lengths: np.ndarray
    seed: int


def evaluate(
    model: ADModel,
    family: TaskFamily,
    split: str = "test",
    num_episodes: int = 100,
    num_seeds: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    r"""
    Roll a model out on every task of a split, each time from an empty context.

    Args:
        model ([`ADModel`]):
            The model; it acts as its `rollout_config` says.
        family ([`TaskFamily`]):
            The tasks.
        split (`str`, *optional*, defaults to `"test"`):
            Which of them.
        num_episodes (`int`, *optional*, defaults to 100):
            Episodes per rollout.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per task.
        seed (`int`, *optional*, defaults to 0):
            Seed of the first rollout.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        ValueError: if the family has no task in the split.
    """
    tasks = family.tasks(split)
    if not tasks:
        raise ValueError(f"the family has no {split} tasks to evaluate on")
    envs = family.make_vec(tasks, num_envs=len(tasks) * num_seeds)
    with tqdm(
        desc=f"rollout on {split} tasks", total=envs.num_envs * num_episodes, unit=" episodes", disable=not progress
    ) as bar:

        def show(output: RolloutOutput) -> None:
            returns: np.ndarray = output["episode_returns"]
            finished = ~np.isnan(returns)
            newly = int(finished.sum()) - bar.n
            if newly:
                last = int(np.flatnonzero(finished.any(axis=0))[-1])
                bar.set_postfix({"mean return": f"{np.nanmean(returns[:, last]):.2f}"}, refresh=False)
                bar.update(newly)

        output = model.rollout(envs, num_episodes=num_episodes, seed=seed, callback=show if progress else None)
    envs.close()
    shape = (num_seeds, len(tasks), num_episodes)
    return Evaluation(tasks, output["episode_returns"].reshape(shape), output["episode_lengths"].reshape(shape), seed)
