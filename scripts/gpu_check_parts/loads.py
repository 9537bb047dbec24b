"""Loads made of loads: several at once, or one that is switched on and off by the clock."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any


class Together:
    """Several loads as one."""

    def __init__(self, loads: Sequence[Any]) -> None:
        self._loads = tuple(loads)

    def start(self) -> None:
        """All of them."""
        for load in self._loads:
            load.start()

    def stop(self) -> None:
        """All of them."""
        for load in self._loads:
            load.stop()


class Pulses:
    """A load that is on for a share of every period, from `start` to `stop`, in a thread of its own.

    Args:
        period_s: From one switching on to the next, in seconds.
        duty: Share of it that the load is on, 0..1.
    """

    def __init__(self, load: Any, clock: Any, period_s: float, duty: float) -> None:
        self._load, self._clock, self._period_s, self._duty = load, clock, period_s, duty
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._spans: list[tuple[float, float]] = []
        self._error: Exception | None = None

    def start(self, first_s: float | None = None) -> None:
        """Begin; the first pulse comes at `first_s` on the measurement clock, now by default."""
        self._ending.clear()
        self._spans = []
        begin_s = self._clock.now() if first_s is None else first_s
        self._thread = threading.Thread(target=self._work, args=(begin_s,), name="gpu-check-pulses", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, with the load off; what went wrong on the way is raised here."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def share(self, start_s: float, end_s: float) -> float:
        """Share of a stretch of time that the load was on, 0..1, as far as the host saw."""
        inside = (min(off_s, end_s) - max(on_s, start_s) for on_s, off_s in self._spans)
        return sum(seconds for seconds in inside if seconds > 0.0) / (end_s - start_s)

    def _work(self, begin_s: float) -> None:
        try:
            self._pulse(begin_s)
        except Exception as error:  # noqa: BLE001 - a thread has no caller; `stop` passes it on
            self._error = error

    def _pulse(self, due_s: float) -> None:
        while not self._ending.wait(max(0.0, due_s - self._clock.now())):
            on_s = self._clock.now()
            self._load.start()
            self._ending.wait(max(0.0, due_s + self._duty * self._period_s - self._clock.now()))
            self._load.stop()
            self._spans.append((on_s, self._clock.now()))
            due_s += self._period_s
