"""Energy between two instants by a counter that moves in steps, and finer than those: fused with power samples.

At the end of a window the counter still shows the total of its last step; the next step comes up to one period later.
Energy only grows, so the total at the end lies between the two:

    counter                     C1 ------------+
                                |   energy     |
                  C0 -----------+              |            C0: first read after the end, C1: after the next step
                  :     before  |    after     :
                  |<---- x ---->|<---- y ----->|            x + y = the counter's period
               last step      end_s        next step

    C0 + power before the end * x  <=  E(end)  <=  C1 - power after the end * y     (and the other way round)

The power samples bound the power on both sides; what satisfies both sides at once is the answer, its middle the
estimate and half its width the uncertainty. Steady power makes the interval collapse; an edge of the load inside it
does not break it. Where the recent samples contradict the counter, all samples are believed instead; where those do
too, the steps alone bound the answer. Only the relation between samples and counter enters: the sensor's gain cancels.

The start of the window lies on a step that a burst of reads has just found, so little is left to do there. Where a step
was found on one side only, or on none, the plain counter difference is the answer, less what flowed between its reads
and the window's edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from llenergymeasure.core.energy.types import CounterRead, SensorDescription
from llenergymeasure.exceptions import EnergyError

NEAR_S: Final = 0.25
RECENT_S: Final = 1.0
"""How far back the samples reach that stand for the power at the end, in seconds: at first, and if the counter refutes
them."""

MIN_SAMPLES: Final = 2
"""Fewer samples than this stand for nothing."""

SPREAD_MARGIN: Final = 0.08
SPREAD_MARGIN_PER_S: Final = 2.0
"""How much farther than the samples show the power may have gone, as a share of their spread: a part for what fell
between the samples, and a part per second of the sensor's averaging window for what the average hid."""

RIPPLE_S: Final = 0.003
RIPPLE_PER_S: Final = 0.1
"""Allowance for load that swings faster than the sensor follows, as seconds of mean power: a part for every sensor, and
a part per second of its averaging window. These sizes and the two margins above make at least 95 % of the stated
intervals cover the truth over loads with periods of 20 ms to 5 s (benchmarks/energy_accuracy.py)."""

RIPPLE_SPREAD_S: Final = 0.03
"""The same as seconds of the samples' spread, where that is less: steady samples leave little room for a swing."""

SMOOTHED_S: Final = 0.2
"""Samples averaged over more than this many seconds say nothing about the power at one moment."""

COUNTER_RESOLUTION_J: Final = 0.001
"""NVML counts in millijoules."""

DEFAULT_PERIOD_S: Final = 0.1
"""Time between two steps of the counter of most NVIDIA boards, in seconds."""

Sample = tuple[float, float]
"""A power sample: seconds on the measurement clock, watts."""


class CounterError(EnergyError):
    """An energy counter's readings cannot be the energy of a window."""


@dataclass(frozen=True, slots=True)
class CounterStep:
    """The counter moved between two reads: after `old` was asked for, before `new` was answered."""

    old: CounterRead
    new: CounterRead

    @property
    def time_s(self) -> float:
        """The middle of the time in which it can have moved."""
        return 0.5 * (self.old.asked_s + self.new.answered_s)


def counter_steps(reads: Sequence[CounterRead]) -> list[CounterStep]:
    """Every move of the counter in these reads."""
    return [CounterStep(old, new) for old, new in pairwise(reads) if old.energy_j != new.energy_j]


def plain_counter_energy(before: Sequence[CounterRead], after: Sequence[CounterRead]) -> float:
    """Difference in joules of the reads nearest to a window: the last before it and the first after it.

    Raises:
        CounterError: No reads on one side, or the counter went backwards (it was reset), or it did not move at all.
    """
    if not before or not after:
        raise CounterError("the energy counter was not read on both sides of the window")
    totals_j = [read.energy_j for read in (*before, *after)]
    for earlier, later in pairwise(totals_j):
        if later < earlier:
            raise CounterError(
                f"the energy counter went backwards, from {earlier:.3f} J to {later:.3f} J: it was reset"
            )
    if totals_j[-1] == totals_j[0]:
        raise CounterError(f"the energy counter stood still at {totals_j[0]:.3f} J over the whole window")
    return after[0].energy_j - before[-1].energy_j


