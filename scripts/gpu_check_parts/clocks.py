"""Clocks and throttle reasons under a load that reaches the power limit."""

from __future__ import annotations

import math
import statistics
from typing import Any

from gpu_check_parts.lines import Book, Line, percent
from gpu_check_parts.windows import figures_of, keep_trace, watts

LINES = (
    Line("clocks.limit", "a heavy matrix product takes the board to at least 90 % of its power limit"),
    Line(
        "clocks.reasons",
        "the power limit shows as a throttle reason in the samples and as power throttling in the result",
    ),
    Line("clocks.clocks", "the SM clock is recorded, and is below its maximum while the limit acts"),
)


def power_limit(rig: Any, book: Book) -> None:
    """One window under the heaviest load there is."""
    from llenergymeasure.core.metrics.throttle import throttle_info

    load = rig.heavy_load()
    load.start()
    try:
        rig.clock.sleep(rig.seconds(1.5))
        energy = rig.metered(rig.meter(), 4.0, 0.5)
    finally:
        load.stop()
    keep_trace(book, "heavy", energy)
    drawn_w, limit_w = watts(figures_of(energy)), rig.gpu.power_limit_w or math.nan
    measured = f"{drawn_w:.0f} of {limit_w:.0f} W: {percent(drawn_w, limit_w):.0f} %"
    at_limit = drawn_w >= 0.9 * limit_w
    book.judge("clocks.limit", at_limit, measured, drawn_w=drawn_w, limit_w=limit_w)
    reasons = sorted({int(bits) for bits in energy.telemetry.column(rig.gpu.uuid, "throttle_reasons")})
    info = throttle_info(energy)
    told = (
        "no reasons told"
        if info is None
        else f"power {info.power}, thermal {info.thermal}, {info.throttle_duration_sec:.2f} s"
    )
    measured = f"bit masks {', '.join(f'0x{bits:x}' if bits >= 0 else 'unknown' for bits in reasons)}; {told}"
    holds = info.power if info is not None and at_limit else None
    book.judge("clocks.reasons", holds, measured, masks=reasons)
    clocks = [mhz for mhz in energy.telemetry.column(rig.gpu.uuid, "sm_clock_mhz") if math.isfinite(mhz)]
    energy.close()
    if clocks:
        top = rig.gpu.max_sm_clock_mhz or math.nan
        measured = f"{min(clocks):.0f} to {max(clocks):.0f} MHz, mean {statistics.fmean(clocks):.0f}, maximum {top:.0f}"
        holds = statistics.fmean(clocks) < top if at_limit and math.isfinite(top) else None
        book.judge("clocks.clocks", holds, measured)


STEPS = (power_limit,)
