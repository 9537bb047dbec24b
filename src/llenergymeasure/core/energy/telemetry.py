"""What the power sampler saw, kept in little memory: packed records that move to a temporary file when they add up.

One `SampleLog` per device. Up to `CHUNK_BYTES` (half an hour at ten samples a second) nothing touches the disk. When
the disk is full, memory takes over up to `MEMORY_LIMIT_BYTES`; what then cannot be kept is counted, never forgotten.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, get_args

from llenergymeasure.core.energy.types import PowerSource, TelemetrySample
from llenergymeasure.core.gpu.driver import DeviceId

CHUNK_BYTES: Final = 1 << 20
"""Bytes per device that stay in memory before they are written to the spill file."""

MEMORY_LIMIT_BYTES: Final = 1 << 26
"""Bytes per device that memory holds at most when the spill file cannot be written (28 hours at 10 Hz)."""

_RECORD: Final = struct.Struct("<7dqb")
_SOURCES: Final[tuple[PowerSource, ...]] = get_args(PowerSource)
_NONE: Final = -1  # in the integer columns; the floating-point ones hold NaN


@dataclass(frozen=True, slots=True)
class SamplerReport:
    """How the sampler itself did.

    Args:
        ticks: Rounds of readings taken.
        missed_deadlines: Rounds that were due and not taken, because the one before took too long.
        cpu_s: Processor time that the sampler's thread used, in seconds.
        duration_s: Seconds it ran.
        longest_tick_s: Longest round, in seconds.
        problems: What went wrong, in words; empty when nothing did.
    """

    ticks: int
    missed_deadlines: int
    cpu_s: float
    duration_s: float
    longest_tick_s: float
    problems: tuple[str, ...] = ()

    @property
    def core_share(self) -> float:
        """Share of one processor core that sampling took, 0..1."""
        return self.cpu_s / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def us_per_tick(self) -> float:
        """Mean processor time of a round, in microseconds."""
        return 1e6 * self.cpu_s / self.ticks if self.ticks else 0.0


class SampleLog:
    """The samples of one device, in order of time.

    Args:
        spill_dir: Directory of the spill file; `None`: the system's temporary directory.
        chunk_bytes: See `CHUNK_BYTES`.
        memory_limit_bytes: See `MEMORY_LIMIT_BYTES`.
    """

    def __init__(
        self,
        spill_dir: Path | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        self._spill_dir = spill_dir
        self._chunk_bytes = max(chunk_bytes, _RECORD.size)
        self._memory_limit_bytes = memory_limit_bytes
        self._memory = bytearray()
        self._spill: FileIO | None = None
        self._spilled_bytes = 0
        self._next_spill_at = self._chunk_bytes
        self.lost = 0
        """Samples that neither disk nor memory could take."""
        self.spill_error: str | None = None
        """Why the spill file could not be written, last time it was tried; `None` when it could."""

    def __len__(self) -> int:
        return (self._spilled_bytes + len(self._memory)) // _RECORD.size

    def append(self, sample: TelemetrySample) -> None:
        """Keep a sample; samples come in order of time."""
        if len(self._memory) + _RECORD.size > self._memory_limit_bytes:
            self.lost += 1
            return
        self._memory += _pack(sample)
        if len(self._memory) >= self._next_spill_at:
            self._move_to_disk()

    def __iter__(self) -> Iterator[TelemetrySample]:
        """All samples; not while another thread appends."""
        if self._spill is not None:
            self._spill.seek(0)
            left = self._spilled_bytes
            while left > 0:
                block = self._spill.read(min(left, _RECORD.size * 4096))
                if not block or len(block) % _RECORD.size:
                    raise OSError("the spill file of the power samples is shorter than what was written to it")
                left -= len(block)
                yield from map(_unpack, _RECORD.iter_unpack(block))
        yield from map(_unpack, _RECORD.iter_unpack(bytes(self._memory)))

    def close(self) -> None:
        """Forget the samples and remove the spill file."""
        self._memory.clear()
        self._spilled_bytes = 0
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _move_to_disk(self) -> None:
        try:
            if self._spill is None:
                self._spill = _unnamed_file(self._spill_dir)
            self._spill.seek(self._spilled_bytes)
            _write_all(self._spill, self._memory)
        except OSError as error:
            # Whatever part was written lies beyond `_spilled_bytes` and is overwritten by the next try.
            self.spill_error = str(error)
            self._next_spill_at = len(self._memory) + self._chunk_bytes
        else:
            self._spilled_bytes += len(self._memory)
            self._memory.clear()
            self.spill_error = None
            self._next_spill_at = self._chunk_bytes


class SampledTelemetry:
    """The sampler's record of one window (a `Telemetry`).

    Args:
        logs: One log per device.
        report: How the sampler did.
    """

    def __init__(self, logs: Mapping[DeviceId, SampleLog], report: SamplerReport) -> None:
        self._logs = logs
        self.report = report

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Devices with at least one sample."""
        return tuple(device for device, log in self._logs.items() if len(log))

    def samples(self, device: DeviceId) -> Iterator[TelemetrySample]:
        """All samples of one device in order of time, those just outside the window included."""
        return iter(self._logs[device])

    def close(self) -> None:
        """Release the record and its temporary files."""
        for log in self._logs.values():
            log.close()


def log_problems(logs: Mapping[DeviceId, SampleLog]) -> Sequence[str]:
    """What the logs could not do, in words."""
    problems = []
    for device, log in logs.items():
        if log.lost:
            problems.append(
                f"{log.lost} samples of {device} are lost: the disk is full ({log.spill_error}), then memory"
            )
        elif log.spill_error:
            problems.append(f"samples of {device} stay in memory, the spill file cannot be written: {log.spill_error}")
    return problems


def _unnamed_file(directory: Path | None) -> FileIO:
    """A new file without a name, which the system removes when it is closed, however the process ends."""
    handle, name = tempfile.mkstemp(prefix="llem-samples-", dir=directory)
    os.unlink(name)
    return FileIO(handle, "r+")


def _write_all(file: FileIO, data: bytearray) -> None:
    view = memoryview(data)
    try:
        written = 0
        while written < len(view):
            count = file.write(view[written:])
            if not count:
                raise OSError("nothing more could be written")
            written += count
    finally:
        view.release()  # a bytearray with a view on it cannot be cleared


def _pack(sample: TelemetrySample) -> bytes:
    return _RECORD.pack(
        sample.time_s,
        _nan_for_none(sample.power_w),
        _nan_for_none(sample.temperature_c),
        _nan_for_none(sample.sm_clock_mhz),
        _nan_for_none(sample.memory_clock_mhz),
        _nan_for_none(sample.sm_utilisation_pct),
        _nan_for_none(sample.memory_used_mb),
        _NONE if sample.throttle_reasons is None else sample.throttle_reasons,
        _NONE if sample.power_source is None else _SOURCES.index(sample.power_source),
    )


def _unpack(record: tuple[float, float, float, float, float, float, float, int, int]) -> TelemetrySample:
    time_s, power, temperature, sm_clock, memory_clock, utilisation, memory, reasons, source = record
    return TelemetrySample(
        time_s,
        _none_for_nan(power),
        _none_for_nan(temperature),
        _none_for_nan(sm_clock),
        _none_for_nan(memory_clock),
        _none_for_nan(utilisation),
        _none_for_nan(memory),
        None if reasons == _NONE else reasons,
        None if source == _NONE else _SOURCES[source],
    )


def _nan_for_none(value: float | None) -> float:
    return math.nan if value is None else value


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
