"""Task families: an environment id, its tasks, and which of them are for training, validation and testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ad_hf.envs.making import make_env, read_wrappers
from ad_hf.envs.tasks import WAYS, described_tasks, import_callable
from ad_hf.settings import check_settings, setting

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """
    One environment instance of a family.

    Attributes:
        task_id (`int`):
            Index in the family's list of tasks; stable as long as the list is.
        kwargs (`dict`):
            The environment's keyword arguments, or attributes, that make this task (a goal, a seed, arm means).
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
        tasks: Keyword arguments of each task. Give one of this, `grid`, `random` and `splits`.
        grid: Tasks as the product over keyword arguments of lists of values; `{shape: [9, 9]}` stands for all index
            tuples of an array of that shape, `{range: [0, 100]}` for the integers from 0 to 99.
        random: Different tasks at random: `{num_tasks: 200, seed: 0, values: {...}}` with each keyword argument's
            `{low, high}` (and `integer`, `log`, `shape`), `{choices}`, or `{function, kwargs}`, an import path of a
            function that is called with a `seed`, too.
        splits: Instead, tasks of each split by its name, each given by `tasks`, `grid` or `random`.
        wrappers: Import paths of wrappers of each environment, `{name, kwargs}` or the name alone, innermost first.
            Dict and Tuple observations are flattened after them.
        attributes: Which keyword arguments are set as attributes of `env.unwrapped`, as they are, instead of passed to
            its constructor: physics, for instance. What the constructor has derived from them has to be set, too.
        num_validation_tasks: Tasks on which checkpoints are chosen.
        num_test_tasks: Tasks on which results are reported.
        num_train_tasks: Tasks to train on, drawn from those that are left; all of them by default.
        split_seed: Seed of the split.
        stratify_by: Import path of a function of a task's keyword arguments that returns a number, such as a goal's
            distance; each split then covers its whole range evenly.
        optimal_return: Import path of a function of a task's keyword arguments that returns the best possible return.
        random_return: Import path of a function of a task's keyword arguments that returns what random play gets.
        native_vector: Whether the id's own vector entry point takes the tasks' keyword arguments, stacked into arrays.
        source_observation: Spaces, as JSON, of entries of the environments' infos that the source sees beside the
            observation: `{has_key: {type: Discrete, n: 2}}`.
        report_by: Keyword argument of the tasks by whose values reports group them.
    """

    env_id: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] | None = None
    grid: dict[str, Any] | None = None
    random: dict[str, Any] | None = None
    splits: dict[str, Any] | None = None
    wrappers: list[str | dict[str, Any]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    num_validation_tasks: int = setting(0, least=0)
    num_test_tasks: int = setting(0, least=0)
    num_train_tasks: int | None = setting(None, least=1)
    split_seed: int = setting(0, least=0)
    stratify_by: str | None = None
    optimal_return: str | None = None
    random_return: str | None = None
    native_vector: bool = False
    source_observation: dict[str, Any] | None = None
    report_by: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "family")


def comparable(value: Any) -> Any:
    """A keyword argument, or several by their names, as one that can be looked up; 3 and 3.0 are the same."""
    if isinstance(value, Mapping):
        return frozenset((name, comparable(item)) for name, item in value.items())
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return tuple(map(comparable, value)) if isinstance(value, (list, tuple)) else value


def _check_distinct(tasks: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Refuse equal tasks, in a list or in two splits: one that is held out might be trained on by another number."""
    places: dict[Any, str] = {}
    for where, listed in tasks.items():
        for index, kwargs in enumerate(listed):
            place = f"{where}[{index}]"
            # Of tasks without arguments nothing is known, as in data from elsewhere.
            if kwargs and places.setdefault(comparable(kwargs), place) != place:
                raise ValueError(
                    f"family: {places[comparable(kwargs)]} and {place} are the same task, {kwargs}: each may be there "
                    "once, since one that is held out must not be trained on"
                )


def _given_splits(tasks: Mapping[str, Sequence[dict[str, Any]]], sizes: Mapping[str, int | None]) -> list[Task]:
    """Tasks whose split is given, numbered in the order of the splits."""
    if set(tasks) - set(SPLITS) or not tasks.get("train"):
        raise ValueError(f"splits must be of {', '.join(SPLITS)}, with tasks to train on; got {', '.join(tasks)}")
    if any(sizes.values()):
        raise ValueError(f"sizes of splits are for tasks that are to be split, these are given by split: got {sizes}")
    ordered = [(kwargs, split) for split in SPLITS for kwargs in tasks.get(split, [])]
    return [Task(index, dict(kwargs), split) for index, (kwargs, split) in enumerate(ordered)]


