"""What is known of the sensors of a run's GPUs, by kind or by calibration, and what about the boards spoils a figure.

A calibration (calibrate.py) says when and over how long a sensor looks; it is kept per board and driver. It says
nothing about the gain: without an external meter nobody can tell whether the sensor reads 5 % too much, so the gain's
uncertainty is never reduced by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from llenergymeasure.atomic import naming_the_path, write_bytes_atomically
from llenergymeasure.core.energy.telemetry import PowerSource, Telemetry
from llenergymeasure.core.energy.types import PowerSampling, SensorDescription
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriverError, GpuHandle
from llenergymeasure.core.host.processes import foreign_pids, process_exists, relatives
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError
from llenergymeasure.security import sanitize_experiment_id

FOLLOWING: Final = {
    ("6.", "7.0", "7.2"): PowerSampling(averaging_window_s=0.010, update_s=0.020),
    ("8.0", "9.0"): PowerSampling(averaging_window_s=0.025, update_s=0.100),
}
"""Readings that follow the load, by the beginning of the compute capability: how long each one averages and how often
it changes (arXiv 2312.02741, table 1). Where nothing is known, both are 100 ms."""

AVERAGED: Final = PowerSampling(averaging_window_s=1.0, update_s=0.1)
"""What `nvmlDeviceGetPowerUsage` gives on boards since Ampere, GA100 excepted (the same source)."""

BUFFERED: Final = {"9.0": PowerSampling(averaging_window_s=0.032, update_s=0.020, stamped_at_update=True)}
"""What is known of the samples that the driver takes by itself, by compute capability, where a real board has shown it:
every 20 ms an average with the mean delay of one over 32 ms, with the time at which it was taken, whose integral over
39 s of a switched load was the counter's within 0.13 % (docs/validation/nvidia-h200). Elsewhere they are not used."""

LAST_FOLLOWING: Final = (8, 0)
"""Compute capability of GA100, the last whose `nvmlDeviceGetPowerUsage` follows the load."""

_T = TypeVar("_T")

_Period = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Measured = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _path(directory: Path, uuid: DeviceId, driver_version: str) -> Path:
    return directory / f"{sanitize_experiment_id(f'{uuid}_{driver_version}')}.json"


@dataclass(frozen=True, slots=True)
class SensorCalibration:
    """How one board's power sensor and energy counter behave in time.

    Args:
        driver_version: The driver it was found with; another one may read the sensor differently.
        taken_at: When (UTC, ISO 8601).
        noise_w: Standard deviation of single readings under a steady load.
        counter_period_s: Time between two steps of the energy counter; `None`: none was seen.
        counter_tolerance_s: How far single steps were from that.
        counter_follows_sensor: Whether the counter adds up what the power sensor sees; `None`: they cannot be told
            apart, or nobody looked.
    """

    uuid: DeviceId
    driver_version: str
    taken_at: str
    power_source: PowerSource
    update_s: _Period
    averaging_window_s: _Period
    noise_w: _Measured
    idle_power_w: _Measured
    load_power_w: _Measured
    counter_period_s: _Period | None = None
    counter_tolerance_s: _Measured | None = None
    counter_follows_sensor: bool | None = None

    @property
    def sampled_share(self) -> float:
        """Share of the time that the sensor sees, 0..1."""
        return min(1.0, self.averaging_window_s / self.update_s)

    @property
    def sampling(self) -> PowerSampling:
        """For the uncertainty of integrals of this sensor's readings."""
        return PowerSampling(self.averaging_window_s, self.update_s, noise_w=self.noise_w)


def save_calibration(calibration: SensorCalibration, directory: Path) -> Path:
    """Store a calibration, replacing an older one of the same board and driver, and say where.

    Raises:
        PersistenceError: It cannot be written.
    """
    make_calibration_directory(directory)
    path = _path(directory, calibration.uuid, calibration.driver_version)
    write_bytes_atomically(path, (json.dumps(asdict(calibration), indent=2) + "\n").encode())
    return path


def make_calibration_directory(directory: Path) -> None:
    """Create the directory of calibrations; a `PersistenceError` where that cannot be."""
    with naming_the_path(directory, "create"):
        directory.mkdir(parents=True, exist_ok=True)


