"""Collection: a source learns every task of a family, and its learning histories become a dataset."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from ad_hf.collection.executors import Pool, run_jobs
from ad_hf.collection.failures import CollectionError, TaskFailure, fail_alike
from ad_hf.collection.in_process import InProcessPool
from ad_hf.collection.jobs import run_job
from ad_hf.collection.layout import ShardLayout
from ad_hf.collection.output_folder import OutputFolder
from ad_hf.collection.processes import ProcessPool
from ad_hf.collection.ray_pool import RayPool
from ad_hf.collection.rehearsal import check_environments, check_memory, check_spaces, rehearse
from ad_hf.collection.work_folder import STOPPED_FILE, WorkFolder
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import HistoryMetadata, algorithm_name
from ad_hf.histories.writer import SHARD_TRANSITIONS, piece_steps
from ad_hf.progress import ProgressBar
from ad_hf.settings import plain, with_settings
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.learners import check_source, describe_source

MakePool = Callable[..., Pool]  # from a function that runs a job, and one that takes the progress

logger = logging.getLogger(__name__)

STOPPED = (
    "the first tasks all failed alike, and the collection stopped: mend the cause and call again; the second call "
    "goes on to all other tasks, even if these fail again"
)


def _check_count(name: str, number: Any, least: int = 1) -> int | None:
    """A whole number of at least so much, if one is given."""
    if number is not None and (not isinstance(number, Integral) or isinstance(number, bool) or number < least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
    return None if number is None else int(number)


def _read_part(part: str | tuple[int, int]) -> tuple[int, int]:
    """K and N, of which K is from 1 to N."""
    text = part if isinstance(part, str) else "/".join(map(str, part))
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"part must be K/N with a K from 1 to N, such as 1/4 for the first of four, got {text}")
    return int(match[1]), int(match[2])


def _choose_executor(executor: str, address: str | None, num_workers: int | None) -> MakePool:
    if executor == "ray":
        if num_workers == 0:
            raise ValueError("num_workers 0 collects in this process: set executor to local, or give another number")
        return partial(RayPool, num_workers=num_workers, address=address)
    if executor != "local":
        raise ValueError(f"executor must be local or ray, got {executor!r}")
    if address is not None:
        raise ValueError(f"address is that of a Ray cluster: set executor to ray, got address {address!r}")
    return InProcessPool if num_workers == 0 else partial(ProcessPool, num_workers=num_workers)


@with_settings(SourceConfig, "source", argument="source")
def collect(
    family: TaskFamily,
    source: SourceConfig | None = None,
    *,
    split: str | None = None,
    output_dir: str | Path = "histories",
    config_name: str = "default",
    num_workers: int | None = None,
    shard_transitions: int = SHARD_TRANSITIONS,
    max_piece_steps: int | None = None,
    executor: str = "local",
    address: str | None = None,
    part: str | tuple[int, int] = (1, 1),
    trust_remote_code: bool = False,
) -> Path | str:
    r"""
    Learn every task of a family with a source algorithm and write the learning histories as a dataset that
    `datasets.load_dataset(output_dir)` reads.

    Jobs (a task and a seed) run on worker processes, started by `spawn`: call this under
    `if __name__ == "__main__":` in a script. Or they run in this process, or on a Ray cluster, which leaves the same
    files. Finished jobs stay, so an interrupted collection goes on where it was when it is called again with the same
    arguments, and ends with the same files, byte for byte.

    A task whose environment raises an error, has other spaces than the family, gives observations outside of them or
    numbers that are not finite, never ends an episode, or ends its process, does not keep the others from being
    learnt: the dataset is written without it, `failures` in `metadata.json` says why, and [`CollectionError`] is
    raised at the end. The same call then tries only the failed tasks, from `output_dir/.incomplete`. If nothing is
    learnt yet and the first tasks all fail with one error (as many tasks as there are workers, and at least three),
    the error is raised at once; if they fail so again, the next call goes through all tasks.

    Args:
        family ([`TaskFamily`]):
            The tasks.
        source ([`~ad_hf.sources.config.SourceConfig`], *optional*):
            How each task is learnt. Its settings can be given as keywords, too: `algorithm="A2C", n_envs=50`.
        split (`str`, *optional*):
            Only the tasks of one split; by default all, each split in files of its own.
        output_dir (`str` or `Path`, *optional*, defaults to `"histories"`):
            Folder of the dataset, or a URL that fsspec can write to, such as `s3://bucket/histories`.
        config_name (`str`, *optional*, defaults to `"default"`):
            Configuration of the dataset to write.
        num_workers (`int`, *optional*):
            Worker processes, by default one per core; on Ray jobs at a time, by default one per core of the cluster.
            0 collects in this process itself, one job after the other, and leaves the same files: in a notebook,
            under a debugger, or for an environment that this process alone knows.
        shard_transitions (`int`, *optional*, defaults to 1000000):
            Transitions per file; a job is never split over two.
        max_piece_steps (`int`, *optional*):
            Longer histories are cut into several rows, at episode borders; by default at 10,000 steps, and at 100
            where observations are frames, of which a row is decoded at a time.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"` for worker processes of this machine, or `"ray"`.
        address (`str`, *optional*):
            Of the Ray cluster, as of `ray.init`; by default one that is started on this machine alone.
        part (`str` or `tuple[int, int]`, *optional*, defaults to `(1, 1)`):
            `"K/N"`, or K and N: do every N-th shard only, from the K-th on, as one of N calls on machines that share
            the folder. The call that finishes last writes the dataset, which is that of a single call.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether an expert may be a file that Stable-Baselines3 has saved, which can run code when it is read.

    Returns:
        `Path`, or `str` of a URL: where the dataset is, or will be once all parts are done.

    Raises:
        CollectionError: after all others were learnt, or at once if the first ones fail alike, if tasks failed; if a
            split has lost all of its tasks, no dataset is written.
        OSError: if histories cannot be written, as to a full disk; finished jobs stay.
        ValueError: naming the setting, before anything is learnt: for an unknown algorithm, hyper-parameter, callback
            or split, numbers out of their range, environments or a learner that cannot be made, spaces that no model
            can be made for, histories that do not fit into memory, and if the folder holds something else.
    """
    assert source is not None  # with_settings makes one
    check_source(source, trust_remote_code)
    own_part, workers = _read_part(part), _check_count("num_workers", num_workers, least=0)
    make_pool = _choose_executor(executor, address, workers)
    shard_transitions = _check_count("shard_transitions", shard_transitions) or SHARD_TRANSITIONS
    max_piece_steps = _check_count("max_piece_steps", max_piece_steps)
    output = OutputFolder(output_dir, config_name)
    tasks = family.tasks(split)
    if not tasks:
        raise ValueError(f"split {split!r} of the family has no tasks to collect")
    first_task, spaces = check_environments(family, tasks)
    observation_space, action_space = check_spaces(family, *spaces)
    metadata = HistoryMetadata(
        **{name: plain(value, f"family.{name}") for name, value in family.env_settings.items()},
        tasks=plain([asdict(task) for task in tasks], "family.tasks"),
        observation_space=observation_space,
        action_space=action_space,
        source=describe_source(source),
        seeds=source.seeds,
    )
    metadata = HistoryMetadata.from_json(metadata.to_json())  # as it will be read
    if output.is_finished(metadata):
        return output.location
    if address is None:  # else it is other machines that learn
        check_memory(source, *spaces)
    rehearse(family, source, [first_task, tasks[-1]])
    max_piece_steps = piece_steps(spaces[0], max_piece_steps)
    output.prepare_work(metadata, {"shard_transitions": shard_transitions, "max_piece_steps": max_piece_steps})
    jobs_per_shard = max(1, shard_transitions // (source.total_timesteps * source.tasks_per_job))
    work = WorkFolder(output.work, ShardLayout(tasks, source.seeds, source.tasks_per_job, jobs_per_shard), own_part)
    run = partial(
        run_job, family, source, (metadata.observation_space, metadata.action_space), max_piece_steps, output.work
    )
    try:
        _learn(source, work, partial(make_pool, run))
        output.publish(work, metadata)
    except FileNotFoundError:  # which says itself what is missing
        raise
    except OSError as error:
        raise OSError(
            f"histories could not be written to {output.location} ({' '.join(str(error).split())}): make room, or see "
            "to its permissions; finished jobs stay, and the same call goes on from there"
        ) from error
    return output.location


def _learn(source: SourceConfig, work: WorkFolder, make_pool: MakePool) -> None:
    """
    Do the jobs that are left.

    Where nothing is learnt yet and the first tasks all fail for one reason, of which no earlier call knew, a
    [`CollectionError`] says so once, instead of after all tasks.
    """
    tasks, left = sum(map(work.layout.num_tasks, work.own_shards)), work.count_left()
    total, done = source.total_timesteps * tasks, source.total_timesteps * (tasks - left)
    failures: list[TaskFailure] = []
    is_hopeless, known = left == tasks, work.stopped_for()
    with ProgressBar(f"collect {algorithm_name(source.algorithm)}", total, "transitions", initial=done) as bar:
        pool = make_pool(bar.update)
        with closing(run_jobs(pool, work.jobs_left())) as outcomes:
            for outcome in outcomes:
                # Learners stop early, fail, or round up to their batch of steps.
                total += outcome.transitions - source.total_timesteps * len(outcome.job.own_tasks)
                bar.total = max(total, bar.n)
                work.add(outcome)
                if outcome.failure is None:
                    if is_hopeless and known:
                        work.folder.remove(STOPPED_FILE)
                    is_hopeless = False
                    continue
                if outcome.failure.kind not in {failure.kind for failure in failures}:  # each reason once
                    logger.warning("%s", outcome.failure.line)
                failures.append(outcome.failure)
                is_new = is_hopeless and outcome.failure.kind != known
                if is_new and len(failures) < left and fail_alike(failures, max(3, pool.size())):
                    work.stop(failures)
                    raise CollectionError(failures, None, STOPPED)
        bar.refresh()
