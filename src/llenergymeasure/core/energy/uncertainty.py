"""The error budget of an energy figure: 95 % half-widths in joules, each from one cause.

The components of one figure are independent and add in quadrature (GUM, JCGM 100:2008, 5.1.2); with the gain they give
the *absolute* uncertainty, without it the *comparative* one, because two runs on one board share the gain
(`domain.energy.combine_budget`). Several boards have sensors of their own: their time errors are independent and add in
quadrature, their gains may share a cause and add linearly (5.2.2, note 1; `domain.energy.sum_budgets`).

| component            | of                | where it comes from                                                      |
|----------------------|-------------------|--------------------------------------------------------------------------|
| gain                 | every meter       | the sensor's proportional error; only an external meter can better it    |
| counter resolution   | hardware counter  | the counter's steps at the window's edges (fusion.py)                    |
| sampling             | integral, counter | where, between two samples, the power changed                            |
| aliasing             | integral, counter | a load in step with the sampling makes the same error again and again    |
| sensor               | integral, counter | a sample is older than its time stamp and an average over the past       |
| clock offset         | other machines    | how well the clock of a board's machine is known (several.py)            |

Sampling, aliasing and sensor are those of a counter too, unless it is known to count what the power sensor does not
see.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from llenergymeasure.core.energy.fusion import FusedEnergy
from llenergymeasure.core.energy.types import BoardRecord, PowerSampling
from llenergymeasure.domain.energy import BudgetComponent, EnergyUncertainty, combine_budget, related

Z95: Final = 1.96
"""Half-width of 95 % in standard deviations of a normal distribution (JCGM 100:2008, table G.1)."""

SENSOR_NOISE_W: Final = 2.0
NOISE_SHARE: Final = 0.015
"""So much, in watts or as a share of the power, do single readings scatter at most where no calibration tells.

