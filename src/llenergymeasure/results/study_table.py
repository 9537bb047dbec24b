"""The configurations of a study as a table for people, the least energy per token first.

Configuration  J/token, estimated    ×     tok/s     TTFT    CV       Runs
batch 8        5.00 ± 0.25 mJ        1.00  400 ± 10  142 ms  2.0 %    3
batch 1        1.1 ± 2.2 J           221   94 ± 327  130 ms  80.5 % !  3
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.readable import counted
from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics, count_warnings
from llenergymeasure.results.summary import joules, quantity, with_half_width

DEFAULT_WIDTH: Final = 80
_NARROWEST_NAME: Final = 16
_BETWEEN: Final = "  "


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of figures.

    Args:
        rank: The higher, the sooner it is left out where the lines are too narrow for all.
        width: Of its widest cell and of the space before it.
    """

    title: str
    cells: Sequence[str]
    rank: int
    width: int

    @classmethod
    def of(cls, title: str, cells: Iterable[str], rank: int) -> _Column:
        found = list(cells)
        return cls(title, found, rank, len(_BETWEEN) + max(map(len, (title, *found))))


def render_configurations(statistics: Sequence[ConfigurationStatistics], width: int = DEFAULT_WIDTH) -> list[str]:
    """The table, what its signs mean, and which warnings there were.

    Args:
        width: Columns that the lines may take; figures that do not fit are left out, the least important first.
    """
    if not statistics:
        return ["No run was completed."]
    ranked = best_first(statistics)
    names = differing_parts([entry.config_name or entry.measurement_config_hash for entry in ranked])
    columns = [column for column in _columns(ranked) if any(column.cells)]
    longest_name = max(map(len, names))
    while len(columns) > 1 and _width_of(columns) + min(longest_name, _NARROWEST_NAME) > width:
        columns.remove(max(columns, key=lambda column: column.rank))
    name_width = max(_NARROWEST_NAME, min(longest_name, width - _width_of(columns)))
    lines = [_line("Configuration", name_width, [(column.title, column.width) for column in columns])]
    for row, name in enumerate(names):
        first, *more = textwrap.wrap(name, name_width) or [""]
        lines.append(_line(first, name_width, [(column.cells[row], column.width) for column in columns]))
        lines += [f"  {part}" for part in more]
    legend = (textwrap.wrap(entry, width, subsequent_indent="  ") for entry in _legend(ranked))
    return [*lines, *(line for entry in legend for line in entry)]


def differing_parts(names: Sequence[str]) -> list[str]:
    """The names of a study's configurations, `a / b / c`, without the parts that all of them have."""
    split = [name.split(" / ") for name in names]
    common = set.intersection(*map(set, split)) if split else set()
    short = [" / ".join(part for part in parts if part not in common) for parts in split]
    return short if all(short) else list(names)


def best_first(statistics: Sequence[ConfigurationStatistics]) -> list[ConfigurationStatistics]:
    """The least energy per token first; of those without energy, the fastest."""

    def by_energy_then_speed(entry: ConfigurationStatistics) -> tuple[float, float]:
        energy, speed = entry.energy_per_token_j, entry.tokens_per_second
        return energy.mean if energy else float("inf"), -(speed.mean if speed else 0.0)

    return sorted(statistics, key=by_energy_then_speed)


def _columns(statistics: Sequence[ConfigurationStatistics]) -> list[_Column]:
    heading, mixed = energy_heading(statistics)
    first_tokens, ratios = [entry.ttft_ms for entry in statistics], [entry.energy_vs_best for entry in statistics]
    return [
        _Column.of(heading, (shown_energy(entry, mixed) for entry in statistics), 0),
        _Column.of("×", ("" if ratio is None else quantity(ratio) for ratio in ratios), 1),
        _Column.of("tok/s", (shown_mean(entry.tokens_per_second) for entry in statistics), 0),
        _Column.of("TTFT", ("" if ttft is None else f"{quantity(ttft.mean)} ms" for ttft in first_tokens), 2),
        _Column.of("CV", (shown_variation(e.energy_per_token_j or e.tokens_per_second) for e in statistics), 3),
        _Column.of("Runs", (str(entry.cycles) for entry in statistics), 4),
    ]


def energy_heading(statistics: Sequence[ConfigurationStatistics]) -> tuple[str, bool]:
    """What stands above the energies, and whether some are measured and some estimated, so that each says which."""
    kinds = _kinds_of_energy(statistics)
    return f"J/token{', estimated' if kinds == {True} else ''}", len(kinds) > 1


def estimate_mark(statistics: Sequence[ConfigurationStatistics]) -> str:
    """What is said behind the energy of all together: nothing, or that a model knows it, or a part of it."""
    kinds = _kinds_of_energy(statistics)
    return "" if True not in kinds else ", in part estimated" if False in kinds else ", estimated"


def _kinds_of_energy(statistics: Sequence[ConfigurationStatistics]) -> set[bool]:
    return {entry.estimated for entry in statistics if entry.energy_per_token_j is not None}


def _width_of(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns)


def _line(name: str, name_width: int, cells: Iterable[tuple[str, int]]) -> str:
    return "".join([name.ljust(name_width), *(f"{_BETWEEN}{text}".ljust(width) for text, width in cells)]).rstrip()


def _legend(statistics: Sequence[ConfigurationStatistics]) -> Iterator[str]:
    """What the signs in the table mean, as far as it has them."""
    figures = [
        figure
        for entry in statistics
        for figure in (entry.energy_per_token_j, entry.tokens_per_second)
        if figure is not None
    ]
    if any(figure.ci95_high is not None for figure in figures):
        yield "± is the 95 % interval of the mean over the cycles, CV their coefficient of variation."
    if any(entry.energy_vs_best not in (None, 1.0) for entry in statistics):
        yield "× is energy per token against the best configuration."
    if any(figure.high_variation for figure in figures):
        yield "! marks a CV above 5 %: these cycles differ a lot; more of them narrow the interval."
    if counts := count_warnings(statistics):
        yield "Warnings: " + ", ".join(f"{code} ({counted(runs, 'run')})" for code, runs in counts.items())


def shown_energy(entry: ConfigurationStatistics, mixed: bool) -> str:
    """Energy per token with its interval; `mixed`: others are measured, so that an estimate is called one."""
    figure = entry.energy_per_token_j
    if figure is None:
        return "not measured"
    half_width = None if figure.ci95_high is None else figure.ci95_high - figure.mean
    return joules(figure.mean, half_width=half_width) + (" estimated" if mixed and entry.estimated else "")


def shown_mean(figure: CycleStatistics | None) -> str:
    """A mean over the cycles with its interval."""
    if figure is None:
        return "not measured"
    if figure.ci95_high is None:
        return quantity(figure.mean)
    return with_half_width(figure.mean, figure.ci95_high - figure.mean)


def shown_variation(figure: CycleStatistics | None) -> str:
    """The coefficient of variation in per cent, with a mark where it is above 5 %; nothing where there is none."""
    if figure is None or figure.cv_pct is None:
        return ""
    return f"{figure.cv_pct:.1f} %{' !' if figure.high_variation else ''}"
