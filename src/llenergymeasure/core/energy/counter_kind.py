"""Whether a board's energy counter adds up what its power sensor sees, or also what that does not see.

A counter of the first kind is as wrong as the sensor where the load changes between the sensor's glances; one of the
second kind is not. Under a load that is switched at random the two part: what a counter of the first kind moves by is
the readings published since its last step, each for one update's time.

    power      ____|~~~~~~~~~~|_____________|~~~~~
    sensor     [ ]   [ ]   [ ]   [ ]   [ ]   [ ]        sees parts of the time
    readings     a     b     c     d     e              counter's steps: update * a, update * b, ... or not
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

FOLLOWS_BELOW: Final = 0.03
COUNTS_ALL_ABOVE: Final = 0.06
"""Root mean square of what the counter's steps differ by from the readings, as a share of the load's own step over one
update: below the first, the counter adds the readings up; above the second, it does not."""

FEWEST_STEPS: Final = 20
"""So many steps of the counter must have been seen."""

LONGEST_AVERAGE: Final = 1.1
"""A reading that averages over more than so many updates is not what a counter would add up."""

OFFSETS: Final = 8
"""The counter may be ahead of the readings or behind them by up to an update, looked for in this many parts of one."""

Read = tuple[float, float]
"""Seconds on the measurement clock, and watts or joules."""


def counter_follows_sensor(
    published: Sequence[Read], counted: Sequence[Read], update_s: float, averaging_window_s: float
) -> bool | None:
    """Whether a counter adds up a sensor's readings; `None`: it cannot be told.

    Args:
        published: For each update of the sensor its time and the watts that it published, under a load that is switched
            at random.
        counted: The counter in joules, read often over the same time.
    """
    first_s, last_s = published[0][0] + update_s, published[-1][0] - update_s
    moved = ((0.5 * (a[0] + b[0]), b[1]) for a, b in pairwise(counted) if a[1] != b[1])
    steps = [(time_s, total_j) for time_s, total_j in moved if first_s <= time_s <= last_s]
    watts = [w for _, w in published]
    if averaging_window_s > LONGEST_AVERAGE * update_s or len(steps) < FEWEST_STEPS or min(watts) == max(watts):
        return None
    one_update_j = (max(watts) - min(watts)) * update_s
    offsets_s = (update_s * part / OFFSETS for part in range(-OFFSETS, OFFSETS + 1))
    misfit = min(_misfit_j(published, steps, update_s, offset_s) for offset_s in offsets_s) / one_update_j
    if misfit < FOLLOWS_BELOW:
        return True
    return False if misfit > COUNTS_ALL_ABOVE else None


def _misfit_j(published: Sequence[Read], steps: Sequence[Read], update_s: float, offset_s: float) -> float:
    """Root mean square difference between the steps of the counter, scaled to the readings, and these."""
    times = [time_s for time_s, _ in published]
    sums_j = [0.0, *accumulate(update_s * watts for _, watts in published)]
    seen = [(sums_j[bisect_right(times, time_s + offset_s)], total_j) for time_s, total_j in steps]
    moves = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(seen)]
    read_j, moved_j = (math.fsum(column) for column in zip(*moves, strict=True))
    if read_j <= 0 or moved_j <= 0:
        return math.inf
    return math.sqrt(math.fsum((moved * read_j / moved_j - read) ** 2 for read, moved in moves) / len(moves))
