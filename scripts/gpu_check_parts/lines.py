"""Lines of the check: an expectation, written down before; what was measured, and a verdict, after."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AS_EXPECTED = "as expected"
NOT_AS_EXPECTED = "not as expected"
COULD_NOT_TELL = "could not tell"

PLOTTED_POINTS = 2000
"""A series keeps at most so many points for its plot; the trace has all of them."""


@dataclass(frozen=True)
class Line:
    """One thing that is asked of the board.

    Args:
        key: `part.what`.
        expectation: What is expected, in words that a measurement can contradict.
        risk: Number of the risk in docs/validation/README.md that it is about; `None`: of none.
    """

    key: str
    expectation: str
    risk: int | None = None


@dataclass(frozen=True)
class Finding:
    """What came of a line.

    Args:
        figures: The numbers behind `measured`, for whoever reads the JSON.
    """

    verdict: str
    measured: str
    figures: Mapping[str, Any] = field(default_factory=dict)


class Book:
    """Takes the findings of one part, and keeps them on disk as they come: a part that is killed loses nothing."""

    def __init__(self, directory: Path, lines: Sequence[Line]) -> None:
        self.directory = directory
        self._keys = {line.key for line in lines}
        self._findings: dict[str, Finding] = {}
        self._series: list[dict[str, Any]] = []
        self._problems: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._write()

    def judge(self, key: str, holds: bool | None, measured: str, **figures: Any) -> None:
        """Note what was measured for a line, and whether its expectation holds (`None`: nobody can tell)."""
        if key not in self._keys:
            raise KeyError(f"{key} is not among the part's LINES")
        verdict = COULD_NOT_TELL if holds is None else AS_EXPECTED if holds else NOT_AS_EXPECTED
        self._findings[key] = Finding(verdict, measured, figures)
        self._write()

    def problem(self, where: str, error: BaseException) -> None:
        """Note that a step failed; the lines it did not reach will say so."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(place.filename).name}:{place.lineno}"
        self._problems.append(f"{where}: {type(error).__name__}: {_first_lines(error)} ({at})")
        self._write()

    def series(self, title: str, x_label: str, y_label: str, curves: Mapping[str, tuple[Sequence, Sequence]]) -> None:
        """Keep curves for a plot, thinned out."""
        thinned = {name: [_thinned(x), _thinned(y)] for name, (x, y) in curves.items() if len(x)}
        self._series.append({"title": title, "x": x_label, "y": y_label, "curves": thinned})
        self._write()

    def trace(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Keep raw readings as `name.csv`."""
        with (self.directory / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def _write(self) -> None:
        findings = {
            key: {"verdict": found.verdict, "measured": found.measured, "figures": _plain(found.figures)}
            for key, found in self._findings.items()
        }
        content = {"findings": findings, "problems": self._problems, "series": _plain(self._series)}
        aside = self.directory / "part.json.new"
        aside.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        os.replace(aside, self.directory / "part.json")


def percent(part: float, whole: float) -> float:
    """`part` in per cent of `whole`; not a number where there is no whole."""
    return 100.0 * part / whole if whole else math.nan


def spread(values: Sequence[float]) -> float:
    """Coefficient of variation (sample standard deviation over mean) in per cent; not a number below two values."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return percent(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), mean)


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split()).replace(sys.prefix, "PYTHON")  # a path that is cut is not known for one
    return text if len(text) <= 300 else text[:300] + "…"


def _thinned(values: Sequence) -> list:
    step = max(1, math.ceil(len(values) / PLOTTED_POINTS))
    return list(values[::step])


def _plain(value: Any) -> Any:
    """`value` as JSON has it: what is no finite number becomes null, what is neither number nor text becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
