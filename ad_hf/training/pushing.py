"""A run's newest checkpoint and best model on the Hub, so that a machine that is lost takes nothing with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from accelerate.logging import get_logger

from ad_hf.hub.config import PushConfig
from ad_hf.hub.model_files import (
    BEST_FOLDER,
    CHECKPOINT_FOLDER,
    Content,
    checkpoint_files,
    model_files,
)
from ad_hf.hub.push import push_files
from ad_hf.hub.uploads import make_repository
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import files_in, link_or_copy, read_text
from ad_hf.storage.repositories import HUB_ID

MADE_OF = ("recipe.yaml", "run.json")  # of a run; results of earlier weights may lie there, too

logger = get_logger(__name__)


class Publisher:
    """
    Pushes checkpoints of a run to `user/name` or `user/name@branch` while training goes on. A push that fails is
    logged and does not end the run; the next one makes up for it.

    Raises:
        ValueError: if that is not the name of a repository.
        HubError: if the Hub refuses, before anything is trained.
    """

    def __init__(self, target: str, output_dir: Path) -> None:
        match = HUB_ID.fullmatch(target)
        if match is None:
            raise ValueError(f"push_to must be user/name or user/name@branch, got {target!r}")
        self._branch, self._output_dir = match["revision"] or "main", output_dir
        self._repo_id = make_repository(match["repo_id"], "model", PushConfig(revision=self._branch))
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._running: Future[None] | None = None

    def push(self, checkpoint: Path, step: int, wait: bool = False) -> None:
        """
        Push a checkpoint in the background, unless the one before is still on its way; with `wait`, after that one,
        and to the end.
        """
        if wait:
            self._wait()
        if self._running is None or self._running.done():
            self._running = self._executor.submit(self._push, self._linked(checkpoint), step)
        if wait:
            self._wait()

    def _wait(self) -> None:
        """Wait for a push that is on its way."""
        if self._running is not None:
            self._running.result()

    def _linked(self, checkpoint: Path) -> Path:
        """A folder of links to a checkpoint's files, since the run may drop it meanwhile."""
        folder = Path(tempfile.mkdtemp(prefix=".push-", suffix=".tmp", dir=self._output_dir))
        with suppress(OSError, shutil.Error):  # _push misses the files then
            shutil.copytree(checkpoint, folder, copy_function=link_or_copy, dirs_exist_ok=True)
        return folder

    def _push_files(self, files: Mapping[str, Content], message: str, local_card: str | None = None) -> str:
        files = {**files, **files_in(self._output_dir, MADE_OF)}
        return push_files(files, self._repo_id, revision=self._branch, commit_message=message, local_card=local_card)

    def push_end(self) -> None:
        """Push the model of a run that has come to its end."""
        self._wait()
        model = self._output_dir / "model"
        try:
            logger.info(f"pushed: {self._push_files(model_files(model), 'End of training', read_text(model / CARD))}")
        except Exception as error:
            logger.warning(f"{error}; push it with: ad-hf push model {self._output_dir} {self._repo_id}")

    def _push(self, checkpoint: Path, step: int) -> None:
        best = checkpoint / BEST_FOLDER
        try:
            beside = {f"{CHECKPOINT_FOLDER}/{name}": file for name, file in checkpoint_files(checkpoint).items()}
            model = model_files(best if best.is_dir() else checkpoint)
            url = self._push_files({**model, **beside}, f"Checkpoint after {step} updates")
            logger.info(f"pushed the checkpoint of update {step}: {url}")
        except Exception as error:  # whatever the Hub and the network do, the run goes on
            logger.warning(f"the checkpoint of update {step} was not pushed: {error}")
        finally:
            shutil.rmtree(checkpoint, ignore_errors=True)
