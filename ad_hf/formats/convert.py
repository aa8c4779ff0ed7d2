"""
Learning histories from and to other formats.

`to_minari` and `from_minari` go to Minari and back without a loss; `from_arrays` imports npz and HDF5 files as they
are published with papers. `ad-hf convert` is these three.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from tqdm.auto import tqdm

from ad_hf.envs.foreign import check_kwargs
from ad_hf.envs.making import find_spec
from ad_hf.envs.spaces import space_from_json
from ad_hf.envs.task_family import SPLITS, Task, TaskFamily, comparable
from ad_hf.formats.array_files import reading
from ad_hf.formats.arrays import (
    ARRAY_NAMES,
    Container,
    SpaceGuess,
    Stream,
    find_containers,
    read_streams,
    steps_of_stream,
)
from ad_hf.formats.minari import check_counts, check_environment, from_minari, to_minari
from ad_hf.histories.schema import HistoryMetadata, default_piece_steps, history_features
from ad_hf.histories.writer import (
    SHARD_TRANSITIONS,
    describe,
    history_rows,
    new_dataset,
    space_json,
    split_writers,
)
from ad_hf.settings import parse_json, read_json, shown
from ad_hf.storage.files import local_path

TASKS_FILE = "tasks.json"
TASK_KEYS = ("goal", "kwargs")

__all__ = ["from_arrays", "from_minari", "to_minari"]


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
    shard_transitions: int = SHARD_TRANSITIONS,
    trust_remote_code: bool = False,
) -> Path:
    r"""
    Write learning histories from npz or HDF5 files.

    A file, or a group of an HDF5 file, holds the histories of one task: arrays (num_steps, ...) of one stream, or
    (num_streams, num_steps, ...). Several may be of the same task. Files are read one at a time. Beside the histories,
    `recipe.yaml` says in a recipe's words of which environment and tasks they are, to train on them.

    Args:
        source (`str` or `Path`):
            An npz or HDF5 file, or a folder of such files.
        output_dir (`str` or `Path`):
            Folder to write; there must be nothing at it.
        env_id (`str`, *optional*), env_kwargs (`dict`, *optional*):
            The environment and what all tasks share; gymnasium need not know it. Give these or `family`.
        family ([`~ad_hf.TaskFamily`], *optional*):
            Environment, tasks and their split, to each of which files are assigned.
        tasks (`str`, `Path`, `list` or `dict`, *optional*):
            Keyword arguments of the task of each file or group: in the order of their names, or by name; each may be
            `{"kwargs": ..., "split": ...}` to say the split as well. As a JSON file or as they are; by default what
            `tasks.json` beside the files says, else what the files say, else each is a task without any.
        task_keys (`Sequence[str]`, *optional*):
            Arrays or attributes in the files that are keyword arguments of the task; by default `goal`.
        num_validation_tasks, num_test_tasks, split_seed (`int`, *optional*, defaults to 0):
            How tasks are split if neither `family` nor `tasks` says it, as of [`~ad_hf.TaskFamily`].
        observation_space, action_space (`dict`, *optional*):
            Spaces of one environment as JSON; by default the environment's, or, if gymnasium does not know it, the
            smallest that hold all that is in the files (see [`~ad_hf.formats.arrays.SpaceGuess`]).
        names (`Mapping[str, str]`, *optional*):
            Name in the files of `observations`, `actions`, `rewards`, `terminations`, `truncations`, `dones` or
            `next_observations`, if it is another than the usual ones.
        time_first (`bool`, *optional*, defaults to `False`):
            Whether arrays of several streams are (num_steps, num_streams, ...).
        algorithm (`str`, *optional*, defaults to `"unknown"`):
            What learnt.
        independent_streams (`bool`, *optional*):
            Whether each stream of a task learns for itself, or all are of one learner, whose environment steps count
            together. While that is not known, no model is said to be faster or slower than its source.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration to write.
        max_piece_steps (`int`, *optional*), shard_transitions (`int`, *optional*, defaults to 1000000):
            Steps of a row and of a file, as of [`~ad_hf.collect`].
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
    check_environment(env_id, env_kwargs)
    check_counts(max_piece_steps=max_piece_steps)
    source, output_dir = local_path(source), local_path(output_dir)
    containers = find_containers(source, names)
    entries = _task_entries(containers, source, tasks, task_keys)
    if tasks is None and not trust_remote_code:
        check_kwargs({each.name: entry.kwargs for each, entry in zip(containers, entries)}, str(source))
    section = None
    if family is not None:
        if env_id is not None or env_kwargs is not None or num_validation_tasks or num_test_tasks or split_seed:
            raise ValueError("a family says what the environment and the split of the tasks are: give nothing else")
        assigned = _tasks_of_family(containers, entries, family)
    elif env_id is None:
        raise ValueError("env_id is missing: say which environment the histories are of; gymnasium need not know it")
    else:
        split = {"num_validation_tasks": num_validation_tasks, "num_test_tasks": num_test_tasks}
        settings = {"env_id": env_id, "env_kwargs": env_kwargs or {}, **split, "split_seed": split_seed}
        family, assigned, section = _new_family(containers, entries, settings)
    read = partial(read_streams, names=names, time_first=time_first)
    ids = {task.task_id for task in assigned}
    with new_dataset(output_dir, config_name) as folder:
        given = {"observation_space": observation_space, "action_space": action_space}
        found = _spaces(containers, read, given, family)
        metadata = HistoryMetadata(
            **family.env_settings,
            tasks=[asdict(task) for task in family.all_tasks if task.task_id in ids],
            observation_space=space_json(found["observation_space"], "observation_space"),
            action_space=space_json(found["action_space"], "action_space"),
            source={"algorithm": algorithm}
            | ({} if independent_streams is None else {"independent_streams": independent_streams}),
            seeds=[],
        )
        with split_writers(folder / config_name, shard_transitions) as add:
            about = _write_histories(containers, assigned, metadata, read, add, max_piece_steps)
        metadata.source["converted_from"] = {"name": source.name, "time_first": time_first, **about}
        finals = about["final_observations"]
        origin = f"Converted from `{source.name}` by `ad-hf convert`; final observations are {finals}."
        describe(folder, output_dir.name, config_name, metadata, origin, section)
    return output_dir


