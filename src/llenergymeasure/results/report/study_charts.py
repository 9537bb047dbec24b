"""The charts of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from llenergymeasure.domain.readable import shortened, signed
from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics
from llenergymeasure.results.report.charts import (
    INK,
    LINE,
    MUTED,
    NARROW_PT,
    SERIES,
    Spot,
    chart,
    make_room,
    margins,
    plain_ticks,
)
from llenergymeasure.results.report.factors import Change, Factor, Level
from llenergymeasure.results.report.page import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOGARITHMIC_FROM: Final = 20.0
"""Largest over smallest figure from which an axis is logarithmic."""

_POWERS_OF_TEN_FROM: Final = 500.0
"""The same from which powers of ten are enough of ticks."""

MAX_LEVELS: Final = 16
"""Levels of a factor that a chart shows; the table beside it has them all."""

ESTIMATE_COLOUR: Final = 3
"""Of estimates beside measured figures."""

_ROW_PT: Final = 19.0
_NUMBER_PT: Final = 16.0
_NAME_LENGTH: Final = {False: 34, True: 15}
"""Letters of a name beside a row, in wide charts and in narrow ones."""


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration in the plane of energy and speed.

    Args:
        rank: Its place in the table.
        on_front: Whether none is both faster and thriftier.
    """

    rank: int
    text: str
    energy: CycleStatistics
    speed: CycleStatistics
    estimated: bool
    on_front: bool


def front(entries: Sequence[ConfigurationStatistics]) -> set[str]:
    """Hashes of the configurations that no other of their kind beats in both energy per token and speed."""
    chosen: set[str] = set()
    for estimated in (False, True):
        alike = [
            (-entry.tokens_per_second.mean, entry.energy_per_token_j.mean, entry.measurement_config_hash)
            for entry in entries
            if entry.estimated == estimated and entry.energy_per_token_j and entry.tokens_per_second
        ]
        least_j = float("inf")
        for _, energy_j, config_hash in sorted(alike):
            if energy_j < least_j:
                least_j = energy_j
                chosen.add(config_hash)
    return chosen


def pareto_chart(points: Sequence[Point], description: str) -> Markup:
    """Energy per token against speed, with intervals and the front."""

    def draw(figure: Figure, width_pt: float) -> list[Spot]:
        axes = figure.subplots()
        margins(figure, left=56, right=14, top=26, bottom=40)
        axes.grid(visible=True, axis="both")
        for estimated in (False, True):
            best = sorted((p.speed.mean, p.energy.mean) for p in points if p.on_front and p.estimated == estimated)
            if len(best) > 1:
                axes.plot(*zip(*best, strict=True), color=SERIES[1], linewidth=1.2, zorder=1)
        for on_front in (False, True):
            _draw_intervals(axes, [point for point in points if point.on_front == on_front], on_front)
        ticks = 4 if width_pt <= NARROW_PT else 8
        _scale(axes, "x", [point.speed for point in points], ticks)
        _scale(axes, "y", [point.energy for point in points], ticks)
        axes.set_xlabel("Output tokens per second")
        axes.set_title("Joules per output token", color=MUTED)
        _number_the_front(axes, points)
        mixed = len({point.estimated for point in points}) > 1
        return [_spot(axes, point, mixed) for point in sorted(points, key=lambda point: (point.on_front, -point.rank))]

    return chart("pareto", draw, (400.0, 330.0), "Energy per token against throughput", description)


def _draw_intervals(axes: Axes, points: Sequence[Point], on_front: bool) -> None:
    colour = INK if on_front else MUTED
    speeds = [(p.energy.mean, *ends) for p in points if (ends := _interval(p.speed)) is not None]
    energies = [(p.speed.mean, *ends) for p in points if (ends := _interval(p.energy)) is not None]
    if speeds:
        at, low, high = zip(*speeds, strict=True)
        axes.hlines(at, low, high, colors=colour, linewidth=0.9, alpha=0.7, zorder=2)
    if energies:
        at, low, high = zip(*energies, strict=True)
        axes.vlines(at, low, high, colors=colour, linewidth=0.9, alpha=0.7, zorder=2)


def _interval(figure: CycleStatistics) -> tuple[float, float] | None:
    if figure.ci95_low is None or figure.ci95_high is None:
        return None
    return max(figure.ci95_low, 0.0), figure.ci95_high


def _scale(axes: Axes, name: str, figures: Sequence[CycleStatistics], ticks: int) -> None:
    """Limits of an axis: the intervals', but no further from the means than these lie apart, on either side.

    Args:
        name: `x` or `y`. Logarithmic where the means span far.
        ticks: At most so many where it is logarithmic.
    """
    from matplotlib.ticker import LogLocator

    means = [figure.mean for figure in figures]
    low, high = min(means), max(means)
    if low > 0 and high / low >= _LOGARITHMIC_FROM:
        getattr(axes, f"set_{name}scale")("log")
        getattr(axes, f"set_{name}lim")(low / 1.5, high * 1.5)
        subs = (1.0, 2.0, 5.0) if high / low < _POWERS_OF_TEN_FROM else (1.0,)
        getattr(axes, f"{name}axis").set_major_locator(LogLocator(subs=subs, numticks=ticks))
    else:
        ends = [end for figure in figures for end in _interval(figure) or ()]
        apart = high - low or high or 1.0
        low, high = max(min([low, *ends]), low - apart), min(max([high, *ends]), high + apart)
        room = 0.12 * (high - low) or 0.1 * high or 1.0
        getattr(axes, f"set_{name}lim")(max(0.0, low - room), high + room)
    plain_ticks(getattr(axes, f"{name}axis"))


