"""A recipe to start from, written from an environment's spaces and constructor."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces

from ad_hf.collection.rehearsal import check_spaces
from ad_hf.envs.recipes import import_from
from ad_hf.envs.task_family import TaskFamily
from ad_hf.envs.variation import Probe, Variation, arguments_of, find_variations, play
from ad_hf.sources.vectorised import state_count
from ad_hf.storage.files import local_path, write_text

logger = logging.getLogger(__name__)

LONGEST_EPISODE = 200  # of which four fit into a context that a laptop trains
MOST_STATES = 10_000  # of a table that is learnt in minutes
MOST_TASKS = 200  # that are listed rather than drawn
MOST_DIFFERENCES = 3  # between tasks at first
CONTEXTS = 100, 800
FEWEST_TASKS = 10, 3  # for training and validation: of fewer, `inspect` warns and `train` cannot judge

# Algorithm, its environments, steps of each environment, tasks that are drawn, hyper-parameters, why.
Source = tuple[str, int, int, int, str, str]

TEMPLATE = """\
# A first recipe for {env_id}. It runs as it is; every setting is in `ad-hf train --help all`.
{warning}# Observations: {observations}
# Actions: {actions}
family:
  env_id: {env_id}
  env_kwargs: {env_kwargs}  # of all tasks. {limit_note}
{tasks}
  num_validation_tasks: {num_validation_tasks}  # on which training chooses its best checkpoint
  num_test_tasks: {num_test_tasks}  # which training never sees, for rollouts and evaluations

source:
  algorithm: {algorithm}  # {why}
  n_envs: {n_envs}  # environments that a task is learnt in side by side; each leaves one history
  total_timesteps: {total_timesteps}  # of a task, over these environments: long enough for its return to rise
  hyperparameters: {hyperparameters}

data:
  keep_every_episode: {keep_every_episode}  # of a history, so that the return rises within one window

model:
  context_length: {context_length}  # steps that the model sees: about {episodes} episodes, {length_note}
  hidden_size: 64  # small enough for a laptop; 128 learns better
  num_hidden_layers: 4
  num_attention_heads: 2
  intermediate_size: 256

training:
  max_steps: {max_steps}  # updates; more if the loss still falls at the end
  batch_size: {batch_size}  # windows of an update
  learning_rate: 3.0e-3
  eval_steps: 200  # updates between rollouts on the validation tasks
  eval_repeats: 5  # environments of each, so that the returns are less random
  eval_episodes: {eval_episodes}

rollout:
  num_episodes: {num_episodes}  # in which the model improves on a test task, in its context alone
