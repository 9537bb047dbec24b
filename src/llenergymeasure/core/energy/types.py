"""What energy backends hand to the rest of the program: frozen, with units in the names.

    sampler starts     window                                       sampler stops
          |              |<------------- duration_sec ------------->|      |
--o----o--o----o----o----[----o----o----o----o----o----o----o----o--]--o---o--  power samples
                   C     ^                                          ^     C     counter reads (never inside)
                      start_s                                    end_s
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.base import EnergyMethod, EnergyScope
from llenergymeasure.domain.energy import BudgetKind, EnergyAudit
from llenergymeasure.domain.warnings import MeasurementWarning

PowerSource = Literal["power_instant", "power_instant_module", "power_usage", "rapl"]
"""Where a power value came from: NVML field 186 with GPU or module scope (module: a superchip, CPU included),
`nvmlDeviceGetPowerUsage` (a one-second average on most boards since Ampere), or the CPU's own counters."""


@dataclass(frozen=True, slots=True)
class TelemetrySample:
    """One reading of one device by the power sampler; `None` where the device did not answer.

    Args:
        time_s: When the power value was valid, on the measurement clock, in seconds.
        power_w: Power draw in watts.
        temperature_c: GPU temperature in degrees Celsius.
        sm_clock_mhz: Streaming-multiprocessor clock in MHz.
        memory_clock_mhz: Memory clock in MHz.
        sm_utilisation_pct: Share of the last sample period in which a kernel ran, 0..100.
        memory_used_mb: Device memory in use, in MB (10^6 bytes).
        throttle_reasons: NVML's clocks-event-reasons bit mask.
        power_source: What `power_w` was read from.
    """

    time_s: float
    power_w: float | None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    sm_utilisation_pct: float | None = None
    memory_used_mb: float | None = None
    throttle_reasons: int | None = None
    power_source: PowerSource | None = None


class Telemetry(Protocol):
    """The power sampler's record of one window, in memory or spilled to disk; read it before `close`."""

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Devices with at least one sample."""

    def samples(self, device: DeviceId) -> Iterator[TelemetrySample]:
        """All samples of one device in order of time, those just outside the window included."""

    def close(self) -> None:
        """Release the record and any temporary file."""


@dataclass(frozen=True, slots=True)
class UncertaintyComponent:
    """One line of the error budget: a 95 % half-width in joules and where it comes from."""

    name: str
    half_width_j: float
    kind: BudgetKind
    note: str = ""


@dataclass(frozen=True, slots=True)
class EnergyMeasurement:
    """What a meter saw between two synchronised instants.

    Args:
        start_s: Start of the window on the measurement clock, in seconds.
        end_s: End of the window, likewise.
        total_j: Energy of the window in joules over `scope`. `None`: not measured, and `notes` says why. Never 0 for
            "unknown".
        method: How `total_j` was found.
        scope: What `total_j` includes.
        per_gpu_j: Energy per GPU UUID; `None` values for a GPU that could not be read.
        cpu_j: Energy of the CPU packages, if measured; beside GPU energy, never in it.
        dram_j: Energy of the DRAM, likewise.
        counter_j: The plain hardware-counter difference, where there is one.
        integral_j: The integral of the power samples, where there is one.
        fused_j: Counter and samples fused at the window's edges, where both exist.
        audit: Counter against integral, where both exist.
        components: The error budget of `total_j` (95 % half-widths). Empty when `total_j` is `None`.
        per_gpu_components: The error budget of each figure in `per_gpu_j`, likewise.
        telemetry: The sampler's record, or `None` where nothing was sampled.
        notes: Everything a reader must know about these figures.
        meter: Name of the energy backend and, where it matters, the sensor it read.
    """

    start_s: float
    end_s: float
    total_j: float | None
    method: EnergyMethod | None
    scope: EnergyScope | None
    per_gpu_j: Mapping[DeviceId, float | None] = field(default_factory=dict)
    cpu_j: float | None = None
    dram_j: float | None = None
    counter_j: float | None = None
    integral_j: float | None = None
    fused_j: float | None = None
    audit: EnergyAudit | None = None
    components: tuple[UncertaintyComponent, ...] = ()
    per_gpu_components: Mapping[DeviceId, tuple[UncertaintyComponent, ...]] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    notes: tuple[MeasurementWarning, ...] = ()
    meter: str = ""

    @property
    def duration_sec(self) -> float:
        """Length of the window in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class TrackingHandle:
    """An open window: when it opened, and what the backend needs to close it."""

    start_s: float
    state: object = None


@dataclass(frozen=True, slots=True)
class MeterOptions:
    """How a meter works on this machine and in this process; never from an experiment file.

    Args:
        poll_interval_ms: Time between two readings of the power sampler, in milliseconds.
        power_gain_uncertainty_pct: 95 % half-width of the power sensor's gain, in per cent.
        spill_dir: Where a long run's samples go when they outgrow memory; `None`: the system's temporary directory.
        calibration_dir: Where sensor calibrations lie; `None`: none are used.
        family_pid: The process that has started every process of the experiment; none of these counts as somebody
            else on its GPUs. `None`: there is one only, this one.
    """

    poll_interval_ms: int = 100
    power_gain_uncertainty_pct: float = 5.0
    spill_dir: Path | None = None
    calibration_dir: Path | None = None
    family_pid: int | None = None


@runtime_checkable
class EnergyBackend(Protocol):
    """Measures joules between two instants."""

    @property
    def name(self) -> str:
        """The name a config uses for this backend."""

    def is_available(self) -> bool:
        """Whether a reading can be had here and now, proved by taking one."""

    def start_tracking(self) -> TrackingHandle:
        """Open a window; returns at its first instant, which the handle records."""

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        """Close the window: its last instant is the moment of this call."""
