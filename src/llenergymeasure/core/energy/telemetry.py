"""What the power sampler saw, field by field in arrays of numbers, which move to a temporary file when they add up.

    sampler ── append ──▶  time_s   | 0.00 | 0.10 | 0.20 | …          in memory: up to CHUNK_BYTES per device
                           power_w  | 61.2 | 61.0 |  nan | …   ──▶    on disk: blocks, each field after the other
                           …

A `SampleLog` holds one device, a `Telemetry` all devices of a window. Up to `CHUNK_BYTES` (half an hour at fifty
samples a second) nothing touches the disk. When the disk is full, memory takes over up to `MEMORY_LIMIT_BYTES`; what
then cannot be kept is counted, never forgotten.
"""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from llenergymeasure.core.gpu.driver import DeviceId

CHUNK_BYTES: Final = 6 << 20
"""Bytes per device that stay in memory before they are written to the spill file."""

MEMORY_LIMIT_BYTES: Final = 1 << 26
"""Bytes per device that memory holds at most when the spill file cannot be written (28 hours at 10 Hz, 5 at 50 Hz)."""

PowerSource = Literal["power_instant", "power_instant_module", "power_usage", "rapl", "driver_buffer"]
"""Where a power value came from: NVML field 186 with GPU or module scope (module: a superchip, CPU included),
`nvmlDeviceGetPowerUsage` (a one-second average on most boards since Ampere), the CPU's own counters, or the samples
that the driver takes by itself (`nvmlDeviceGetSamples`)."""

SOURCES: Final[tuple[PowerSource, ...]] = get_args(PowerSource)

UNKNOWN: Final = -1
"""In the columns of whole numbers: the device did not answer. Those of floating-point numbers hold NaN."""


@dataclass(frozen=True, slots=True)
class TelemetrySample:
    """One reading of one device by the power sampler; `None` where the device did not answer.

    Args:
        time_s: When the power value was valid, on the measurement clock, in seconds.
        sm_utilisation_pct: Share of the last sample period in which a kernel ran, 0..100.
        throttle_reasons: NVML's clocks-event-reasons bit mask.
        power_source: What `power_w` was read from.
    """

    time_s: float
    power_w: float | None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    sm_utilisation_pct: float | None = None
    memory_used_mb: float | None = None
    throttle_reasons: int | None = None
    power_source: PowerSource | None = None


Columns: TypeAlias = "tuple[array[Any], ...]"
"""Samples field by field, in the order of `COLUMNS`: NaN or `UNKNOWN` for `None`, sources as places in `SOURCES`."""

COLUMNS: Final = tuple(column.name for column in fields(TelemetrySample))
_TYPECODES: Final = tuple({"throttle_reasons": "q", "power_source": "b"}.get(name, "d") for name in COLUMNS)


def _empty() -> Columns:
    return tuple(array(typecode) for typecode in _TYPECODES)


SAMPLE_BYTES: Final = sum(column.itemsize for column in _empty())


