"""The meter: joules of the whole machine, from the log that the logger of a power meter writes.

Each line of the log is a time (ISO 8601, UTC) and watts: `2026-02-18T14:30:05.250Z 182.4`. `LLEM_POWER_LOG` names the
file. A serial port or an HTTP endpoint is read alike: what changes is where samples come from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.integrate import integrate_power
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

VARIABLE = "LLEM_POWER_LOG"
ACCURACY_PCT = 1.0
"""95 % half-width of the meter's gain, by its data sheet."""
STALE_S = 5.0
"""A log whose last line is older is no longer written."""
LATENCY_S = 3.0
"""Longest wait for the sample after the window."""
POLL_S = 0.02


@dataclass(frozen=True)
class Opened:
    """Where the log was when the window opened, and what date the clock's instants have."""

    offset: int
    epoch_s: float


class PowerLogMeter:
    """Integrates the logged power. Called with the devices of the run and the measurement clock."""

    name = "power-log"

    def __init__(self, devices: Sequence[str], clock: Clock) -> None:
        path = os.environ.get(VARIABLE, "")
        if not path:
            raise EnergyError(f"no power log is named. Set {VARIABLE} to the file that the meter's logger writes.")
        self._path, self._clock = Path(path), clock

    def is_available(self) -> bool:
        samples = self._samples(0)
        age_s = self._clock.wall().timestamp() - samples[-1][0] if samples else None
        if age_s is None or age_s > STALE_S:
            raise EnergyError(f"{self._path} has no sample of the last {STALE_S:g} s. Is the logger running?")
        return True

    def start_tracking(self) -> TrackingHandle:
        offset = self._offset_of_last_line()  # before the window, so that its first edge has a sample on both sides
        start_s = self._clock.now()
        return TrackingHandle(start_s, Opened(offset, self._clock.wall().timestamp() - start_s))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        end_s = self._clock.now()  # the window ends here; what follows is outside of it
        opened = handle.state
        assert isinstance(opened, Opened)
        samples = self._samples(opened.offset)
        while (not samples or samples[-1][0] - opened.epoch_s < end_s) and self._clock.now() < end_s + LATENCY_S:
            self._clock.sleep(POLL_S)
            samples = self._samples(opened.offset)
        times_s = [time_s - opened.epoch_s for time_s, _ in samples]
        power_w = [watts for _, watts in samples]
        try:
            total_j = integrate_power(times_s, power_w, handle.start_s, end_s)
        except (EnergyError, ValueError) as error:  # None and the reason, never 0
            note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, f"{self._path.name}: {error}")
            return EnergyMeasurement(handle.start_s, end_s, notes=(note,))
        gap_s = max(later - earlier for earlier, later in pairwise(times_s))
        return EnergyMeasurement(
            start_s=handle.start_s,
            end_s=end_s,
            total_j=total_j,
            method="power_integration",
            scope="machine",
            integral_j=total_j,
            components=(
                BudgetComponent(name="accuracy class", kind="gain", half_width_j=total_j * ACCURACY_PCT / 100),
                BudgetComponent(
                    name="edges",
                    kind="sampling",
                    half_width_j=gap_s * max(1.0, max(power_w) - min(power_w)),
                    note="a change of power between two samples, at either edge; the meter resolves 1 W",
                ),
            ),
        )

    def _samples(self, offset: int) -> list[tuple[float, float]]:
        """Times in seconds since 1970 and watts, from a place in the log on; a line that is being written is left."""
        try:
            with self._path.open("rb") as log:
                log.seek(offset)
                lines = log.read().decode().split("\n")[:-1]
            pairs = [line.split() for line in lines if line.strip()]
            return [(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp(), float(w)) for time, w in pairs]
        except (OSError, ValueError) as error:
            raise EnergyError(f"{self._path} cannot be read: {error}") from error

    def _offset_of_last_line(self) -> int:
        try:
            log = self._path.read_bytes()
        except OSError as error:
            raise EnergyError(f"{self._path} cannot be read: {error}") from error
        return log.rstrip(b"\n").rfind(b"\n", 0, log.rfind(b"\n")) + 1