class TaskEntry(NamedTuple):
    """What is said of the task of a container: its keyword arguments and its split, or nothing."""

    kwargs: dict[str, Any] | None
    split: str | None


def _task_entries(
    containers: Sequence[Container],
    source: Path,
    tasks: str | Path | list[Any] | dict[str, Any] | None,
    task_keys: Sequence[str] | None,
) -> list[TaskEntry]:
    """What is said of the task of each container."""
    beside = (source if source.is_dir() else source.parent) / TASKS_FILE
    if tasks is None and task_keys is None and beside.is_file():
        tasks = beside
    if tasks is None:
        return [TaskEntry(task_kwargs(container, task_keys), None) for container in containers]
    name, given = "tasks", tasks
    if isinstance(tasks, (str, Path)):
        name, given = str(tasks), read_json(tasks, object)
    names = [container.name for container in containers]
    if isinstance(given, list) and len(given) == len(names):
        given = dict(zip(names, given))
    if not isinstance(given, dict) or set(given) != set(names):
        found = f"an object of {', '.join(sorted(given)[:5])}" if isinstance(given, dict) else shown(given)
        raise ValueError(
            f"{name}: expected a task for each of the {len(names)} files or groups, as a list in their order or as an "
            f"object by their names ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}), got {found}"
        )
    return [_task_entry(given[container], f"{name}, {container}") for container in names]


def _task_entry(entry: Any, name: str) -> TaskEntry:
    split = None
    if isinstance(entry, dict) and set(entry) == {"kwargs", "split"}:
        entry, split = entry["kwargs"], entry["split"]
    if not isinstance(entry, dict) or split not in (*SPLITS, None):
        raise ValueError(
            f"{name}: expected the task's keyword arguments, or these as kwargs beside a split, one of "
            f"{', '.join(SPLITS)}; got {shown(entry)}{'' if split is None else f' with split {shown(split)}'}"
        )
    try:
        json.dumps(entry, allow_nan=False, default=np.ndarray.tolist)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected keyword arguments of finite numbers, text, lists and objects, got {shown(entry)} "
            f"({error})"
        ) from error
    return TaskEntry(entry, split)


def _tasks_of_family(containers: Sequence[Container], entries: Sequence[TaskEntry], family: TaskFamily) -> list[Task]:
    """Which task of a family each container is of: by its keyword arguments, or else in order."""
    if all(entry.kwargs is None for entry in entries):
        if len(containers) != len(family.all_tasks):
            raise ValueError(
                f"the files do not say which task they are of, and {len(containers)} of them are not one for each of "
                f"the family's {len(family.all_tasks)} tasks: say it with tasks"
            )
        return list(family.all_tasks)
    known = {comparable(task.kwargs): task for task in family.all_tasks}
    assigned = []
    for container, entry in zip(containers, entries):
        task = known.get(comparable(entry.kwargs))
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
    tasks: list[dict[str, Any]] = []
    splits: list[str | None] = []
    known: dict[Any, int] = {}
    ids = []
    for container, entry in zip(containers, entries):
        # Nothing being said, each container is a task of its own.
        key = container.name if entry.kwargs is None else comparable(entry.kwargs)
        if key not in known:
            known[key] = len(tasks)
            tasks.append(entry.kwargs or {})
            splits.append(entry.split)
        ids.append(known[key])
        if entry.split != splits[known[key]]:
            raise ValueError(f"{container}: split {entry.split} of a task that is also in {splits[known[key]]}")
    family = TaskFamily(**settings, tasks=tasks)
    section: dict[str, Any] | None = {**settings, "tasks": tasks}
    if any(splits):
        if None in splits or settings["num_validation_tasks"] or settings["num_test_tasks"]:
            raise ValueError("some tasks say their split: then all have to, and none is drawn at random")
        family.all_tasks = [replace(task, split=str(split)) for task, split in zip(family.all_tasks, splits)]
        section = section if set(splits) == {"train"} else None
    return family, [family.all_tasks[index] for index in ids], section