Calibrations found 10.0 W at 682 W and 7.4 W at 691 W (docs/validation: an H100 and an H200)."""

CLEAR_OF_NOISE: Final = 3.0
"""By more standard deviations than this no reading scatters: it is the load that changes."""

BEND_VARIANCE: Final = 6.0
"""Of `p0 - 2 p1 + p2` for independent readings of variance 1; a trend cancels in it."""

RECTANGULAR: Final = 1.0 / 12.0
"""Variance of a rectangular distribution of width 1 (JCGM 100:2008, 4.3.7)."""

MIN_UNSEEN_SHARE: Final = 0.1
"""Even a sensor that averages all the time misses some: sampler and sensor do not run in step."""

EVENLY_SEEN_SHARE: Final = 0.05
"""A sensor that misses less than this cannot be fooled by a load in step with it."""

LONGEST_PATTERN_S: Final = 2.0
SHORTEST_SEARCH: Final = 20
"""A load is taken to be in step with the sampling when it repeats within so many seconds, or within so many samples."""

FEWEST_REPEATS: Final = 3
"""A pattern must repeat so often to be called one."""

REPEAT_TOLERANCE: Final = 0.05
"""Mean square difference of a repeated stretch up to which it is the same pattern, as a share of twice the variance."""

PATTERN_SAMPLES: Final = 2000
"""So many samples at the end of the window are searched for a pattern."""


def gain_component(energy_j: float, gain_uncertainty_pct: float) -> BudgetComponent:
    """The sensor's proportional error, from the 95 % half-width of its gain.

    NVIDIA states ±5 %; single boards were found between -5.5 % and +11 % (arXiv 2312.02741).
    """
    return BudgetComponent(
        name="sensor gain",
        half_width_j=abs(energy_j) * gain_uncertainty_pct / 100.0,
        kind="gain",
        note=f"{gain_uncertainty_pct:g} % of the energy; cancels when runs on one board are compared",
    )


def counter_component(fused: FusedEnergy) -> BudgetComponent:
    """The counter's steps at the window's edges, as the fusion (or its fallback) left them."""
    note = "counter steps bounded by the power samples at the window's edges"
    if fused.fallback_reason:
        note = f"plain counter difference: {fused.fallback_reason}"
    return BudgetComponent(
        name="counter resolution", kind="counter_resolution", half_width_j=fused.half_width_j, note=note
    )


def clock_components(power_w: Sequence[float], board: BoardRecord) -> tuple[BudgetComponent, ...]:
    """What the edges of a window may be misplaced by on a board of another machine, whose clock was compared."""
    if board.elsewhere is None:
        return ()
    place, highest_w = board.elsewhere, max(power_w, default=board.power_limit_w or 0.0)
    return (
        BudgetComponent(
            name="clock offset",
            half_width_j=2.0 * place.half_width_s * highest_w,
            kind="clock",
            note=f"the clock of {place.node} is known to {1000.0 * place.half_width_s:.3g} ms; at the highest power",
        ),
    )


def unseen_components(
    times_s: Sequence[float], power_w: Sequence[float], start_s: float, end_s: float, board: BoardRecord
) -> tuple[BudgetComponent, ...]:
    """What a counter that adds up the sensor's readings misses: what the integral of these misses.

    Whether it does is not known of most boards; until a calibration tells, the interval holds both kinds of counter.
    """
    known = "as" if board.sensor.counter_follows_sensor else "in case"
    return tuple(
        part.model_copy(update={"note": f"{known} the counter adds up what the sensor sees: {part.note}"})
        for part in integral_components(times_s, power_w, start_s, end_s, board.sampling)
    )


def integral_components(
    times_s: Sequence[float], power_w: Sequence[float], start_s: float, end_s: float, sampling: PowerSampling
) -> tuple[BudgetComponent, ...]:
    """What the integral of power samples cannot know, estimated from the samples themselves.

    *Sampling.* A change of power `d` between samples `h` apart happened at an unknown moment: an error of up to
    `d h / 2` either way, rectangular. Fluctuations faster than the samples show as neighbouring changes of opposite
    sign; one sample then stands for an interval it says little about, with the fluctuation's own variance. Both shrink
    by the share of time that the sensor sees; the scatter of single readings, which bends the trace, does not.
    *Aliasing.* When the samples repeat a pattern from one end of the window to the other, these errors repeat too and
    add linearly. *Sensor.* Samples lag behind; a lag moves energy across the edges of the window where the power there
    differs.

    A load that swings (almost) exactly with the sensor's updates looks steady; only the counter can tell, and the audit
    of both does.
    """
    oldest_s = sampling.averaging_window_s + sampling.unread_s
    return trace_components(times_s, power_w, ((start_s, end_s),), sampling, oldest_s)


def trace_components(
    times_s: Sequence[float],
    power_w: Sequence[float],
    spans: Sequence[tuple[float, float]],
    sampling: PowerSampling,
    misplaced_s: float,
) -> tuple[BudgetComponent, ...]:
    """`integral_components` of the sum over several stretches of one trace.

    What happened between samples is another matter in each stretch and adds in quadrature; samples that are misplaced
    are so in all of them, and that adds linearly.

    Args:
        misplaced_s: How far from its place in time what a sample shows may be, in seconds.
    """
    variance_j2 = repeated_j2 = 0.0
    samples = repeats = 0
    for start_s, end_s in spans:
        first, last = max(0, bisect_right(times_s, start_s) - 1), bisect_left(times_s, end_s)
        times, power = _thinned(times_s[first : last + 1], power_w[first : last + 1], sampling.update_s)
        span_j2 = _sampling_variance(times, power, sampling)
        step_s = _mean_step_s(times)
        sees_all = _unseen_share(sampling.averaging_window_s / step_s) <= EVENLY_SEEN_SHARE
        longest = max(SHORTEST_SEARCH, round(LONGEST_PATTERN_S / step_s))
        span_repeats = 0 if sees_all or span_j2 == 0.0 else _repeats(power, longest)
        variance_j2 += span_j2
        repeated_j2 += span_j2 * max(0, span_repeats - 1)
        repeats = max(repeats, span_repeats)
        samples += len(times)
    factor = coverage_factor(samples - 2 * len(spans))
    return (
        BudgetComponent(
            name="sampling",
            half_width_j=factor * math.sqrt(variance_j2),
            kind="sampling",
            note=f"changes between {samples} samples",
        ),
        BudgetComponent(
            name="aliasing",
            half_width_j=factor * math.sqrt(repeated_j2),
            kind="aliasing",
            note=f"the load repeats {repeats} times in step with the sampling" if repeats else "no pattern in step",
        ),
        BudgetComponent(
            name="sensor lag",
            half_width_j=math.fsum(_lag_half_width(times_s, power_w, *span, misplaced_s) for span in spans),
            kind="sensor",
            note="samples are averages over the past",
        ),
    )


@dataclass(frozen=True, slots=True)
class IdleEnergy:
    """What idle power amounts to over a window, and the 95 % half-width of that without the sensor's gain."""

    energy_j: float
    half_width_j: float


def stated_uncertainty(
    energy_j: float,
    components: Sequence[BudgetComponent],
    output_tokens: int | None = None,
    idle: IdleEnergy | None = None,
) -> EnergyUncertainty | None:
    """The uncertainty of an energy figure as a result states it; `None` for an estimate, which has no budget.

    Args:
        output_tokens: Tokens that it is divided by, for the half-widths per token.
        idle: What is subtracted from it for the figure above idle; `None`: nothing is.
    """
    if not components:
        return None
    lines = [*components]
    if idle is not None:
        note = "half-width of the idle power times the window's length"
        lines.append(BudgetComponent(name="idle power", kind="baseline", half_width_j=idle.half_width_j, note=note))
    above_idle = 1.0 if idle is None or not energy_j else abs(energy_j - idle.energy_j) / energy_j
    return combine_budget([related(line, energy_j) for line in lines], output_tokens, above_idle)


