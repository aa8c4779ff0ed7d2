"""Jobs: a source learns a task, or several side by side, and their histories go into a file."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

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
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.histories.schema import history_features
from ad_hf.histories.writer import history_table
from ad_hf.sources.convergence import StopWhenConverged
from ad_hf.sources.learners import has_independent_streams, make_callbacks, make_learner
from ad_hf.sources.recorder import HistoryRecorder, RecordedSteps
from ad_hf.storage.folders import Folder

PROGRESS_KEY = b"ad_hf_progress"  # in the schema of a file of histories, how far its sources got
TRACEBACK_LINES = 6

Spaces = tuple[dict[str, Any], dict[str, Any]]  # observation and action space of one environment, as JSON


@dataclass(frozen=True)
class Source:
    """
    How one task is learnt.

    Attributes:
        algorithm (`str`):
            Name of a Stable-Baselines3 or sb3-contrib algorithm.
        n_envs (`int`):
            Parallel environments, that is, histories per task and seed.
        total_timesteps (`int`):
            Transitions to learn from, over all environments; the algorithm may round up to its own batch of steps.
        hyperparameters (`dict`):
            Arguments of the algorithm.
        tasks_per_job (`int`, *optional*, defaults to 1):
            Tasks that one learner learns side by side, of those algorithms that can.
        until_converged (`dict`, *optional*):
            Settings of [`~ad_hf.sources.convergence.StopWhenConverged`]; without, all timesteps are learnt from.
        callbacks (`list[dict]`, *optional*):
            `name` and `kwargs` of further callbacks.
    """

    algorithm: str
    n_envs: int
    total_timesteps: int
    hyperparameters: dict[str, Any]
    tasks_per_job: int = 1
    until_converged: dict[str, Any] | None = None
    callbacks: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `metadata.json` says of it; what is not used is left out."""
        unused = [name for name in ("until_converged", "callbacks") if not getattr(self, name)]
        settings = {name: value for name, value in asdict(self).items() if name not in unused}
        return {**settings, "independent_streams": has_independent_streams(self.algorithm, self.hyperparameters)}


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
        """The tasks whose histories are kept."""
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
        """The task of each place: its own, or the first of those that are kept."""
        last = self.start + len(self.own_tasks)
        return [task if self.start <= place < last else self.own_tasks[0] for place, task in enumerate(self.tasks)]

    def halves(self) -> list[Job]:
        """The same job for the first half of its tasks, and for the second."""
        last = self.start + len(self.own_tasks)
        middle = (self.start + last) // 2
        return [replace(self, stop=middle), replace(self, start=middle, stop=last)]


