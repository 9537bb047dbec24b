"""True power over time: piecewise linear, held or repeated for ever, with its exact energy."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Waveform:
    """Knots (t in seconds from the script's origin, W); two knots at one time make a step.

    Before the first knot and after the last the power is held, unless `period_s` repeats the stretch from 0 to it.
    """

    knots: tuple[tuple[float, float], ...]
    period_s: float = 0.0
    _times: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())
    _energy_j: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        times = tuple(t for t, _ in self.knots)
        if not times or any(b < a for a, b in pairwise(times)):
            raise ValueError("a waveform needs knots in order of time")
        if self.period_s and (times[0] != 0.0 or times[-1] != self.period_s):
            raise ValueError("the knots of a repeated waveform must span exactly one period, from 0")
        energy = [0.0]
        for (t0, p0), (t1, p1) in pairwise(self.knots):
            energy.append(energy[-1] + 0.5 * (p0 + p1) * (t1 - t0))
        object.__setattr__(self, "_times", times)
        object.__setattr__(self, "_energy_j", tuple(energy))

    def cumulative_j(self, t: float) -> float:
        """Joules from the waveform's time 0 to `t`, negative before 0."""
        if self.period_s <= 0:
            return self._within(t)
        turns = math.floor(t / self.period_s)
        return turns * self._within(self.period_s) + self._within(t - turns * self.period_s)

    def energy_j(self, start: float, end: float) -> float:
        """Joules from `start` to `end`."""
        return self.cumulative_j(end) - self.cumulative_j(start)

    def _within(self, t: float) -> float:
        i = bisect_right(self._times, t) - 1
        if i < 0:
            return self.knots[0][1] * (t - self._times[0])
        since, power = t - self._times[i], self.knots[i][1]
        if i == len(self.knots) - 1:
            return self._energy_j[i] + power * since
        slope = (self.knots[i + 1][1] - power) / (self._times[i + 1] - self._times[i])
        return self._energy_j[i] + power * since + 0.5 * slope * since * since


def constant(power_w: float) -> Waveform:
    """Always `power_w`."""
    return Waveform(((0.0, power_w),))


def steps(*levels: tuple[float, float]) -> Waveform:
    """From each time its power, until the next: `steps((0, 100), (5, 400))`."""
    knots: list[tuple[float, float]] = []
    for t, power in levels:
        if knots:
            knots.append((t, knots[-1][1]))
        knots.append((t, power))
    return Waveform(tuple(knots))


def ramp(from_w: float, to_w: float, start: float, end: float) -> Waveform:
    """`from_w` until `start`, straight to `to_w` at `end`, then held."""
    return Waveform(((start, from_w), (end, to_w)))


def square(low_w: float, high_w: float, period_s: float, duty: float = 0.5, phase_s: float = 0.0) -> Waveform:
    """High for `duty` of each period, starting at `phase_s`."""
    high_s = duty * period_s
    on = phase_s % period_s
    off = on + high_s
    if off <= period_s:
        levels = [(0.0, low_w), (on, high_w), (off, low_w)]
    else:
        levels = [(0.0, high_w), (off - period_s, low_w), (on, high_w)]
    knots: list[tuple[float, float]] = []
    for t, power in levels:
        if knots:
            knots.append((t, knots[-1][1]))
        knots.append((t, power))
    knots.append((period_s, knots[-1][1]))
    return Waveform(tuple(knots), period_s)


def noise(mean_w: float, sd_w: float, step_s: float, length_s: float, seed: int) -> Waveform:
    """A new normally distributed power (0 or more) every `step_s`, repeating after `length_s`."""
    draw = random.Random(seed)
    count = round(length_s / step_s)
    knots: list[tuple[float, float]] = []
    for i in range(count):
        power = max(0.0, draw.gauss(mean_w, sd_w))
        knots += [(i * step_s, power), ((i + 1) * step_s, power)]
    return Waveform(tuple(knots), count * step_s)


def trace(times_s: Sequence[float], power_w: Sequence[float]) -> Waveform:
    """A recorded trace, straight between its points."""
    return Waveform(tuple(zip(times_s, power_w, strict=True)))