def load_calibration(directory: Path, uuid: DeviceId, driver_version: str) -> SensorCalibration | None:
    """The calibration of a board with this driver; `None`: there is none.

    Raises:
        EnergyError: There is a file, and it is not the calibration of this board with this driver.
    """
    path = _path(directory, uuid, driver_version)
    try:
        found = TypeAdapter(SensorCalibration).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else _first_problem(error)
        raise EnergyError(f"{path} is not a sensor calibration ({reason}); delete it or calibrate again") from error
    if (found.uuid, found.driver_version) != (uuid, driver_version):
        raise EnergyError(f"{path} is the calibration of {found.uuid} with driver {found.driver_version}; delete it")
    return found


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def calibrations_of(gpus: Sequence[Gpu], directory: Path | None) -> dict[DeviceId, SensorCalibration]:
    """What was found out about the sensors of `gpus` with their driver, by device; without those never calibrated.

    Raises:
        EnergyError: A calibration is broken, or the driver failed.
    """
    if directory is None or not gpus:
        return {}
    version = gpus[0].driver.driver_version()
    found = ((gpu.uuid, load_calibration(directory, gpu.board_uuid, version)) for gpu in gpus)
    return {device: calibration for device, calibration in found if calibration is not None}


def calibrated_drivers(gpu: Gpu, directory: Path) -> list[str]:
    """Versions of the drivers that a board has been calibrated with, by the names of the files."""
    start = f"{sanitize_experiment_id(gpu.board_uuid)}_"
    return sorted(path.stem.removeprefix(start) for path in directory.glob(f"{start}*.json"))


def has_known_buffer(gpu: Gpu, calibration: SensorCalibration | None) -> bool:
    """Whether the driver's own samples of a board are worth more than its readings.

    Not on a superchip, where they are not known, nor where a calibration found that the counter adds the readings up.
    """
    follows = calibration is not None and calibration.counter_follows_sensor
    return gpu.compute_capability in BUFFERED and not gpu.includes_module and not follows


def known_sampling(gpu: Gpu, source: PowerSource | None, calibration: SensorCalibration | None = None) -> PowerSampling:
    """How power samples from `source` come about on a board: as calibrated, or as known of its kind."""
    if calibration is not None and calibration.power_source == source:
        return calibration.sampling
    capability = gpu.compute_capability or ""
    if source == "driver_buffer":
        return BUFFERED.get(capability, PowerSampling())
    major, _, minor = capability.partition(".")
    # One that is not known counts as recent.
    if source == "power_usage" and (not major.isdigit() or (int(major), int(minor or 0)) > LAST_FOLLOWING):
        return AVERAGED
    known = (sampling for prefixes, sampling in FOLLOWING.items() if capability.startswith(prefixes))
    return next(known, PowerSampling())


def power_sampling(gpu: Gpu, calibration: SensorCalibration | None, telemetry: Telemetry) -> PowerSampling:
    """How the power samples of a window came about; with two sources, what is known of the vaguer one."""
    used = [known_sampling(gpu, source, calibration) for source in telemetry.power_sources(gpu.uuid)]
    return max(used, key=lambda sampling: sampling.unknown_lag_s, default=PowerSampling())


def describe_sensor(
    calibration: SensorCalibration | None, sampling: PowerSampling, counter: SensorDescription | None
) -> SensorDescription:
    """What is known of a board's sensors after a window; `counter`: what was seen of its counter just now."""
    unknown = counter is None or counter.counter_period_s is None
    still_s = 0.0 if counter is None else counter.counter_still_s
    if unknown and calibration is not None and calibration.counter_period_s is not None:
        period_s, tolerance_s = calibration.counter_period_s, calibration.counter_tolerance_s or 0.0
        refuted_s = still_s if still_s > period_s + tolerance_s else 0.0
        counter = SensorDescription(period_s, tolerance_s, counter_still_s=refuted_s)
    return replace(
        counter or SensorDescription(),
        averaging_window_s=sampling.averaging_window_s,
        counter_follows_sensor=None if calibration is None else calibration.counter_follows_sensor,
    )


def board_warnings(gpus: Sequence[Gpu], family_pid: int | None = None) -> Iterator[MeasurementWarning]:
    """What about the boards themselves makes a figure doubtful, now."""
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
                f"GPU {gpu.index} also worked for {len(others)} other process{'es' * (len(others) > 1)} "
                f"({', '.join(map(str, sorted(others)))}), whose energy is in the figures",
            )


def _optional(reading: Callable[[GpuHandle], _T], handle: GpuHandle) -> _T | None:
    """A reading that a measurement can do without."""
    try:
        return reading(handle)
    except GpuDriverError:
        return None
