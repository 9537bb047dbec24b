"""CPU and memory energy beside a GPU meter: reported next to its joules, never in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.proof import Meter
from llenergymeasure.core.energy.rapl import HostEnergy, RaplRecorder, find_domains
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

INTERVAL_S: Final = 1.0
"""Time between readings that only serve to see the counters wrap."""


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """The GPU meter's own window, and the host's counters when it opened."""

    inner: TrackingHandle
    recorder: RaplRecorder
    first: HostEnergy


class WithHostEnergy:
    """A GPU meter whose measurements also carry the joules of CPU packages and memory.

    The host's counters are read right after the GPU window opens and right before it closes: tens of microseconds
    inside it, twice.

    Args:
        meter: The meter that owns the measurement.
        clock: The measurement clock.
        root: Root of the powercap tree.
    """

    def __init__(self, meter: Meter, clock: Clock, root: Path) -> None:
        self._meter = meter
        self._clock = clock
        self._root = root

    @property
    def name(self) -> str:
        """The GPU meter's name."""
        return self._meter.name

    def prove(self) -> str:
        """See the GPU meter."""
        return self._meter.prove()

    def is_available(self) -> bool:
        """See the GPU meter."""
        return self._meter.is_available()

    def start_tracking(self) -> TrackingHandle:
        """Open a window.

        Raises:
            EnergyError: A sensor cannot be read.
        """
        recorder = RaplRecorder(find_domains(self._root), self._clock, INTERVAL_S)
        recorder.open()
        try:
            inner = self._meter.start_tracking()
        except BaseException:
            recorder.abort()
            raise
        try:
            return TrackingHandle(inner.start_s, _OpenWindow(inner, recorder, recorder.mark()))
        except BaseException:
            recorder.abort()
            _discard(self._meter.stop_tracking(inner))
            raise

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close it."""
        window = handle.state
        if not isinstance(window, _OpenWindow):
            raise EnergyError("this window was not opened by this meter")
        flowed: HostEnergy | None = None
        problem = ""
        try:
            flowed = window.recorder.mark().since(window.first)
        except EnergyError as error:
            problem = str(error)
        try:
            energy = self._meter.stop_tracking(window.inner)
        finally:
            window.recorder.abort()
        if flowed is None or flowed.package_j <= 0:
            note = MeasurementWarning(
                WarningCode.TELEMETRY_UNAVAILABLE,
                f"CPU and memory energy are missing: {problem or 'the RAPL counters stood still'}",
            )
            return replace(energy, notes=(*energy.notes, note))
        return replace(energy, cpu_j=flowed.package_j, dram_j=flowed.dram_j)


def _discard(energy: EnergyMeasurement) -> None:
    if energy.telemetry is not None:
        energy.telemetry.close()
