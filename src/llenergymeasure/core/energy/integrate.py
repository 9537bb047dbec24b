"""From sampled power to energy: the trapezoidal rule between two instants."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from llenergymeasure.exceptions import EnergyError


class TraceTooShortError(EnergyError):
    """A power trace does not reach over the whole window."""


def integrate_power(times_s: Sequence[float], power_w: Sequence[float], start_s: float, end_s: float) -> float:
    """Energy in joules between two instants of a sampled power signal.

    Piecewise-linear between samples; samples just outside the window fix its edges. Equal neighbours are kept: a
    constant signal is the commonest case, not a duplicate. Two samples at one time make a step. The sum is correctly
    rounded (`math.fsum`), so it does not depend on how the samples were stored or grouped.

    Raises:
        TraceTooShortError: No sample at or before `start_s`, or at or after `end_s`; extrapolating would invent energy.
        ValueError: The two sequences differ in length, the window ends before it starts, or times or powers inside it
            are out of order or not finite.
    """
    if len(times_s) != len(power_w):
        raise ValueError(f"{len(times_s)} times but {len(power_w)} powers")
    if not start_s <= end_s:
        raise ValueError(f"a window cannot end ({end_s} s) before it starts ({start_s} s)")
    first = bisect_right(times_s, start_s) - 1
    last = bisect_left(times_s, end_s)
    if first < 0 or last == len(times_s):
        raise TraceTooShortError(_too_short(times_s, start_s, end_s))
    return math.fsum(_trapezoids(times_s, power_w, first, last, start_s, end_s))


def _trapezoids(
    times_s: Sequence[float], power_w: Sequence[float], first: int, last: int, start_s: float, end_s: float
) -> Iterator[float]:
    """Energy of each stretch between neighbours from sample `first` to `last`, cut at the window's edges."""
    t0, p0 = times_s[first], power_w[first]
    for i in range(first + 1, last + 1):
        t1, p1 = times_s[i], power_w[i]
        if not (t1 >= t0 and math.isfinite(p0) and math.isfinite(p1)):
            raise ValueError(f"power samples must be finite and in order of time; at {t1} s they are not")
        if t1 > t0:
            a, b = max(t0, start_s), min(t1, end_s)
            slope = (p1 - p0) / (t1 - t0)
            yield (p0 + slope * (0.5 * (a + b) - t0)) * (b - a)
        t0, p0 = t1, p1


def _too_short(times_s: Sequence[float], start_s: float, end_s: float) -> str:
    if not len(times_s):
        return "no power samples at all"
    return (
        f"power samples from {times_s[0]:.3f} s to {times_s[-1]:.3f} s do not reach over the window "
        f"from {start_s:.3f} s to {end_s:.3f} s"
    )
