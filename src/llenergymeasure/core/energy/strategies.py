"""What GPU meters read before and after a window: NVML's counters in bursts, or a window of another package.

    sampler   o----o----o----o----o----o----o----o----o----o----o----o----o
    counter          c c c c                                c c c c
    window                  [ <------------------------> ]
                          start_s                      end_s

`CounterStrategy` reads the counters in a short burst until each has just moved, so that the window starts on a step of
the counter, and in another one after it until they move again. `PackageStrategy` leaves that to a package, which reads
counters when it opens and closes a window of its own and tells the difference. That is treated like two readings of our
own: checked for zeros, jumps and resets, held against the power samples, and given the uncertainty of a counter that
was read once on each side. What the readings are worth is the business of gpu_energy.py.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import board_warnings, calibrations_of, describe_sensor, power_sampling
from llenergymeasure.core.energy.counter import (
    BURSTS_TIMEOUT_S,
    FIRST_BURST_TIMEOUT_S,
    CounterPeriod,
    counter_fault,
    find_counter_steps,
    measure_counter_periods,
)
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.sampler import GpuReader, sampler_warnings
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.energy.types import BoardRecord, CounterRead, EnergyMeasurement, GpuWindow, MeterOptions
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriverError
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

PROOF_S: Final = 0.25
"""Length of the trial window that proves a package: two updates of the energy counter."""

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


class GpuStrategy(ABC):
    """What all meters of GPUs have in common: power is sampled, and gpu_energy.py weighs it against the counters."""

    tells_host = False
    """Whether it has joules of CPU and memory of its own."""

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        self._gpus = tuple(gpus)
        self._clock = clock
        self._options = options
        self._calibrations = calibrations_of(self._gpus, options.calibration_dir)
        self._periods: Mapping[DeviceId, CounterPeriod] = {}

    def readers(self) -> Sequence[GpuReader]:
        """One per board."""
        return [GpuReader(gpu, self._clock) for gpu in self._gpus]

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
            power_limit_w=gpu.power_limit_w,
            sensor=describe_sensor(calibration, sampling, self._periods.get(gpu.uuid)),
            sampling=sampling,
        )


@dataclass(frozen=True, slots=True)
class _Burst:
    """One burst of counter reads, and how long it took."""

    reads: Reads
    problem: str | None
    took_s: float


class CounterStrategy(GpuStrategy):
    """The driver's own energy counters; boards that have none are integrated."""

    name = "nvml"

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        super().__init__(gpus, clock, options)
        self._counters = {gpu.uuid: partial(_read_counter, gpu) for gpu in self._gpus if gpu.has_counter}

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Read every board once, and learn how often its counter moves.

        Raises:
            EnergyError: A board has neither a power reading nor a counter that works.
        """
        proofs = [self._prove_board(gpu) for gpu in self._gpus]
        try:
            self._periods = measure_counter_periods(self._counters, self._clock)
        except GpuDriverError as error:
            logger.info("The energy counter could not be watched: %s", error)
        return ", ".join(proofs)

    def before(self) -> _Burst:
        """Read all counters until each has just moved."""
        return self._burst(FIRST_BURST_TIMEOUT_S)

    def after(self, before: _Burst) -> GpuReadings:
        """Read them until each moves again; both bursts together have a time limit."""
        after = self._burst(BURSTS_TIMEOUT_S - before.took_s)
        return GpuReadings(before.reads, after.reads, before.problem or after.problem)

    def _prove_board(self, gpu: Gpu) -> str:
        reader = GpuReader(gpu, self._clock)
        power_w = reader.read().power_w
        if power_w is not None:
            return f"GPU {gpu.index} draws {power_w:.1f} W now"
        if not gpu.has_counter:
            raise EnergyError("; ".join(reader.problems()) or f"GPU {gpu.index} tells neither power nor energy")
        energy_j = gpu.driver.total_energy_j(gpu.handle)
        return f"GPU {gpu.index} has counted {energy_j:.0f} J"

    def _burst(self, timeout_s: float) -> _Burst:
        """Read all counters until each has moved, and see whether they behave."""
        if not self._counters:
            return _Burst({}, None, 0.0)
        asked_s = self._clock.now()
        try:
            reads = find_counter_steps(self._counters, self._clock, timeout_s)
        except GpuDriverError as error:
            return _Burst({}, str(error), self._clock.now() - asked_s)
        took_s = self._clock.now() - asked_s
        faults = (counter_fault(seen, self._periods.get(device)) for device, seen in reads.items())
        return _Burst(reads, next((fault for fault in faults if fault is not None), None), took_s)


def _read_counter(gpu: Gpu) -> float:
    try:
        return gpu.driver.total_energy_j(gpu.handle)
    except GpuDriverError as error:
        raise type(error)(f"GPU {gpu.index}: {error}") from error


@dataclass(frozen=True, slots=True)
class PackageReading:
    """What a package measured in one of its windows.

    Args:
        per_board_j: Joules of each board, by its index in NVML's order.
    """

    per_board_j: Mapping[int, float] = field(default_factory=dict)
    cpu_j: float | None = None
    dram_j: float | None = None
    notes: tuple[MeasurementWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class _PackageWindow:
    """A package's window, and when it was asked for and open, in seconds."""

    key: str
    asked_s: float
    opened_s: float


