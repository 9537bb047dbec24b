"""Check a built documentation site: every link leads somewhere in it, and no page loads anything from elsewhere.

    python scripts/check_site.py [DIRECTORY]

MkDocs checks the links that are written in Markdown. This reads what a browser would: links that the theme makes,
anchors in raw HTML, style sheets, scripts and pictures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parent.parent / "site"

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href"), ("object", "data")}
"""Attributes whose target a browser fetches by itself."""

IN_STYLES = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?P<target>[^"')]+)""")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a built documentation site.")
    parser.add_argument("directory", nargs="?", type=Path, default=SITE)
    site = parser.parse_args(arguments).directory.resolve()
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    found = [problem for page in pages for problem in page_problems(page, site)]
    found += [problem for sheet in styles for problem in style_problems(sheet, site)]
    for problem in found:
        print(problem)
    links = sum(len(read(page).links) for page in pages)
    print(f"{site}: {len(pages)} pages, {links} links, {len(found)} problems")
    return int(bool(found) or not pages)


@dataclass
class Page(HTMLParser):
    """Where a page leads, what it loads, and what can be linked to in it."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def page_problems(path: Path, site: Path) -> Iterator[str]:
    page, name = read(path), path.relative_to(site)
    for target in page.loaded:
        yield from _loads(name, path, target)
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or path.name == "404.html":  # served at any address: its links are absolute
            continue
        file, anchor = _resolved(path, link)
        if not file.is_file():
            yield f"{name}: {link} leads to nothing"
        elif anchor and file.suffix == ".html" and anchor not in read(file).anchors:
            yield f"{name}: {link} leads to no anchor"


def style_problems(path: Path, site: Path) -> Iterator[str]:
    for found in IN_STYLES.finditer(path.read_text(encoding="utf-8")):
        yield from _loads(path.relative_to(site), path, found["target"])


def _loads(name: Path, path: Path, target: str) -> Iterator[str]:
    parts = urlsplit(target)
    if parts.scheme == "data" or (path.name == "404.html" and not parts.netloc):
        return
    if parts.scheme or parts.netloc:
        yield f"{name}: loads {target} from elsewhere"
    elif target and not target.startswith("#") and not _resolved(path, target)[0].is_file():
        yield f"{name}: loads {target}, which is missing"


def _resolved(path: Path, link: str) -> tuple[Path, str]:
    """The file and the anchor that a link in a page means; from disk, a directory is not its `index.html`."""
    parts = urlsplit(link)
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    return file, unquote(parts.fragment)


if __name__ == "__main__":
    sys.exit(main())
