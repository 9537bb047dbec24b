"""What meters of GPUs read before and after a window; NVML's counter publishes a new total about every 0.1 s:

    sampler   o----o----o----o----o----o----o----o----o----o----o----o----o
    counter   ______|                                         |____________
                    ^ step                                    ^ step
    reads       o o o                                   o o o o
                     [ <----------- window -----------> ]
                   start_s                            end_s

`CounterStrategy` reads the counters in a short burst until each has just moved, so that the window starts on a step of
the counter, and in another one after it until they move again. The counter is never read inside the window: frequent
reads disturb it on some boards. What the readings are worth is the business of gpu_energy.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import (
    board_warnings,
    calibrations_of,
    describe_sensor,
    has_known_buffer,
    power_sampling,
)
from llenergymeasure.core.energy.fusion import CounterStep, counter_steps
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.sampler import GpuReader, sampler_warnings
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import (
    BoardRecord,
    CounterRead,
    EnergyMeasurement,
    GpuWindow,
    MeterOptions,
    SensorDescription,
)
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriverError
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

POLL_S: Final = 0.00025
"""Pause between two rounds of reads in a burst, in seconds: the resolution with which a step's time is found."""

BURSTS_TIMEOUT_S: Final = 0.2
"""Longest that the bursts before and after a window may last together, in seconds."""

FIRST_BURST_TIMEOUT_S: Final = 0.12
"""Longest that the burst before a window may last: one update of the counter and a fifth."""

PERIOD_STEPS: Final = 6
PERIOD_TIMEOUT_S: Final = 0.75
"""So many steps are watched to learn a counter's period, about 0.55 s; each read takes 3 to 20 ms on some boards
(docs/validation/nvidia-h200), and the more steps, the less that matters."""

SLOW_READ_S: Final = 0.05
"""A single counter read that takes longer says too little about when the counter had its value."""

SLACK_S: Final = 0.005
"""Delay of one step that is still nothing to worry about."""

Readers = Mapping[DeviceId, Callable[[], float]]
"""What reads each board's counter, in joules."""

Reads = Mapping[DeviceId, tuple[CounterRead, ...]]


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """What was read of the boards' counters around a window.

    Args:
        problem: What is wrong with the counter of one board, and so with the method for all; `None`: nothing.
        cpu_j: Joules of the CPU, if whoever read the counters tells them.
        dram_j: Joules of the memory, likewise.
    """

    before: Reads
    after: Reads
    problem: str | None = None
    cpu_j: float | None = None
    dram_j: float | None = None
    notes: tuple[MeasurementWarning, ...] = ()


class GpuStrategy:
    """What all meters of GPUs have in common: power is sampled, and gpu_energy.py weighs it against the counters."""

    name: str
    tells_host = False

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        self._gpus = tuple(gpus)
        self._clock = clock
        self._options = options
        self._calibrations = calibrations_of(self._gpus, options.calibration_dir)
        self._counters: Readers = {gpu.uuid: partial(_read_counter, gpu) for gpu in self._gpus if gpu.has_counter}
        self._counters_seen: Mapping[DeviceId, SensorDescription] = {}

    def readers(self) -> Sequence[GpuReader]:
        """One per board."""
        known = ((gpu, has_known_buffer(gpu, self._calibrations.get(gpu.uuid))) for gpu in self._gpus)
        return [GpuReader(gpu, self._clock, buffered=buffered) for gpu, buffered in known]

    def warnings(self, telemetry: Telemetry | None = None) -> Iterator[MeasurementWarning]:
        """What about boards and sampler makes a figure doubtful."""
        yield from board_warnings(self._gpus, self._options.family_pid)
        if telemetry is not None:
            yield from sampler_warnings(telemetry)

    def measurement(
        self, start_s: float, end_s: float, read: GpuReadings, telemetry: Telemetry | None
    ) -> EnergyMeasurement:
        """Counters and power samples together."""
        telemetry = telemetry or Telemetry({})
        window = GpuWindow(
            start_s=start_s,
            end_s=end_s,
            boards=tuple(self._record(gpu, read, telemetry) for gpu in self._gpus),
            sampling_interval_s=self._options.poll_interval_s,
            gain_uncertainty_pct=self._options.power_gain_uncertainty_pct,
            meter=self.name,
        )
        energy = gpu_measurement(window, telemetry)
        return replace(energy, cpu_j=read.cpu_j, dram_j=read.dram_j, notes=(*energy.notes, *read.notes))

    def watch_counters(self) -> None:
        """Learn how often each board's counter moves: what it hides at the edges of a window hangs on that."""
        try:
            self._counters_seen = measure_counter_periods(self._counters, self._clock)
        except GpuDriverError as error:
            logger.info("The energy counter could not be watched: %s", error)

    def totals_j(self) -> list[float]:
        """What the counters show; not a number (which no comparison holds for) where one cannot be read."""

        def shown_j(read_j: Callable[[], float]) -> float:
            with suppress(GpuDriverError):
                return read_j()
            return math.nan

        return [shown_j(read_j) for read_j in self._counters.values()]

    def _record(self, gpu: Gpu, read: GpuReadings, telemetry: Telemetry) -> BoardRecord:
        calibration = self._calibrations.get(gpu.uuid)
        sampling = power_sampling(gpu, calibration, telemetry)
        return BoardRecord(
            device=gpu.uuid,
            board=gpu.board_uuid,
            has_counter=gpu.has_counter,
            before=read.before.get(gpu.uuid, ()),
            after=read.after.get(gpu.uuid, ()),
            counter_problem=read.problem if gpu.has_counter else None,
            includes_module=gpu.includes_module,
            power_limit_w=gpu.allowed_power_w,
            sensor=describe_sensor(calibration, sampling, self._counters_seen.get(gpu.uuid)),
            sampling=sampling,
        )


