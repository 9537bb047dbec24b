"""A page that opens from disk, for people: its shell, and the parts it is built of.

    render_page("Title", "What it is", [Section("Power", figure(svg, "Power of …", table(…)))])

One file without a script and without a word to the network; its policy forbids both. Text is escaped where it enters:
whatever is not `Markup` is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import Final

from llenergymeasure.constants import VERSION
from llenergymeasure.security import for_display

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = Path(__file__).with_name("page.css")


class Markup(str):
    """HTML that needs no escaping: made here, of parts that were escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading of its own."""

    title: str
    body: Markup


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures that a page begins with.

    Args:
        value: With its unit, `0.412 ± 0.021 J/token`.
        detail: What is said below it.
    """

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole that a bar shows.

    Args:
        share: Its part of the bar, 0 to 1.
        colour: Number of its colour, 0 to 7.
    """

    label: str
    share: float
    colour: int


def markup(text: str) -> Markup:
    """Text as it stands in a page; `Markup` as it is."""
    return text if isinstance(text, Markup) else Markup(escape(for_display(text)))


def together(*parts: str) -> Markup:
    """Several parts one after the other, each escaped unless it is `Markup`."""
    return Markup("".join(markup(part) for part in parts))


def tag(name: str, *parts: str, **attributes: str) -> Markup:
    """An element; an attribute whose name Python has taken ends in `_`, and `-` is written `_`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(for_display(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{together(*parts)}</{name}>")


def paragraph(*parts: str, class_: str = "") -> Markup:
    """A paragraph; `class_` is `note` for what is said aside, `lead` for what comes first."""
    return tag("p", *parts, class_=class_) if class_ else tag("p", *parts)


def link(text: str, address: str) -> Markup:
    """A link to a place in the page, or to a file beside it."""
    return tag("a", text, href=address)


def code(text: str, label: str) -> Markup:
    """Text to copy; `label` says what it is to those who do not see it."""
    return tag("pre", tag("code", text), tabindex="0", role="region", aria_label=label)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", text_columns: Sequence[int] = (0,)
) -> Markup:
    """A table whose first cells head their rows; columns hold figures unless `text_columns` names them."""
    classes = ["" if index in text_columns else "n" for index in range(len(headings))]

    def cell(name: str, class_: str, text: str, scope: str) -> Markup:
        given = ({"class_": class_} if class_ else {}) | ({"scope": scope} if scope else {})
        return tag(name, text, **given)

    head = [cell("th", class_, text, "col") for class_, text in zip(classes, headings, strict=True)]
    body = [
        tag(
            "tr",
            cell("th", classes[0], row[0], "row"),
            *map(cell, ["td"] * len(row), classes[1:], row[1:], [""] * len(row)),
        )
        for row in rows
    ]
    named = [tag("caption", caption)] if caption else []
    whole = tag("table", *named, tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption or headings[0])


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they stand for; those that stand for nothing are left out."""
    return tag("dl", *(together(tag("dt", name), tag("dd", text)) for name, text in pairs if text), class_="facts")


def tiles(figures: Iterable[Tile]) -> Markup:
    """The figures that a page begins with, side by side."""
    return tag("dl", *map(_tile, figures), class_="tiles")


def _tile(figure: Tile) -> Markup:
    number, _, unit = figure.value.rpartition(" ")
    plain = not number or any(map(str.isalpha, number)) or unit[-1:].isdigit()
    value = markup(figure.value) if plain else together(number, " ", tag("span", unit, class_="unit"))
    detail = [tag("dd", figure.detail, class_="detail")] if figure.detail else []
    return tag("div", tag("dt", figure.label), tag("dd", value, class_="value"), *detail)


def bar(parts: Sequence[Part], description: str) -> Markup:
    """A whole and its parts, with a legend that says what the eye sees."""
    drawn = [tag("i", class_=f"c{part.colour}", style=f"flex:{max(part.share, 0.0):.4f} 1 0") for part in parts]
    entries = [tag("li", tag("i", class_=f"c{part.colour}"), tag("span", part.label)) for part in parts]
    return together(
        tag("div", *drawn, class_="bar", role="img", aria_label=description), tag("ul", *entries, class_="legend")
    )


def folded(summary: str, *parts: str) -> Markup:
    """What is shown when somebody asks for it."""
    return tag("details", tag("summary", summary), *parts)


def figure(drawing: Markup, caption: str, numbers: Markup) -> Markup:
    """A drawing, what it shows, and its figures as a table for those whom the drawing does not serve."""
    return tag("figure", drawing, tag("figcaption", caption, folded("The figures as a table", numbers)))


def render_page(title: str, kicker: str, sections: Sequence[Section], opening: Markup | None = None) -> str:
    """The whole page.

    Args:
        kicker: A few words above the title: what kind of page this is.
        opening: What stands between the title and the first section.
    """
    anchors = _anchors(sections)
    contents = [tag("li", link(section.title, f"#{anchor}")) for section, anchor in zip(sections, anchors, strict=True)]
    head = together(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup(f'<meta name="generator" content="llenergymeasure {VERSION}">'),
        tag("title", title),
        Markup(f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>"),
    )
    body = together(
        tag(
            "header",
            paragraph(kicker, class_="kicker"),
            tag("h1", title),
            opening or Markup(),
            tag("nav", tag("ul", *contents), aria_label="Contents"),
        ),
        tag("main", *map(_section, sections, anchors)),
        tag("footer", paragraph(f"Made by llenergymeasure {VERSION}. This file needs no network and runs no script.")),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _anchors(sections: Sequence[Section]) -> list[str]:
    """What links name the sections by: their titles, numbered where several come to the same."""
    anchors: list[str] = []
    for section in sections:
        name = "".join(letter if letter.isalnum() else "-" for letter in section.title.lower())
        numbered = (f"{name}-{number}" if number > 1 else name for number in count(1))
        anchors.append(next(anchor for anchor in numbered if anchor not in anchors))
    return anchors


def _section(section: Section, anchor: str) -> Markup:
    heading = tag("h2", section.title, id=f"{anchor}-title")
    return tag("section", heading, section.body, id=anchor, aria_labelledby=f"{anchor}-title")
