"""The boards behind a run's devices: found by UUID, described once, and looked at for what spoils a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from llenergymeasure.core.energy.calibration import SensorCalibration, load_calibration
from llenergymeasure.core.energy.types import DeviceId, PowerSource
from llenergymeasure.core.energy.uncertainty import PowerSampling
from llenergymeasure.core.gpu.nvml import (
    Nvml,
    NvmlDeviceNotFoundError,
    NvmlError,
    NvmlHandle,
    NvmlNotSupportedError,
)
from llenergymeasure.core.host.processes import foreign_pids, process_exists, relatives
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

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


@dataclass(frozen=True, slots=True)
class Board:
    """One board under measurement.

    Args:
        device: The device as the run names it.
        uuid: UUID of the board, which is another one for a MIG instance.
        index: Index of the board in NVML's order.
        handle: NVML's handle of the board.
        has_counter: Whether it has an energy counter.
        includes_module: Whether its counter covers a whole superchip.
        power_limit_w: Its enforced power limit in watts, where it tells.
        compute_capability: CUDA compute capability, where it tells.
        calibration: What was found out about its sensors with this driver; `None`: it was not calibrated.
    """

    device: DeviceId
    uuid: DeviceId
    index: int
    handle: NvmlHandle
    has_counter: bool
    includes_module: bool
    power_limit_w: float | None
    compute_capability: str | None
    calibration: SensorCalibration | None = None

    @property
    def is_mig(self) -> bool:
        """Whether the run uses only a slice of it."""
        return self.device != self.uuid

    def sampling(self, source: PowerSource | None) -> PowerSampling:
        """How power samples from `source` come about on this board: as calibrated, or as known of its kind."""
        if self.calibration is not None and self.calibration.power_source == source:
            return self.calibration.sampling
        capability = self.compute_capability or ""
        if source == "power_usage" and _version(capability) > LAST_FOLLOWING:
            return AVERAGED
        known = (sampling for prefix, sampling in FOLLOWING.items() if capability.startswith(prefix))
        return next(known, PowerSampling())


def _version(capability: str) -> tuple[int, int]:
    """A compute capability as numbers; an unknown one counts as recent."""
    major, _, minor = capability.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() else (99, 0)


def find_boards(devices: Sequence[DeviceId], nvml: Nvml, calibration_dir: Path | None = None) -> tuple[Board, ...]:
    """The boards behind `devices`, each once, in the order of the devices.

    Args:
        devices: UUIDs of GPUs or MIG instances.
        nvml: The machine's NVML.
        calibration_dir: Where sensor calibrations lie; `None`: none are used.

    Raises:
        EnergyError: A device is not one of this machine's, NVML failed, or a calibration is broken.
    """
    indices = {nvml.uuid(handle): index for index, handle in enumerate(nvml.device_handles())}
    found: dict[DeviceId, Board] = {}
    for device in devices:
        try:
            handle = nvml.handle_by_uuid(device)
        except NvmlDeviceNotFoundError as error:
            raise EnergyError(f"NVML knows no device {device}; it has {', '.join(indices) or 'none'}") from error
        if device.startswith("MIG-"):
            handle = nvml.mig_parent(handle)
        uuid = nvml.uuid(handle)
        if uuid not in found:
            found[uuid] = _describe(device, uuid, indices[uuid], handle, nvml)
    if calibration_dir is None:
        return tuple(found.values())
    driver = nvml.driver_version()
    return tuple(
        replace(board, calibration=load_calibration(calibration_dir, board.uuid, driver)) for board in found.values()
    )


def board_warnings(boards: Sequence[Board], nvml: Nvml, family_pid: int | None = None) -> Iterator[MeasurementWarning]:
    """What about the boards themselves makes a figure doubtful, now.

    Args:
        boards: The boards under measurement.
        nvml: The machine's NVML.
        family_pid: See `MeterOptions`.
    """
    for board in boards:
        if board.is_mig:
            yield MeasurementWarning(
                WarningCode.MIG_PARENT_ENERGY,
                f"{board.device} is a slice of {board.uuid}, and NVML measures whole boards: the figures include "
                "whatever else ran on it",
            )
        if _optional(nvml.persistence_mode, board.handle) is False:
            yield MeasurementWarning(
                WarningCode.GPU_PERSISTENCE_MODE_OFF,
                f"persistence mode of GPU {board.index} is off; the driver may be unloaded between runs, which changes "
                f"idle power and start-up. Switch it on with: sudo nvidia-smi -i {board.index} -pm 1",
            )
        others = foreign_pids(_optional(nvml.compute_pids, board.handle) or (), relatives(family_pid), process_exists)
        if others:
            yield MeasurementWarning(
                WarningCode.FOREIGN_GPU_PROCESS,
                f"GPU {board.index} also worked for {_count(len(others), 'other process', 'other processes')} "
                f"({', '.join(map(str, sorted(others)))}), whose energy is in the figures",
            )


def _describe(device: DeviceId, uuid: DeviceId, index: int, handle: NvmlHandle, nvml: Nvml) -> Board:
    return Board(
        device=device,
        uuid=uuid,
        index=index,
        handle=handle,
        has_counter=_has_counter(nvml, handle),
        includes_module=_optional(nvml.energy_includes_module, handle) or False,
        power_limit_w=_optional(nvml.power_limit_w, handle),
        compute_capability=_optional(nvml.compute_capability, handle),
    )


def _has_counter(nvml: Nvml, handle: NvmlHandle) -> bool:
    """Whether there is a counter; one that cannot be read for now counts as there, and its reads will tell."""
    try:
        nvml.total_energy_j(handle)
    except NvmlNotSupportedError:
        return False
    except NvmlError:
        return True
    return True


def _optional(reading: Callable[[NvmlHandle], _T], handle: NvmlHandle) -> _T | None:
    """A reading that a measurement can do without."""
    try:
        return reading(handle)
    except NvmlError:
        return None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
