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


class CounterError(EnergyError):
    """An energy counter's readings cannot be the energy of a window."""


@dataclass(frozen=True, slots=True)
class CounterRead:
    """One reading: the total that the counter showed at some moment between question and answer.

    Args:
        asked_s: When the call began, on the measurement clock.
        answered_s: When it returned.
        energy_j: The counter's total in joules.
    """

    asked_s: float
    answered_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class CounterStep:
    """The counter moved between two reads: after `old` was asked for, before `new` was answered."""

    old: CounterRead
    new: CounterRead

    @property
    def time_s(self) -> float:
        """The middle of the time in which it can have moved."""
        return 0.5 * (self.old.asked_s + self.new.answered_s)


def read_counter(read_j: Callable[[], float], clock: Clock) -> CounterRead:
    """Read a counter once, with the time before and after."""
    asked_s = clock.now()
    energy_j = read_j()
    return CounterRead(asked_s, clock.now(), energy_j)


def find_counter_steps(
    readers: Mapping[DeviceId, Callable[[], float]], clock: Clock, timeout_s: float, poll_s: float = POLL_S
) -> dict[DeviceId, tuple[CounterRead, ...]]:
    """Read several counters in turn until each has moved once, or the time is up.

    Of a run of equal readings only the first and the last are kept: they bound the steps on both sides. At least one
    reading per counter is taken, however short the time.

    Args:
        readers: For each device the function that reads its counter, in joules; its errors pass through.
        clock: The measurement clock.
        timeout_s: When to give up, in seconds from now.
        poll_s: Pause between two rounds.
    """
    deadline_s = clock.now() + timeout_s
    reads: dict[DeviceId, list[CounterRead]] = {device: [] for device in readers}
    while True:
        for device, read_j in readers.items():
            _append(reads[device], read_counter(read_j, clock))
        moved = all(seen[-1].energy_j != seen[0].energy_j for seen in reads.values())
        if moved or clock.now() + poll_s >= deadline_s:
            return {device: tuple(seen) for device, seen in reads.items()}
        clock.sleep(poll_s)


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

    A counter that moved fewer than three times is left out. See `find_counter_steps` for the other arguments.
    """
    deadline_s = clock.now() + timeout_s
    reads: dict[DeviceId, list[CounterRead]] = {device: [] for device in readers}
    while True:
        for device, read_j in readers.items():
            _append(reads[device], read_counter(read_j, clock))
        steps = {device: _steps(seen) for device, seen in reads.items()}
        done = all(len(found) >= wanted_steps for found in steps.values())
        if done or clock.now() + poll_s >= deadline_s:
            return {device: _period(found) for device, found in steps.items() if len(found) >= 3}
        clock.sleep(poll_s)


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
