"""What a board's sensors and counter would read at a time: the scripted library's arithmetic, in Python.

A `Board` is true power (`Waveform`, with steps that a test adds while it runs) seen through `Sensor`s and a `Counter`.
`scripted.py` writes the same objects into the script that the C library plays, and a test compares the two. Times
are seconds from the script's origin.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.nvml.waveform import Waveform, constant


@dataclass(frozen=True)
class Sensor:
    """Every `update_s` (first at `phase_s`) the mean power of the last `window_s` is published."""

    window_s: float
    update_s: float
    phase_s: float = 0.0
    noise_w: float = 0.0


@dataclass(frozen=True)
class Counter:
    """Every `period_s` (first at `phase_s`) the energy so far is published.

    `follows_sensor`: it adds up the power samples (the driver's own, where there are any) and misses what those miss.
    """

    period_s: float = 0.1
    phase_s: float = 0.0
    base_j: float = 123456.789
    follows_sensor: bool = False


@dataclass(frozen=True)
class CounterEvent:
    """The counter starts again at 0 (`reset`), stands still until `until_s` (`freeze`), or moves by `amount_j`."""

    kind: Literal["reset", "freeze", "jump"]
    at_s: float
    until_s: float = math.inf
    amount_j: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A family of boards, as NVML identifies it and as its sensors behave."""

    nvml_id: int
    compute_capability: tuple[int, int]
    instant: Sensor
    average: Sensor | None
    usage: Literal["instant", "average"]
    instant_field: bool = True
    counter: bool = True
    buffer: Sensor | None = None


ARCHITECTURES = {
    # arXiv 2312.02741, table of sensors. `instant` is what nvmlDeviceGetPowerUsage gives where there are no fields yet.
    "pascal": Architecture(4, (6, 0), Sensor(0.010, 0.020), None, "instant", instant_field=False, counter=False),
    "volta": Architecture(5, (7, 0), Sensor(0.010, 0.020), None, "instant", instant_field=False),
    "turing": Architecture(6, (7, 5), Sensor(0.100, 0.100), None, "instant", instant_field=False),
    "a100": Architecture(7, (8, 0), Sensor(0.025, 0.100), None, "instant"),
    "ampere": Architecture(7, (8, 6), Sensor(0.100, 0.100), Sensor(1.0, 0.100), "average"),
    "ada": Architecture(8, (8, 9), Sensor(0.100, 0.100), Sensor(1.0, 0.100), "average"),
    # The buffer of Hopper's driver: docs/validation/nvidia-h200.
    "hopper": Architecture(9, (9, 0), Sensor(0.025, 0.100), Sensor(1.0, 0.100), "average", buffer=Sensor(0.032, 0.020)),
}


@dataclass
class Board:
    """True power and the sensors that look at it."""

    waveform: Waveform = field(default_factory=lambda: constant(100.0))
    instant: Sensor | None = field(default_factory=lambda: Sensor(0.025, 0.100))
    average: Sensor | None = field(default_factory=lambda: Sensor(1.0, 0.100))
    buffer: Sensor | None = None
    counter: Counter | None = field(default_factory=Counter)
    counter_events: Sequence[CounterEvent] = ()
    gain: float = 1.0
    seed: int = 1
    _live: list[tuple[float, float, float]] = field(default_factory=list, repr=False)
    _sums: dict[Sensor, list[float]] = field(default_factory=dict, repr=False)

    def true_energy_j(self, start: float, end: float) -> float:
        """Joules that really flowed from `start` to `end`."""
        return self.cumulative_j(end) - self.cumulative_j(start)

    def set_power(self, power_w: float, at: float) -> tuple[float, float, float]:
        """From `at` on the power is `power_w`, whatever the waveform says. Times must not go back."""
        step = (at, power_w, self.cumulative_j(at))
        self._live.append(step)
        return step

    def cumulative_j(self, t: float) -> float:
        """Joules from time 0 to `t`."""
        if not self._live or t <= self._live[0][0]:
            return self.waveform.cumulative_j(t)
        at, power, joules = self._live[bisect_right(self._live, t, key=lambda step: step[0]) - 1]
        return joules + power * (t - at)

    def power_reading_w(self, t: float, which: Literal["instant", "average"] = "instant") -> float:
        """What the sensor shows at `t`, rounded to milliwatts as NVML does."""
        sensor = self._sensor(which)
        return math.floor(self._update(sensor, tick(t, sensor.phase_s, sensor.update_s)) * 1000.0 + 0.5) / 1000.0

    def buffered_w(self, since_s: float, until_s: float) -> list[tuple[float, float]]:
        """Times and watts of what the driver's buffer took after one time and up to another; it keeps the last 120."""
        sensor = self.buffer
        if sensor is None:
            return []
        first = tick(since_s, sensor.phase_s, sensor.update_s) + 1
        last = tick(until_s, sensor.phase_s, sensor.update_s)
        ticks = range(max(first, last - 119), last + 1)
        return [(sensor.phase_s + k * sensor.update_s, self._update(sensor, k)) for k in ticks]

    def counter_reading_j(self, t: float) -> float:
        """What the counter shows at `t`, in joules, cut to millijoules as NVML does."""
        if self.counter is None:
            raise ValueError("this board has no counter")
        offset, seen = self.counter.base_j, t
        for event in self.counter_events:
            if t < event.at_s:
                continue
            if event.kind == "freeze":
                seen = min(seen, event.at_s) if t < event.until_s else seen
            elif event.kind == "jump":
                offset += event.amount_j
            else:
                offset = -self._counted_j(self.counter, event.at_s)
        return max(0.0, math.floor((offset + self._counted_j(self.counter, seen)) * 1000.0) / 1000.0)

    def _sensor(self, which: Literal["instant", "average"]) -> Sensor:
        sensor = self.instant if which == "instant" else self.average
        if sensor is None:
            raise ValueError(f"this board has no {which} sensor")
        return sensor

    def _update(self, sensor: Sensor, k: int) -> float:
        at = sensor.phase_s + k * sensor.update_s
        mean = (self.cumulative_j(at) - self.cumulative_j(at - sensor.window_s)) / sensor.window_s
        noise = sensor.noise_w * gaussian(self.seed, k) if sensor.noise_w > 0 else 0.0
        return max(0.0, self.gain * mean + noise)

    def _counted_j(self, counter: Counter, t: float) -> float:
        at = counter.phase_s + tick(t, counter.phase_s, counter.period_s) * counter.period_s
        if not counter.follows_sensor:
            return self.gain * self.cumulative_j(at)
        sensor = self.buffer or self._sensor("instant")
        sums_w = self._sums.setdefault(sensor, [0.0])
        last = max(0, tick(at, sensor.phase_s, sensor.update_s))
        while len(sums_w) <= last:
            sums_w.append(sums_w[-1] + self._update(sensor, len(sums_w)))
        return sums_w[last] * sensor.update_s


def tick(t: float, phase: float, period: float) -> int:
    """How many updates after the first one the last update at or before `t` is."""
    return math.floor((t - phase) / period)


def gaussian(seed: int, k: int) -> float:
    """A standard normal number for update `k`; the same in the C library."""
    a = _mix(seed ^ _mix(k & _MASK))
    u = ((a >> 11) + 0.5) / 2.0**53
    v = (_mix(a) >> 11) / 2.0**53
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)


_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """One step of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
