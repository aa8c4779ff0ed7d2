"""Task families: an environment id, its tasks, and which of them are for training, validation and testing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pydoc import locate
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """
    One environment instance of a family.

    Attributes:
        task_id (`int`):
            Index in the family's list of tasks; stable as long as the list is.
        kwargs (`dict`):
            The environment's keyword arguments that make this task (a goal, a seed, arm means).
        split (`str`):
            `"train"`, `"validation"` or `"test"`.
    """

    task_id: int
    kwargs: dict[str, Any]
    split: str


@dataclass
class FamilyConfig:
    """The `family` section of a recipe.

    Args:
        env_id: Gymnasium id of the environment.
        env_kwargs: Keyword arguments that all tasks share.
        tasks: Keyword arguments of each task. Give either this or `grid`.
        grid: Tasks as the product over keyword arguments of lists of values; `{shape: [9, 9]}` stands for all index
            tuples of an array of that shape.
        num_validation_tasks: Tasks on which checkpoints are chosen.
        num_test_tasks: Tasks on which results are reported.
        split_seed: Seed of the split.
        stratify_by: Import path of a function of a task's keyword arguments that returns a number, such as a goal's
            distance; each split then covers its whole range evenly.
        optimal_return: Import path of a function of a task's keyword arguments that returns the best possible return.
        native_vector: Whether the id's own vector entry point takes the tasks' keyword arguments, stacked into arrays.
    """

    env_id: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] | None = None
    grid: dict[str, Any] | None = None
    num_validation_tasks: int = 0
    num_test_tasks: int = 0
    split_seed: int = 0
    stratify_by: str | None = None
    optimal_return: str | None = None
    native_vector: bool = False


def _expand_grid(grid: dict[str, Any]) -> list[dict[str, Any]]:
    values = []
    for name, value in grid.items():
        if isinstance(value, dict) and set(value) == {"shape"}:
            value = [list(index) for index in np.ndindex(*value["shape"])]
        if not isinstance(value, list) or not value:
            raise ValueError(f"grid.{name} must be a non-empty list of values or {{shape: [...]}}, got {value!r}")
        values.append(value)
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*values)]


def _import_function(path: str | None, setting: str) -> Callable[..., float] | None:
    if path is None:
        return None
    function = locate(path)
    if not callable(function):
        raise ValueError(f"family.{setting} must be the import path of a function, got {path!r}, which is none")
    return function


def _spread(candidates: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` of the ordered candidates, one from each of `count` stretches of about equal length."""
    edges = np.linspace(0, len(candidates), count + 1).round().astype(int)
    return [candidates[pick] for pick in rng.integers(edges[:-1], edges[1:])]


