"""Windows on known loads, and what a meter's answer boils down to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpu_check_parts.lines import Book, percent

FALLBACK = "plain counter difference"
"""How the error budget begins where fusion found no step of the counter."""


def figures_of(energy: Any) -> dict[str, Any]:
    """Numbers of one window, from an `EnergyMeasurement`."""
    from llenergymeasure.domain.energy import comparative_half_width

    audit = energy.audit
    notes = [component.note for component in energy.components if component.kind == "counter_resolution"]
    return {
        "seconds": energy.duration_sec,
        "total_j": energy.total_j,
        "counter_j": energy.counter_j,
        "integral_j": energy.integral_j,
        "fused_j": energy.fused_j,
        "method": energy.method,
        "half_width_j": comparative_half_width(energy.components) if energy.components else None,
        "disagreement_pct": None if audit is None else audit.disagreement_pct,
        "bound_pct": None if audit is None else audit.bound_pct,
        "agrees": None if audit is None else audit.agrees,
        "fell_back": None if energy.method != "hardware_counter" else any(note.startswith(FALLBACK) for note in notes),
        "reason": next((note for note in notes if note.startswith(FALLBACK)), None),
        "warnings": [str(note.code.value) for note in energy.notes],
    }


def watts(window: Mapping[str, Any]) -> float:
    """Mean power of a window by its result; not a number where there is none."""
    return window["total_j"] / window["seconds"] if window["total_j"] is not None else math.nan


def described(windows: Mapping[str, list[dict[str, Any]]]) -> str:
    """`square 0.5 s: +1.2 % (allowed 3.0)` for every window."""
    return "; ".join(
        f"{load} {window['seconds']:.1f} s: {_disagreement(window)}"
        for load, found in windows.items()
        for window in found
    )


def keep_trace(book: Book, name: str, energy: Any) -> None:
    """Keep the samples of a window as a trace."""
    if energy.telemetry is None:
        return
    columns = ("time_s", "power_w", "temperature_c", "sm_clock_mhz", "sm_utilisation_pct", "throttle_reasons")
    for device in energy.telemetry.devices:
        table = [energy.telemetry.column(device, column) for column in columns]
        table[0] = [time_s - energy.start_s for time_s in table[0]]
        book.trace(name, columns, zip(*table, strict=True))


def _disagreement(window: Mapping[str, Any]) -> str:
    if window["disagreement_pct"] is None:
        return "no audit"
    half = "" if not window["half_width_j"] else f", states ±{percent(window['half_width_j'], window['total_j']):.2f} %"
    return f"{window['disagreement_pct']:+.2f} % (allowed {window['bound_pct']:.2f}{half})"
