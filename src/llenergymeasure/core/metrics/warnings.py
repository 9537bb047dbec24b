"""Warnings about a window that can be told from its length and its power samples alone.

What only a meter or a step of the lifecycle knows (a foreign process, a busy baseline, a counter that stood still) is
warned about there.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from typing import Final

from llenergymeasure.core.energy.telemetry import answered
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.metrics.throttle import throttle_info
from llenergymeasure.domain.readable import duration
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MIN_DURATION_S: Final = 10.0
"""Windows shorter than this carry a warning: one update of the energy counter is 1 % of it."""

MIN_SAMPLES: Final = 10
"""Fewer power samples than this inside the window carry one."""

THERMAL_DRIFT_C: Final = 5.0
"""Range of temperatures across the window above which the device was not in a steady state."""

THERMAL_PARTS: Final = 20
"""The temperature of each such part of the window is the median of its readings: a die that starts a prefill is 7 °C
hotter for a tenth of a second (docs/validation/nvidia-h200), which is no drift."""

CLOCK_DRIFT_SHARE: Final = 0.05
"""Change of the mean SM clock from the first to the last quarter of the window that is worth a warning."""

CLOCK_MIN_SAMPLES: Final = 3
"""Samples it takes in a quarter to compare it."""


def window_warnings(energy: EnergyMeasurement) -> tuple[MeasurementWarning, ...]:
    """Every warning that the window's length and its power samples call for."""
    return (*_duration(energy), *_per_device(energy), *_throttling(energy))


def _duration(energy: EnergyMeasurement) -> Iterator[MeasurementWarning]:
    if energy.duration_sec < MIN_DURATION_S:
        yield MeasurementWarning(
            WarningCode.SHORT_MEASUREMENT_DURATION,
            f"the window lasted {duration(energy.duration_sec)}, less than {MIN_DURATION_S:g} s; sensors update about "
            "ten times a second, so use more prompts or measurement.min_duration_seconds",
        )


def _per_device(energy: EnergyMeasurement) -> Iterator[MeasurementWarning]:
    if energy.telemetry is None or energy.duration_sec <= 0:
        return
    for device in energy.telemetry.devices:
        times_s = energy.telemetry.column(device, "time_s")
        inside = slice(bisect_left(times_s, energy.start_s), bisect_right(times_s, energy.end_s))
        positions = [(time_s - energy.start_s) / energy.duration_sec for time_s in times_s[inside]]
        if energy.gpu_window is not None:
            yield from _sample_count(device, answered(energy.telemetry.column(device, "power_w")[inside]))
        yield from _thermal_drift(device, positions, energy.telemetry.column(device, "temperature_c")[inside])
        yield from _clock_drift(device, positions, energy.telemetry.column(device, "sm_clock_mhz")[inside])


def _sample_count(device: DeviceId, power_w: Sequence[float]) -> Iterator[MeasurementWarning]:
    if len(power_w) < MIN_SAMPLES:
        yield MeasurementWarning(
            WarningCode.NVML_LOW_SAMPLE_COUNT,
            f"{device} gave {len(power_w)} power samples inside the window, fewer than {MIN_SAMPLES}; time "
            "series, phases and the check of the energy counter rest on them",
        )


def _thermal_drift(
    device: DeviceId, positions: Sequence[float], readings_c: Sequence[float]
) -> Iterator[MeasurementWarning]:
    """Compare the parts of the window; `positions` are 0..1 in it."""
    last = THERMAL_PARTS - 1
    parts = groupby(zip(positions, readings_c, strict=True), lambda reading: min(last, int(THERMAL_PARTS * reading[0])))
    known_c = [answered(reading_c for _, reading_c in part) for _, part in parts]
    temperatures_c = [statistics.median(part_c) for part_c in known_c if part_c]
    if temperatures_c and max(temperatures_c) - min(temperatures_c) > THERMAL_DRIFT_C:
        yield MeasurementWarning(
            WarningCode.THERMAL_DRIFT_DETECTED,
            f"{device} went from {min(temperatures_c):.0f} °C to {max(temperatures_c):.0f} °C within the window, more "
            f"than {THERMAL_DRIFT_C:g} °C; leakage power changes with temperature, so warm up for longer",
        )


def _clock_drift(
    device: DeviceId, positions: Sequence[float], clocks_mhz: Sequence[float]
) -> Iterator[MeasurementWarning]:
    """Compare the first quarter of the window with the last; `positions` are 0..1 in it."""
    first = answered(compress(clocks_mhz, (position < 0.25 for position in positions)))
    last = answered(compress(clocks_mhz, (position > 0.75 for position in positions)))
    if min(len(first), len(last)) < CLOCK_MIN_SAMPLES:
        return
    first_mhz, last_mhz = statistics.fmean(first), statistics.fmean(last)
    if first_mhz > 0 and abs(last_mhz - first_mhz) / first_mhz > CLOCK_DRIFT_SHARE:
        yield MeasurementWarning(
            WarningCode.CLOCKS_DRIFTED,
            f"the SM clock of {device} went from {first_mhz:.0f} MHz in the first quarter of the window to "
            f"{last_mhz:.0f} MHz in the last; lock the clocks or warm up for longer",
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
