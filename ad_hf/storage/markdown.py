"""
The environment that renders cards. Names, settings and recipes may be anyone's: none may break out of its place.

All output of a template is plain text, unless one of the filters makes code of it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


class Written(str):
    """Markdown, which goes out as it is."""


def _line(value: Any) -> str:
    """A value on a single line: text as it is, other values as JSON."""
    content = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else " " for char in content)


def text(value: Any) -> Written:
    """A value as plain text for any place: a paragraph, a heading, a link or a table."""
    escaped = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _line(value))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At the beginning of a line, the mark of a heading or a list.
    return Written(re.sub(r"^(\s*(?:#*|\d*))([#+.)-](?=\s)|#$)", r"\1\\\2", escaped))


def _ticks(content: str, least: int) -> str:
    """More backticks than any run of them in a text has."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", content))])


def code(value: Any, in_table: bool = False) -> Written:
    """A value as code within a line; a table needs its bars escaped."""
    content = _line(value) or " "
    ticks = _ticks(content, 1)
    padding = " " if "`" in (content[0], content[-1]) else ""
    # A bar after a backslash would count as a bar of the table, however it is escaped.
    escaped = re.sub(r"\\(?=\|)", r"\\ ", content).replace("|", "\\|") if in_table else content
    return Written(f"{ticks}{padding}{escaped}{padding}{ticks}")


def fence(value: str, language: str = "") -> Written:
    """A text as a block of code."""
    content, ticks = re.sub(r"\r\n?", "\n", value).strip("\n"), _ticks(value, 3)
    return Written(f"{ticks}{language}\n{content}\n{ticks}")


def python(value: Any) -> Written:
    """A value that JSON can hold as a literal of Python, on a single line."""
    if isinstance(value, dict):
        return Written("{" + ", ".join(f"{python(name)}: {python(each)}" for name, each in value.items()) + "}")
    if isinstance(value, (list, tuple)):
        return Written("[" + ", ".join(map(python, value)) + "]")
    if isinstance(value, float) and not math.isfinite(value):
        return Written(f'float("{value}")')
    literal = repr(value).replace("<!--", "\\x3c!--")  # the lines around our text begin so
    return Written(f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal)


def _finalize(value: Any) -> Any:
    """The output for the value of an expression: text, unless a filter has made Markdown of it."""
    return text(value) if isinstance(value, (str, dict, list, tuple)) and not isinstance(value, Written) else value


_package = Path(__file__).resolve().parent.parent
ENVIRONMENT = Environment(
    loader=FileSystemLoader([_package, _package.parent]),  # templates: in a wheel, and in a checkout
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalize,
)
ENVIRONMENT.filters |= {"code": code, "fence": fence, "python": python, "safe": Written, "shell": shlex.quote}
