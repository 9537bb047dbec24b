"""Student's t distribution for any degrees of freedom, whole or not, without a library for it at run time."""

from __future__ import annotations

import math
from typing import Final

_TINY: Final = 1e-300
"""Keeps the continued fraction's parts from being 0 (Lentz)."""


def student_t_tail(t: float, degrees_of_freedom: float) -> float:
    """Probability of more than `t`, to nine digits up to 100,000 degrees of freedom.

    Raises:
        ValueError: The degrees of freedom are not above 0.
    """
    v = degrees_of_freedom
    if not v > 0:
        raise ValueError(f"degrees of freedom must be above 0, not {v}")
    if t < 0:
        return 1 - student_t_tail(-t, v)
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(v / 2, 0.5, v / (v + t * t), t * t / (v + t * t)) / 2


def student_t_quantile(p: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution, by bisection on the angle atan(t / sqrt(v)) to double precision.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < p < 1:
        raise ValueError(f"probability must be between 0 and 1, not {p}")
    if p < 0.5:
        return -student_t_quantile(1 - p, degrees_of_freedom)
    if not degrees_of_freedom > 0:
        raise ValueError(f"degrees of freedom must be above 0, not {degrees_of_freedom}")
    scale = math.sqrt(degrees_of_freedom)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if student_t_tail(math.tan(middle) * scale, degrees_of_freedom) > 1 - p:
            low = middle
        else:
            high = middle
    return math.tan(low) * scale


def _incomplete_beta(a: float, b: float, x: float, complement: float) -> float:
    """The regularised incomplete beta function. Numerical Recipes, 6.4; Abramowitz and Stegun, 26.5.8.

    Args:
        complement: 1 - x, which the caller knows without cancellation.
    """
    if x <= 0 or complement <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side converges fast
        return 1 - _incomplete_beta(b, a, complement, x)
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement)
    return math.exp(log_scale) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _apart(1 - (a + b) * x / (a + 1))
    value, m, step = d, 0, 0.0
    while abs(step - 1) > 1e-15:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            d, c = 1 / _apart(1 + part * d), _apart(1 + part / c)
            step = c * d
            value *= step
    return value


def _apart(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