@dataclass
class Learnt:
    """
    What came of a task.

    Attributes:
        task ([`Task`]):
            The task.
        steps ([`~ad_hf.sources.recorder.RecordedSteps`]):
            Its histories; where sources learn until they have converged, until then.
        converged (`bool`, *optional*):
            Whether it has; `None` if nobody asked.
    """

    task: Task
    steps: RecordedSteps
    converged: bool | None

    def progress(self, seed: int) -> list[Any]:
        """A row of [`~ad_hf.histories.schema.PROGRESS_COLUMNS`]."""
        first, last, episodes = [], [], 0
        for rewards, terminations, truncations in zip(
            self.steps.rewards, self.steps.terminations, self.steps.truncations
        ):
            ends = np.flatnonzero(terminations | truncations)
            if ends.size:
                returns = np.diff(np.cumsum(rewards)[ends], prepend=0.0)
                tenth = -(-len(returns) // 10)
                first.append(returns[:tenth].mean())
                last.append(returns[-tenth:].mean())
                episodes += len(returns)
        means = [float(f"{np.mean(values):.6g}") for values in (first, last)]
        return [self.task.task_id, seed, self.steps.rewards.size, episodes, *means, self.converged]


def _check_spaces(envs: VectorEnv, expected: Spaces) -> None:
    """Refuse environments whose spaces are not those of the family."""
    own = {"observation": envs.single_observation_space, "action": envs.single_action_space}
    for (name, space), wanted in zip(own.items(), expected):
        if json.loads(json.dumps(space_to_json(space))) != wanted:
            raise ValueError(f"its {name} space is {space}, expected the family's, {wanted}")


def make_learner_of(
    family: TaskFamily,
    algorithm: str,
    recorder: HistoryRecorder,
    task_ids: list[int],
    seed: int | None,
    hyperparameters: dict[str, Any],
) -> BaseAlgorithm:
    """A learner on recorded environments of tasks, with what of the family's infos the source sees."""
    seen = SourceObservation(recorder, family.source_observation) if family.source_observation else recorder
    return make_learner(algorithm, SB3VecEnv(seen, task_ids), seed, hyperparameters)


def learn_job(
    family: TaskFamily,
    source: Source,
    job: Job,
    spaces: Spaces | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[Learnt]:
    """
    Let a source learn one task, or several side by side.

    Args:
        family ([`TaskFamily`]), source ([`Source`]), job ([`Job`]):
            What to learn, how, and with which seed; every job has random numbers of its own, whatever runs beside it.
        spaces (`tuple[dict, dict]`, *optional*):
            Observation and action space, as JSON, that the environments must have.
        on_step (`Callable[[int], None]`, *optional*):
            Called at each step with the number of transitions it added to the job's own tasks.

    Returns:
        `list[Learnt]`: the job's own tasks; stream i of the learner is of task i modulo their number.

    Raises:
        ValueError: for environments of other spaces, what [`HistoryRecorder`] refuses, and tasks in which no episode
            ends.
        Exception: whatever an environment or the algorithm raises.
    """
    tasks, own = len(job.tasks), len(job.own_tasks)
    counted = None if on_step is None else lambda transitions: on_step(transitions * own // tasks)
    convergence = None
    callbacks: list[BaseCallback] = []
    if source.until_converged is not None:
        convergence = StopWhenConverged(**source.until_converged, num_tasks=tasks)
        callbacks.append(convergence)
    callbacks += make_callbacks(source.callbacks, task_id=job.own_tasks[0].task_id, seed=job.seed)
    envs = family.make_vec(job.places(), num_envs=tasks * source.n_envs)
    try:
        if spaces is not None:
            _check_spaces(envs, spaces)
        recorder = HistoryRecorder(envs, -(-source.total_timesteps // source.n_envs), counted)
        task_ids = [task.task_id for task in job.places()] * source.n_envs
        learner = make_learner_of(
            family, source.algorithm, recorder, task_ids, job.learner_seed, source.hyperparameters
        )
        learner.learn(tasks * source.total_timesteps, callback=callbacks or None)
    finally:
        with suppress(Exception):  # of an environment that cannot even be closed, what went wrong first is said
            envs.close()
    recorded = recorder.recorded()
    learnt = []
    for place, task in enumerate(job.own_tasks, start=job.start):
        steps = recorded.streams(slice(place, None, tasks))
        until = None if convergence is None else convergence.converged_at[place]
        steps = steps if until is None else steps.until(until)
        if not (steps.terminations.any() or steps.truncations.any()):
            raise ValueError(
                f"no episode ended in the {steps.rewards.shape[1]} steps of each environment: give it a time limit, "
                "such as max_episode_steps in env_kwargs, or the source more total_timesteps"
            )
        learnt.append(Learnt(task, steps, None if convergence is None else until is not None))
    return learnt


@dataclass(frozen=True)
class Outcome:
    """
    What came of a job.

    Attributes:
        job ([`Job`]):
            The job; with an error, of a single task.
        transitions (`int`):
            Those that its own tasks lived through, as far as it is known.
        error (`str`), traceback (`str`):
            What went wrong, and the last lines of the traceback; empty if all is well.
    """

    job: Job
    transitions: int
    error: str = ""
    traceback: str = ""

    def failure(self) -> TaskFailure:
        """Its task, which could not be learnt."""
        task = self.job.own_tasks[0]
        return TaskFailure(task.task_id, task.kwargs, self.job.seed, self.error, self.traceback)


def run_job(
    family: TaskFamily,
    source: Source,
    spaces: Spaces,
    max_piece_steps: int,
    folder: Folder,
    job: Job,
    on_step: Callable[[int], None],
) -> Outcome:
    """Learn a job's tasks and write their histories into a folder; what goes wrong in learning is an outcome, too."""
    transitions = 0

    def count(added: int) -> None:
        nonlocal transitions
        transitions += added
        on_step(added)

    try:
        learnt = learn_job(family, source, job, spaces, count)
    except BaseException as error:  # SystemExit, too: environments call whatever they like
        error_type = type(error)
        module = "" if error_type.__module__ == "builtins" else f"{error_type.__module__}."
        cause = error
        while cause.__cause__ is not None:  # what went wrong first, in the environment's own code
            cause = cause.__cause__
        lines = "".join(traceback.format_exception(cause)).rstrip().splitlines()
        message = " ".join([str(error), *getattr(error, "__notes__", [])])
        text = f"{module}{error_type.__qualname__}: {' '.join(message.split())}"
        return Outcome(job, transitions, text, "\n".join(lines[-TRACEBACK_LINES:]))
    features = history_features(*map(space_from_json, spaces))
    table = pa.concat_tables(
        history_table(each.steps, features, each.task.task_id, job.seed, max_piece_steps) for each in learnt
    )
    progress = json.dumps([each.progress(job.seed) for each in learnt]).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), PROGRESS_KEY: progress})
    with folder.writing(job.file_name) as temporary:
        feather.write_feather(table, temporary, compression="uncompressed")
    return Outcome(job, transitions)
