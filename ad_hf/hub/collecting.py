"""A collection whose finished work is on the Hub, so that a machine that is lost takes little with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import filter_repo_objects

from ad_hf.collection.collect import collect
from ad_hf.collection.failures import CollectionError
from ad_hf.collection.output_folder import HIDDEN_FOLDER
from ad_hf.envs.task_family import TaskFamily
from ad_hf.hub.config import PushConfig
from ad_hf.hub.push import DATASET_PATTERNS, push_dataset
from ad_hf.hub.uploads import Upload, make_repository, push_upload
from ad_hf.sources.config import SourceConfig
from ad_hf.storage.files import link_or_copy, local_path
from ad_hf.storage.repositories import retried

BRANCH = "collecting"
NOTE = "# Histories that are being collected\n\nThe same collection goes on from here, and then deletes this branch.\n"
MESSAGE = "Finished jobs of a collection"
# A shard's progress is written before the shard, and its parts are deleted after that: in this order, a copy that is
# made meanwhile lacks nothing.
ORDER = ("part-*.arrow", "shards/*.parquet", "*.json")

logger = logging.getLogger(__name__)


def collect_on_hub(
    family: TaskFamily,
    source: SourceConfig,
    repo_id: str,
    output_dir: str | Path = "histories",
    push_seconds: float = 300,
    **settings: Any,
) -> str:
    """
    Collect learning histories and push them, on a machine that may be lost at any moment.

    Meanwhile finished jobs go to the branch `collecting` of the dataset's repository. The same call on another machine
    fetches them, goes on from there, and ends with the same files, byte for byte. Once the dataset is on the
    repository's main branch, the other one is deleted; while tasks fail, it stays, and the next call tries them again.

    Args:
        family ([`TaskFamily`]), source ([`~ad_hf.sources.config.SourceConfig`]):
            As of [`~ad_hf.collect`].
        repo_id (`str`):
            `user/name` of the dataset's repository, which is made if need be.
        output_dir (`str` or `Path`, *optional*, defaults to `"histories"`):
            Folder of this machine to collect in.
        push_seconds (`float`, *optional*, defaults to 300):
            Seconds between pushes to the branch.
        settings:
            Further arguments of [`~ad_hf.collect`].

    Returns:
        `str`: URL of the commit that holds the dataset.

    Raises:
        CollectionError: if tasks failed; the dataset is pushed without them.
        HubError: if the Hub cannot be reached or refuses, before anything is learnt or with the finished dataset.
    """
    folder = local_path(output_dir)
    repo_id = make_repository(repo_id, "dataset", PushConfig(revision=BRANCH))
    if not folder.is_dir() or not any(folder.iterdir()):
        _fetch(folder, repo_id, "main", DATASET_PATTERNS)  # perhaps without tasks that failed
        _fetch(folder, repo_id, BRANCH, (f"{HIDDEN_FOLDER}/*",))
    failed = None
    with _pushes(folder, repo_id, push_seconds):
        try:
            collect(family, source, output_dir=folder, **settings)
        except CollectionError as error:
            if error.output_dir is None:
                raise
            failed = error
    url = push_dataset(folder, repo_id)
    if failed is not None:
        raise failed
    delete: Any = {"branch": BRANCH, "repo_type": "dataset"}
    retried(f"deleting the branch {BRANCH} of {repo_id}", lambda: HfApi().delete_branch(repo_id, **delete))
    return url


def _fetch(folder: Path, repo_id: str, revision: str, patterns: Sequence[str]) -> None:
    """Download the files of a branch that match, if there are any."""
    at: Any = {"repo_type": "dataset", "revision": revision}
    step = f"downloading the dataset {repo_id}@{revision}"
    paths = retried(step, lambda: HfApi().list_repo_files(repo_id, **at))
    wanted = list(filter_repo_objects(paths, allow_patterns=[*patterns]))
    if wanted:
        retried(step, lambda: snapshot_download(repo_id, allow_patterns=wanted, local_dir=folder, **at))


@contextmanager
def _pushes(folder: Path, repo_id: str, seconds: float) -> Iterator[None]:
    """Push finished work every so often, and at the end if there is some left."""
    ended = Event()

    def push() -> None:
        while not ended.wait(seconds):
            _push(folder, repo_id)

    with ThreadPoolExecutor(1, thread_name_prefix="push") as executor:
        pushes = executor.submit(push)
        try:
            yield
        finally:
            ended.set()
            pushes.result()
            _push(folder, repo_id)


def _push(folder: Path, repo_id: str) -> None:
    """Push the work of a moment, if there is any; a push that fails is logged, and the collection goes on."""
    if not (folder / HIDDEN_FOLDER).is_dir():
        return
    try:
        with TemporaryDirectory(prefix=".push-", suffix=".tmp", dir=folder) as copy:
            if files := _linked(folder, Path(copy)):
                upload = Upload("dataset", files, lambda path: path.startswith(HIDDEN_FOLDER), lambda _: NOTE, MESSAGE)
                logger.info(f"pushed: {push_upload(upload, repo_id, PushConfig(revision=BRANCH))}")
    except Exception as error:  # whatever the Hub, the network and the disk do
        logger.warning(f"the finished jobs were not pushed: {error}")


def _linked(folder: Path, copy: Path) -> dict[str, Path]:
    """Links to the work of a collection, which drops files meanwhile, by their paths."""
    files: dict[str, Path] = {}
    for pattern in ORDER:
        for path in folder.glob(f"{HIDDEN_FOLDER}/*/{pattern}"):
            name = path.relative_to(folder).as_posix()
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                link_or_copy(path, copy / name)
                files[name] = copy / name
    return files
