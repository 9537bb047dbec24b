"""What was found out about one board's sensors, kept per board and driver.

A calibration says when and over how long the sensor looks. It says nothing about the gain: without an external meter
nobody can tell whether the sensor reads 5 % too much, so the gain's uncertainty is never reduced by it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from llenergymeasure.atomic import write_bytes_atomically
from llenergymeasure.core.energy.counter import CounterPeriod
from llenergymeasure.core.energy.types import PowerSource
from llenergymeasure.core.energy.uncertainty import PowerSampling
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.exceptions import EnergyError
from llenergymeasure.security import sanitize_experiment_id

GAIN_NOTE: Final = "The gain cannot be found without an external power meter; its uncertainty stays as configured."


@dataclass(frozen=True, slots=True)
class SensorCalibration:
    """How one board's power sensor and energy counter behave in time.

    Args:
        uuid: The board.
        driver_version: The driver it was found with; another one may read the sensor differently.
        taken_at: When (UTC, ISO 8601).
        power_source: Which reading the sensor's figures are about.
        update_s: Time between two updates of the sensor in seconds.
        averaging_window_s: Over which time a reading is an average, in seconds.
        noise_w: Standard deviation of single readings under a steady load, in watts.
        idle_power_w: Power without the load, in watts, by this sensor.
        load_power_w: Power with the load, likewise.
        counter_period_s: Time between two steps of the energy counter in seconds; `None`: none was seen.
        counter_tolerance_s: How far single steps were from that.
    """

    uuid: DeviceId
    driver_version: str
    taken_at: str
    power_source: PowerSource
    update_s: float
    averaging_window_s: float
    noise_w: float
    idle_power_w: float
    load_power_w: float
    counter_period_s: float | None = None
    counter_tolerance_s: float | None = None

    @property
    def sampled_share(self) -> float:
        """Share of the time that the sensor sees, 0..1."""
        return min(1.0, self.averaging_window_s / self.update_s)

    @property
    def sampling(self) -> PowerSampling:
        """For the uncertainty of integrals of this sensor's readings."""
        return PowerSampling(self.averaging_window_s, self.update_s)

    @property
    def counter_period(self) -> CounterPeriod | None:
        """For meters that have no time to watch the counter themselves."""
        if self.counter_period_s is None:
            return None
        return CounterPeriod(self.counter_period_s, self.counter_tolerance_s or 0.0)


def save_calibration(calibration: SensorCalibration, directory: Path) -> Path:
    """Store a calibration, replacing an older one of the same board and driver, and say where."""
    directory.mkdir(parents=True, exist_ok=True)
    path = _path(directory, calibration.uuid, calibration.driver_version)
    write_bytes_atomically(path, (json.dumps(asdict(calibration), indent=2) + "\n").encode())
    return path


def load_calibration(directory: Path, uuid: DeviceId, driver_version: str) -> SensorCalibration | None:
    """The calibration of a board with this driver; `None`: there is none.

    Raises:
        EnergyError: There is a file, and it is not the calibration of this board with this driver.
    """
    path = _path(directory, uuid, driver_version)
    try:
        found = _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise EnergyError(f"{path} is not a sensor calibration ({reason}); delete it or calibrate again") from error
    if (found.uuid, found.driver_version) != (uuid, driver_version):
        raise EnergyError(f"{path} is the calibration of {found.uuid} with driver {found.driver_version}; delete it")
    return found


_ADAPTER: Final = TypeAdapter(SensorCalibration)


def _path(directory: Path, uuid: DeviceId, driver_version: str) -> Path:
    return directory / f"{sanitize_experiment_id(f'{uuid}_{driver_version}')}.json"