def task_kwargs(container: Container, keys: Sequence[str] | None) -> dict[str, Any] | None:
    """
    The keyword arguments of a container's task, as far as it says them itself.

    Args:
        container ([`~ad_hf.formats.arrays.Container`]):
            The container.
        keys (`Sequence[str]`, *optional*):
            Names of the arrays and attributes that are keyword arguments; by default `goal`, if it is there. Text
            called `kwargs` is a JSON object of them.

    Raises:
        ValueError: if one of the keys is not there, or cannot be read.
    """
    kwargs: dict[str, Any] = {}
    with container.open() as opened:
        for key in TASK_KEYS if keys is None else keys:
            name = f"{container}, {key} of the task's keyword arguments"
            if key not in opened and key not in opened.attributes:
                if keys is None:
                    continue
                raise ValueError(f"{container}: no array and no attribute {key}, for the task's keyword arguments")
            with reading(name):
                value = opened.get(key, str(container))[()] if key in opened else opened.attributes[key]
                value = value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
                kwargs |= parse_json(value, "its text") if key == "kwargs" else {key: value}
    return _task_entry(kwargs, f"{container}, its task").kwargs or None


def _spaces(
    containers: Sequence[Container],
    read: Callable[[Container], Iterator[Stream]],
    given: Mapping[str, dict[str, Any] | None],
    family: TaskFamily,
) -> dict[str, spaces.Space]:
    """The `observation_space` and `action_space` that are given, or else the environment's, or else the smallest."""
    known = {name: space_from_json(space, name) for name, space in given.items() if space is not None}
    if len(known) < len(given):
        known = {**_spaces_of_environment(family), **known}
    guesses = {name: SpaceGuess(name) for name in given if name not in known}
    roles = {"observation_space": ("observations", "next_observations"), "action_space": ("actions",)}
    for container in tqdm(containers if guesses else [], desc="find spaces", unit=" files", disable=not guesses):
        for stream in read(container):
            for name, guess in guesses.items():
                for role in roles[name]:
                    if getattr(stream, role) is not None:
                        guess.update(getattr(stream, role), f"{stream.where}, array {stream.keys[role]}")
    return {**known, **{name: guess.space() for name, guess in guesses.items()}}


def _spaces_of_environment(family: TaskFamily) -> dict[str, spaces.Space]:
    """The spaces of a family's environments, if gymnasium knows them."""
    if find_spec(family.env_id) is None:
        return {}
    try:
        envs = family.make_vec(family.all_tasks[:1])
    except Exception as error:  # an environment may raise anything
        raise ValueError(
            f"{family.env_id} cannot be made with {family.env_kwargs} and {family.all_tasks[0].kwargs}, to see its "
            f"spaces: {error}; correct the keyword arguments, or give both spaces"
        ) from error
    envs.close()
    return {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}


def _write_histories(
    containers: Sequence[Container],
    assigned: Sequence[Task],
    metadata: HistoryMetadata,
    read: Callable[[Container], Iterator[Stream]],
    add: Callable[[str, pa.Table], None],
    max_piece_steps: int | None,
) -> dict[str, Any]:
    """Write the histories of all containers; their numbers go into the metadata's source, the rest is returned."""
    both = metadata.spaces
    features, max_piece_steps = history_features(*both), max_piece_steps or default_piece_steps(both[0])
    streams: Counter[int] = Counter()
    transitions: Counter[int] = Counter()
    notes, keys = set(), {}
    for container, task in zip(tqdm(containers, desc="convert", unit=" files"), assigned):
        for stream in read(container):
            steps, note = steps_of_stream(stream, *both)
            add(task.split, history_rows(steps, features, task.task_id, streams[task.task_id], max_piece_steps))
            streams[task.task_id] += 1
            transitions[task.task_id] += len(steps.rewards)
            keys = stream.keys
            notes.add(note)
    missing = sorted(note for note in notes if note is not None)
    if missing:
        warnings.warn(f"the final observations of episodes are {'; '.join(missing)}", stacklevel=3)
    metadata.source |= {
        "n_envs": max(streams.values()),
        "total_timesteps": max(transitions.values()),
        "hyperparameters": {},
    }
    return {"arrays": keys, "final_observations": "; ".join(missing) or "in the files"}
