"""What is made of histories once, in the cache of datasets (`HF_DATASETS_CACHE`): folders, whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock

from ad_hf.storage.files import atomic_folder


def cached_folder(
    kind: str, key: Any, write: Callable[[Path], None], what: Callable[[], str], otherwise: str = ""
) -> Path:
    """
    A folder, which is written if it is not there yet.

    Several processes may call this at the same time: one of them writes, the others wait. What a process that was
    killed has left is cleared away by the next.

    Args:
        kind (`str`):
            Name of the cache's folder in which such folders are.
        key:
            What its content depends on, as JSON holds it.
        write (`Callable[[Path], None]`):
            Fills the folder, of which it gets a temporary path beside its own.
        what (`Callable[[], str]`), otherwise (`str`, *optional*):
            Says for errors what is written, and what else can be done if it cannot be.

    Raises:
        OSError: if it cannot be written, with what can be done.
    """
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / kind / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for left in folder.parent.glob(f".{digest}.*"):  # by a process that was killed
                shutil.rmtree(left)
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    write(temporary)
    except OSError as error:
        raise OSError(
            f"{what()} cannot be written to {folder.parent}: {error}; set HF_DATASETS_CACHE to a folder that can be "
            f"written to and has room{otherwise}"
        ) from error
    return folder
