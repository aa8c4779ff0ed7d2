"""Learning histories from npz and HDF5 files, as they are published with papers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ad_hf.envs.foreign import check_kwargs
from ad_hf.envs.making import find_spec
from ad_hf.envs.spaces import MOST_CATEGORIES, space_from_json
from ad_hf.envs.task_family import SPLITS, Task, TaskFamily, comparable
from ad_hf.formats.array_files import (
    ARRAY_NAMES,
    ArrayHistory,
    Container,
    find_containers,
    read_histories,
    read_part,
    reading,
)
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.steps import Steps
from ad_hf.histories.writer import (
    describe,
    histories_of_tasks,
    new_dataset,
    space_json,
    to_storage,
    write_shards,
)
from ad_hf.progress import ProgressBar
from ad_hf.settings import excerpt, parse_json, read_json
from ad_hf.storage.files import local_path

TASKS_FILE = "tasks.json"
TASK_KEYS = ("goal", "kwargs")
COLUMNS = {"observation_space": ("observations", "final_observations"), "action_space": ("actions",)}


def from_arrays(
    source: str | Path,
    output_dir: str | Path,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    family: TaskFamily | None = None,
    tasks: str | Path | list[Any] | dict[str, Any] | None = None,
    task_keys: Sequence[str] | None = None,
    num_validation_tasks: int = 0,
    num_test_tasks: int = 0,
    split_seed: int = 0,
    observation_space: dict[str, Any] | None = None,
    action_space: dict[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    time_first: bool = False,
    algorithm: str = "unknown",
    independent_streams: bool | None = None,
    config_name: str = "default",
    max_piece_steps: int | None = None,
    trust_remote_code: bool = False,
) -> Path:
    r"""
    Write learning histories from npz or HDF5 files.

    A file, or a group of an HDF5 file, holds the histories of one task: arrays (num_steps, ...) of one stream, or
    (num_streams, num_steps, ...). Several may be of the same task. `recipe.yaml` beside the histories describes their
    environment and tasks, to train on them.

    Args:
        source (`str` or `Path`):
            An npz or HDF5 file, or a folder of such files.
        output_dir (`str` or `Path`):
            Folder to write; there must be nothing at it.
        env_id (`str`, *optional*), env_kwargs (`dict`, *optional*):
            The environment and the keyword arguments that all tasks share; gymnasium need not know it. Give these or
            `family`.
        family ([`~ad_hf.TaskFamily`], *optional*):
            Environment, tasks and their split; each file is of one of its tasks.
        tasks (`str`, `Path`, `list` or `dict`, *optional*):
            Keyword arguments of the task of each file or group: in the order of their names, or by name; each may be
            `{"kwargs": ..., "split": ...}` to say the split as well. As a JSON file or as they are; by default from
            `tasks.json` beside the files, or else from the files.
        task_keys (`Sequence[str]`, *optional*):
            Arrays or attributes in the files that are keyword arguments of the task; by default `goal`. Text called
            `kwargs` is a JSON object of them.
        num_validation_tasks, num_test_tasks, split_seed (`int`, *optional*, defaults to 0):
            How tasks are split if neither `family` nor `tasks` says it, as of [`~ad_hf.TaskFamily`].
        observation_space, action_space (`dict`, *optional*):
            Spaces of one environment as JSON; by default the environment's, or, if gymnasium does not know it, the
            smallest that hold all elements (see [`SpaceGuess`]).
        names (`Mapping[str, str]`, *optional*):
            Name in the files of `observations`, `actions`, `rewards`, `terminations`, `truncations`, `dones` or
            `next_observations`, if it is another than the usual ones.
        time_first (`bool`, *optional*, defaults to `False`):
            Whether arrays of several streams are (num_steps, num_streams, ...).
        algorithm (`str`, *optional*, defaults to `"unknown"`):
            The source's algorithm.
        independent_streams (`bool`, *optional*):
            Whether each stream of a task learns for itself, or all are of one learner, whose environment steps count
            together. While that is not known, no model is said to be faster or slower than its source.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration to write.
        max_piece_steps (`int`, *optional*):
            Steps of a row, as of [`~ad_hf.collect`].
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether keyword arguments of tasks that the files say may name files of this machine, as `xml_file` does.

    Returns:
        `Path`: the folder of the histories.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ImportError: for HDF5 files without the package h5py.
        ValueError: naming the file and the array, for malformed ones; for tasks that cannot be assigned, and if there
            is something at `output_dir`.
    """
    names = dict(names or {})
    if unknown := sorted(set(names) - set(ARRAY_NAMES)):
        raise ValueError(f"unknown arrays {', '.join(unknown)}: expected some of {', '.join(ARRAY_NAMES)}")
    source, output_dir = local_path(source), local_path(output_dir)
    containers = find_containers(source, names)
    entries = _task_entries(containers, source, tasks, task_keys)
    if tasks is None and not trust_remote_code:
        for container, entry in zip(containers, entries):
            check_kwargs(entry.kwargs, str(source), container.name)
    section = None
    if family is not None:
        if env_id is not None or env_kwargs is not None or num_validation_tasks or num_test_tasks or split_seed:
            raise ValueError("a family has an environment and splits of its own: give nothing else")
        assigned = _tasks_of_family(containers, entries, family)
    elif env_id is None or not env_id.strip():
        raise ValueError("env_id is missing: say which environment the histories are of; gymnasium need not know it")
    else:
        split = {"num_validation_tasks": num_validation_tasks, "num_test_tasks": num_test_tasks}
        settings = {"env_id": env_id, "env_kwargs": env_kwargs or {}, **split, "split_seed": split_seed}
        family, assigned, section = _new_family(containers, entries, settings)

    def read(title: str) -> Iterator[tuple[Task, ArrayHistory]]:
        with ProgressBar(title, len(containers), "files") as bar:
            for container, task in zip(containers, assigned):
                yield from ((task, history) for history in read_histories(container, names, time_first))
                bar.update()

    with new_dataset(output_dir, config_name) as folder:
        both = _spaces(
            {"observation_space": observation_space, "action_space": action_space},
            family,
            (history for _, history in read("find spaces")),
        )
        ids = {task.task_id for task in assigned}
        metadata = HistoryMetadata(
            **family.env_settings,
            tasks=[asdict(task) for task in family.all_tasks if task.task_id in ids],
            observation_space=space_json(both[0], "observation_space"),
            action_space=space_json(both[1], "action_space"),
            source={"algorithm": algorithm}
            | ({} if independent_streams is None else {"independent_streams": independent_streams}),
            seeds=[],
        )
        notes: set[str | None] = set()
        origin: dict[str, Any] = {"name": source.name, "time_first": time_first}

        def stored() -> Iterator[tuple[Task, Steps]]:
            for task, history in read("convert"):
                yield task, to_storage(history.steps, *both, history.name)
                origin["arrays"] = history.keys
                notes.add(history.note)

        histories = histories_of_tasks(stored(), both, max_piece_steps)
        metadata.source |= write_shards(folder / config_name, histories)
        missing = "; ".join(sorted(note for note in notes if note is not None))
        if missing:
            warnings.warn(f"the final observations of episodes are {missing}", stacklevel=2)
        origin["final_observations"] = missing or "in the files"
        metadata.source["converted_from"] = origin
        text = "Converted from `{name}` by `ad-hf convert`; final observations are {final_observations}."
        describe(folder, output_dir.name, config_name, metadata, text.format(**origin), section)
    return output_dir


class TaskEntry(NamedTuple):
    """The keyword arguments and the split of a container's task, as far as files or the user say them."""

    kwargs: dict[str, Any] | None
    split: str | None


