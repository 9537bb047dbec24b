"""What a study yielded, as text: a table of configurations, best first, then counts and places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics, FailedExperiment, StudyResult
from llenergymeasure.results.summary import duration, joules, one_line, quantity, with_half_width

MAX_FAILURES: Final = 20
"""Failures that are listed; `study_summary.json` has them all."""


def render_study(result: StudyResult, directory: Path) -> str:
    """The summary of a study.

    Args:
        result: What it yielded.
        directory: Where it is kept.
    """
    lines = [*_table(result.statistics), ""]
    summary = result.summary
    counts = [f"{summary.completed} completed", f"{summary.failed} failed"]
    if summary.skipped:
        counts.append(f"{summary.skipped} skipped (not valid)")
    lines.append(f"{'Runs':<15}{', '.join(counts)}, of {summary.total_experiments} planned")
    lines += [f"{'':<15}{line}" for line in _failures(result.failed)]
    if summary.total_energy_j is not None:
        lines.append(f"{'Energy':<15}{joules(summary.total_energy_j)} in all measurement windows")
    lines.append(f"{'Duration':<15}{duration(summary.total_wall_time_s)}")
    lines.append(f"{'Study':<15}{directory}")
    return "\n".join(lines)


def _table(statistics: list[ConfigurationStatistics]) -> list[str]:
    """Aligned rows, the least energy per token first; what was not measured last."""
    if not statistics:
        return ["No run was completed."]
    ranked = sorted(statistics, key=lambda s: s.energy_per_token_j.mean if s.energy_per_token_j else float("inf"))
    rows = [("Configuration", "Cycles", "Energy per token", "CV", "Tokens per second", "CV")]
    rows += [
        (
            entry.config_name or entry.measurement_config_hash,
            str(entry.cycles),
            _interval(entry.energy_per_token_j, energy=True),
            _variation(entry.energy_per_token_j),
            _interval(entry.tokens_per_second, energy=False),
            _variation(entry.tokens_per_second),
        )
        for entry in ranked
    ]
    shown = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    lines = ["  ".join(row[column].ljust(widths[column]) for column in shown).rstrip() for row in rows]
    return [*lines, *_legend(statistics)]


def _legend(statistics: list[ConfigurationStatistics]) -> Iterator[str]:
    """What the signs in the table mean, as far as it has them."""
    figures = list(chain.from_iterable((entry.energy_per_token_j, entry.tokens_per_second) for entry in statistics))
    if any(figure is not None and figure.ci95_high is not None for figure in figures):
        yield "± is the 95 % interval of the mean over the cycles, CV their coefficient of variation."
    if any(figure is not None and figure.high_variation for figure in figures):
        yield "! marks a CV above 5 %: these cycles differ a lot; more of them narrow the interval."


def _failures(failed: list[FailedExperiment]) -> Iterator[str]:
    """What failed and why; the cycles of one configuration that failed alike together."""
    cycles: dict[tuple[str, str], list[int]] = defaultdict(list)
    for failure in failed:
        name = failure.config_name or str(failure.config.get("model", ""))
        cycles[name, one_line(failure.reason)] += [] if failure.cycle is None else [failure.cycle]
    for (name, reason), numbers in list(cycles.items())[:MAX_FAILURES]:
        where = f", cycle{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" if numbers else ""
        yield f"✗ {name}{where}: {reason}"
    if len(cycles) > MAX_FAILURES:
        yield f"… and {len(cycles) - MAX_FAILURES} more, all in study_summary.json"


def _interval(figure: CycleStatistics | None, *, energy: bool) -> str:
    if figure is None:
        return "not measured"
    half_width = None if figure.ci95_high is None else figure.ci95_high - figure.mean
    if energy:
        return joules(figure.mean, half_width=half_width)
    return quantity(figure.mean) if half_width is None else with_half_width(figure.mean, half_width)


def _variation(figure: CycleStatistics | None) -> str:
    """The coefficient of variation in per cent, with a mark where it is above 5 %; nothing where there is none."""
    if figure is None or figure.cv_pct is None:
        return ""
    return f"{figure.cv_pct:.1f} %{' !' if figure.high_variation else ''}"
