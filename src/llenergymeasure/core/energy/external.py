"""GPU meters that come from other packages: they own the joules, this package's sampler beside them keeps watch.

Such a package opens a window by reading energy counters and closes it by reading them again, and tells the difference
for each board. That is treated like two readings of our own: checked for zeros, jumps and resets, held against the
power samples, and given the uncertainty of a counter that was read once on each side.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.boards import board_warnings, calibrations_of
from llenergymeasure.core.energy.counter import CounterRead
from llenergymeasure.core.energy.gpu_energy import gpu_measurement
from llenergymeasure.core.energy.gpu_sampling import describe_sensor, power_sampling, sampler_warnings, start_sampler
from llenergymeasure.core.energy.gpu_window import BoardRecord, GpuWindow, RecordedWindow
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.telemetry import SampledTelemetry
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import Gpu
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

PROOF_S: Final = 0.25
"""Length of the trial window that proves availability: two updates of the energy counter."""


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What a package measured in one of its windows.

    Args:
        per_board_j: Joules of each board, by its index in NVML's order.
        cpu_j: Joules of the CPU, if it tells.
        dram_j: Joules of the memory, if it tells.
        notes: What must be known about these.
    """

    per_board_j: Mapping[int, float] = field(default_factory=dict)
    cpu_j: float | None = None
    dram_j: float | None = None
    notes: tuple[MeasurementWarning, ...] = ()


class JouleSource(Protocol):
    """A package's own way to open and close windows; both raise `EnergyError` when they fail."""

    @property
    def name(self) -> str:
        """Name of the energy backend."""

    def begin(self, key: str) -> None:
        """Open the window called `key`."""

    def end(self, key: str) -> SourceReading:
        """Close it and tell what flowed."""


@dataclass(frozen=True, slots=True)
class _OpenWindow:
    """What it takes to close a window."""

    key: str
    sampler: PowerSampler
    asked_s: float
    warnings: tuple[MeasurementWarning, ...]


class ExternalGpuBackend:
    """The meter of GPUs whose joules another package counts.

    Args:
        source: The package.
        boards: The boards it was set up for.
        nvml: The machine's NVML.
        clock: The measurement clock.
        options: How meters work on this machine.
    """

    def __init__(self, source: JouleSource, gpus: Sequence[Gpu], clock: Clock, options: MeterOptions) -> None:
        self._source = source
        self._gpus = tuple(gpus)
        self._calibrations = calibrations_of(self._gpus, options.calibration_dir)
        self._clock = clock
        self._options = options
        self._keys = (f"llenergymeasure {number}" for number in itertools.count(1))

    @property
    def name(self) -> str:
        """The package's name."""
        return self._source.name

    def prove(self) -> str:
        """Measure a quarter of a second.

        Raises:
            EnergyError: The package failed, or its joules are not believable.
        """
        handle = self.start_tracking()
        self._clock.sleep(PROOF_S)
        trial = self.stop_tracking(handle)
        if trial.telemetry is not None:
            trial.telemetry.close()
        if trial.counter_j is None:
            reasons = [note.message for note in trial.notes if note.code is not WarningCode.ENERGY_IS_ESTIMATED]
            raise EnergyError("; ".join(reasons) or f"{self.name} gave no joules")
        # Joules, not watts: a counter that moves in steps of 0.1 s does not tell the power of so short a time.
        boards = ", ".join(str(gpu.index) for gpu in self._gpus)
        return f"GPU {boards} took {trial.counter_j:.1f} J in {trial.duration_sec:.2f} s"

    def is_available(self) -> bool:
        """Whether a short trial window gives joules for every board."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Start sampling and open a window of the package.

        Raises:
            EnergyError: The package or the sampler failed.
        """
        warnings = tuple(board_warnings(self._gpus, self._options.family_pid))
        sampler = start_sampler(self._gpus, self._clock, self._options)
        key = next(self._keys)
        asked_s = self._clock.now()
        try:
            self._source.begin(key)
        except BaseException:  # no thread is left behind, whatever happened
            sampler.abort()
            raise
        return TrackingHandle(self._clock.now(), _OpenWindow(key, sampler, asked_s, warnings))

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window. Where the package fails to, the power samples stand in and a note says so."""
        end_s = self._clock.now()
        window = handle.state
        if not isinstance(window, _OpenWindow):
            raise EnergyError(f"this window was not opened by the {self.name} meter")
        reading, problem = SourceReading(), None
        try:
            reading = self._source.end(window.key)
        except EnergyError as error:
            problem = str(error)
        except BaseException:
            window.sampler.abort()
            raise
        closed_s = self._clock.now()
        telemetry = window.sampler.stop(end_s)
        edges = (window.asked_s, handle.start_s, end_s, closed_s)
        recorded = RecordedWindow(
            GpuWindow(
                start_s=handle.start_s,
                end_s=end_s,
                boards=tuple(self._record(gpu, reading, problem, edges, telemetry) for gpu in self._gpus),
                sampling_interval_s=self._options.poll_interval_ms / 1000,
                gain_uncertainty_pct=self._options.power_gain_uncertainty_pct,
                meter=self.name,
            ),
            telemetry,
        )
        energy = gpu_measurement(recorded)
        warnings = dict.fromkeys((*window.warnings, *board_warnings(self._gpus, self._options.family_pid)))
        notes = (*energy.notes, *reading.notes, *warnings, *sampler_warnings(telemetry))
        return replace(energy, cpu_j=reading.cpu_j, dram_j=reading.dram_j, notes=notes)

    def _record(
        self,
        gpu: Gpu,
        reading: SourceReading,
        problem: str | None,
        edges: tuple[float, float, float, float],
        telemetry: SampledTelemetry,
    ) -> BoardRecord:
        """The package tells a difference, so its counter is taken to have stood at 0 when the window opened."""
        asked_s, start_s, end_s, closed_s = edges
        energy_j = reading.per_board_j.get(gpu.index)
        calibration = self._calibrations.get(gpu.uuid)
        sampling = power_sampling(gpu, calibration, telemetry)
        return BoardRecord(
            device=gpu.uuid,
            board=gpu.board_uuid,
            has_counter=True,
            before=() if energy_j is None else (CounterRead(asked_s, start_s, 0.0),),
            after=() if energy_j is None else (CounterRead(end_s, closed_s, energy_j),),
            counter_problem=problem,
            includes_module=gpu.includes_module,
            power_limit_w=gpu.power_limit_w,
            sensor=describe_sensor(calibration, sampling, None),
            sampling=sampling,
        )


def require_counters(gpus: Sequence[Gpu], name: str) -> None:
    """Make sure that every board has an energy counter.

    Args:
        boards: The boards of a run.
        name: The energy backend that was to measure them.

    Raises:
        EnergyError: One has none; the package would integrate power in a way of its own (Zeus drops equal samples).
    """
    for gpu in gpus:
        if not gpu.has_counter:
            raise EnergyError(f"GPU {gpu.index} has no energy counter for {name} to read; use energy.backend: nvml")
