"""Task families: an environment id, and its tasks for training, validation and testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ad_hf.envs.imports import import_callable, import_named
from ad_hf.envs.making import make_env, read_calls, task_arguments
from ad_hf.envs.recipes import read_recipe
from ad_hf.envs.tasks import WAYS, described_tasks
from ad_hf.settings import check_settings, excerpt, make_section, setting

SPLITS = ("train", "validation", "test")


class UnknownEnvironmentError(ValueError):
    """There is no environment of the family's `env_id` in this process, or its module cannot be imported."""


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
        tasks: Keyword arguments of each task. Give one of this, `grid`, `random` and `splits`.
        env_kwargs: Keyword arguments that all tasks share.
        grid: Tasks as the product over keyword arguments of lists of values; `{shape: [9, 9]}` stands for all index
            tuples of an array of that shape, `{range: [0, 100]}` for the integers from 0 to 99.
        random: Different tasks at random: `{num_tasks: 200, seed: 0, values: {...}}` with each keyword argument's
            `{low, high}` (and `integer`, `log`, `shape`), `{choices}`, or `{function, kwargs}`, an import path of a
            function that is called with a `seed`, too.
        splits: Instead, tasks of each split by its name: a list of them, or one of `tasks`, `grid` and `random`.
        task_ids: Numbers of the tasks of each of the `splits`, as in a dataset's metadata.json; by default from 0.
        wrappers: Import paths of wrappers of each environment, `{name, kwargs}` or the name alone, innermost first.
            Dict and Tuple observations are flattened after them. A keyword argument `"{name}"` is the task's of that
            name, which the environment's constructor then does not get.
        attributes: Keyword arguments that are set as attributes of `env.unwrapped`, as they are, instead of passed to
            its constructor: physics, for instance. What the constructor derives from them has to be set, too: for
            CartPole's `masspole`, `total_mass` and `polemass_length`.
        num_validation_tasks: Tasks on which checkpoints are chosen.
        num_test_tasks: Tasks on which results are reported.
        num_train_tasks: Tasks to train on, drawn from those that are left; all of them by default.
        split_seed: Seed of the split.
        stratify_by: Function of a task's keyword arguments (an import path, or in Python itself) that returns a
            number, such as a goal's distance; each split then covers its whole range evenly.
        optimal_return: Function of a task's keyword arguments that returns the best possible return of an episode.
        random_return: Function of a task's keyword arguments that returns the expected return of random play.
        native_vector: Whether the id's own vector entry point takes the tasks' keyword arguments, stacked into arrays,
            and an `autoreset_mode`. If not, environments are made one by one.
        source_observation: Spaces, as JSON, of entries of the environments' infos that the source sees beside the
            observation: `{has_key: {type: Discrete, n: 2}}`.
        report_by: Keyword argument of the tasks by whose values reports group them.
    """

    env_id: str = ""
    tasks: list[dict[str, Any]] | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] | None = None
    random: dict[str, Any] | None = None
    splits: dict[str, Any] | None = None
    task_ids: dict[str, list[int]] | None = None
    wrappers: list[str | dict[str, Any]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    num_validation_tasks: int = setting(0, least=0)
    num_test_tasks: int = setting(0, least=0)
    num_train_tasks: int | None = setting(None, least=1)
    split_seed: int = setting(0, least=0)
    stratify_by: str | Callable | None = None
    optimal_return: str | Callable | None = None
    random_return: str | Callable | None = None
    native_vector: bool = False
    source_observation: dict[str, Any] | None = None
    report_by: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "family")

    def function(self, name: str) -> Callable[..., float] | None:
        """The function that a setting stands for."""
        value = getattr(self, name)
        return import_callable(value, f"family.{name}") if isinstance(value, str) else value


def comparable(value: Any) -> Any:
    """A keyword argument, or several by their names, as a key of a dict; 3 and 3.0 are the same."""
    if isinstance(value, Mapping):
        return frozenset((name, comparable(item)) for name, item in value.items())
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return tuple(map(comparable, value)) if isinstance(value, (list, tuple)) else value


def _check_distinct(lists: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Refuse equal tasks, in a list or in two splits: the model might train on a task of the test split."""
    places: dict[Any, str] = {}
    for where, tasks in lists.items():
        for index, kwargs in enumerate(tasks):
            place = f"{where}[{index}]"
            # Tasks without arguments, as in data from elsewhere, may be different ones.
            if kwargs and places.setdefault(comparable(kwargs), place) != place:
                raise ValueError(
                    f"family: {places[comparable(kwargs)]} and {place} are the same task, {kwargs}: give each once, "
                    "since a task that is held out must not be trained on"
                )