def _task_entries(
    containers: Sequence[Container],
    source: Path,
    tasks: str | Path | list[Any] | dict[str, Any] | None,
    task_keys: Sequence[str] | None,
) -> list[TaskEntry]:
    """The task of each container, as far as the user or the files say it."""
    beside = (source if source.is_dir() else source.parent) / TASKS_FILE
    if tasks is None and task_keys is None and beside.is_file():
        tasks = beside
    if tasks is None:
        return [_entry_of_file(container, task_keys) for container in containers]
    title = "tasks"
    if isinstance(tasks, (str, Path)):
        title, tasks = str(tasks), read_json(tasks, object)
    names = [container.name for container in containers]
    if isinstance(tasks, list) and len(tasks) == len(names):
        tasks = dict(zip(names, tasks))
    if not isinstance(tasks, dict) or set(tasks) != set(names):
        got = f"an object of {', '.join(sorted(tasks)[:5])}" if isinstance(tasks, dict) else excerpt(tasks)
        raise ValueError(
            f"{title}: expected a task for each of the {len(names)} files or groups, as a list in their order or as "
            f"an object by their names ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}), got {got}"
        )
    return [_entry(tasks[name], f"{title}, {name}") for name in names]


def _entry(value: Any, title: str) -> TaskEntry:
    split = None
    if isinstance(value, dict) and set(value) == {"kwargs", "split"}:
        value, split = value["kwargs"], value["split"]
    if not isinstance(value, dict) or split not in (*SPLITS, None):
        raise ValueError(
            f"{title}: expected the task's keyword arguments, or these as kwargs beside a split, one of "
            f"{', '.join(SPLITS)}; got {excerpt(value)}{'' if split is None else f' with split {excerpt(split)}'}"
        )
    try:
        json.dumps(value, allow_nan=False, default=np.ndarray.tolist)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{title}: expected keyword arguments of finite numbers, text, lists and objects, got {excerpt(value)} "
            f"({error})"
        ) from error
    return TaskEntry(value, split)


