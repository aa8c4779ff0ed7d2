"""
A collection of very many jobs that learn nothing: what scheduling costs, and whether its memory stays bounded.

    python scripts/simulate.py --jobs 10000
    python scripts/simulate.py --jobs 1000000 --output docs/results/simulate_jobs.json

Worker processes, job queue, work folder and shards are those of `ad-hf collect`; only the job is not, which writes a
part of one step. The folder is in memory unless another is given, since it is not the disk that is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from ad_hf.collection.executors import run_jobs
from ad_hf.collection.jobs import PROGRESS_KEY, Job, OnStep, Outcome
from ad_hf.collection.layout import ShardLayout
from ad_hf.collection.processes import ProcessPool
from ad_hf.collection.work_folder import WorkFolder
from ad_hf.envs.task_family import Task
from ad_hf.storage.files import write_text
from ad_hf.storage.folders import Folder

COLUMNS = {"start_step": [0], "observations": [b"0"]}  # the least that shards are made of


class WritePart:
    """A job that writes a part of one step, as it is, without waiting for the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        progress = json.dumps([[0, 0, 1, 1, 0.0, 0.0, None]]).encode()
        table = pa.table(COLUMNS).replace_schema_metadata({PROGRESS_KEY: progress})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.part = sink.getvalue().to_pybytes()

    def __call__(self, job: Job, on_step: OnStep) -> Outcome:
        """Run it."""
        (self.folder / job.file_name).write_bytes(self.part)
        return Outcome(job, 1)


def anonymous_megabytes() -> float:
    """Memory of this process that is not a file's."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


class Sampler(threading.Thread):
    """Looks at this process's memory and at its folder four times a second."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.megabytes, self.most_files = folder, [anonymous_megabytes()], 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._stop_asked.wait(0.25):
            self.megabytes.append(anonymous_megabytes())
            self.most_files = max(self.most_files, len(Folder(self.folder).names()))

    def stop(self) -> None:
        """Take no more samples."""
        self._stop_asked.set()
        self.join()


def simulate(num_jobs: int, num_seeds: int, jobs_per_shard: int, num_workers: int, folder: Path) -> dict[str, Any]:
    """Run so many jobs; returns what that took."""
    tasks = [Task(index, {"goal": index}, "train") for index in range(-(-num_jobs // num_seeds))]
    layout = ShardLayout(tasks, range(num_seeds), 1, jobs_per_shard)
    work = WorkFolder(Folder(folder), layout)
    sampler = Sampler(folder)
    begin = anonymous_megabytes()
    sampler.start()
    start, first, count, scheduler, workers = time.perf_counter(), 0.0, 0, 0.0, 0.0
    pool = ProcessPool(WritePart(folder), lambda transitions: None, num_workers)
    for outcome in run_jobs(pool, work.jobs_left()):
        if not count:  # what it takes to start is reported apart
            first, scheduler = time.perf_counter(), time.process_time()
            workers = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())
        work.add(outcome)
        count += 1
    end, scheduler = time.perf_counter(), time.process_time() - scheduler
    workers = sum(os.times()[2:4]) - workers
    sampler.stop()
    shards = list((folder / "shards").glob("*.parquet"))
    assert len(shards) == len(layout.shards)
    assert work.count_left() == 0
    half = sampler.megabytes[len(sampler.megabytes) // 10 : len(sampler.megabytes) // 2] or sampler.megabytes
    return {
        "jobs": count,
        "workers": num_workers,
        "seconds_to_first_job": round(first - start, 2),
        "seconds": round(end - first, 1),
        "microseconds_per_job": round((end - first) / max(1, count - 1) * 1e6, 1),
        "microseconds_per_job_of_the_scheduler_on_the_cpu": round(scheduler / max(1, count - 1) * 1e6, 1),
        "microseconds_per_job_of_workers_on_the_cpu": round(workers / max(1, count - 1) * 1e6, 1),
        "scheduler_megabytes_at_start": round(begin, 1),
        "scheduler_megabytes_first_half": round(max(half), 1),
        "scheduler_megabytes_peak": round(max(sampler.megabytes), 1),
        "shards": len(shards),
        "jobs_per_shard": jobs_per_shard,
        "most_files_in_work_folder": sampler.most_files,
        "files_in_shards_folder": len(shards),
    }


def main() -> None:
    """Parse the command line and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1000, help="seeds of each task (default: %(default)s)")
    parser.add_argument("--jobs_per_shard", type=int, default=1000, help="jobs of a shard (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--folder", default="/dev/shm" if sys.platform == "linux" else None, help="where to write")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = simulate(
            arguments.jobs, arguments.seeds, arguments.jobs_per_shard, arguments.num_workers, Path(folder)
        )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output is not None:
        write_text(arguments.output, text + "\n")


if __name__ == "__main__":
    main()
