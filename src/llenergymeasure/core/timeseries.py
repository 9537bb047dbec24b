"""`timeseries.parquet`: what each device did, once a second, from the window's start.

Power is the mean over each second of the piecewise-linear trace, so that power times time adds up to the trace's
integral; the other readings are means of the second's samples, throttle reasons their union. Where a second holds no
sample, the latest one before it stands. The last row covers the rest of the window.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.constants import VERSION
from llenergymeasure.core.energy.gpu_window import RecordedWindow
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, Telemetry, TelemetrySample
from llenergymeasure.core.gpu.driver import CPU_DEVICE

if TYPE_CHECKING:
    import pyarrow as pa

ROW_S: Final = 1.0
"""Length of a row in seconds."""

ROWS_PER_GROUP: Final = 4096
"""Rows that are in memory at once."""

UNITS: Final = {
    "timestamp_s": "s",
    "gpu_index": "",
    "power_w": "W",
    "temperature_c": "degC",
    "memory_used_mb": "MB",
    "sm_utilisation_pct": "%",
    "sm_clock_mhz": "MHz",
    "throttle_reasons": "bit mask (NVML clocks event reasons)",
}


@dataclass(frozen=True, slots=True)
class TimeseriesRow:
    """One device during one second.

    Args:
        timestamp_s: Start of the second, in seconds from the window's start.
        gpu_index: Position of the device in the file's `devices` metadata; `None` for the processor.
        power_w: Mean power in watts.
        temperature_c: Mean temperature in degrees Celsius.
        memory_used_mb: Mean device memory in use, in MB.
        sm_utilisation_pct: Mean utilisation, 0..100.
        sm_clock_mhz: Mean SM clock in MHz.
        throttle_reasons: Union of NVML's clocks-event reasons.
    """

    timestamp_s: float
    gpu_index: int | None
    power_w: float | None
    temperature_c: float | None
    memory_used_mb: float | None
    sm_utilisation_pct: float | None
    sm_clock_mhz: float | None
    throttle_reasons: int | None


def write_timeseries(energy: EnergyMeasurement, path: Path) -> Path:
    """Write the time series of a window; the file appears whole or not at all.

    Args:
        energy: The window and its power samples. Without samples the file has no rows.
        path: Where to write.

    Returns:
        `path`.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    devices = energy.telemetry.devices if energy.telemetry is not None else ()
    schema = _schema(devices, energy.duration_sec, _sampler_figures(energy.telemetry))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            rows = _all_rows(energy)
            while group := list(islice(rows, ROWS_PER_GROUP)):
                columns = [pa.array([getattr(row, name) for row in group], schema.field(name).type) for name in UNITS]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def merge_timeseries(paths: Sequence[Path], path: Path) -> Path:
    """Put the time series of processes whose windows began together into one file, each device once.

    Args:
        paths: One file per process. A device that several of them sampled is taken from the first.
        path: Where to write.

    Returns:
        `path`.

    Raises:
        OSError: A file cannot be read or written.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    devices: list[str] = []
    parts: list[pa.Table] = []
    samplers: list[dict[str, Any]] = []
    window_s = 0.0
    for source in paths:
        table = pq.read_table(source)
        metadata = table.schema.metadata
        window_s = max(window_s, float(metadata[b"window_s"]))
        samplers += json.loads(metadata[b"samplers"])
        for index, device in enumerate(json.loads(metadata[b"devices"])):
            if device in devices:
                continue
            column = table["gpu_index"]
            own = table.filter(pc.is_null(column) if device == CPU_DEVICE else pc.equal(column, index))
            number = None if device == CPU_DEVICE else len(devices)
            renumbered = pa.array([number] * own.num_rows, pa.int32())
            parts.append(own.set_column(own.schema.get_field_index("gpu_index"), "gpu_index", renumbered))
            devices.append(device)
    schema = _schema(tuple(devices), window_s, samplers)
    merged = pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()
    pq.write_table(merged, path, compression="zstd")
    return path


def timeseries_rows(
    samples: Iterable[TelemetrySample], start_s: float, end_s: float, gpu_index: int | None
) -> Iterator[TimeseriesRow]:
    """The rows of one device, one after the other; at no time is more than one second in memory.

    Args:
        samples: In order of time, those just outside the window included.
        start_s: Start of the window, in seconds.
        end_s: End of the window.
        gpu_index: See `TimeseriesRow`.
    """
    if end_s <= start_s:
        return
    row = _Row(0)
    before: TelemetrySample | None = None
    for sample in samples:
        while sample.time_s >= (row_end_s := min(start_s + (row.number + 1) * ROW_S, end_s)):
            if before is not None:
                row.add_power(before, sample, start_s + row.number * ROW_S, row_end_s)
            yield row.finish(gpu_index, before)
            row = _Row(row.number + 1)
            if row_end_s >= end_s:
                return
        if before is not None:
            row.add_power(before, sample, start_s + row.number * ROW_S, row_end_s)
        if sample.time_s >= start_s:
            row.add(sample)
        before = sample
    while start_s + row.number * ROW_S < end_s:  # the device fell silent before the window's end
        yield row.finish(gpu_index, None)
        row = _Row(row.number + 1)


class _Row:
    """One second being added up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._energy_j = self._covered_s = 0.0
        self._samples: list[TelemetrySample] = []

    def add(self, sample: TelemetrySample) -> None:
        self._samples.append(sample)

    def add_power(self, before: TelemetrySample, after: TelemetrySample, start_s: float, end_s: float) -> None:
        """Count the part of the straight line between two samples that lies in this second."""
        if before.power_w is None or after.power_w is None or after.time_s <= before.time_s:
            return
        from_s, to_s = max(before.time_s, start_s), min(after.time_s, end_s)
        if from_s >= to_s:
            return
        slope = (after.power_w - before.power_w) / (after.time_s - before.time_s)
        self._energy_j += (before.power_w + slope * ((from_s + to_s) / 2 - before.time_s)) * (to_s - from_s)
        self._covered_s += to_s - from_s

    def finish(self, gpu_index: int | None, latest: TelemetrySample | None) -> TimeseriesRow:
        samples = self._samples or ([latest] if latest is not None else [])
        reasons = [sample.throttle_reasons for sample in samples if sample.throttle_reasons is not None]
        union: int | None = None
        for reason in reasons:
            union = (union or 0) | reason
        return TimeseriesRow(
            timestamp_s=self.number * ROW_S,
            gpu_index=gpu_index,
            power_w=self._energy_j / self._covered_s if self._covered_s > 0 else None,
            temperature_c=_mean(sample.temperature_c for sample in samples),
            memory_used_mb=_mean(sample.memory_used_mb for sample in samples),
            sm_utilisation_pct=_mean(sample.sm_utilisation_pct for sample in samples),
            sm_clock_mhz=_mean(sample.sm_clock_mhz for sample in samples),
            throttle_reasons=union,
        )


