"""The files of a model that go to the Hub: a list of names, the package's own code, results of these weights."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ad_hf.evaluation.summary import CURVES_FILE, SUMMARY_FILE
from ad_hf.settings import read_json
from ad_hf.storage.files import files_in

if TYPE_CHECKING:
    from ad_hf.model.modeling_ad import ADModel

Content = Path | bytes  # a file in a repository, as a local file or its bytes

CONFIG_FILE = "config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"  # the index is of weights in parts
PICKLES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".zip"}
# A model's repository shows its newest evaluation, or a report of earlier versions.
REPORT_FILE = "report.json"
FAMILIES_FILE = "families.json"  # of a model of several groups: its newest evaluation on each family
RESULT_FILES = (SUMMARY_FILE, REPORT_FILE, FAMILIES_FILE, CURVES_FILE, "replay.gif", "replay.mp4", "paths.gif")
RUN_FILES = ("recipe.yaml", "run.json", *RESULT_FILES)
EVAL_RESULTS_FILE = ".eval_results/ad_hf.yaml"  # follows from these: the Hub's model pages and leaderboards read it
CHECKPOINT_FOLDER = "checkpoint"  # in a model's repository: the newest checkpoint of its run
CHECKPOINT_FILES = TENSORS_FILE, STATE_FILE = "training.safetensors", "training_state.json"
BEST_FOLDER = "best"  # in a checkpoint: the model that did best so far
MODEL_FILES = (CONFIG_FILE, "rollout_config.json", WEIGHTS_FILE, INDEX_FILE, "model-*-of-*.safetensors")
# A push of a copy downloads these files.
PUSHED_AGAIN = (*MODEL_FILES, "README.md", *RUN_FILES)
# These entries of a configuration, or of its backbone's, make its reader load somebody's code.
CODE_ENTRIES = {"auto_map", "custom_pipelines"}
CODE_FOLDER = Path(__file__).parent.parent / "model"
AUTO_MAP = {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "modeling_ad.ADModel"}


def model_folder(folder: str | Path) -> Path:
    """The folder of a model, from that folder or its run's."""
    for candidate in (Path(folder), Path(folder) / "model"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise FileNotFoundError(f"{folder} holds no model: expected config.json and model.safetensors in it")


def is_pickle(path: str) -> bool:
    """Whether a file may run code when it is loaded, by the suffix of its path."""
    return Path(path).suffix.lower() in PICKLES


def _refuse_pickles(folder: Path, pattern: str) -> None:
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern))]
    if pickles := [path for path in paths if is_pickle(path)]:
        raise ValueError(f"{folder} holds files that run code when they are loaded, {', '.join(pickles)}: remove them")


def model_files(folder: Path) -> dict[str, Content]:
    """
    The files of a model that are pushed, by their names in the repository.

    The code is the package's own, and the configuration refers to it, whatever lies in the folder.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: for a configuration of another model, a link out of the folder, and files that run code when they
            are loaded.
    """
    folder = model_folder(folder)
    _refuse_pickles(folder, "*")
    files: dict[str, Content] = {**files_in(folder, MODEL_FILES)}
    config = read_json(folder / CONFIG_FILE)
    if config.get("model_type") != "ad":
        raise ValueError(
            f"{folder / CONFIG_FILE}: model_type must be 'ad', got {config.get('model_type')!r}: push models of other "
            "kinds with their own push_to_hub"
        )
    own = {**_without_code(config), "auto_map": AUTO_MAP}
    if own != config:
        files[CONFIG_FILE] = (json.dumps(own, indent=2) + "\n").encode()
    return {**files, **{path.name: path for path in sorted(CODE_FOLDER.glob("*_ad.py"))}}


def _without_code(value: Any) -> Any:
    """A configuration without the entries that name code elsewhere."""
    if isinstance(value, list):
        return [_without_code(each) for each in value]
    if not isinstance(value, dict):
        return value
    kernels = {name for name, each in value.items() if name.endswith("_implementation") and "/" in json.dumps(each)}
    return {name: _without_code(each) for name, each in value.items() if name not in CODE_ENTRIES | kernels}


def checkpoint_files(folder: Path) -> dict[str, Content]:
    """The files of a checkpoint that are pushed, as [`model_files`]; a checkpoint of DeepSpeed has pickles."""
    _refuse_pickles(folder, "**/*")
    files: dict[str, Content] = {**model_files(folder), **files_in(folder, CHECKPOINT_FILES)}
    if (folder / BEST_FOLDER).is_dir():
        files |= {f"{BEST_FOLDER}/{name}": content for name, content in model_files(folder / BEST_FOLDER).items()}
    return files


def run_files(model: Path) -> dict[str, Path]:
    """Recipe, data and results of a model's run, from the run's folder or else from the model's."""
    files = files_in(model, RUN_FILES)
    if model.name == "model":
        files |= files_in(model.parent, RUN_FILES)
    if SUMMARY_FILE in files:
        files.pop(REPORT_FILE, None)
    return files


def weights_digest(model: ADModel) -> str:
    """A digest of a model's weights, by which results name their model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def own_results(files: Mapping[str, Path], digest: Callable[[], str]) -> dict[str, Path]:
    """
    The files of a model's run, without results whose `weights_digest` is of other weights.

    Args:
        files (`Mapping[str, Path]`):
            The files, from [`run_files`].
        digest (`Callable[[], str]`):
            Gives the [`weights_digest`] of the model; results of earlier versions have none to compare with.
    """
    results = next((files[name] for name in (SUMMARY_FILE, REPORT_FILE, FAMILIES_FILE) if name in files), None)
    claimed = None if results is None else read_json(results).get("weights_digest")
    if claimed is None or claimed == digest():
        return dict(files)
    warnings.warn(f"{results} is of other weights than the model's: its results are left out", stacklevel=2)
    return {name: path for name, path in files.items() if name not in RESULT_FILES}