@dataclass(frozen=True, slots=True)
class FusedEnergy:
    """Energy of a window from counter and samples, and its 95 % half-width from the counter's resolution, without gain.

    Args:
        fallback_reason: Why the estimate is the plain difference of the counter; empty where it is not.
    """

    energy_j: float
    half_width_j: float
    fallback_reason: str = ""


def fuse_energy(
    before: Sequence[CounterRead],
    after: Sequence[CounterRead],
    samples: Iterable[Sample],
    start_s: float,
    end_s: float,
    sensor: SensorDescription,
) -> FusedEnergy:
    """Energy of the window from `start_s` to `end_s`, as the module's docstring draws it.

    Args:
        samples: In order of time, those just outside the window included.

    Raises:
        CounterError: The counter went backwards, stood still, was not read on both sides, or is too coarse for so short
            a window.
    """
    plain_j = plain_counter_energy(before, after)
    known = [(t, w) for t, w in samples if math.isfinite(w)]
    start_step = next(reversed(counter_steps(before)), None)
    end_step = next(iter(counter_steps(after)), None)
    if start_step is None or end_step is None:
        side, watched = ("before", before) if start_step is None else ("after", after)
        peak_w = max((w for t, w in known if start_s <= t <= end_s), default=0.0)
        watched_s = watched[-1].answered_s - watched[0].asked_s
        energy_j = plain_j - _flowed_outside_j(before[-1], after[0], known, start_s, end_s)
        _require_energy(energy_j, end_s - start_s)
        half_width_j = _plain_half_width(before[-1], after[0], watched_s, peak_w, start_s, end_s, sensor)
        return FusedEnergy(energy_j, half_width_j, f"no step of the counter was found {side} the window")
    anywhere_w = _range_of(w for _, w in known)
    start_j, start_half_j = _total_at_start(start_step, start_s, anywhere_w, sensor)
    edge = _edge(start_step, end_step, after[0], end_s, sensor)
    end_j, end_half_j = _total_at_end(edge, _beliefs(known, anywhere_w, edge, start_s, end_s, sensor))
    _require_energy(end_j - start_j, end_s - start_s)
    ripple_j = _ripple_j(anywhere_w, (end_j - start_j) / max(end_s - start_s, 1e-9), sensor)
    return FusedEnergy(end_j - start_j, end_half_j + start_half_j + ripple_j + COUNTER_RESOLUTION_J)


def _require_energy(energy_j: float, window_s: float) -> None:
    """Nothing runs on 0 J or less: a window of which the counter says so is shorter than it can tell."""
    if energy_j <= 0.0:
        raise CounterError(f"the energy counter cannot tell the energy of a window of {1000 * window_s:.3g} ms")


def _flowed_outside_j(
    before: CounterRead, after: CounterRead, samples: Sequence[Sample], start_s: float, end_s: float
) -> float:
    """What flowed from the last read before a window to its start, and from its end to the first read after it.

    Of many boards each is read in its turn: where a read takes long, the first and the last are far from the edges.
    """
    from_s, until_s = 0.5 * (before.asked_s + before.answered_s), 0.5 * (after.asked_s + after.answered_s)
    mean_w = (after.energy_j - before.energy_j) / max(until_s - from_s, 1e-9)

    def flowed_j(near_s: float, begins_s: float, ends_s: float) -> float:
        seen_w = [w for t, w in samples if near_s <= t <= ends_s] or [mean_w]
        return math.fsum(seen_w) / len(seen_w) * (ends_s - begins_s)

    return flowed_j(from_s - NEAR_S, from_s, start_s) + flowed_j(end_s, end_s, until_s)


