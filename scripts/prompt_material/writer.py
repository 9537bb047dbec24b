"""Fills sentence frames with a topic's items and sees to it that nothing is said twice in a text, or often in all."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .material import Lexicon, Measure, Topic
from .slots import Exhausted, Slots

MAX_USES = 8
"""Prompts that one sentence may occur in; the data set's promise is at most ten of a thousand."""


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
    """Writes one text about one topic, or several in turn.

    Args:
        rng: The text's own source of chance.
        topics: What it may be about; the first comes first.
        frames: Sentence frames by kind.
        names: People and places.
        ledger: What other texts have said.
    """

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


def capitalise(text: str) -> str:
    """The text with its first letter large."""
    return re.sub(r"^[\"(]?[a-z]", lambda match: match[0].upper(), text)


def _article(match: re.Match[str]) -> str:
    return f"{match[1]}{'n' if match[2].lower() in 'aeiou' else ''} "
