"""Between models and histories: rollouts as learning histories, and histories as prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ad_hf.envs.making import read_calls
from ad_hf.envs.spaces import space_from_json
from ad_hf.envs.task_family import SPLITS, Task
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.frames import FramePieces, has_frames
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.steps import STEPWISE, Steps, row_lengths
from ad_hf.histories.writer import describe, histories_of_tasks, new_dataset, to_storage, write_shards

if TYPE_CHECKING:
    from ad_hf.model.rollout_ad import RolloutOutput

ORIGIN = (
    "What a trained model lived through in a rollout, its context being all that it learnt with; written by "
    "`ad_hf.histories.from_rollout`."
)


def from_rollout(
    output: RolloutOutput,
    tasks: Sequence[Task] | None = None,
    env_id: str = "unknown",
    env_kwargs: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    config_name: str = "default",
    max_piece_steps: int | None = None,
    wrappers: Sequence[str | dict[str, Any]] = (),
    attributes: Sequence[str] = (),
) -> Dataset:
    r"""
    The histories that a model lived through in a rollout, one per environment, to store, push, plot or train on them.

    ```python
    output = model.rollout(family.make_vec(tasks), output_steps=True)
    histories = ad_hf.histories.from_rollout(output, tasks, **family.env_settings, output_dir="rollout")
    ```

    Args:
        output ([`~ad_hf.RolloutOutput`]):
            The output of a rollout with `output_steps=True`.
        tasks (`Sequence[Task]`, *optional*):
            The task of each environment, or tasks that are repeated, in order, as by [`~ad_hf.TaskFamily.make_vec`].
            Environments of the same task are its streams 0, 1, ... By default each environment is a task of its own,
            without keyword arguments, in the split `train`.
        env_id (`str`, *optional*, defaults to `"unknown"`), env_kwargs (`dict`, *optional*):
            The environment and the keyword arguments that all tasks share, for `metadata.json`.
        output_dir (`str` or `Path`, *optional*):
            Folder to write the histories to as a dataset; it must not exist. If all tasks are training tasks numbered
            from 0, a `recipe.yaml` beside them has the tasks as a family.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration of the dataset to write.
        max_piece_steps (`int`, *optional*):
            Steps of a row, as of [`~ad_hf.collect`].
        wrappers (`Sequence` of `str` or `dict`, *optional*), attributes (`Sequence[str]`, *optional*):
            Wrappers and attributes of the environments, as of [`~ad_hf.TaskFamily`], for `metadata.json`.

    Returns:
        `datasets.Dataset`: rows of all environments that took a step, in memory, with the columns of
        [`~ad_hf.histories.schema.history_features`].

    Raises:
        ValueError: for an output without steps, tasks that do not fit the environments, observations and actions
            outside of their spaces, an `output_dir` that exists, and tasks and keyword arguments that are not JSON.
    """
    if output.observations is None:
        raise ValueError("the rollout's output has no steps to make histories of: roll out with output_steps=True")
    rollout: Any = output  # with all of its steps
    tasks = _assign_tasks(tasks, len(rollout.observations))
    both = space_from_json(rollout.observation_space), space_from_json(rollout.action_space)
    envs = np.flatnonzero(rollout.num_steps).tolist()
    of_envs = [(tasks[env], to_storage(_steps_of(rollout, env), *both, f"environment {env}")) for env in envs]
    histories = list(histories_of_tasks(of_envs, both, max_piece_steps))
    if output_dir is not None:
        entries = {task.task_id: asdict(task) for task, _ in of_envs}  # a split needs files
        metadata = HistoryMetadata(
            env_id=env_id,
            env_kwargs=env_kwargs or {},
            tasks=[entries[task_id] for task_id in sorted(entries)],
            observation_space=rollout.observation_space,
            action_space=rollout.action_space,
            source={"algorithm": "ADModel"},
            seeds=[],
            wrappers=read_calls(wrappers, "wrappers", None),
            attributes=list(attributes),
        )
        with new_dataset(output_dir, config_name) as folder:
            metadata.source |= write_shards(folder / config_name, histories)
            describe(folder, Path(output_dir).name, config_name, metadata, ORIGIN, _family_section(tasks, metadata))
    return Dataset(pa.concat_tables([rows for _, rows in histories]))


def _assign_tasks(tasks: Sequence[Task] | None, num_envs: int) -> list[Task]:
    """The task of each environment."""
    if tasks is None:
        return [Task(env, {}, "train") for env in range(num_envs)]
    if not tasks or num_envs % len(tasks):
        raise ValueError(
            f"{len(tasks)} tasks for a rollout of {num_envs} environments: give one for each environment, or those "
            "of make_vec, whose number divides that of the environments"
        )
    by_id: dict[int, Task] = {}
    for task in tasks:
        if by_id.setdefault(task.task_id, task) != task:
            raise ValueError(f"tasks must have task_ids of their own, got {by_id[task.task_id]} and {task}")
        if task.split not in SPLITS:
            raise ValueError(f"{task}: expected a split of {', '.join(SPLITS)}")
    return list(tasks) * (num_envs // len(tasks))


def _steps_of(output: Any, env: int) -> Steps:
    """The steps of an environment, without the padding."""
    steps = Steps(*(getattr(output, name)[env, : output.num_steps[env]] for name in STEPWISE))
    steps.final_observations = output.final_observations[env, : int(steps.ends.sum()) + (not steps.ends[-1])]
    return steps


def _family_section(tasks: Sequence[Task], metadata: HistoryMetadata) -> dict[str, Any] | None:
    """The section `family` of a recipe with these tasks, unless it would number or split them otherwise."""
    kwargs = {task.task_id: task.kwargs for task in tasks}
    if set(kwargs) != set(range(len(kwargs))) or any(task.split != "train" for task in tasks):
        return None
    further = {name: value for name in ("wrappers", "attributes") if (value := getattr(metadata, name))}
    in_order = [kwargs[task_id] for task_id in range(len(kwargs))]
    return {"env_id": metadata.env_id, "env_kwargs": metadata.env_kwargs, **further, "tasks": in_order}


def load_prompts(
    dataset: str | Path | HistoryDataset,
    tasks: Sequence[Task | int],
    num_steps: int,
    level: float | Sequence[float] | np.ndarray | None = None,
    split: str = "test",
    config_name: str | None = None,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    r"""
    Parts of learning histories to pre-fill contexts with: partial demonstrations (paper, section on prompting).

    The prompt of a task is a run of consecutive whole episodes of one of its histories, as many as there are and fit
    into `num_steps` steps. An episode that alone is longer is a run of its own and gives its last `num_steps` steps.

    Args:
        dataset (`str` or `Path`):
            Folder of the histories, or their id on the Hub, with `@revision` if need be.
        tasks (`Sequence` of [`~ad_hf.Task`] or `int`):
            The task, or its `task_id`, of each prompt: one for each environment of a rollout; tasks may be repeated.
        num_steps (`int`):
            Steps of a prompt at most, such as the model's `context_length`.
        level (`float` or `np.ndarray` of shape `(num_prompts,)`, *optional*):
            Mean return per episode that a prompt should have: of all runs of its history, it is the one that comes
            closest, the first such. By default it is the last one: the source's final behaviour.
        split (`str`, *optional*, defaults to `"test"`):
            Split of the tasks.
        config_name (`str`, *optional*):
            Configuration of the histories; may be left out if there is only one, or one called `default`.
        seed (`int`, *optional*, defaults to 0):
            It and the prompt's number draw the history of each prompt; no history of a task comes again before all
            others have come.

    Returns:
        `list[dict[str, np.ndarray]]`: for each prompt of t steps `observations` and `actions` of shape `(t, ...)`, in
        the dtypes of their spaces, `rewards`, `terminations` and `truncations` of shape `(t,)`.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: for a `num_steps` below 1, a `level` of another shape, an unknown split or configuration, a task
            that the split has no histories of, and a history that is malformed or has no finished episode.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    levels = None if level is None else np.asarray(level, dtype=np.float64)
    if levels is not None and (levels.shape not in ((), (len(tasks),)) or not np.isfinite(levels).all()):
        raise ValueError(f"level must be a finite number, or one for each of the {len(tasks)} tasks, got {level!r}")
    reader = _HistoryReader(HistoryDataset.open(dataset, config_name), split)
    histories = _draw([_task_id(task, reader.dataset) for task in tasks], reader, seed)
    each = [None] * len(tasks) if levels is None else np.broadcast_to(levels, len(tasks))
    return [reader.prompt(rows, num_steps, level) for rows, level in zip(histories, each)]


