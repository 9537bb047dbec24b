"""The one clock that all window arithmetic uses.

Engines, meters and the sampler stamp their events with `Clock.now`, so that a token, a power sample and a window edge
can be compared. Wall-clock times are for people only, and in the life of one experiment they follow from a single
reading: somebody may set the clock of the machine meanwhile.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Protocol


class Clock(Protocol):
    """Time as the measurement sees it; tests pass a virtual one."""

    def now(self) -> float:
        """Seconds on a monotonic clock with an arbitrary origin."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds` (nothing for 0 or less)."""

    def wall(self) -> datetime:
        """The current date and time in UTC, for people."""


class SystemClock:
    """The machine's own monotonic clock (CLOCK_MONOTONIC on Linux)."""

    def now(self) -> float:
        """See `Clock`; the same origin as `time.perf_counter` on Linux."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        if seconds > 0:
            time.sleep(seconds)

    def wall(self) -> datetime:
        """See `Clock`."""
        return datetime.now(timezone.utc)


class SteadyClock:
    """A clock whose dates never jump: that of its making, and what has passed on the monotonic clock since."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._made_at, self._made_s = self._clock.wall(), self._clock.now()

    def now(self) -> float:
        """See `Clock`."""
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        self._clock.sleep(seconds)

    def wall(self) -> datetime:
        """See `Clock`."""
        return self._made_at + timedelta(seconds=self._clock.now() - self._made_s)
