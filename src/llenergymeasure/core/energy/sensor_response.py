"""What a power sensor's readings tell about the sensor: how often it updates, over how long it averages, its noise.

    power      ______________|~~~~~~~~~~~~~~~~|_________      a load, switched at known times
    readings   ________________|~~~~~~~~~~~~~~~~~|______      at every update, the mean of the last averaging window
    updates        :     :     :     :     :     :

Pure functions over densely polled readings. The method is that of arXiv 2312.02741: the moments at which readings
change give the update period, and how much of a step shows at the first updates after it gives the averaging window.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

SHORTEST_UPDATE_S: Final = 0.004
LONGEST_UPDATE_S: Final = 0.3
"""Update periods that are looked for, in seconds."""

CHANGES_USED: Final = 150
"""So many changes of the reading are used to find the update period at first; more only take time."""

IN_STEP: Final = 0.85
"""Length of the mean phase vector from which on changes count as being in step with a period (1: all of them)."""

SHORTEST_WINDOW_S: Final = 0.002
LONGEST_WINDOW_S: Final = 2.0
"""Averaging windows that are looked for, in seconds."""

LONGEST_LATENCY_S: Final = 0.03
"""A load needs up to this long to show after it was switched, in seconds."""

CLEAR_STEP: Final = 10.0
"""A step of the load must be this many times the noise to be used."""

SETTLED_SHARE: Final = 0.97
SETTLED_UPDATES: Final = 3
"""After so many updates that show this share of a step, the rest of the stretch tells nothing about the sensor."""

Read = tuple[float, float]
"""A reading: seconds on the measurement clock, watts."""


class ResponseError(ValueError):
    """The readings do not show what is looked for."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The load was switched on or off at a time in seconds."""

    time_s: float
    on: bool


@dataclass(frozen=True, slots=True)
class Updates:
    """When the sensor publishes: every `period_s`, one of them at `phase_s`, in seconds."""

    period_s: float
    phase_s: float

    def times(self, from_s: float, to_s: float) -> list[float]:
        """Updates between two times."""
        first = math.ceil((from_s - self.phase_s) / self.period_s)
        last = math.floor((to_s - self.phase_s) / self.period_s)
        return [self.phase_s + k * self.period_s for k in range(first, last + 1)]


def find_updates(reads: Sequence[Read]) -> Updates:
    """Period and phase of the sensor's updates.

    The largest period with which the changes of the reading are in step (a periodogram of the change times), refined by
    a straight line through them.

    Args:
        reads: Readings polled much faster than the sensor updates, in order.

    Raises:
        ResponseError: The readings hardly change, or not in step with any period.
    """
    changes = [0.5 * (a[0] + b[0]) for a, b in pairwise(reads) if a[1] != b[1]]
    if len(changes) < 8:
        raise ResponseError(f"the power reading changed only {len(changes)} times; is the board under load?")
    sample = changes[:CHANGES_USED]  # neighbours: every n-th change would be in step with n periods
    origin_s, span_s = sample[0], sample[-1] - sample[0]
    slowest, fastest = 1.0 / LONGEST_UPDATE_S, 1.0 / SHORTEST_UPDATE_S
    step = 1.0 / (8.0 * span_s)
    for i in range(math.ceil((fastest - slowest) / step)):
        frequency = slowest + i * step
        if _in_step(sample, origin_s, frequency) < IN_STEP:
            continue
        best = max((frequency + 0.25 * k * step for k in range(17)), key=lambda f: _in_step(sample, origin_s, f))
        return _refined(changes, origin_s, 1.0 / best)
    raise ResponseError("the power reading does not change at regular times")


def readings_by_update(reads: Sequence[Read], updates: Updates) -> list[Read]:
    """For each update its time and the value that it published."""
    times = [t for t, _ in reads]
    published = []
    for update_s in updates.times(times[0], times[-1] - 0.5 * updates.period_s):
        i = bisect_left(times, update_s + 0.5 * updates.period_s)
        published.append((update_s, reads[i][1]))
    return published