def _number_the_front(axes: Axes, points: Sequence[Point]) -> None:
    """Write their rank beside the points on the front, where there is room for it; the table has them all."""
    taken: list[tuple[float, float]] = []
    for point in points:
        x_pt, y_pt = map(float, axes.transData.transform((point.speed.mean, point.energy.mean)))
        if point.on_front and all(math.hypot(x_pt - x, y_pt - y) >= _NUMBER_PT for x, y in taken):
            taken.append((x_pt, y_pt))
            axes.annotate(
                str(point.rank),
                (point.speed.mean, point.energy.mean),
                xytext=(6, -13),
                textcoords="offset points",
                fontsize=9,
                color=INK,
            )


def _spot(axes: Axes, point: Point, mixed: bool) -> Spot:
    colour = ESTIMATE_COLOUR if mixed and point.estimated else 1 if point.on_front else 0
    return Spot(axes, point.speed.mean, point.energy.mean, point.text, SERIES[colour], 5.0, point.on_front)


def effect_chart(name: str, factor: Factor, description: str) -> Markup:
    """What each level of a factor does to energy and to speed, against its first level; of many levels, some."""
    levels = _evenly(factor.levels)
    height_pt = 56 + _ROW_PT * len(levels)

    def draw(figure: Figure, width_pt: float) -> None:
        narrow = width_pt <= NARROW_PT
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(
            left=(76 if narrow else 140) / width_pt,
            right=1 - 14 / width_pt,
            top=1 - 26 / height_pt,
            bottom=24 / height_pt,
            wspace=0.3 if narrow else 0.12,
        )
        for axes, figure_name, title in ((left, "energy", "J/token"), (right, "speed", "tokens/s")):
            changes = [getattr(level, figure_name) for level in levels]
            _draw_changes(axes, changes, ticks=2 if narrow else 4)
            axes.set_title(title, color=MUTED)
        labels = [shortened(level.label, 11 if narrow else 22) for level in levels]
        left.set_yticks(range(len(labels)), labels)
        left.invert_yaxis()

    return chart(name, draw, height_pt, f"Effect of {factor.name}", description)


def _evenly(levels: Sequence[Level]) -> list[Level]:
    """As many levels as a chart has room for, the first and the last among them."""
    last = len(levels) - 1
    drawn = min(last, MAX_LEVELS - 1)
    return [levels[round(place * last / drawn)] for place in range(drawn + 1)]


def _draw_changes(axes: Axes, changes: Sequence[Change | None], ticks: int) -> None:
    axes.axvline(0.0, color=MUTED, linewidth=0.9)
    axes.grid(visible=True, axis="x")
    for row, change in enumerate(changes):
        if change is None:
            axes.annotate("no pair", (0.0, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
            continue
        low, mean, high = (_pct(ratio) for ratio in (change.low, change.mean, change.high))
        axes.plot((low, high), (row, row), color=SERIES[0], linewidth=5.0, alpha=0.35, solid_capstyle="round")
        axes.plot(mean, row, "o", color=SERIES[0], markersize=6)
    axes.margins(x=0.12, y=0.0)
    intervals = {
        row: (_pct(change.ci95_low), _pct(change.ci95_high))
        for row, change in enumerate(changes)
        if change is not None and change.ci95_low is not None and change.ci95_high is not None
    }
    make_room(axes, chain.from_iterable(intervals.values()))
    for row, (low, high) in intervals.items():
        axes.hlines(row, low, high, colors=INK, linewidth=0.9, zorder=1)
    axes.set_ylim(-0.6, len(changes) - 0.4)
    if any(change.low != 1 or change.high != 1 for change in changes if change is not None):
        axes.locator_params(axis="x", nbins=ticks)
    else:
        axes.set_xticks([0.0])  # there is nothing to measure a distance with
    axes.xaxis.set_major_formatter(lambda value, _: f"{'−' if value < 0 else '+'}{abs(value):g} %" if value else "0")


def _pct(ratio: float) -> float:
    return 100.0 * (ratio - 1.0)


@dataclass(frozen=True, slots=True)
class Spread:
    """The cycles of one configuration, in per cent from their mean.

    Args:
        cycles: Number of each cycle, or of its place where it has none.
    """

    name: str
    deviations_pct: Sequence[float]
    cycles: Sequence[int]


def spread_chart(spreads: Sequence[Spread], description: str) -> Markup:
    """How far the cycles of each configuration lie apart."""
    height_pt = 64 + _ROW_PT * len(spreads)

    def draw(figure: Figure, width_pt: float) -> list[Spot]:
        narrow = width_pt <= NARROW_PT
        axes = figure.subplots()
        margins(figure, left=96 if narrow else 216, right=14, top=10, bottom=40)
        axes.grid(visible=True, axis="x")
        axes.axvline(0.0, color=MUTED, linewidth=0.9)
        for row, spread in enumerate(spreads):
            low, high = min(spread.deviations_pct), max(spread.deviations_pct)
            axes.plot((low, high), (row, row), color=LINE, linewidth=3.0, solid_capstyle="round")
        axes.set_yticks(range(len(spreads)), [shortened(spread.name, _NAME_LENGTH[narrow]) for spread in spreads])
        axes.set_ylim(len(spreads) - 0.4, -0.6)
        widest = max((abs(value) for spread in spreads for value in spread.deviations_pct), default=0.0)
        axes.set_xlim(-1.15 * max(widest, 0.1), 1.15 * max(widest, 0.1))
        axes.set_xlabel("Per cent from the mean of its cycles")
        return [
            Spot(axes, value, row, f"{spread.name}, cycle {cycle}: {signed(value, 2)} %", SERIES[0], 4.0, False)
            for row, spread in enumerate(spreads)
            for cycle, value in zip(spread.cycles, spread.deviations_pct, strict=True)
        ]

    return chart("cycles", draw, height_pt, "Spread of the cycles", description)
