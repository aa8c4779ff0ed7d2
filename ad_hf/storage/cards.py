"""Cards: a generated README.md of a repository, merged with what people wrote into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml
from huggingface_hub import RepoCard
from huggingface_hub.utils import yaml_dump
from jinja2 import UndefinedError

from ad_hf.storage.markdown import ENVIRONMENT
from ad_hf.structure import check_structure

CARD = "README.md"
BEGIN = "<!-- ad_hf writes what is between these two lines anew with every push, and keeps all other text. -->"
END = "<!-- Here ends what ad_hf writes. -->"
# From the last beginning before an end: text after a beginning whose end someone deleted is not ours.
WRITTEN = re.compile(f"{re.escape(BEGIN)}((?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)
LICENSE = "apache-2.0"  # of the files that this package makes, unless the card or an argument has another
UNKNOWN_LICENSE = "unknown"  # of histories that others made
# Metadata of one model or dataset alone: ours gives way to that of the next one.
REPLACED_DATA = ("base_model", "base_model_relation", "datasets", "model-index")


def render_card(folder: str, file: str, /, **values: Any) -> str:
    """A card template of the package, filled."""
    return ENVIRONMENT.get_template(f"{folder}/{file}").render(**values)


@contextmanager
def card_of(*files: str) -> Iterator[None]:
    """Name the files of a card in errors about their content."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, UndefinedError, yaml.YAMLError) as error:
        if any(Path(file).name in str(error) for file in (*files, CARD, "license")):  # the message names it already
            raise
        raise ValueError(
            f"no card can be made of {', '.join(files)}: an entry is missing or of another type "
            f"({type(error).__name__}: {error})"
        ) from error


def _card_text(data: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml_dump(dict(data), sort_keys=False).strip()}\n---\n\n{body.strip()}\n"


class _Config(TypedDict):
    config_name: str


class _Metadata(TypedDict):
    """The entries of a card's metadata that are merged."""

    tags: NotRequired[str | list[str]]
    configs: NotRequired[list[_Config]]


def _read_card(card: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card."""
    name = f"the metadata at the top of {CARD}"
    try:
        loaded = RepoCard(card, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} is not YAML of names and values: {error}") from error
    data = loaded.data.to_dict()
    check_structure(data, _Metadata, name)
    return data, loaded.text


def without_configs(card: str) -> str:
    """A dataset's card without the configurations in its metadata."""
    data, text = _read_card(card)
    return _card_text({name: value for name, value in data.items() if name != "configs"}, text)


def merge_card(old: str | None, data: Mapping[str, Any], text: str, license: str | None = None) -> str:
    """
    A card with new metadata and text, which keeps the text and metadata of people in the old one.

    Text of the old card outside of the two lines that enclose ours stays where it is. A card without these lines is
    all theirs, with its results and datasets, and our text comes after it. Of its metadata, entries that `data` lacks
    stay, tags are joined, and configurations are replaced by name. `license` takes the place of that in the old card,
    which takes the place of that in `data`.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license must be a name that the Hub knows, such as apache-2.0, mit or other, got {license!r}"
        )
    for line in (BEGIN, END):  # in a recipe or a name, where it would be taken for ours
        text = text.replace(line, line.replace("--", "- -"))
    section = body = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    merged = dict(data)
    if old is not None and old.strip():
        before, old_text = _read_card(old)
        ours = WRITTEN.search(old_text)
        merged = {name: value for name, value in before.items() if ours is None or name not in REPLACED_DATA} | merged
        if "license" in before:
            # A person may have put a line above ours, which YAML would overrule with the last one.
            lines = re.findall(r"^license: *([\w.+-]+) *$", old.removesuffix(old_text), re.MULTILINE)
            theirs = [each for each in lines if each not in (LICENSE, UNKNOWN_LICENSE)]
            merged["license"] = theirs[0] if len(lines) > 1 and theirs else before["license"]
        if "tags" in before and "tags" in data:
            tags = [before["tags"]] if isinstance(before["tags"], str) else before["tags"]
            merged["tags"] = list(dict.fromkeys([*tags, *data["tags"]]))
        if "configs" in before and "configs" in data:
            configs = {config["config_name"]: config for config in (*before["configs"], *data["configs"])}
            merged["configs"] = [configs[name] for name in sorted(configs)]
        if ours:
            body = old_text[: ours.start()] + section + old_text[ours.end() :]
        elif old_text.strip():
            body = f"{old_text.strip()}\n\n{section}"
    return _card_text(merged if license is None else merged | {"license": license}, body)
