"""Collection: a source learns every task of a family, and its learning histories become a dataset."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.files import write_text
from ad_hf.histories.schema import HistoryMetadata, default_piece_steps, read_metadata
from ad_hf.histories.writer import SHARD_TRANSITIONS
from ad_hf.hub.cards import write_dataset_card
from ad_hf.sources.convergence import convergence_settings
from ad_hf.sources.failures import CollectionError, TaskFailure
from ad_hf.sources.jobs import Source, make_jobs, run_job
from ad_hf.sources.learners import callback_settings, check_hyperparameters, learns_side_by_side
from ad_hf.sources.work_folder import WorkFolder
from ad_hf.sources.workers import available_cores, run_jobs

HIDDEN_FOLDER = ".incomplete"
SETTINGS_FILE = "collection.json"
FOUND_LATER = ("versions", "statistics", "fingerprint", "failures", "progress")  # of metadata, not what was asked for


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix two collections in one folder, naming what differs."""
    path = folder / SETTINGS_FILE
    if path.is_file():
        before = json.loads(path.read_text())
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{folder} holds a collection with {name} = {before.get(name)!r}, now it is "
                    f"{settings.get(name)!r}: give another output_dir, or delete {folder} to start again"
                )
    else:
        write_text(path, json.dumps(settings, indent=2) + "\n")


def _is_finished(output_dir: Path, config_name: str, metadata: HistoryMetadata) -> bool:
    """Whether all of these histories are there; refuses to write over others."""
    folder = output_dir / config_name
    if not folder.exists():
        return False
    try:
        read = read_metadata(output_dir, config_name)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} exists and holds no learning histories: give another output_dir") from error
    found, wanted = asdict(read), asdict(metadata)
    for name in sorted(set(wanted) - set(FOUND_LATER)):
        if found[name] != wanted[name]:
            raise ValueError(
                f"{folder} already holds histories with {name} = {found[name]!r}, now it is {wanted[name]!r}: give "
                "another output_dir or config_name, or delete the folder to collect again"
            )
    hidden = output_dir / HIDDEN_FOLDER / config_name
    if read.failures and not (hidden / SETTINGS_FILE).is_file():
        raise ValueError(
            f"{folder} lacks {len(read.failures)} tasks that failed, and {hidden}, from which the collection could go "
            "on, is gone: give another output_dir, or delete the folder to collect again"
        )
    return not read.failures


def _describe(family: TaskFamily, tasks: Sequence[Task], source: Source, seeds: Sequence[int]) -> HistoryMetadata:
    observation_space, action_space = _spaces(family, tasks)
    described = HistoryMetadata(
        **family.env_settings,
        tasks=[asdict(task) for task in tasks],
        observation_space=observation_space,
        action_space=action_space,
        source=source.to_json(),
        seeds=list(seeds),
    )
    try:
        return HistoryMetadata.from_json(described.to_json())  # as it will be read: lists for tuples
    except TypeError as error:
        raise ValueError(
            "tasks, env_kwargs, hyperparameters and callbacks are stored as JSON, which these are not "
            f"({error}): use numbers, text, lists and dicts"
        ) from error


