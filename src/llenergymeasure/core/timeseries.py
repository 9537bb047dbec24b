"""The files beside a result: what each device did, once a second; on request the raw power trace and the texts.

In `timeseries.parquet`, which begins with the window, power is the mean over each second of the piecewise-linear trace,
so that power times time adds up to the trace's integral; the other readings are means of the second's samples, throttle
reasons their union. Where a second holds no sample, the latest one before it stands. The last row covers the rest.
The file's metadata tells when what happened in the window, see `stretches`.
"""

from __future__ import annotations

import json
import logging
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.constants import VERSION
from llenergymeasure.core.assemble import Observations
from llenergymeasure.core.energy.gpu_energy import MAX_GAP_S, write_batches, write_trace
from llenergymeasure.core.energy.spans import Span, merge_spans
from llenergymeasure.core.energy.telemetry import UNKNOWN, Telemetry, answered
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.metrics.latency import phase_spans
from llenergymeasure.core.window import slice_limits

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

TIMESERIES_FILE: Final = "timeseries.parquet"
TRACE_FILE: Final = "trace.parquet"
OUTPUTS_FILE: Final = "outputs.jsonl"

ROW_S: Final = 1.0
"""Length of a row in seconds."""

FINEST_STRETCHES: Final = 1000
"""Parts of a window of which a drawing shows each by itself."""

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
class Artefacts:
    """Paths of what was written; `None` where there was nothing to write.

    Args:
        timeseries: A file without rows where the meter takes no samples.
        trace: Every sample at full rate, from which the energy can be computed again.
        outputs: Prompts, generated texts and token counts, one JSON object per line.
        further: The traces of further processes.
    """

    timeseries: Path | None = None
    trace: Path | None = None
    outputs: Path | None = None
    further: tuple[Path, ...] = ()

    @property
    def beside_timeseries(self) -> tuple[Path, ...]:
        """Every file but the time series."""
        return (*(path for path in (self.trace, self.outputs) if path is not None), *self.further)


def write_artefacts(seen: Observations, work_dir: Path) -> Artefacts:
    """Write the files that belong beside the result into `work_dir`, which must exist.

    One that the disk refuses is left out, and the log says so.

    Raises:
        ExperimentError: Nothing is left of the window to count.
    """
    energy, wanted = seen.window.energy, seen.config.measurement
    timeseries = trace = outputs = None
    if has_samples(energy):
        told = stretches(seen)
        timeseries = write_or_go_without(work_dir / TIMESERIES_FILE, lambda path: write_timeseries(energy, path, told))
    if (wanted.save_trace or energy.elsewhere) and energy.has_trace:
        limits = slice_limits(wanted, seen.window)
        trace = write_or_go_without(work_dir / TRACE_FILE, lambda path: write_trace(energy, path, limits))
    if wanted.save_outputs:
        outputs = write_or_go_without(work_dir / OUTPUTS_FILE, partial(_write_outputs, seen))
    return Artefacts(timeseries, trace, outputs)