def find_averaging_window(published: Sequence[Read], switches: Sequence[Switch]) -> float:
    """Averaging window in seconds, from how much of each step shows at the updates after it.

    An update `delay` after a step shows `delay / window` of it, and all of it from `window` on. The load's own latency
    is fitted beside it.

    Args:
        switches: When the load was switched, in order; the last one only ends the last stretch.

    Raises:
        ResponseError: No step was clear enough.
    """
    shown = _shown_of_steps(published, switches)
    if len(shown) < 3:
        raise ResponseError("the load makes no clear steps in the power reading")
    coarse = _geometric(SHORTEST_WINDOW_S, LONGEST_WINDOW_S, 80)
    window_s, latency_s = _best_fit(shown, coarse, [0.002 * i for i in range(round(LONGEST_LATENCY_S / 0.002) + 1)])
    fine = [window_s * (0.9 + 0.004 * i) for i in range(51)]
    near = [max(0.0, latency_s + 0.0005 * i) for i in range(-4, 5)]
    return _best_fit(shown, fine, near)[0]


def plateaus(published: Sequence[Read], switches: Sequence[Switch], *, on: bool) -> list[list[float]]:
    """Settled values after each switch to `on`: those of the last third of the stretch."""
    levels = []
    for a, b in pairwise(switches):
        if a.on is on:
            settled_s = b.time_s - (b.time_s - a.time_s) / 3.0
            stretch = published[bisect_left(published, (settled_s,)) : bisect_left(published, (b.time_s,))]
            values = [w for _, w in stretch]
            if values:
                levels.append(values)
    return levels


def noise_w(levels: Sequence[Sequence[float]]) -> float:
    """Standard deviation in watts of readings that should all be the same, pooled over stretches."""
    freedom = sum(len(values) - 1 for values in levels)
    if freedom < 1:
        return 0.0
    squares = sum((w - statistics.fmean(values)) ** 2 for values in levels for w in values)
    return math.sqrt(squares / freedom)


def _in_step(changes: Sequence[float], origin_s: float, frequency: float) -> float:
    turns = 2.0 * math.pi * frequency
    x = math.fsum(math.cos(turns * (t - origin_s)) for t in changes)
    y = math.fsum(math.sin(turns * (t - origin_s)) for t in changes)
    return math.hypot(x, y) / len(changes)


def _refined(changes: Sequence[float], origin_s: float, period_s: float) -> Updates:
    """Least squares of the change times over their number, for which the period must be nearly right."""
    numbers = [round((t - origin_s) / period_s) for t in changes]
    period_s, phase_s = statistics.linear_regression(numbers, changes)
    return Updates(period_s, phase_s)


def _shown_of_steps(published: Sequence[Read], switches: Sequence[Switch]) -> list[Read]:
    """(delay after a switch in seconds, share of the step that shows) of every update that can tell."""
    noise = noise_w([*plateaus(published, switches, on=True), *plateaus(published, switches, on=False)])
    shown = []
    for before, switch, after in zip(switches, switches[1:], switches[2:], strict=False):
        old, new = _level(published, before, switch), _level(published, switch, after)
        if old is None or new is None or abs(new - old) < max(1.0, CLEAR_STEP * noise):
            continue
        settled = 0
        for t, w in published[bisect_left(published, (switch.time_s,)) : bisect_left(published, (after.time_s,))]:
            share = (w - old) / (new - old)
            shown.append((t - switch.time_s, share))
            settled += share > SETTLED_SHARE
            if settled == SETTLED_UPDATES:  # all that follow would only say the same again
                break
    return shown


def _level(published: Sequence[Read], start: Switch, end: Switch) -> float | None:
    levels = plateaus(published, (start, end), on=start.on)
    return statistics.median(levels[0]) if levels else None


def _best_fit(shown: Sequence[Read], windows_s: Sequence[float], latencies_s: Sequence[float]) -> tuple[float, float]:
    def misfit(window_s: float, latency_s: float) -> float:
        return math.fsum((share - min(1.0, max(0.0, (delay - latency_s) / window_s))) ** 2 for delay, share in shown)

    return min(((w, d) for w in windows_s for d in latencies_s), key=lambda candidate: misfit(*candidate))


def _geometric(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]