def _task_id(task: Task | int, dataset: HistoryDataset) -> int:
    """The number of a task, which must equal the dataset's own task of that number."""
    if not isinstance(task, Task):
        return int(task)
    entry = json.loads(json.dumps(asdict(task)))  # lists for tuples
    own = {own["task_id"]: own for own in dataset.metadata.tasks}.get(task.task_id, entry)
    if own != entry:
        raise ValueError(
            f"{dataset}: its task {task.task_id} is {own}, and not {entry}: give tasks of the family that it is of, "
            "or their numbers alone"
        )
    return task.task_id


def _draw(task_ids: Sequence[int], reader: _HistoryReader, seed: int) -> list[np.ndarray]:
    """The rows of the history of each prompt."""
    unused: dict[int, list[np.ndarray]] = {}
    histories = []
    for index, task_id in enumerate(task_ids):
        candidates = unused.get(task_id) or reader.histories(task_id)
        unused[task_id] = candidates
        histories.append(candidates.pop(np.random.default_rng([seed, index]).integers(len(candidates))))
    return histories


class _HistoryReader:
    """Reads single histories of a split."""

    def __init__(self, dataset: HistoryDataset, split: str) -> None:
        self.dataset, self._name = dataset, f"{dataset}, split {split}"
        data = dataset.load(split).with_format("arrow")
        table = data.select_columns(["history_id", "task_id", "start_step"])[:]
        self._steps = data.select_columns(list(STEPWISE))
        numbers = np.asarray(table["history_id"].combine_chunks().dictionary_encode().indices)
        order = np.lexsort((np.asarray(table["start_step"]), numbers))
        self._histories = np.split(order, np.cumsum(np.bincount(numbers))[:-1])
        self._owners = np.asarray(table["task_id"])[[rows[0] for rows in self._histories]]

    def histories(self, task_id: int) -> list[np.ndarray]:
        """The numbers of the rows of each history of a task, in the order of their steps."""
        histories = [self._histories[index] for index in np.flatnonzero(self._owners == task_id)]
        if not histories:
            raise ValueError(
                f"{self._name}: there are no histories of task {task_id}; there are some of the tasks "
                f"{', '.join(map(str, np.unique(self._owners)))}: take one of them, or another split"
            )
        return histories

    def prompt(self, rows: np.ndarray, num_steps: int, level: float | None) -> dict[str, np.ndarray]:
        """The steps of that run of episodes of a history that comes closest to a level, or of the last."""
        table, (observation_space, action_space) = self._steps[rows.tolist()], self.dataset.metadata.spaces
        steps = Steps.of_table(table)
        borders = np.append(0, np.flatnonzero(steps.ends) + 1)
        if len(borders) == 1:
            raise ValueError(f"{self._name}: row {rows[0]} begins a history without a finished episode")
        firsts, stops = _longest_runs(borders, num_steps)
        run = -1
        if level is not None:
            totals = np.append(0.0, np.cumsum(steps.rewards))[borders]
            run = int(np.argmin(np.abs((totals[stops] - totals[firsts]) / (stops - firsts) - level)))
        stop = int(borders[stops[run]])
        part = slice(max(int(borders[firsts[run]]), stop - num_steps), stop)
        prompt = {name: getattr(steps, name)[part].copy() for name in STEPWISE}
        if has_frames(observation_space):
            names = [f"{self._name}: row {row}" for row in rows]
            frames = FramePieces(table["observations"], row_lengths(table), observation_space.shape or (), names)
            prompt["observations"] = frames.take(prompt["observations"])
        dtypes = {"observations": observation_space.dtype, "actions": action_space.dtype}
        return {name: values.astype(dtypes.get(name, values.dtype), copy=False) for name, values in prompt.items()}


def _longest_runs(borders: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The first episode of each run of whole ones, and the one after its last, (num_runs,) each.

    Episodes lie between `borders`; a run has as many as fit into so many steps, at least one.
    """
    firsts = np.arange(len(borders) - 1)
    stops = np.searchsorted(borders, borders[:-1] + num_steps, side="right") - 1
    stops = np.maximum(stops, firsts + 1)
    longest = np.diff(stops, prepend=0) > 0  # else it is the end of the run before it
    return firsts[longest], stops[longest]
