"""The sampler beside a GPU meter, and what its record says about the sensors and about itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import known_sampling
from llenergymeasure.core.energy.calibration import SensorCalibration
from llenergymeasure.core.energy.counter import CounterPeriod
from llenergymeasure.core.energy.fusion import SensorDescription
from llenergymeasure.core.energy.gpu_reader import GpuReader
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, PowerSource
from llenergymeasure.core.energy.uncertainty import PowerSampling
from llenergymeasure.core.gpu.driver import DeviceId, Gpu
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MISSED_SHARE: float = 0.01
"""Share of due readings that may be missed before a warning is worth it."""


def start_sampler(gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> PowerSampler:
    """Start sampling `gpus`; returns when each has been read once.

    Raises:
        EnergyError: The first round of readings failed as a whole.
    """
    readers = [GpuReader(gpu, clock) for gpu in gpus]
    sampler = PowerSampler(
        readers, interval_s=options.poll_interval_ms / 1000, clock=clock, spill_dir=options.spill_dir
    )
    sampler.start()
    return sampler


def power_sampling(gpu: Gpu, calibration: SensorCalibration | None, telemetry: SampledTelemetry) -> PowerSampling:
    """How the power samples of a window came about; with two sources, what is known of the slower one."""
    used = [known_sampling(gpu, source, calibration) for source in power_sources(telemetry, gpu.uuid)]
    return max(used, key=lambda sampling: sampling.averaging_window_s, default=PowerSampling())


def describe_sensor(
    calibration: SensorCalibration | None, sampling: PowerSampling, period: CounterPeriod | None
) -> SensorDescription:
    """What is known of a board's sensors after a window.

    Args:
        sampling: How its power samples came about.
        period: Time between two steps of its counter, where it was watched; otherwise a calibration may tell.
    """
    sensor = SensorDescription(averaging_window_s=sampling.averaging_window_s)
    if period is None and calibration is not None:
        period = calibration.counter_period
    if period is None:
        return sensor
    return replace(sensor, counter_period_s=period.period_s, counter_period_tolerance_s=period.tolerance_s)


def power_sources(telemetry: SampledTelemetry, device: DeviceId) -> set[PowerSource]:
    """All sources that the device's power values came from."""
    if device not in telemetry.devices:
        return set()
    return {sample.power_source for sample in telemetry.samples(device) if sample.power_source is not None}


def sampler_warnings(telemetry: SampledTelemetry) -> Iterator[MeasurementWarning]:
    """Doubts about the sampler's own work."""
    report = telemetry.report
    if report.missed_deadlines > MISSED_SHARE * (report.ticks + report.missed_deadlines):
        yield MeasurementWarning(
            WarningCode.SAMPLER_DEADLINES_MISSED,
            f"{report.missed_deadlines} of {report.ticks + report.missed_deadlines} readings were not taken in time "
            f"(the longest round took {1000 * report.longest_tick_s:.0f} ms); figures from the power trace are coarser",
        )
    for problem in report.problems:
        yield MeasurementWarning(WarningCode.TELEMETRY_UNAVAILABLE, problem)
    for device in telemetry.devices:
        if len(power_sources(telemetry, device)) > 1:
            yield MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"the power samples of {device} come from two sensors, one instantaneous and one averaged over up to "
                "a second; the power trace jumps where they meet",
            )


def with_notes(energy: EnergyMeasurement, notes: Iterable[MeasurementWarning]) -> EnergyMeasurement:
    """The same measurement with more notes."""
    return replace(energy, notes=(*energy.notes, *notes))
