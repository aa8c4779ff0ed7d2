"""
Check the links of a built site, without a network.

    python scripts/documentation/links.py site

Fails at a link or an anchor that leads nowhere within the site, and at anything that a page would load from elsewhere.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

HERE = "http://site.invalid"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class Page(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's links."""
        found = {name: text or "" for name, text in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag in LOADED and LOADED[tag] in found:
            self.loads.add(found[LOADED[tag]])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.add(found["href"])
        elif tag == "a" and "href" in found:
            self.links.add(found["href"])


def faults(site: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each thing that is loaded from elsewhere."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        place = path.relative_to(site).as_posix()
        for link in sorted(page.links | page.loads):
            parts = urlsplit(urljoin(f"{HERE}/{place}", link))
            if not parts.geturl().startswith(HERE):
                if link in page.loads and parts.scheme != "data":
                    found.append(f"{place}: loads {link}")
                continue
            target = site / unquote(parts.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{place}: {link}: there is no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{place}: {link}: there is no such place in the page")
    return found


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]))
    print("\n".join(lines) or "all links lead somewhere")
    sys.exit(bool(lines))
