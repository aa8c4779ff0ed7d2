"""Algorithm Distillation on the Hugging Face stack.

Importing this package registers its environments with gymnasium, and its model with transformers' Auto classes as soon
as those are imported. Every public name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

import ad_hf.envs  # noqa: F401 - registers the environments

if TYPE_CHECKING:
    from ad_hf import histories
    from ad_hf.collection.collect import collect
    from ad_hf.collection.failures import CollectionError
    from ad_hf.envs.task_family import Task, TaskFamily
    from ad_hf.evaluation.rollouts import Evaluation, evaluate
    from ad_hf.export.onnx_files import export_onnx
    from ad_hf.export.page import build_demo
    from ad_hf.export.space import push_space
    from ad_hf.formats.merge import merge_datasets
    from ad_hf.histories.dataset import load_histories
    from ad_hf.histories.model_config import config_from_dataset
    from ad_hf.histories.torch_datasets import HistoryWindowsDataset, IterableHistoryWindowsDataset, collate_windows
    from ad_hf.hub.push import push_dataset, push_model
    from ad_hf.model.configuration_ad import ADConfig
    from ad_hf.model.modeling_ad import ADModel, ADOutput
    from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput
    from ad_hf.pipeline import quickstart, train
    from ad_hf.recipe import Recipe, load_recipe
    from ad_hf.training.interruption import TrainingInterrupted

_NAMES = {
    "ad_hf.collection.collect": ("collect",),
    "ad_hf.collection.failures": ("CollectionError",),
    "ad_hf.envs.task_family": ("Task", "TaskFamily"),
    "ad_hf.evaluation.rollouts": ("Evaluation", "evaluate"),
    "ad_hf.export.onnx_files": ("export_onnx",),
    "ad_hf.export.page": ("build_demo",),
    "ad_hf.export.space": ("push_space",),
    "ad_hf.formats.merge": ("merge_datasets",),
    "ad_hf.histories.dataset": ("load_histories",),
    "ad_hf.histories.model_config": ("config_from_dataset",),
    "ad_hf.histories.torch_datasets": (
        "HistoryWindowsDataset",
        "IterableHistoryWindowsDataset",
        "collate_windows",
    ),
    "ad_hf.hub.push": ("push_dataset", "push_model"),
    "ad_hf.model.configuration_ad": ("ADConfig",),
    "ad_hf.model.modeling_ad": ("ADModel", "ADOutput"),
    "ad_hf.model.rollout_ad": ("RolloutConfig", "RolloutOutput"),
    "ad_hf.pipeline": ("quickstart", "train"),
    "ad_hf.recipe": ("Recipe", "load_recipe"),
    "ad_hf.training.interruption": ("TrainingInterrupted",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "ADConfig",
    "ADModel",
    "ADOutput",
    "CollectionError",
    "Evaluation",
    "HistoryWindowsDataset",
    "IterableHistoryWindowsDataset",
    "Recipe",
    "RolloutConfig",
    "RolloutOutput",
    "Task",
    "TaskFamily",
    "TrainingInterrupted",
    "build_demo",
    "collate_windows",
    "collect",
    "config_from_dataset",
    "evaluate",
    "export_onnx",
    "histories",
    "load_histories",
    "load_recipe",
    "merge_datasets",
    "push_dataset",
    "push_model",
    "push_space",
    "quickstart",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "histories":
        return import_module("ad_hf.histories")
    if name not in _MODULES:
        raise AttributeError(f"module 'ad_hf' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@when_imported("transformers.models.auto.configuration_auto")
def _register_configuration(_: Any) -> None:
    import_module("ad_hf.model.configuration_ad")


@when_imported("transformers.models.auto.modeling_auto")
def _register_model(_: Any) -> None:
    import_module("ad_hf.model.modeling_ad")