def _entry_of_file(container: Container, keys: Sequence[str] | None) -> TaskEntry:
    """The task in the arrays and attributes of a container that have these names."""
    kwargs: dict[str, Any] = {}
    with container.open() as arrays:
        for key in TASK_KEYS if keys is None else keys:
            with reading(f"{container}, {key} of the task's keyword arguments"):
                value = read_part(arrays[key]) if key in arrays else arrays.attrs.get(key)
                if value is None and keys is None:
                    continue
                if value is None:
                    raise ValueError("there is no such array and no such attribute")
                value = value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
                kwargs |= parse_json(value, "its text") if key == "kwargs" else {key: value}
    return TaskEntry(_entry(kwargs, f"{container}, its task").kwargs or None, None)


def _tasks_of_family(containers: Sequence[Container], entries: Sequence[TaskEntry], family: TaskFamily) -> list[Task]:
    """The task of a family that each container is of: by its keyword arguments, or else in order."""
    if all(entry.kwargs is None for entry in entries):
        if len(containers) != len(family.all_tasks):
            raise ValueError(
                f"the files do not say which task they are of, and {len(containers)} of them are not one for each of "
                f"the family's {len(family.all_tasks)} tasks: say it with tasks"
            )
        return list(family.all_tasks)
    tasks = {comparable(task.kwargs): task for task in family.all_tasks}
    assigned = []
    for container, entry in zip(containers, entries):
        task = tasks.get(comparable(entry.kwargs))
        if task is None or entry.split not in (task.split, None):
            raise ValueError(
                f"{container}: the family has no task {entry.kwargs}{f' in {entry.split}' if entry.split else ''}; "
                f"its first is {family.all_tasks[0]}"
            )
        assigned.append(task)
    return assigned


def _new_family(
    containers: Sequence[Container], entries: Sequence[TaskEntry], settings: dict[str, Any]
) -> tuple[TaskFamily, list[Task], dict[str, Any] | None]:
    """
    A family of the tasks of the containers, the task of each container, and the family as a section of a recipe,
    unless tasks say their splits, which a recipe draws at random.
    """
    # A container without keyword arguments is a task of its own.
    keys = [
        container.name if entry.kwargs is None else comparable(entry.kwargs)
        for container, entry in zip(containers, entries)
    ]
    distinct: dict[Any, TaskEntry] = {}
    for container, key, entry in zip(containers, keys, entries):
        if distinct.setdefault(key, entry).split != entry.split:
            raise ValueError(f"{container}: split {entry.split} of a task that is also in {distinct[key].split}")
    tasks = [entry.kwargs or {} for entry in distinct.values()]
    family = TaskFamily(**settings, tasks=tasks)
    section: dict[str, Any] | None = {**settings, "tasks": tasks}
    splits = [entry.split for entry in distinct.values()]
    if any(splits):
        if None in splits or settings["num_validation_tasks"] or settings["num_test_tasks"]:
            raise ValueError("some tasks say their split: then all have to, and none is drawn at random")
        family.all_tasks = [replace(task, split=str(split)) for task, split in zip(family.all_tasks, splits)]
        section = section if set(splits) == {"train"} else None
    numbers = {key: number for number, key in enumerate(distinct)}
    return family, [family.all_tasks[numbers[key]] for key in keys], section


