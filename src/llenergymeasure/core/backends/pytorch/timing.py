"""When each decoding step was done, without making the steps wait for each other.

On the CPU a step is done when its hook runs, so the clock is read there. On CUDA the host runs ahead of the device: the
hook only records an event in the stream, and the times are worked out when the batch is over:

    host   ──start── step 1 hook ── step 2 hook ── …                finish: t_k = t_0 + elapsed(E_0, E_k)
    device        E_0 ─ prefill ──── E_1 ── decode ── E_2 ── …
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

from llenergymeasure.core.clock import Clock


class StepTimer(Protocol):
    """Times the steps of one batch after another."""

    def start(self) -> float:
        """Open a batch; returns its first instant on the measurement clock, in seconds."""

    def step(self) -> None:
        """Note that all work given to the device so far makes up a finished step."""

    def finish(self) -> array[float]:
        """Instants of the batch's steps on the measurement clock, in seconds; waits for the last one."""


class HostStepTimer:
    """Reads the clock at every step: right where the device is the host itself."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._times_s = array("d")

    def start(self) -> float:
        """Open a batch."""
        self._times_s = array("d")
        return self._now()

    def step(self) -> None:
        """Note the instant."""
        self._times_s.append(self._now())

    def finish(self) -> array[float]:
        """Instants of the steps, in seconds."""
        return self._times_s


class DeviceEvent(Protocol):
    """What is needed of `torch.cuda.Event(enable_timing=True)`."""

    def record(self, stream: object) -> None:
        """Mark the place that `stream` has reached."""

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""

    def elapsed_time(self, end: DeviceEvent) -> float:
        """Milliseconds of device time from this mark to `end`."""


class DeviceStepTimer:
    """Records an event in the device's stream at every step, and turns them into clock times afterwards.

    The first event is recorded on an idle device, next to a clock reading; that pair ties device time to the clock.
    Events are kept for later batches, because making one costs more than recording it.

    Args:
        clock: The measurement clock.
        new_event: Makes a timing event.
        stream: The stream that the device's work goes to.
        synchronize: Waits until the device is idle.
    """

    def __init__(
        self,
        clock: Clock,
        new_event: Callable[[], DeviceEvent],
        stream: object,
        synchronize: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._new_event = new_event
        self._stream = stream
        self._synchronize = synchronize
        self._events: list[DeviceEvent] = [new_event()]
        self._used = 1
        self._start_s = 0.0

    def start(self) -> float:
        """Open a batch: wait for the device, read the clock, mark the stream."""
        self._synchronize()
        self._start_s = self._clock.now()
        self._events[0].record(self._stream)
        self._used = 1
        return self._start_s

    def step(self) -> None:
        """Mark the stream; the host does not wait."""
        if self._used == len(self._events):
            self._events.append(self._new_event())
        self._events[self._used].record(self._stream)
        self._used += 1

    def finish(self) -> array[float]:
        """Wait for the last mark and read all of them."""
        first, steps = self._events[0], self._events[1 : self._used]
        if steps:
            steps[-1].synchronize()
        return array("d", (self._start_s + first.elapsed_time(event) / 1000.0 for event in steps))
