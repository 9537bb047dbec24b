"""Fills sentence frames and sees to it that nothing is said twice in a text, or often in all.

The slots of a frame get items of the topic, people, places, dates and figures.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .material import Lexicon, Measure, Topic

MAX_USES = 8
"""Prompts that one sentence may occur in; the data set's promise is at most ten of a thousand."""


class Exhausted(Exception):  # noqa: N818 (a signal, not a fault)
    """The topic has nothing more of this kind to say in this text."""


@dataclass
class Ledger:
    """The prompts so far, and how many of them each sentence occurs in."""

    prompts: list[str] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)
    _known: set[str] = field(default_factory=set)

    def allows(self, text: str) -> bool:
        """Whether each sentence of a text may be used once more."""
        return all(self.uses[sentence] < MAX_USES for sentence in split_sentences(text))

    def is_new(self, prompt: str) -> bool:
        """Whether there is no such prompt yet."""
        return prompt.lower() not in self._known

    def enter(self, prompt: str) -> None:
        """Take note of a finished prompt."""
        self.prompts.append(prompt)
        self._known.add(prompt.lower())
        self.uses.update(set(split_sentences(prompt)))


def split_sentences(text: str) -> list[str]:
    """Sentences and lines of a text, folded so that only wording counts."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+|\n+", text)
    folded = (re.sub(r"\W+", " ", part).strip().lower() for part in parts)
    return [part for part in folded if part]


class Writer:
    """Writes one text about one topic, or several in turn, out of frames by kind; the ledger has what others said."""

    def __init__(
        self,
        rng: random.Random,
        topics: list[Topic],
        frames: dict[str, tuple[str, ...]],
        names: Lexicon,
        ledger: Ledger,
    ) -> None:
        self.rng = rng
        self._frames = frames
        self.names = names
        self.ledger = ledger
        self._topics: Iterator[Topic] = itertools.cycle(topics)
        self._frame_decks: dict[str, list[str]] = {}
        self._said: set[str] = set()
        self.town = rng.choice(names.towns)
        self.river = rng.choice(names.rivers)
        self.main, self.second = self.person(), self.person()
        self._main_is_known = False
        self.firsts = rng.sample(names.first, 2)
        self.born = rng.randint(1850, 1950)
        self.now = rng.randint(2022, 2025)
        self.relative = self.choose("relative")
        self.turn_to_next_topic()

    def turn_to_next_topic(self) -> None:
        """Go on with the next topic, all of whose items are fresh."""
        self.topic = topic = next(self._topics)
        self._decks: dict[str, list[Any]] = {
            "fact": list(topic.facts),
            "why": list(topic.whys),
            "do": list(topic.dos),
            "trouble": list(topic.troubles),
            "term": list(topic.terms),
            "vs": list(topic.contrasts),
            "measure": list(topic.measures) * 2,
        }
        for deck in self._decks.values():
            self.rng.shuffle(deck)
        self.gear = self.rng.choice(topic.gear)

    def name_main(self, *, in_full: bool = False) -> str:
        """The main person: the whole name at first, the last name from then on."""
        if in_full or not self._main_is_known:
            self._main_is_known = True
            return " ".join(self.main)
        return self.main[1]

    def left(self, kind: str) -> int:
        """Items of a kind that this text has not used."""
        return len(self._decks[kind])

    def say(self, kind: str) -> str:
        """One new sentence (or two that belong together) of a kind.

        Raises:
            Exhausted: The topic has no item left for it.
        """
        for _ in range(40):
            text = self.fill(self._next_frame(self._fitting(kind)), as_sentence=kind != "tiny")
            sentences = split_sentences(text)
            if self._said.isdisjoint(sentences) and self.ledger.allows(text):
                self._said.update(sentences)
                return text
        raise Exhausted(kind)

    def fill(self, frame: str, *, as_sentence: bool = True) -> str:
        """A frame with its choices made and its slots filled."""
        chosen = re.sub(r"\[([^\]]*)\]", lambda match: self.rng.choice(match[1].split("|")), frame)
        slots = Slots(self)
        text = re.sub(r"\{(\w+)\}", lambda match: slots.value(match[1]), chosen)
        text = re.sub(r"\b([Aa])\(n\) (?=(\w))", _article, text)
        text = re.sub(r"\s+([.,;?!])", r"\1", text).replace("..", ".").replace("?.", "?")
        return capitalise(text) if as_sentence else text

    def pick(self, kind: str) -> Any:
        """Take an item of the topic that this text has not used yet."""
        if not self._decks[kind]:
            raise Exhausted(kind)
        return self._decks[kind].pop()

    def _fitting(self, kind: str) -> str:
        """The sort of frame that the next figure needs."""
        if kind != "measure" or not self._decks["measure"]:
            return kind
        measure: Measure = self._decks["measure"][-1]
        counts_things = any(
            (word.endswith("s") and not word.endswith("ss")) or word in {"geese", "people"}
            for word in measure.quantity.split()[:2]
        )
        if not counts_things:
            return "measure"
        return "measure_label" if measure.unit == "per cent" else "measure_count"

    def _next_frame(self, kind: str) -> str:
        deck = self._frame_decks.get(kind)
        if not deck:
            deck = list(self._frames[kind])
            self.rng.shuffle(deck)
            self._frame_decks[kind] = deck
        return deck.pop()

    def person(self) -> tuple[str, str]:
        return self.rng.choice(self.names.first), self.rng.choice(self.names.last)

    def choose(self, kind: str) -> str:
        return self.rng.choice(self.names.words[kind])


class Slots:
    """Values of the slots of one frame; the same slot has the same value throughout it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._values: dict[str, str] = {}

    def value(self, name: str) -> str:
        if name[0].isupper() and name != "N" and name != "N2":
            value = self.value(name[0].lower() + name[1:])
            return value[:1].upper() + value[1:]
        if name not in self._values:
            self._make(name)
        return self._values[name]

    def _make(self, name: str) -> None:
        for group, maker in _GROUPS.items():
            if name in group:
                self._values.update(zip(group, maker(self._writer), strict=True))
                return
        if name in self._writer.names.words:
            self._values[name] = self._writer.choose(name)
            return
        self._values[name] = _SINGLE[name](self._writer)


