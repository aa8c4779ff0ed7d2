"""A run's newest checkpoint and best model on the Hub, so that a machine that is lost takes nothing with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ad_hf.files import link_or_copy
from ad_hf.hub.cards import add_run_files
from ad_hf.hub.push import make_repository, push_model
from ad_hf.hub.repositories import HUB_ID
from ad_hf.training.checkpoints import BEST_FOLDER, STATE_FILE, TENSORS_FILE


class Publisher:
    """
    Pushes checkpoints while training goes on.

    A push that fails is reported and does not end the run; the next one brings what it would have.

    Args:
        target (`str`):
            Repository, which is made if need be, as `user/name` or `user/name@branch`.
        output_dir (`Path`):
            Folder of the run.
        say (`Callable[[str], None]`):
            Prints a line for people.

    Raises:
        ValueError: if that is no name of a repository.
        HubError: if the Hub refuses, before anything is trained.
    """

    def __init__(self, target: str, output_dir: Path, say: Callable[[str], None]) -> None:
        match = HUB_ID.fullmatch(target)
        if match is None:
            raise ValueError(f"push_to must be user/name or user/name@branch, got {target!r}")
        self._branch, self._output_dir, self._say = match["revision"] or "main", output_dir, say
        self._repo_id = make_repository(match["repo_id"], "model", self._branch)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._running: Future[None] | None = None

    def push(self, checkpoint: Path, step: int) -> None:
        """Push a checkpoint in the background, unless the one before is still on its way."""
        if self._running is None or self._running.done():
            # Its own links, since the run may drop the checkpoint meanwhile.
            folder = Path(tempfile.mkdtemp(prefix=".push-", suffix=".tmp", dir=self._output_dir))
            shutil.copytree(checkpoint, folder / "checkpoint", copy_function=link_or_copy)
            self._running = self._executor.submit(self._push, folder, step)

    def _wait(self) -> None:
        """Wait for what is on its way."""
        if self._running is not None:
            self._running.result()

    def finish(self, checkpoint: Path, step: int) -> None:
        """Push a checkpoint of a run that ends before its time, after what is on its way."""
        self._wait()
        self.push(checkpoint, step)
        self._wait()

    def push_end(self) -> None:
        """Push the model of a run that has come to its end."""
        self._wait()
        try:
            url = push_model(self._output_dir, self._repo_id, revision=self._branch, commit_message="End of training")
            self._say(f"pushed: {url}")
        except Exception as error:
            self._say(f"{error}; push it with: ad-hf push model {self._output_dir} {self._repo_id}")

    def _push(self, folder: Path, step: int) -> None:
        try:
            checkpoint, model = folder / "checkpoint", folder / "model"
            source = checkpoint / BEST_FOLDER if (checkpoint / BEST_FOLDER).is_dir() else checkpoint
            left_out = shutil.ignore_patterns(BEST_FOLDER, TENSORS_FILE, STATE_FILE)
            shutil.copytree(source, model, ignore=left_out)
            add_run_files(model, self._output_dir)
            message = f"Checkpoint after {step} updates"
            url = push_model(
                model, self._repo_id, revision=self._branch, commit_message=message, checkpoint=checkpoint
            )
            self._say(f"pushed the checkpoint of update {step}: {url}")
        except Exception as error:  # whatever the Hub and the network do, the run goes on
            self._say(f"the checkpoint of update {step} was not pushed: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