def coverage_factor(degrees_of_freedom: int) -> float:
    """Half-width of 95 % in standard deviations that were themselves estimated from few values.

    Student's t by a series in the degrees of freedom, within 2 % of JCGM 100:2008, table G.2, from 3 on.
    """
    freedom = max(1, degrees_of_freedom)
    return Z95 + 2.5 / freedom + 3.0 / freedom**2


def _thinned(times_s: Sequence[float], power_w: Sequence[float], update_s: float) -> tuple[list[float], list[float]]:
    """Samples at least an update apart: what was read in between is the same value again."""
    kept_s, kept_w, last_s, apart_s = list[float](), list[float](), -math.inf, 0.9 * update_s
    for time_s, watts in zip(times_s, power_w, strict=True):
        if time_s - last_s >= apart_s:
            kept_s.append(time_s)
            kept_w.append(watts)
            last_s = time_s
    return kept_s, kept_w


def _sampling_variance(times: Sequence[float], power: Sequence[float], sampling: PowerSampling) -> float:
    """Variance in J² of the integral for what happened between the samples."""
    if len(times) < 2:
        return 0.0
    steps_s = [b - a for a, b in pairwise(times)]
    changes_w = [b - a for a, b in pairwise(power)]
    unseen = max(MIN_UNSEEN_SHARE, _unseen_share(sampling.averaging_window_s / _mean_step_s(times)))
    neighbours = list(pairwise(changes_w))
    fluctuation_w2 = max(0.0, _mean([-a * b for a, b in neighbours]))
    bends_w2 = [(b - a) ** 2 / BEND_VARIANCE for a, b in neighbours]
    noise_w = max(SENSOR_NOISE_W, NOISE_SHARE * _mean(power) if sampling.noise_w is None else sampling.noise_w)
    scatter_w2 = _mean([bend for bend in bends_w2 if bend <= (CLEAR_OF_NOISE * noise_w) ** 2])
    edges_j2 = math.fsum((d * h) ** 2 for d, h in zip(changes_w, steps_s, strict=True)) * RECTANGULAR
    noise_w2 = max(unseen * fluctuation_w2, min(scatter_w2, noise_w**2))
    return unseen * edges_j2 + noise_w2 * math.fsum(h * h for h in steps_s)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _unseen_share(averages_per_step: float) -> float:
    """Share of the power's changes that samples weigh wrongly, where each averages over so many steps between them.

    With `n + f` steps (`f` below 1) a moment is in `n + 1` averages or in `n`, with the odds of `f`; the share follows
    from the variance of that weight. Below one step it is the time that no sample sees; of whole steps it is nothing.
    """
    if averages_per_step <= 0.0:
        return 1.0
    odd = averages_per_step % 1.0
    variance = odd * (1.0 - odd) / averages_per_step**2
    return variance / (1.0 + variance)


def _mean_step_s(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1) if times and times[-1] > times[0] else math.inf


def _repeats(power: Sequence[float], longest: int) -> int:
    """How often a pattern of at most `longest` samples repeats in the trace; 0: there is none that holds."""
    searched = power[-PATTERN_SAMPLES:]
    mean = math.fsum(searched) / len(searched)
    same_w2 = REPEAT_TOLERANCE * 2.0 * math.fsum((w - mean) ** 2 for w in searched) / len(searched)

    def is_same(lag: int) -> bool:
        changes = [b - a for a, b in zip(searched, searched[lag:], strict=False)]
        return math.fsum(change**2 for change in changes) / len(changes) <= same_w2

    for lag in range(2, min(longest, len(searched) // FEWEST_REPEATS) + 1):
        # A pattern that drifts against the sampling still looks like its neighbour, but not like one far away.
        if is_same(lag) and is_same(lag * max(1, len(searched) // (2 * lag))):
            return len(power) // lag
    return 0


def _lag_half_width(
    times_s: Sequence[float], power_w: Sequence[float], start_s: float, end_s: float, misplaced_s: float
) -> float:
    """Energy in joules that misplaced samples move across the edges of a window."""

    def near(edge_s: float) -> Sequence[float]:
        first = max(0, bisect_left(times_s, edge_s - misplaced_s) - 1)
        return power_w[first : bisect_right(times_s, edge_s + misplaced_s) + 1]

    at_start, at_end = near(start_s), near(end_s)
    if not at_start or not at_end:
        return 0.0
    return misplaced_s * max(max(at_start) - min(at_end), max(at_end) - min(at_start))
