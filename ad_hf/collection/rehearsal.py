"""Refuses, before the first job, settings that would fail in every job of a collection."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ad_hf.collection.in_process import same_random_numbers
from ad_hf.collection.jobs import make_learner_of
from ad_hf.envs.spaces import space_from_json, space_to_json, storage_dtype
from ad_hf.envs.task_family import SPLITS, Task, TaskFamily
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.recorder import HistoryRecorder

SMALL_WIDTH = 16  # of a model that could hardly be smaller
STREAM_BYTES = 1024  # that an environment takes at the least
CHANNELS_LAST = "turn it by family.wrappers: [ad_hf.envs.making.ChannelsLast]"
SMALL_MODEL: dict[str, Any] = {
    **{"hidden_size": SMALL_WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1},
    **{"intermediate_size": 1, "context_length": 1, "image_channels": [1]},
}


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _message(error: BaseException) -> str:
    """An error in one line: its type, unless it is a `ValueError`, and its text."""
    text = _one_line(error)
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def _environments(family: TaskFamily, task: Task | None = None) -> str:
    name = f"{family.env_id} with env_kwargs {family.env_kwargs}"
    return name if task is None else f"task {task.task_id} {task.kwargs} of {name}"


def check_environments(family: TaskFamily, tasks: Sequence[Task]) -> tuple[Task, tuple[spaces.Space, spaces.Space]]:
    """
    Make and reset an environment of each split, and call the family's functions of a task; a `ValueError` where that
    fails.

    Returns the first task whose environment can be made, and the observation and action space of that environment.
    """
    first = None
    for split in SPLITS:
        of_split = [task for task in tasks if task.split == split]
        errors: list[Exception] = []
        for task in of_split:
            try:
                with same_random_numbers():
                    envs = family.make_vec([task], seed=0)  # which resets it
            except Exception as error:  # which is named when the task is to be learnt
                errors.append(error)
                continue
            first = first or (task, (envs.single_observation_space, envs.single_action_space))
            envs.close()
            family.optimal_returns(of_split[:1])
            family.random_returns(of_split[:1])
            break
        else:
            if errors:
                raise ValueError(
                    f"family.env_kwargs and tasks: no environment of the {len(of_split)} tasks of split {split!r} can "
                    f"be made and reset, as of {_environments(family, of_split[0])}: {_message(errors[0])}"
                ) from errors[0]
    assert first is not None
    return first


def check_spaces(
    family: TaskFamily, observation_space: spaces.Space, action_space: spaces.Space
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Refuse spaces that no model can be made for, or whose elements sources and models do not mean alike, with a way
    out such as a wrapper; returns both as JSON.
    """
    # Not at the top: workers, which may import this, need no model.
    from ad_hf.model.configuration_ad import ADConfig
    from ad_hf.model.loading_ad import check_fits
    from ad_hf.model.modeling_ad import ADModel

    described: dict[str, Any] = {}
    for name, space in (("observation", observation_space), ("action", action_space)):
        if reason := _misfit(name, space):
            way_out = "" if reason.endswith(CHANNELS_LAST) else f", by a gymnasium.{name.capitalize()}Wrapper in "
            way_out += "family.wrappers" if way_out else ""
            raise ValueError(f"the {name} space of {_environments(family)}, {_one_line(space)}, {reason}{way_out}")
        described[f"{name}_space"] = space_to_json(space)
    try:
        with torch.device("meta"):  # which takes no memory
            model = ADModel(ADConfig(**described, **SMALL_MODEL))
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise ValueError(f"no model can be made for {_environments(family)}: {_message(cause)}") from error
    check_fits(
        4 * sum(weight.numel() for weight in model.parameters()),
        f"a model for {_environments(family)}, of observations in {_one_line(observation_space)} and actions in "
        f"{_one_line(action_space)}, though only {SMALL_WIDTH} wide,",
    )
    return described["observation_space"], described["action_space"]


def _misfit(name: str, space: spaces.Space) -> str | None:
    """Why no model and source can be made for a space, if so, and a way out."""
    shape = space.shape or ()
    if 0 in shape or (isinstance(space, spaces.Box) and not shape):
        return "has no numbers: make it a vector of some"
    if name == "action" and isinstance(space, spaces.Box) and space.dtype.kind != "f":
        # Sources draw real numbers, which each environment rounds in its own way, and so do models.
        return "holds integers, of which sources and models make real numbers: make it MultiDiscrete"
    if name == "observation" and isinstance(space, spaces.Box) and len(shape) == 3 and shape[0] < min(shape[1:]):
        return f"has its channels first, where models take (height, width, channels): {CHANNELS_LAST}"
    try:
        space_from_json(space_to_json(space), "as JSON")
    except (TypeError, ValueError) as error:
        return f"fits no model ({_one_line(error)})"
    return None


def check_memory(source: SourceConfig, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Refuse histories of one learner, which keeps them while it learns, that do not fit into memory."""
    from ad_hf.model.loading_ad import check_fits

    both = (observation_space, action_space)
    step = sum(int(np.prod(space.shape or ())) * storage_dtype(space).itemsize for space in both) + 8 + 2
    streams, steps = source.n_envs * source.tasks_per_job, -(-source.total_timesteps // source.n_envs)
    check_fits(
        streams * (STREAM_BYTES + steps * step),
        f"source.n_envs {source.n_envs} and source.total_timesteps {source.total_timesteps}: keeping {streams} "
        f"histories of {steps} steps",
    )


def rehearse(family: TaskFamily, source: SourceConfig, tasks: Sequence[Task]) -> None:
    """
    Make a learner as jobs do, on one or two environments, and drop it.

    Raises:
        ValueError: if it can be made for none of the tasks, naming the hyper-parameter without which it could, if
            there is one.
    """
    errors = []
    for task in tasks:
        error = _rehearse(family, source, task)
        if error is None:
            return
        errors.append(error)
    settings, message = source.hyperparameters, _message(errors[0])
    for name, value in settings.items():
        others = {other: settings[other] for other in settings if other != name}
        if _rehearse(family, replace(source, hyperparameters=others), tasks[0]) is None:
            reason = f"source.hyperparameters.{name}: with {value!r}, {source.algorithm} cannot be made for"
            raise ValueError(f"{reason} {_environments(family)}: {message}") from errors[0]
    raise ValueError(
        f"source.algorithm: {source.algorithm} cannot be made for {_environments(family, tasks[0])}, with the "
        f"hyper-parameters {settings}: {message}"
    ) from errors[0]


def _rehearse(family: TaskFamily, source: SourceConfig, task: Task) -> Exception | None:
    """Why no learner can be made for a task, if so."""
    quiet = {name: value for name, value in source.hyperparameters.items() if name != "verbose"}
    if str(quiet.get("device")).startswith("cuda"):  # which is the workers'
        quiet["device"] = "cpu"
    number = min(source.n_envs, 2)
    try:
        with same_random_numbers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the workers give them
            with closing(family.make_vec([task], num_envs=number)) as envs:
                recorder = HistoryRecorder(envs, 1)
                make_learner_of(family, replace(source, hyperparameters=quiet), recorder, [task.task_id] * number, 0)
    except Exception as error:
        return error
    return None
