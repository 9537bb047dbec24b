"""What the devices did during a window, as far as a drawing needs it: from the files beside a result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.persistence import TRACE_PATTERN

if TYPE_CHECKING:
    import pyarrow

Span = tuple[float, float]

COLUMNS_DRAWN: Final = 600
"""Columns of a drawing within which only the lowest and the highest reading can be told apart."""

_TRACE_WINDOW: Final = b"llenergymeasure_window"
_READINGS: Final = ("power_w", "temperature_c", "sm_clock_mhz")


@dataclass(frozen=True, slots=True)
class DeviceSeries:
    """Readings of one device; NaN where it did not answer.

    Args:
        times_s: From the window's start.
        readings: By name: `power_w`, `temperature_c`, `sm_clock_mhz`.
    """

    name: str
    times_s: Sequence[float]
    readings: Mapping[str, Sequence[float]]

    def knows(self, reading: str) -> bool:
        """Whether there is a single figure."""
        return any(map(math.isfinite, self.readings[reading]))


@dataclass(frozen=True, slots=True)
class WindowSeries:
    """What was sampled in a window.

    Args:
        raw: Whether these are the samples themselves, not means over a second each.
        stretches: What happened when, in seconds from the window's start; see `core.timeseries`.
    """

    devices: Sequence[DeviceSeries]
    window_s: float
    raw: bool
    stretches: Mapping[str, Sequence[Span]] = field(default_factory=dict)


def window_series(result: ExperimentResult, directory: Path) -> WindowSeries | None:
    """The samples beside a result, the raw ones where they were kept; `None` where there are none that can be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        if result.timeseries is None:
            return None
        table = pyarrow.parquet.read_table(directory / Path(result.timeseries).name)
        found = _of_seconds(table)
        traces = sorted(directory.glob(TRACE_PATTERN))
        if result.trace is None or len(traces) != 1:  # those of several processes are one only in the time series
            return found
        return _of_samples(pyarrow.parquet.read_table(traces[0]), found) or found
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException):  # also a file of somebody else's
        return None


def thinned(
    times_s: Sequence[float], values: Sequence[float], columns: int = COLUMNS_DRAWN
) -> tuple[list[float], list[float]]:
    """A line that looks the same in so many columns: of each, the lowest and the highest value, where they were."""
    if len(times_s) <= 2 * columns:
        return list(times_s), list(values)
    width_s = (times_s[-1] - times_s[0]) / columns or 1.0
    kept: set[int] = {0, len(times_s) - 1}
    column: list[int] = []
    for index, time_s in enumerate(times_s):
        if column and int((time_s - times_s[0]) / width_s) != int((times_s[column[0]] - times_s[0]) / width_s):
            kept |= _extremes(column, values)
            column = []
        column.append(index)
    kept |= _extremes(column, values)
    chosen = sorted(kept)
    return [times_s[index] for index in chosen], [values[index] for index in chosen]


def _extremes(column: Sequence[int], values: Sequence[float]) -> set[int]:
    known = [index for index in column if math.isfinite(values[index])]
    if not known:
        return set(column[:1])
    return {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}


def _of_seconds(table: pyarrow.Table) -> WindowSeries:
    """The time series; a second's mean is drawn in its middle."""
    metadata = table.schema.metadata
    window_s, names = float(metadata[b"window_s"]), json.loads(metadata[b"devices"])
    numbers = table["gpu_index"].to_pylist()
    devices = []
    for number in dict.fromkeys(numbers):
        rows = [index for index, found in enumerate(numbers) if found == number]
        own = table.take(rows)
        starts_s = own["timestamp_s"].to_pylist()
        ends_s = [*starts_s[1:], window_s]
        middles_s = [(start_s + end_s) / 2 for start_s, end_s in zip(starts_s, ends_s, strict=True)]
        name = names[number] if number is not None and number < len(names) else "cpu"
        devices.append(DeviceSeries(name, middles_s, _readings(own)))
    stretches = json.loads(metadata.get(b"stretches", b"{}"))
    return WindowSeries(devices, window_s, False, stretches)


def _of_samples(table: pyarrow.Table, beside: WindowSeries) -> WindowSeries | None:
    """The raw samples, from a little before the window to a little after; `None` where the file names no window."""
    import pyarrow.compute as pc

    told = (table.schema.metadata or {}).get(_TRACE_WINDOW)
    if told is None:
        return None
    start_s = float(json.loads(told)["start_s"])
    devices = []
    for name in table["device"].unique().to_pylist():
        own = table.filter(pc.equal(table["device"], name))
        times_s = [time_s - start_s for time_s in own["time_s"].to_pylist()]
        devices.append(DeviceSeries(name, times_s, _readings(own)))
    return WindowSeries(devices, beside.window_s, True, beside.stretches)


def _readings(table: pyarrow.Table) -> dict[str, list[float]]:
    def numbers(column: Any) -> list[float]:
        return [math.nan if value is None else float(value) for value in column.to_pylist()]

    return {name: numbers(table[name]) for name in _READINGS}