class TaskFamily:
    r"""
    Tasks of one environment id, split into training, validation and test tasks.

    The split is a pure function of the task list and `split_seed`. With `stratify_by`, tasks are ordered by that
    number (ties at random), and test, then validation tasks are drawn one from each of equally long stretches.

    Args:
        env_id (`str`):
            Gymnasium id.
        tasks (`list[dict]`):
            Keyword arguments of each task.
        env_kwargs (`dict`, *optional*):
            Keyword arguments that all tasks share.
        num_validation_tasks, num_test_tasks (`int`, *optional*, defaults to 0):
            Sizes of the two splits; the other tasks are for training.
        split_seed (`int`, *optional*, defaults to 0):
            Seed of the split.
        stratify_by, optimal_return (`Callable`, *optional*):
            Functions of a task's keyword arguments (with the shared ones): a number to stratify by, and the best
            possible return of an episode.
        native_vector (`bool`, *optional*, defaults to `False`):
            Whether the id's vector entry point takes the tasks' keyword arguments, stacked into arrays, and an
            `autoreset_mode`. If not, environments are made one by one.

    Raises:
        ValueError: if there are too few tasks for the split.
    """

    def __init__(
        self,
        env_id: str,
        tasks: Sequence[dict[str, Any]],
        env_kwargs: dict[str, Any] | None = None,
        num_validation_tasks: int = 0,
        num_test_tasks: int = 0,
        split_seed: int = 0,
        stratify_by: Callable[..., float] | None = None,
        optimal_return: Callable[..., float] | None = None,
        native_vector: bool = False,
    ) -> None:
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.native_vector = native_vector
        self._optimal_return = optimal_return
        held_out = num_validation_tasks + num_test_tasks
        if min(num_validation_tasks, num_test_tasks) < 0 or held_out >= len(tasks):
            raise ValueError(
                f"{num_validation_tasks} validation and {num_test_tasks} test tasks leave none of {len(tasks)} tasks "
                "to train on: hold out fewer or define more tasks"
            )
        rng = np.random.default_rng(split_seed)
        order = rng.permutation(len(tasks)).tolist()
        if stratify_by is not None:
            order.sort(key=lambda index: stratify_by(**self.env_kwargs, **tasks[index]))
        splits = {}
        for split, count in (("test", num_test_tasks), ("validation", num_validation_tasks)):
            for index in _spread(order, count, rng):
                splits[index] = split
            order = [index for index in order if index not in splits]
        self.all_tasks = [Task(index, dict(kwargs), splits.get(index, "train")) for index, kwargs in enumerate(tasks)]

    @classmethod
    def from_config(cls, config: FamilyConfig) -> TaskFamily:
        """The family that a recipe's `family` section describes."""
        if not config.env_id or (config.tasks is None) == (config.grid is None):
            raise ValueError("a family needs env_id and either tasks or grid")
        return cls(
            env_id=config.env_id,
            tasks=_expand_grid(config.grid) if config.grid is not None else config.tasks or [],
            env_kwargs=config.env_kwargs,
            num_validation_tasks=config.num_validation_tasks,
            num_test_tasks=config.num_test_tasks,
            split_seed=config.split_seed,
            stratify_by=_import_function(config.stratify_by, "stratify_by"),
            optimal_return=_import_function(config.optimal_return, "optimal_return"),
            native_vector=config.native_vector,
        )

    @classmethod
    def from_recipe(cls, recipe: str) -> TaskFamily:
        """The family of a recipe, given by its name (`"dark_room"`) or as a YAML file."""
        from ad_hf.recipe import load_recipe

        return cls.from_config(load_recipe(recipe).family)

    def tasks(self, split: str | None = None) -> list[Task]:
        """The tasks of a split (`"train"`, `"validation"` or `"test"`), or all of them, in the order of their ids."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}, or None for all")
        return [task for task in self.all_tasks if split in (None, task.split)]

    def make_vec(
        self,
        tasks: Sequence[Task],
        num_envs: int | None = None,
        seed: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> VectorEnv:
        """
        A vector environment over tasks, one sub-environment per task.

        Args:
            tasks (`Sequence[Task]`):
                The task of each sub-environment.
            num_envs (`int`, *optional*, defaults to `len(tasks)`):
                A multiple of `len(tasks)`: the tasks are repeated, in order, until there are that many.
            seed (`int`, *optional*):
                Seeds the environments and their action space; a later `reset()` without a seed goes on from it.
            autoreset_mode (`AutoresetMode`, *optional*, defaults to `SAME_STEP`):
                When ended episodes are followed by new ones.
            render_mode (`str`, *optional*):
                Passed to the environments.
        """
        num_envs = len(tasks) if num_envs is None else num_envs
        if not tasks or num_envs < 1 or num_envs % len(tasks):
            raise ValueError(f"num_envs must be a positive multiple of the {len(tasks)} tasks, got {num_envs}")
        tasks = list(tasks) * (num_envs // len(tasks))
        shared = dict(self.env_kwargs) if render_mode is None else {**self.env_kwargs, "render_mode": render_mode}
        if self.native_vector:
            stacked: dict[str, Any] = {
                name: np.stack([task.kwargs[name] for task in tasks]) for name in tasks[0].kwargs
            }
            envs = gym.make_vec(
                self.env_id,
                num_envs=num_envs,
                vectorization_mode="vector_entry_point",
                autoreset_mode=autoreset_mode,
                **shared,
                **stacked,
            )
        else:
            envs = SyncVectorEnv(
                [partial(gym.make, self.env_id, **shared, **task.kwargs) for task in tasks],
                autoreset_mode=autoreset_mode,
            )
        if seed is not None:
            envs.reset(seed=seed)
            envs.action_space.seed(seed)
        return envs

    def optimal_returns(self, tasks: Sequence[Task]) -> np.ndarray | None:
        """Best possible return of each task (num_tasks,), or `None` if the family does not know it."""
        if self._optimal_return is None:
            return None
        return np.array([self._optimal_return(**self.env_kwargs, **task.kwargs) for task in tasks])
