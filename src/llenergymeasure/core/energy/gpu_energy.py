"""From what was read of GPUs around and during a window to joules, and `trace.parquet`, from which they come again.

Per board there are up to two answers: the hardware counter (sharpened at the window's edges by fusion) and the integral
of the power samples; audit.py chooses.

The file holds the inputs of `gpu_measurement` unchanged: samples as rows of 64-bit numbers; counter reads, window and
the part of it that counts as JSON in the Parquet metadata (whose numbers round-trip exactly). `recompute_energy` runs
the same functions on them, so it gives the same joules to the last bit, with no GPU in sight. Of a run on the CPU it
holds what the host's counters moved by instead (host_energy.py).
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from llenergymeasure.constants import VERSION
from llenergymeasure.core.energy.audit import (
    Answer,
    BoardEnergy,
    add_up,
    audit_boards,
    audit_notes,
    choose_method,
    verdict,
)
from llenergymeasure.core.energy.fusion import CounterError, fuse_energy, plain_counter_energy
from llenergymeasure.core.energy.host_energy import host_measurement
from llenergymeasure.core.energy.integrate import TraceTooShortError, energy_between, integrate_power
from llenergymeasure.core.energy.spans import Span
from llenergymeasure.core.energy.telemetry import COLUMNS, SOURCES, UNKNOWN, Columns, SampleLog, Telemetry
from llenergymeasure.core.energy.types import BoardRecord, EnergyMeasurement, GpuWindow, HostWindow
from llenergymeasure.core.energy.uncertainty import (
    clock_components,
    counter_component,
    integral_components,
    unseen_components,
)
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.domain.base import EnergyScope
from llenergymeasure.domain.energy import BudgetComponent, sum_budgets
from llenergymeasure.exceptions import PersistenceError

if TYPE_CHECKING:
    import pyarrow as pa

ABSURD_COUNTER_FACTOR: Final = 3.0
"""A counter that implies a mean power above this many power limits has jumped."""

MAX_GAP_S: Final = 2.0
"""Longest stretch without a power sample over which the trace may be taken as straight, in seconds."""

MAX_GAP_INTERVALS: Final = 10.0
"""The same in sampling intervals, for slow sampling."""

FUSION_REACH_S: Final = 60.0
"""How far from the window's edges samples take part in fusion; its estimates rest on the last second or so."""

ROWS_PER_GROUP: Final = 8192
"""Samples that are in memory at once when a file is read."""

WINDOW_KEY: Final = b"llenergymeasure_window"
HOST_KEY: Final = b"llenergymeasure_host_window"
COUNTED_KEY: Final = b"llenergymeasure_counted_part"

_W = TypeVar("_W")

UNITS: Final = {
    "time_s": "s",
    "power_w": "W",
    "temperature_c": "degC",
    "sm_clock_mhz": "MHz",
    "memory_clock_mhz": "MHz",
    "sm_utilisation_pct": "%",
    "memory_used_mb": "MB",
}


def gpu_measurement(window: GpuWindow, telemetry: Telemetry) -> EnergyMeasurement:
    """The energy of a window on GPUs; a pure function of what was read at its edges and sampled in between."""
    answers = [_board_energy(record, telemetry, window) for record in window.boards]
    audits = audit_boards(answers)
    method = choose_method(answers, audits)
    budgets = {a.device: budget for a in answers if (budget := a.budget(method, window.gain_uncertainty_pct))}
    return EnergyMeasurement(
        start_s=window.start_s,
        end_s=window.end_s,
        total_j=None if method is None else add_up(a.by(method) for a in answers),
        method=method,
        scope=None if method is None else _scope(window.boards),
        per_gpu_j={a.device: a.by(method) for a in answers},
        counter_j=add_up(a.counter_j for a in answers),
        integral_j=add_up(a.integral.energy_j for a in answers),
        fused_j=add_up(a.fused_j for a in answers),
        audit=verdict(audits),
        components=() if method is None else sum_budgets(budgets.values()),
        per_gpu_components=budgets,
        telemetry=telemetry,
        gpu_window=window,
        notes=tuple(audit_notes(answers, method, audits)),
        meter=window.meter,
    )


def _board_energy(record: BoardRecord, telemetry: Telemetry, window: GpuWindow) -> BoardEnergy:
    times, power = telemetry.power(record.device)
    plain_j = fused_j = None
    counter = Answer(reason=record.counter_problem or "")
    if record.has_counter and record.counter_problem is None:
        first_s, last_s = window.start_s + FUSION_REACH_S, window.end_s - FUSION_REACH_S
        near = ((t, w) for t, w in zip(times, power, strict=True) if t <= first_s or t >= last_s)
        try:
            believable_j = _believable_counter(record, window)
            fused = fuse_energy(record.before, record.after, near, window.start_s, window.end_s, record.sensor)
        except CounterError as error:
            counter = Answer(reason=str(error))
        else:
            plain_j, fused_j = believable_j, None if fused.fallback_reason else fused.energy_j
            counter = Answer(fused.energy_j, (counter_component(fused),))
    unseen: tuple[BudgetComponent, ...] = ()
    if record.sensor.counter_follows_sensor is not False:
        unseen = unseen_components(times, power, window.start_s, window.end_s, record)
    integral, clock = _integral(times, power, record, window), clock_components(power, record)
    return BoardEnergy(record.device, plain_j, fused_j, counter, unseen, integral, clock)


