"""What would fail in every job of a collection, found before the first one starts and named by its setting."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from ad_hf.collection.jobs import Source, make_learner_of
from ad_hf.envs.spaces import space_from_json, space_to_json, storage_dtype
from ad_hf.envs.task_family import SPLITS, Task, TaskFamily
from ad_hf.sources.recorder import HistoryRecorder

SMALL_WIDTH = 16  # of a model that could hardly be smaller
STREAM_BYTES = 1024  # that an environment takes at the least
CHANNELS_LAST = "family.wrappers: [ad_hf.envs.making.ChannelsLast]"


def said(error: BaseException) -> str:
    """An error in one line: its type, unless it is a `ValueError`, and what it says."""
    text = " ".join(str(error).split())
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def first_environments(family: TaskFamily, tasks: Sequence[Task]) -> tuple[Task, VectorEnv]:
    """
    The first task of some whose environment can be made, and that environment.

    Raises:
        ValueError: if there is none, with what happened to the first.
    """
    first_error: Exception | None = None
    for task in tasks:
        try:
            return task, family.make_vec([task])
        except Exception as error:  # which is named when the task is to be learnt
            first_error = first_error or error
    assert first_error is not None
    raise ValueError(
        f"family.env_kwargs and tasks: no environment of the {len(tasks)} tasks of split {tasks[0].split!r} can be "
        f"made, as of {_named(family, tasks[0])}: {said(first_error)}"
    ) from first_error


def check_splits(family: TaskFamily, tasks: Sequence[Task]) -> None:
    """
    Make an environment of each split, and call the family's functions of a task.

    Raises:
        ValueError: if all environments of a split cannot be made, or a function fails or returns no number.
    """
    for split in SPLITS:
        of_split = [task for task in tasks if task.split == split]
        if of_split:
            first_environments(family, of_split)[1].close()
            family.optimal_returns(of_split[:1])
            family.random_returns(of_split[:1])


def describe_spaces(
    family: TaskFamily, observation_space: spaces.Space, action_space: spaces.Space
) -> list[dict[str, Any]]:
    """Both spaces as JSON; a `ValueError` with a way out for one that has no such form."""
    described = []
    for name, space in (("observation", observation_space), ("action", action_space)):
        try:
            described.append(space_to_json(space))
            space_from_json(described[-1], "as JSON")
        except (TypeError, ValueError) as error:
            _refuse(family, name, space, f"fits no model ({' '.join(str(error).split())})")
    return described


def check_spaces(family: TaskFamily, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Refuse spaces that no model can be made for, or whose elements sources and models do not mean alike.

    Raises:
        ValueError: with what can be done, such as a wrapper of the environments.
    """
    from ad_hf.model.configuration_ad import ADConfig
    from ad_hf.model.loading_ad import check_fits
    from ad_hf.model.modeling_ad import ADModel  # not at the top: workers, which may import this, need no model

    for name, space in (("observation", observation_space), ("action", action_space)):
        if 0 in (space.shape or ()) or (isinstance(space, spaces.Box) and not space.shape):
            _refuse(family, name, space, "has no numbers: make it a vector of some")
    if isinstance(action_space, spaces.Box) and action_space.dtype.kind != "f":
        # Sources draw real numbers, which each environment rounds in its own way, and so do models.
        reason = "holds integers, of which sources and models make real numbers: make it MultiDiscrete"
        _refuse(family, "action", action_space, reason)
    shape = observation_space.shape or ()
    if isinstance(observation_space, spaces.Box) and len(shape) == 3 and shape[0] < min(shape[1:]):
        reason = f"has its channels first, where models take (height, width, channels): turn it by {CHANNELS_LAST}"
        _refuse(family, "observation", observation_space, reason)
    observations, actions = describe_spaces(family, observation_space, action_space)
    try:
        with torch.device("meta"):  # which takes no memory
            config = ADConfig(
                observation_space=observations,
                action_space=actions,
                hidden_size=SMALL_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=1,
                context_length=1,
                image_channels=[1],
            )
            model = ADModel(config)
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise ValueError(f"no model can be made for {_environments(family)}: {said(cause)}") from error
    bytes_of_weights = 4 * sum(weight.numel() for weight in model.parameters())
    check_fits(
        bytes_of_weights,
        f"a model for {_environments(family)}, of observations in {_line(observation_space)} and actions in "
        f"{_line(action_space)}, though only {SMALL_WIDTH} wide,",
    )


def check_memory(source: Source, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Refuse histories of one learner that do not fit into this machine's memory, which a learner keeps while it learns.

    Raises:
        ValueError: with the memory that they take, and that there is.
    """
    from ad_hf.model.loading_ad import check_fits

    both = (observation_space, action_space)
    step = sum(int(np.prod(space.shape or ())) * storage_dtype(space).itemsize for space in both) + 8 + 2
    streams, steps = source.n_envs * source.tasks_per_job, -(-source.total_timesteps // source.n_envs)
    check_fits(
        streams * (STREAM_BYTES + steps * step),
        f"source.n_envs {source.n_envs} and source.total_timesteps {source.total_timesteps}: keeping {streams} "
        f"histories of {steps} steps",
    )


def rehearse(family: TaskFamily, source: Source, tasks: Sequence[Task]) -> None:
    """
    Make a learner as jobs do, on one or two environments, and drop it.

    Raises:
        ValueError: if it can be made for neither the first nor the last task, naming the hyper-parameter without which
            it could, if there is one.
    """
    first_error: Exception | None = None
    for task in (tasks[0], tasks[-1]):
        error = _failure(family, source, task, source.hyperparameters)
        if error is None:
            return
        first_error = first_error or error
    assert first_error is not None
    given = source.hyperparameters
    for name, value in given.items():
        others = {other: given[other] for other in given if other != name}
        if _failure(family, source, tasks[0], others) is None:
            what = f"source.hyperparameters.{name}: with {value!r}, {source.algorithm} cannot be made for"
            raise ValueError(f"{what} {_environments(family)}: {said(first_error)}") from first_error
    raise ValueError(
        f"source.algorithm: {source.algorithm} cannot be made for {_named(family, tasks[0])}, with the "
        f"hyper-parameters {given}: {said(first_error)}"
    ) from first_error


def _failure(family: TaskFamily, source: Source, task: Task, hyperparameters: dict[str, Any]) -> Exception | None:
    """Why no learner can be made for a task."""
    quiet = {**hyperparameters, "verbose": 0}
    if str(quiet.get("device")).startswith("cuda"):  # which is the workers'
        quiet["device"] = "cpu"
    number = min(source.n_envs, 2)
    try:
        with _random_numbers_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the workers say them
            with closing(family.make_vec([task], num_envs=number)) as envs:
                recorder = HistoryRecorder(envs, 1)
                make_learner_of(family, source.algorithm, recorder, [task.task_id] * number, None, quiet)
    except Exception as error:
        return error
    return None


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave the process's random numbers as they are, which learners and those that are loaded seed and draw."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _refuse(family: TaskFamily, name: str, space: spaces.Space, reason: str) -> None:
    wrapper = "" if "family.wrappers" in reason else f", by a gymnasium.{name.capitalize()}Wrapper in family.wrappers"
    raise ValueError(f"the {name} space of {_environments(family)}, {_line(space)}, {reason}{wrapper}")


def _environments(family: TaskFamily) -> str:
    return f"{family.env_id} with env_kwargs {family.env_kwargs}"


def _named(family: TaskFamily, task: Task) -> str:
    return f"task {task.task_id} {task.kwargs} of {_environments(family)}"


def _line(space: spaces.Space) -> str:
    return " ".join(str(space).split())
