"""CodeCarbon as a meter: GPU counters where there are GPUs, a model of CPU and memory power otherwise.

CodeCarbon models what it cannot measure: memory always, and the CPU from its load and rated power unless RAPL can be
read. Those joules are labelled `model_estimate`. Its offline tracker is used, writing nothing and asking nobody; only
its joules are taken, so the country it wants (for carbon intensity) does not matter.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.optional import import_meter_package
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.types import DeviceId, EnergyMeasurement, TrackingHandle
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

if TYPE_CHECKING:
    from codecarbon.output_methods.emissions_data import EmissionsData

JOULES_PER_KWH: Final = 3.6e6

PROOF_S: Final = 0.2
"""Length of the trial window that proves availability."""

ESTIMATE_NOTE: Final = (
    "CPU and memory energy come from CodeCarbon's model of this machine (rated power and load), not from a sensor; "
    "use them to compare runs on one machine, not to publish joules"
)


class CodeCarbonBackend:
    """Windows of CodeCarbon's offline tracker.

    Args:
        clock: The measurement clock.
        gpus: UUIDs of the run's GPUs; empty for a run on the CPU.
        nvml_indices: Their boards' indices in NVML's order, which is how CodeCarbon names GPUs.
    """

    name = "codecarbon"

    def __init__(self, clock: Clock, gpus: Sequence[DeviceId] = (), nvml_indices: Sequence[int] = ()) -> None:
        self._clock = clock
        self._gpus = tuple(gpus)
        self._nvml_indices = list(nvml_indices)
        self._tracker: Any = None
        self._task_numbers = itertools.count(1)

    def prove(self) -> str:
        """Measure a fifth of a second.

        Raises:
            EnergyError: CodeCarbon is missing, failed, or gave 0 J.
        """
        handle = self.start_tracking()
        self._clock.sleep(PROOF_S)
        trial = self.stop_tracking(handle)
        if trial.total_j is None:
            raise EnergyError("; ".join(note.message for note in trial.notes))
        watts = trial.total_j / trial.duration_sec
        return f"{'measures' if self._gpus else 'estimates'} {watts:.1f} W now"

    def is_available(self) -> bool:
        """Whether a short trial window gives joules."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Open a window. The first call sets the tracker up, which takes seconds.

        Raises:
            EnergyError: CodeCarbon is missing or failed.
        """
        if self._tracker is None:
            self._tracker = _offline_tracker(self._nvml_indices)
        task = f"window {next(self._task_numbers)}"
        with _codecarbon_errors("start measuring"):
            self._tracker.start_task(task)
        return TrackingHandle(start_s=self._clock.now(), state=task)

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window.

        Raises:
            EnergyError: CodeCarbon failed.
        """
        end_s = self._clock.now()
        with _codecarbon_errors("end a window"):
            emissions: EmissionsData | None = self._tracker.stop_task(handle.state)
        if emissions is None:
            raise EnergyError("CodeCarbon lost its measurement task; repeat the run")
        return self._measurement(handle.start_s, end_s, emissions)

    def _measurement(self, start_s: float, end_s: float, emissions: EmissionsData) -> EnergyMeasurement:
        cpu_j = _joules(emissions.cpu_energy)
        dram_j = _joules(emissions.ram_energy)
        estimated = MeasurementWarning(WarningCode.ENERGY_IS_ESTIMATED, ESTIMATE_NOTE)
        if self._gpus:
            gpu_j = _joules(emissions.gpu_energy)
            # CodeCarbon sums over its GPUs: with several, none has a figure of its own.
            per_gpu_j = {self._gpus[0]: gpu_j} if len(self._gpus) == 1 else {}
            return EnergyMeasurement(
                start_s=start_s,
                end_s=end_s,
                total_j=gpu_j,
                method=None if gpu_j is None else "hardware_counter",
                scope=None if gpu_j is None else "gpu",
                per_gpu_j=per_gpu_j,
                cpu_j=cpu_j,
                dram_j=dram_j,
                counter_j=gpu_j,
                notes=(estimated,) if gpu_j is not None else (estimated, _no_gpu_energy()),
                meter=self.name,
            )
        parts = [part for part in (cpu_j, dram_j) if part is not None]
        return EnergyMeasurement(
            start_s=start_s,
            end_s=end_s,
            total_j=sum(parts) if parts else None,
            method="model_estimate" if parts else None,
            scope="machine_model" if parts else None,
            cpu_j=cpu_j,
            dram_j=dram_j,
            notes=(estimated,) if parts else (_no_machine_energy(),),
            meter=self.name,
        )


def _joules(kwh: float) -> float | None:
    """Joules, or `None` for CodeCarbon's 0, with which it means "not found" (no part of a machine draws nothing)."""
    return kwh * JOULES_PER_KWH if kwh > 0 else None


def _no_gpu_energy() -> MeasurementWarning:
    return MeasurementWarning(
        WarningCode.ENERGY_UNAVAILABLE,
        "CodeCarbon reported 0 J for the GPUs: it found no working sensor (it also needs nvidia-smi on the PATH), or "
        "the window was shorter than one counter update",
    )


def _no_machine_energy() -> MeasurementWarning:
    return MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, "CodeCarbon reported 0 J for CPU and memory")


def _offline_tracker(nvml_indices: Sequence[int]) -> Any:
    codecarbon = import_meter_package("codecarbon", extra="codecarbon")
    codecarbon_logger = logging.getLogger("codecarbon")
    codecarbon_logger.setLevel(logging.ERROR)
    with _codecarbon_errors("start"):
        tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code="USA",
            gpu_ids=list(nvml_indices) or None,
            tracking_mode="machine",
            output_methods=[],
            measure_power_secs=1,
            pue=1.0,
            log_level="error",
            allow_multiple_runs=True,  # the alternative is a lock file and signal handlers
        )
    codecarbon_logger.handlers.clear()  # its own handler writes to the terminal; the program's logging decides instead
    codecarbon_logger.propagate = True
    return tracker


@contextmanager
def _codecarbon_errors(doing: str) -> Iterator[None]:
    """CodeCarbon raises whatever its parts raise; a caller gets one kind of error."""
    try:
        yield
    except Exception as error:
        raise EnergyError(f"CodeCarbon could not {doing}: {type(error).__name__}: {error}") from error
