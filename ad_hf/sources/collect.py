"""Collection: a source learns every task of a family, and its learning histories become a dataset."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for_sentinels
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Features
from pyarrow import feather
from tqdm.auto import tqdm

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import SPLITS, Task, TaskFamily
from ad_hf.files import atomic_path, write_text
from ad_hf.histories.schema import (
    METADATA_FILE,
    HistoryMetadata,
    default_piece_steps,
    history_features,
    history_table,
    read_metadata,
    row_groups,
)
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.writer import SHARD_TRANSITIONS, open_shard
from ad_hf.hub.cards import write_dataset_card
from ad_hf.sources.learners import check_hyperparameters, has_independent_streams, learns_side_by_side, make_learner
from ad_hf.sources.recorder import HistoryRecorder

WORK_FOLDER = ".incomplete"
SETTINGS_FILE = "collection.json"

_progress: Any = None  # in a worker process, the queue to its parent


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
            Tasks that one learner learns side by side, if its streams are independent of each other.
        independent_streams (`bool`, *optional*, defaults to `False`):
            Whether they are, that is, whether each stream learns from its own steps alone.
    """

    algorithm: str
    n_envs: int
    total_timesteps: int
    hyperparameters: dict[str, Any]
    tasks_per_job: int = 1
    independent_streams: bool = False


@dataclass(frozen=True)
class Job:
    """One learner: a task, or several side by side, and a seed."""

    tasks: tuple[Task, ...]
    seed: int

    @property
    def file_name(self) -> str:
        """File of the job's histories until its shard is written."""
        return f"part-{self.tasks[0].task_id:06d}-{self.seed}.arrow"

    @property
    def learner_seed(self) -> int:
        """Seed of the learner: a number of its own for each (first) task and seed."""
        return int(np.random.SeedSequence([self.seed, self.tasks[0].task_id]).generate_state(1)[0] >> 1)


