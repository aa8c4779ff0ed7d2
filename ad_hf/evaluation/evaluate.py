"""Rollouts on a split of a family's tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tqdm.auto import tqdm

from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput

FINAL_EPISODES = 10


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

    @property
    def final_returns(self) -> np.ndarray:
        """Returns of the last ten episodes (num_seeds, num_tasks, 10), which count as what was learnt in the end."""
        return self.returns[..., -FINAL_EPISODES:]


def evaluate(
    model: ADModel,
    family: TaskFamily,
    split: str = "test",
    num_episodes: int | None = None,
    num_seeds: int = 3,
    seed: int | None = None,
    rollout_config: RolloutConfig | None = None,
    progress: bool = False,
) -> Evaluation:
    r"""
    Roll a model out on every task of a split, each time from an empty context.

    Args:
        model ([`ADModel`]):
            The model.
        family ([`TaskFamily`]):
            The tasks.
        split (`str`, *optional*, defaults to `"test"`):
            Which of them.
        num_episodes (`int`, *optional*):
            Episodes per rollout, by default as many as `rollout_config` says.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per task.
        seed (`int`, *optional*):
            Seed of the first rollout, by default that of `rollout_config`.
        rollout_config ([`RolloutConfig`], *optional*, defaults to the model's):
            How to act.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Raises:
        ValueError: if the family has no task in the split.
    """
    config = rollout_config or model.rollout_config
    if num_episodes is not None:
        config = replace(config, num_episodes=num_episodes)
    if seed is not None:
        config = replace(config, seed=seed)
    tasks = family.tasks(split)
    if not tasks:
        raise ValueError(f"the family has no {split} tasks to evaluate on")
    envs = family.make_vec(tasks, num_envs=len(tasks) * num_seeds)
    with tqdm(
        desc=f"rollout on {split} tasks",
        total=envs.num_envs * config.num_episodes,
        unit=" episodes",
        disable=not progress,
    ) as bar:

        def show(output: RolloutOutput) -> None:
            returns: np.ndarray = output["episode_returns"]
            finished = ~np.isnan(returns)
            newly = int(finished.sum()) - bar.n
            if newly:
                last = int(np.flatnonzero(finished.any(axis=0))[-1])
                bar.set_postfix({"mean return": f"{np.nanmean(returns[:, last]):.2f}"}, refresh=False)
                bar.update(newly)

        output = model.rollout(envs, config, callback=show if progress else None)
    envs.close()
    shape = (num_seeds, len(tasks), config.num_episodes)
    return Evaluation(
        tasks, output["episode_returns"].reshape(shape), output["episode_lengths"].reshape(shape), config.seed
    )
