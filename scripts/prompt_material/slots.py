"""Values for the slots of a sentence frame: items of the topic, people, places, dates and figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .material import Measure

if TYPE_CHECKING:
    from .writer import Writer


class Exhausted(Exception):  # noqa: N818 (a signal, not a fault)
    """The topic has nothing more of this kind to say in this text."""


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
