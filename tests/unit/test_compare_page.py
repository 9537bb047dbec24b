"""The comparison as a page: what it says is what the figures are."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from compare_results import Results
from llenergymeasure.domain.comparison import Comparison
from llenergymeasure.results.compare.__main__ import main
from llenergymeasure.results.compare.comparison import compare
from llenergymeasure.results.compare.gate import Limits
from llenergymeasure.results.compare.page import comparison_page
from llenergymeasure.results.compare.sides import read_side
from llenergymeasure.results.compare.text import UNITS, cells
from report_checks import read_page


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def compared(*directories: str, limits: Limits | None = None) -> Comparison:
    return compare([read_side(Path(directory)) for directory in directories], limits=limits)


def test_the_page_has_every_cell_of_the_table_and_the_verdict(results: Results) -> None:
    found = compared(
        results.save("a", batches=(1, 8)),
        results.save("b", batches=(1, 8), energy=0.44, backend_version="<b>"),
        limits=Limits(5.0),
    )
    page = comparison_page(found)
    shown = [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page)]
    for figure in UNITS:
        for pair in found.pairs():
            place = shown.index(pair.name)
            assert tuple(shown[place + 1 : place + 8]) == cells(pair.figure(figure))
            del shown[: place + 8]
    assert "Gate: FAILED." in page
    assert "version of the engine: 5.23.0 against &lt;b&gt;" in page


def test_each_pair_has_a_point_that_tells_its_change(results: Results) -> None:
    page = comparison_page(compared(results.save("a"), results.save("b", energy=0.44)))
    told = re.findall(r'aria-label="(m / pytorch / batch 8: [^"]+)"', page)
    assert told[0].startswith("m / pytorch / batch 8: +10.0 %, 95 % interval +7.")
    assert told[0].endswith("%, more")
    assert len(told) == 4  # two figures, each for wide and for narrow pages


def test_a_figure_that_was_not_measured_has_no_drawing(results: Results) -> None:
    unmeasured = {"total_energy_j": None, "avg_energy_per_token_j": None}
    page = comparison_page(compared(results.save("a", **unmeasured), results.save("b", **unmeasured)))
    assert page.count("<svg") == 2
    assert "energy per token was not measured on either side" in page


@pytest.mark.parametrize("candidates", [1, 2])
def test_it_is_written_where_it_is_asked_for(candidates: int, results: Results) -> None:
    target = results.root / "page.html"
    assert main([*(results.save(f"side {number}") for number in range(candidates + 1)), "--html", str(target)]) == 0
    page = target.read_text(encoding="utf-8")
    read_page(page)
    assert page.startswith("<!DOCTYPE html>")
