"""Build the bundled data set: 1,000 prompts written for this project, in the length profile of a public task.

    python scripts/build_prompts.py            writes datasets/builtin/aienergyscore.jsonl

The profile (characters) is that of the AI Energy Score text-generation task: p5 23, p25 230, p50 590, p75 1,480,
p95 6,500. Every word comes from `prompt_material/`; the same material and seed give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_material import passages, tasks
from prompt_material.material import Topic, load_frames, load_lexicon, load_topics
from prompt_material.writer import Ledger, Writer

OUTPUT = (
    Path(__file__).resolve().parent.parent / "src" / "llenergymeasure" / "datasets" / "builtin" / "aienergyscore.jsonl"
)

COUNT = 1000
SEED = 20250
QUANTILES = ((0.0, 9), (0.05, 23), (0.25, 230), (0.5, 590), (0.75, 1480), (0.95, 6500), (1.0, 13000))
"""Share of prompts that are at most so many characters long; between these points, length grows geometrically."""

Maker = Callable[[Writer, int], str]


def _running(passage: passages.Passage) -> Maker:
    return lambda writer, target: passages.compose(passage, writer, target)


# For each range of lengths, the kinds of prompt and how often each comes up. Encyclopaedic, web-style and instruction
# prompts share every range from 230 characters up about equally.
MIXES: tuple[tuple[int, tuple[tuple[int, Maker], ...]], ...] = (
    (30, ((1, tasks.tiny),)),
    (
        230,
        (
            (12, tasks.line),
            (2, _running(passages.encyclopaedia)),
            (1, _running(passages.noticeboard)),
            (1, _running(passages.article)),
        ),
    ),
    (
        1200,
        (
            (6, _running(passages.encyclopaedia)),
            (3, _running(passages.article)),
            (2, _running(passages.biography)),
            (2, _running(passages.news)),
            (2, _running(passages.review)),
            (2, _running(passages.forum)),
            (2, _running(passages.blog)),
            (1, _running(passages.letter)),
            (1, _running(passages.diary)),
            (1, _running(passages.noticeboard)),
            (4, tasks.writing),
            (3, tasks.with_text),
            (2, tasks.with_table),
            (2, tasks.with_code),
        ),
    ),
    (
        10**9,
        (
            (6, _running(passages.encyclopaedia)),
            (3, _running(passages.almanac)),
            (3, _running(passages.article)),
            (1, _running(passages.biography)),
            (2, _running(passages.news)),
            (2, _running(passages.forum)),
            (2, _running(passages.blog)),
            (1, _running(passages.letter)),
            (2, _running(passages.diary)),
            (1, _running(passages.essay)),
            (2, _running(passages.interview)),
            (2, _running(passages.handbook)),
            (1, _running(passages.minutes)),
            (8, tasks.with_text),
            (1, tasks.with_table),
        ),
    ),
)


def build(count: int = COUNT, seed: int = SEED) -> list[str]:
    """The prompts, in file order."""
    rng = random.Random(seed)
    topics, frames, lexicon = load_topics(), load_frames(), load_lexicon()
    ledger = Ledger()
    first_topics = _endless(rng, topics)
    for target in _lengths(rng, count):
        while True:
            make = _choose(rng, target)
            own_topics = _related(rng, next(first_topics), topics)
            writer = Writer(random.Random(rng.getrandbits(64)), own_topics, frames, lexicon, ledger)
            prompt = make(writer, target).strip()
            if ledger.is_new(prompt) and ledger.allows(prompt):
                break
        ledger.enter(prompt)
    return ledger.prompts


def length_at(share: float) -> int:
    """Characters of the prompt that `share` of all prompts are no longer than."""
    shares = [point[0] for point in QUANTILES]
    upper = min(max(bisect.bisect_left(shares, share), 1), len(shares) - 1)
    (low_share, low), (high_share, high) = QUANTILES[upper - 1], QUANTILES[upper]
    position = (share - low_share) / (high_share - low_share)
    return round(math.exp(math.log(low) + position * (math.log(high) - math.log(low))))


def _lengths(rng: random.Random, count: int) -> list[int]:
    """Target lengths in file order: each tenth of the file has the whole profile, so that few prompts have it too."""
    runs: list[list[int]] = [[] for _ in range(10)]
    for start in range(0, count, len(runs)):
        stratum = [length_at((index + 0.5) / count) for index in range(start, min(start + len(runs), count))]
        for run, length in zip(rng.sample(runs, len(stratum)), stratum, strict=True):
            run.append(length)
    for run in runs:
        rng.shuffle(run)
    return [length for run in runs for length in run]


def _choose(rng: random.Random, target: int) -> Maker:
    mix = next(mix for limit, mix in MIXES if target <= limit)
    return rng.choices([maker for _, maker in mix], [weight for weight, _ in mix])[0]


def _endless(rng: random.Random, topics: tuple[Topic, ...]) -> Iterator[Topic]:
    while True:
        yield from rng.sample(topics, len(topics))


def _related(rng: random.Random, first: Topic, topics: tuple[Topic, ...]) -> list[Topic]:
    """The topic to begin with, then others of its group, then the rest."""
    others = rng.sample([topic for topic in topics if topic is not first], len(topics) - 1)
    return [first, *sorted(others, key=lambda topic: topic.group != first.group)]


def encode(prompts: list[str]) -> bytes:
    """The file's content."""
    return b"".join(json.dumps({"prompt": prompt}, ensure_ascii=False).encode() + b"\n" for prompt in prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (default: into the package)")
    arguments = parser.parse_args()
    arguments.output.write_bytes(encode(build()))


if __name__ == "__main__":
    main()
