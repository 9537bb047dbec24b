"""From what the host's own counters moved by in a window to joules; `trace.parquet` keeps the former."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from llenergymeasure.core.energy.powercap import LATE_S, Kind
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, HostCounter, HostWindow
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

UPDATE_S: Final = 0.001
"""Time between two updates of the counters (Intel SDM vol. 3B, "RAPL interfaces")."""


def host_measurement(window: HostWindow, telemetry: Telemetry | None) -> EnergyMeasurement:
    """Packages and memory together; a pure function of what was counted."""
    package_j, dram_j = counted_by(window.counters, "package"), counted_by(window.counters, "dram") or None
    total_j = package_j + (dram_j or 0.0)
    return EnergyMeasurement(
        start_s=window.start_s,
        end_s=window.end_s,
        total_j=total_j,
        method="hardware_counter",
        scope="cpu_package" if dram_j is None else "cpu_package_and_dram",
        cpu_j=package_j,
        dram_j=dram_j,
        counter_j=total_j,
        components=_error_budget(total_j, window),
        telemetry=telemetry,
        host_window=window,
        notes=tuple(stillness(window.counters, window.late_s)),
        meter=window.meter,
    )


def counted_by(counters: Sequence[HostCounter], kind: Kind) -> float:
    """Joules by all counters of a kind."""
    return math.fsum(counter.flowed_j for counter in counters if counter.kind == kind)


def stillness(counters: Sequence[HostCounter], late_s: float) -> Iterator[MeasurementWarning]:
    """Warnings: of each package that has counted nothing while others have, and of counters that are late."""
    for counter in counters:
        if counter.kind == "package" and counter.flowed_j == 0:
            text = f"the RAPL counter {counter.name} stood still over the whole window: CPU energy lacks its joules"
            yield MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, text)
    if late_s > LATE_S:
        text = (
            f"a RAPL counter stood still for {late_s:.2g} s within the window, and moves every "
            f"{1000 * UPDATE_S:.0f} ms otherwise: CPU energy may lack what flowed for as long"
        )
        yield MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, text)


def _error_budget(total_j: float, window: HostWindow) -> tuple[BudgetComponent, BudgetComponent]:
    duration_s, late_s = window.end_s - window.start_s, window.late_s
    missed_j = late_s * total_j / max(duration_s - late_s, UPDATE_S)
    return (
        BudgetComponent(
            name="gain",
            kind="gain",
            half_width_j=window.gain_uncertainty_pct / 100 * total_j,
            note="how far RAPL as a whole may be off, as configured",
        ),
        BudgetComponent(
            name="counter",
            kind="counter_resolution",
            half_width_j=2 * UPDATE_S * total_j / max(duration_s, UPDATE_S) + missed_j,
            note="one counter update at each edge of the window, and for how long the counter was seen to be late",
        ),
    )
