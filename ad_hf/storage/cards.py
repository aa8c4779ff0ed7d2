"""Cards: a generated README.md of a repository, merged with what people wrote into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import RepoCard
from huggingface_hub.utils import yaml_dump
from jinja2 import UndefinedError

from ad_hf.storage.markdown import card_environment

CARD = "README.md"
BEGIN = "<!-- ad_hf writes what is between these two lines anew with every push, and keeps all other text. -->"
END = "<!-- Here ends what ad_hf writes. -->"
# From the last beginning before an end: if someone deleted an end, what follows it is not ours.
WRITTEN = re.compile(f"{re.escape(BEGIN)}((?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)
LICENSE = "apache-2.0"  # of what this package makes, unless another is given or stands in the card
UNKNOWN_LICENSE = "unknown"  # of histories that others made
# Metadata that is true of one model or dataset alone: where we wrote it, it does not outlast it.
REPLACED_DATA = ("datasets", "model-index")


def template_path(folder: str, name: str) -> Path:
    """A card template: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for parent in (package, package.parent):
        if (parent / folder / name).is_file():
            return parent / folder / name
    raise FileNotFoundError(f"the card template {folder}/{name} is missing from this installation of ad_hf")


def render_card(folder: str, file: str, /, **values: Any) -> str:
    path = template_path(folder, file)
    return card_environment(path.parent).get_template(path.name).render(**values)


@contextmanager
def card_of(*files: str) -> Iterator[None]:
    """Name the files that a card is made of where they hold something else than is expected of them."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, UndefinedError, yaml.YAMLError) as error:
        if any(Path(named).name in str(error) for named in (*files, CARD, "license")):  # what is wrong is told already
            raise
        raise ValueError(
            f"no card can be made of {', '.join(files)}: what is expected there is missing, or something else is "
            f"({type(error).__name__}: {error})"
        ) from error


def _card_text(data: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml_dump(dict(data), sort_keys=False).strip()}\n---\n\n{body.strip()}\n"


def _read_card(card: str) -> RepoCard:
    try:
        loaded = RepoCard(card, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the metadata at the top of {CARD} is not YAML of names and values: {error}") from error
    configs, tags = (loaded.data.to_dict().get(name, []) for name in ("configs", "tags"))
    if not isinstance(tags, str) and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise ValueError(f"the metadata at the top of {CARD}: tags must be a list of words, got {tags!r}")
    if not isinstance(configs, list) or not all(
        isinstance(config, dict) and isinstance(config.get("config_name"), str) for config in configs
    ):
        raise ValueError(
            f"the metadata at the top of {CARD}: configs must be a list of entries with a config_name, got {configs!r}"
        )
    return loaded


def without_configs(card: str) -> str:
    """A dataset's card without what its metadata says of configurations."""
    loaded = _read_card(card)
    data = {name: value for name, value in loaded.data.to_dict().items() if name != "configs"}
    return _card_text(data, loaded.text)


def merge_card(old: str | None, data: Mapping[str, Any], text: str, license: str | None = None) -> str:
    """
    A card with new metadata and text, which keeps what people wrote into the old one.

    Args:
        old (`str`, *optional*):
            The card so far. Its text outside of the two lines that enclose ours stays where it is; if it has no such
            lines, ours comes after it, and what it says of results and datasets is not ours either.
        data (`Mapping`):
            Metadata. Entries of the old card that are not in it stay; tags are joined; configurations are replaced by
            name.
        text (`str`):
            What we write.
        license (`str`, *optional*):
            Takes the place of that in the old card, which takes the place of that in `data`.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license must be a name that the Hub knows, such as apache-2.0, mit or other, got {license!r}"
        )
    for line in (BEGIN, END):  # in a recipe or a name, for they would be taken for ours
        text = text.replace(line, line.replace("--", "- -"))
    section = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    merged = dict(data)
    body = section
    if old is not None and old.strip():
        card = _read_card(old)
        found = WRITTEN.search(card.text)
        before = card.data.to_dict()
        kept = {name: value for name, value in before.items() if found is None or name not in REPLACED_DATA}
        merged = {**kept, **data}
        if "license" in kept:
            # Someone may have put a line above ours, which YAML would take for the last word.
            lines = re.findall(r"^license: *([\w.+-]+) *$", old.removesuffix(card.text), re.MULTILINE)
            theirs = [each for each in lines if each not in (LICENSE, UNKNOWN_LICENSE)]
            merged["license"] = theirs[0] if len(lines) > 1 and theirs else kept["license"]
        if "tags" in before and "tags" in data:
            tags = [before["tags"]] if isinstance(before["tags"], str) else before["tags"]
            merged["tags"] = [*tags, *(tag for tag in data["tags"] if tag not in tags)]
        if "configs" in before and "configs" in data:
            configs = {config["config_name"]: config for config in (*before["configs"], *data["configs"])}
            merged["configs"] = [configs[name] for name in sorted(configs)]
        if found:
            body = card.text[: found.start()] + section + card.text[found.end() :]
        elif card.text.strip():
            body = f"{card.text.strip()}\n\n{section}"
    if license is not None:
        merged["license"] = license
    return _card_text(merged, body)
