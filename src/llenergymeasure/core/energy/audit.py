"""Two answers for each board, by its counter and by its power samples: held against each other, and one chosen.

The counter is the answer where every board of the window has a good one; otherwise the integral is, for every board, so
that one method describes the total. Boards are judged one by one and together: in the sum of many, one's error is
small, or meets another's. Where the two answers for a board contradict each other so badly that one of them must be
broken, and nothing says which, the window has no answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from llenergymeasure.core.energy.uncertainty import gain_component
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.base import EnergyMethod
from llenergymeasure.domain.energy import BudgetComponent, EnergyAudit, comparative_half_width, sum_budgets
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

BROKEN_PCT: Final = 20.0
BROKEN_BOUNDS: Final = 3.0
"""Counter and integral that differ by more than this, and by more than this many times what their uncertainties allow,
cannot both be right within any reason: a counter that froze or was reset inside the window, a sensor that hangs."""

SENSOR_SPREAD_PCT: Final = 1.0
"""What counter and power sensor of one board may differ by for reasons of their own, in per cent."""

ALL: Final = ""
"""The name of all boards together among audits."""

Audits = Mapping[str, EnergyAudit]
"""Of each board by its device and of `ALL`, where both methods have an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Joules of one board by one method, their error budget without the gain, and why there are none, if so."""

    energy_j: float | None = None
    budget: tuple[BudgetComponent, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BoardEnergy:
    """The answers for one board.

    Args:
        counter_j: Plain difference of the counter.
        fused_j: Counter and samples together; `None` where only the plain difference was to be had.
        counter: By the counter, as sharp as could be had.
        unseen: What the counter misses if it adds up what the sensor sees; nothing where it is known not to. No matter
            for the audit: the samples miss the same.
        integral: By the power samples.
        clock: What the clock of another machine adds to either.
    """

    device: DeviceId
    counter_j: float | None
    fused_j: float | None
    counter: Answer
    unseen: tuple[BudgetComponent, ...]
    integral: Answer
    clock: tuple[BudgetComponent, ...] = ()

    def by(self, method: EnergyMethod | None) -> float | None:
        """Joules by the window's method; where the window has none, by the only one the board has."""
        return self._answer(method).energy_j

    def budget(self, method: EnergyMethod | None, gain_pct: float) -> tuple[BudgetComponent, ...]:
        """The error budget of `by(method)`; nothing where that is not known."""
        answer = self._answer(method)
        if answer.energy_j is None:
            return ()
        unseen = self.unseen if answer is self.counter else ()
        return (gain_component(answer.energy_j, gain_pct), *answer.budget, *unseen, *self.clock)

    def _answer(self, method: EnergyMethod | None) -> Answer:
        if method is not None:
            return self.counter if method == "hardware_counter" else self.integral
        known = [answer for answer in (self.counter, self.integral) if answer.energy_j is not None]
        return known[0] if len(known) == 1 else Answer()


def audit_boards(answers: Sequence[BoardEnergy]) -> Audits:
    """Counter against integral."""
    singles = [(answer.device, [answer]) for answer in answers] if len(answers) > 1 else []
    found = {device: _audit(alone, among=len(singles)) for device, alone in singles}
    return {name: audit for name, audit in ({ALL: _audit(answers, among=1)} | found).items() if audit is not None}


def _audit(answers: Sequence[BoardEnergy], among: int) -> EnergyAudit | None:
    """Counter against integral over some boards; `None` unless every one has both.

    Args:
        among: How many such comparisons are made: any of them may be off by chance as seldom as one alone (Bonferroni).
    """
    counted_j, integral_j = add_up(a.counter.energy_j for a in answers), add_up(a.integral.energy_j for a in answers)
    counter_j = add_up(a.counter_j for a in answers)
    if counter_j is None or counted_j is None or integral_j is None or counted_j <= 0:
        return None
    budget = sum_budgets(part for a in answers for part in (a.counter.budget, a.integral.budget))
    wider = NormalDist().inv_cdf(1.0 - 0.025 / among) / NormalDist().inv_cdf(1.0 - 0.025)
    bound_pct = 100.0 * wider * comparative_half_width(budget) / counted_j + SENSOR_SPREAD_PCT
    disagreement_pct = 100.0 * (integral_j - counted_j) / counted_j
    return EnergyAudit(
        counter_j=counter_j,
        integral_j=integral_j,
        fused_j=add_up(a.fused_j for a in answers),
        disagreement_pct=disagreement_pct,
        bound_pct=bound_pct,
        agrees=abs(disagreement_pct) <= bound_pct,
    )


def verdict(audits: Audits) -> EnergyAudit | None:
    """That of all boards together, which agrees where each of them does."""
    whole = audits.get(ALL)
    return whole and whole.model_copy(update={"agrees": all(audit.agrees for audit in audits.values())})


def choose_method(answers: Sequence[BoardEnergy], audits: Audits) -> EnergyMethod | None:
    """By which method the window is told; `None`: by none."""
    if not answers or any(map(_is_broken, audits.values())):
        return None
    if all(answer.counter.energy_j is not None for answer in answers):
        return "hardware_counter"
    return "power_integration" if all(answer.integral.energy_j is not None for answer in answers) else None


def audit_notes(
    answers: Sequence[BoardEnergy], method: EnergyMethod | None, audits: Audits
) -> Iterator[MeasurementWarning]:
    """What became of the answers that are not the window's, and where two contradict each other."""
    for answer in answers:
        if answer.counter.reason and method == "power_integration":
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"{answer.device}: energy is the integral of power samples, because {answer.counter.reason}",
            )
        if answer.integral.reason and method == "hardware_counter":
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"{answer.device}: the energy counter could not be checked against power samples, because "
                f"{answer.integral.reason}",
            )
    for name, audit in audits.items():
        if not audit.agrees:
            yield MeasurementWarning(WarningCode.ENERGY_METHODS_DISAGREE, _disagreement(name, audit))
    if method is None and not any(map(_is_broken, audits.values())):
        reasons = [f"{a.device}: {by.reason}" for a in answers for by in (a.counter, a.integral) if by.reason]
        yield MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, "; ".join(reasons) or "no GPU was measured")


def add_up(parts: Iterable[float | None]) -> float | None:
    """The sum, or `None` where a part is missing or there are none."""
    all_parts = list(parts)
    known = [part for part in all_parts if part is not None]
    return math.fsum(known) if known and len(known) == len(all_parts) else None


def _is_broken(audit: EnergyAudit) -> bool:
    return abs(audit.disagreement_pct) > max(BROKEN_PCT, BROKEN_BOUNDS * audit.bound_pct)


def _disagreement(name: str, audit: EnergyAudit) -> str:
    judged = (
        "they cannot both be right, so neither is given as the result"
        if _is_broken(audit)
        else "more than their uncertainties allow"
    )
    return (
        f"the energy counter{f' of {name}' if name else ''} says {audit.counter_j:.1f} J, the power samples say "
        f"{audit.integral_j:.1f} J ({audit.disagreement_pct:+.1f} %, allowed ±{audit.bound_pct:.1f} %): {judged}"
    )
