"""Memory and utilisation of the devices as their driver sees them: everything on them, whoever uses it."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from llenergymeasure.core.energy.telemetry import Telemetry, answered

UTILISATION_SPAN_S: Final = 1.0
"""At most so much time a reading of utilisation is of, in seconds (NVML API reference, `nvmlUtilization_t`)."""


def device_memory_mb(telemetry: Telemetry | None, start_s: float, end_s: float) -> float | None:
    """Most memory in use on each device in a window, summed over the devices, in MB; `None` where a device gave none.

    Args:
        telemetry: The power sampler's readings; `None`: there were none.
        start_s: Start of the window on the measurement clock, in seconds, as `end_s` is its end.
    """
    return _of_devices(telemetry, "memory_used_mb", start_s, end_s, max, math.fsum)


def device_utilisation_pct(telemetry: Telemetry | None, start_s: float, end_s: float) -> float | None:
    """Share of a window in which a device had work (a kernel ran), mean of the devices; arguments as above.

    A reading is of up to a second before it, so that of shorter windows nothing is known.
    """
    start_s += UTILISATION_SPAN_S
    return _of_devices(telemetry, "sm_utilisation_pct", start_s, end_s, statistics.fmean, statistics.fmean)


def _of_devices(
    telemetry: Telemetry | None,
    column: str,
    start_s: float,
    end_s: float,
    of_readings: Callable[[Sequence[float]], float],
    of_devices: Callable[[Sequence[float]], float],
) -> float | None:
    if telemetry is None or not telemetry.devices:
        return None
    figures = []
    for device in telemetry.devices:
        times_s = telemetry.column(device, "time_s")
        inside = slice(bisect_left(times_s, start_s), bisect_right(times_s, end_s))
        readings = answered(telemetry.column(device, column)[inside])
        if not readings:
            return None
        figures.append(of_readings(readings))
    return of_devices(figures)
