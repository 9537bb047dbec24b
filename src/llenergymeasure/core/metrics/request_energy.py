"""Joules of single requests: the energy of the window, shared over the requests that the engine worked on meanwhile.

    request 1    |--prefill--|------decode------|
    request 2          |--prefill--|----decode--------|
    instants     |     |     |     |            |     |        a request starts, has its first token, has its last
    energy         E1    E2    E3       E4        E5           of each gap between two instants, cut out of the trace

Within a gap every active request works at one rate: its input tokens over the time of its prefill, or its further
output tokens over the time of its decoding. A gap's energy is shared by rate times the joules of such a token, which
are the phase figures of the same run. Where all that are active are in the same phase, those cancel: the rows of a
batch share by their tokens. A gap in which no request is active is shared by the time that each request took. The
shares add up to the meter's figure.
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.energy.integrate import PartUnknownError, TracedWindow, resolution_s
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.metrics.latency import MIN_SAMPLES_PER_STRETCH, typical_stretch_s
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.metrics import PhaseBreakdown

WORKED_OUT: Final = 64
"""Half-widths are worked out for so many requests at most."""

CORRECTIONS: Final = 8
"""So many shares at most take the rounding that separates their sum from the meter's figure; two do as a rule."""


@dataclass(frozen=True, slots=True)
class RequestShares:
    """Joules of each request and the 95 % half-width of each, without the sensor's gain; or why there are none."""

    energy_j: array[float] | None
    half_width_j: array[float] | None
    reason: str | None = None


def share_energy(
    outputs: Sequence[RequestOutput], energy: EnergyMeasurement, phases: PhaseBreakdown | None
) -> RequestShares:
    """Each request's share of `energy`, in the order of `outputs`, all of which were generated in its window."""
    lives = [_Life(o.started_s, o.token_times_s[0], o.token_times_s[-1], o) for o in outputs if o.token_times_s]
    if not lives or len(lives) < len(outputs):
        return _none("the engine does not tell when tokens were there")
    if energy.total_j is None:
        return _none("no energy was measured")
    if min(life.started_s for life in lives) < energy.start_s or max(life.ended_s for life in lives) > energy.end_s:
        return _none("only a part of the generation was counted")
    instants_s = sorted({energy.start_s, energy.end_s, *(instant for life in lives for instant in life.instants_s)})
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
    weights = _weights(lives, phases)
    if weights is None:
        return _none("prefill and decode of different requests overlap, and their joules per token are not known")
    shares_j = _shares(lives, instants_s, traced.split(instants_s), weights)
    _add_up(shares_j, energy.total_j)
    return RequestShares(shares_j, _half_widths(lives, shares_j, traced, weights.relative_half_width))


@dataclass(frozen=True, slots=True)
class _Life:
    """When a request started, had its first token and its last, in seconds."""

    started_s: float
    first_s: float
    ended_s: float
    output: RequestOutput

    @property
    def instants_s(self) -> tuple[float, float, float]:
        return self.started_s, self.first_s, self.ended_s

    def powers_w(self, prefill_j: float, decode_j: float) -> tuple[float, float]:
        """Its weight while in prefill and while decoding: tokens per second times joules per token."""
        prefill_s, decode_s = self.first_s - self.started_s, self.ended_s - self.first_s
        further = self.output.output_tokens - 1
        return (
            prefill_j * self.output.input_tokens / prefill_s if prefill_s > 0 else 0.0,
            decode_j * further / decode_s if decode_s > 0 else 0.0,
        )


def _none(reason: str) -> RequestShares:
    return RequestShares(None, None, reason)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Joules of a token in prefill and in decode, and the relative 95 % half-width of one against the other."""

    prefill_j: float = 1.0
    decode_j: float = 1.0
    relative_half_width: float = 0.0


def _weights(lives: Sequence[_Life], phases: PhaseBreakdown | None) -> _Weights | None:
    """By the run's phases; no matter where no gap holds both, and `None` where it matters and nobody knows."""
    if not _overlap(lives):
        return _Weights()
    told = (phases.prefill, phases.decode) if phases is not None else ()
    known = [(part, part.energy_j) for part in told if part is not None and (part.energy_j or 0.0) > 0 and part.tokens]
    if len(known) < 2:
        return None
    prefill_j, decode_j = ((energy_j or 0.0) / part.tokens for part, energy_j in known)
    widths = [part.uncertainty.comparative_j / energy_j for part, energy_j in known if part.uncertainty and energy_j]
    return _Weights(prefill_j, decode_j, math.hypot(*widths))


