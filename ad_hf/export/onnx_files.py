"""A model as ONNX: one step of it in `model.onnx`, and in `model.json` what a program needs to roll it out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

from ad_hf.envs.task_family import SPLITS, TaskFamily
from ad_hf.evaluation.returns import SOURCE
from ad_hf.evaluation.summary import SUMMARY_FILE
from ad_hf.evaluation.upgrades import upgrade
from ad_hf.hub.model_files import PUSHED_AGAIN, model_folder, own_results, run_files, weights_digest
from ad_hf.hub.models import load_model, run_recipe
from ad_hf.model.context_ad import context_sizes
from ad_hf.model.modeling_ad import OWN_LAYERS, ADModel
from ad_hf.model.step_ad import is_plain
from ad_hf.own_recipe import recipe_of_model
from ad_hf.settings import read_json
from ad_hf.storage.files import atomic_path, writable_folder, write_text
from ad_hf.storage.repositories import find_repository

ONNX_FILE, DESCRIPTION_FILE = "model.onnx", "model.json"
FORMAT = 1
SAMPLING = ("temperature", "top_k", "top_p", "epsilon")


def export_onnx(
    model: ADModel | str | Path,
    output_dir: str | Path,
    *,
    precision: Literal["fp16", "fp32"] = "fp16",
    group: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """
    Write one step of a model as ONNX, for a rollout without Python.

    `model.onnx` maps a step and the cache of the steps before it to logits and the cache after it. `model.json` has
    spaces, the sizes of the cache and how actions are sampled; from a model's run also its tasks by split, and the
    returns of its source.

    Args:
        model ([`ADModel`], `str` or `Path`):
            A model in memory, the folder of a model or of its run, or a Hub id.
        output_dir (`str` or `Path`):
            Folder of the two files.
        precision (`str`, *optional*, defaults to `"fp16"`):
            How weights are stored: `"fp16"` halves the file and rounds the weights; `"fp32"` keeps them. Products are
            in float32 either way.
        group (`str`, *optional*):
            Of a model of several groups of spaces, the one to export.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether what comes along with the model may name any code.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for a model with a backbone of transformers, adapters or quantised layers, and for one of several
            groups without `group`.
        OSError: if there is no model, or nobody can write to the folder.
    """
    try:
        from ad_hf.export.step_graph import STEP, cache_of, step_graph
    except ImportError as error:
        raise ImportError('the export needs the package onnx: pip install "ad_hf[onnx]"') from error
    if precision not in ("fp16", "fp32"):
        raise ValueError(f"precision must be fp16 or fp32, got {precision!r}")
    folder, told = writable_folder(output_dir), {}
    if not isinstance(model, ADModel):
        name = model
        model, origin = load_model(name, trust_remote_code)
        told = {} if model.config.groups else _of_the_run(name, model, origin, trust_remote_code)
    of_group = model.config.groups is not None or group is not None
    exported = copy.deepcopy(model.group(group or "") if of_group else model).cpu().eval()
    if precision == "fp16" and not all(weight.isfinite().all() for weight in exported.half().parameters()):
        raise ValueError("the model has weights beyond what half precision holds: export it with precision='fp32'")
    exported.float()
    description = describe_step(exported)
    cache = cache_of(exported, description["window"])
    description["cache"] = {name: {"type": kind, "shape": shape} for name, (kind, shape) in cache.items()}
    description |= {"inputs": [*STEP, *cache], "outputs": ["logits", *(f"next_{name}" for name in cache)], **told}
    graph = step_graph(exported, description["window"], half=precision == "fp16")
    with atomic_path(folder / ONNX_FILE) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    write_text(folder / DESCRIPTION_FILE, json.dumps(description) + "\n")
    return folder


def describe_step(model: ADModel) -> dict[str, Any]:
    """What `model.json` says of a model itself."""
    if model.backbone is not None:
        kind = model.backbone.config.model_type
        raise ValueError(f"only models of this package's own blocks are exported, this one has a {kind} backbone")
    if not is_plain(model.blocks, OWN_LAYERS):
        raise ValueError("the model has adapters, quantised layers or hooks: merge or remove them before the export")
    config, rollout = model.config, model.rollout_config.resolve()
    length, dropped = context_sizes(config, rollout)
    goes_on = config.is_unbounded and rollout.context_drop is None
    return {
        "format": FORMAT,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "observation_space": config.observation_space,
        "action_space": config.action_space,
        "no_action": model.head.no_action().tolist(),
        "window": config.sliding_window if goes_on else length,
        # Steps that are forgotten at once when the window is full, the others being encoded anew; with none, the
        # window slides and states go on.
        "context_drop": None if goes_on else dropped,
        "sampling": {name: getattr(rollout, name) for name in SAMPLING},
    }


def _of_the_run(name: str | Path, model: ADModel, origin: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    """What `model.json` says of the tasks and the source of a model, and where it and its histories lie on the Hub."""
    files = run_files(model_folder(find_repository(name, "model").download(PUSHED_AGAIN)))
    run = read_json(files["run.json"]) if "run.json" in files else {}
    told = {
        kind: place if (place or {}).get("revision") else None
        for kind, place in (("model", origin), ("dataset", run.get("dataset")))
    }
    if run_recipe(name) is not None:
        family = TaskFamily(recipe_of_model(name, trust_remote_code=trust_remote_code)[0].family)
        splits = {split: [task.kwargs for task in family.tasks(split)] for split in SPLITS}
        told["family"] = {"env_id": family.env_id, "env_kwargs": family.env_kwargs, "tasks": splits}
    results = own_results(files, lambda: weights_digest(model)).get(SUMMARY_FILE)
    evaluation = {} if results is None else upgrade(read_json(results))
    if source := evaluation.get("agents", {}).get(SOURCE):
        curve = {part: source["curve"][part] for part in ("env_steps", "mean")}
        told["source"] = {**evaluation["source"], **curve, "num_tasks": source["num_tasks"]}
    return told


__all__ = ["DESCRIPTION_FILE", "ONNX_FILE", "export_onnx"]