def _plain_half_width(
    before: CounterRead,
    after: CounterRead,
    watched_s: float,
    peak_w: float,
    start_s: float,
    end_s: float,
    sensor: SensorDescription,
) -> float:
    """95 % half-width in joules of the plain counter difference of two reads around a window.

    Each read misses what flowed since the counter's last step and counts what flowed between it and the window's edge:
    rectangular between nothing and all of it (JCGM 100:2008, 4.3.7). What power each edge met is not known; the
    highest sample of the window stands for it, or the mean power where there are no samples. A counter that was watched
    for longer than its period without moving, now or when it was proved, has a longer one, taken as twice that time.
    """
    mean_w = (after.energy_j - before.energy_j) / max(end_s - start_s, 1e-9)
    period_s = (sensor.counter_period_s or DEFAULT_PERIOD_S) + sensor.counter_period_tolerance_s
    period_s = max(period_s, 2.0 * watched_s, 2.0 * sensor.counter_still_s)
    spans_s = (period_s + start_s - before.asked_s, period_s + after.answered_s - end_s)
    return 1.96 * max(mean_w, peak_w) * math.hypot(*spans_s) / math.sqrt(12.0) + COUNTER_RESOLUTION_J


@dataclass(frozen=True, slots=True)
class _Range:
    """All numbers from `low` to `high`; none when `low` is above `high`."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return 0.5 * (self.low + self.high)

    def plus(self, other: _Range) -> _Range:
        return _Range(self.low + other.low, self.high + other.high)

    def minus(self, other: _Range) -> _Range:
        return _Range(self.low - other.high, self.high - other.low)

    def times(self, other: _Range) -> _Range:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _Range(min(corners), max(corners))

    def within(self, other: _Range) -> _Range:
        return _Range(max(self.low, other.low), min(self.high, other.high))

    def widened(self, by: float) -> _Range:
        return _Range(self.low - by, self.high + by)


def _range_of(values: Iterable[float]) -> _Range | None:
    known = list(values)
    return _Range(min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class _Edge:
    """The end of a window between two steps of the counter: what the counter says, and how long either is away."""

    last_j: _Range
    next_j: _Range
    since_last_s: _Range | None
    until_next_s: _Range


def _edge(
    start_step: CounterStep, step: CounterStep, first_read: CounterRead, end_s: float, sensor: SensorDescription
) -> _Edge:
    until_next_s = _Range(max(0.0, step.old.asked_s - end_s), step.new.answered_s - end_s)
    period_s = _period_s(start_step, step, sensor)
    # Had the counter moved between the end and the first read after it, that read would show more than was there.
    late_j = _step_power_w(step, sensor) * (first_read.answered_s - end_s)
    return _Edge(
        last_j=_Range(step.old.energy_j - late_j, step.old.energy_j),
        next_j=_Range(step.new.energy_j, step.new.energy_j),
        since_last_s=period_s.minus(until_next_s) if period_s else None,
        until_next_s=until_next_s,
    )


def _beliefs(
    samples: Sequence[Sample],
    anywhere_w: _Range | None,
    edge: _Edge,
    start_s: float,
    end_s: float,
    sensor: SensorDescription,
) -> Iterator[tuple[_Range, _Range]]:
    """Power before and after the end: by the samples around it, by those of the last second, by all of them."""
    if anywhere_w is None or sensor.averaging_window_s > SMOOTHED_S:
        return
    widest_w = _with_margin(anywhere_w, sensor)
    # Without the counter's period nothing could refute a narrow belief.
    reaches_s = () if edge.since_last_s is None else (NEAR_S + 2.0 * sensor.averaging_window_s, RECENT_S)
    for reach_s in reaches_s:
        earlier = [w for t, w in samples if max(start_s, end_s - reach_s) <= t <= end_s]
        if len(earlier) < MIN_SAMPLES:
            continue
        around = [*earlier, *(w for t, w in samples if t > end_s)]
        before_w = _with_margin(_Range(min(earlier), max(earlier)), sensor)
        near_w = _with_margin(_Range(min(around), max(around)), sensor)
        yield before_w, widest_w if reach_s == RECENT_S else near_w
    yield widest_w, widest_w


def _total_at_end(edge: _Edge, beliefs: Iterable[tuple[_Range, _Range]]) -> tuple[float, float]:
    """Total and half-width in joules at the end of the window: by the first belief that the counter does not refute."""
    bounds = _Range(edge.last_j.low, edge.next_j.high)
    for before_w, after_w in beliefs:
        both = edge.next_j.minus(after_w.times(edge.until_next_s)).within(bounds)
        if edge.since_last_s is not None:
            both = edge.last_j.plus(before_w.times(edge.since_last_s)).within(both)
        if both.low <= both.high:
            bounds = both
            break
    total_j = _linear_j(edge)
    if total_j is None or not bounds.low <= total_j <= bounds.high:
        total_j = bounds.middle
    return total_j, max(total_j - bounds.low, bounds.high - total_j)


def _linear_j(edge: _Edge) -> float | None:
    """The total at the end of the window if power was steady between the two steps; `None`: the period is not known."""
    if edge.since_last_s is None:
        return None
    before_s, after_s = edge.since_last_s.middle, edge.until_next_s.middle
    if before_s < 0.0 or before_s + after_s <= 0.0:
        return None
    return edge.last_j.high + before_s / (before_s + after_s) * (edge.next_j.low - edge.last_j.high)


def _total_at_start(
    step: CounterStep, start_s: float, anywhere_w: _Range | None, sensor: SensorDescription
) -> tuple[float, float]:
    """Total and half-width in joules at the start of the window, which lies just after `step`."""
    since_s = _Range(start_s - step.new.answered_s, start_s - step.old.asked_s)
    power_w = _with_margin(anywhere_w, sensor) if anywhere_w else _Range(0.0, _step_power_w(step, sensor))
    flowed_j = power_w.times(since_s)
    return step.new.energy_j + flowed_j.middle, 0.5 * (flowed_j.high - flowed_j.low)


def _period_s(start_step: CounterStep, end_step: CounterStep, sensor: SensorDescription) -> _Range | None:
    """The counter's period: as described, and narrower where the steps on both sides of the window can tell."""
    if sensor.counter_period_s is None:
        return None
    nominal_s, tolerance_s = sensor.counter_period_s, sensor.counter_period_tolerance_s
    jitter_s = sensor.counter_jitter_s
    nominal = _Range(nominal_s, nominal_s).widened(tolerance_s)
    apart = _Range(
        end_step.old.asked_s - start_step.new.answered_s, end_step.new.answered_s - start_step.old.asked_s
    ).widened(jitter_s)
    periods = round(apart.middle / nominal_s)
    if periods * tolerance_s > 0.4 * nominal_s:
        return nominal  # too many periods to be counted
    if periods < 1:
        return None
    counted = _Range(apart.low / periods, apart.high / periods).within(nominal)
    # None: this counter does not keep the period it is said to have.
    return counted.widened(jitter_s) if counted.low <= counted.high else None