def _numbers_of(counts: Mapping[str, int], task_ids: Mapping[str, list[int]] | None) -> list[int]:
    """The numbers of the tasks of all splits, in the order of the splits."""
    if task_ids is None:
        return list(range(sum(counts.values())))
    numbers = [number for split in SPLITS for number in task_ids.get(split, [])]
    given = {split: len(each) for split, each in task_ids.items()}
    if given != counts or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ValueError(
            f"family.task_ids must hold a different whole number of at least 0 for each task of the splits, which "
            f"have {dict(counts)} tasks, got {excerpt(task_ids)}"
        )
    return numbers


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
        config ([`FamilyConfig`] or `str`):
            The family, as in the `family` section of a recipe; or its `env_id`, followed by the other settings of
            [`FamilyConfig`]: `TaskFamily("FrozenLake-v1", tasks, num_test_tasks=16)`.
        **settings:
            Settings of [`FamilyConfig`].

    Raises:
        ValueError: naming the setting: for values of a wrong type, unless one of `tasks`, `grid`, `random` and
            `splits` is there, for too few tasks, for equal tasks, for functions and wrappers that do not exist, for
            attributes that nothing sets, and for wrappers and attributes with `native_vector`.
    """

    __signature__ = signature(FamilyConfig)

    def __init__(self, *config: Any, **settings: Any) -> None:
        if config and isinstance(config[0], FamilyConfig):
            family = replace(*config, **settings)
        else:
            family = FamilyConfig(*config, **settings)
        self.env_id, self.env_kwargs = family.env_id, dict(family.env_kwargs)
        self.native_vector, self.source_observation = family.native_vector, family.source_observation
        self.report_by = family.report_by
        self.wrappers, self.attributes = read_calls(family.wrappers, "family.wrappers", None), family.attributes
        self._optimal_return, self._random_return = map(family.function, ("optimal_return", "random_return"))
        if self.native_vector and (self.wrappers or self.attributes):
            raise ValueError(
                "family.wrappers and family.attributes are of single environments, and native_vector makes none: set "
                "it to false, or leave them out"
            )
        lists = self._describe(family)
        names = set().union(*(kwargs for tasks in lists.values() for kwargs in tasks))
        of_wrappers = [name for wrapper in self.wrappers for name in task_arguments(wrapper).values()]
        for setting_name, needed in (("attributes", self.attributes), ("wrappers", of_wrappers)):
            if unset := set(needed) - names - set(self.env_kwargs):
                raise ValueError(
                    f"family.{setting_name}: neither a task nor env_kwargs has a value for {', '.join(sorted(unset))}"
                )
        if self.report_by is not None and self.report_by not in names:
            raise ValueError(f"family.report_by: no task has the keyword argument {self.report_by!r}")
        _check_distinct(lists)
        if family.splits is None:
            self.all_tasks = self._split(lists["tasks"], family)
        else:
            pairs = [(dict(kwargs), split) for split in SPLITS for kwargs in lists.get(split, [])]
            numbers = _numbers_of({split: len(tasks) for split, tasks in lists.items()}, family.task_ids)
            self.all_tasks = sorted(map(Task, numbers, *zip(*pairs)), key=lambda task: task.task_id)

    @staticmethod
    def _describe(family: FamilyConfig) -> dict[str, list[dict[str, Any]]]:
        """Keyword arguments of all tasks: by their splits where these are set, else under `tasks`."""
        ways = {name: getattr(family, name) for name in (*WAYS, "splits") if getattr(family, name) is not None}
        if not family.env_id or len(ways) != 1:
            raise ValueError(
                f"a family needs env_id and one of {', '.join(WAYS)}, splits, got env_id {family.env_id!r} and "
                f"{' and '.join(ways) or 'none of them'}"
            )
        if family.splits is None:
            if family.task_ids is not None:
                raise ValueError("family.task_ids are the numbers of the tasks of family.splits, and there are none")
            return {"tasks": described_tasks(ways, "family")}
        lists = {split: described_tasks(way, f"family.splits.{split}") for split, way in family.splits.items()}
        if set(lists) - set(SPLITS) or not lists.get("train"):
            raise ValueError(f"splits must be of {', '.join(SPLITS)}, with tasks to train on; got {', '.join(lists)}")
        if family.num_train_tasks or family.num_validation_tasks or family.num_test_tasks:
            raise ValueError("family.splits says which tasks each split has: leave out the numbers of tasks")
        return lists

    def _split(self, tasks: list[dict[str, Any]], family: FamilyConfig) -> list[Task]:
        """Draw the splits of a list of tasks."""
        others = len(tasks) - family.num_validation_tasks - family.num_test_tasks
        if others < 1:
            raise ValueError(
                f"{family.num_validation_tasks} validation and {family.num_test_tasks} test tasks leave none of "
                f"{len(tasks)} tasks to train on: hold out fewer or define more tasks"
            )
        num_train_tasks = others if family.num_train_tasks is None else family.num_train_tasks
        if num_train_tasks > others:
            raise ValueError(
                f"num_train_tasks must be from 1 to {others}, the tasks that are left, got {num_train_tasks}"
            )
        rng = np.random.default_rng(family.split_seed)
        order = rng.permutation(len(tasks)).tolist()
        stratify_by = family.function("stratify_by")
        if stratify_by is not None:
            order.sort(key=lambda index: self._number(stratify_by, "stratify_by", tasks[index]))
        splits: dict[int, str] = {}
        sizes = {"test": family.num_test_tasks, "validation": family.num_validation_tasks, "train": num_train_tasks}
        for split, size in sizes.items():
            splits |= dict.fromkeys(_spread(order, size, rng), split)
            order = [index for index in order if index not in splits]
        return [Task(index, dict(tasks[index]), splits[index]) for index in sorted(splits)]

    @classmethod
    def from_recipe(cls, recipe: str | Path) -> TaskFamily:
        """
        The family of a recipe, given by its name (`"dark_room"`) or as a YAML file; no other section is read.

        Raises:
            FileNotFoundError: for an unknown recipe.
            ValueError: for a recipe without a family, naming the setting.
        """
        section = read_recipe(recipe).get("family", {})
        try:
            return cls(make_section(FamilyConfig, section, "family"))
        except ValueError as error:
            raise ValueError(f"recipe {recipe}: {error}") from error

    @property
    def env_settings(self) -> dict[str, Any]:
        """The settings of its environments, without the tasks: `env_id`, `env_kwargs`, `wrappers`, `attributes`."""
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
                Seed of the environments and their action space; a later `reset()` without a seed goes on from it.
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
        where, (module, _, name) = f"family.env_id {self.env_id!r}", self.env_id.rpartition(":")
        try:
            if module:
                import_named(module, where)
        except ValueError as error:
            raise UnknownEnvironmentError(str(error)) from error
        try:
            envs = self._make(tasks, shared, autoreset_mode)
        except gym.error.UnregisteredEnv as error:
            way_out = f"the module {module} has to call" if module else f"write my_module:{name}, of a module with"
            text = f"{' '.join(str(error).split()).rstrip('.')}: {way_out} gymnasium.register({name!r}, ...)"
            raise UnknownEnvironmentError(f"{where}: {text}") from error
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
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
            settings = self.wrappers, self.attributes
            makers = [partial(make_env, self.env_id, {**shared, **task.kwargs}, *settings) for task in tasks]
            return SyncVectorEnv(makers, autoreset_mode=autoreset_mode)
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
        """The number that a setting's function of a task's keyword arguments returns, or a `ValueError`."""
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
