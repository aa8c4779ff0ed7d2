"""Folders in the cache of datasets (`HF_DATASETS_CACHE`): written once, and whole or not there."""

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


def cached_folder(kind: str, key: Any, write: Callable[[Path], None], content: Callable[[], str]) -> Path:
    """
    The folder of a kind for a key (JSON), which `write` fills if it is not there yet; errors name it by `content()`.

    Of several processes that call this at the same time, one writes and the others wait. The next call clears away
    what a killed process left. An `OSError` says what to do if nobody can write there.
    """
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / kind / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for leftover in folder.parent.glob(f".{digest}.*"):
                shutil.rmtree(leftover)
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    write(temporary)
    except OSError as error:
        raise OSError(
            f"{content()} cannot be written to {folder.parent}: {error}; set HF_DATASETS_CACHE to a folder that can "
            "be written to and has room, or train with --streaming"
        ) from error
    return folder
