"""What the installed packages of the meter tests import: a machine of 50 W."""

from __future__ import annotations

from collections.abc import Sequence

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.domain.energy import BudgetComponent


class WallMeter:
    available = True

    def __init__(self, devices: Sequence[str], clock: Clock) -> None:
        self._clock = clock
        self.name = "whatever it calls itself"

    def is_available(self) -> bool:
        return self.available

    def start_tracking(self) -> TrackingHandle:
        return TrackingHandle(self._clock.now())

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        end_s = self._clock.now()
        resolution = BudgetComponent(name="resolution", kind="counter_resolution", half_width_j=0.5)
        return EnergyMeasurement(
            handle.start_s,
            end_s,
            50.0 * (end_s - handle.start_s),
            "power_integration",
            "machine",
            components=(resolution,),
        )
