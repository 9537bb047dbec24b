"""Reading an energy counter that moves in steps: bursts of reads that find a step, and the plain difference.

NVML's counter publishes a new total about every 0.1 s and nothing in between:

                     a burst before                     a burst after
    counter   ______|                                              |______
                    ^ step                                         ^ step
    reads     o o o o                                        o o o o
                     [ <-------------- window ------------> ]
                   start_s                                end_s

The window starts on a step, so what it starts from is known; at its end the next step is awaited (see fusion.py). The
counter is never read inside the window: frequent reads disturb it on some boards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import CounterRead
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import EnergyError

POLL_S: Final = 0.00025
"""Pause between two rounds of reads in a burst, in seconds: the resolution with which a step's time is found."""

BURSTS_TIMEOUT_S: Final = 0.2
"""Longest that the bursts before and after a window may last together, in seconds."""

FIRST_BURST_TIMEOUT_S: Final = 0.12
"""Longest that the burst before a window may last: one update of the counter and a fifth."""

PERIOD_STEPS: Final = 4
"""So many steps are watched to learn a counter's period: three gaps, about 0.35 s."""

SLOW_READ_S: Final = 0.05
"""A single counter read that takes longer says too little about when the counter had its value."""

SLACK_S: Final = 0.005
"""Delay of one step that is still nothing to worry about."""


class CounterError(EnergyError):
    """An energy counter's readings cannot be the energy of a window."""


@dataclass(frozen=True, slots=True)
class CounterStep:
    """The counter moved between two reads: after `old` was asked for, before `new` was answered."""

    old: CounterRead
    new: CounterRead

    @property
    def time_s(self) -> float:
        """The middle of the time in which it can have moved."""
        return 0.5 * (self.old.asked_s + self.new.answered_s)


_Reads = dict[DeviceId, list[CounterRead]]


def read_counter(read_j: Callable[[], float], clock: Clock) -> CounterRead:
    """Read a counter once, with the time before and after."""
    asked_s = clock.now()
    energy_j = read_j()
    return CounterRead(asked_s, clock.now(), energy_j)


def find_counter_steps(
    readers: Mapping[DeviceId, Callable[[], float]], clock: Clock, timeout_s: float, poll_s: float = POLL_S
) -> dict[DeviceId, tuple[CounterRead, ...]]:
    """Read several counters, in joules, in turn until each has moved once or the time is up; errors pass through.

    Of a run of equal readings only the first and the last are kept: they bound the steps on both sides. At least one
    reading per counter is taken, however short the time.
    """

    def have_moved(reads: _Reads) -> bool:
        return all(seen[-1].energy_j != seen[0].energy_j for seen in reads.values())

    return {device: tuple(seen) for device, seen in _watch(readers, clock, timeout_s, poll_s, have_moved).items()}


@dataclass(frozen=True, slots=True)
class CounterPeriod:
    """Time between two steps of a counter, as seen.

    Args:
        period_s: Mean over the steps seen, in seconds.
        tolerance_s: How far single gaps were from it, with the resolution of the reads.
    """

    period_s: float
    tolerance_s: float


def measure_counter_periods(
    readers: Mapping[DeviceId, Callable[[], float]],
    clock: Clock,
    timeout_s: float = 0.5,
    poll_s: float = POLL_S,
    wanted_steps: int = PERIOD_STEPS,
) -> dict[DeviceId, CounterPeriod]:
    """Watch counters until each has moved `wanted_steps` times or the time is up; once per device, not per window.

    A counter that moved fewer than three times is left out.
    """

    def have_stepped(reads: _Reads) -> bool:
        return all(len(_steps(seen)) >= wanted_steps for seen in reads.values())

    reads = _watch(readers, clock, timeout_s, poll_s, have_stepped)
    steps = {device: _steps(seen) for device, seen in reads.items()}
    return {device: _period(found) for device, found in steps.items() if len(found) >= 3}


def _watch(
    readers: Mapping[DeviceId, Callable[[], float]],
    clock: Clock,
    timeout_s: float,
    poll_s: float,
    enough: Callable[[_Reads], bool],
) -> _Reads:
    """Read counters in turn until there is enough, or the time is up."""
    deadline_s = clock.now() + timeout_s
    reads: _Reads = {device: [] for device in readers}
    while True:
        for device, read_j in readers.items():
            _append(reads[device], read_counter(read_j, clock))
        if enough(reads) or clock.now() + poll_s >= deadline_s:
            return reads
        clock.sleep(poll_s)


def counter_fault(reads: Sequence[CounterRead], period: CounterPeriod | None) -> str | None:
    """What a burst of reads says against a counter; `None` where nothing does."""
    slowest_s = max(read.answered_s - read.asked_s for read in reads)
    if slowest_s > SLOW_READ_S:
        return f"reading the energy counter took {1000 * slowest_s:.0f} ms"
    watched_s = reads[-1].asked_s - reads[0].answered_s
    if period is not None and first_step(reads) is None and watched_s > period.period_s + period.tolerance_s + SLACK_S:
        return (
            f"the energy counter stood still for {1000 * watched_s:.0f} ms, and it moves every "
            f"{1000 * period.period_s:.0f} ms otherwise"
        )
    return None


def first_step(reads: Sequence[CounterRead]) -> CounterStep | None:
    """The first move of the counter in these reads."""
    return next(iter(_steps(reads)), None)


def last_step(reads: Sequence[CounterRead]) -> CounterStep | None:
    """The last move of the counter in these reads."""
    return next(reversed(_steps(reads)), None)


def plain_counter_energy(before: Sequence[CounterRead], after: Sequence[CounterRead]) -> float:
    """Difference in joules of the reads nearest to a window: the last before it and the first after it.

    Raises:
        CounterError: No reads on one side, or the counter went backwards (it was reset), or it did not move at all.
    """
    if not before or not after:
        raise CounterError("the energy counter was not read on both sides of the window")
    totals_j = [read.energy_j for read in (*before, *after)]
    for earlier, later in pairwise(totals_j):
        if later < earlier:
            raise CounterError(
                f"the energy counter went backwards, from {earlier:.3f} J to {later:.3f} J: it was reset"
            )
    if totals_j[-1] == totals_j[0]:
        raise CounterError(f"the energy counter stood still at {totals_j[0]:.3f} J over the whole window")
    return after[0].energy_j - before[-1].energy_j


def _steps(reads: Sequence[CounterRead]) -> list[CounterStep]:
    return [CounterStep(old, new) for old, new in pairwise(reads) if old.energy_j != new.energy_j]


def _period(steps: Sequence[CounterStep]) -> CounterPeriod:
    gaps_s = [b.time_s - a.time_s for a, b in pairwise(steps)]
    period_s = sum(gaps_s) / len(gaps_s)
    blur_s = max(step.new.answered_s - step.old.asked_s for step in steps)
    return CounterPeriod(period_s, max(abs(gap_s - period_s) for gap_s in gaps_s) + blur_s)


def _append(seen: list[CounterRead], read: CounterRead) -> None:
    if len(seen) >= 2 and seen[-2].energy_j == seen[-1].energy_j == read.energy_j:
        seen.pop()
    seen.append(read)