class SampleLog:
    """The samples of one device, in order of time.

    Args:
        spill_dir: Directory of the spill file; `None`: the system's temporary directory.
    """

    def __init__(
        self,
        spill_dir: Path | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        self._spill_dir = spill_dir
        self._chunk_bytes = max(chunk_bytes, SAMPLE_BYTES)
        self._memory_limit_bytes = memory_limit_bytes
        self._memory = _empty()
        self._spill: FileIO | None = None
        self._spilled: list[int] = []  # samples in each block of the spill file
        self._next_spill_at = self._chunk_bytes
        self.lost = 0
        """Samples that neither disk nor memory could take."""
        self.spill_error: str | None = None
        """Why the spill file could not be written, last time it was tried; `None` when it could."""

    def __len__(self) -> int:
        return sum(self._spilled) + len(self._memory[-1])  # the column that `append` adds to last

    @property
    def memory_bytes(self) -> int:
        """Bytes of samples that are in memory."""
        return len(self._memory[-1]) * SAMPLE_BYTES

    def append(self, sample: TelemetrySample) -> None:
        """Keep a sample; samples come in order of time."""
        if self.memory_bytes + SAMPLE_BYTES > self._memory_limit_bytes:
            self.lost += 1
            return
        for column, value in zip(self._memory, _encoded(sample), strict=True):
            column.append(value)
        if self.memory_bytes >= self._next_spill_at:
            self._move_to_disk()

    def extend(self, columns: Columns) -> None:
        """Keep many samples at once, e.g. those of a file; at most `CHUNK_BYTES` of them."""
        for own, more in zip(self._memory, columns, strict=True):
            own.extend(more)
        if self.memory_bytes >= self._next_spill_at:
            self._move_to_disk()

    def column(self, name: str) -> array[Any]:
        """One field of all samples."""
        index = COLUMNS.index(name)
        whole: array[Any] = array(_TYPECODES[index])
        for block in self.blocks():
            whole.extend(block[index])
        return whole

    def blocks(self) -> Iterator[Columns]:
        """All samples, as many at once as were written at once."""
        begins_at = 0
        for count in self._spilled:
            yield self._read(begins_at, count)
            begins_at += count * SAMPLE_BYTES
        # A copy: a sampler that hangs in the driver may wake up and append.
        count = len(self._memory[-1])
        if count:
            yield tuple(column[:count] for column in self._memory)

    def close(self) -> None:
        """Forget the samples and remove the spill file."""
        self._memory = _empty()
        self._spilled.clear()
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _read(self, begins_at: int, count: int) -> Columns:
        columns = _empty()
        for column in columns:
            size = count * column.itemsize
            data = b"" if self._spill is None else os.pread(self._spill.fileno(), size, begins_at)
            if len(data) != size:
                raise OSError("the spill file of the power samples is shorter than what was written to it")
            column.frombytes(data)
            begins_at += size
        return columns

    def _move_to_disk(self) -> None:
        try:
            if self._spill is None:
                # Without a name: the system removes it when it is closed, however the process ends.
                self._spill = tempfile.TemporaryFile(buffering=0, dir=self._spill_dir)  # noqa: SIM115 - see close
            self._spill.seek(sum(self._spilled) * SAMPLE_BYTES)
            for column in self._memory:
                _write_all(self._spill, column)
        except OSError as error:
            # Whatever part was written lies beyond the last whole block and is overwritten by the next try.
            self.spill_error = str(error)
            self._next_spill_at = self.memory_bytes + self._chunk_bytes
        else:
            self._spilled.append(len(self._memory[-1]))
            self._memory = _empty()
            self.spill_error = None
            self._next_spill_at = self._chunk_bytes


@dataclass(slots=True)
class SamplerReport:
    """How the sampler itself did, so far; missed are rounds that were due while the one before was still running."""

    ticks: int = 0
    missed_deadlines: int = 0
    cpu_s: float = 0.0
    duration_s: float = 0.0
    longest_tick_s: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def core_share(self) -> float:
        """Share of one processor core that sampling took, 0..1."""
        return self.cpu_s / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def us_per_tick(self) -> float:
        """Mean processor time of a round, in microseconds."""
        return 1e6 * self.cpu_s / self.ticks if self.ticks else 0.0


class Telemetry:
    """The samples of one window, those just outside it included; read them before `close`.

    Args:
        report: How the sampler did; `None` where none took these samples: they were read from a file.
    """

    def __init__(self, logs: Mapping[DeviceId, SampleLog], report: SamplerReport | None = None) -> None:
        self._logs = logs
        self.report = report

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Devices with at least one sample."""
        return tuple(device for device, log in self._logs.items() if len(log))

    def column(self, device: DeviceId, name: str) -> array[Any]:
        """One field of a device's samples in order of time, see `Columns`."""
        return self._logs[device].column(name)

    def blocks(self, device: DeviceId) -> Iterator[Columns]:
        """All samples of a device in order of time, some at once."""
        return self._logs[device].blocks()

    def power(self, device: DeviceId) -> tuple[array[float], array[float]]:
        """Times in seconds and power in watts of a device's samples, without those that gave no power."""
        times_s, power_w = array("d"), array("d")
        if device in self._logs:
            for time_s, watts in zip(self.column(device, "time_s"), self.column(device, "power_w"), strict=True):
                if not math.isnan(watts):
                    times_s.append(time_s)
                    power_w.append(watts)
        return times_s, power_w

    def power_sources(self, device: DeviceId) -> set[PowerSource]:
        """All sources that a device's power values came from."""
        if device not in self._logs:
            return set()
        return {SOURCES[source] for source in set(self.column(device, "power_source")) if source != UNKNOWN}

    def close(self) -> None:
        """Release the samples and their temporary files."""
        for log in self._logs.values():
            log.close()


def answered(column: Iterable[float]) -> list[float]:
    """The values of a column without those that the device did not give."""
    return [value for value in column if not math.isnan(value)]


def log_problems(logs: Mapping[DeviceId, SampleLog]) -> Iterator[str]:
    """What the logs could not do, in words."""
    for device, log in logs.items():
        if log.lost:
            yield f"{log.lost} samples of {device} are lost: the disk is full ({log.spill_error}), then memory"
        elif log.spill_error:
            yield f"samples of {device} stay in memory, the spill file cannot be written: {log.spill_error}"


def _write_all(file: FileIO, column: array[Any]) -> None:
    with memoryview(column) as values, values.cast("B") as data:
        written = 0
        while written < len(data):
            count = file.write(data[written:])
            if not count:
                raise OSError("nothing more could be written")
            written += count


def _encoded(sample: TelemetrySample) -> Iterator[float]:
    """The values of a sample as `Columns` hold them."""
    numbers = (
        sample.time_s,
        sample.power_w,
        sample.temperature_c,
        sample.sm_clock_mhz,
        sample.memory_clock_mhz,
        sample.sm_utilisation_pct,
        sample.memory_used_mb,
    )
    yield from (math.nan if number is None else number for number in numbers)
    yield UNKNOWN if sample.throttle_reasons is None else sample.throttle_reasons
    yield UNKNOWN if sample.power_source is None else SOURCES.index(sample.power_source)
