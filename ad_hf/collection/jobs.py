"""Jobs: a source learns a task, or several side by side, and their histories go into a file."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from gymnasium.vector import VectorEnv
from pyarrow import feather
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from ad_hf.collection.failures import TaskFailure
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.spaces import space_from_json, space_to_json
from ad_hf.envs.task_family import Task, TaskFamily, UnknownEnvironmentError
from ad_hf.histories.schema import history_features
from ad_hf.histories.writer import history_table
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.convergence import StopWhenConverged
from ad_hf.sources.learners import check_hyperparameters, find_algorithm, import_source, make_callbacks, make_learner
from ad_hf.sources.recorder import HistoryRecorder, RecordedSteps
from ad_hf.sources.vector_learner import RecordedLearner
from ad_hf.storage.folders import Folder

PROGRESS_KEY = b"ad_hf_progress"  # in the schema of a file of histories, how far its sources got
TRACEBACK_LINES = 6

Spaces = tuple[dict[str, Any], dict[str, Any]]  # observation and action space of one environment, as JSON
OnStep = Callable[[int], Any]  # called with the number of transitions that a step added


@dataclass(frozen=True)
class Job:
    """
    One learner: a task, or several side by side, and a seed.

    A job of several tasks can be run for some of them, `tasks[start:stop]`. The others' environments then are of the
    first of these, and their histories are dropped: so each task has the random numbers, and where streams are
    independent the histories, that it has in the whole job.
    """

    tasks: tuple[Task, ...]
    seed: int
    start: int = 0
    stop: int | None = None

    @cached_property
    def own_tasks(self) -> tuple[Task, ...]:
        """The tasks whose histories are written."""
        return self.tasks[self.start : self.stop]

    @property
    def file_name(self) -> str:
        """File of the job's histories until its shard is written: its first task, the seed, how many tasks."""
        count = len(self.own_tasks)
        return f"part-{self.own_tasks[0].task_id:06d}-{self.seed}{f'-{count}' if count > 1 else ''}.arrow"

    @property
    def learner_seed(self) -> int:
        """Seed of the learner: a number of its own for each (first) task and seed."""
        return int(np.random.SeedSequence([self.seed, self.tasks[0].task_id]).generate_state(1)[0] >> 1)

    def places(self) -> list[Task]:
        """The task of each place: its own, or the first of the job's own tasks."""
        last = self.start + len(self.own_tasks)
        return [task if self.start <= place < last else self.own_tasks[0] for place, task in enumerate(self.tasks)]

    def halves(self) -> list[Job]:
        """The same job for the first half of its tasks, and for the second."""
        last = self.start + len(self.own_tasks)
        middle = (self.start + last) // 2
        return [replace(self, stop=middle), replace(self, start=middle, stop=last)]

    def failure(self, error: str, traceback: str = "") -> TaskFailure:
        """The failure of the job, which is that of its only task."""
        task = self.own_tasks[0]
        return TaskFailure(task.task_id, task.kwargs, self.seed, error, traceback)


class Outcome(NamedTuple):
    """A job that has ended, the transitions of its own tasks until then, and its failure, if it failed."""

    job: Job
    transitions: int
    failure: TaskFailure | None = None


def make_learner_of(
    family: TaskFamily, source: SourceConfig, recorder: HistoryRecorder, task_ids: list[int], seed: int
) -> BaseAlgorithm | RecordedLearner:
    """A learner on recorded environments of tasks, with the entries of infos that the family shows to the source."""
    extra, algorithm = family.source_observation, find_algorithm(source.algorithm)
    envs = SourceObservation(recorder, extra) if extra else recorder
    if issubclass(algorithm, BaseAlgorithm):
        return make_learner(source.algorithm, SB3VecEnv(envs, task_ids), seed, source.hyperparameters)
    return RecordedLearner(algorithm, envs, seed, check_hyperparameters(source.algorithm, source.hyperparameters))


def _check_spaces(envs: VectorEnv, expected: Spaces) -> None:
    """Refuse environments whose spaces are not those of the family."""
    for name, wanted in zip(("observation", "action"), expected):
        space = getattr(envs, f"single_{name}_space")
        if json.loads(json.dumps(space_to_json(space))) != wanted:
            raise ValueError(f"its {name} space is {space}, expected the family's, {wanted}")


