"""What a study yielded, as text: a table of configurations, best first, then counts and places."""

from __future__ import annotations

from pathlib import Path

from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics, StudyResult
from llenergymeasure.domain.summary import duration, joules, quantity


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
    for failure in result.failed:
        where = "" if failure.cycle is None else f", cycle {failure.cycle}"
        lines.append(f"{'':<15}✗ {failure.config.get('model', '')}{where}: {failure.reason}")
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
    rows = [("Configuration", "Cycles", "J/token (95 %)", "tok/s (95 %)", "CV")]
    rows += [
        (
            entry.config_name or entry.measurement_config_hash,
            str(entry.cycles),
            _interval(entry.energy_per_token_j, energy=True),
            _interval(entry.tokens_per_second, energy=False),
            _variation(entry),
        )
        for entry in ranked
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _interval(figure: CycleStatistics | None, *, energy: bool) -> str:
    if figure is None:
        return "not measured"
    half_width = None if figure.ci95_high is None else figure.ci95_high - figure.mean
    if energy:
        return joules(figure.mean, half_width=half_width)
    text = quantity(figure.mean)
    return text if half_width is None else f"{text} ± {quantity(half_width)}"


def _variation(entry: ConfigurationStatistics) -> str:
    """Coefficients of variation of both figures in per cent, with a mark where one is above 5 %."""
    return " / ".join(
        f"{figure.cv_pct:.1f} %{' !' if figure.high_variation else ''}"
        for figure in (entry.energy_per_token_j, entry.tokens_per_second)
        if figure is not None and figure.cv_pct is not None
    )