def write_or_go_without(path: Path, write: Callable[[Path], object]) -> Path | None:
    """`path` when `write` could fill it, else `None` and a line in the log: figures must outlive a full disk."""
    try:
        write(path)
    except Exception as error:  # noqa: BLE001 (a full disk, memory, what a format cannot hold: never the figures)
        logger.warning("%s could not be written, so the result goes without it: %s", path.name, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return path


def _write_outputs(seen: Observations, path: Path) -> None:
    """What the model was asked and what it answered, request by request."""
    prompts = {prompt.index: prompt for prompt in seen.prompts.prompts}
    with path.open("w", encoding="utf-8") as lines:
        for output in seen.window.outputs:
            prompt = prompts[output.index]
            row = {
                "index": output.index,
                "prompt": seen.tokenizer.decode(prompt.token_ids) if prompt.text is None else prompt.text,
                "truncated": prompt.truncated,
                "output": seen.tokenizer.decode(output.token_ids),
                "input_tokens": output.input_tokens,
                "output_tokens": output.output_tokens,
                "finish_reason": output.finish_reason,
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def has_samples(energy: EnergyMeasurement) -> bool:
    """Whether anything was sampled, so that there is something to write."""
    telemetry = energy.telemetry
    return telemetry is not None and any(telemetry.column(device, "time_s") for device in telemetry.devices)


def stretches(seen: Observations) -> dict[str, list[Span]]:
    """What happened in the window when, in seconds from its start: `prefill`, `decode`, and the part that `counted`.

    Phases whose stretches are too short to be seen in a drawing of the window are put together where they are close.

    Raises:
        ExperimentError: Nothing is left of the window to count.
    """
    energy, outputs = seen.window.energy, seen.window.outputs
    whole = energy.start_s, energy.end_s
    told = {"counted": [slice_limits(seen.config.measurement, seen.window) or whole]}
    if outputs and all(output.token_times_s for output in outputs):
        prefill, decode = phase_spans(outputs, whole, seen.window.steps)
        told |= {"prefill": prefill, "decode": decode}
    finest_s = energy.duration_sec / FINEST_STRETCHES

    def from_start(spans: Sequence[Span]) -> list[Span]:
        near = merge_spans((start_s, end_s + finest_s) for start_s, end_s in spans)
        return [(round(start_s - whole[0], 4), round(end_s - finest_s - whole[0], 4)) for start_s, end_s in near]

    return {name: from_start(spans) for name, spans in told.items()}


def write_timeseries(energy: EnergyMeasurement, path: Path, told: Mapping[str, Sequence[Span]] | None = None) -> Path:
    """Write the time series of a window that `has_samples`; the file appears whole or not at all.

    Args:
        told: See `stretches`; `None`: not known.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow as pa

    devices = energy.telemetry.devices if energy.telemetry is not None else ()
    schema = _schema(devices, energy.duration_sec, _sampler_figures(energy.telemetry), told or {})

    def rows_of(index: int, device: DeviceId) -> pa.RecordBatch:
        columns = timeseries_columns(energy, device)
        columns["gpu_index"] = [None if device == CPU_DEVICE else index] * len(columns["timestamp_s"])
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)

    return write_batches(path, schema, (rows_of(*each) for each in enumerate(devices)))


def merge_timeseries(paths: Sequence[Path], path: Path) -> Path:
    """Put the time series of processes whose windows began together into one file.

    A device that several of them sampled is taken from the first.

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
    schema = _schema(tuple(devices), window_s, samplers, {})  # each process has phases of its own
    pq.write_table(pa.concat_tables([part.cast(schema) for part in parts]), path, compression="zstd")
    return path


def timeseries_columns(energy: EnergyMeasurement, device: DeviceId) -> dict[str, Sequence[Any]]:
    """The columns of one device, by the names of `UNITS`; `gpu_index`, its place in the file, is left to the caller."""
    if energy.telemetry is None:
        return {}
    telemetry, times_s = energy.telemetry, energy.telemetry.column(device, "time_s")
    edges_s = _edges(energy.start_s, energy.end_s)
    bounds = [bisect_left(times_s, edge_s) for edge_s in edges_s]
    held = [_held(first, stop, len(times_s)) for first, stop in pairwise(bounds)]

    def each_row(name: str, combine: Callable[[Sequence[Any]], float | None]) -> list[float | None]:
        column = telemetry.column(device, name)
        return [combine(column[samples]) for samples in held]

    return {
        "timestamp_s": [row * ROW_S for row in range(len(held))],
        "power_w": _mean_power(times_s, _bridged(times_s, telemetry.column(device, "power_w")), edges_s, bounds),
        "temperature_c": each_row("temperature_c", _mean),
        "memory_used_mb": each_row("memory_used_mb", _mean),
        "sm_utilisation_pct": each_row("sm_utilisation_pct", _mean),
        "sm_clock_mhz": each_row("sm_clock_mhz", _mean),
        "throttle_reasons": each_row("throttle_reasons", _union),
    }


def _edges(start_s: float, end_s: float) -> list[float]:
    """Where rows begin, and the end of the last one."""
    edges_s = [start_s]
    while edges_s[-1] < end_s:
        edges_s.append(min(start_s + len(edges_s) * ROW_S, end_s))
    return edges_s


def _held(first: int, stop: int, count: int) -> slice:
    """The samples that a row shows: its own, else the one before, unless the device has fallen silent."""
    if first == stop and 0 < first < count:
        return slice(first - 1, first)
    return slice(first, stop)


def _bridged(times_s: array[float], power_w: array[float]) -> array[float]:
    """The power with a straight line where a sample or a few gave none, as the integral has it."""
    bridged, last = power_w[:], None
    for i, watts in enumerate(power_w):
        if math.isnan(watts):
            continue
        if last is not None and last < i - 1 and times_s[i] - times_s[last] <= MAX_GAP_S:
            slope = (watts - power_w[last]) / (times_s[i] - times_s[last])
            for k in range(last + 1, i):
                bridged[k] = power_w[last] + slope * (times_s[k] - times_s[last])
        last = i
    return bridged


def _mean_power(
    times_s: array[float], power_w: array[float], edges_s: Sequence[float], bounds: Sequence[int]
) -> list[float | None]:
    """Mean power of each row, of as much of it as lies on a straight line between two samples."""
    means: list[float | None] = []
    for row in range(len(edges_s) - 1):
        energy_j = covered_s = 0.0
        for i in range(max(bounds[row] - 1, 0), min(bounds[row + 1], len(times_s) - 1)):
            (t0, p0), (t1, p1) = (times_s[i], power_w[i]), (times_s[i + 1], power_w[i + 1])
            from_s, to_s = max(t0, edges_s[row]), min(t1, edges_s[row + 1])
            if math.isnan(p0) or math.isnan(p1) or from_s >= to_s:
                continue
            slope = (p1 - p0) / (t1 - t0)
            energy_j += (p0 + slope * ((from_s + to_s) / 2 - t0)) * (to_s - from_s)
            covered_s += to_s - from_s
        means.append(energy_j / covered_s if covered_s > 0 else None)
    return means


def _mean(values: Iterable[float]) -> float | None:
    known = answered(values)
    return math.fsum(known) / len(known) if known else None


def _union(reasons: Iterable[int]) -> int | None:
    known = [bits for bits in reasons if bits != UNKNOWN]
    return reduce(or_, known) if known else None


def _sampler_figures(telemetry: Telemetry | None) -> list[dict[str, Any]]:
    """What sampling itself cost and missed, where a sampler took the samples."""
    if telemetry is None or telemetry.report is None:
        return []
    report = telemetry.report
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


def _schema(
    devices: tuple[str, ...], window_s: float, samplers: list[dict[str, Any]], told: Mapping[str, Sequence[Span]]
) -> pa.Schema:
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
        "stretches": json.dumps(told),
    }
    return pa.schema(fields, metadata=metadata)
