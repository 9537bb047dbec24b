"""A comparison as text for people.

Baseline   before          3 runs, 1 configuration, 2026-02-18 14:30 UTC to 2026-02-18 15:04 UTC
Candidate  after           3 runs, 1 configuration, 2026-02-18 15:10 UTC to 2026-02-18 15:44 UTC

J/token  Baseline  Candidate  Change   95 % interval      p       Runs
batch 8  0.412     0.431      +4.6 %   +1.9 … +7.4 %      0.008   3, 3  more

tok/s    Baseline  Candidate  Change   95 % interval      p       Runs
batch 8  310       309        −0.3 %   −2.1 … +1.5 %      0.64    3, 3  not told apart
"""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llenergymeasure.domain.comparison import (
    SIGNIFICANCE,
    CandidateComparison,
    ComparedSide,
    Comparison,
    Difference,
    FigureComparison,
    FigureName,
    PairComparison,
    SettingDifference,
)
from llenergymeasure.domain.readable import counted, in_units, probability, quantity, signed
from llenergymeasure.results.compare.welch import POWER
from llenergymeasure.results.summary import aligned, minute

MAX_SHOWN: Final = 8
"""Settings that differ, configurations without counterpart: that many are named."""

UNITS: Final[dict[FigureName, str]] = {"energy_per_token_j": "J/token", "tokens_per_second": "tok/s"}
HEADINGS: Final = ("Baseline", "Candidate", "Change", "95 % interval", "p", "Runs", "")

UNLIKE: Final = "Not the same"
"""What a comparison should not go without, all of it shown: differences that were accepted, and gaps in the records."""

_OUTCOMES: Final[dict[FigureName, dict[str, str]]] = {
    "energy_per_token_j": {"higher": "more", "lower": "less"},
    "tokens_per_second": {"higher": "faster", "lower": "slower"},
}
_VERDICTS: Final = {"worse": "FAILED", "not_worse": "passed", "undecided": "cannot decide"}


