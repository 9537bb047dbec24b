"""Joules of single requests: the energy of the window, shared over them by a rule (share_rules.py).

The shares add up to the meter's figure.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.energy.integrate import PartUnknownError, TracedWindow, resolution_s
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.metrics.latency import MIN_SAMPLES_PER_STRETCH, typical_stretch_s
from llenergymeasure.core.metrics.share_rules import BySteps, ByTimes, Life, Rule, TokenWeights
from llenergymeasure.core.metrics.step_spans import step_spans
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.latency import ShareRule
from llenergymeasure.domain.metrics import PhaseBreakdown

WORKED_OUT: Final = 64
"""Half-widths are worked out for so many requests at most."""

FEWEST_WORKED_OUT: Final = 8
SAMPLES_LOOKED_AT: Final = 4_000_000
"""For fewer, down to so many, where the traces that each takes a pass over are so long that they add up to this."""

CORRECTIONS: Final = 8
"""So many shares at most take the rounding that separates their sum from the meter's figure; two do as a rule."""


EXTREMES: Final = (TokenWeights(1.0, 1e-9), TokenWeights(1e-9, 1.0))
"""That prefill takes all of what it shares with decode, and that it takes nothing of it."""


@dataclass(frozen=True, slots=True)
class RequestShares:
    """Joules of each request and the 95 % half-width of each, without the sensor's gain; or why there are none."""

    energy_j: array[float] | None = None
    half_width_j: array[float] | None = None
    rule: ShareRule | None = None
    reason: str | None = None


def share_energy(
    outputs: Sequence[RequestOutput],
    energy: EnergyMeasurement,
    phases: PhaseBreakdown | None,
    steps: StepLog | None = None,
) -> RequestShares:
    """Each request's share of `energy`, in the order of `outputs`, all of which were generated in its window."""
    lives = [Life(o.started_s, o.token_times_s[0], o.token_times_s[-1], o) for o in outputs if o.token_times_s]
    if not lives or len(lives) < len(outputs):
        return _none("the engine does not tell when tokens were there")
    if energy.total_j is None:
        return _none("no energy was measured")
    if any(output.preemptions for output in outputs):
        return _none("requests lost their key-value cache and were computed again, in steps that do not tell it")
    if min(life.started_s for life in lives) < energy.start_s or max(life.ended_s for life in lives) > energy.end_s:
        return _none("only a part of the generation was counted")
    try:
        traced = TracedWindow(energy, ())  # requests come and go without the load changing at once
    except PartUnknownError as error:
        return _none(str(error))
    blur_s = resolution_s(energy) or energy.duration_sec
    typical_s = typical_stretch_s([(life.started_s, life.ended_s) for life in lives])
    if typical_s < MIN_SAMPLES_PER_STRETCH * blur_s:
        return _none(
            f"requests take {1000 * typical_s:.0f} ms; power readings that are {1000 * blur_s:.0f} ms apart or "
            "averages over that cannot tell their joules apart"
        )
    rule = _rule(lives, steps)
    weights = _weights(rule, phases)
    if weights is None:
        return _none("prefill and decode of different requests overlap, and what their tokens take is not known")
    instants_s = sorted({energy.start_s, energy.end_s, *rule.instants_s()})
    gaps_j = traced.split(instants_s)
    shares_j, *others_j = (rule.shares(instants_s, gaps_j, each) for each in weights.all)
    _add_up(shares_j, energy.total_j)
    widths_j = array("d")
    for request, width_j in enumerate(_half_widths(lives, shares_j, traced)):
        apart_j = (abs(other_j[request] - shares_j[request]) for other_j in others_j)
        widths_j.append(math.hypot(width_j, max(apart_j, default=0.0), weights.relative * shares_j[request]))
    return RequestShares(shares_j, widths_j, rule.name)


def _none(reason: str) -> RequestShares:
    return RequestShares(reason=reason)


def _rule(lives: Sequence[Life], steps: StepLog | None) -> Rule:
    """By steps where all tokens are there at the ends of some; those without a length gave nobody any."""
    if steps is None:
        return ByTimes(lives)
    all_spans = step_spans(steps, [life.output for life in lives])
    ran = [(step, span) for step, span in zip(steps, all_spans, strict=True) if span[0] < span[1]]
    ends_s = {step.ended_s for step, _ in ran}
    told = all(ends_s.issuperset(life.output.token_times_s or ()) for life in lives)
    return BySteps(lives, [step for step, _ in ran], [span for _, span in ran]) if told else ByTimes(lives)


@dataclass(frozen=True, slots=True)
class _Weights:
    """What tokens weigh, and how well that is known.

    Args:
        relative: Relative 95 % half-width of one weight against the other.
        bounds: Weights between which the true ones are, where nothing closer is known.
    """

    likely: TokenWeights
    relative: float = 0.0
    bounds: tuple[TokenWeights, ...] = ()

    @property
    def all(self) -> tuple[TokenWeights, ...]:
        """The likely ones, then the bounds."""
        return self.likely, *self.bounds


def _weights(rule: Rule, phases: PhaseBreakdown | None) -> _Weights | None:
    """By the run's phases: their joules or, where those are not resolved, their times, as at equal power.

    No matter where no energy is of both; `None` where it matters and nobody knows.
    """
    if not rule.is_mixed():
        return _Weights(TokenWeights())
    told = zip((phases.prefill, phases.decode), rule.tokens(phases), strict=True) if phases is not None else ()
    known = [(part, tokens) for part, tokens in told if part is not None and part.time_sec > 0 and tokens]
    if len(known) < 2:
        return None
    joules = [part.energy_j / tokens for part, tokens in known if part.energy_j is not None and part.energy_j > 0]
    if len(joules) < 2:
        return _Weights(TokenWeights(*(part.time_sec / tokens for part, tokens in known)), bounds=EXTREMES)
    widths = [part.uncertainty.comparative_j / part.energy_j for part, _ in known if part.uncertainty and part.energy_j]
    return _Weights(TokenWeights(*joules), math.hypot(*widths))


def _add_up(shares_j: array[float], total_j: float) -> None:
    """Put what rounding has left of the total to the largest share, and what that is too coarse for to the next."""
    for index in heapq.nlargest(CORRECTIONS, range(len(shares_j)), key=shares_j.__getitem__):
        if math.fsum(shares_j) == total_j:
            return
        left_j = math.fsum((total_j, *(-share_j for share_j in shares_j)))
        shares_j[index] = max(0.0, shares_j[index] + left_j)


def _half_widths(lives: Sequence[Life], shares_j: Sequence[float], traced: TracedWindow) -> array[float]:
    """95 % half-widths: those of the energy of each request's time, by its share of that.

    They are worked out for some requests, from the least to the most expensive, and relative ones are interpolated
    between these: each takes a pass over the trace.
    """
    import numpy as np

    order = sorted(range(len(lives)), key=shares_j.__getitem__)
    count = min(len(order), WORKED_OUT, max(FEWEST_WORKED_OUT, SAMPLES_LOOKED_AT // traced.samples))
    ranks = sorted({round(k * (len(order) - 1) / max(1, count - 1)) for k in range(count)})
    relative = [_relative_width(lives[order[rank]], traced) for rank in ranks]
    widths_j = np.array(shares_j)
    widths_j[order] *= np.interp(range(len(order)), ranks, relative)
    return array("d", widths_j)


def _relative_width(life: Life, traced: TracedWindow) -> float:
    """Relative half-width, without the sensor's gain, of all the energy of a request's time."""
    part = traced.part([(life.started_s, life.ended_s)])
    return comparative_half_width(part.components) / part.total_j if part.total_j > 0 else 0.0
