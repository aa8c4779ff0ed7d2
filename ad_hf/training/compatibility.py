"""Whether a dataset is one that a recipe may train on."""

from __future__ import annotations

import json
from dataclasses import asdict

import gymnasium as gym

from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset


def check_tasks(family: TaskFamily, dataset: HistoryDataset, split: str | None = None) -> None:
    """
    Refuse a dataset of another environment, other tasks or another split; of one split's tasks alone, if it is given.

    Raises:
        ValueError: naming what differs.
    """
    metadata = dataset.metadata
    for name, setting in json.loads(json.dumps(family.env_settings)).items():
        if getattr(metadata, name) != setting:
            raise ValueError(
                f"{dataset} holds histories with {name} = {getattr(metadata, name)!r}, the recipe's family has "
                f"{setting!r}"
            )
    wanted = {task.task_id: json.loads(json.dumps(asdict(task))) for task in family.tasks()}
    for task in metadata.tasks:
        splits = {task["split"], wanted.get(task["task_id"], task)["split"]}
        if task != wanted.get(task["task_id"]) and split in (None, *splits):
            raise ValueError(
                f"{dataset} holds histories of other tasks or of another split than the recipe's family: "
                f"it has {task}, the recipe {wanted.get(task['task_id'])}"
            )


def check_family(family: TaskFamily, dataset: HistoryDataset) -> None:
    """Refuse a dataset of other tasks, or of another split: a validation or test task would have been trained on."""
    check_tasks(family, dataset)
    metadata = dataset.metadata
    try:
        envs = family.make_vec(family.tasks()[:1])
    except gym.error.Error as error:
        if not family.tasks("validation"):
            return  # data of an environment that is not here can be learnt from, just not be acted in
        raise ValueError(
            f"{family.env_id} cannot be made, which the recipe's validation tasks need: {error}; import the package "
            "that registers it, or set family.num_validation_tasks to 0"
        ) from error
    for name in ("observation_space", "action_space"):
        found, made = getattr(metadata, name), space_to_json(getattr(envs, f"single_{name}"))
        if found != made:
            raise ValueError(f"{dataset} has an {name} of {found}, the environments of the recipe one of {made}")
    envs.close()