def _believable_counter(record: BoardRecord, window: GpuWindow) -> float:
    counter_j = plain_counter_energy(record.before, record.after)
    spanned_s = record.after[0].answered_s - record.before[-1].asked_s + 0.2  # a counter may be two updates behind
    if record.power_limit_w and counter_j > ABSURD_COUNTER_FACTOR * record.power_limit_w * spanned_s:
        raise CounterError(
            f"the energy counter moved by {counter_j:.0f} J in {window.end_s - window.start_s:.2f} s, which is more "
            f"than a board with a limit of {record.power_limit_w:.0f} W can draw: it jumped"
        )
    return counter_j


def _integral(times: Sequence[float], power: Sequence[float], record: BoardRecord, window: GpuWindow) -> Answer:
    start_s, end_s = window.start_s, window.end_s
    gap_s = max((b - a for a, b in pairwise(times) if b > start_s and a < end_s), default=0.0)
    if gap_s > max(MAX_GAP_S, MAX_GAP_INTERVALS * window.sampling_interval_s):
        return Answer(reason=f"for {gap_s:.1f} s of the window there is no power sample")
    try:
        energy_j = integrate_power(times, power, start_s, end_s)
    except TraceTooShortError as error:
        return Answer(reason=str(error))
    return Answer(energy_j, integral_components(times, power, start_s, end_s, record.sampling))


def _scope(boards: Sequence[BoardRecord]) -> EnergyScope:
    if any(record.device != record.board for record in boards):
        return "gpu_board"
    return "gpu_module" if any(record.includes_module for record in boards) else "gpu"


def write_trace(energy: EnergyMeasurement, path: Path, counted: Span | None = None) -> Path:
    """Write the raw trace of a window to `path`; the file appears whole or not at all.

    Args:
        counted: The part of the window whose energy the result gives; `None`: all of it.

    Raises:
        OSError: It cannot be written.
        ValueError: The window has no samples to write.
    """
    if (telemetry := energy.telemetry) is None:
        raise ValueError("this window was measured without power samples; there is no trace to write")
    schema = _schema(energy, counted)
    blocks = ((device, block) for device in telemetry.devices for block in telemetry.blocks(device))
    return write_batches(path, schema, (_batch(device, block, schema) for device, block in blocks))


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Path:
    """Write a Parquet file, of which one batch at a time is in memory; it appears whole or not at all."""
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def recompute_energy(path: Path) -> EnergyMeasurement:
    """Compute a result's energy again from the `trace.parquet` of a run; equal to it to the last bit.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    metadata = _metadata(path)
    if (told := metadata.get(HOST_KEY)) is not None:
        energy = host_measurement(_parsed(HostWindow, told, path), _samples(path, [CPU_DEVICE]))
    else:
        energy = gpu_measurement(*read_trace(path))
    counted = metadata.get(COUNTED_KEY)
    return energy if counted is None else energy_between(energy, *json.loads(counted))


def read_trace(path: Path) -> tuple[GpuWindow, Telemetry]:
    """The inputs of `gpu_measurement` from the `trace.parquet` of a run on GPUs.

    Raises:
        PersistenceError: The file is not such a trace.
    """
    told = _metadata(path).get(WINDOW_KEY)
    if told is None:
        raise PersistenceError(f"{path} holds power samples but no window on GPUs to compute energy for")
    window = _parsed(GpuWindow, told, path)
    return window, _samples(path, [board.device for board in window.boards])


def _parsed(kind: type[_W], told: bytes, path: Path) -> _W:
    try:
        return TypeAdapter(kind).validate_json(told)
    except ValidationError as error:
        raise PersistenceError(f"{path} is not a trace of a measurement: {error}") from error


def _samples(path: Path, devices: Sequence[DeviceId]) -> Telemetry:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    logs = {device: SampleLog() for device in devices}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            for device, log in logs.items():
                log.extend(_columns(batch.filter(pc.equal(batch["device"], device))))
    return Telemetry(logs)


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
    if energy.host_window is not None:
        metadata[HOST_KEY] = json.dumps(asdict(energy.host_window), allow_nan=False)
    if counted is not None:
        metadata[COUNTED_KEY] = json.dumps(counted, allow_nan=False)
    return pa.schema(columns, metadata=metadata)


def _batch(device: DeviceId, block: Columns, schema: pa.Schema) -> pa.RecordBatch:
    """A block of samples as Arrow has it: what the device did not answer is null."""
    import pyarrow as pa

    *numbers, reasons, sources = block
    columns = [
        [device] * len(sources),
        *([None if math.isnan(value) else value for value in column] for column in numbers),
        [None if bits == UNKNOWN else bits for bits in reasons],
        [None if source == UNKNOWN else SOURCES[source] for source in sources],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _columns(batch: pa.RecordBatch) -> Columns:
    """The same the other way round."""
    places = {None: UNKNOWN} | {source: place for place, source in enumerate(SOURCES)}
    columns: list[array[Any]] = [array("d", batch[name].fill_null(math.nan).to_pylist()) for name in UNITS]
    columns.append(array("q", batch["throttle_reasons"].fill_null(UNKNOWN).to_pylist()))
    columns.append(array("b", [places[source] for source in batch["power_source"].to_pylist()]))
    return tuple(columns)
