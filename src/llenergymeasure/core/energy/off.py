"""A meter that measures nothing and says so: for runs whose energy nobody wants, or nobody can measure."""

from __future__ import annotations

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError


class NoEnergyBackend:
    """Times the window and leaves every energy figure `None`.

    Args:
        clock: The measurement clock.
        reason: Why nothing is measured, for the warning; `None` when the user switched energy off, which needs none.
    """

    name = "none"

    def __init__(self, clock: Clock, reason: str | None = None) -> None:
        self._clock = clock
        self._reason = reason

    def prove(self) -> str:
        """Never succeeds: there is no reading to take.

        Raises:
            EnergyError: Always.
        """
        raise EnergyError(self._reason or "energy measurement is switched off (energy.backend: null)")

    def is_available(self) -> bool:
        """False: this meter has no sensor."""
        return False

    def start_tracking(self) -> TrackingHandle:
        """Open a window."""
        return TrackingHandle(start_s=self._clock.now())

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close it, without a figure."""
        notes = () if self._reason is None else (MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, self._reason),)
        return EnergyMeasurement(
            start_s=handle.start_s,
            end_s=self._clock.now(),
            total_j=None,
            method=None,
            scope=None,
            notes=notes,
            meter=self.name,
        )