def _with_margin(power_w: _Range, sensor: SensorDescription) -> _Range:
    """The power's range with a margin for what fell between the samples and what the sensor's average hid."""
    unseen_w = (SPREAD_MARGIN + SPREAD_MARGIN_PER_S * sensor.averaging_window_s) * (power_w.high - power_w.low)
    low_w = power_w.low * (1.0 - sensor.power_margin) - unseen_w
    return _Range(max(0.0, low_w), power_w.high * (1.0 + sensor.power_margin) + unseen_w)


def _ripple_j(anywhere_w: _Range | None, mean_power_w: float, sensor: SensorDescription) -> float:
    """What may hide inside the sensor's averaging window: a load that swings faster than the sensor can follow.

    Such a load still makes the averages scatter a little; where they do not, nothing is allowed for.
    """
    if anywhere_w is None:
        return 0.0
    ripple_s = RIPPLE_S + RIPPLE_PER_S * min(sensor.averaging_window_s, SMOOTHED_S)
    return min(ripple_s * mean_power_w, RIPPLE_SPREAD_S * (anywhere_w.high - anywhere_w.low))


def _step_power_w(step: CounterStep, sensor: SensorDescription) -> float:
    """Mean power over the period that ended with `step`, in watts."""
    return (step.new.energy_j - step.old.energy_j) / (sensor.counter_period_s or DEFAULT_PERIOD_S)
