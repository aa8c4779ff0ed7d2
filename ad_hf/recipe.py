"""Recipes: every setting of a run, in one YAML file with one section per step."""

from __future__ import annotations

import json
import re
from argparse import SUPPRESS, ArgumentParser, HelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.recipes import read_recipe
from ad_hf.envs.task_family import FamilyConfig
from ad_hf.histories.selection import DataConfig
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.settings import descriptions, did_you_mean, dump_yaml, excerpt, make_section, parse_yaml
from ad_hf.sources.config import SourceConfig
from ad_hf.training.config import MixtureConfig, ModelConfig, TrainingConfig


@dataclass
class Recipe:
    """All settings of a run."""

    family: FamilyConfig = field(default_factory=FamilyConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)

    def members(self) -> dict[str, Recipe]:
        """The recipes of a mixture by name; of a recipe of a single family, itself under no name."""
        return {name: load_recipe(each) for name, each in self.mixture.names.items()} or {"": self}

    def to_yaml(self) -> str:
        """The complete recipe, defaults included."""
        return dump_yaml(asdict(replace(self, rollout=self.rollout.resolve())))


SECTIONS: dict[str, Any] = {section.name: section.default_factory for section in fields(Recipe)}  # name -> dataclass
# The sections that each family of a mixture has for itself.
OF_A_FAMILY = ("family", "source", "data", "rollout")
# The sections of a recipe that comes along with a model that are used, and the settings of its others that are read,
# to tell trainings apart by name.
FOREIGN_SECTIONS = ("family", "rollout")
FOREIGN_LABELS = (("training", "seed"), ("data", "last_episodes"), ("data", "labels"))


def settings_help(sections: Sequence[str], width: int, first_sentence: bool = False) -> str:
    """
    The settings of some sections, in lines of a width: each as a dotted option with its description in the dataclass,
    or the first sentence of that.
    """
    layout: Any = partial(HelpFormatter, width=width, max_help_position=34)
    parser = ArgumentParser(usage=SUPPRESS, add_help=False, formatter_class=layout)
    for section in sections:
        declared = SECTIONS[section]
        group, texts = parser.add_argument_group(f"The section {section}"), descriptions(declared)
        for each in fields(declared):
            text, default = texts[each.name], json.dumps(getattr(declared(), each.name))
            text = (re.split(r"(?<=\.) (?=[A-Z`])", text)[0] if first_sentence else text).rstrip(".")
            text = text if "default" in text or default == "null" else f"{text} (default: {default})"
            group.add_argument(f"--{section}.{each.name}", metavar="", help=text.replace("%", "%%"))
    return parser.format_help().strip()


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe, which is the user's own: import paths in it are imported when they are used.

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
    return make_recipe(recipe, _read_sections(recipe), overrides)


def load_foreign_recipe(recipe: Path, origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe that comes along with a model, as data: its `family`, whose names have to be known ones, and its
    `rollout`. The other sections have their defaults, but for the settings that tell trainings apart.

    Args:
        recipe (`Path`):
            The YAML file.
        origin (`str`):
            What it comes along with, for errors.
        overrides (`Sequence[str]`, *optional*):
            As of [`load_recipe`]; they are the user's own.

    Raises:
        ValueError: as [`load_recipe`] for these sections, and for names that may not come along.
    """
    file = _read_sections(recipe)
    check_family_section(file.get("family", {}), origin)
    sections = {name: file.get(name, {}) for name in FOREIGN_SECTIONS}
    for section, name in FOREIGN_LABELS:
        if isinstance(value := file.get(section, {}).get(name), (int, str)):
            sections.setdefault(section, {})[name] = value
    return make_recipe(recipe, sections, overrides)


def _read_sections(recipe: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of a recipe's file, all of them known."""
    sections = read_recipe(recipe)
    for name in sections:
        if name not in SECTIONS:
            near = did_you_mean(name, SECTIONS)
            raise ValueError(f"recipe {recipe}: unknown section {name}{near}: expected {', '.join(SECTIONS)}")
    return sections


def make_recipe(recipe: str | Path, sections: Mapping[str, dict[str, Any]], overrides: Sequence[str]) -> Recipe:
    """A recipe of the sections of a file, called `recipe`, with options in the place of their settings."""
    settings = {name: dict(section) for name, section in sections.items()}
    for path, text in _options(overrides):
        _override(settings, path, text)
    own = [name for name in OF_A_FAMILY if settings.get(name)]
    if own and settings.get("mixture", {}).get("recipes"):
        raise ValueError(
            f"recipe {recipe}: {', '.join(own)} of a mixture are those of its recipes: set them there, in files of "
            "your own that mixture.recipes names"
        )
    try:
        return Recipe(**{name: make_section(SECTIONS[name], section, name) for name, section in settings.items()})
    except ValueError as error:
        raise ValueError(f"recipe {recipe}: {error}") from error


def _options(overrides: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Dotted options as the parts of their names and their texts."""
    rest = list(overrides)
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        path = option.removeprefix("--").split(".")
        if not option.startswith("--") or path[0] not in SECTIONS or len(path) < 2:
            raise ValueError(
                f"unknown option {option}{did_you_mean(path[0], SECTIONS)}: expected a setting of a recipe, as "
                f"--training.max_steps 100, of {', '.join(SECTIONS)}"
            )
        names = [each.name for each in fields(SECTIONS[path[0]])]
        if path[1] not in names:
            near = did_you_mean(path[1], names)
            raise ValueError(f"unknown option {option}{near}: the settings of {path[0]} are {', '.join(names)}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"option {option} needs a value, as in {option} VALUE")
            text = rest.pop(0)
        yield path, text


def _override(sections: dict[str, dict[str, Any]], path: Sequence[str], text: str) -> None:
    """Put the value of an option in its place: text as it is where the setting is text, else what it is as YAML."""
    section, name, *inner = path
    kind = get_type_hints(SECTIONS[section])[name]
    words = [word for arm in get_args(kind) if get_origin(arm) is Literal for word in get_args(arm)]
    is_name = kind is str or get_origin(kind) is Literal or text in words
    is_text = not inner and (is_name or (kind == str | None and text not in ("null", "")))
    value = text if is_text else parse_yaml(text, f"--{'.'.join(path)}", object)
    place = sections.setdefault(section, {})
    for depth, part in enumerate((name, *inner[:-1]) if inner else (), start=2):
        if not isinstance(place.get(part), dict | None):
            raise ValueError(
                f"--{'.'.join(path)}: {'.'.join(path[:depth])} is {excerpt(place[part])}, which has no settings"
            )
        place[part] = dict(place.get(part) or {})  # a copy: the file's may stand in several places
        place = place[part]
    place[path[-1]] = value
