"""Waits that tell the observer how long they still take."""

from __future__ import annotations

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.progress import Observer, Step, Waiting

TICK_S = 1.0
"""Seconds between two `Waiting` events."""


def wait(seconds: float, step: Step, clock: Clock, observer: Observer) -> None:
    """Wait for `seconds`, sending the remaining time about once a second.

    Args:
        seconds: How long to wait; nothing happens for 0 or less.
        step: The step of the lifecycle that waits.
        clock: Where time comes from.
        observer: Who is told.
    """
    end_s = clock.now() + seconds
    while (remaining_s := end_s - clock.now()) > 0:
        observer(Waiting(step, remaining_s))
        clock.sleep(min(TICK_S, remaining_s))