def learn_job(
    family: TaskFamily,
    source: SourceConfig,
    job: Job,
    spaces: Spaces | None = None,
    on_step: OnStep = lambda transitions: None,
) -> list[tuple[Task, RecordedSteps, bool | None]]:
    """
    Let a source learn one task, or several side by side.

    Args:
        family ([`TaskFamily`]), source ([`SourceConfig`]), job ([`Job`]):
            What to learn, how, and with which seed; every job has random numbers of its own, whatever runs beside it.
        spaces (`tuple[dict, dict]`, *optional*):
            Observation and action space, as JSON, that the environments must have.
        on_step (`Callable[[int], None]`, *optional*):
            Called at each step with the number of transitions it added to the job's own tasks.

    Returns:
        The job's own tasks with their histories, until they had converged, and whether they have (`None` without
        `until_converged`).

    Raises:
        Exception: whatever an environment, the recorder or the algorithm raises.
    """
    tasks, own, settings = len(job.tasks), len(job.own_tasks), source.convergence()
    convergence = None if settings is None else StopWhenConverged(settings, tasks)
    callbacks: list[BaseCallback] = [] if convergence is None else [convergence]
    callbacks += make_callbacks(source.callbacks, task_id=job.own_tasks[0].task_id, seed=job.seed)
    envs = family.make_vec(job.places(), num_envs=tasks * source.n_envs)
    try:
        if spaces is not None:
            _check_spaces(envs, spaces)
        steps_per_env = -(-source.total_timesteps // source.n_envs)
        recorder = HistoryRecorder(envs, steps_per_env, lambda transitions: on_step(transitions * own // tasks))
        task_ids = [task.task_id for task in job.places()] * source.n_envs
        learner = make_learner_of(family, source, recorder, task_ids, job.learner_seed)
        if isinstance(learner, RecordedLearner):
            learner.learn(source.total_timesteps, convergence)
        else:
            learner.learn(tasks * source.total_timesteps, callback=callbacks or None)
    finally:
        with suppress(Exception):  # the first error counts, not that of closing
            envs.close()
    recorded, results = recorder.recorded(), []
    if not recorded.rewards.size:
        raise ValueError(f"{source.algorithm} made no step: its learn returned without one")
    for place, task in enumerate(job.own_tasks, start=job.start):
        steps = recorded[place::tasks]  # stream i is of task i modulo their number
        until = None if convergence is None else convergence.converged_at[place]
        steps = steps if until is None else steps.until(until)
        if not steps.ends.any():
            raise ValueError(
                f"no episode ended in the {steps.rewards.shape[1]} steps of each environment: give it a time limit, "
                "such as max_episode_steps in env_kwargs, or the source more total_timesteps"
            )
        results.append((task, steps, None if convergence is None else until is not None))
    return results


def progress_row(task_id: int, seed: int, steps: RecordedSteps, converged: bool | None) -> list[Any]:
    """A row of [`~ad_hf.histories.schema.PROGRESS_COLUMNS`]."""
    first, last, episodes = [], [], 0
    for rewards, ended in zip(steps.rewards, steps.ends):
        if ended.any():
            returns = np.diff(np.cumsum(rewards)[ended], prepend=0.0)
            tenth = -(-len(returns) // 10)
            first.append(returns[:tenth].mean())
            last.append(returns[-tenth:].mean())
            episodes += len(returns)
    means = [float(f"{np.mean(values):.6g}") for values in (first, last)]
    return [task_id, seed, steps.rewards.size, episodes, *means, converged]


def run_job(
    family: TaskFamily,
    source: SourceConfig,
    spaces: Spaces,
    max_piece_steps: int,
    folder: Folder,
    job: Job,
    on_step: OnStep,
) -> Outcome:
    """Learn a job's tasks and write their histories into a folder; an error in learning is an outcome, too."""
    transitions = 0

    def count(added: int) -> None:
        nonlocal transitions
        transitions += added
        on_step(added)

    try:
        import_source(source)  # which the main process has done
    except ValueError as error:
        raise ValueError(
            f"worker processes cannot import what the source names ({error}): put it into a module, or collect with "
            "num_workers=0"
        ) from error
    try:
        results = learn_job(family, source, job, spaces, count)
    except UnknownEnvironmentError as error:
        raise ValueError(
            f"worker processes do not know the environment {family.env_id}, which a notebook or the main script "
            "registers: put it into a module and write family.env_id as my_module:ID, or collect with num_workers=0"
        ) from error
    except KeyboardInterrupt:  # in a process that is no worker
        raise
    except BaseException as error:  # SystemExit, too: environments call whatever they like
        return Outcome(job, transitions, _failure(job, error))
    features = history_features(*map(space_from_json, spaces))
    table = pa.concat_tables(
        history_table(steps, features, task.task_id, job.seed, max_piece_steps) for task, steps, _ in results
    )
    rows = [progress_row(task.task_id, job.seed, steps, converged) for task, steps, converged in results]
    progress = json.dumps(rows).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), PROGRESS_KEY: progress})
    with folder.writing(job.file_name) as temporary:
        feather.write_feather(table, temporary, compression="uncompressed")
    return Outcome(job, transitions)


def _failure(job: Job, error: BaseException) -> TaskFailure:
    cause = error
    while cause.__cause__ is not None:  # what went wrong first, in the environment's own code
        cause = cause.__cause__
    lines = "".join(traceback.format_exception(cause)).rstrip().splitlines()
    module = "" if type(error).__module__ == "builtins" else f"{type(error).__module__}."
    message = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split())
    return job.failure(f"{module}{type(error).__qualname__}: {message}", "\n".join(lines[-TRACEBACK_LINES:]))
