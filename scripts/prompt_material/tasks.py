"""Kinds of prompts that ask for something, from two words to an instruction with a long text or a table."""

from __future__ import annotations

from . import passages
from .data_blocks import snippet, table
from .passages import Passage, compose
from .writer import Exhausted, Writer

_SOURCES: tuple[Passage, ...] = (
    passages.encyclopaedia,
    passages.article,
    passages.biography,
    passages.news,
    passages.diary,
    passages.essay,
    passages.forum,
    passages.letter,
    passages.interview,
    passages.handbook,
)
_WITH_TEXT = ("summarise", "rewrite", "translate", "extract", "summarise", "extract")


def tiny(w: Writer, target: int) -> str:
    """A few words."""
    candidates: list[str] = []
    while len(candidates) < 60:
        text = _say(w, "tiny")
        if w.ledger.is_new(text):
            candidates.append(text)
    close = [text for text in candidates if abs(len(text) - target) <= 2]
    return w.rng.choice(close) if close else min(candidates, key=lambda text: abs(len(text) - target))


def line(w: Writer, target: int) -> str:
    """One or several short questions or requests."""
    return _nearest(w, "line", target)


def writing(w: Writer, target: int) -> str:
    """A request for a text, a lesson, a game or advice, with its circumstances."""
    return _nearest(w, "write", target)


def with_text(w: Writer, target: int) -> str:
    """An instruction and the text it is about, in either order."""
    kind = w.rng.choice(_WITH_TEXT)
    instruction = _say(w, kind)
    passage = compose(w.rng.choice(_SOURCES), w, target - len(instruction) - 2)
    if (kind == "summarise" and instruction.endswith(":")) or w.rng.random() < 0.7:
        return f"{instruction}\n\n{passage}"
    return f"{passage}\n\n{instruction}"


def with_table(w: Writer, target: int) -> str:
    """A question about figures."""
    instruction = _say(w, "table")
    return f"{instruction}\n\n{table(w, target - len(instruction) - 2 - 25)}"


def with_code(w: Writer, target: int) -> str:
    """A request about a piece of code."""
    instruction = _say(w, "code")
    return f"{instruction}\n\n{snippet(w, target - len(instruction) - 2)}"


def _nearest(w: Writer, kind: str, target: int) -> str:
    """Of a handful of prompts (or of one and the next added to it) the one whose length is nearest."""
    candidates: list[str] = []
    while len(candidates) < 16:
        text = _say(w, kind)
        while len(text) < 0.75 * target:
            text = f"{text} {_say(w, 'line')}"
        if w.ledger.is_new(text):
            candidates.append(text)
    return min(candidates, key=lambda text: abs(len(text) - target))


def _say(w: Writer, kind: str) -> str:
    while True:
        try:
            return w.say(kind)
        except Exhausted:
            w.turn_to_next_topic()
