"""Doubts about a window that can be told from its length and its power samples alone.

What only a meter or a step of the lifecycle knows (a foreign process, a busy baseline, a counter that stood still) is
warned about there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from llenergymeasure.core.energy.types import EnergyMeasurement, TelemetrySample
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.metrics.throttle import throttle_info
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MIN_DURATION_S: Final = 10.0
"""Windows shorter than this carry a warning: one update of the energy counter is 1 % of it."""

MIN_SAMPLES: Final = 10
"""Fewer power samples than this inside the window carry one."""

THERMAL_DRIFT_C: Final = 5.0
"""Range of temperatures across the window above which the device was not in a steady state."""

CLOCK_DRIFT_SHARE: Final = 0.05
"""Change of the mean SM clock from the first to the last quarter of the window that is worth a warning."""

CLOCK_MIN_SAMPLES: Final = 3
"""Samples it takes in a quarter to compare it."""


def window_warnings(energy: EnergyMeasurement) -> tuple[MeasurementWarning, ...]:
    """Every doubt that the window's length and its power samples raise.

    Args:
        energy: The window and its power samples.
    """
    return (*_duration(energy), *_per_device(energy), *_throttling(energy))


def _duration(energy: EnergyMeasurement) -> Iterator[MeasurementWarning]:
    if energy.duration_sec < MIN_DURATION_S:
        yield MeasurementWarning(
            WarningCode.SHORT_MEASUREMENT_DURATION,
            f"the window lasted {energy.duration_sec:.1f} s, less than {MIN_DURATION_S:g} s; sensors update about ten "
            "times a second, so use more prompts or measurement.min_duration_seconds",
        )


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class _Seen:
    """What the samples of one device inside the window show, gathered in one pass."""

    power_samples: int = 0
    coolest_c: float = math.inf
    hottest_c: float = -math.inf
    first_clocks_mhz: _Mean = field(default_factory=_Mean)
    last_clocks_mhz: _Mean = field(default_factory=_Mean)

    def add(self, sample: TelemetrySample, position: float) -> None:
        """Count a sample at `position` of the window, 0..1."""
        self.power_samples += sample.power_w is not None
        if sample.temperature_c is not None:
            self.coolest_c = min(self.coolest_c, sample.temperature_c)
            self.hottest_c = max(self.hottest_c, sample.temperature_c)
        if sample.sm_clock_mhz is not None and position < 0.25:
            self.first_clocks_mhz.add(sample.sm_clock_mhz)
        if sample.sm_clock_mhz is not None and position > 0.75:
            self.last_clocks_mhz.add(sample.sm_clock_mhz)


def _per_device(energy: EnergyMeasurement) -> Iterator[MeasurementWarning]:
    if energy.telemetry is None or energy.duration_sec <= 0:
        return
    for device in energy.telemetry.devices:
        seen = _Seen()
        for sample in energy.telemetry.samples(device):
            if energy.start_s <= sample.time_s <= energy.end_s:
                seen.add(sample, (sample.time_s - energy.start_s) / energy.duration_sec)
        yield from _sample_count(device, seen)
        yield from _thermal_drift(device, seen)
        yield from _clock_drift(device, seen)


def _sample_count(device: DeviceId, seen: _Seen) -> Iterator[MeasurementWarning]:
    if seen.power_samples < MIN_SAMPLES and device != CPU_DEVICE:
        yield MeasurementWarning(
            WarningCode.NVML_LOW_SAMPLE_COUNT,
            f"{device} gave {seen.power_samples} power samples inside the window, fewer than {MIN_SAMPLES}; time "
            "series, phases and the check of the energy counter rest on them",
        )


def _thermal_drift(device: DeviceId, seen: _Seen) -> Iterator[MeasurementWarning]:
    if seen.hottest_c - seen.coolest_c > THERMAL_DRIFT_C:
        yield MeasurementWarning(
            WarningCode.THERMAL_DRIFT_DETECTED,
            f"{device} went from {seen.coolest_c:.0f} °C to {seen.hottest_c:.0f} °C within the window, more than "
            f"{THERMAL_DRIFT_C:g} °C; leakage power changes with temperature, so warm up for longer",
        )


def _clock_drift(device: DeviceId, seen: _Seen) -> Iterator[MeasurementWarning]:
    first, last = seen.first_clocks_mhz, seen.last_clocks_mhz
    if min(first.count, last.count) < CLOCK_MIN_SAMPLES or first.value <= 0:
        return
    if abs(last.value - first.value) / first.value > CLOCK_DRIFT_SHARE:
        yield MeasurementWarning(
            WarningCode.CLOCKS_DRIFTED,
            f"the SM clock of {device} went from {first.value:.0f} MHz in the first quarter of the window to "
            f"{last.value:.0f} MHz in the last; lock the clocks or warm up for longer",
        )


def _throttling(energy: EnergyMeasurement) -> Iterator[MeasurementWarning]:
    info = throttle_info(energy)
    if info is None or not info.detected:
        return
    share = 100.0 * info.throttle_duration_sec / energy.duration_sec if energy.duration_sec > 0 else 0.0
    if info.thermal or not info.power:  # a hardware slowdown without a cause is heat until it is told otherwise
        heat = f"(up to {info.max_temperature_c:.0f} °C) " if info.max_temperature_c is not None else ""
        yield MeasurementWarning(
            WarningCode.THERMAL_THROTTLING,
            f"temperature {heat}held the clocks back; throttled for {share:.0f} % of the window. Improve cooling or "
            "wait for longer between runs",
        )
    if info.power:
        yield MeasurementWarning(
            WarningCode.POWER_THROTTLING,
            f"the power limit held the clocks back; throttled for {share:.0f} % of the window. The result belongs to "
            "this power limit",
        )
