"""One measurement out of the answers for every board of a window: which method, how certain, and do they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llenergymeasure.core.energy.gpu_window import BoardEnergy, RecordedWindow, board_energy, scope_of
from llenergymeasure.core.energy.types import EnergyMeasurement, UncertaintyComponent
from llenergymeasure.core.energy.uncertainty import combine_boards, comparative_half_width, gain_component
from llenergymeasure.domain.base import EnergyMethod
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
    audit = _audit(answers)
    method = _method(answers, audit)
    budgets = {} if method is None else {a.device: _budget(a, method, window.gain_uncertainty_pct) for a in answers}
    return EnergyMeasurement(
        start_s=window.start_s,
        end_s=window.end_s,
        total_j=None if method is None else _sum(_answer(a, method) for a in answers),
        method=method,
        scope=None if method is None else scope_of(window.boards),
        per_gpu_j={a.device: _answer(a, method) for a in answers},
        counter_j=_sum(a.counter_j for a in answers),
        integral_j=_sum(a.integral_j for a in answers),
        fused_j=_sum(a.fused_j for a in answers),
        audit=audit,
        components=combine_boards(budgets.values()),
        per_gpu_components=budgets,
        telemetry=recorded,
        notes=tuple(_notes(answers, method, audit)),
        meter=window.meter,
    )


def _audit(answers: Sequence[BoardEnergy]) -> EnergyAudit | None:
    """Counter against integral over all boards; `None` unless every board has both."""
    counted_j, integral_j = _sum(a.counted_j for a in answers), _sum(a.integral_j for a in answers)
    counter_j = _sum(a.counter_j for a in answers)
    if counter_j is None or counted_j is None or integral_j is None or counted_j <= 0:
        return None
    budget = combine_boards(part for a in answers for part in (a.counter_budget, a.integral_budget))
    bound_pct = 100.0 * comparative_half_width(budget) / counted_j + SENSOR_SPREAD_PCT
    disagreement_pct = 100.0 * (integral_j - counted_j) / counted_j
    return EnergyAudit(
        counter_j=counter_j,
        integral_j=integral_j,
        fused_j=_sum(a.fused_j for a in answers),
        disagreement_pct=disagreement_pct,
        bound_pct=bound_pct,
        agrees=abs(disagreement_pct) <= bound_pct,
    )


def _budget(answer: BoardEnergy, method: EnergyMethod, gain_pct: float) -> tuple[UncertaintyComponent, ...]:
    timing = answer.counter_budget if method == "hardware_counter" else answer.integral_budget
    return (gain_component(_answer(answer, method) or 0.0, gain_pct), *timing)


def _notes(
    answers: Sequence[BoardEnergy], method: EnergyMethod | None, audit: EnergyAudit | None
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
            f"the energy counter says {audit.counter_j:.1f} J, the power samples say {audit.integral_j:.1f} J "
            f"({audit.disagreement_pct:+.1f} %, allowed ±{audit.bound_pct:.1f} %): {verdict}",
        )


def _reasons(answer: BoardEnergy) -> Iterator[str]:
    if answer.counted_j is None and answer.counter_reason:
        yield answer.counter_reason
    if answer.integral_j is None and answer.integral_reason:
        yield answer.integral_reason


def _method(answers: Sequence[BoardEnergy], audit: EnergyAudit | None) -> EnergyMethod | None:
    if audit is not None and abs(audit.disagreement_pct) > max(BROKEN_PCT, BROKEN_BOUNDS * audit.bound_pct):
        return None
    if answers and all(answer.counted_j is not None for answer in answers):
        return "hardware_counter"
    if answers and all(answer.integral_j is not None for answer in answers):
        return "power_integration"
    return None


def _answer(answer: BoardEnergy, method: EnergyMethod | None) -> float | None:
    """One board's joules by the window's method; where the window has none, by the only one the board has."""
    if method == "hardware_counter":
        return answer.counted_j
    if method == "power_integration":
        return answer.integral_j
    if answer.counted_j is not None and answer.integral_j is not None:
        return None
    return answer.counted_j if answer.counted_j is not None else answer.integral_j


def _sum(parts: Iterable[float | None]) -> float | None:
    """The sum, or `None` where a part is missing or there are none."""
    known = list(parts)
    if not known or any(part is None for part in known):
        return None
    return math.fsum(part for part in known if part is not None)
