"""Energy against the truth: plain counter, integral and fusion over sensors, loads and window lengths.

Boards, loads and windows have random phases and run on a virtual clock; the estimators are the ones that measure. The
table says, for each sensor, load and length, how wrong each figure is (95th percentile of the error in per cent), how
wide its stated 95 % interval is (mean half-width in per cent) and how often that interval holds the truth.

A second table is about counters of unknown kind: whether the interval that holds both kinds does, on boards of either.

    python -m benchmarks.energy_accuracy [--quick] [--check] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report import Figure, render
from tests.nvml.virtual import ARCHITECTURES, Counter
from tests.nvml.virtual_run import VirtualWindow, by_nvml, quantile, random_board, run_window
from tests.nvml.waveform import Waveform, constant, noise, ramp, square

from llenergymeasure.core.energy.integrate import integrate_power
from llenergymeasure.core.energy.uncertainty import integral_components
from llenergymeasure.domain.energy import comparative_half_width

LENGTHS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
STEP_S = 0.1  # a window is longer than its nominal length by up to one step of the counter
KIND_LENGTHS_S = (1.0, 10.0)
DRAWS, QUICK_DRAWS = 60, 4
FASTEST = "square 20 to 200 ms"
TITLE = "Energy against the truth (virtual clock)"


def _square(period_s: float, duty: float = 0.5) -> Callable[[random.Random], Waveform]:
    return lambda draw: square(120.0, 500.0, period_s, duty, draw.uniform(0.0, period_s))


def _any_fast_square(draw: random.Random) -> Waveform:
    return _square(draw.uniform(0.02, 0.2))(draw)


def _any_square(draw: random.Random) -> Waveform:
    return _square(draw.uniform(0.25, 1.5))(draw)


LOADS: dict[str, Callable[[random.Random], Waveform]] = {
    "steady": lambda draw: constant(draw.uniform(80.0, 600.0)),
    "ramp": lambda _: ramp(100.0, 600.0, 10.0, 85.0),
    "square 0.7 s": _square(0.7),
    "square 0.25 to 1.5 s": _any_square,
    "square 5 s": _square(5.0),
    FASTEST: _any_fast_square,
    "noise": lambda draw: noise(350.0, draw.uniform(20.0, 80.0), draw.uniform(0.02, 0.3), 30.0, draw.getrandbits(30)),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One figure of one window, in joules."""

    error_j: float
    half_width_j: float | None
    true_j: float

    @property
    def covers(self) -> bool:
        return self.half_width_j is not None and self.error_j <= self.half_width_j


@dataclass(frozen=True, slots=True)
class Cell:
    """All draws of one sensor, load and length."""

    architecture: str
    load: str
    length_s: float
    plain: Sequence[Outcome]
    fused: Sequence[Outcome]
    integral: Sequence[Outcome]


def measure(draws: int) -> Iterator[Cell]:
    """Draw windows for every architecture, load and length."""
    draw = random.Random(2026)
    for architecture, kind in ARCHITECTURES.items():
        for load, waveform in LOADS.items():
            for length_s in LENGTHS_S:
                windows = [
                    run_window(
                        random_board(architecture, waveform(draw), draw), length_s + draw.uniform(0, STEP_S), draw
                    )
                    for _ in range(draws)
                ]
                yield Cell(
                    architecture,
                    load,
                    length_s,
                    plain=[_plain(window) for window in windows] if kind.counter else [],
                    fused=[_fused(window) for window in windows] if kind.counter else [],
                    integral=[_integral(window) for window in windows],
                )


@dataclass(frozen=True, slots=True)
class KindCell:
    """All draws of one sensor, load and length by counters that count all, and by ones that add up the readings."""

    architecture: str
    load: str
    length_s: float
    counts_all: Sequence[Outcome]
    follows: Sequence[Outcome]


def measure_kinds(draws: int) -> Iterator[KindCell]:
    """Draw windows on boards whose counter is of either kind, measured without knowing which."""
    draw = random.Random(2027)
    for architecture, kind in ARCHITECTURES.items():
        if not kind.counter:
            continue
        for load, waveform in LOADS.items():
            for length_s in KIND_LENGTHS_S:
                outcomes: dict[bool, list[Outcome]] = {False: [], True: []}
                for number in range(2 * draws):
                    board = random_board(architecture, waveform(draw), draw)
                    follows = number % 2 == 1
                    board.counter = replace(board.counter or Counter(), follows_sensor=follows)
                    window = run_window(board, length_s + draw.uniform(0, STEP_S), draw)
                    energy = by_nvml(window, board, follows=None)
                    if energy.total_j is not None:  # a load that fooled the sensor: the audit has said so
                        error_j = abs(energy.total_j - window.true_j)
                        half_width_j = comparative_half_width(energy.components)
                        outcomes[follows].append(Outcome(error_j, half_width_j, window.true_j))
                yield KindCell(architecture, load, length_s, outcomes[False], outcomes[True])


def kinds_table(cells: Sequence[KindCell]) -> str:
    """The cells as a Markdown table."""
    head = (
        "| sensor | load | window (s) | counts all: error (%) | states (%) | covers (%) "
        "| adds up readings: error (%) | states (%) | covers (%) |"
    )
    lines = [head, "|---|---|" + "--:|" * 7]
    for cell in cells:
        columns = [cell.architecture, cell.load, f"{cell.length_s:g}", *_columns(cell.counts_all)]
        lines.append("| " + " | ".join([*columns, *_columns(cell.follows)]) + " |")
    return "\n".join(lines)


