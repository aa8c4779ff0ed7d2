"""Whether a dataset is one that a recipe may train on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import TaskFamily, UnknownEnvironmentError
from ad_hf.histories.dataset import HistoryDataset


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def check_tasks(family: TaskFamily, dataset: HistoryDataset, split: str | None = None) -> None:
    """
    Refuse a dataset of another environment, other tasks or another split; with a split, by its tasks alone.

    Raises:
        ValueError: naming what differs.
    """
    metadata = dataset.metadata
    for name, setting in _as_json(family.env_settings).items():
        if getattr(metadata, name) != setting:
            raise ValueError(
                f"{dataset} holds histories with {name} = {getattr(metadata, name)!r}, the recipe's family has "
                f"{setting!r}"
            )
    own = {task.task_id: _as_json(asdict(task)) for task in family.tasks()}
    for task in metadata.tasks:
        same = own.get(task["task_id"])
        if task != same and split in (None, task["split"], (same or task)["split"]):
            raise ValueError(
                f"{dataset} holds histories of other tasks or of another split than the recipe's family: "
                f"it has {task}, the recipe {same}"
            )


def check_family(family: TaskFamily, dataset: HistoryDataset) -> None:
    """Refuse a dataset of other tasks, or of another split: a run would train on validation or test tasks."""
    check_tasks(family, dataset)
    try:
        envs = family.make_vec(family.tasks()[:1])
    except UnknownEnvironmentError as error:
        if not family.tasks("validation"):
            return  # a model can learn from data of an environment that is not installed, but not act in it
        raise ValueError(
            f"{family.env_id} cannot be made, which the recipe's validation tasks need: {error}; import the package "
            "that registers it, or set family.num_validation_tasks to 0"
        ) from error
    for name in ("observation_space", "action_space"):
        space, own = getattr(dataset.metadata, name), space_to_json(getattr(envs, f"single_{name}"))
        if space != own:
            raise ValueError(f"{dataset} has an {name} of {space}, the environments of the recipe one of {own}")
    envs.close()
