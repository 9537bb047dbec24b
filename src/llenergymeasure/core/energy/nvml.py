"""The NVML meter: hardware energy counters read at the window's edges, power samples in between.

    sampler   o----o----o----o----o----o----o----o----o----o----o----o----o
    counter          c c c c                                c c c c
    window                  [ <------------------------> ]
                          start_s                      end_s

`start_tracking` starts the sampler, then reads the counters in a short burst until each has just moved, and returns:
the window starts on a step of the counter. `stop_tracking` takes the time, reads in a burst until the counters move
again, and stops the sampler once it has a sample from past the end. Between the two no counter is read. What the
readings are worth is `gpu_window`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import board_warnings, calibrations_of
from llenergymeasure.core.energy.counter import (
    BURSTS_TIMEOUT_S,
    FIRST_BURST_TIMEOUT_S,
    CounterPeriod,
    CounterRead,
    find_counter_steps,
    first_step,
    measure_counter_periods,
)
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.gpu_reader import GpuReader
from llenergymeasure.core.energy.gpu_sampling import (
    describe_sensor,
    power_sampling,
    sampler_warnings,
    start_sampler,
    with_notes,
)
from llenergymeasure.core.energy.gpu_window import BoardRecord, GpuWindow, RecordedWindow
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriver, GpuDriverError, find_gpus
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.exceptions import EnergyError

logger = logging.getLogger(__name__)

SLOW_READ_S: Final = 0.05
"""A single counter read that takes longer says too little about when the counter had its value."""

SLACK_S: Final = 0.005
"""Delay of one step that is still nothing to worry about."""


@dataclass(frozen=True, slots=True)
class _Reads:
    """One burst of counter reads; a problem of one board's counter spoils the burst, and so the method, for all."""

    reads: Mapping[DeviceId, tuple[CounterRead, ...]]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """What it takes to close a window."""

    sampler: PowerSampler
    before: _Reads
    burst_s: float
    warnings: tuple[MeasurementWarning, ...]


class NVMLBackend:
    """The meter of GPUs, by NVML alone.

    Args:
        devices: UUIDs of the GPUs or MIG instances that the run uses, and of no others.
        nvml: The machine's NVML.
        clock: The measurement clock.
        options: How meters work on this machine.

    Raises:
        EnergyError: A device is not one of this machine's, or NVML failed.
    """

    name = "nvml"

    def __init__(self, devices: Sequence[DeviceId], nvml: GpuDriver, clock: Clock, options: MeterOptions) -> None:
        self._clock = clock
        self._options = options
        self._gpus = find_gpus(devices, nvml)
        self._calibrations = calibrations_of(self._gpus, options.calibration_dir)
        self._counted = [gpu for gpu in self._gpus if gpu.has_counter]
        self._periods: Mapping[DeviceId, CounterPeriod] = {}

    def prove(self) -> str:
        """Read every board once, and learn how often its counter moves.

        Raises:
            EnergyError: A board has neither a power reading nor a counter that works.
        """
        proofs = [self._prove_board(gpu) for gpu in self._gpus]
        try:
            self._periods = measure_counter_periods(self._counters(), self._clock)
        except GpuDriverError as error:
            logger.info("The energy counter could not be watched: %s", error)
        return ", ".join(proofs)

    def is_available(self) -> bool:
        """Whether every board gives a reading."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Start sampling, find a step of the counters, and open the window.

        Raises:
            EnergyError: The sampler could not start.
        """
        warnings = tuple(board_warnings(self._gpus, self._options.family_pid))
        sampler = start_sampler(self._gpus, self._clock, self._options)
        asked_s = self._clock.now()
        try:
            before = self._burst(FIRST_BURST_TIMEOUT_S)
        except BaseException:  # no thread is left behind, whatever happened
            sampler.abort()
            raise
        start_s = self._clock.now()
        return TrackingHandle(start_s, _OpenWindow(sampler, before, start_s - asked_s, warnings))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window and compute what flowed in it."""
        end_s = self._clock.now()
        window = handle.state
        if not isinstance(window, _OpenWindow):
            raise EnergyError("this window was not opened by the NVML meter")
        try:
            after = self._burst(BURSTS_TIMEOUT_S - window.burst_s)
        except BaseException:
            window.sampler.abort()
            raise
        telemetry = window.sampler.stop(end_s)
        record = GpuWindow(
            start_s=handle.start_s,
            end_s=end_s,
            boards=tuple(self._record(gpu, window.before, after, telemetry) for gpu in self._gpus),
            sampling_interval_s=self._options.poll_interval_ms / 1000,
            gain_uncertainty_pct=self._options.power_gain_uncertainty_pct,
            meter=self.name,
        )
        warnings = dict.fromkeys((*window.warnings, *board_warnings(self._gpus, self._options.family_pid)))
        energy = gpu_measurement(RecordedWindow(record, telemetry))
        return with_notes(energy, (*warnings, *sampler_warnings(telemetry)))

    def _prove_board(self, gpu: Gpu) -> str:
        reader = GpuReader(gpu, self._clock)
        power_w = reader.read().power_w
        if power_w is not None:
            return f"GPU {gpu.index} draws {power_w:.1f} W now"
        if not gpu.has_counter:
            raise EnergyError("; ".join(reader.problems()) or f"GPU {gpu.index} tells neither power nor energy")
        energy_j = gpu.driver.total_energy_j(gpu.handle)
        return f"GPU {gpu.index} has counted {energy_j:.0f} J"

    def _counters(self) -> dict[DeviceId, Callable[[], float]]:
        return {gpu.uuid: partial(_read_counter, gpu) for gpu in self._counted}

    def _burst(self, timeout_s: float) -> _Reads:
        """Read all counters until each has moved, and see whether they behave."""
        counters = self._counters()
        if not counters:
            return _Reads({})
        try:
            reads = find_counter_steps(counters, self._clock, timeout_s)
        except GpuDriverError as error:
            return _Reads({}, str(error))
        faults = (counter_fault(reads[gpu.uuid], self._periods.get(gpu.uuid)) for gpu in self._counted)
        return _Reads(reads, next((fault for fault in faults if fault is not None), None))

    def _record(self, gpu: Gpu, before: _Reads, after: _Reads, telemetry: SampledTelemetry) -> BoardRecord:
        calibration = self._calibrations.get(gpu.uuid)
        sampling = power_sampling(gpu, calibration, telemetry)
        return BoardRecord(
            device=gpu.uuid,
            board=gpu.board_uuid,
            has_counter=gpu.has_counter,
            before=before.reads.get(gpu.uuid, ()),
            after=after.reads.get(gpu.uuid, ()),
            counter_problem=(before.problem or after.problem) if gpu.has_counter else None,
            includes_module=gpu.includes_module,
            power_limit_w=gpu.power_limit_w,
            sensor=describe_sensor(calibration, sampling, self._periods.get(gpu.uuid)),
            sampling=sampling,
        )


def counter_fault(reads: Sequence[CounterRead], period: CounterPeriod | None) -> str | None:
    """What a burst of reads says against a counter; `None` where nothing does.

    Args:
        reads: The burst.
        period: How often the counter moves, where that is known.
    """
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


def _read_counter(gpu: Gpu) -> float:
    try:
        return gpu.driver.total_energy_j(gpu.handle)
    except GpuDriverError as error:
        raise type(error)(f"GPU {gpu.index}: {error}") from error
