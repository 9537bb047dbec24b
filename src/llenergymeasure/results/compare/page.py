"""A comparison as a page that opens from disk: verdict, a forest plot and a table for each figure, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from llenergymeasure.domain.comparison import Comparison, FigureComparison, FigureName, PairComparison
from llenergymeasure.domain.readable import shortened
from llenergymeasure.results.compare import text
from llenergymeasure.results.report.charts import INK, MUTED, PAPER, SERIES, Spot, chart, make_room, margins
from llenergymeasure.results.report.page import (
    Markup,
    Section,
    facts,
    paragraph,
    render_page,
    table,
    tag,
    together,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES: Final[dict[FigureName, str]] = {
    "energy_per_token_j": "Energy per output token",
    "tokens_per_second": "Output tokens per second",
}

_ROW_PT: Final = 30.0
_EDGES_PT: Final = 52.0
_LONGEST_NAME: Final = {True: 40, False: 18}
"""Letters of a configuration's name beside a chart, on a wide page and on a narrow one."""

_LETTER_PT: Final = 5.6
_WIDE_FROM_PT: Final = 500.0
_BETTER: Final = SERIES[2]
_WORSE: Final = SERIES[1]
_OUTCOME_COLOURS: Final[dict[FigureName, dict[str, str]]] = {
    "energy_per_token_j": {"higher": _WORSE, "lower": _BETTER},
    "tokens_per_second": {"higher": _BETTER, "lower": _WORSE},
}


def comparison_page(comparison: Comparison) -> str:
    """The page, as HTML."""
    sections = [
        Section(_title(comparison, index, TITLES[name]), _figure_section(index, entry.pairs, name))
        for index, entry in enumerate(comparison.candidates)
        for name in TITLES
    ]
    return render_page(
        "Comparison of results",
        "llenergymeasure",
        [
            *sections,
            Section("What differs", _what_differs(comparison)),
            Section("How to read this", _reading(comparison)),
        ],
        opening=together(_sides(comparison), _verdict(comparison)),
    )


def _title(comparison: Comparison, index: int, title: str) -> str:
    return title if len(comparison.candidates) == 1 else f"{title}: {comparison.candidates[index].candidate.path}"


def _sides(comparison: Comparison) -> Markup:
    entries = [("Baseline", comparison.baseline), *(("Candidate", entry.candidate) for entry in comparison.candidates)]
    return facts((label, f"{side.path}: {text.described(side)}") for label, side in entries)


def _verdict(comparison: Comparison) -> Markup:
    if comparison.gate is None:
        return Markup()
    headline, *rest = text.gate_lines(comparison)
    return together(paragraph(headline, class_="lead"), *map(paragraph, rest))


def _figure_section(index: int, pairs: Sequence[PairComparison], name: FigureName) -> Markup:
    numbers = table(
        (text.UNITS[name], *text.HEADINGS[:-1], "Outcome"),
        [(pair.name, *text.cells(pair.figure(name))) for pair in pairs],
        caption=TITLES[name],
        text_columns=(0, 7),
    )
    if not any(pair.figure(name).change_pct is not None for pair in pairs):
        return numbers
    drawing = chart(
        f"{name.replace('_', '-')}-{index}",
        partial(_forest, pairs, name),
        _EDGES_PT + _ROW_PT * len(pairs),
        f"{TITLES[name]}: change of each configuration",
        "; ".join(_told(pair, name) for pair in pairs),
    )
    caption = (
        "Change from the baseline with its 95 % interval. Small dots are single runs against the baseline's mean: the "
        "baseline's above the line, the candidate's below. An interval may go on beyond the chart."
    )
    if any(pair.figure(name).gate is not None for pair in pairs):
        caption += " The broken line is the gate's limit."
    return together(tag("figure", drawing, tag("figcaption", caption)), numbers)


def _told(pair: PairComparison, name: FigureName) -> str:
    compared = pair.figure(name)
    if compared.change_pct is None:
        return f"{pair.name}: {compared.reason}"
    known = f", 95 % interval {text.interval(compared)}" if compared.interval else ""
    return f"{pair.name}: {text.signed_pct(compared.change_pct)}{known}, {text.said(compared)}"


def _forest(pairs: Sequence[PairComparison], name: FigureName, canvas: Figure, width_pt: float) -> list[Spot]:
    """One row for each pair, the first on top."""
    wide = width_pt >= _WIDE_FROM_PT
    names = [shortened(pair.name, _LONGEST_NAME[wide]) for pair in pairs]
    axes = canvas.add_subplot()
    margins(canvas, left=12 + _LETTER_PT * max(map(len, names)), right=14, top=10, bottom=_EDGES_PT - 10)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlabel("Change (%)")
    axes.axvline(0, color=INK, linewidth=1)
    _draw_limit(axes, pairs[0].figure(name))
    spots = [spot for row, pair in enumerate(pairs) for spot in _row(axes, row, pair, name)]
    _draw_intervals(axes, [pair.figure(name) for pair in pairs])
    return spots


def _draw_intervals(axes: Axes, figures: Sequence[FigureComparison]) -> None:
    known = [
        (row, compared.ci95_low_pct, compared.ci95_high_pct, _colour(compared))
        for row, compared in enumerate(figures)
        if compared.ci95_low_pct is not None and compared.ci95_high_pct is not None
    ]
    make_room(axes, (end for _, low, high, _ in known for end in (low, high)))
    for row, low, high, colour in known:
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round", zorder=1.9)


def _colour(compared: FigureComparison) -> str:
    return _OUTCOME_COLOURS[compared.figure].get(compared.outcome, MUTED)


def _draw_limit(axes: Axes, compared: FigureComparison) -> None:
    if compared.gate is not None:
        limit_pct = compared.gate.limit_pct
        at = limit_pct if compared.figure == "energy_per_token_j" else -limit_pct
        axes.axvline(at, color=_WORSE, linewidth=1, linestyle=(0, (4, 3)))


def _row(axes: Axes, row: int, pair: PairComparison, name: FigureName) -> Iterator[Spot]:
    compared = pair.figure(name)
    change = compared.change_pct
    if change is None or compared.baseline is None or compared.candidate is None:
        return
    colour = _colour(compared)
    for side, offset in ((compared.baseline, -0.2), (compared.candidate, 0.2)):
        shares = [100 * (value / compared.baseline.mean - 1) for value in side.values]
        axes.plot(shares, [row + offset] * len(shares), ".", color=MUTED, markersize=4, alpha=0.7)
    axes.plot([change], [row], "o", color=colour, markersize=8, markeredgecolor=PAPER)
    yield Spot(axes, change, row, _told(pair, name), colour)


def _what_differs(comparison: Comparison) -> Markup:
    blocks = []
    for entry in comparison.candidates:
        if len(comparison.candidates) > 1:
            blocks.append(tag("h3", entry.candidate.path))
        told = list(text.remarks(entry)) or ["Nothing that is recorded."]
        blocks.append(tag("ul", *(tag("li", line) for line in told)))
    return together(*blocks)


def _reading(comparison: Comparison) -> Markup:
    return together(*map(paragraph, text.legend(comparison)))
