"""Links in docstrings, which are those of Hugging Face's doc-builder, as those of mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

import ad_hf


def target(name: str) -> str | None:
    """Where a name leads to: a public name of the package, or what one of its classes defines."""
    public, _, member = name.removeprefix("ad_hf.").partition(".")
    if public not in ad_hf.__all__:
        public, member = name.rpartition(".")[2], ""
    if public not in ad_hf.__all__ or (member and member not in vars(getattr(ad_hf, public))):
        return None
    return f"ad_hf.{public}.{member}" if member else f"ad_hf.{public}"


def linked(text: str) -> str:
    """Docstring text whose links to public names lead to their entries; other names are code."""

    def link(match: re.Match) -> str:
        name = match[1].removeprefix("~")
        shown = f"`{name.rpartition('.')[2] if '~' in match[1] else name}`"
        return f"[{shown}][{target(name)}]" if target(name) else shown

    def plain(match: re.Match) -> str:
        return re.sub(r"\[?`~?([^`]+)`\]?|\*(\w+)\*", lambda part: part[1] or part[2], match[0])

    text = re.sub(r"^ *[*\w, ]+ \(.+\):$", plain, text, flags=re.MULTILINE)  # a type, which takes no marks
    return re.sub(r"\[`(~?[\w.]+)`\](?![\[(])", link, text)


class DocstringLinks(Extension):
    """Rewrite the links of every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite those of one."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value)
