"""Algorithm Distillation on the Hugging Face stack.

Importing this package registers its environments with gymnasium and its model with transformers' Auto classes; every
public name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

import ad_hf.envs  # registers the environments
import ad_hf.histories

# Worker processes of a collection have this name. They need no model, whose modules take most of the time to import.
WORKER_NAME = "ad_hf worker"
if current_process().name != WORKER_NAME:
    import ad_hf.model.modeling_ad  # noqa: F401 - registers the model

if TYPE_CHECKING:
    from ad_hf.collection.collect import collect
    from ad_hf.collection.failures import CollectionError
    from ad_hf.envs.task_family import Task, TaskFamily
    from ad_hf.evaluation.evaluate import Evaluation, evaluate
    from ad_hf.formats.merge import merge_datasets
    from ad_hf.histories.dataset import config_from_dataset, load_histories
    from ad_hf.hub.push import push_dataset, push_model
    from ad_hf.model.configuration_ad import ADConfig
    from ad_hf.model.modeling_ad import ADModel, ADOutput
    from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput
    from ad_hf.pipeline import quickstart
    from ad_hf.recipe import Recipe, load_recipe
    from ad_hf.training.interruption import TrainingInterrupted
    from ad_hf.training.trainer import train

_MODULES = {
    "ADConfig": "ad_hf.model.configuration_ad",
    "ADModel": "ad_hf.model.modeling_ad",
    "ADOutput": "ad_hf.model.modeling_ad",
    "CollectionError": "ad_hf.collection.failures",
    "Evaluation": "ad_hf.evaluation.evaluate",
    "Recipe": "ad_hf.recipe",
    "RolloutConfig": "ad_hf.model.rollout_ad",
    "RolloutOutput": "ad_hf.model.rollout_ad",
    "Task": "ad_hf.envs.task_family",
    "TaskFamily": "ad_hf.envs.task_family",
    "TrainingInterrupted": "ad_hf.training.interruption",
    "collect": "ad_hf.collection.collect",
    "config_from_dataset": "ad_hf.histories.dataset",
    "evaluate": "ad_hf.evaluation.evaluate",
    "load_histories": "ad_hf.histories.dataset",
    "load_recipe": "ad_hf.recipe",
    "merge_datasets": "ad_hf.formats.merge",
    "push_dataset": "ad_hf.hub.push",
    "push_model": "ad_hf.hub.push",
    "quickstart": "ad_hf.pipeline",
    "train": "ad_hf.training.trainer",
}

__all__ = [
    "ADConfig",
    "ADModel",
    "ADOutput",
    "CollectionError",
    "Evaluation",
    "Recipe",
    "RolloutConfig",
    "RolloutOutput",
    "Task",
    "TaskFamily",
    "TrainingInterrupted",
    "collect",
    "config_from_dataset",
    "evaluate",
    "load_histories",
    "load_recipe",
    "merge_datasets",
    "push_dataset",
    "push_model",
    "quickstart",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ad_hf' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