def _spaces(
    json_spaces: Mapping[str, dict[str, Any] | None], family: TaskFamily, histories: Iterable[ArrayHistory]
) -> tuple[spaces.Space, spaces.Space]:
    """Observation and action space: those in JSON, or else the environment's, or else the smallest."""
    both = {name: space_from_json(space, name) for name, space in json_spaces.items() if space is not None}
    if len(both) < len(json_spaces):
        both = {**_spaces_of_environment(family), **both}
    guesses = {name: SpaceGuess(name) for name in json_spaces if name not in both}
    for history in histories if guesses else ():
        for name, guess in guesses.items():
            for column in COLUMNS[name]:
                guess.update(getattr(history.steps, column), f"{history.name}, {column}")
    both |= {name: guess.space() for name, guess in guesses.items()}
    return both["observation_space"], both["action_space"]


def _spaces_of_environment(family: TaskFamily) -> dict[str, spaces.Space]:
    """The spaces of a family's environments, if gymnasium knows them."""
    if find_spec(family.env_id) is None:
        return {}
    envs = family.make_vec(family.all_tasks[:1])
    envs.close()
    return {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}


class SpaceGuess:
    """
    The smallest space of a usual kind that holds all elements.

    Truth values are Discrete(2) or MultiBinary, images of bytes (height, width, channels) a Box, other integers
    Discrete or MultiDiscrete with their maximum + 1, and other numbers a Box: of observations without bounds, of
    actions between the least and the greatest.

    Args:
        name (`str`):
            `"observation_space"` or `"action_space"`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._limits: np.ndarray | None = None  # minimum and maximum, (2, ...)
        self._dtype = np.dtype(bool)

    def update(self, values: np.ndarray, title: str) -> None:
        """Take more elements (num_elements, ...) into account."""
        limits = np.stack([values.min(axis=0), values.max(axis=0)])
        if limits.dtype.kind == "f" and not np.isfinite(limits).all():
            raise ValueError(f"{title}: expected finite numbers, and there are others")
        self._dtype = np.result_type(self._dtype, limits)
        if self._limits is not None:
            if self._limits.shape != limits.shape:
                raise ValueError(
                    f"{title}: elements of shape {limits.shape[1:]}, before they were {self._limits.shape[1:]}"
                )
            limits = np.concatenate([self._limits, limits])
        self._limits = np.stack([limits.min(axis=0), limits.max(axis=0)])

    def space(self) -> spaces.Space:
        """The space."""
        assert self._limits is not None  # files have elements
        low, high = self._limits
        kind, shape = self._dtype.kind, high.shape
        if kind != "f" and high.max() > MOST_CATEGORIES - 1:
            raise ValueError(
                f"the {self.name} cannot be inferred from whole numbers up to {high.max()}, as many categories fit no "
                "model: give it as JSON"
            )
        if self._dtype == np.uint8 and len(shape) == 3:
            return spaces.Box(0, 255, shape, np.uint8)
        if len(shape) > 1 or (kind != "f" and low.min() < 0):
            raise ValueError(
                f"the {self.name} cannot be inferred from {self._dtype} elements of shape {shape}, {low.min()} to "
                f"{high.max()}: give it as JSON (with as many numbers in an element, they are reshaped)"
            )
        if kind == "f":
            dtype = np.float64 if self._dtype == np.float64 else np.float32
            low, high = np.atleast_1d(low).astype(dtype), np.atleast_1d(high).astype(dtype)
            if self.name == "action_space":  # the model divides it into bins, which need a width
                return spaces.Box(low, np.where(high > low, high, low + 1).astype(dtype), dtype=dtype)
            return spaces.Box(-np.inf, np.inf, low.shape, dtype)
        if not shape:
            return spaces.Discrete(int(high) + 1 if kind != "b" else 2)
        return spaces.MultiBinary(shape[0]) if kind == "b" else spaces.MultiDiscrete(high.astype(np.int64) + 1)
