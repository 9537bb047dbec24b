"""Kinds of running text. Each is an endless series of blocks; `compose` takes as much as a prompt's length allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .writer import Exhausted, Writer, capitalise


@dataclass(frozen=True)
class Block:
    """A paragraph of sentences, or a heading or line that stands for itself.

    Args:
        sentences: In order; a text may end after any of them.
        is_opening: Whether a text must not end here (a heading, a speaker's question).
    """

    sentences: tuple[str, ...]
    is_opening: bool = False


Passage = Callable[[Writer], Iterator[Block]]

# Paragraphs as series of sentence kinds (frames_*.txt). `fact` and its like use up the topic, the others do not.
_EXPLAIN = ("fact why fact fact", "why fact do", "fact fact why", "fact trouble fact", "vs fact why", "fact do fact")
_TERMS = ("term fact term", "term term why", "fact term")
_FIGURES = ("measure measure fact", "measure fact measure", "measure event")
_HISTORY = ("event event person event", "event event", "event quote", "event event event fact", "person person event")
_PLACES = ("place place event", "place place place", "place quote")
_ADVICE = ("do do why", "trouble do", "do fact do", "trouble trouble", "do trouble fact")
_NEWS = ("news news quote", "news news", "news quote news", "news measure", "news fact news")
_DIARY = ("diary diary diary", "diary diary fact diary", "diary quote diary", "diary trouble diary", "diary diary")
_ESSAY = ("essay essay fact essay", "essay why essay", "essay quote essay", "essay essay", "essay event essay")
_PERSON = ("person person person", "person event person", "person quote", "person person fact")
_BLOG = ("blog diary blog", "blog fact blog", "blog blog", "diary blog trouble", "blog why")
_LETTER = (
    "letter_body letter_body",
    "letter_body diary letter_body",
    "letter_body fact",
    "letter_body trouble letter_body",
)


def compose(passage: Passage, writer: Writer, target: int) -> str:
    """Text of about `target` characters, ending with a whole sentence."""
    kept, openings = "", ""
    for block in passage(writer):
        for position, sentence in enumerate(block.sentences):
            joint = " " if position else "\n\n" if kept or openings else ""
            if block.is_opening:
                openings += joint + sentence
                continue
            longer = kept + openings + joint + sentence
            if kept and abs(len(longer) - target) > abs(len(kept) - target):
                return kept
            kept, openings = longer, ""
        if len(kept) >= target:
            break
    return kept


def encyclopaedia(w: Writer) -> Iterator[Block]:
    """An article with an introduction and sections, as in a reference work."""
    style = w.rng.choice(["{}", "## {}", "= {} =", "{}:"])
    if w.rng.random() < 0.4:
        yield _heading(w, style, "{Name}[| in {town}| (an overview)| of the {river} valley]")
    yield _paragraph(w, "define fact fact place")
    for recipes, title in _in_turn(
        w,
        (_EXPLAIN, "[Principles|Background|Basics] of {name}"),
        (_HISTORY, "[History|Beginnings|Development] in {town}"),
        (_TERMS, "[Terms|Words] used by {whos}"),
        (_FIGURES, "[Figures|Observations|Records] from {town}"),
        (_PERSON, "[The life of|Work of] {p1}"),
        (_PLACES, "{town} and [its surroundings|the {river}]"),
        (_ADVICE, "{Name} in practice"),
    ):
        if w.rng.random() < 0.5:
            yield _heading(w, style, title)
        yield from _paragraphs(w, recipes, w.rng.randint(1, 3))


def article(w: Writer) -> Iterator[Block]:
    """A magazine piece."""
    yield _paragraph(w, w.rng.choice(["place quote fact", "event quote", "diary fact place", "essay fact"]))
    for recipes, _ in _in_turn(
        w, (_EXPLAIN, ""), (_HISTORY, ""), (_FIGURES, ""), (_PLACES, ""), (_ESSAY, ""), (_ADVICE, "")
    ):
        yield from _paragraphs(w, recipes, w.rng.randint(1, 2))


def biography(w: Writer) -> Iterator[Block]:
    """The life of somebody who cared about the topic."""
    yield _paragraph(w, "person person fact")
    for recipes, _ in _in_turn(w, (_PERSON, ""), (_HISTORY, ""), (_EXPLAIN, ""), (_PLACES, "")):
        yield from _paragraphs(w, recipes, 1)


def news(w: Writer) -> Iterator[Block]:
    """A report of a local paper."""
    if w.rng.random() < 0.5:
        yield _heading(
            w,
            "{}",
            "[{town} argues about {name}|Money for {name} in {town}|{Name}: {town} waits|{Whos} meet in {town}]",
        )
    yield _paragraph(w, "news news quote")
    for recipes, _ in _in_turn(w, (_NEWS, ""), (_FIGURES, ""), (_NEWS, ""), (_HISTORY, ""), (_EXPLAIN, "")):
        yield from _paragraphs(w, recipes, 1)


def diary(w: Writer) -> Iterator[Block]:
    """Entries of a diary or travel journal."""
    while True:
        if w.rng.random() < 0.6:
            yield _heading(w, "{}", "{weekday}, {nth} {month}[| {year}|, {town}|, {time}]")
        yield from _paragraphs(w, _DIARY, w.rng.randint(1, 3))
        yield from _paragraphs(w, _PLACES + _EXPLAIN, 1)
        _refresh(w)


def essay(w: Writer) -> Iterator[Block]:
    """Somebody thinks about the topic in public."""
    while True:
        yield from _paragraphs(w, _ESSAY, w.rng.randint(1, 2))
        yield from _paragraphs(w, _EXPLAIN + _HISTORY, 1)
        _refresh(w)


def blog(w: Writer) -> Iterator[Block]:
    """A post on somebody's own pages."""
    yield _paragraph(w, "blog blog")
    while True:
        yield from _paragraphs(w, _BLOG, w.rng.randint(1, 3))
        yield from _paragraphs(w, _EXPLAIN + _ADVICE, 1)
        _refresh(w)


def review(w: Writer) -> Iterator[Block]:
    """A customer's opinion of a tool of the trade, and then of another."""
    while True:
        yield _paragraph(w, "review_open review_good review_good")
        yield _paragraph(w, "review_bad fact review_good")
        yield _paragraph(w, "trouble review_good review_bad")
        yield _paragraph(w, "review_verdict quote")
        w.gear = w.rng.choice(w.topic.gear)
        _refresh(w)


def forum(w: Writer) -> Iterator[Block]:
    """A thread: a question and its answers."""
    yield _paragraph(w, "forum_hello forum_open forum_open")
    while True:
        name = w.fill("[{first}|{l2}|{short}_{N}|{first2}{N}|{first2}_{l2}]").replace(" ", "")
        stamp = w.fill("[wrote|replied|says|answered] on {weekday}[|, {nth} {month}] at {clock}:", as_sentence=False)
        yield Block((f"{name} {stamp}",), is_opening=True)
        yield _paragraph(
            w, w.rng.choice(["forum_reply forum_reply", "forum_reply fact", "forum_reply", "forum_open forum_reply"])
        )
        w.firsts = w.rng.sample(w.names.first, 2)
        _refresh(w)


def letter(w: Writer) -> Iterator[Block]:
    """A letter or mail; after its end, the answer."""
    while True:
        yield Block((w.fill("Dear [{first}|{first2}|Ms {last}|Mr {last}|{p}|Dr {last}],"),), is_opening=True)
        yield _paragraph(w, "letter_open letter_body")
        yield from _paragraphs(w, _LETTER, w.rng.randint(1, 4))
        yield _paragraph(w, "letter_close")
        w.firsts.reverse()
        _refresh(w)


def interview(w: Writer) -> Iterator[Block]:
    """Questions and answers."""
    ask, answer = w.rng.choice(
        [("Q: ", "A: "), (w.fill("{town} Courier: "), w.fill("{l2}: ")), ("", ""), ("Host: ", w.fill("{first2}: "))]
    )
    yield _paragraph(w, "place person")
    while True:
        question, reply = _question_and_answer(w)
        yield Block((ask + question,), is_opening=True)
        more = _paragraph(w, w.rng.choice(["fact", "quote", "diary", "why", "do", "event", "fact quote"]))
        yield Block((answer + reply, *more.sentences))
        _refresh(w)


def handbook(w: Writer) -> Iterator[Block]:
    """Instructions in numbered steps, with what to do when they fail."""
    yield _paragraph(w, w.rng.choice(["define do fact", "fact why do", "place do"]))
    step = 0
    while True:
        for _ in range(w.rng.randint(3, 5)):
            step += 1
            yield Block((f"{step}) {_sentence(w, 'do')}", _sentence(w, w.rng.choice(["fact", "why", "quote"]))))
        yield from _paragraphs(w, _ADVICE + _TERMS, 2)
        _refresh(w)


def minutes(w: Writer) -> Iterator[Block]:
    """Minutes of a society's meeting."""
    yield _heading(w, "{}", "Minutes of the {town} [circle|society|club] for {name}, {nth} {month} {now}")
    while True:
        for _ in range(w.rng.randint(6, 11)):
            yield _paragraph(w, w.rng.choice(["minutes", "minutes minutes", "minutes news"]))
            _refresh(w)
        yield _paragraph(w, "minutes_close")
        yield _heading(w, "{}", "[Next|Following] meeting, {nth} {month} {now}, {time}, {building}")


def noticeboard(w: Writer) -> Iterator[Block]:
    """Small advertisements and notices."""
    while True:
        for _ in range(3):
            yield _paragraph(w, "ad")
        yield _paragraph(w, w.rng.choice(["news", "fact", "do", "news news"]))
        w.gear = w.rng.choice(w.topic.gear)
        _refresh(w, probability=0.8)


def almanac(w: Writer) -> Iterator[Block]:
    """A yearbook or reader: short chapters on many topics."""
    title = w.fill("[The {town} Almanac|A {town} Reader|Papers read at {town}|Walks and talks around {town}], {now}")
    yield Block((title,), is_opening=True)
    while True:
        yield _heading(w, w.rng.choice(["{}", "* {}", "## {}"]), "[{Name}|On {name}|{Name} at {town2}|Notes on {name}]")
        for recipes in w.rng.sample(
            [_EXPLAIN, _HISTORY, _TERMS, _FIGURES, _PERSON, _PLACES, _ADVICE, _ESSAY, _NEWS], 4
        ):
            yield from _paragraphs(w, recipes, w.rng.randint(1, 2))
        w.turn_to_next_topic()


def _in_turn(w: Writer, *sections: tuple[tuple[str, ...], str]) -> Iterator[tuple[tuple[str, ...], str]]:
    while True:
        yield from w.rng.sample(sections, len(sections))
        _refresh(w)


def _paragraphs(w: Writer, recipes: tuple[str, ...], count: int) -> Iterator[Block]:
    chosen = w.rng.sample(recipes, min(count, len(recipes)))
    while chosen:
        recipe = chosen.pop()
        if chosen and w.rng.random() < 0.4:
            recipe = f"{recipe} {chosen.pop()}"
        yield _paragraph(w, recipe)


def _paragraph(w: Writer, recipe: str) -> Block:
    return Block(tuple(_sentence(w, kind) for kind in recipe.split()))


def _sentence(w: Writer, kind: str) -> str:
    """A sentence of the kind, or of one that can go on for ever when the topic has run out of it."""
    for attempt in (kind, "fact", "event", "quote", "diary", "place", "news"):
        try:
            return w.say(attempt)
        except Exhausted:
            continue
    w.turn_to_next_topic()
    return w.say(kind)


def _question_and_answer(w: Writer) -> tuple[str, str]:
    while True:
        try:
            question, answer = w.say("qa").split(" // ")
        except Exhausted:
            w.turn_to_next_topic()
        else:
            return question, capitalise(answer)


def _heading(w: Writer, style: str, title: str) -> Block:
    return Block((style.format(w.fill(title)),), is_opening=True)


def _refresh(w: Writer, probability: float = 0.25) -> None:
    """Go on to a related topic once this one has little more to say (or by chance)."""
    if w.left("fact") + w.left("why") <= 2 or w.rng.random() < probability * (w.left("fact") < 4):
        w.turn_to_next_topic()
