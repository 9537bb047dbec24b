"""Energy between two instants, finer than the counter's steps: counter and power samples fused at the window's edges.

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
was found on one side only, or on none, the plain counter difference is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.core.energy.counter import CounterStep, first_step, last_step, plain_counter_energy
from llenergymeasure.core.energy.types import CounterRead, SensorDescription

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


@dataclass(frozen=True, slots=True)
class FusedEnergy:
    """Energy of a window from counter and samples.

    Args:
        half_width_j: 95 % half-width from the counter's resolution, without the sensor's gain.
        start_step_s: When the counter moved just before the window; `None`: no step was found.
        used_fallback: The estimate is the plain difference of the counter.
        reason: Why it is; empty otherwise.
    """

    energy_j: float
    half_width_j: float
    start_step_s: float | None
    end_step_s: float | None
    used_fallback: bool = False
    reason: str = ""


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
        CounterError: The counter went backwards, stood still, or was not read on both sides.
    """
    plain_j = plain_counter_energy(before, after)
    seen = _look_at(samples, start_s, end_s, sensor)
    start_step, end_step = last_step(before), first_step(after)
    if start_step is None or end_step is None:
        side = "before" if start_step is None else "after"
        return FusedEnergy(
            energy_j=plain_j,
            half_width_j=plain_half_width(
                before[-1],
                after[0],
                seen.peak_inside_w,
                start_s,
                end_s,
                sensor,
                _watched_s(before if start_step is None else after),
            ),
            start_step_s=start_step.time_s if start_step else None,
            end_step_s=end_step.time_s if end_step else None,
            used_fallback=True,
            reason=f"no step of the counter was found {side} the window",
        )
    start_j, start_half_j = _total_at_start(start_step, start_s, seen, sensor)
    edge = _edge(start_step, end_step, after[0], end_s, sensor)
    end_j, end_half_j = _total_at_end(edge, _beliefs(seen, edge, start_s, end_s, sensor))
    ripple_j = _ripple_j(seen, (end_j - start_j) / max(end_s - start_s, 1e-9), sensor)
    return FusedEnergy(
        energy_j=end_j - start_j,
        half_width_j=end_half_j + start_half_j + ripple_j + COUNTER_RESOLUTION_J,
        start_step_s=start_step.time_s,
        end_step_s=end_step.time_s,
    )


def plain_half_width(
    before: CounterRead,
    after: CounterRead,
    peak_power_w: float | None,
    start_s: float,
    end_s: float,
    sensor: SensorDescription,
    watched_s: float = 0.0,
) -> float:
    """95 % half-width in joules of the plain counter difference of two reads around a window.

    Each read misses what flowed since the counter's last step and counts what flowed between it and the window's edge:
    rectangular between nothing and all of it (JCGM 100:2008, 4.3.7). What power each edge met is not known; the
    highest sample of the window stands for it, or the mean power where there are no samples. A counter that was watched
    for longer than its period without moving has a longer one, taken as twice that time.
    """
    duration_s = max(end_s - start_s, 1e-9)
    mean_w = (after.energy_j - before.energy_j) / duration_s
    power_w = max(mean_w, peak_power_w or 0.0)
    period_s = (sensor.counter_period_s or DEFAULT_PERIOD_S) + sensor.counter_period_tolerance_s
    period_s = max(period_s, 2.0 * watched_s)
    spans_s = (period_s + start_s - before.asked_s, period_s + after.answered_s - end_s)
    return 1.96 * power_w * math.hypot(*spans_s) / math.sqrt(12.0) + COUNTER_RESOLUTION_J


def _watched_s(reads: Sequence[CounterRead]) -> float:
    return reads[-1].answered_s - reads[0].asked_s


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


@dataclass(frozen=True, slots=True)
class _Belief:
    """Power before and after the end of the window, as some of the samples have it."""

    before_w: _Range
    after_w: _Range


def _beliefs(seen: _Seen, edge: _Edge, start_s: float, end_s: float, sensor: SensorDescription) -> Iterator[_Belief]:
    """From the narrowest to the widest: the samples around the end, those of the last second, all of them."""
    if seen.anywhere is None or sensor.averaging_window_s > SMOOTHED_S:
        return
    anywhere_w = _with_margin(seen.anywhere, sensor)
    # Without the counter's period nothing could refute a narrow belief.
    reaches_s = () if edge.since_last_s is None else (_near_s(sensor), RECENT_S)
    for reach_s in reaches_s:
        earlier = [w for t, w in seen.tail if max(start_s, end_s - reach_s) <= t <= end_s]
        if len(earlier) < MIN_SAMPLES:
            continue
        before_w = _with_margin(_Range(min(earlier), max(earlier)), sensor)
        around = [*earlier, *(w for t, w in seen.tail if t > end_s)]
        near_w = _with_margin(_Range(min(around), max(around)), sensor)
        yield _Belief(before_w, anywhere_w if reach_s == RECENT_S else near_w)
    yield _Belief(anywhere_w, anywhere_w)


