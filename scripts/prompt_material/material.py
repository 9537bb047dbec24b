"""Reads the topics, names and sentence frames from the text files beside this module.

Topics (`topics_*.txt`): a header `== name (pl|sg) | one of it | what it is`, then lines `kind: text`, where `why` and
`trouble` have two halves (`cause > effect`, `problem > remedy`), `vs` has three (`a / b > contrast`), `term` is
`word = meaning` and `measure` is `quantity / unit / lowest / highest`. Clauses stand without capital and full stop.

Words (`words.txt`): `slot: one; or; another`.

Frames (`frames_*.txt`): under `# kind`, one sentence per line, with `[choices|like this]` and `{slots}`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measure:
    quantity: str
    unit: str
    low: int
    high: int


@dataclass(frozen=True)
class Topic:
    name: str
    group: str
    is_plural: bool
    one: str
    gloss: str
    who: tuple[str, ...]
    gear: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    whys: tuple[tuple[str, str], ...]
    dos: tuple[str, ...]
    troubles: tuple[tuple[str, str], ...]
    contrasts: tuple[tuple[str, str, str], ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Lexicon:
    first: tuple[str, ...]
    last: tuple[str, ...]
    towns: tuple[str, ...]
    rivers: tuple[str, ...]
    words: dict[str, tuple[str, ...]]


def load_topics() -> tuple[Topic, ...]:
    """All topics, in the order of files and lines."""
    topics: list[Topic] = []
    for path in sorted(HERE.glob("topics_*.txt")):
        blocks = path.read_text(encoding="utf-8").split("== ")[1:]
        topics.extend(_parse_topic(block, path.stem.removeprefix("topics_")) for block in blocks)
    return tuple(topics)


def load_frames() -> dict[str, tuple[str, ...]]:
    """Sentence frames by kind."""
    frames: dict[str, list[str]] = defaultdict(list)
    for path in sorted(HERE.glob("frames_*.txt")):
        kind = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("# "):
                kind = line[2:]
            elif line:
                frames[kind].append(line)
    return {kind: tuple(lines) for kind, lines in frames.items()}


def load_lexicon() -> Lexicon:
    """People, towns and rivers, all made up, and words to choose from."""
    sections: dict[str, str] = {}
    for block in (HERE / "names.txt").read_text(encoding="utf-8").split("# ")[1:]:
        title, _, body = block.partition("\n")
        sections[title] = body.strip()
    semicolons = {kind: tuple(part.strip() for part in sections[kind].split(";")) for kind in ("towns", "rivers")}
    return Lexicon(
        tuple(sections["first names"].split()),
        tuple(sections["last names"].split()),
        semicolons["towns"],
        semicolons["rivers"],
        _load_words(),
    )


def _load_words() -> dict[str, tuple[str, ...]]:
    lines = (HERE / "words.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines)
    return {kind: tuple(words.split("; ")) for kind, words in pairs}


def _parse_topic(block: str, group: str) -> Topic:
    header, *lines = block.strip().splitlines()
    name, one, gloss = header.split(" | ")
    items: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        kind, text = line.split(": ", 1)
        items[kind].append(text)
    return Topic(
        name=name[:-5],
        group=group,
        is_plural=name.endswith("(pl)"),
        one=one,
        gloss=gloss,
        who=tuple(items["who"][0].split("; ")),
        gear=tuple(items["gear"][0].split("; ")),
        terms=tuple(_pair(text, " = ") for text in items["term"]),
        facts=tuple(items["fact"]),
        whys=tuple(_pair(text, " > ") for text in items["why"]),
        dos=tuple(items["do"]),
        troubles=tuple(_pair(text, " > ") for text in items["trouble"]),
        contrasts=tuple(_contrast(text) for text in items["vs"]),
        measures=tuple(_measure(text) for text in items["measure"]),
    )


def _pair(text: str, separator: str) -> tuple[str, str]:
    left, right = text.split(separator)
    return left, right


def _contrast(text: str) -> tuple[str, str, str]:
    both, contrast = _pair(text, " > ")
    return (*_pair(both, " / "), contrast)


def _measure(text: str) -> Measure:
    quantity, unit, low, high = text.split(" / ")
    return Measure(quantity, unit, int(low), int(high))
