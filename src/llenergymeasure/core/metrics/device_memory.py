"""Memory of the devices as their driver sees it: everything on them, whoever allocated it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from llenergymeasure.core.energy.telemetry import Telemetry, answered


def device_memory_mb(telemetry: Telemetry | None, start_s: float, end_s: float) -> float | None:
    """Most memory in use on each device in a window, summed over the devices, in MB; `None` where a device gave none.

    Args:
        telemetry: The power sampler's readings; `None`: there were none.
        start_s: Start of the window on the measurement clock, in seconds, as `end_s` is its end.
    """
    if telemetry is None or not telemetry.devices:
        return None
    total_mb = 0.0
    for device in telemetry.devices:
        times_s = telemetry.column(device, "time_s")
        inside = slice(bisect_left(times_s, start_s), bisect_right(times_s, end_s))
        used_mb = answered(telemetry.column(device, "memory_used_mb")[inside])
        if not used_mb:
            return None
        total_mb += max(used_mb)
    return total_mb