def render_comparison(comparison: Comparison, width: int) -> str:
    """The whole comparison, without a final newline.

    Args:
        width: Columns at which prose wraps; tables are as wide as they are.
    """
    blocks = [_sides(comparison)]
    for candidate in comparison.candidates:
        if len(comparison.candidates) > 1:
            blocks.append([f"{candidate.candidate.path} against {comparison.baseline.path}"])
        blocks += [table_of(candidate.pairs, figure) for figure in UNITS]
        blocks.append([line for text in remarks(candidate) for line in _wrapped(text, width)])
    blocks.append([line for text in legend(comparison) for line in textwrap.wrap(text, width)])
    if comparison.gate is not None:
        blocks.append([line for text in gate_lines(comparison) for line in _wrapped(text, width)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def table_of(pairs: Sequence[PairComparison], figure: FigureName) -> list[str]:
    """One figure of every pair."""
    rows = [(pair.name, *cells(pair.figure(figure))) for pair in pairs]
    return aligned([(UNITS[figure], *HEADINGS), *rows])


def cells(compared: FigureComparison) -> tuple[str, ...]:
    """What a table shows of a figure, in the order of `HEADINGS`."""
    sides = (compared.baseline, compared.candidate)
    p = compared.p_adjusted
    return (
        *("not measured" if side is None else amount(compared.figure, side.mean) for side in sides),
        "" if compared.change_pct is None else signed_pct(compared.change_pct),
        interval(compared),
        "" if p is None else probability(p),
        ", ".join("0" if side is None else str(side.runs) for side in sides),
        said(compared),
    )


def amount(figure: FigureName, value: float) -> str:
    """A figure with its unit where the column does not tell it."""
    return in_units(value, "J").removesuffix(" J") if figure == "energy_per_token_j" else quantity(value)


def said(compared: FigureComparison) -> str:
    """What can be said about the difference, in a word or two."""
    words = {"not_told_apart": "not told apart", "not_tested": "not tested"}
    return _OUTCOMES[compared.figure].get(compared.outcome) or words[compared.outcome]


def interval(compared: FigureComparison) -> str:
    """`+1.9 … +7.4 %`; one that holds the uncertainty of single measurements alone is marked."""
    low, high = compared.ci95_low_pct, compared.ci95_high_pct
    if low is None or high is None:
        return ""
    return f"{signed(low)} … {signed(high)} %" + (" m" if compared.interval == "measurement" else "")


def signed_pct(value: float) -> str:
    """`+4.6 %`."""
    return f"{signed(value)} %"


def remarks(candidate: CandidateComparison) -> Iterator[str]:
    """What differs, what is missing and what to know, each said once with the configurations it is about."""
    pairs = candidate.pairs
    differences = [(difference, pair) for pair in pairs for difference in pair.differences]
    kinds = {
        UNLIKE: ((_difference(entry), pair) for entry, pair in differences if entry.kind != "software"),
        "Software": ((str(entry), pair) for entry, pair in differences if entry.kind == "software"),
        "Settings": ((_setting(setting), pair) for pair in pairs for setting in pair.settings),
        "Note": ((note, pair) for pair in pairs for note in pair.notes),
    }
    for kind, told in kinds.items():
        about: dict[str, list[str]] = defaultdict(list)
        for text, pair in told:
            about[text].append(pair.name)
        lines = [_about(text, names, len(pairs)) for text, names in about.items()]
        shown = len(lines) if kind == UNLIKE else MAX_SHOWN
        yield from (f"{kind}: {line}" for line in lines[:shown])
        if len(lines) > shown:
            yield f"{kind}: {len(lines) - shown} more (--json has all)"
    yield from (f"Note: {note}" for note in candidate.notes)
    for where, names in (("baseline", candidate.only_baseline), ("candidate", candidate.only_candidate)):
        if names:
            yield f"Only in the {where}: {_first(names)}"


def legend(comparison: Comparison) -> Iterator[str]:
    """What the signs in the tables mean, as far as they have them."""
    figures = [figure for pair in comparison.pairs() for figure in pair.figures]
    tests = sum(figure.p_adjusted is not None for figure in figures)
    intervals = {figure.interval for figure in figures}
    if "welch" in intervals:
        many = ", p corrected for all configurations (Holm)" if tests > len(UNITS) else ""
        yield (
            f"Change is that of the geometric mean over the runs; interval and p are Welch's{many}; p up to "
            f"{SIGNIFICANCE:g} is called a difference. Not told apart is not equal: see the interval."
        )
    if "measurement" in intervals:
        yield "m: the interval holds the stated uncertainty of the measurement alone, not how far runs spread."
    for reason in dict.fromkeys(figure.reason for figure in figures if figure.reason is not None):
        yield f"Not tested: {reason}."


def gate_lines(comparison: Comparison) -> Iterator[str]:
    """The verdict, why, and what it could have found."""
    gate = comparison.gate
    if gate is None:
        return
    yield f"Gate: {_VERDICTS[gate.outcome]}" + (
        ": no configuration was shown to be worse." if not gate.reasons else "."
    )
    yield from (f"  {reason}" for reason in gate.reasons)
    for figure, unit in UNITS.items():
        tested = [test for pair in comparison.pairs() if (test := pair.figure(figure).gate) is not None]
        found = [test.finds_pct for test in tested if test.finds_pct is not None]
        if tested and found:
            change = "an increase" if figure == "energy_per_token_j" else "a decrease"
            yield (
                f"{unit}: limit {tested[0].limit_pct:g} %; {change} of {quantity(max(found))} % or more would have "
                f"been found in {100 * POWER:.0f} % of such comparisons."
            )


def _sides(comparison: Comparison) -> list[str]:
    sides = [("Baseline", comparison.baseline), *(("Candidate", entry.candidate) for entry in comparison.candidates)]
    return aligned([(label, side.path, described(side)) for label, side in sides])


def described(side: ComparedSide) -> str:
    """How much there is of a side, and from when."""
    counts = f"{counted(side.runs, 'run')}, {counted(side.configurations, 'configuration')}"
    return f"{counts}, {minute(side.first_start)} to {minute(side.last_end)}"


def _difference(difference: Difference) -> str:
    return f"{difference}{' (accepted)' if difference.is_refused else ''}"


def _setting(setting: SettingDifference) -> str:
    values = (setting.baseline, setting.candidate)
    return f"{setting.path}: {' → '.join('not set' if value is None else _plain(value) for value in values)}"


def _plain(value: str) -> str:
    found = json.loads(value)
    return found if isinstance(found, str) else value


def _about(text: str, names: Sequence[str], pairs: int) -> str:
    return text if len(names) == pairs else f"{text} ({_first(names)})"


def _first(names: Sequence[str]) -> str:
    more = len(names) - MAX_SHOWN
    return "; ".join(names[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _wrapped(text: str, width: int) -> Iterable[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
