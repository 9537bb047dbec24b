"""One measurement out of the answers for every board of a window: which method, how certain, and do they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llenergymeasure.core.energy.gpu_window import BoardEnergy, GpuWindow, RecordedWindow, board_energy, scope_of
from llenergymeasure.core.energy.types import EnergyMeasurement, Method, UncertaintyComponent
from llenergymeasure.domain.energy import EnergyAudit
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

BROKEN_PCT: Final = 20.0
BROKEN_BOUNDS: Final = 3.0
"""Counter and integral that differ by more than this, and by more than this many times what their uncertainties allow,
cannot both be right within any reason: a counter that froze or was reset inside the window, a sensor that hangs."""

SENSOR_SPREAD_PCT: Final = 1.0
"""What counter and power sensor of one board may differ by for reasons of their own, in per cent."""


def gpu_measurement(recorded: RecordedWindow) -> EnergyMeasurement:
    """The energy of a window on GPUs; a pure function of what was recorded.

    Args:
        recorded: The window's readings and samples.
    """
    window = recorded.window
    answers = [board_energy(record, recorded, window) for record in window.boards]
    counter_j, fused_j = _sum(a.counter_j for a in answers), _sum(a.fused_j for a in answers)
    integral_j = _sum(a.integral_j for a in answers)
    audit = _audit(counter_j, fused_j, integral_j, answers, window)
    method = _method(answers, audit)
    total_j = {"hardware_counter": fused_j, "power_integration": integral_j}.get(method or "")
    return EnergyMeasurement(
        start_s=window.start_s,
        end_s=window.end_s,
        total_j=total_j,
        method=method,
        scope=None if method is None else scope_of(window.boards),
        per_gpu_j={a.device: _answer(a, method) for a in answers},
        counter_j=counter_j,
        integral_j=integral_j,
        fused_j=fused_j,
        audit=audit,
        components=() if method is None else tuple(_budget(answers, method, window)),
        telemetry=recorded,
        notes=tuple(_notes(answers, method, audit)),
        meter=window.meter,
    )


def _audit(
    counter_j: float | None,
    fused_j: float | None,
    integral_j: float | None,
    answers: Sequence[BoardEnergy],
    window: GpuWindow,
) -> EnergyAudit | None:
    if counter_j is None or fused_j is None or integral_j is None:
        return None
    allowed_j = math.hypot(_counter_half_width(answers), _integral_half_width(answers))
    bound_pct = 100.0 * allowed_j / fused_j + SENSOR_SPREAD_PCT
    disagreement_pct = 100.0 * (integral_j - fused_j) / fused_j
    return EnergyAudit(
        counter_j=counter_j,
        integral_j=integral_j,
        fused_j=fused_j,
        disagreement_pct=disagreement_pct,
        bound_pct=bound_pct,
        agrees=abs(disagreement_pct) <= bound_pct,
    )


def _budget(answers: Sequence[BoardEnergy], method: Method, window: GpuWindow) -> Iterator[UncertaintyComponent]:
    total_j = math.fsum(_answer(answer, method) or 0.0 for answer in answers)
    yield UncertaintyComponent(
        "sensor gain",
        window.gain_uncertainty_pct / 100 * total_j,
        "gain",
        f"±{window.gain_uncertainty_pct:g} % as configured; only an external meter can better it",
    )
    if method == "hardware_counter":
        note = "what the counter's steps leave open at the window's edges"
        yield UncertaintyComponent("counter", _counter_half_width(answers), "counter_resolution", note)
    else:
        note = "what may have happened between the power samples"
        yield UncertaintyComponent("power samples", _integral_half_width(answers), "sampling", note)


def _counter_half_width(answers: Sequence[BoardEnergy]) -> float:
    return math.hypot(*(answer.fused_half_width_j for answer in answers))


def _integral_half_width(answers: Sequence[BoardEnergy]) -> float:
    return math.hypot(*(answer.integral_half_width_j for answer in answers))


def _notes(
    answers: Sequence[BoardEnergy], method: Method | None, audit: EnergyAudit | None
) -> Iterator[MeasurementWarning]:
    for answer in answers:
        if answer.counter_reason and method == "power_integration":
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"{answer.device}: energy is the integral of power samples, because {answer.counter_reason}",
            )
        if answer.integral_reason and method == "hardware_counter":
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"{answer.device}: the energy counter could not be checked against power samples, because "
                f"{answer.integral_reason}",
            )
    if method is None and (audit is None or audit.agrees):
        reasons = [f"{a.device}: {reason}" for a in answers for reason in _reasons(a)]
        yield MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, "; ".join(reasons) or "no GPU was measured")
    if audit is not None and not audit.agrees:
        verdict = (
            "they cannot both be right, so neither is given as the result"
            if method is None
            else "more than their uncertainties allow"
        )
        yield MeasurementWarning(
            WarningCode.ENERGY_METHODS_DISAGREE,
            f"the energy counter says {audit.fused_j or audit.counter_j:.1f} J, the power samples say "
            f"{audit.integral_j:.1f} J ({audit.disagreement_pct:+.1f} %, allowed ±{audit.bound_pct:.1f} %): {verdict}",
        )


def _reasons(answer: BoardEnergy) -> Iterator[str]:
    if answer.fused_j is None and answer.counter_reason:
        yield answer.counter_reason
    if answer.integral_j is None and answer.integral_reason:
        yield answer.integral_reason


def _method(answers: Sequence[BoardEnergy], audit: EnergyAudit | None) -> Method | None:
    if audit is not None and abs(audit.disagreement_pct) > max(BROKEN_PCT, BROKEN_BOUNDS * audit.bound_pct):
        return None
    if answers and all(answer.fused_j is not None for answer in answers):
        return "hardware_counter"
    if answers and all(answer.integral_j is not None for answer in answers):
        return "power_integration"
    return None


def _answer(answer: BoardEnergy, method: Method | None) -> float | None:
    """One board's joules by the window's method; by whichever there is where the total has none."""
    if method == "hardware_counter":
        return answer.fused_j
    if method == "power_integration":
        return answer.integral_j
    if answer.fused_j is not None and answer.integral_j is not None:
        return None  # both are there and the window has no method: they contradict each other
    return answer.fused_j if answer.fused_j is not None else answer.integral_j


def _sum(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    if not known or any(part is None for part in known):
        return None
    return math.fsum(part for part in known if part is not None)
