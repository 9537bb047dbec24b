"""A page as a strict reader sees it: what is open, what is named twice, what would run or be fetched."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Final

_VOID: Final = frozenset({"meta", "path", "use", "circle", "rect", "br", "stop"})


class Page(HTMLParser):
    """What is in a page.

    Args:
        text: Everything that is shown, white space as it stands.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.attributes += given
        assert given.get("aria-label") != "", f"a <{tag}> that is named, and has no name"
        if (found := given.get("id")) is not None:
            self.ids.append(found)
        self.addresses += [value for key in ("href", "src", "xlink:href") if (value := given.get(key)) is not None]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(html: str) -> Page:
    """A page that is well formed, names nothing twice, runs nothing and fetches nothing."""
    page = Page(html)
    twice = {found for found in page.ids if page.ids.count(found) > 1}
    assert not twice, f"named twice: {twice}"
    assert "script" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not [address for address in page.addresses if ":" in address], "an address that leaves the directory"
    inside = {address[1:] for address in page.addresses if address.startswith("#")}
    assert inside <= set(page.ids), f"leads nowhere: {inside - set(page.ids)}"
    return page
