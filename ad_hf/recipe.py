"""Recipes: every setting of a run, in one YAML file with one section per step."""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.recipes import read_recipe
from ad_hf.envs.task_family import FamilyConfig
from ad_hf.histories.selection import DataConfig
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.settings import check_settings, descriptions, dump_yaml, make_section, parse_yaml, setting, shown
from ad_hf.sources.config import SourceConfig
from ad_hf.training.config import TrainingConfig


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

    hidden_size: int = setting(128, least=1)
    num_hidden_layers: int = setting(4, least=1)
    num_attention_heads: int = setting(2, least=1)
    intermediate_size: int = setting(512, least=1)
    context_length: int = setting(200, least=1)
    sliding_window: int | None = setting(None, least=1)
    initializer_range: float = setting(0.02, above=0)
    dropout: float = setting(0.0, least=0, below=1)
    attention_dropout: float = setting(0.0, least=0, below=1)
    input_mask_probability: float = setting(0.0, least=0, below=1)
    label_smoothing: float = setting(0.0, least=0, below=1)
    normalize_observations: bool = True
    reward_scale: float | None = setting(None, above=0)
    action_distribution: str = setting("bins", choices=("bins", "mixture"))
    num_action_components: int = setting(8, least=1)
    num_action_bins: int = setting(21, least=2)
    image_channels: list[int] = field(default_factory=lambda: [32, 64])
    backbone_config: dict[str, Any] | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "model")


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
        return dump_yaml(asdict(replace(self, rollout=self.rollout.resolve())))


SECTIONS: dict[str, Any] = {section.name: section.default_factory for section in fields(Recipe)}  # name -> dataclass
# Of a recipe that comes along with a model, the sections that are read. These settings of others are told apart from
# one another, to name what was trained, and are not used for anything else.
FOREIGN_SECTIONS = ("family", "rollout")
FOREIGN_LABELS = (("training", "seed"), ("data", "last_episodes"), ("data", "labels"))


def settings_help(sections: Sequence[str]) -> str:
    """The settings of some sections, each as a dotted option, with what their dataclasses say of them."""
    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    for section in sections:
        documentation = docstring_parser.parse(SECTIONS[section].__doc__)
        group = parser.add_argument_group(str(documentation.short_description).rstrip("."))
        texts = descriptions(SECTIONS[section])
        defaults = SECTIONS[section]()
        for each in fields(SECTIONS[section]):
            text, default = texts[each.name].rstrip("."), json.dumps(getattr(defaults, each.name))
            text = text if "default" in text or default == "null" else f"{text} (default: {default})"
            group.add_argument(f"--{section}.{each.name}", metavar=str(each.type), help=text.replace("%", "%%"))
    return parser.format_help().strip()


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe, which is the user's own: what it names by import path is imported when it is used.

    Args:
        recipe (`str` or `Path`):
            Its name, such as `"dark_room"`, or a YAML file.
        overrides (`Sequence[str]`, *optional*):
            Settings that take the place of the file's, as on a command line: `["--training.learning_rate", "3e-4"]`.

    Returns:
        [`Recipe`]

    Raises:
        FileNotFoundError: for an unknown recipe.
        ValueError: for unknown settings and for values of a wrong type or out of their range, naming them.
    """
    return _make_recipe(recipe, _read_sections(recipe), overrides)


def load_foreign_recipe(recipe: Path, origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe that comes along with a model, as data: its `family`, whose names have to be known ones, and its
    `rollout`. All other sections have their defaults, but for what tells trainings apart.

    Args:
        recipe (`Path`):
            The YAML file.
        origin (`str`):
            What it comes along with, for errors.
        overrides (`Sequence[str]`, *optional*):
            As of [`load_recipe`]; they are the user's own.

    Raises:
        ValueError: for what [`load_recipe`] refuses in these sections, and for names that may not come along.
    """
    sections = _read_sections(recipe)
    check_family_section(sections.get("family", {}), origin)
    loaded = _make_recipe(recipe, {name: sections.get(name, {}) for name in FOREIGN_SECTIONS}, overrides)
    for section, name in FOREIGN_LABELS:
        value = sections.get(section, {}).get(name)
        if isinstance(value, (int, str)) and not any(each.startswith(f"--{section}.{name}") for each in overrides):
            config = getattr(loaded, section)
            make_section(type(config), {name: value}, section)  # of its type
            setattr(config, name, value)
    return loaded


def _make_recipe(recipe: str | Path, sections: Mapping[str, dict[str, Any]], overrides: Sequence[str]) -> Recipe:
    """A recipe of sections as they stand in a file, and options that take the place of their settings."""
    given = {name: dict(section) for name, section in sections.items()}
    for path, text in _options(overrides):
        _override(given, path, text)
    try:
        return Recipe(**{name: make_section(SECTIONS[name], section, name) for name, section in given.items()})
    except ValueError as error:
        raise ValueError(f"recipe {recipe}: {error}") from error


def _options(overrides: Sequence[str]) -> list[tuple[list[str], str]]:
    """Dotted options as the parts of their names and their texts."""
    found, rest = [], list(overrides)
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        path = option.removeprefix("--").split(".")
        if not option.startswith("--") or path[0] not in SECTIONS or len(path) < 2:
            raise ValueError(
                f"unknown option {option}: expected a setting of a recipe, as --training.max_steps 100, of "
                f"{', '.join(SECTIONS)}"
            )
        known = [each.name for each in fields(SECTIONS[path[0]])]
        if path[1] not in known:
            raise ValueError(f"unknown option {option}: the settings of {path[0]} are {', '.join(known)}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"option {option} needs a value, as in {option} VALUE")
            text = rest.pop(0)
        found.append((path, text))
    return found


def _override(sections: dict[str, dict[str, Any]], path: Sequence[str], text: str) -> None:
    """Put what an option says in its place."""
    section, name, *inner = path
    kind = get_type_hints(SECTIONS[section]).get(name)
    value = parse_yaml(text, f"--{'.'.join(path)}", object)
    if not inner and not isinstance(value, str) and kind in (str, str | None) and value is not None:
        value = text  # a name that looks like a number
    place = sections.setdefault(section, {})
    for depth, part in enumerate((name, *inner[:-1]) if inner else (), start=2):
        held = place.get(part)
        if not isinstance(held, dict | None):
            raise ValueError(f"--{'.'.join(path)}: {'.'.join(path[:depth])} is {shown(held)}, which has no settings")
        place[part] = dict(held or {})  # a copy: the file's may stand in several places
        place = place[part]
    place[path[-1]] = value


def _read_sections(recipe: str | Path) -> dict[str, dict[str, Any]]:
    """A recipe's YAML as it stands; a section of which nothing is set is empty."""
    sections = read_recipe(recipe)
    for name in sections:
        if name not in SECTIONS:
            raise ValueError(f"recipe {recipe}: unknown section {name}: expected {', '.join(SECTIONS)}")
    return sections
