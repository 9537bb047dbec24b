"""Figures as people read them: sensible digits, a unit, and neither `0.0 s` nor `1e-07`."""

from __future__ import annotations

import math
from typing import Final

_PREFIXES: Final = ((1.0, ""), (1e3, "m"), (1e6, "µ"), (1e9, "n"))


def quantity(value: float) -> str:
    """A figure with three significant digits below 1000, and thousands separated above."""
    if value == 0:
        return "0"
    if not 1e-9 <= abs(value) < 1e9:
        return f"{value:.3g}"
    rounded = float(f"{value:.3g}")  # 9.996 is 10.0, not 10.00
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def joules(value: float, suffix: str = "", half_width: float | None = None) -> str:
    """An energy in joules, in millijoules below 0.01 J and so on, with its 95 % half-width where it is known.

    Args:
        suffix: What follows the unit, e.g. `/token`.
    """
    return in_units(value, f"J{suffix}", half_width)


def in_units(value: float, unit: str, half_width: float | None = None) -> str:
    """A figure and its unit, with the prefix under which it is at least 0.01: `412 J`, `4.20 mJ`, `118 nWh`."""
    fitting = (prefix for prefix in _PREFIXES if abs(value) * prefix[0] >= 0.01)
    factor, prefix = next(fitting, _PREFIXES[-1]) if value else _PREFIXES[0]
    scaled = value * factor
    shown = quantity(scaled) if half_width is None else with_half_width(scaled, half_width * factor)
    return f"{shown} {prefix}{unit}"


def with_half_width(value: float, half_width: float) -> str:
    """A figure and the half-width of its interval, at least 0: `0.412 ± 0.021`, `94 ± 326`.

    Both in the same digits: those of `quantity`, fewer where two digits of the half-width say all that is known (JCGM
    100:2008, 7.2.6).
    """
    text = quantity(value)
    if "e" in text:
        return f"{text} ± {half_width:.2g}"
    decimals = len(text.partition(".")[2])
    if half_width > 0:
        decimals = max(0, min(decimals, 1 - math.floor(math.log10(half_width))))
    spread = f"{half_width:,.{decimals}f}" if half_width else "0"
    if half_width > 0 and float(spread.replace(",", "")) == 0:
        spread = f"{half_width:.1g}"
    return f"{value:,.{decimals}f} ± {spread}"


def signed(value: float, decimals: int = 1) -> str:
    """A change with its sign: `+4.6`, `−25.0`, `+1,230`.

    Args:
        decimals: Of changes below 10.
    """
    text = quantity(abs(value)) if abs(value) >= 10 else f"{abs(value):.{decimals}f}"
    return f"{'−' if value < 0 else '+'}{text}"


def percent(share: float) -> str:
    """A part of a whole: `18 %`, `< 1 %`."""
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def probability(p: float) -> str:
    """A probability: `0.013`, `< 0.0001`."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def one_line(text: str) -> str:
    """A message of several lines as one, for lists and tables."""
    return " ".join(text.split())


def shortened(text: str, letters: int) -> str:
    """A text that is cut where it is longer than there is room."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def duration(seconds: float) -> str:
    """A length of time: `0 s`, `412 ms`, `41.3 s`, `2 m 44 s`, `1 h 03 m`."""
    if 0 < abs(seconds) < 0.9995:
        return f"{quantity(seconds * 1e3)} ms"
    if seconds == 0:
        return "0 s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def counted(number: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
