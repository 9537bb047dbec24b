"""What is known of the sensors of a run's GPUs, and what about the boards spoils a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from llenergymeasure.core.energy.calibration import SensorCalibration, load_calibration
from llenergymeasure.core.energy.types import PowerSource
from llenergymeasure.core.energy.uncertainty import PowerSampling
from llenergymeasure.core.gpu.driver import (
    DeviceId,
    Gpu,
    GpuDriverError,
    GpuHandle,
)
from llenergymeasure.core.host.processes import foreign_pids, process_exists, relatives
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

FOLLOWING: Final[dict[str, PowerSampling]] = {
    "6.": PowerSampling(averaging_window_s=0.010, update_s=0.020),
    "7.0": PowerSampling(averaging_window_s=0.010, update_s=0.020),
    "7.2": PowerSampling(averaging_window_s=0.010, update_s=0.020),
    "8.0": PowerSampling(averaging_window_s=0.025, update_s=0.100),
    "9.0": PowerSampling(averaging_window_s=0.025, update_s=0.100),
}
"""Readings that follow the load, by the beginning of the compute capability: how long each one averages and how often
it changes (arXiv 2312.02741, table 1). Where nothing is known, both are 100 ms."""

AVERAGED: Final = PowerSampling(averaging_window_s=1.0, update_s=0.1)
"""What `nvmlDeviceGetPowerUsage` gives on boards since Ampere, GA100 excepted (the same source)."""

LAST_FOLLOWING: Final = (8, 0)
"""Compute capability of GA100, the last whose `nvmlDeviceGetPowerUsage` follows the load."""

_T = TypeVar("_T")


def calibrations_of(gpus: Sequence[Gpu], directory: Path | None) -> dict[DeviceId, SensorCalibration]:
    """What was found out about the sensors of `gpus` with their driver, by device; without those never calibrated.

    Args:
        directory: Where sensor calibrations lie; `None`: none are used.

    Raises:
        EnergyError: A calibration is broken, or the driver failed.
    """
    if directory is None or not gpus:
        return {}
    version = gpus[0].driver.driver_version()
    found = {gpu.uuid: load_calibration(directory, gpu.board_uuid, version) for gpu in gpus}
    return {device: calibration for device, calibration in found.items() if calibration is not None}


def known_sampling(gpu: Gpu, source: PowerSource | None, calibration: SensorCalibration | None = None) -> PowerSampling:
    """How power samples from `source` come about on a board: as calibrated, or as known of its kind."""
    if calibration is not None and calibration.power_source == source:
        return calibration.sampling
    capability = gpu.compute_capability or ""
    if source == "power_usage" and _version(capability) > LAST_FOLLOWING:
        return AVERAGED
    known = (sampling for prefix, sampling in FOLLOWING.items() if capability.startswith(prefix))
    return next(known, PowerSampling())


def _version(capability: str) -> tuple[int, int]:
    """A compute capability as numbers; an unknown one counts as recent."""
    major, _, minor = capability.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() else (99, 0)


def board_warnings(gpus: Sequence[Gpu], family_pid: int | None = None) -> Iterator[MeasurementWarning]:
    """What about the boards themselves makes a figure doubtful, now.

    Args:
        family_pid: See `MeterOptions`.
    """
    for gpu in gpus:
        if gpu.is_mig:
            yield MeasurementWarning(
                WarningCode.MIG_PARENT_ENERGY,
                f"{gpu.uuid} is a slice of {gpu.board_uuid}, and NVML measures whole boards: the figures include "
                "whatever else ran on it",
            )
        if _optional(gpu.driver.persistence_mode, gpu.handle) is False:
            yield MeasurementWarning(
                WarningCode.GPU_PERSISTENCE_MODE_OFF,
                f"persistence mode of GPU {gpu.index} is off; the driver may be unloaded between runs, which changes "
                f"idle power and start-up. Switch it on with: sudo nvidia-smi -i {gpu.index} -pm 1",
            )
        others = foreign_pids(
            _optional(gpu.driver.compute_pids, gpu.handle) or (), relatives(family_pid), process_exists
        )
        if others:
            yield MeasurementWarning(
                WarningCode.FOREIGN_GPU_PROCESS,
                f"GPU {gpu.index} also worked for {_count(len(others), 'other process', 'other processes')} "
                f"({', '.join(map(str, sorted(others)))}), whose energy is in the figures",
            )


def _optional(reading: Callable[[GpuHandle], _T], handle: GpuHandle) -> _T | None:
    """A reading that a measurement can do without."""
    try:
        return reading(handle)
    except GpuDriverError:
        return None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