def _import_function(path: str | None, setting: str) -> Callable[..., float] | None:
    return None if path is None else import_callable(path, f"family.{setting}")


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
        tasks (`list[dict]`, or a mapping of a split's name to one):
            Keyword arguments of each task; of the tasks of each split, if they are not to be drawn.
        env_kwargs (`dict`, *optional*):
            Keyword arguments that all tasks share.
        num_validation_tasks, num_test_tasks (`int`, *optional*, defaults to 0):
            Sizes of the two splits; the other tasks are for training.
        num_train_tasks (`int`, *optional*):
            Draw so many of the others and leave the rest alone.
        split_seed (`int`, *optional*, defaults to 0):
            Seed of the split.
        stratify_by, optimal_return, random_return (`Callable`, *optional*):
            Functions of a task's keyword arguments (with the shared ones): a number to stratify by, the best possible
            return of an episode, and that of random play.
        native_vector (`bool`, *optional*, defaults to `False`):
            Whether the id's vector entry point takes the tasks' keyword arguments, stacked into arrays, and an
            `autoreset_mode`. If not, environments are made one by one.
        source_observation (`dict[str, dict]`, *optional*):
            Spaces as JSON of entries of the infos that the source sees beside the observation: see
            [`~ad_hf.envs.source_observation.SourceObservation`].
        report_by (`str`, *optional*):
            Keyword argument of the tasks by whose values reports group them.
        wrappers (`Sequence` of `str` or `dict`, *optional*):
            Import paths of wrappers of each environment, innermost first, as `{"name": ..., "kwargs": {...}}` or the
            name alone. Dict and Tuple observations are flattened after them, by
            `gymnasium.wrappers.FlattenObservation`.
        attributes (`Sequence[str]`, *optional*):
            Keyword arguments, of tasks or shared, that are set as attributes of `env.unwrapped`, as they are, once it
            is made, instead of passed to its constructor. What the constructor has derived from them stays as it was
            and has to be set, too: for CartPole's `masspole`, `total_mass` and `polemass_length`.

    Raises:
        ValueError: if there are too few tasks for the split, for equal tasks, for wrappers that do not exist or do not
            take their keyword arguments, for attributes that nothing sets, and for either with `native_vector`.
    """

    def __init__(
        self,
        env_id: str,
        tasks: Sequence[dict[str, Any]] | Mapping[str, Sequence[dict[str, Any]]],
        env_kwargs: dict[str, Any] | None = None,
        num_validation_tasks: int = 0,
        num_test_tasks: int = 0,
        split_seed: int = 0,
        stratify_by: Callable[..., float] | None = None,
        optimal_return: Callable[..., float] | None = None,
        native_vector: bool = False,
        num_train_tasks: int | None = None,
        random_return: Callable[..., float] | None = None,
        source_observation: dict[str, dict[str, Any]] | None = None,
        report_by: str | None = None,
        wrappers: Sequence[str | dict[str, Any]] = (),
        attributes: Sequence[str] = (),
    ) -> None:
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.native_vector = native_vector
        self.source_observation = source_observation
        self.report_by = report_by
        self.wrappers, self.attributes = read_wrappers(wrappers), list(attributes)
        if native_vector and (wrappers or attributes):
            raise ValueError(
                "family.wrappers and family.attributes are of single environments, and native_vector makes none: set "
                "it to false, or leave them out"
            )
        lists = tasks.values() if isinstance(tasks, Mapping) else [tasks]
        unset = set(self.attributes) - set(self.env_kwargs).union(*(kwargs for each in lists for kwargs in each))
        if unset:
            raise ValueError(
                f"family.attributes: neither a task nor env_kwargs has a value for {', '.join(sorted(unset))}"
            )
        _check_distinct(tasks if isinstance(tasks, Mapping) else {"tasks": tasks})
        if report_by is not None and not any(report_by in kwargs for each in lists for kwargs in each):
            raise ValueError(f"family.report_by: no task has the keyword argument {report_by!r}")
        self._optimal_return, self._random_return = optimal_return, random_return
        sizes = {"train": num_train_tasks, "validation": num_validation_tasks, "test": num_test_tasks}
        if isinstance(tasks, Mapping):
            self.all_tasks = _given_splits(tasks, sizes)
            return
        held_out = num_validation_tasks + num_test_tasks
        if min(num_validation_tasks, num_test_tasks) < 0 or held_out >= len(tasks):
            raise ValueError(
                f"{num_validation_tasks} validation and {num_test_tasks} test tasks leave none of {len(tasks)} tasks "
                "to train on: hold out fewer or define more tasks"
            )
        sizes["train"] = others = len(tasks) - held_out if num_train_tasks is None else num_train_tasks
        if not 1 <= others <= len(tasks) - held_out:
            raise ValueError(
                f"num_train_tasks must be from 1 to {len(tasks) - held_out}, the tasks that are left, got {others}"
            )
        rng = np.random.default_rng(split_seed)
        order = rng.permutation(len(tasks)).tolist()
        if stratify_by is not None:
            order.sort(key=lambda index: self._number(stratify_by, "stratify_by", tasks[index]))
        splits = {}
        for split in ("test", "validation", "train"):
            for index in _spread(order, sizes[split] or 0, rng):
                splits[index] = split
            order = [index for index in order if index not in splits]
        self.all_tasks = [Task(index, dict(tasks[index]), splits[index]) for index in sorted(splits)]

    @classmethod
    def from_config(cls, config: FamilyConfig) -> TaskFamily:
        """The family that a recipe's `family` section describes."""
        ways = {name: getattr(config, name) for name in (*WAYS, "splits")}
        given = [name for name, way in ways.items() if way is not None]
        if not config.env_id or len(given) != 1:
            raise ValueError(
                f"a family needs env_id and one of {', '.join(ways)}, got env_id {config.env_id!r} and "
                f"{' and '.join(given) or 'none of them'}"
            )
        tasks: Any
        if config.splits is not None:
            tasks = {split: described_tasks(way, f"family.splits.{split}") for split, way in config.splits.items()}
        else:
            tasks = described_tasks({name: ways[name] for name in given}, "family")
        return cls(
            env_id=config.env_id,
            tasks=tasks,
            env_kwargs=config.env_kwargs,
            num_validation_tasks=config.num_validation_tasks,
            num_test_tasks=config.num_test_tasks,
            split_seed=config.split_seed,
            stratify_by=_import_function(config.stratify_by, "stratify_by"),
            num_train_tasks=config.num_train_tasks,
            optimal_return=_import_function(config.optimal_return, "optimal_return"),
            random_return=_import_function(config.random_return, "random_return"),
            native_vector=config.native_vector,
            source_observation=config.source_observation,
            report_by=config.report_by,
            wrappers=config.wrappers,
            attributes=config.attributes,
        )

    @classmethod
    def from_recipe(cls, recipe: str) -> TaskFamily:
        """The family of a recipe, given by its name (`"dark_room"`) or as a YAML file."""
        from ad_hf.recipe import load_recipe

        return cls.from_config(load_recipe(recipe).family)

    @property
    def env_settings(self) -> dict[str, Any]:
        """All that makes its environments but the tasks: `env_id`, `env_kwargs`, `wrappers` and `attributes`."""
        return {name: getattr(self, name) for name in ("env_id", "env_kwargs", "wrappers", "attributes")}

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

        Raises:
            ValueError: for an unknown `env_id`, and keyword arguments that its environments do not take.
            Exception: whatever else the environments raise.
        """
        num_envs = len(tasks) if num_envs is None else num_envs
        if not tasks or num_envs < 1 or num_envs % len(tasks):
            raise ValueError(f"num_envs must be a positive multiple of the {len(tasks)} tasks, got {num_envs}")
        tasks = list(tasks) * (num_envs // len(tasks))
        shared = dict(self.env_kwargs) if render_mode is None else {**self.env_kwargs, "render_mode": render_mode}
        try:
            envs = self._make(tasks, shared, autoreset_mode)
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"family.env_id {self.env_id!r}: {' '.join(str(error).split())}") from error
        except TypeError as error:
            raise ValueError(
                f"family.env_kwargs and tasks: {self.env_id} cannot be made with { ({**shared, **tasks[0].kwargs}) }: "
                f"{' '.join(str(error).split())}"
            ) from error
        if seed is not None:
            envs.reset(seed=seed)
            envs.action_space.seed(seed)
        return envs

    def _make(self, tasks: Sequence[Task], shared: dict[str, Any], autoreset_mode: AutoresetMode) -> VectorEnv:
        if not self.native_vector:
            return SyncVectorEnv(
                [
                    partial(make_env, self.env_id, {**shared, **task.kwargs}, self.wrappers, self.attributes)
                    for task in tasks
                ],
                autoreset_mode=autoreset_mode,
            )
        try:
            stacked: Any = {name: np.stack([task.kwargs[name] for task in tasks]) for name in tasks[0].kwargs}
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"family.native_vector needs tasks of the same keyword arguments, whose values have the same shapes: "
                f"{type(error).__name__}: {error}"
            ) from error
        return gym.make_vec(
            self.env_id,
            num_envs=len(tasks),
            vectorization_mode="vector_entry_point",
            autoreset_mode=autoreset_mode,
            **shared,
            **stacked,
        )

    def optimal_returns(self, tasks: Sequence[Task]) -> np.ndarray | None:
        """Best possible return of each task (num_tasks,), or `None` if the family does not know it."""
        return self._returns(self._optimal_return, "optimal_return", tasks)

    def random_returns(self, tasks: Sequence[Task]) -> np.ndarray | None:
        """Expected return of random play in each task (num_tasks,), or `None` if the family does not know it."""
        return self._returns(self._random_return, "random_return", tasks)

    def _returns(self, function: Callable[..., float] | None, name: str, tasks: Sequence[Task]) -> np.ndarray | None:
        if function is None:
            return None
        return np.array([self._number(function, name, task.kwargs) for task in tasks])

    def _number(self, function: Callable[..., float], name: str, task: dict[str, Any]) -> float:
        """What a function of a task's keyword arguments returns: a `ValueError` with its setting for no number."""
        arguments = {**self.env_kwargs, **task}
        try:
            number = function(**arguments)
        except Exception as error:  # a function may raise anything
            raise ValueError(
                f"family.{name} failed for the keyword arguments {arguments}: {type(error).__name__}: {error}"
            ) from error
        number = number.item() if isinstance(number, np.generic | np.ndarray) and not number.ndim else number
        if not isinstance(number, int | float) or not abs(number) < np.inf:
            raise ValueError(f"family.{name} returned {number!r} for {arguments}, expected a finite number")
        return number
