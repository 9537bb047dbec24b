"""What the dataset card promises about the bundled prompts."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from llenergymeasure.datasets.loader import BUILTIN_DATASETS

PATH = BUILTIN_DATASETS["aienergyscore"]
BUILD_SCRIPT = Path(__file__).parents[2] / "scripts" / "build_prompts.py"

PROMPTS = [json.loads(line)["prompt"] for line in PATH.read_text(encoding="utf-8").split("\n") if line]


def sentences(prompt: str) -> set[str]:
    """Sentences and lines, folded to lower-case words."""
    parts = re.split(r"[.!?][\"')\]]*\s|\n", prompt)
    return {folded for part in parts if (folded := " ".join(re.findall(r"\w+", part.lower())))}


def percentiles(prompts: list[str]) -> dict[int, float]:
    cuts = statistics.quantiles((len(prompt) for prompt in prompts), n=100, method="inclusive")
    return {percent: cuts[percent - 1] for percent in (5, 25, 50, 75, 95)}


@pytest.mark.parametrize(("percent", "characters"), [(5, 23), (25, 230), (50, 590), (75, 1480), (95, 6500)])
def test_the_lengths_follow_the_profile(percent: int, characters: int) -> None:
    assert percentiles(PROMPTS)[percent] == pytest.approx(characters, rel=0.1)


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_every_hundred_prompts_have_the_profile_too(start: int) -> None:
    found = percentiles(PROMPTS[start : start + 100])
    assert found[25] == pytest.approx(230, rel=0.25)
    assert found[50] == pytest.approx(590, rel=0.25)
    assert found[75] == pytest.approx(1480, rel=0.25)


def test_there_are_a_thousand_different_prompts() -> None:
    assert len(PROMPTS) == 1000
    assert len({prompt.lower() for prompt in PROMPTS}) == 1000


def test_no_sentence_is_in_more_than_one_prompt_of_a_hundred() -> None:
    uses = Counter(sentence for prompt in PROMPTS for sentence in sentences(prompt))
    assert uses.most_common(1)[0][1] <= 10


def test_no_two_prompts_share_much_of_their_wording() -> None:
    where = defaultdict(list)
    for index, prompt in enumerate(PROMPTS):
        for sentence in sentences(prompt):
            where[sentence].append(index)
    shared = Counter(pair for indices in where.values() for pair in combinations(indices, 2))
    for (one, other), count in shared.items():
        smaller = min(len(sentences(PROMPTS[one])), len(sentences(PROMPTS[other])))
        assert smaller < 8 or count <= 0.3 * smaller, (PROMPTS[one], PROMPTS[other])


def test_every_frame_was_filled() -> None:
    for prompt in PROMPTS:
        assert "a(n)" not in prompt
        assert not re.search(r"\|(?! )\w", prompt.replace("| ", "").replace(" |", "")), prompt
        assert prompt == prompt.strip()
        assert not re.search(r"[^\n\S ]| ,|\.\.(?!\.)", prompt), prompt


def test_articles_agree_with_the_next_word() -> None:
    for prompt in PROMPTS:
        assert not re.search(r"\b[Aa] [aeiouAEIOU](?!ne\b|ni|se)\w", prompt), prompt


def test_the_whole_alphabet_of_kinds_is_there() -> None:
    text = "\n\n".join(PROMPTS)
    for trace in ("Translate", "Summarise", "SELECT", "def ", "Dear ", "Minutes of", "For sale", "| Town |", "Q: "):
        assert trace in text


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    output = tmp_path / "prompts.jsonl"
    subprocess.run([sys.executable, str(BUILD_SCRIPT), "--output", str(output)], check=True)
    assert output.read_bytes() == PATH.read_bytes()
