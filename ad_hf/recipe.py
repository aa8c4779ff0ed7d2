"""Recipes: every setting of a run, in one YAML file with one section per step."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ad_hf.envs.task_family import FamilyConfig
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.training.config import TrainingConfig


@dataclass
class SourceConfig:
    """The `source` section: how each task is learnt.

    Args:
        algorithm: Any Stable-Baselines3 or sb3-contrib algorithm.
        n_envs: Parallel environments of a learner; each gives one history.
        total_timesteps: Transitions per task and seed, over all environments.
        hyperparameters: Arguments of the algorithm.
        seeds: Each task is learnt once with each of them.
        tasks_per_job: Tasks that one learner learns side by side, of those algorithms that can.
        until_converged: Learn until returns have stopped to improve, from `total_timesteps` at most: settings of
            `StopWhenConverged` (window, tolerance, patience, return_threshold, min_timesteps); `{}` for its defaults.
        callbacks: Stable-Baselines3 callbacks of each learner: import paths, or `{name: import path, kwargs: {...}}`.
            `{task_id}` and `{seed}` in arguments that are text are filled in.
    """

    algorithm: str = "A2C"
    n_envs: int = 50
    total_timesteps: int = 100_000
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    tasks_per_job: int = 1
    until_converged: dict[str, Any] | None = None
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)


@dataclass
class DataConfig:
    """The `data` section: which steps of the histories are trained on.

    Args:
        keep_every_episode: Keep only every k-th episode of each history, and the last.
        max_episodes: Before that, cut each history after so many episodes.
        last_episodes: Then drop all but so many of its last ones: expert distillation.
        min_improvement: Leave out histories whose mean return rose by less, from the first ten episodes to the last.
        labels: Import path of a function of observations and an environment's keyword arguments that returns the
            actions to learn, instead of those that were taken, such as ad_hf.envs.dark_room.optimal_actions.
        buffer_megabytes: Of a streamed dataset, histories that are mixed at a time; twice as much is held.
        num_workers: Of a streamed dataset, processes that read and decode beside each training process.
        keep_in_memory: Of one that is not streamed, whether each process reads it into memory, or all share
            memory-mapped files in the cache of datasets; by default the first if it takes less than a quarter of the
            free memory.
    """

    keep_every_episode: int = 1
    max_episodes: int | None = None
    last_episodes: int | None = None
    min_improvement: float | None = None
    labels: str | None = None
    buffer_megabytes: int = 32
    num_workers: int = 0
    keep_in_memory: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("keep_every_episode", 1), ("buffer_megabytes", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass
class ModelConfig:
    """The `model` section; the spaces come from the dataset. See `ADConfig`.

    Args:
        hidden_size: Width of the tokens.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Attention heads of each block.
        intermediate_size: Width of the feed-forward layers.
        context_length: Steps that the model sees.
        sliding_window: Steps that each block attends to; all of the context by default.
        initializer_range: Standard deviation of the initial weights.
        dropout: Dropout on the residual branches.
        attention_dropout: Dropout on the attention weights.
        input_mask_probability: Probability that a step's token is blanked in training.
        label_smoothing: Label smoothing of the loss.
        normalize_observations: Normalise observations that are vectors, by their mean and deviation in the data.
        reward_scale: Rewards are divided by it; by default by the mean magnitude of those that are not zero.
        action_distribution: Of continuous actions, bins or mixture (of Gaussians).
        num_action_components: Gaussians of a mixture.
        num_action_bins: Bins of each dimension of an action.
        image_channels: Channels of the layers that encode an image.
        backbone_config: Configuration, with its `model_type`, of a transformers decoder to use instead of our blocks.
        attn_implementation: eager, sdpa, ...; chosen by device and window unless given.
    """

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 2
    intermediate_size: int = 512
    context_length: int = 200
    sliding_window: int | None = None
    initializer_range: float = 0.02
    dropout: float = 0.0
    attention_dropout: float = 0.0
    input_mask_probability: float = 0.0
    label_smoothing: float = 0.0
    normalize_observations: bool = True
    reward_scale: float | None = None
    action_distribution: str = "bins"
    num_action_components: int = 8
    num_action_bins: int = 21
    image_channels: list[int] = field(default_factory=lambda: [32, 64])
    backbone_config: dict[str, Any] | None = None
    attn_implementation: str | None = None


@dataclass
class Recipe:
    """All settings of a run."""

    family: FamilyConfig = field(default_factory=FamilyConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def to_yaml(self) -> str:
        """The complete recipe, defaults included."""
        return yaml.safe_dump(asdict(replace(self, rollout=self.rollout.resolve())), sort_keys=False)


# Fields that hold whatever an environment, an algorithm or a model takes.
FREE_FIELDS = (
    *(
        ("family", name)
        for name in ("env_kwargs", "tasks", "grid", "random", "splits", "wrappers", "source_observation")
    ),
    ("source", "hyperparameters"),
    ("source", "callbacks"),
    ("model", "backbone_config"),
)
SECTIONS = tuple(section.name for section in fields(Recipe))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in files("ad_hf.recipes").iterdir() if path.name.endswith(".yaml")
    )


def recipe_path(recipe: str | Path) -> Path:
    """
    The YAML file of a recipe, given by name or as a file.

    Raises:
        FileNotFoundError: if there is neither, with the names that exist.
    """
    packaged = Path(str(files("ad_hf.recipes"))) / f"{recipe}.yaml"
    for path in (packaged, Path(recipe)):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"unknown recipe {str(recipe)!r}: expected one of {', '.join(recipe_names())}, or a YAML file"
    )


def recipe_parser(sections: Sequence[str] = SECTIONS) -> ArgumentParser:
    """A parser of the settings of some sections, each as a dotted option such as `--training.learning_rate`."""
    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False, usage="")
    types = {section.name: section.default_factory for section in fields(Recipe)}
    for section in sections:
        parser.add_class_arguments(types[section], section)
    return parser


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe.

    Args:
        recipe (`str` or `Path`):
            Its name, such as `"dark_room"`, or a YAML file.
        overrides (`Sequence[str]`, *optional*):
            Settings that take the place of the file's, as on a command line: `["--training.learning_rate", "3e-4"]`.

    Returns:
        [`Recipe`]

    Raises:
        FileNotFoundError: for an unknown recipe.
        ValueError: for unknown settings and for values of a wrong type, naming them.
    """
    given = _read_sections(recipe)
    parser = recipe_parser()
    try:
        settings = parser.parse_object(deepcopy(given))  # which it changes
        settings = parser.parse_args(list(overrides), namespace=settings)
        parsed = parser.instantiate(settings)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"recipe {recipe}: {' '.join(str(error).split())}") from error
    loaded = Recipe(**{name: parsed[name] for name in SECTIONS})
    for section, name in FREE_FIELDS:
        if name in given.get(section, {}):
            config = getattr(loaded, section)
            setattr(config, name, _restore_text(getattr(config, name), given[section][name]))
    return loaded


def _read_sections(recipe: str | Path) -> dict[str, dict[str, Any]]:
    """A recipe's YAML as it stands; a section of which nothing is set is empty."""
    try:
        read = yaml.safe_load(recipe_path(recipe).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise ValueError(f"recipe {recipe}: expected the sections {', '.join(SECTIONS)}, got {read!r}")
    sections = {name: {} if section is None else section for name, section in read.items()}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"recipe {recipe}: section {name} must hold settings, got {section!r}")
    return sections


def _restore_text(parsed: Any, given: Any) -> Any:
    """Text that a file quotes and the parser read as a number or truth value, where it was not overridden."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        return {name: _restore_text(value, given.get(name)) for name, value in parsed.items()}
    if isinstance(given, list) and isinstance(parsed, list) and len(given) == len(parsed):
        return [_restore_text(*pair) for pair in zip(parsed, given, strict=True)]
    if isinstance(given, str) and not isinstance(parsed, str) and yaml.safe_load(given) == parsed:
        return given
    return parsed
