"""
Hooks of mkdocs: pages whose head says `generated: true` are templates, filled in by the code and the results.

In such a page `{{ settings("training") }}` is the table of a section of a recipe, and `{{ last("dark_room") }}` a
number of an evaluation: the functions of [`reference`] and [`figures`].
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

from documentation import figures, reference

TEMPLATES = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
TEMPLATES.globals.update(
    settings=reference.settings,
    recipes=reference.recipes,
    command_line=reference.command_line,
    **figures.FUNCTIONS,
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in a page that is generated."""
    return TEMPLATES.from_string(markdown).render() if page.meta.get("generated") else markdown
