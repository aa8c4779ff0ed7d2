"""Collection: a source learns every task of a family, and its learning histories become a dataset."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from gymnasium import spaces
from tqdm.auto import tqdm

from ad_hf.collection.jobs import Outcome, Source, run_job
from ad_hf.collection.layout import ShardLayout
from ad_hf.collection.publishing import check_names, is_finished, prepare_work, publish, remove_work
from ad_hf.collection.ray_executor import run_jobs_on_ray
from ad_hf.collection.rehearsal import (
    check_memory,
    check_spaces,
    check_splits,
    describe_spaces,
    first_environments,
    rehearse,
)
from ad_hf.collection.work_folder import WorkFolder
from ad_hf.collection.workers import available_cores, run_jobs
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.writer import SHARD_TRANSITIONS, piece_steps
from ad_hf.settings import plain
from ad_hf.sources.convergence import convergence_settings
from ad_hf.sources.learners import callback_settings, check_hyperparameters, learns_side_by_side
from ad_hf.storage.files import local_path
from ad_hf.storage.folders import is_url, open_folder

Execute = Callable[..., Iterator[Outcome]]  # of jobs, with what to do with each and whom to tell about progress


MOST = (1 << 63) - 1  # of whole numbers in metadata.json


def _describe(
    family: TaskFamily, tasks: Sequence[Task], source: Source, seeds: Sequence[int], both: tuple[spaces.Space, ...]
) -> HistoryMetadata:
    settings = {name: plain(value, f"family.{name}") for name, value in family.env_settings.items()}
    observation_space, action_space = describe_spaces(family, *both)
    described = HistoryMetadata(
        **settings,
        tasks=plain([asdict(task) for task in tasks], "family.tasks"),
        observation_space=observation_space,
        action_space=action_space,
        source=source.to_json(),
        seeds=list(seeds),
    )
    return HistoryMetadata.from_json(described.to_json())  # as it will be read


def _whole(name: str, number: Any, least: int = 1) -> int:
    """A whole number in its range, numpy's as Python's."""
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise ValueError(f"{name} must be a whole number, got {number!r}")
    whole = int(number)
    if not least <= whole <= MOST:
        raise ValueError(f"{name} must be {f'at least {least}' if whole < least else f'at most {MOST}'}, got {whole}")
    return whole


def _read_seeds(seeds: Any) -> list[int]:
    if isinstance(seeds, str | dict) or not hasattr(seeds, "__iter__"):
        raise ValueError(f"source.seeds must be a list of whole numbers, got {seeds!r}")
    read = [_whole("source.seeds", seed, 0) for seed in seeds]
    if not read or len(set(read)) != len(read):
        raise ValueError(f"source.seeds must be at least one, and differ from one another, got {read}")
    return read


def _read_part(part: str | tuple[int, int]) -> tuple[int, int]:
    """K and N, of which K is from 1 to N."""
    text = part if isinstance(part, str) else "/".join(map(str, part))
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"part must be K/N with a K from 1 to N, such as 1/4 for the first of four, got {text}")
    return int(match[1]), int(match[2])


def _choose_executor(executor: str, address: str | None, num_workers: int | None) -> Execute:
    """The function that runs jobs."""
    if executor == "ray":
        return partial(run_jobs_on_ray, num_workers=num_workers, address=address)
    if executor != "local":
        raise ValueError(f"executor must be local or ray, got {executor!r}")
    if address is not None:
        raise ValueError(f"address is that of a Ray cluster: set executor to ray, got address {address!r}")
    return partial(run_jobs, num_workers=available_cores() if num_workers is None else num_workers)


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
    executor: str = "local",
    address: str | None = None,
    part: str | tuple[int, int] = (1, 1),
    trust_remote_code: bool = False,
) -> Path | str:
    r"""
    Learn every task of a family with a Stable-Baselines3 algorithm and write the learning histories as a dataset that
    `datasets.load_dataset(output_dir)` reads.

    Jobs (a task and a seed) run on worker processes, started by `spawn`: call this under
    `if __name__ == "__main__":` in a script. Or they run on a Ray cluster, which leaves the same files. Finished jobs
    are kept, so an interrupted collection goes on where it was when it is called again with the same arguments, and
    ends with the same files, byte for byte.

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
            Folder of the dataset, or a URL that fsspec can write to, such as `s3://bucket/histories`.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration of the dataset to write.
        num_workers (`int`, *optional*):
            Worker processes, by default one per core; on Ray jobs at a time, by default one per core of the cluster.
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
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"` for worker processes of this machine, or `"ray"`.
        address (`str`, *optional*):
            Of the Ray cluster, as of `ray.init`; by default one that is started on this machine alone.
        part (`str` or `tuple[int, int]`, *optional*, defaults to `(1, 1)`):
            `"K/N"`, or K and N: do every N-th shard only, from the K-th on, as one of N calls on machines that share
            the folder. Who finishes last writes the dataset, which is that of a single call.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether an expert may be a file that Stable-Baselines3 has saved, which can run code when it is read.

    Returns:
        `Path`, or `str` of a URL: where the dataset is, or will be once all parts are done.

    Raises:
        CollectionError: after all others were learnt, if tasks failed; if a split has lost all of its tasks, no
            dataset is written.
        OSError: if histories cannot be written, as to a full disk; what was finished is kept.
        ValueError: naming the setting, before anything is learnt: for an unknown algorithm, hyper-parameter, callback
            or split, numbers out of their range, environments or a learner that cannot be made, spaces that no model
            can be made for, histories that do not fit into memory, and if the folder holds something else.
    """
    hyperparameters = plain(hyperparameters or {}, "source.hyperparameters")
    check_hyperparameters(algorithm, hyperparameters)
    if isinstance(hyperparameters.get("expert"), dict) and not trust_remote_code:
        raise ValueError(
            "source.hyperparameters.expert is a model that Stable-Baselines3 has saved, which is unpickled and can "
            "run code: if you trust where it is from, allow it with trust_remote_code=True (--trust_remote_code)"
        )
    part = _read_part(part)
    num_workers = None if num_workers is None else _whole("num_workers", num_workers)
    execute = _choose_executor(executor, address, num_workers)
    n_envs, total_timesteps = _whole("source.n_envs", n_envs), _whole("source.total_timesteps", total_timesteps)
    tasks_per_job = _whole("source.tasks_per_job", tasks_per_job)
    shard_transitions = _whole("shard_transitions", shard_transitions)
    max_piece_steps = None if max_piece_steps is None else _whole("max_piece_steps", max_piece_steps)
    seeds = _read_seeds(seeds)
    if tasks_per_job > 1 and not learns_side_by_side(algorithm):
        raise ValueError(f"{algorithm} learns one task at a time: set tasks_per_job to 1, got {tasks_per_job}")
    source = Source(
        algorithm,
        n_envs,
        total_timesteps,
        hyperparameters,
        tasks_per_job,
        None if until_converged is None else convergence_settings(until_converged),
        callback_settings(plain(callbacks, "source.callbacks")),
    )
    output, location = open_folder(output_dir), str(output_dir) if is_url(output_dir) else local_path(output_dir)
    check_names(output, config_name)
    tasks = family.tasks(split)
    if not tasks:
        raise ValueError(f"split {split!r} of the family has no tasks to collect")
    first_task, envs = first_environments(family, tasks)
    with closing(envs):
        both = envs.single_observation_space, envs.single_action_space
    metadata = _describe(family, tasks, source, seeds, both)
    max_piece_steps = piece_steps(both[0], max_piece_steps)
    if is_finished(output, config_name, metadata):
        remove_work(output, config_name)
        return location
    check_spaces(family, *both)
    if address is None:  # else it is other machines that learn
        check_memory(source, *both)
    check_splits(family, tasks)
    rehearse(family, source, [first_task, tasks[-1]])
    layout = {"shard_transitions": shard_transitions, "max_piece_steps": max_piece_steps}
    folder = prepare_work(output, config_name, metadata, layout)
    jobs_per_shard = max(1, shard_transitions // (total_timesteps * tasks_per_job))
    work = WorkFolder(folder, ShardLayout(tasks, seeds, tasks_per_job, jobs_per_shard), part)
    try:
        _learn(family, source, work, metadata, max_piece_steps, execute)
        publish(output, location, config_name, work, metadata)
    except FileNotFoundError:  # which says itself what is missing
        raise
    except OSError as error:
        raise OSError(
            f"histories could not be written to {location} ({' '.join(str(error).split())}): make room, or see to its "
            "permissions; what was finished is kept, and the same call goes on from there"
        ) from error
    return location


def _learn(
    family: TaskFamily,
    source: Source,
    work: WorkFolder,
    metadata: HistoryMetadata,
    max_piece_steps: int,
    execute: Execute,
) -> None:
    """Do what is left to do."""
    spaces = metadata.observation_space, metadata.action_space
    run = partial(run_job, family, source, spaces, max_piece_steps, work.folder)
    tasks, left = sum(map(work.layout.num_tasks, work.own_shards)), work.count_left()
    total = source.total_timesteps * tasks
    told: set[str] = set()
    with tqdm(
        desc=f"collect {source.algorithm}",
        total=total,
        initial=source.total_timesteps * (tasks - left),
        unit=" transitions",
        unit_scale=True,
    ) as bar:
        for outcome in execute(run, work.jobs_left(), on_progress=bar.update):
            # Learners stop early, fail, or round up to their batch of steps.
            total += outcome.transitions - source.total_timesteps * len(outcome.job.own_tasks)
            bar.total = max(total, bar.n)
            if outcome.error and outcome.error not in told:  # what fails alike everywhere is told once
                told.add(outcome.error)
                tqdm.write(str(outcome.failure()), file=sys.stderr)
            work.add(outcome)
        bar.refresh()
