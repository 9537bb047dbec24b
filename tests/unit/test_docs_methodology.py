"""The methodology page says what the code does: every threshold, and figures that are in the tables."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "methodology.md").read_text(encoding="utf-8")


def tables_under(heading: str) -> Iterator[list[str]]:
    """Rows of the tables between a heading and the next one of its rank, heads and rules left out."""
    section = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    for table in re.findall(r"(?:^\|.*\n)+", section[1], re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("row", list(tables_under("## Thresholds")), ids=lambda row: row[1].strip("`"))
def test_thresholds_are_those_of_the_code(row: list[str]) -> None:
    module, name, value = (cell.strip("`") for cell in row)
    assert getattr(importlib.import_module(f"llenergymeasure.{module}"), name) == float(value)


def test_quoted_figures_are_in_the_tables_they_are_quoted_from() -> None:
    published = "".join(
        (DOCS / "validation" / name).read_text() for name in ("scripted-sensors.md", "real-time-meters.md")
    )
    rows = [f"| {' | '.join(row)} |" for row in tables_under("## Figures from scripted sensors")]
    assert len(rows) > 20
    assert [row for row in rows if row not in published] == []


def test_numbered_sources_exist_and_are_cited() -> None:
    text, _, sources = PAGE.partition("## Sources")
    numbered = set(re.findall(r"^(\d+)\. ", sources, re.MULTILINE))
    cited = {number for group in re.findall(r"\[(\d+(?:, \d+)*)\](?!\()", text) for number in group.split(", ")}
    assert cited == numbered