def _overlap(lives: Sequence[_Life]) -> bool:
    """Whether some request decodes while another one is in prefill."""
    prefills = sorted((life.started_s, life.first_s) for life in lives)
    starts_s = [start_s for start_s, _ in prefills]
    latest_s = list(accumulate((end_s for _, end_s in prefills), max))

    def meets_prefill(life: _Life) -> bool:
        """Whether some prefill that starts before its decoding ends is over only after that has begun."""
        index = bisect_left(starts_s, life.ended_s) - 1
        return index >= 0 and latest_s[index] > life.first_s

    return any(life.first_s < life.ended_s and meets_prefill(life) for life in lives)


def _shares(
    lives: Sequence[_Life],
    instants_s: Sequence[float],
    gaps_j: Sequence[float],
    weights: _Weights,
) -> array[float]:
    """What each request gets of every gap, by sums over gaps: a request weighs the same all through a phase."""
    place = {instant_s: index for index, instant_s in enumerate(instants_s)}
    powers_w = [life.powers_w(weights.prefill_j, weights.decode_j) for life in lives]
    changes = [0.0] * len(instants_s)
    for life, (prefill_w, decode_w) in zip(lives, powers_w, strict=True):
        changes[place[life.started_s]] += prefill_w
        changes[place[life.first_s]] += decode_w - prefill_w
        changes[place[life.ended_s]] -= decode_w
    active = _active(lives, place, len(gaps_j))
    # What is left of a sum after everybody has gone is rounding, not weight.
    weights_w = [max(0.0, weight) if busy else 0.0 for weight, busy in zip(accumulate(changes), active, strict=False)]
    per_weight = [gap_j / weight if weight > 0 else 0.0 for gap_j, weight in zip(gaps_j, weights_w, strict=True)]
    so_far = [0.0, *accumulate(per_weight)]
    idle_j = math.fsum(gap_j for gap_j, weight in zip(gaps_j, weights_w, strict=True) if weight <= 0)
    busy_s = math.fsum(life.ended_s - life.started_s for life in lives)
    shares_j = array("d")
    for life, (prefill_w, decode_w) in zip(lives, powers_w, strict=True):
        start, first, end = (so_far[place[instant_s]] for instant_s in life.instants_s)
        idle_share = (life.ended_s - life.started_s) / busy_s if busy_s > 0 else 1.0 / len(lives)
        shares_j.append(prefill_w * (first - start) + decode_w * (end - first) + idle_j * idle_share)
    return shares_j


def _active(lives: Sequence[_Life], place: dict[float, int], gaps: int) -> list[bool]:
    """Of each gap, whether some request is active in it."""
    changes = [0] * (gaps + 1)
    for life in lives:
        changes[place[life.started_s]] += 1
        changes[place[life.ended_s]] -= 1
    return [count > 0 for count in accumulate(changes)][:gaps]


def _add_up(shares_j: array[float], total_j: float) -> None:
    """Put what rounding has left of the total to the largest share, and what that is too coarse for to the next."""
    for index in heapq.nlargest(CORRECTIONS, range(len(shares_j)), key=shares_j.__getitem__):
        if math.fsum(shares_j) == total_j:
            return
        left_j = math.fsum((total_j, *(-share_j for share_j in shares_j)))
        shares_j[index] = max(0.0, shares_j[index] + left_j)


def _half_widths(
    lives: Sequence[_Life], shares_j: Sequence[float], traced: TracedWindow, weighing: float
) -> array[float]:
    """95 % half-widths: those of the energy of each request's time, by its share of that, and of the weights.

    They are worked out for some requests, from the least to the most expensive, and relative ones are interpolated
    between these: each takes a pass over the trace.

    Args:
        weighing: Relative half-width of the weights.
    """
    order = sorted(range(len(lives)), key=shares_j.__getitem__)
    count = min(len(order), WORKED_OUT)
    ranks = sorted({round(k * (len(order) - 1) / max(1, count - 1)) for k in range(count)})
    relative = [math.hypot(_relative_width(lives[order[rank]], traced), weighing) for rank in ranks]
    widths_j = array("d", bytes(8 * len(lives)))
    for rank, request in enumerate(order):
        above = bisect_left(ranks, rank)
        below = max(0, above - 1)
        towards = (rank - ranks[below]) / (ranks[above] - ranks[below]) if above > below else 0.0
        widths_j[request] = shares_j[request] * (relative[below] + towards * (relative[above] - relative[below]))
    return widths_j


def _relative_width(life: _Life, traced: TracedWindow) -> float:
    """Relative half-width, without the sensor's gain, of all the energy of a request's time."""
    part = traced.part([(life.started_s, life.ended_s)])
    return comparative_half_width(part.components) / part.total_j if part.total_j > 0 else 0.0