def _all_rows(energy: EnergyMeasurement) -> Iterator[TimeseriesRow]:
    if energy.telemetry is None:
        return
    for index, device in enumerate(energy.telemetry.devices):
        gpu_index = None if device == CPU_DEVICE else index
        yield from timeseries_rows(energy.telemetry.samples(device), energy.start_s, energy.end_s, gpu_index)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _sampler_figures(telemetry: Telemetry | None) -> list[dict[str, Any]]:
    """What sampling itself cost and missed, where a sampler took the samples."""
    recorded = telemetry.telemetry if isinstance(telemetry, RecordedWindow) else telemetry
    if not isinstance(recorded, SampledTelemetry):
        return []
    report = recorded.report
    return [
        {
            "ticks": report.ticks,
            "missed_deadlines": report.missed_deadlines,
            "cpu_us_per_tick": round(report.us_per_tick, 1),
            "share_of_one_core": round(report.core_share, 6),
            "longest_tick_ms": round(1000 * report.longest_tick_s, 3),
            "problems": list(report.problems),
        }
    ]


def _schema(devices: tuple[str, ...], window_s: float, samplers: list[dict[str, Any]]) -> pa.Schema:
    import pyarrow as pa

    integers = {"gpu_index": pa.int32(), "throttle_reasons": pa.int64()}
    fields = [
        pa.field(name, integers.get(name, pa.float64()), metadata={"unit": unit} if unit else None)
        for name, unit in UNITS.items()
    ]
    metadata: dict[str, Any] = {
        "llenergymeasure_version": VERSION,
        "units": json.dumps({name: unit for name, unit in UNITS.items() if unit}),
        "devices": json.dumps(list(devices)),
        "window_s": repr(window_s),
        "samplers": json.dumps(samplers),
    }
    return pa.schema(fields, metadata=metadata)