def _total_at_end(edge: _Edge, beliefs: Iterable[_Belief]) -> tuple[float, float]:
    """Total and half-width in joules at the end of the window: by the first belief that the counter does not refute."""
    bounds = _Range(edge.last_j.low, edge.next_j.high)
    for belief in beliefs:
        both = edge.next_j.minus(belief.after_w.times(edge.until_next_s)).within(bounds)
        if edge.since_last_s is not None:
            both = edge.last_j.plus(belief.before_w.times(edge.since_last_s)).within(both)
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


def _total_at_start(step: CounterStep, start_s: float, seen: _Seen, sensor: SensorDescription) -> tuple[float, float]:
    """Total and half-width in joules at the start of the window, which lies just after `step`."""
    since_s = _Range(start_s - step.new.answered_s, start_s - step.old.asked_s)
    power_w = _with_margin(seen.anywhere, sensor) if seen.anywhere else _Range(0.0, _step_power_w(step, sensor))
    flowed_j = power_w.times(since_s)
    return step.new.energy_j + flowed_j.middle, 0.5 * (flowed_j.high - flowed_j.low)


def _period_s(start_step: CounterStep, end_step: CounterStep, sensor: SensorDescription) -> _Range | None:
    """The counter's period: as described, and narrower where the steps on both sides of the window can tell."""
    if sensor.counter_period_s is None:
        return None
    nominal_s, tolerance_s = sensor.counter_period_s, sensor.counter_period_tolerance_s
    nominal = _Range(nominal_s - tolerance_s, nominal_s + tolerance_s)
    apart = _Range(
        end_step.old.asked_s - start_step.new.answered_s - sensor.counter_jitter_s,
        end_step.new.answered_s - start_step.old.asked_s + sensor.counter_jitter_s,
    )
    periods = round(apart.middle / nominal_s)
    if periods * tolerance_s > 0.4 * nominal_s:
        return nominal  # too many periods to be counted
    if periods < 1:
        return None
    counted = _Range(apart.low / periods, apart.high / periods).within(nominal)
    if counted.low > counted.high:
        return None  # this counter does not keep the period it is said to have
    return _Range(counted.low - sensor.counter_jitter_s, counted.high + sensor.counter_jitter_s)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The power samples, as far as they are needed: their range, and those near the end of the window."""

    anywhere: _Range | None
    peak_inside_w: float | None
    tail: tuple[Sample, ...]


def _look_at(samples: Iterable[Sample], start_s: float, end_s: float, sensor: SensorDescription) -> _Seen:
    low, high, peak_inside = math.inf, -math.inf, -math.inf
    tail: list[Sample] = []
    for t, w in samples:
        if not math.isfinite(w):
            continue
        low, high = min(low, w), max(high, w)
        if start_s <= t <= end_s:
            peak_inside = max(peak_inside, w)
        if t >= end_s - max(RECENT_S, _near_s(sensor)):
            tail.append((t, w))
    return _Seen(
        anywhere=_Range(low, high) if low <= high else None,
        peak_inside_w=peak_inside if math.isfinite(peak_inside) else None,
        tail=tuple(tail),
    )


def _near_s(sensor: SensorDescription) -> float:
    return NEAR_S + 2.0 * sensor.averaging_window_s


def _with_margin(power_w: _Range, sensor: SensorDescription) -> _Range:
    """The power's range with a margin for what fell between the samples and what the sensor's average hid."""
    unseen_w = (SPREAD_MARGIN + SPREAD_MARGIN_PER_S * sensor.averaging_window_s) * (power_w.high - power_w.low)
    low_w = power_w.low * (1.0 - sensor.power_margin) - unseen_w
    return _Range(max(0.0, low_w), power_w.high * (1.0 + sensor.power_margin) + unseen_w)


def _ripple_j(seen: _Seen, mean_power_w: float, sensor: SensorDescription) -> float:
    """What may hide inside the sensor's averaging window: a load that swings faster than the sensor can follow.

    Such a load still makes the averages scatter a little; where they do not, nothing is allowed for.
    """
    if seen.anywhere is None:
        return 0.0
    spread_w = seen.anywhere.high - seen.anywhere.low
    ripple_s = RIPPLE_S + RIPPLE_PER_S * min(sensor.averaging_window_s, SMOOTHED_S)
    return min(ripple_s * mean_power_w, RIPPLE_SPREAD_S * spread_w)


def _step_power_w(step: CounterStep, sensor: SensorDescription) -> float:
    """Mean power over the period that ended with `step`, in watts."""
    return (step.new.energy_j - step.old.energy_j) / (sensor.counter_period_s or DEFAULT_PERIOD_S)
