"""CodeCarbon as a meter: GPU counters where there are GPUs, a model of CPU and memory power otherwise.

CodeCarbon models what it cannot measure: memory always, and the CPU from its load and rated power unless RAPL can be
read. Those joules are labelled `model_estimate`. Its offline tracker is used, writing nothing and asking nobody; only
its joules are taken, so the country it wants (for carbon intensity) does not matter.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.external import ExternalGpuBackend, SourceReading, require_counters
from llenergymeasure.core.energy.optional import import_meter_package, require_meter_package
from llenergymeasure.core.energy.proof import is_proven
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DeviceId, Gpu, GpuDriver, find_gpus
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

if TYPE_CHECKING:
    from codecarbon.output_methods.emissions_data import EmissionsData

JOULES_PER_KWH: Final = 3.6e6

PROOF_S: Final = 0.2
"""Length of the trial window that proves availability."""

ESTIMATED: Final = MeasurementWarning(
    WarningCode.ENERGY_IS_ESTIMATED,
    "CPU and memory energy come from CodeCarbon's model of this machine (rated power and load), not from a sensor; "
    "use them to compare runs on one machine, not to publish joules",
)


def codecarbon_gpu_backend(
    devices: Sequence[DeviceId], nvml: GpuDriver, clock: Clock, options: MeterOptions
) -> ExternalGpuBackend:
    """The meter of GPUs, by CodeCarbon.

    Args:
        devices: UUIDs of the GPUs that the run uses, and of no others.
        nvml: The machine's NVML.
        clock: The measurement clock.
        options: How meters work on this machine.

    Raises:
        EnergyError: CodeCarbon is missing or does not work for these devices.
    """
    require_meter_package("codecarbon", extra="codecarbon")
    if shutil.which("nvidia-smi") is None:
        raise EnergyError(
            "the codecarbon energy backend finds GPUs by running nvidia-smi, which is not on PATH. "
            "Install the driver's tools, or use energy.backend: nvml."
        )
    gpus = find_gpus(devices, nvml)
    require_counters(gpus, "codecarbon")
    return ExternalGpuBackend(CodeCarbonSource(gpus), gpus, clock, options)


class CodeCarbonSource:
    """Tasks of one CodeCarbon tracker per board: a tracker tells only the sum over its GPUs.

    Args:
        boards: The boards to measure.

    Raises:
        EnergyError: CodeCarbon is missing or failed.
    """

    name = "codecarbon"

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._trackers = {gpu.index: _offline_tracker([gpu.index]) for gpu in gpus}

    def begin(self, key: str) -> None:
        """Open a task on every tracker. The first call sets them up, which takes seconds.

        Raises:
            EnergyError: CodeCarbon failed.
        """
        for tracker in self._trackers.values():
            _start_task(tracker, key)

    def end(self, key: str) -> SourceReading:
        """Close them. A board for which CodeCarbon found no sensor has 0 J, which the caller does not believe.

        Raises:
            EnergyError: CodeCarbon failed.
        """
        closed = {index: _stop_task(tracker, key) for index, tracker in self._trackers.items()}
        host = next(iter(closed.values()))  # every tracker models the same host
        return SourceReading(
            per_board_j={index: emissions.gpu_energy * JOULES_PER_KWH for index, emissions in closed.items()},
            cpu_j=_joules(host.cpu_energy),
            dram_j=_joules(host.ram_energy),
            notes=(ESTIMATED,),
        )


class CodeCarbonBackend:
    """The estimate for a run on the CPU.

    Args:
        clock: The measurement clock.
    """

    name = "codecarbon"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tracker = _offline_tracker([])
        self._keys = (f"llenergymeasure {number}" for number in itertools.count(1))

    def prove(self) -> str:
        """Estimate a fifth of a second.

        Raises:
            EnergyError: CodeCarbon failed, or gave 0 J.
        """
        handle = self.start_tracking()
        self._clock.sleep(PROOF_S)
        trial = self.stop_tracking(handle)
        if trial.total_j is None:
            raise EnergyError("; ".join(note.message for note in trial.notes))
        return f"estimates {trial.total_j / trial.duration_sec:.1f} W now"

    def is_available(self) -> bool:
        """Whether a short trial window gives joules."""
        return is_proven(self)

    def start_tracking(self) -> TrackingHandle:
        """Open a window. The first call sets the tracker up, which takes seconds.

        Raises:
            EnergyError: CodeCarbon failed.
        """
        key = next(self._keys)
        _start_task(self._tracker, key)
        return TrackingHandle(start_s=self._clock.now(), state=key)

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window.

        Raises:
            EnergyError: CodeCarbon failed.
        """
        end_s = self._clock.now()
        emissions = _stop_task(self._tracker, str(handle.state))
        cpu_j, dram_j = _joules(emissions.cpu_energy), _joules(emissions.ram_energy)
        parts = [part for part in (cpu_j, dram_j) if part is not None]
        nothing = MeasurementWarning(
            WarningCode.ENERGY_UNAVAILABLE, "CodeCarbon estimated 0 J for CPU and memory: the window was too short"
        )
        return EnergyMeasurement(
            start_s=handle.start_s,
            end_s=end_s,
            total_j=sum(parts) if parts else None,
            method="model_estimate" if parts else None,
            scope="machine_model" if parts else None,
            cpu_j=cpu_j,
            dram_j=dram_j,
            notes=(ESTIMATED,) if parts else (nothing,),
            meter=self.name,
        )


def _joules(kwh: float) -> float | None:
    """Joules, or `None` for CodeCarbon's 0, with which it means "not found" (no part of a machine draws nothing)."""
    return kwh * JOULES_PER_KWH if kwh > 0 else None


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


def _start_task(tracker: Any, key: str) -> None:
    with _codecarbon_errors("open a window"):
        tracker.start_task(key)


def _stop_task(tracker: Any, key: str) -> EmissionsData:
    with _codecarbon_errors("close a window"):
        emissions: EmissionsData | None = tracker.stop_task(key)
    if emissions is None:
        raise EnergyError("CodeCarbon lost its measurement task; repeat the run")
    return emissions


@contextmanager
def _codecarbon_errors(doing: str) -> Iterator[None]:
    """CodeCarbon raises whatever its parts raise; a caller gets one kind of error."""
    try:
        yield
    except Exception as error:
        raise EnergyError(f"CodeCarbon could not {doing}: {type(error).__name__}: {error}") from error
