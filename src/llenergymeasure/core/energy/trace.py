"""`trace.parquet`: every power sample of a window at full rate, and what else its joules were computed from.

The file holds the inputs of `gpu_measurement` unchanged: samples as rows of 64-bit numbers, counter reads, window and
the part of it that counts as JSON in the Parquet metadata (whose numbers round-trip exactly). `recompute_energy` runs
the same functions on them, so it gives the same joules to the last bit, with no GPU in sight.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from llenergymeasure.constants import VERSION
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.part import Span, energy_between
from llenergymeasure.core.energy.telemetry import COLUMNS, SOURCES, UNKNOWN, Columns, SampleLog, Telemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, GpuWindow
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import PersistenceError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP: Final = 8192
"""Samples that are in memory at once when a file is read."""

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


def write_trace(energy: EnergyMeasurement, path: Path, counted: Span | None = None) -> Path:
    """Write the raw trace of a window to `path`; the file appears whole or not at all.

    Args:
        counted: The part of the window whose energy the result gives; `None`: all of it.

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
                for block in energy.telemetry.blocks(device):
                    writer.write_batch(_batch(device, block, schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def recompute_energy(path: Path) -> EnergyMeasurement:
    """Compute a result's energy again from the `trace.parquet` of a run on GPUs; equal to it to the last bit.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    energy = gpu_measurement(*read_trace(path))
    counted = _metadata(path).get(COUNTED_KEY)
    return energy if counted is None else energy_between(energy, *json.loads(counted))


def read_trace(path: Path) -> tuple[GpuWindow, Telemetry]:
    """The inputs of `gpu_measurement` from the `trace.parquet` of a run on GPUs.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    try:
        window = TypeAdapter(GpuWindow).validate_json(_metadata(path)[WINDOW_KEY])
    except KeyError as error:
        raise PersistenceError(f"{path} holds power samples but no window on GPUs to compute energy for") from error
    except ValidationError as error:
        raise PersistenceError(f"{path} is not a trace of a measurement: {error}") from error
    return window, _read_samples(path, [board.device for board in window.boards])


def _read_samples(path: Path, devices: list[DeviceId]) -> Telemetry:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    logs = {device: SampleLog() for device in devices}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            for device, log in logs.items():
                log.extend(_columns(batch.filter(pc.equal(batch["device"], device))))
    return Telemetry(logs)


def _columns(batch: pa.RecordBatch) -> Columns:
    sources = {None: UNKNOWN} | {source: index for index, source in enumerate(SOURCES)}
    columns: list[array[Any]] = [array("d", batch[name].fill_null(math.nan).to_pylist()) for name in UNITS]
    columns.append(array("q", batch["throttle_reasons"].fill_null(UNKNOWN).to_pylist()))
    columns.append(array("b", [sources[source] for source in batch["power_source"].to_pylist()]))
    return Columns(*columns)


def _batch(device: DeviceId, block: Columns, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    names = {UNKNOWN: None} | dict(enumerate(SOURCES))
    numbers = [_with_nulls(column) for column in block.arrays()[:-1]]
    sources = pa.array([names[source] for source in block.power_source], pa.string())
    return pa.record_batch([pa.array([device] * len(block), pa.string()), *numbers, sources], schema=schema)


def _with_nulls(column: array[Any]) -> pa.Array:
    """A column as Arrow has it: what the device did not answer is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.float64() if column.typecode == "d" else pa.int64()
    values = pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])
    unknown = pc.is_nan(values) if column.typecode == "d" else pc.equal(values, UNKNOWN)
    return pc.if_else(unknown, pa.scalar(None, kind), values)


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
    for name in COLUMNS:
        unit = UNITS.get(name)
        columns.append(pa.field(name, others.get(name, pa.float64()), metadata={"unit": unit} if unit else None))
    metadata: dict[bytes | str, bytes | str] = {"llenergymeasure_version": VERSION, "units": json.dumps(UNITS)}
    if energy.gpu_window is not None:
        metadata[WINDOW_KEY] = json.dumps(asdict(energy.gpu_window), allow_nan=False)
    if counted is not None:
        metadata[COUNTED_KEY] = json.dumps(counted, allow_nan=False)
    return pa.schema(columns, metadata=metadata)
