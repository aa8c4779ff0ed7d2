"""Weights in a folder: safetensors that are whole, and those of the model that its configuration describes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ad_hf.capacity import check_model_fits
from ad_hf.files import leaves_folder
from ad_hf.model import ADConfig, ADModel
from ad_hf.settings import read_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"  # the latter of weights in parts
NAMED_AT_MOST = 3  # tensors, of those that an error is about


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """
    A file of safetensors, open for reading.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not one of whole safetensors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole file of safetensors: {error}") from error


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of safetensors; errors as of [`open_tensors`]."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def not_finite(tensors: Any) -> str | None:
    """Name of the first of tensors (pairs of name and tensor) that has a number that is not finite."""
    return next((name for name, each in tensors if each.is_floating_point() and not each.isfinite().all()), None)


def weight_files(folder: str | Path) -> list[Path]:
    """
    The files that a model's weights are in.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: for an index of parts that is malformed, or names files elsewhere.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    parts = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()) or not parts:
        raise ValueError(f"{folder / INDEX_FILE} must have a weight_map of tensors' names to files' names")
    files = [folder / name for name in sorted(set(parts.values()))]
    for file in files:
        if file.parent != folder or leaves_folder(file, folder):
            raise ValueError(f"{folder / INDEX_FILE} names {file}, which is outside of its folder")
    return files


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's table of what does not fit, which an error says, and its progress bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _without_values(folder: Path, config: ADConfig | None, where: str, **settings: Any) -> dict[str, Any]:
    """What loading a model, with what the library renames, finds of its weights' names and shapes."""
    try:
        with _quietly():
            return ADModel.from_pretrained(
                folder,
                **({} if config is None else {"config": copy.deepcopy(config)}),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **settings,
            )[1]
    except RuntimeError as error:  # of a backbone's weights that the library puts together from parts
        raise ValueError(f"{where} are of another shape, or their number is another") from error


def check_weights(
    folder: str | Path, config: ADConfig | None = None, values: bool = True, trust_remote_code: bool = False
) -> None:
    """
    Refuse weights that are not those of a model: transformers draws those that are missing at random.

    Args:
        folder (`str` or `Path`):
            Folder of the model.
        config ([`ADConfig`], *optional*):
            Its configuration, by default that in the folder.
        values (`bool`, *optional*, defaults to `True`):
            Whether to read the weights, too, and refuse those that are not finite; else their names and shapes alone.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            As of [`~ad_hf.hub.models.load_model`].

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: for a file that is damaged, tensors that are missing, unexpected or of another shape, and numbers
            that are not finite, naming file and tensor; for a model that does not fit in memory.
    """
    folder = Path(folder)
    files = weight_files(folder)
    for file in files:
        with open_tensors(file):
            pass
    if config is None:
        read_json(folder / "config.json")
        check_model_fits(ADConfig.from_pretrained(folder), f"{folder / 'config.json'}: ")
    where = (
        f"{files[0] if len(files) == 1 else folder / INDEX_FILE} does not hold the weights of {folder}/config.json:"
    )
    found = _without_values(folder, config, where, trust_remote_code=trust_remote_code)
    shapes = [
        f"{name} ({list(there)}, expected {list(expected)})"
        for name, there, expected in sorted(found["mismatched_keys"])
    ]
    wrong = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(found["unexpected_keys"]),
        "of another shape": shapes,
    }
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
            verb = "is" if len(names) == 1 else "are"
            raise ValueError(f"{where} {', '.join(names[:NAMED_AT_MOST])}{more} {verb} {what}")
    if values:
        for file in files:
            with open_tensors(file) as opened:
                name = not_finite((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
            if name is not None:
                raise ValueError(
                    f"{file}: {name} has numbers that are not finite: the training that wrote it diverged"
                )