class PackageStrategy(GpuStrategy):
    """Joules that another package counts; this package's sampler beside it keeps watch."""

    def __init__(self, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        super().__init__(gpus, clock, options)
        self._keys = window_keys()

    @abstractmethod
    def begin(self, key: str) -> None:
        """Open the package's window called `key`.

        Raises:
            EnergyError: The package failed.
        """

    @abstractmethod
    def end(self, key: str) -> PackageReading:
        """Close it and tell what flowed.

        Raises:
            EnergyError: The package failed.
        """

    def prove(self, trial: Callable[[float], EnergyMeasurement]) -> str:
        """Measure a quarter of a second.

        Raises:
            EnergyError: The package failed, or its joules are not believable.
        """
        energy = trial(PROOF_S)
        if energy.counter_j is None:
            reasons = [note.message for note in energy.notes if note.code is not WarningCode.ENERGY_IS_ESTIMATED]
            raise EnergyError("; ".join(reasons) or f"{self.name} gave no joules")
        # Joules, not watts: a counter that moves in steps of 0.1 s does not tell the power of so short a time.
        boards = ", ".join(str(gpu.index) for gpu in self._gpus)
        return f"GPU {boards} took {energy.counter_j:.1f} J in {energy.duration_sec:.2f} s"

    def before(self) -> _PackageWindow:
        """Open a window of the package."""
        key, asked_s = next(self._keys), self._clock.now()
        self.begin(key)
        return _PackageWindow(key, asked_s, self._clock.now())

    def after(self, before: _PackageWindow) -> GpuReadings:
        """Close it. Where the package fails to, the power samples stand in and a note says so."""
        asked_s = self._clock.now()
        try:
            reading = self.end(before.key)
        except EnergyError as error:
            return GpuReadings({}, {}, str(error))
        closed_s = self._clock.now()
        # The package tells a difference, so its counter is taken to have stood at 0 when the window opened.
        joules = {gpu.uuid: reading.per_board_j[gpu.index] for gpu in self._gpus if gpu.index in reading.per_board_j}
        return GpuReadings(
            before=dict.fromkeys(joules, (CounterRead(before.asked_s, before.opened_s, 0.0),)),
            after={device: (CounterRead(asked_s, closed_s, energy_j),) for device, energy_j in joules.items()},
            cpu_j=reading.cpu_j,
            dram_j=reading.dram_j,
            notes=reading.notes,
        )


def window_keys() -> Iterator[str]:
    """Names for the windows of a package, each once."""
    return (f"llenergymeasure {number}" for number in itertools.count(1))
