"""The wait between warm-up and window: what it does to temperature and drift, and the resident idle power from it."""

from __future__ import annotations

import math
import statistics
from typing import Any

from gpu_check_parts.lines import Book, Line
from gpu_check_parts.windows import figures_of, keep_trace, watts

LINES = (
    Line("floor.resident", "resident idle power over the whole wait is that of its last half, within 2 %", 8),
    Line("floor.drift", "a window after the wait and one short batch carries no thermal_drift_detected (5 °C)", 5),
    Line("floor.without", "a window right after a hot load changes temperature by more than one after the wait", 5),
)

HEAT_S, WAIT_S, WINDOW_S = 4.0, 9.0, 4.0
"""The wait is a seventh of the default's 60 s: what eight minutes can spare."""


def wait_and_window(rig: Any, book: Book) -> None:
    """Heat, wait with the model resident, one short batch, a window; then heat and a window at once."""
    from llenergymeasure.core.metrics.warnings import window_warnings
    from llenergymeasure.core.progress import ignore_events
    from llenergymeasure.core.window import measure_window
    from llenergymeasure.domain.warnings import WarningCode

    batch = rig.count(64, 4)
    config = rig.config(rig.models.small, n=batch, batch=batch, input_len=128, output_len=64)
    load, meter = rig.load(), rig.meter()

    def heat() -> None:
        load.start()
        rig.clock.sleep(rig.seconds(HEAT_S))
        load.stop()

    def window(name: str) -> tuple[float, dict[str, Any], bool]:
        least_s = rig.seconds(WINDOW_S, 0.5)
        seen = measure_window(session.engine, session.requests, meter, rig.clock, ignore_events, min_duration_s=least_s)
        drifts = WarningCode.THERMAL_DRIFT_DETECTED in {warning.code for warning in window_warnings(seen.energy)}
        return *_take(rig, book, name, seen.energy), drifts

    with rig.session(config) as session:
        session.engine.generate(session.requests)
        heat()
        resting = rig.metered(meter, WAIT_S, 1.0)
        _judge_resident(rig, book, resting)
        session.engine.generate(session.requests[:1])
        drift_c, after_wait, drifts = window("after-wait")
        told = f"{drift_c:+.1f} °C in {after_wait['seconds']:.1f} s after a wait of {rig.seconds(WAIT_S, 1.0):.0f} s"
        warned = "a warning" if drifts else "no warning"
        measured = f"{warned}; single readings {told} (default 60 s), {watts(after_wait):.1f} W"
        book.judge("floor.drift", not drifts if math.isfinite(drift_c) else None, measured, drift_c=drift_c)
        heat()
        hot_c, at_once, _ = window("at-once")
    powers = f"{watts(at_once):.1f} against {watts(after_wait):.1f} W"
    measured = f"{hot_c:+.1f} °C at once, {drift_c:+.1f} °C after the wait; {powers}"
    holds = hot_c > drift_c if math.isfinite(hot_c) and math.isfinite(drift_c) else None
    book.judge("floor.without", holds, measured, hot_c=hot_c)


STEPS = (wait_and_window,)


def _judge_resident(rig: Any, book: Book, energy: Any) -> None:
    times_s, power_w = energy.telemetry.power(rig.gpu.uuid)
    middle_s = 0.5 * (energy.start_s + energy.end_s)
    late = [w for t, w in zip(times_s, power_w, strict=True) if middle_s <= t <= energy.end_s]
    figure_w = watts(figures_of(energy))
    _take(rig, book, "wait", energy)
    if not late:
        return
    late_w = statistics.fmean(late)
    measured = f"{figure_w:.1f} W over the wait, {late_w:.1f} W in its last half: {figure_w - late_w:+.1f} W"
    book.judge(
        "floor.resident", abs(figure_w - late_w) <= 0.02 * late_w, measured, whole_w=figure_w, last_half_w=late_w
    )


def _take(rig: Any, book: Book, name: str, energy: Any) -> tuple[float, dict[str, Any]]:
    """Range of temperature over a window, and its figures; the trace is kept and the samples are released."""
    keep_trace(book, name, energy)
    uuid = rig.gpu.uuid
    seen = list(energy.telemetry.column(uuid, "temperature_c"))
    times_s = [t - energy.start_s for t in energy.telemetry.column(uuid, "time_s")]
    power_w = list(energy.telemetry.column(uuid, "power_w"))
    book.series(f"Floor: {name}", "s", "W and °C", {"power": (times_s, power_w), "temperature": (times_s, seen)})
    figures = figures_of(energy)
    energy.close()
    known = [c for c in seen if math.isfinite(c)]
    return (max(known) - min(known) if known else math.nan), figures
