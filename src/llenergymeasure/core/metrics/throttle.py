"""Whether the hardware held its clocks back during a window: from NVML's clocks-event reasons in the power samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Final

from llenergymeasure.core.energy.spans import Span, merge_spans
from llenergymeasure.core.energy.telemetry import UNKNOWN, answered
from llenergymeasure.core.energy.types import EnergyMeasurement
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
    held = list(_held(energy))
    told = [(bits & THROTTLING, span) for _, bits, span in held if bits != UNKNOWN]
    if not told:
        return None
    seen = reduce(or_, (bits for bits, _ in told))
    throttled = merge_spans((begins_s, ends_s) for bits, (begins_s, ends_s) in told if bits and ends_s > begins_s)
    return ThermalThrottleInfo(
        detected=bool(seen),
        thermal=bool(seen & THERMAL),
        power=bool(seen & POWER),
        sw_thermal=bool(seen & SW_THERMAL),
        hw_thermal=bool(seen & HW_THERMAL),
        hw_power=bool(seen & HW_POWER_BRAKE),
        throttle_duration_sec=sum(ends_s - begins_s for begins_s, ends_s in throttled),
        max_temperature_c=max(answered(temperature_c for temperature_c, _, _ in held), default=None),
        throttle_timestamps=[begins_s - energy.start_s for begins_s, _ in throttled],
    )


def _held(energy: EnergyMeasurement) -> Iterator[tuple[float, int, Span]]:
    """Temperature and reasons of each device's samples, and the part of the window for which each is the latest.

    The one before the window opens it; a single one holds for no time.
    """
    if energy.telemetry is None:
        return
    for device in energy.telemetry.devices:
        times_s = energy.telemetry.column(device, "time_s")
        temperatures_c = energy.telemetry.column(device, "temperature_c")
        reasons = energy.telemetry.column(device, "throttle_reasons")
        if len(times_s) < 2:
            continue
        until_s = [*times_s[1:], energy.end_s]
        for time_s, next_s, temperature_c, bits in zip(times_s, until_s, temperatures_c, reasons, strict=True):
            begins_s, ends_s = max(time_s, energy.start_s), min(next_s, energy.end_s)
            if begins_s <= ends_s:
                yield temperature_c, bits, (begins_s, ends_s)
