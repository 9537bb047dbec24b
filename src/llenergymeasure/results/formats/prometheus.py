"""Results in Prometheus' text format, for a text-file collector or a push gateway.

Every numeric column of the flat row is a gauge under its own name, so that it is found in tables and dashboards alike.
What is not known is left out: a gauge has no null.
https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.export import FLAT_COLUMNS, FlatColumn, Scalar, flat_row

PREFIX: Final = "llenergymeasure_"

LABELS: Final = (
    "experiment_id",
    "model",
    "backend",
    "precision",
    "config_name",
    "cycle",
    "energy_method",
    "energy_scope",
    "currency",
)
"""Columns that tell one result from another, and a measured figure from an estimate; and what a cost is in."""


def prometheus_text(results: Iterable[ExperimentResult]) -> str:
    """The results as a text that a scrape may return."""
    rows = [flat_row(result) for result in results]
    labels = [_labels(row) for row in rows]
    figures = (column for column in FLAT_COLUMNS if column.type in ("integer", "number") and column.name not in LABELS)
    return "".join(f"{line}\n" for column in figures for line in _gauge(column, rows, labels))


def _gauge(column: FlatColumn, rows: list[dict[str, Scalar]], labels: list[str]) -> Iterator[str]:
    samples = [
        (label, value)
        for label, row in zip(labels, rows, strict=True)
        if isinstance(value := row[column.name], (int, float))
    ]
    if not samples:
        return
    name, unit = PREFIX + column.name, f" ({column.unit})" if column.unit else ""
    yield f"# HELP {name} {_escaped(column.description + unit)}"
    yield f"# TYPE {name} gauge"
    for label, value in samples:
        yield f"{name}{{{label}}} {value!r}"


def _labels(row: dict[str, Scalar]) -> str:
    return ",".join(f'{name}="{_quoted(str(row[name]))}"' for name in LABELS if row[name] is not None)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