class CounterStrategy(GpuStrategy):
    """The driver's own energy counters; boards that have none are integrated."""

    name = "nvml"

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Read every board once, and learn how often its counter moves; each must tell power or energy."""
        drawn_w = {gpu.uuid: self._drawn_w(gpu) for gpu in self._gpus}
        mute_j = {gpu.uuid: _read_counter(gpu) for gpu in self._gpus if drawn_w[gpu.uuid] is None}
        self.watch_counters()
        return ", ".join(_proof(gpu, drawn_w[gpu.uuid], mute_j.get(gpu.uuid)) for gpu in self._gpus)

    def before(self) -> tuple[Reads, str | None, float]:
        """Read all counters until each has just moved: their reads, what is wrong with one, and how long that took."""
        asked_s = self._clock.now()
        return *self._burst(FIRST_BURST_TIMEOUT_S), self._clock.now() - asked_s

    def after(self, before: tuple[Reads, str | None, float]) -> GpuReadings:
        """Read them until each moves again; both bursts together have a time limit."""
        reads, problem, took_s = before
        more, later_problem = self._burst(BURSTS_TIMEOUT_S - took_s)
        return GpuReadings(reads, more, problem or later_problem)

    def _drawn_w(self, gpu: Gpu) -> float | None:
        """What a board draws now; `None`: it does not tell, and has a counter."""
        reader = GpuReader(gpu, self._clock)
        power_w = reader.read()[-1].power_w
        if power_w is None and not gpu.has_counter:
            raise EnergyError("; ".join(reader.problems()) or f"GPU {gpu.index} tells neither power nor energy")
        return power_w

    def _burst(self, timeout_s: float) -> tuple[Reads, str | None]:
        """Read all counters until each has moved, and see whether they behave."""
        if not self._counters:
            return {}, None
        try:
            reads = find_counter_steps(self._counters, self._clock, timeout_s)
        except GpuDriverError as error:
            return {}, str(error)
        faults = (counter_fault(seen, self._counters_seen.get(device)) for device, seen in reads.items())
        return reads, next((fault for fault in faults if fault is not None), None)


def _proof(gpu: Gpu, power_w: float | None, earlier_j: float | None) -> str:
    """What a board draws or, where it does not tell, has counted: since `earlier_j` its counter must have moved."""
    if power_w is not None:
        return f"GPU {gpu.index} draws {power_w:.1f} W now"
    counted_j = _read_counter(gpu)
    if counted_j == earlier_j:
        raise EnergyError(f"GPU {gpu.index} tells no power, and its energy counter stands still at {counted_j:.0f} J")
    return f"GPU {gpu.index} has counted {counted_j:.0f} J"


def _read_counter(gpu: Gpu) -> float:
    try:
        return gpu.driver.total_energy_j(gpu.handle)
    except GpuDriverError as error:
        raise type(error)(f"GPU {gpu.index}: {error}") from error


def find_counter_steps(
    readers: Readers, clock: Clock, timeout_s: float, poll_s: float = POLL_S
) -> dict[DeviceId, tuple[CounterRead, ...]]:
    """Read several counters in turn until each has moved once or the time is up; errors pass through.

    Of a run of equal readings only the first and the last are kept: they bound the steps on both sides. At least one
    reading per counter is taken, however short the time.
    """
    return _watch(readers, clock, timeout_s, poll_s, wanted_steps=1)


def measure_counter_periods(
    readers: Readers,
    clock: Clock,
    timeout_s: float = PERIOD_TIMEOUT_S,
    poll_s: float = POLL_S,
    wanted_steps: int = PERIOD_STEPS,
) -> dict[DeviceId, SensorDescription]:
    """Learn the counters' periods from `wanted_steps` moves of each; once per device, not per window.

    Of a counter that moved fewer than three times before the time was up, only how long it stood still is told.
    """
    seen = _watch(readers, clock, timeout_s, poll_s, wanted_steps)
    return {device: _described(reads) for device, reads in seen.items()}


def _described(reads: Sequence[CounterRead]) -> SensorDescription:
    steps = counter_steps(reads)
    if len(steps) >= 3:
        return describe_counter(steps)
    since_s = (reads[0].answered_s, *(step.new.answered_s for step in steps))
    until_s = (*(step.old.asked_s for step in steps), reads[-1].asked_s)
    return SensorDescription(counter_still_s=max(0.0, *(b - a for a, b in zip(since_s, until_s, strict=True))))


def describe_counter(steps: Sequence[CounterStep]) -> SensorDescription:
    """A counter's period from three of its steps or more, all in a row.

    Each step lies between two reads, so any two steps bound the period on both sides; what satisfies all bounds is the
    answer. A counter whose steps are less regular than `counter_jitter_s` satisfies none: its period is the mean, and
    the tolerance how far single gaps are from it, with the resolution of the reads.
    """
    jitter_s = 2.0 * SensorDescription().counter_jitter_s
    pairs = [(a, b, later - earlier) for (earlier, a), (later, b) in combinations(enumerate(steps), 2)]
    shortest_s = max((b.old.asked_s - a.new.answered_s - jitter_s) / periods for a, b, periods in pairs)
    longest_s = min((b.new.answered_s - a.old.asked_s + jitter_s) / periods for a, b, periods in pairs)
    if shortest_s <= longest_s:
        return SensorDescription(0.5 * (shortest_s + longest_s), 0.5 * (longest_s - shortest_s))
    gaps_s = [b.time_s - a.time_s for a, b in pairwise(steps)]
    period_s = sum(gaps_s) / len(gaps_s)
    blur_s = max(step.new.answered_s - step.old.asked_s for step in steps)
    return SensorDescription(period_s, max(abs(gap_s - period_s) for gap_s in gaps_s) + blur_s)


def _watch(
    readers: Readers, clock: Clock, timeout_s: float, poll_s: float, wanted_steps: int
) -> dict[DeviceId, tuple[CounterRead, ...]]:
    """Read counters in turn until each has moved so often, or the time is up."""
    deadline_s = clock.now() + timeout_s
    reads: dict[DeviceId, list[CounterRead]] = {device: [] for device in readers}
    while True:
        for device, read_j in readers.items():
            seen, asked_s = reads[device], clock.now()
            energy_j = read_j()
            if len(seen) >= 2 and seen[-2].energy_j == seen[-1].energy_j == energy_j:
                seen.pop()
            seen.append(CounterRead(asked_s, clock.now(), energy_j))
        enough = all(len(counter_steps(seen)) >= wanted_steps for seen in reads.values())
        if enough or clock.now() + poll_s >= deadline_s:
            return {device: tuple(seen) for device, seen in reads.items()}
        clock.sleep(poll_s)


def counter_fault(reads: Sequence[CounterRead], seen: SensorDescription | None) -> str | None:
    """What a burst of reads says against a counter, given what was seen of its period; `None` where nothing does."""
    slowest_s = max(read.answered_s - read.asked_s for read in reads)
    if slowest_s > SLOW_READ_S:
        return f"reading the energy counter took {1000 * slowest_s:.0f} ms"
    if seen is None or seen.counter_period_s is None or counter_steps(reads):
        return None
    watched_s = reads[-1].asked_s - reads[0].answered_s
    if watched_s > seen.counter_period_s + seen.counter_period_tolerance_s + SLACK_S:
        return (
            f"the energy counter stood still for {1000 * watched_s:.0f} ms, and it moves every "
            f"{1000 * seen.counter_period_s:.0f} ms otherwise"
        )
    return None