"""
NO_TASKS = """\
  # AD learns from tasks that differ, and neither an argument of the constructor nor an attribute was found that makes
  # them differ: give the environment one, as a hidden goal, and list its values here.
  tasks: [{}]"""


def draft_recipe(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> str:
    """
    The YAML text of a recipe, with comments, that can be collected and trained as it is.

    Args:
        env_id (`str`):
            Id of an environment, as `CartPole-v1`, or `module:Id-v0` to import the module that registers it.
        env_kwargs (`Mapping`, *optional*):
            Arguments of its constructor.

    Raises:
        ValueError: for an unknown environment, one whose constructor needs other arguments, and for spaces that no
            model can be made for.
    """
    kwargs = dict(env_kwargs or {})
    base = _first_look(env_id, kwargs)
    check_spaces(TaskFamily(env_id, tasks=[{}], env_kwargs=kwargs), *base.spaces)
    limit, length, limit_note, length_note = _episodes(env_id, kwargs, base)
    if limit is not None:
        kwargs["max_episode_steps"] = limit
    episodes = 10 if _is_small(*base.spaces) else 4
    context = min(CONTEXTS[1], max(CONTEXTS[0], math.ceil(length / 5) * 5 * episodes))
    algorithm, n_envs, steps, most_tasks, hyperparameters, why = _source(*base.spaces, context, length)
    variations = find_variations(env_id, kwargs, base)
    active = _active(variations)
    count = math.prod(len(each.values) or MOST_TASKS + 1 for each in active)
    number = count if count <= MOST_TASKS else most_tasks
    num_test_tasks = min(16, max(1, number // 5)) if number > 1 else 0
    num_validation_tasks = min(8, max(3, number // 8)) if number >= 16 else number // 8
    warning = _warning(number, num_validation_tasks, num_test_tasks)
    if warning:
        logger.warning("%s: %s", env_id, warning)
    for each in active:
        kwargs.pop(each.name, None)
    observations, actions = (" ".join(str(space).split())[:100] for space in base.spaces)
    return TEMPLATE.format(
        **{"env_id": env_id, "observations": observations, "actions": actions, "env_kwargs": _flow(kwargs)},
        **{"limit_note": limit_note, "tasks": _tasks(variations, active, count, number)},
        **{"num_validation_tasks": num_validation_tasks, "num_test_tasks": num_test_tasks},
        **{"algorithm": algorithm, "n_envs": n_envs, "total_timesteps": n_envs * steps, "why": why},
        **{"hyperparameters": hyperparameters, "keep_every_episode": max(1, int(steps / (2.5 * context)))},
        **{"context_length": context, "length_note": length_note, "episodes": max(1, round(context / length))},
        **{"batch_size": 32 if context <= 400 else 16, "max_steps": 800 if context <= 400 else 600},
        **{"warning": f"# But {warning}\n" if warning else ""},
        **{"eval_episodes": max(10, min(50, 3000 // length)), "num_episodes": max(20, min(100, 6000 // length))},
    )


def write_draft(env_id: str, file: str | Path | None = None, env_kwargs: Mapping[str, Any] | None = None) -> Path:
    """
    Write a [`draft_recipe`] to a file, whose name is by default that of the environment; returns the file's path.

    Modules in the working directory and beside the file can be imported by `module:Id-v0`.

    Raises:
        FileExistsError: if the file exists.
    """
    name = re.sub(r"-v\d+$", "", re.split("[:/]", env_id)[-1])
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    path = local_path(file if file is not None else f"{snake}.yaml")
    if path.exists():
        raise FileExistsError(f"{path} exists already: give another file, or delete it")
    import_from([os.path.abspath(path.parent), os.getcwd()])
    write_text(path, draft_recipe(env_id, env_kwargs))
    return path


def _first_look(env_id: str, kwargs: Mapping[str, Any]) -> Probe:
    """Some random play, or an error that says why there is none."""
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        gym.spec(name)
        return play(env_id, kwargs)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"{env_id}: {' '.join(str(error).split()).rstrip('.')}{_other_ids(env_id, error)}") from error
    except TypeError as error:
        needed = [name for name, value in arguments_of(env_id, kwargs).items() if value is Parameter.empty]
        if not needed:
            raise
        example = json.dumps(dict.fromkeys(needed, 0))
        raise ValueError(
            f"{env_id} cannot be made without {', '.join(needed)}: give an example of each, as in --env_kwargs "
            f"'{example}'; the tasks vary it"
        ) from error


def _other_ids(env_id: str, error: Exception) -> str:
    """What to write instead of an unknown id: one that its module registers, or the module before it."""
    module, _, name = env_id.rpartition(":")
    if name in gym.registry or "Did you mean" in str(error) or isinstance(error, ImportError):
        return ""
    points = {each.id: each.entry_point for each in gym.registry.values()}
    modules = {key: str(getattr(point, "__module__", point)).partition(":")[0] for key, point in points.items()}
    ids = [key for key, each in modules.items() if (each == module if module else key.startswith(f"{name}-v"))]
    same = [key for key in ids if key.startswith(f"{name}-v")] or ids
    if same:
        return f"; registered are {', '.join(ids)}: write {module}{':' * bool(module)}{same[-1]}"
    return "" if module else f"; where a module of yours registers it, write module:{name}"


def _episodes(env_id: str, kwargs: Mapping[str, Any], base: Probe) -> tuple[int | None, int, str, str]:
    """A time limit to set, if any, about how many steps an episode takes, and notes on both."""
    own = kwargs.get("max_episode_steps") or gym.spec(env_id.rpartition(":")[2]).max_episode_steps
    mean = sum(base.lengths) / max(1, len(base.lengths))
    ends_itself = sum(base.lengths) > len(base.steps) / 2  # rather than by a time limit
    limit = own if own and own <= LONGEST_EPISODE else 100 if ends_itself and mean < 50 else LONGEST_EPISODE
    length = min(limit, math.ceil(5 * mean)) if ends_itself else limit
    note = f"random play ends one after {mean:.0f}" if ends_itself else "random play ends none before that"
    if limit == own:
        return None, length, f"Episodes have at most {own} steps", note
    why = f"has a limit of {own} steps" if own else "sets no time limit"
    return limit, length, f"The id {why}: shorter episodes fit into a context", note


def _warning(number: int, validation: int, test: int) -> str:
    """Why no model can learn from these tasks, if there are too few."""
    if number == 1:
        return "a model cannot learn from one task: nothing was found that makes tasks differ"
    train = number - validation - test
    if train >= FEWEST_TASKS[0] and validation >= FEWEST_TASKS[1]:
        return ""
    return (
        f"{number} tasks are too few: {train} for training and {validation} for validation, where a model needs "
        f"{FEWEST_TASKS[0]} and {FEWEST_TASKS[1]} at the very least: let more values differ"
    )


def _is_small(observations: spaces.Space, actions: spaces.Space) -> bool:
    """Whether a source learns in minutes without exploring far: discrete actions, few states."""
    discrete = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    is_small = isinstance(observations, discrete) and state_count(observations) <= MOST_STATES
    return is_small and isinstance(actions, spaces.Discrete)


def _source(observations: spaces.Space, actions: spaces.Space, context: int, length: int) -> Source:
    """A source that suits the spaces."""
    steps = max(1000, 3 * context)  # of a history: more than two windows
    if _is_small(observations, actions):
        settings = (
            f"{{learning_rate: 3.0e-3, n_steps: {max(5, min(length, 40))}, gamma: 0.95, ent_coef: 0.01, "
            "policy_kwargs: {net_arch: [64]}}"
        )
        return (
            "A2C",
            50,
            steps,
            64,
            settings,
            "improves fast where rewards are easy to find; TabularQ explores better where they are rare",
        )
    if isinstance(observations, spaces.Box) and len(observations.shape) == 3:
        small = min(observations.shape[:2]) < 36
        network = ", policy_kwargs: {features_extractor_class: ad_hf.sources.extractors.SmallCNN}" if small else ""
        settings = f"{{n_steps: 64, batch_size: 256, learning_rate: 1.0e-3, ent_coef: 0.01{network}}}"
        return (
            "PPO",
            16,
            2 * steps,
            24,
            settings,
            "has a network for images; DQN takes discrete actions, too",
        )
    if isinstance(actions, spaces.Box):
        settings = "{learning_rate: 3.0e-3, gamma: 0.95, batch_size: 128, learning_starts: 400, gradient_steps: 5}"
        return "SAC", 10, steps, 24, settings, "takes continuous actions; PPO is faster, and needs more steps"
    settings = "{n_steps: 32, batch_size: 400, learning_rate: 1.0e-3, gamma: 0.98, policy_kwargs: {net_arch: [64]}}"
    return "PPO", 50, 2 * steps, 64, settings, "takes any spaces; A2C is simpler, DQN needs fewer steps"


def _active(variations: Sequence[Variation]) -> list[Variation]:
    """Those by which tasks differ: arguments of the constructor, or attributes where the arguments make few tasks."""
    arguments = [each for each in variations if not each.is_attribute and (each.matters or each.is_likely)]
    arguments = arguments[:MOST_DIFFERENCES]
    attributes = [each for each in variations if each.is_attribute][:MOST_DIFFERENCES]
    few = all(each.values for each in arguments) and math.prod(len(each.values) for each in arguments) < 16
    return attributes if few and attributes else arguments


def _tasks(variations: Sequence[Variation], active: Sequence[Variation], count: int, number: int) -> str:
    """The lines that describe the tasks, with what else could differ as comments."""
    if not active:
        return NO_TASKS
    listed = count <= MOST_TASKS
    lines = [f"  # {number} tasks, by what may differ between them: a model is to find it out in its context."]
    lines += ["  grid:"] if listed else ["  random:", f"    num_tasks: {number}", "    seed: 0", "    values:"]
    for each in variations:
        entry = each.listed if listed else each.drawn
        if entry is None or (each.is_attribute and not active[0].is_attribute):
            continue
        note = "an attribute" if each.is_attribute else "an argument of the constructor"
        note += "" if each.default is Parameter.empty else f", by default {_flow(_rounded(each.default))}"
        note += f"; {each.guess} were tried, a guess: widen or narrow this" if each.guess else ""
        note += "" if each.matters else "; random play does not show it"
        indent = "    " if listed else "      "
        lines.append(f"{indent}{'' if each in active else '# '}{each.name}: {_flow(entry)}  # {note}")
    if active[0].is_attribute:
        names = ", ".join(each.name for each in active)
        lines.append(f"  attributes: [{names}]  # set after the constructor: what it derives from them stays as it is")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if type(value) is float else value


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    plain = json.loads(json.dumps(value, default=str))
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("...\n").strip()
