"""Whether the hardware held its clocks back during a window: from NVML's clocks-event reasons in the power samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from llenergymeasure.core.energy.integrate import Span, merge_spans
from llenergymeasure.core.energy.telemetry import UNKNOWN
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.metrics import ThermalThrottleInfo

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, "NvmlClocksEventReasons").
SW_POWER_CAP: Final = 0x04
HW_SLOWDOWN: Final = 0x08  # temperature or power; the bits below tell which, where the board can
SW_THERMAL: Final = 0x20
HW_THERMAL: Final = 0x40
HW_POWER_BRAKE: Final = 0x80

THERMAL: Final = SW_THERMAL | HW_THERMAL
POWER: Final = SW_POWER_CAP | HW_POWER_BRAKE
THROTTLING: Final = THERMAL | POWER | HW_SLOWDOWN


def throttle_info(energy: EnergyMeasurement) -> ThermalThrottleInfo | None:
    """Throttling of any of the window's devices; `None` where no device tells.

    A sample's reasons are taken to hold until the next sample. Times during which several devices throttle count once.
    """
    if energy.telemetry is None:
        return None
    seen, told = 0, False
    hottest_c: float | None = None
    spans: list[Span] = []
    for device in energy.telemetry.devices:
        for temperature_c, raw_reasons, begins_s, ends_s in _held(energy, device):
            if not math.isnan(temperature_c):
                hottest_c = temperature_c if hottest_c is None else max(hottest_c, temperature_c)
            if raw_reasons == UNKNOWN:
                continue
            told = True
            reasons = raw_reasons & THROTTLING
            seen |= reasons
            if reasons and ends_s > begins_s:
                spans.append((begins_s, ends_s))
    if not told:
        return None
    throttled = merge_spans(spans)
    return ThermalThrottleInfo(
        detected=bool(seen),
        thermal=bool(seen & THERMAL),
        power=bool(seen & POWER),
        sw_thermal=bool(seen & SW_THERMAL),
        hw_thermal=bool(seen & HW_THERMAL),
        hw_power=bool(seen & HW_POWER_BRAKE),
        throttle_duration_sec=sum(ends_s - begins_s for begins_s, ends_s in throttled),
        max_temperature_c=hottest_c,
        throttle_timestamps=[begins_s - energy.start_s for begins_s, _ in throttled],
    )


def _held(energy: EnergyMeasurement, device: DeviceId) -> Iterator[tuple[float, int, float, float]]:
    """Temperature and reasons of each sample, and the part of the window for which it is the latest.

    The one before the window opens it; a single one holds for no time.
    """
    if energy.telemetry is None:
        return
    times_s = energy.telemetry.column(device, "time_s")
    temperatures_c = energy.telemetry.column(device, "temperature_c")
    reasons = energy.telemetry.column(device, "throttle_reasons")
    if len(times_s) < 2:
        return
    until_s = [*times_s[1:], energy.end_s]
    for time_s, next_s, temperature_c, bits in zip(times_s, until_s, temperatures_c, reasons, strict=True):
        begins_s, ends_s = max(time_s, energy.start_s), min(next_s, energy.end_s)
        if begins_s <= ends_s:
            yield temperature_c, bits, begins_s, ends_s
