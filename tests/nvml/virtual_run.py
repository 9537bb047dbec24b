"""A measurement window on a virtual clock: a board, a sampler and bursts of counter reads, as a meter would do it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise

from tests.nvml.virtual import ARCHITECTURES, Board, Counter, Sensor
from tests.nvml.waveform import Waveform

from llenergymeasure.core.energy.fusion import FusedEnergy, Sample, fuse_energy
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.strategies import (
    BURSTS_TIMEOUT_S,
    FIRST_BURST_TIMEOUT_S,
    find_counter_steps,
    measure_counter_periods,
)
from llenergymeasure.core.energy.telemetry import SampleLog, Telemetry, TelemetrySample
from llenergymeasure.core.energy.types import (
    BoardRecord,
    CounterRead,
    EnergyMeasurement,
    GpuWindow,
    PowerSampling,
    SensorDescription,
)

READ_S = 20e-6
POLL_S = 0.0005  # coarser than the real bursts', to draw more windows in the same time


class VirtualClock:
    """Time that passes only when something sleeps or is said to take time."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += max(0.0, seconds)

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self._now_s)


@dataclass(frozen=True)
class VirtualWindow:
    """What a meter saw of one window, and what was true."""

    start_s: float
    end_s: float
    before: tuple[CounterRead, ...]
    after: tuple[CounterRead, ...]
    samples: tuple[Sample, ...]
    sensor: SensorDescription
    sampling: PowerSampling
    true_j: float
    plain_j: float
    outside_s: float

    def fused(self, sensor: SensorDescription | None = None) -> FusedEnergy:
        return fuse_energy(self.before, self.after, self.samples, self.start_s, self.end_s, sensor or self.sensor)


def random_board(architecture: str, waveform: Waveform, draw: random.Random, *, gain: float = 1.0) -> Board:
    """A board whose counter, sensors and noise have phases of their own."""
    kind = ARCHITECTURES[architecture]

    def shifted(sensor: Sensor | None) -> Sensor | None:
        return sensor and replace(sensor, phase_s=draw.uniform(0.0, sensor.update_s), noise_w=1.0)

    return Board(
        waveform=waveform,
        instant=shifted(kind.instant),
        average=shifted(kind.average),
        buffer=shifted(kind.buffer),
        counter=Counter(phase_s=draw.uniform(0.0, 0.1)) if kind.counter else None,
        gain=gain,
        seed=draw.getrandbits(32),
    )


def run_window(
    board: Board,
    length_s: float,
    draw: random.Random,
    *,
    load_w: float | None = None,
    idle_w: float = 0.0,
    read_s: float = READ_S,
    find_start: bool = True,
    sampler_interval_s: float = 0.1,
) -> VirtualWindow:
    """One window of `length_s` that somebody asks for at a random time.

    With `load_w` the board draws that much inside the window and `idle_w` after it. `read_s` is how long reading the
    counter takes. Without `find_start` no step is waited for before the window.

    `plain_j` is what a meter gets that reads the counter once when it is asked to start and once `length_s` later, and
    is to be compared with the truth over that same stretch: it is given as its error plus `true_j`.
    """
    clock = VirtualClock(draw.uniform(10.0, 20.0))

    def read_j() -> float:
        clock.sleep(read_s)
        return board.counter_reading_j(clock.now())

    readers = {"gpu": read_j} if board.counter else {}
    seen = measure_counter_periods(readers, clock, poll_s=2 * POLL_S).get("gpu", SensorDescription())
    clock.sleep(draw.uniform(0.0, 1.0))
    asked_s = clock.now()
    before = find_counter_steps(readers, clock, FIRST_BURST_TIMEOUT_S if find_start else 0.0, POLL_S)
    start_s = clock.now()
    if load_w is not None:
        board.set_power(load_w, start_s)
    clock.sleep(length_s)
    end_s = clock.now()
    if load_w is not None:
        board.set_power(idle_w, end_s)
    after = find_counter_steps(readers, clock, BURSTS_TIMEOUT_S - (start_s - asked_s), POLL_S)
    true_j = board.true_energy_j(start_s, end_s)
    return VirtualWindow(
        start_s=start_s,
        end_s=end_s,
        before=before.get("gpu", ()),
        after=after.get("gpu", ()),
        sensor=replace(
            seen,
            averaging_window_s=_sampling_of(board).averaging_window_s,
        ),
        sampling=_sampling_of(board),
        samples=tuple(_sample(board, asked_s - draw.uniform(0.2, 0.3), end_s, clock.now() + 0.02, sampler_interval_s)),
        true_j=true_j,
        plain_j=true_j + _plain_error_j(board, asked_s, asked_s + length_s) if board.counter else math.nan,
        outside_s=(start_s - asked_s) + (clock.now() - end_s),
    )


def by_nvml(window: VirtualWindow, board: Board, *, follows: bool | None = False) -> EnergyMeasurement:
    """What the NVML meter makes of a window; `follows`: what it knows of the counter's kind."""
    record = BoardRecord(
        device="g",
        board="g",
        has_counter=board.counter is not None,
        before=window.before,
        after=window.after,
        sensor=replace(window.sensor, counter_follows_sensor=follows),
        sampling=window.sampling,
    )
    gpu_window = GpuWindow(window.start_s, window.end_s, (record,), 0.1, 5.0, "nvml")
    log = SampleLog()
    for time_s, power_w in window.samples:
        log.append(TelemetrySample(time_s, power_w))
    return gpu_measurement(gpu_window, Telemetry({"g": log}))


def _sampling_of(board: Board) -> PowerSampling:
    """How power samples of a board come about, as the meter knows it."""
    sensor = board.buffer or board.instant
    if sensor is None:
        return PowerSampling(1.0)
    return PowerSampling(sensor.window_s, sensor.update_s, stamped_at_update=board.buffer is not None)


def _plain_error_j(board: Board, start_s: float, end_s: float) -> float:
    counted_j = board.counter_reading_j(end_s) - board.counter_reading_j(start_s)
    return counted_j - board.gain * board.true_energy_j(start_s, end_s)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def _sample(board: Board, from_s: float, end_s: float, closed_s: float, interval_s: float) -> list[Sample]:
    if board.buffer is not None:  # emptied before it is full
        reads_s = [from_s + n for n in range(int(closed_s - from_s) + 1)] + [closed_s]
        return [sample for a, b in pairwise(reads_s) for sample in board.buffered_w(a, b)]
    times, t = [], from_s
    while t < end_s:
        times.append(t)
        t += interval_s
    t = end_s
    while t < closed_s:
        times.append(t)
        t += 0.02
    times.append(closed_s)
    return [(t, board.power_reading_w(t)) for t in times]
