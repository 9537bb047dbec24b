"""Two samples of a positive figure: their ratio, its interval, and tests of it.

    d = mean(ln B) - mean(ln A)     s² = sA²/nA + sB²/nB     half-width² = (t s)² + U²

Logarithms make a change symmetrical: B against A is exactly the inverse of A against B. `U` is the 95 % half-width of
what the repeats do not show, taken as normal. In quadrature it can only widen the interval and raise p: no test finds
more than Welch's own would. Each p is the one that belongs to the intervals.

Degrees of freedom are Welch's where both sides have as many runs, else one less than the runs of the smaller side: with
two runs against ten, Welch's own would call one A/A comparison in ten different.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from llenergymeasure.domain.comparison import SIGNIFICANCE
from llenergymeasure.results.student_t import student_t_quantile, student_t_tail

LEAST_RUNS: Final = 2
"""Runs on each side without which there is no spread to test against."""

POWER: Final = 0.8
"""Share of cases, at least, in which a change of the size that a gate states to find is found, from three runs on."""

_AIMED_AT: Final = 0.9
"""Power that is reckoned with to reach `POWER`: what a few runs say about their own spread is uncertain."""

_LARGEST_LOG: Final = 300.0
"""Beyond this a change is no number that anybody reads, and soon none that a float holds."""

_LEAST_PROBABILITY: Final = 1e-300
"""Smaller ones are as good as none."""

_NORMAL: Final = statistics.NormalDist()


@dataclass(frozen=True, slots=True)
class Contrast:
    """What two samples say about the logarithm of the ratio of their figures.

    Args:
        standard_error: Of the spread over the runs.
        systematic: Standard uncertainty of what repeats do not show.
    """

    log_ratio: float
    standard_error: float
    degrees_of_freedom: float
    systematic: float = 0.0

    def interval_pct(self) -> tuple[float, float]:
        """The 95 % interval of the change, in per cent."""
        half_width = self._distance_at(0.025)
        return as_pct(self.log_ratio - half_width), as_pct(self.log_ratio + half_width)

    def p_different(self) -> float:
        """Two-sided probability of at least so much if there were no difference."""
        return min(1.0, 2 * self._probability_of(abs(self.log_ratio)))

    def p_above(self, limit_pct: float) -> float:
        """Probability of at least so much if the change were `limit_pct`."""
        return self._probability_of(self.log_ratio - math.log1p(limit_pct / 100))

    def inverse(self) -> Contrast:
        """The first sample against the second."""
        return replace(self, log_ratio=-self.log_ratio)

    def finds_pct(self, limit_pct: float, tests: int) -> float:
        """True change, in per cent, that a one-sided test against a limit finds with a probability of `POWER` or more.

        By the normal approximation of the noncentral t distribution (Abramowitz and Stegun, 26.7.10).

        Args:
            tests: That many are corrected for; the strictest of them counts.
        """
        v, p = self.degrees_of_freedom, SIGNIFICANCE / tests
        t = student_t_quantile(1 - p, v)
        beyond = _NORMAL.inv_cdf(_AIMED_AT) * math.sqrt(1 + t * t / (2 * v)) - t / (4 * v)
        return as_pct(math.log1p(limit_pct / 100) + self._distance_at(p) + beyond * self.standard_error)

    def _distance_at(self, p: float) -> float:
        """The distance that is exceeded with probability `p`, below one half."""
        t = student_t_quantile(1 - p, self.degrees_of_freedom)
        return math.hypot(t * self.standard_error, _NORMAL.inv_cdf(1 - p) * self.systematic)

    def _probability_of(self, distance: float) -> float:
        """Probability of more than `distance`: the `p` whose `_distance_at` it is, by bisection on t."""
        if distance < 0:
            return 1 - self._probability_of(-distance)
        if self.standard_error == 0 or self.systematic == 0:
            return self._of_one_kind(distance)
        low, high = 0.0, distance / self.standard_error
        while low < (t := (low + high) / 2) < high:
            z = -_NORMAL.inv_cdf(max(student_t_tail(t, self.degrees_of_freedom), _LEAST_PROBABILITY))
            if math.hypot(t * self.standard_error, z * self.systematic) < distance:
                low = t
            else:
                high = t
        return student_t_tail(low, self.degrees_of_freedom)

    def _of_one_kind(self, distance: float) -> float:
        if self.standard_error:
            return student_t_tail(distance / self.standard_error, self.degrees_of_freedom)
        if self.systematic:
            return _NORMAL.cdf(-distance / self.systematic)
        return 0.0 if distance else 0.5


def contrast(first: Sequence[float], second: Sequence[float], systematic_pct: float = 0.0) -> Contrast:
    """The second sample against the first; both positive, at least `LEAST_RUNS` each.

    Args:
        systematic_pct: 95 % half-width of what repeats do not show, in per cent of the ratio.
    """
    logs = [[math.log(value) for value in side] for side in (first, second)]
    means = [statistics.fmean(side) for side in logs]
    squares = [math.fsum((value - mean) ** 2 for value in side) for side, mean in zip(logs, means, strict=True)]
    parts = [square / (len(side) - 1) / len(side) for side, square in zip(logs, squares, strict=True)]
    return Contrast(
        log_ratio=means[1] - means[0],
        standard_error=math.sqrt(sum(parts)),
        degrees_of_freedom=_degrees_of_freedom(parts, [len(side) for side in logs]),
        systematic=math.log1p(systematic_pct / 100) / _NORMAL.inv_cdf(0.975),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number, so that the error over all of them is bounded (Holm, 1979)."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that goes with ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def log_spread_pct(values: Sequence[float]) -> float | None:
    """Standard deviation of the logarithm in per cent, `None` below two values."""
    return 100 * statistics.stdev(map(math.log, values)) if len(values) >= LEAST_RUNS else None


def as_pct(log_ratio: float) -> float:
    """The logarithm of a ratio as a change in per cent."""
    return 100 * math.expm1(min(log_ratio, _LARGEST_LOG))


def _degrees_of_freedom(parts: Sequence[float], counts: Sequence[int]) -> float:
    scatter = sum(parts)
    if counts[0] != counts[1] or not scatter:
        return min(counts) - 1
    return scatter**2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