def learn_task(
    family: TaskFamily,
    source: Source,
    job: Job,
    on_step: Callable[[int], None] | None = None,
) -> HistoryRecorder:
    """
    Let a source learn one task, or several side by side.

    Args:
        family ([`TaskFamily`]), source ([`Source`]), job ([`Job`]):
            What to learn, how, and with which seed; every job has random numbers of its own, whatever runs beside it.
        on_step (`Callable[[int], None]`, *optional*):
            Called at each step with the number of transitions it added.

    Returns:
        [`HistoryRecorder`]: the recorder with the histories of all streams; stream i is of task i modulo their number.
    """
    tasks = len(job.tasks)
    envs = family.make_vec(job.tasks, num_envs=tasks * source.n_envs)
    recorder = HistoryRecorder(envs, -(-source.total_timesteps // source.n_envs), on_step)
    seen = SourceObservation(recorder, family.source_observation) if family.source_observation else recorder
    envs_of_learner = SB3VecEnv(seen, [task.task_id for task in job.tasks] * source.n_envs)
    learner = make_learner(source.algorithm, envs_of_learner, job.learner_seed, source.hyperparameters)
    learner.learn(tasks * source.total_timesteps)
    recorder.close()
    return recorder


def _start_worker(progress: Any) -> None:
    """Prepare a worker process: one thread, no orphan when the parent is killed, Ctrl-C left to the parent."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # SB3's distributions check the same arguments at every step; the checks change no result.
    torch.distributions.Distribution.set_default_validate_args(False)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_sentinels([sentinel])
    os._exit(1)


def _run_job(
    family: TaskFamily, source: Source, features: Features, max_piece_steps: int, path: Path, job: Job
) -> str:
    """Learn a job's tasks and write their histories to `path`; returns the name of the file."""
    pending, last_report = 0, time.monotonic()

    def on_step(transitions: int) -> None:
        nonlocal pending, last_report
        pending += transitions
        if time.monotonic() - last_report > 0.2:
            _progress.put(pending)
            pending, last_report = 0, time.monotonic()

    recorded, tasks = learn_task(family, source, job, on_step).recorded(), len(job.tasks)
    tables = [
        history_table(recorded.streams(slice(index, None, tasks)), features, task.task_id, job.seed, max_piece_steps)
        for index, task in enumerate(job.tasks)
    ]
    table = pa.concat_tables(tables)
    with atomic_path(path) as temporary:
        feather.write_feather(table, temporary, compression="uncompressed")
    _progress.put(pending)
    return path.name


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_jobs(tasks: Sequence[Task], seeds: Sequence[int], tasks_per_job: int = 1) -> list[Job]:
    """A job for each seed and each task, or so many tasks of a split."""
    jobs = []
    for split in SPLITS:
        chosen = [task for task in tasks if task.split == split]
        groups = [tuple(chosen[start : start + tasks_per_job]) for start in range(0, len(chosen), tasks_per_job)]
        jobs += [Job(group, seed) for group in groups for seed in seeds]
    return jobs


def _shards(jobs: Sequence[Job], jobs_per_shard: int) -> dict[str, list[Job]]:
    """Jobs of each shard by its name; the layout depends on the list of jobs alone."""
    shards = {}
    for split in SPLITS:
        chosen = [job for job in jobs if job.tasks[0].split == split]
        groups = [chosen[start : start + jobs_per_shard] for start in range(0, len(chosen), jobs_per_shard)]
        for index, group in enumerate(groups):
            shards[f"{split}-{index:05d}-of-{len(groups):05d}.parquet"] = group
    return shards


def _write_shard(path: Path, parts: Sequence[Path]) -> None:
    """Join the jobs' parts, and then drop them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        writer = None
        for part in parts:
            table = feather.read_table(part)
            writer = writer or open_shard(temporary, table.schema)
            for rows in row_groups(table):
                writer.write_table(rows)
        if writer is not None:
            writer.close()
    for part in parts:
        part.unlink()


def _run_jobs(calls: Sequence[Callable[[], str]], num_workers: int, bar: tqdm) -> Iterator[str]:
    """Run jobs on worker processes; yields the file of each as it is finished."""
    if not calls:
        return
    context = multiprocessing.get_context("spawn")
    progress = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        waiting = {executor.submit(call) for call in calls}
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not progress.empty():
                bar.update(progress.get())
            for future in finished:
                yield future.result()
    except BaseException:
        # Jobs under way are dropped: finished ones stay on disk and are not run again.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


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
    """Whether these histories are there; refuses to write over others."""
    folder = output_dir / config_name
    if not folder.exists():
        return False
    try:
        found = asdict(read_metadata(output_dir, config_name))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} exists and holds no learning histories: give another output_dir") from error
    wanted = asdict(metadata)
    for name in sorted(set(wanted) - {"versions", "statistics", "fingerprint"}):
        if found[name] != wanted[name]:
            raise ValueError(
                f"{folder} already holds histories with {name} = {found[name]!r}, now it is {wanted[name]!r}: give "
                "another output_dir or config_name, or delete the folder to collect again"
            )
    return True


def _describe(family: TaskFamily, tasks: Sequence[Task], source: Source, seeds: Sequence[int]) -> HistoryMetadata:
    envs = family.make_vec(tasks[:1])
    spaces = [space_to_json(envs.single_observation_space), space_to_json(envs.single_action_space)]
    envs.close()
    described = HistoryMetadata(
        **family.env_settings,
        tasks=[asdict(task) for task in tasks],
        observation_space=spaces[0],
        action_space=spaces[1],
        source=asdict(source),
        seeds=list(seeds),
    )
    try:
        return HistoryMetadata.from_json(described.to_json())  # as it will be read: lists for tuples
    except TypeError as error:
        raise ValueError(
            f"tasks, env_kwargs and hyperparameters are stored as JSON, which these are not ({error}): use numbers, "
            "text, lists and dicts"
        ) from error


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
) -> Path:
    r"""
    Learn every task of a family with a Stable-Baselines3 algorithm and write the learning histories as a dataset that
    `datasets.load_dataset(output_dir)` reads.

    Jobs (a task and a seed) run on worker processes, started by `spawn`: call this under
    `if __name__ == "__main__":` in a script. Finished jobs are kept, so an interrupted collection goes on where it was
    when it is called again with the same arguments, and ends with the same files, byte for byte.

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
            Tasks that one learner learns side by side. Only learners whose streams are independent of each other can:
            NoisedPolicy, TabularQ, UCB and ThompsonSampling.

    Returns:
        `Path`: the folder of the dataset.

    Raises:
        ValueError: for an unknown algorithm, hyper-parameter or split, for numbers below 1, and if the folder holds
            other histories.
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
    independent = has_independent_streams(algorithm, hyperparameters or {})
    if tasks_per_job > 1 and not learns_side_by_side(algorithm):
        raise ValueError(f"{algorithm} learns one task at a time: set tasks_per_job to 1, got {tasks_per_job}")
    source = Source(algorithm, n_envs, total_timesteps, hyperparameters or {}, tasks_per_job, independent)
    tasks = family.tasks(split)
    metadata = _describe(family, tasks, source, seeds)
    output_dir = Path(output_dir)
    work = output_dir / WORK_FOLDER / config_name
    if _is_finished(output_dir, config_name, metadata):
        if work.exists():  # interrupted in its last moment
            _finish(output_dir, work)
        return output_dir
    max_piece_steps = max_piece_steps or default_piece_steps(metadata.spaces[0])
    layout = {"shard_transitions": shard_transitions, "max_piece_steps": max_piece_steps}
    _check_settings(work, {**asdict(metadata), **layout})
    for leftover in work.rglob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()

    jobs = make_jobs(tasks, seeds, tasks_per_job)
    shards = _shards(jobs, max(1, shard_transitions // (total_timesteps * tasks_per_job)))
    finished_shards = work / "shards"
    parts = {shard: [work / job.file_name for job in group] for shard, group in shards.items()}
    unwritten = {
        shard: {part.name for part in files if not part.is_file()}
        for shard, files in parts.items()
        if not (finished_shards / shard).is_file()
    }
    to_do = [job for job in jobs if any(job.file_name in names for names in unwritten.values())]
    features = history_features(*metadata.spaces)
    calls = [partial(_run_job, family, source, features, max_piece_steps, work / job.file_name, job) for job in to_do]

    def write_complete_shards() -> None:
        for shard in [shard for shard, names in unwritten.items() if not names]:
            _write_shard(finished_shards / shard, parts[shard])
            del unwritten[shard]

    with tqdm(
        desc=f"collect {algorithm}",
        total=total_timesteps * sum(len(job.tasks) for job in jobs),
        initial=total_timesteps * sum(len(job.tasks) for job in jobs if job not in to_do),
        unit=" transitions",
        unit_scale=True,
    ) as bar:
        write_complete_shards()
        for finished in _run_jobs(calls, min(num_workers, len(calls)), bar):
            for names in unwritten.values():
                names.discard(finished)
            write_complete_shards()
    describe_shards(metadata, finished_shards)
    write_text(finished_shards / METADATA_FILE, metadata.to_json())
    os.replace(finished_shards, output_dir / config_name)
    _finish(output_dir, work)
    return output_dir
