"""`trace.parquet`: every power sample of a window at full rate, and what else its joules were computed from.

The file holds the inputs of `gpu_measurement` unchanged: samples as rows of 64-bit numbers, counter reads, window and
the part of it that counts as JSON in the Parquet metadata (whose numbers round-trip exactly). `recompute_energy` runs
the same functions on them, so it gives the same joules to the last bit, with no GPU in sight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.constants import VERSION
from llenergymeasure.core.energy.counter import CounterRead
from llenergymeasure.core.energy.fusion import SensorDescription
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.gpu_window import BoardRecord, GpuWindow, RecordedWindow
from llenergymeasure.core.energy.part import Span, energy_between
from llenergymeasure.core.energy.types import EnergyMeasurement, TelemetrySample
from llenergymeasure.core.energy.uncertainty import PowerSampling
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import PersistenceError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP: Final = 8192
"""Samples that are in memory at once."""

WINDOW_KEY: Final = b"llenergymeasure_window"
COUNTED_KEY: Final = b"llenergymeasure_counted_part"

UNITS: Final = {
    "time_s": "s",
    "power_w": "W",
    "temperature_c": "degC",
    "sm_clock_mhz": "MHz",
    "memory_clock_mhz": "MHz",
    "sm_utilisation_pct": "%",
    "memory_used_mb": "MB",
}
_COLUMNS: Final = tuple(field.name for field in fields(TelemetrySample))


def write_trace(energy: EnergyMeasurement, path: Path, counted: Span | None = None) -> Path:
    """Write the raw trace of a window; the file appears whole or not at all.

    Args:
        energy: The window, with its samples.
        path: Where to write.
        counted: The part of it whose energy the result gives; `None`: all of it.

    Returns:
        `path`.

    Raises:
        OSError: It cannot be written.
        ValueError: The window has no samples to write.
    """
    import pyarrow.parquet as pq

    if energy.telemetry is None:
        raise ValueError("this window was measured without power samples; there is no trace to write")
    schema = _schema(energy, counted)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for device in energy.telemetry.devices:
                samples = energy.telemetry.samples(device)
                while group := list(islice(samples, ROWS_PER_GROUP)):
                    writer.write_batch(_batch(device, group, schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def recompute_energy(path: Path) -> EnergyMeasurement:
    """Compute a result's energy again from its trace; equal to the stored figures to the last bit.

    Args:
        path: A `trace.parquet` of a run on GPUs.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    energy = gpu_measurement(read_trace(path))
    counted = _metadata(path).get(COUNTED_KEY)
    return energy if counted is None else energy_between(energy, *json.loads(counted))


def read_trace(path: Path) -> RecordedWindow:
    """A trace, its samples still on disk.

    Args:
        path: A `trace.parquet` of a run on GPUs.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    try:
        window = _window_from_json(_metadata(path)[WINDOW_KEY])
    except KeyError as error:
        raise PersistenceError(f"{path} holds power samples but no window on GPUs to compute energy for") from error
    except (ValueError, TypeError) as error:
        raise PersistenceError(f"{path} is not a trace of a measurement: {error}") from error
    return RecordedWindow(window, _StoredSamples(path, tuple(board.device for board in window.boards)))


class _StoredSamples:
    """The samples of a trace file, read group by group (a `Telemetry`)."""

    def __init__(self, path: Path, devices: tuple[DeviceId, ...]) -> None:
        self._path = path
        self._counts = {device: sum(1 for _ in self.samples(device)) for device in devices}

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Devices with at least one sample."""
        return tuple(device for device, count in self._counts.items() if count)

    def samples(self, device: DeviceId) -> Iterator[TelemetrySample]:
        """All samples of one device in order of time."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(ROWS_PER_GROUP):
                for row in batch.to_pylist():
                    if row.pop("device") == device:
                        yield TelemetrySample(**row)

    def close(self) -> None:
        """Nothing is held open."""


def _batch(device: DeviceId, samples: list[TelemetrySample], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = {"device": [device] * len(samples)}
    columns |= {name: [getattr(sample, name) for sample in samples] for name in _COLUMNS}
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise PersistenceError(f"{path} is not a trace of a measurement: {error}") from error


def _schema(energy: EnergyMeasurement, counted: Span | None) -> pa.Schema:
    import pyarrow as pa

    others = {"throttle_reasons": pa.int64(), "power_source": pa.string()}
    columns = [pa.field("device", pa.string())]
    for name in _COLUMNS:
        unit = UNITS.get(name)
        columns.append(pa.field(name, others.get(name, pa.float64()), metadata={"unit": unit} if unit else None))
    metadata: dict[bytes | str, bytes | str] = {"llenergymeasure_version": VERSION, "units": json.dumps(UNITS)}
    if isinstance(energy.telemetry, RecordedWindow):
        metadata[WINDOW_KEY] = json.dumps(asdict(energy.telemetry.window), allow_nan=False)
    if counted is not None:
        metadata[COUNTED_KEY] = json.dumps(counted, allow_nan=False)
    return pa.schema(columns, metadata=metadata)


def _window_from_json(text: bytes) -> GpuWindow:
    values = json.loads(text)
    boards = tuple(_board_from_json(board) for board in values.pop("boards"))
    return GpuWindow(boards=boards, **values)


def _board_from_json(values: dict[str, Any]) -> BoardRecord:
    return BoardRecord(
        before=tuple(CounterRead(**read) for read in values.pop("before")),
        after=tuple(CounterRead(**read) for read in values.pop("after")),
        sensor=SensorDescription(**values.pop("sensor")),
        sampling=PowerSampling(**values.pop("sampling")),
        **values,
    )