def _years(w: Writer) -> tuple[str, str, str, str]:
    year = w.rng.randint(1880, 2014)
    first = w.rng.randint(1870, 2000)
    return str(year), str(year + w.rng.randint(1, 7)), str(first), str(min(first + w.rng.randint(2, 34), 2022))


def _values(w: Writer) -> tuple[str, str, str, str, str, str]:
    measure: Measure = w.pick("measure")
    low, high = sorted(w.rng.sample(range(measure.low, measure.high + 1), 2))
    first, second = w.rng.sample([low, high], 2)
    return measure.quantity, measure.unit, number(first), number(second), number(low), number(high)


def _whos(w: Writer) -> tuple[str, str]:
    who = w.rng.choice(w.topic.who)
    return who, plural(who)


def _pair(kind: str) -> Callable[[Writer], tuple[str, ...]]:
    def draw(w: Writer) -> tuple[str, ...]:
        item: tuple[str, ...] = w.pick(kind)
        return item

    return draw


def _town2(w: Writer) -> str:
    return w.rng.choice([town for town in w.names.towns if town != w.town])


def _months(w: Writer) -> tuple[str, str]:
    months = w.names.words["month_names"]
    first = w.rng.randrange(12)
    return months[first], months[(first + w.rng.randint(2, 5)) % 12]


def _active_year(w: Writer) -> str:
    return str(min(w.born + w.rng.randint(20, 62), 2019))


def _big(w: Writer) -> str:
    return number(w.rng.choice([w.rng.randint(110, 990), w.rng.randint(11, 99) * 100, w.rng.randint(3, 60) * 1000]))


def _typo(w: Writer) -> str:
    words = str(w.pick("fact")).split()
    index = max(range(len(words)), key=lambda position: len(words[position]))
    word = words[index]
    at = w.rng.randrange(1, len(word) - 2)
    words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


_GROUPS: dict[tuple[str, ...], Callable[[Writer], tuple[str, ...]]] = {
    ("cause", "effect"): _pair("why"),
    ("problem", "remedy"): _pair("trouble"),
    ("term", "def"): _pair("term"),
    ("a", "b", "contrast"): _pair("vs"),
    ("quantity", "unit", "v1", "v2", "v_low", "v_high"): _values,
    ("year", "year2b", "year1", "year2"): _years,
    ("month", "month2"): _months,
    ("who", "whos"): _whos,
}

_SINGLE: dict[str, Callable[[Writer], str]] = {
    "fact": lambda w: str(w.pick("fact")),
    "fact_typo": _typo,
    "do": lambda w: str(w.pick("do")),
    "do2": lambda w: str(w.pick("do")),
    "term_b": lambda w: _pair("term")(w)[0],
    "effect_that": lambda w: "that " + _pair("why")(w)[1],
    "gear": lambda w: w.gear,
    "name": lambda w: w.topic.name,
    "gloss": lambda w: w.topic.gloss,
    "subject": lambda w: f"a(n) {w.topic.one}" if w.topic.is_plural else w.topic.name,
    "name_one": lambda w: f"a(n) {w.topic.one}" if w.topic.is_plural else w.topic.name,
    "def_is": lambda w: "is",
    "is": lambda w: "are" if w.topic.is_plural else "is",
    "it_is": lambda w: "they are" if w.topic.is_plural else "it is",
    "short": lambda w: w.topic.one.split()[-1],
    "p": lambda w: " ".join(w.person()),
    "p2": lambda w: " ".join(w.second),
    "p1": lambda w: w.name_main(in_full=True),
    "l1": lambda w: w.name_main(),
    "l2": lambda w: w.second[1],
    "last": lambda w: w.person()[1],
    "pf": lambda w: f"{w.choose('pf_first')} {w.person()[1]}",
    "mentioned": lambda w: " ".join(w.main),
    "now": lambda w: str(w.now),
    "recent": lambda w: str(w.rng.randint(2006, 2024)),
    "span": lambda w: str(w.rng.randint(11, 48)),
    "clock": lambda w: f"{w.rng.randint(6, 23)}:{w.rng.randint(0, 59):02}",
    "first": lambda w: w.firsts[0],
    "first2": lambda w: w.firsts[1],
    "town": lambda w: w.town,
    "town2": _town2,
    "river": lambda w: w.river,
    "born": lambda w: str(w.born),
    "died": lambda w: str(min(w.born + w.rng.randint(64, 91), 2021)),
    "active": _active_year,
    "N": lambda w: str(w.rng.randint(11, 96)),
    "N2": lambda w: str(w.rng.randint(11, 96)),
    "big": _big,
    "big2": _big,
    "relative": lambda w: w.relative,
}


def plural(noun: str) -> str:
    """Plural of a word for a person."""
    if noun.endswith("man"):
        return noun[:-3] + "men"
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + "s"


def number(value: int) -> str:
    """A number as print has it."""
    return f"{value:,}"


def capitalise(text: str) -> str:
    """The text with its first letter large."""
    return re.sub(r"^[\"(]?[a-z]", lambda match: match[0].upper(), text)


def _article(match: re.Match[str]) -> str:
    return f"{match[1]}{'n' if match[2].lower() in 'aeiou' else ''} "
