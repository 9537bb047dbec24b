"""Two samples of a positive figure: their ratio, its interval, and tests of it.

    d = mean(ln B) - mean(ln A)     s² = sA²/nA + sB²/nB + (U/1.96)²     t = d/s

Logarithms make a change symmetrical: B against A is exactly the inverse of A against B. `U` is the 95 % half-width of
what the repeats do not show; it widens interval and tests alike (GUM, JCGM 100:2008, G.4, infinite degrees of freedom).

Degrees of freedom are Welch's where both sides have as many runs, else one less than the runs of the smaller side: with
two runs against ten, Welch's own would call one A/A comparison in ten different.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.comparison import SIGNIFICANCE
from llenergymeasure.results.student_t import student_t_quantile, student_t_tail

LEAST_RUNS: Final = 2
"""Runs on each side without which there is no spread to test against."""

MAX_DEGREES_OF_FREEDOM: Final = 1e5
"""As good as infinitely many, and on the safe side of them."""

POWER: Final = 0.8
"""Share of cases in which a change of the size that a gate states to find is found."""

_LARGEST_LOG: Final = 300.0
"""Beyond this a change is no number that anybody reads, and soon none that a float holds."""

_COVERAGE: Final = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Contrast:
    """What two samples say about the logarithm of the ratio of their figures."""

    log_ratio: float
    standard_error: float
    degrees_of_freedom: float

    def interval_pct(self) -> tuple[float, float]:
        """The 95 % interval of the change, in per cent."""
        half_width = student_t_quantile(0.975, self.degrees_of_freedom) * self.standard_error
        return as_pct(self.log_ratio - half_width), as_pct(self.log_ratio + half_width)

    def p_different(self) -> float:
        """Two-sided probability of at least so much if there were no difference."""
        return min(1.0, 2 * self._tail(abs(self.log_ratio)))

    def p_above(self, limit_pct: float) -> float:
        """Probability of at least so much if the change were `limit_pct`."""
        return self._tail(self.log_ratio - math.log1p(limit_pct / 100))

    def inverse(self) -> Contrast:
        """The first sample against the second."""
        return Contrast(-self.log_ratio, self.standard_error, self.degrees_of_freedom)

    def finds_pct(self, limit_pct: float, tests: int) -> float:
        """True change, in per cent, that a one-sided test against a limit finds with a probability of `POWER`.

        Args:
            tests: That many are corrected for; the strictest of them is meant.
        """
        return limit_found_pct(self.standard_error, self.degrees_of_freedom, limit_pct, tests)

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return 0.0 if distance > 0 else 1.0
        return student_t_tail(distance / self.standard_error, self.degrees_of_freedom)


def contrast(first: Sequence[float], second: Sequence[float], systematic_pct: float = 0.0) -> Contrast:
    """The second sample against the first; both positive, at least `LEAST_RUNS` each.

    Args:
        systematic_pct: 95 % half-width of what repeats do not show, in per cent of the ratio.
    """
    logs = [[math.log(value) for value in side] for side in (first, second)]
    parts = [statistics.variance(side) / len(side) for side in logs]
    scatter = sum(parts)
    total = scatter + (math.log1p(systematic_pct / 100) / _COVERAGE) ** 2
    degrees = _random_degrees(parts, [len(side) for side in logs])
    stretched = degrees * (total / scatter) ** 2 if scatter else MAX_DEGREES_OF_FREEDOM
    log_ratio = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    return Contrast(log_ratio, math.sqrt(total), min(stretched, MAX_DEGREES_OF_FREEDOM))


def limit_found_pct(standard_error: float, degrees_of_freedom: float, limit_pct: float, tests: int = 1) -> float:
    """See `Contrast.finds_pct`; the standard error is of the logarithm."""
    quantiles = [student_t_quantile(p, degrees_of_freedom) for p in (1 - SIGNIFICANCE / tests, POWER)]
    return as_pct(math.log1p(limit_pct / 100) + sum(quantiles) * standard_error)


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


def _random_degrees(parts: Sequence[float], counts: Sequence[int]) -> float:
    scatter = sum(parts)
    if counts[0] != counts[1] or not scatter:
        return min(counts) - 1
    return scatter**2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