def table(cells: Sequence[Cell]) -> str:
    """The cells as a Markdown table."""
    head = (
        "| sensor | load | window (s) | true energy (J) | counter error (%) | fused error (%) | fused states (%) "
        "| fused covers (%) | integral error (%) | integral states (%) | integral covers (%) |"
    )
    lines = [head, "|---|---|" + "--:|" * 9]
    for cell in cells:
        mean_j = statistics.fmean(outcome.true_j for outcome in cell.integral)
        columns = [
            cell.architecture,
            cell.load,
            f"{cell.length_s:g}",
            f"{mean_j:.0f}",
            _error_pct(cell.plain),
            *_columns(cell.fused),
            *_columns(cell.integral),
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def page(cells: Sequence[Cell], kinds: Sequence[KindCell], found: Sequence[Figure], draws: int) -> str:
    """Claims and table as a page of the documentation."""
    claims = [f"| {f.name} | {f.value:.2f} {f.unit} | {f.target:g} {f.unit} | {f.note} |" for f in found if f.target]
    parts = [
        "# Energy against the truth",
        "Written by `python -m benchmarks.energy_accuracy --markdown`: sensors as published for each architecture, "
        "with phases, loads and window edges drawn at random, on a virtual clock, read by the estimators that measure. "
        f"{draws} windows per line, each up to 0.1 s longer than its nominal length. *Error*: 95th percentile of the "
        "error. *States*: mean half-width of the stated 95 % interval, without the sensor's gain. *Covers*: share of "
        "windows whose stated interval holds the truth. The plain counter is what reading the counter once at each "
        "edge gives.",
        "\n".join(["| claim | found | at most | |", "|---|--:|--:|---|", *claims]),
        table(cells),
        "## Counters of unknown kind",
        "The table above is about counters that are known to count all. Until a calibration has told, the interval "
        "holds this kind and the one that adds up what the sensor sees: here on boards of either kind, of which "
        "nothing is known.",
        kinds_table(kinds),
    ]
    return "\n\n".join(parts) + "\n"


def figures(cells: Sequence[Cell], kinds: Sequence[KindCell]) -> list[Figure]:
    """What the documentation promises, as figures with targets."""
    counted = [cell for cell in cells if cell.fused]
    ratio = max(_error_ratio([cell for cell in counted if cell.architecture == name]) for name in _names(counted))
    long_errors = [100.0 * o.error_j / o.true_j for c in counted if c.length_s >= 10.0 for o in c.fused]
    fused = [outcome for cell in counted for outcome in cell.fused]
    either = [o for c in kinds if c.load != FASTEST for o in (*c.counts_all, *c.follows)]
    followed = [o for c in cells if c.load != FASTEST for o in c.integral]
    return [
        Figure("fused / plain error, 0.7 s square, up to 2.1 s", ratio, "", 0.5, "worst sensor, 95th percentiles"),
        Figure("fused error, windows of 10 s and more", max(long_errors), "%", 1.0, "worst of all draws"),
        Figure("fused intervals without the truth", _missed_pct(fused), "%", 5.0, f"{len(fused)} windows"),
        Figure("integral intervals without the truth", _missed_pct(followed), "%", 5.0, "loads samples can follow"),
        Figure(
            "counters of unknown kind, without the truth", _missed_pct(either), "%", 5.0, "loads samples can follow"
        ),
    ]


def _plain(window: VirtualWindow) -> Outcome:
    return Outcome(abs(window.plain_j - window.true_j), None, window.true_j)


def _fused(window: VirtualWindow) -> Outcome:
    fused = window.fused()
    return Outcome(abs(fused.energy_j - window.true_j), fused.half_width_j, window.true_j)


def _integral(window: VirtualWindow) -> Outcome:
    times, power = [t for t, _ in window.samples], [w for _, w in window.samples]
    energy_j = integrate_power(times, power, window.start_s, window.end_s)
    parts = integral_components(times, power, window.start_s, window.end_s, window.sampling)
    return Outcome(abs(energy_j - window.true_j), comparative_half_width(parts), window.true_j)


def _columns(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["–", "–", "–"]
    stated_pct = statistics.fmean(100.0 * (o.half_width_j or 0.0) / o.true_j for o in outcomes)
    return [_error_pct(outcomes), f"{stated_pct:.2f}", f"{100.0 - _missed_pct(outcomes):.0f}"]


def _error_pct(outcomes: Sequence[Outcome]) -> str:
    return f"{quantile([100.0 * o.error_j / o.true_j for o in outcomes], 0.95):.2f}" if outcomes else "–"


def _names(cells: Sequence[Cell]) -> set[str]:
    return {cell.architecture for cell in cells}


def _error_ratio(cells: Sequence[Cell]) -> float:
    short = [cell for cell in cells if cell.load == "square 0.7 s" and cell.length_s <= 2.0]
    fused_j = [outcome.error_j for cell in short for outcome in cell.fused]
    plain_j = [outcome.error_j for cell in short for outcome in cell.plain]
    return quantile(fused_j, 0.95) / quantile(plain_j, 0.95)


def _missed_pct(outcomes: Sequence[Outcome]) -> float:
    return 100.0 * sum(not outcome.covers for outcome in outcomes) / len(outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it works, not how well")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    draws = QUICK_DRAWS if arguments.quick else DRAWS
    cells = list(measure(draws))
    kinds = list(measure_kinds(draws))
    found = figures(cells, kinds)
    print(table(cells), kinds_table(kinds), render(TITLE, found), sep="\n\n")
    if arguments.markdown:
        arguments.markdown.write_text(page(cells, kinds, found, draws), encoding="utf-8")
    return int(arguments.check and any(figure.misses for figure in found))


if __name__ == "__main__":
    raise SystemExit(main())