def _spaces(family: TaskFamily, tasks: Sequence[Task]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Observation and action space as JSON of the first task whose environment can be made."""
    first_error: Exception | None = None
    for task in tasks:
        try:
            envs = family.make_vec([task])
        except Exception as error:  # which is named when the task is to be learnt
            first_error = first_error or error
        else:
            spaces = space_to_json(envs.single_observation_space), space_to_json(envs.single_action_space)
            envs.close()
            return spaces
    assert first_error is not None
    raise first_error


def _finish(output_dir: Path, work: Path) -> None:
    write_dataset_card(output_dir)
    shutil.rmtree(work)
    if not any(work.parent.iterdir()):  # else another configuration is being collected
        work.parent.rmdir()


def _check_arguments(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def collect(
    family: TaskFamily,
    algorithm: str = "A2C",
    n_envs: int = 50,
    total_timesteps: int = 100_000,
    hyperparameters: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    split: str | None = None,
    output_dir: str | Path = "histories",
    config_name: str = "default",
    num_workers: int | None = None,
    shard_transitions: int = SHARD_TRANSITIONS,
    max_piece_steps: int | None = None,
    tasks_per_job: int = 1,
    until_converged: dict[str, Any] | None = None,
    callbacks: Sequence[str | dict[str, Any]] = (),
) -> Path:
    r"""
    Learn every task of a family with a Stable-Baselines3 algorithm and write the learning histories as a dataset that
    `datasets.load_dataset(output_dir)` reads.

    Jobs (a task and a seed) run on worker processes, started by `spawn`: call this under
    `if __name__ == "__main__":` in a script. Finished jobs are kept, so an interrupted collection goes on where it was
    when it is called again with the same arguments, and ends with the same files, byte for byte.

    A task whose environment raises an error, has other spaces than the family, gives observations outside of them or
    numbers that are not finite, never ends an episode, or ends its process, does not keep the others from being
    learnt: the dataset is written without it, `failures` in `metadata.json` says why, and [`CollectionError`] is
    raised at the end. The same call then tries only what failed, from what is kept in `output_dir/.incomplete`.

    Args:
        family ([`TaskFamily`]):
            The tasks.
        algorithm (`str`, *optional*, defaults to `"A2C"`):
            Any algorithm of Stable-Baselines3 or sb3-contrib.
        n_envs (`int`, *optional*, defaults to 50):
            Parallel environments of a learner; each gives one history.
        total_timesteps (`int`, *optional*, defaults to 100000):
            Transitions per learner, over its environments.
        hyperparameters (`dict`, *optional*):
            Arguments of the algorithm.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`):
            Each task is learnt once with each of them.
        split (`str`, *optional*):
            Only the tasks of one split; by default all, each split in files of its own.
        output_dir (`str` or `Path`, *optional*, defaults to `"histories"`):
            Folder of the dataset.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration of the dataset to write.
        num_workers (`int`, *optional*):
            Worker processes, by default one per core.
        shard_transitions (`int`, *optional*, defaults to 1000000):
            Transitions per file; a job is never split over two.
        max_piece_steps (`int`, *optional*):
            Longer histories are cut into several rows, at episode borders; by default at 10,000 steps, and at 100
            where observations are frames, of which a row is decoded at a time.
        tasks_per_job (`int`, *optional*, defaults to 1):
            Tasks that one learner learns side by side. Only our own learners can: NoisedPolicy, TabularQ, UCB and
            ThompsonSampling. Random numbers depend on a task's place among them. If one of them
            fails, the others are learnt without it, in their places: their histories stay the same.
        until_converged (`dict`, *optional*):
            Learn until the returns have stopped to improve, from `total_timesteps` at most: settings of
            [`~ad_hf.sources.convergence.StopWhenConverged`], `{}` for its defaults. `progress` in `metadata.json` says
            how far each source got, with or without.
        callbacks (`Sequence[str | dict]`, *optional*):
            Stable-Baselines3 callbacks of each learner, by import path: `"package.Callback"`, or
            `{"name": "package.Callback", "kwargs": {"save_path": "saved/{task_id}-{seed}"}}`, whose texts may name the
            (first) task and the seed of the learner in braces.

    Returns:
        `Path`: the folder of the dataset.

    Raises:
        CollectionError: after all others were learnt, if tasks failed; if a split has lost all of its tasks, no
            dataset is written.
        ValueError: for an unknown algorithm, hyper-parameter, callback or split, for numbers below 1, and if the
            folder holds other histories.
    """
    check_hyperparameters(algorithm, hyperparameters or {})
    num_workers = available_cores() if num_workers is None else num_workers
    _check_arguments(
        n_envs=n_envs,
        total_timesteps=total_timesteps,
        num_workers=num_workers,
        shard_transitions=shard_transitions,
        max_piece_steps=1 if max_piece_steps is None else max_piece_steps,
        tasks_per_job=tasks_per_job,
        number_of_seeds=len(seeds),
    )
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must differ from one another, got {list(seeds)}")
    if tasks_per_job > 1 and not learns_side_by_side(algorithm):
        raise ValueError(f"{algorithm} learns one task at a time: set tasks_per_job to 1, got {tasks_per_job}")
    source = Source(
        algorithm,
        n_envs,
        total_timesteps,
        hyperparameters or {},
        tasks_per_job,
        None if until_converged is None else convergence_settings(until_converged),
        callback_settings(callbacks),
    )
    tasks = family.tasks(split)
    metadata = _describe(family, tasks, source, seeds)
    output_dir = Path(output_dir)
    folder = output_dir / HIDDEN_FOLDER / config_name
    if _is_finished(output_dir, config_name, metadata):
        if folder.exists():  # interrupted in its last moment
            _finish(output_dir, folder)
        return output_dir
    max_piece_steps = max_piece_steps or default_piece_steps(metadata.spaces[0])
    settings = {name: value for name, value in asdict(metadata).items() if name not in ("failures", "progress")}
    layout = {"shard_transitions": shard_transitions, "max_piece_steps": max_piece_steps}
    _check_settings(folder, {**settings, **layout})
    for leftover in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    jobs = make_jobs(tasks, seeds, tasks_per_job)
    work = WorkFolder(folder, jobs, max(1, shard_transitions // (total_timesteps * tasks_per_job)))
    failures = _learn(family, source, work, metadata, max_piece_steps, num_workers)
    failed = {(failure.task_id, failure.seed) for failure in failures}
    for split in {task.split for task in tasks}:
        if all((task.task_id, seed) in failed for task in tasks if task.split == split for seed in seeds):
            reason = f"no dataset is written to {output_dir}: all tasks of the split {split!r} failed"
            raise CollectionError(failures, None, f"{reason}, {len(failures)} in all")
    metadata.failures = [failure.to_json() for failure in failures]
    work.publish(metadata, output_dir / config_name)
    if failures:
        write_dataset_card(output_dir)
        reason = f"{len(failures)} of {len(tasks) * len(seeds)} tasks and seeds failed; {output_dir} holds the others"
        raise CollectionError(failures, output_dir, f"{reason}, and the same call tries again those that failed")
    _finish(output_dir, folder)
    return output_dir


def _learn(
    family: TaskFamily,
    source: Source,
    work: WorkFolder,
    metadata: HistoryMetadata,
    max_piece_steps: int,
    num_workers: int,
) -> list[TaskFailure]:
    """Do what is left to do; returns what failed."""
    jobs = [job for group in work.shards.values() for job in group]
    tasks, left = (sum(len(job.own_tasks) for job in some) for some in (jobs, work.left))
    failures = []
    total = source.total_timesteps * tasks
    with tqdm(
        desc=f"collect {source.algorithm}",
        total=total,
        initial=source.total_timesteps * (tasks - left),
        unit=" transitions",
        unit_scale=True,
    ) as bar:
        for shard in list(work.parts):
            work.write_shard_if_complete(shard)
        spaces = metadata.observation_space, metadata.action_space
        run = partial(run_job, family, source, spaces, max_piece_steps, work.folder)
        for outcome in run_jobs(run, work.left, num_workers, bar.update):
            # Learners stop early, fail, or round up to their batch of steps.
            total += outcome.transitions - source.total_timesteps * len(outcome.job.own_tasks)
            bar.total = max(total, bar.n)
            bar.refresh()
            if outcome.error:
                failures.append(outcome.failure())
                tqdm.write(str(failures[-1]), file=sys.stderr)
            else:
                work.add(outcome.job)
    return sorted(failures, key=lambda failure: (failure.task_id, failure.seed))
