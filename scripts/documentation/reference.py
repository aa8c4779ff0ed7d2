"""Reference pages that are generated: the command line from signatures, settings and recipes from dataclasses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ad_hf.cli import Common, app
from ad_hf.envs.recipes import recipe_names, recipe_path
from ad_hf.hub.config import PushConfig
from ad_hf.recipe import SECTIONS
from ad_hf.settings import LIMITS, descriptions
from ad_hf.sources.config import ConvergenceConfig

DECLARED = {**SECTIONS, "source.until_converged": ConvergenceConfig, "push": PushConfig}
ORDER = (
    "quickstart",
    "recipes",
    "init",
    "collect",
    "inspect",
    "train",
    "rollout",
    "evaluate",
    "push",
    "merge",
    "convert",
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def type_words(kind: Any) -> str:
    """A type in words: the choices of a literal, and other types as Python writes them, without `None`."""
    arms = [arm for arm in get_args(kind) if arm is not type(None)] if "|" in str(kind) else [kind]
    words = []
    for arm in arms:
        if get_origin(arm) is Literal:
            words += [f"`{json.dumps(choice)}`" for choice in get_args(arm)]
        elif arm.__module__ == "collections.abc":
            words.append("function")
        else:
            words.append(
                f"`{arm.__name__ if isinstance(arm, type) and not get_args(arm) else arm}`".replace("typing.", "")
            )
    return ", ".join(words)


def default_words(each: Any) -> str:
    """The default of a field, as JSON; nothing if it is `None`."""
    default = each.default if each.default_factory is MISSING else each.default_factory()
    if default is None:
        default = each.metadata.get("default")  # of a rollout's settings, which are None until they are resolved
    return "" if default is None else f"`{json.dumps(default)}`"


def limit_words(each: Any) -> str:
    """The limits of a number, in words."""
    return " and ".join(f"{LIMITS[name][0]} {bound}" for name, bound in each.metadata.items() if name in LIMITS)


def settings(section: str) -> str:
    """A table of the settings of a section of a recipe, from the fields of its dataclass."""
    declared = DECLARED[section]
    kinds, texts = get_type_hints(declared), descriptions(declared)
    rows = []
    for each in fields(declared):
        limits = limit_words(each)
        kind = f"{type_words(kinds[each.name])}{f', {limits}' if limits else ''}"
        rows.append((f"`{each.name}`", kind, default_words(each), texts[each.name]))
    return table(("setting", "type", "default", "meaning"), rows)


def recipes() -> str:
    """The packaged recipes, whole."""
    return "\n\n".join(
        f"## {name}\n\n```yaml\n{recipe_path(name).read_text(encoding='utf-8').rstrip()}\n```"
        for name in recipe_names()
    )


def command_line() -> str:
    """All verbs of the command line with their arguments and options, from the functions' signatures."""
    verbs = [name for name in app if not name.startswith("-")]
    assert set(ORDER) <= set(verbs)
    parts = []
    for name in (*ORDER, *sorted(set(verbs) - set(ORDER))):
        inner = [f"{name} {each}" for each in app[name] if not each.startswith("-")]
        parts += [_verb(each) for each in inner or [name]]
    common = descriptions(Common)
    parts.append(
        "## Options of every verb\n\n" + table(("option", "meaning"), [(f"`--{n}`", t) for n, t in common.items()])
    )
    return "\n\n".join(parts)


def _verb(name: str) -> str:
    """One verb: its line, and a table of what it takes."""
    verb = app
    for part in name.split():
        verb = verb[part]
    summary, _, rest = (verb.help or "").partition("\n")
    more = " ".join(rest.partition("Args:")[0].split())
    rows, usage = [], [f"ad-hf {name}"]
    for each in verb.assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True):
        if not each.show or each.name.removeprefix("--") in Common.__dataclass_fields__:
            continue
        is_option, is_required = each.name.startswith("--"), each.required
        if not is_option:
            usage.append(each.name)
        elif is_required:
            usage.append(f"{each.name} {each.name.removeprefix('--').upper()}")
        rows.append((f"`{each.name}`", _kind(each), " ".join(str(each.parameter.help).split())))
    usage.append("[OPTIONS]")
    return (
        f"## {name}\n\n{summary} {more}\n\n```bash\n{' '.join(usage)}\n```\n\n{table(('', 'takes', 'meaning'), rows)}"
    )


def _kind(argument: Any) -> str:
    """What an argument takes, and its default."""
    kind, default = argument.hint, argument.field_info.default
    if bool in (kind, *get_args(kind)):
        return "a flag"
    words = type_words(kind)
    if argument.required:
        return f"{words}, required"
    shown = not (default is None or isinstance(default, type | Enum))
    return f"{words}, by default `{default}`" if shown else words
