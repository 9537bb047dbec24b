"""What energy backends hand to the rest of the program: frozen, with units in the names.

    sampler starts     window                                       sampler stops
          |              |<------------- duration_sec ------------->|      |
--o----o--o----o----o----[----o----o----o----o----o----o----o----o--]--o---o--  power samples
                   C     ^                                          ^     C     counter reads (never inside)
                      start_s                                    end_s
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from llenergymeasure.core.energy.powercap import Kind
from llenergymeasure.core.energy.telemetry import Telemetry
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.base import EnergyMethod, EnergyScope
from llenergymeasure.domain.energy import BudgetComponent, EnergyAudit
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode


@dataclass(frozen=True, slots=True)
class CounterRead:
    """One reading of an energy counter: the total that it showed at some moment between question and answer."""

    asked_s: float
    answered_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class SensorDescription:
    """What is known of a board's counter and power sensor; the defaults suppose little.

    Args:
        counter_period_s: Time between two steps of the counter, as `measure_counter_periods` or a calibration found it;
            `None`: unknown, and the intervals are wider.
        counter_period_tolerance_s: How far the period may be from that.
        counter_jitter_s: How far a single step may be from its place.
        averaging_window_s: Over which time a power sample is an average. Above `SMOOTHED_S` (the one-second average of
            recent boards) the samples are not used at all.
        power_margin: How far samples and counter may disagree, as a share of the power.
        counter_follows_sensor: Whether the counter adds up what the power sensor sees and misses what that misses, as a
            calibration found it; `None`: not known, and the intervals hold both. Traces of earlier releases do not
            tell, and count as following.
        counter_still_s: For how long the counter was seen to stand still, where that is all that is known of its
            period.
    """

    counter_period_s: float | None = None
    counter_period_tolerance_s: float = 0.003
    counter_jitter_s: float = 0.0005
    averaging_window_s: float = 0.1
    power_margin: float = 0.01
    counter_follows_sensor: bool | None = False
    counter_still_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerSampling:
    """How power samples come about: over which time each is an average, and how often a new one comes.

    Args:
        stamped_at_update: Whether a sample's time is that of its update; otherwise it is that of its reading.
        noise_w: Standard deviation of single readings in watts, as calibrated; `None`: it is not known.
    """

    averaging_window_s: float = 0.1
    update_s: float = 0.1
    stamped_at_update: bool = False
    noise_w: float | None = None

    @property
    def lag_s(self) -> float:
        """How old, on average, is what a sample shows: half of the average's length, and half an update if unread."""
        return 0.5 * (self.averaging_window_s + self.unread_s)

    @property
    def unknown_lag_s(self) -> float:
        """How far from that the age may be: half an unread update either way, and what the average blurs on top.

        Where a sample's own time is known, those that are blurred over an edge are left out (integrate.py); what is
        left is how well the mean delay of the average is known, and its tail.
        """
        return (
            0.1 * self.averaging_window_s
            if self.stamped_at_update
            else 0.5 * self.update_s + 0.25 * self.averaging_window_s
        )

    @property
    def unread_s(self) -> float:
        """Longest time in seconds for which an update may have waited for its reading."""
        return 0.0 if self.stamped_at_update else self.update_s


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a board of another machine is, whose readings were moved to the clock of this one (several.py).

    Args:
        node: What people call that machine.
        offset_s: How far its clock was ahead when the window opened.
        drift_s: By how much more it was at the end.
        half_width_s: How far the offset may be from that at either edge.
    """

    node: str
    offset_s: float
    drift_s: float
    half_width_s: float


@dataclass(frozen=True, slots=True)
class BoardRecord:
    """What was read of one board, besides its samples.

    Args:
        device: The device as the run names it: the board's UUID, or that of a MIG instance on it.
        counter_problem: Why the counter could not be read; `None` when it could.
        includes_module: Whether counter and samples cover a whole superchip.
        power_limit_w: The enforced one or the factory's, whichever is larger; `None`: not known.
        elsewhere: `None`: it is a board of this machine.
    """

    device: DeviceId
    board: DeviceId
    has_counter: bool
    before: tuple[CounterRead, ...] = ()
    after: tuple[CounterRead, ...] = ()
    counter_problem: str | None = None
    includes_module: bool = False
    power_limit_w: float | None = None
    sensor: SensorDescription = field(default_factory=SensorDescription)
    sampling: PowerSampling = field(default_factory=PowerSampling)
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """A window on GPUs, ready to be turned into joules together with its samples (gpu_energy.py).

    Args:
        gain_uncertainty_pct: 95 % half-width of the sensors' gain.
    """

    start_s: float
    end_s: float
    boards: tuple[BoardRecord, ...]
    sampling_interval_s: float
    gain_uncertainty_pct: float
    meter: str


@dataclass(frozen=True, slots=True)
class HostCounter:
    """What one counter of the host has moved by in a window; several views of one counter are one."""

    name: str
    kind: Kind
    flowed_j: float


@dataclass(frozen=True, slots=True)
class HostWindow:
    """A window on the host's own counters, ready to be turned into joules (host_energy.py).

    Args:
        late_s: How late a counter may be at the window's edges, by what was seen of it.
        gain_uncertainty_pct: 95 % half-width of the counters' gain.
    """

    start_s: float
    end_s: float
    counters: tuple[HostCounter, ...]
    late_s: float
    gain_uncertainty_pct: float
    meter: str


@dataclass(frozen=True, slots=True)
class EnergyMeasurement:
    """What a meter saw between two synchronised instants.

    Args:
        total_j: Energy of the window over `scope`. `None`: not measured, and `notes` says why. Never 0 for "unknown".
        per_gpu_j: Energy per GPU UUID; `None` values for a GPU that could not be read.
        cpu_j: Energy of the CPU packages, if measured; beside GPU energy, never in it. `dram_j` likewise.
        counter_j: The plain hardware-counter difference, where there is one.
        fused_j: Counter and samples fused at the window's edges, where both exist.
        components: The error budget of `total_j` (95 % half-widths). Empty when `total_j` is `None`.
        telemetry: `None` where nothing was sampled.
        gpu_window: What the figures were computed from besides the samples; `None` where no GPU was measured.
        host_window: Likewise, where the host's own counters were.
        meter_version: Of a meter of another package; "" for this package's own.
    """

    start_s: float
    end_s: float
    total_j: float | None = None
    method: EnergyMethod | None = None
    scope: EnergyScope | None = None
    per_gpu_j: Mapping[DeviceId, float | None] = field(default_factory=dict)
    cpu_j: float | None = None
    dram_j: float | None = None
    counter_j: float | None = None
    integral_j: float | None = None
    fused_j: float | None = None
    audit: EnergyAudit | None = None
    components: tuple[BudgetComponent, ...] = ()
    per_gpu_components: Mapping[DeviceId, tuple[BudgetComponent, ...]] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    gpu_window: GpuWindow | None = None
    host_window: HostWindow | None = None
    notes: tuple[MeasurementWarning, ...] = ()
    meter: str = ""
    meter_version: str = ""

    @property
    def duration_sec(self) -> float:
        """Length of the window in seconds."""
        return self.end_s - self.start_s

    @property
    def elsewhere(self) -> dict[DeviceId, Elsewhere]:
        """Which boards were on other machines, and how their clocks were."""
        boards = self.gpu_window.boards if self.gpu_window is not None else ()
        return {board.device: board.elsewhere for board in boards if board.elsewhere is not None}

    @property
    def has_trace(self) -> bool:
        """Whether there is anything that energy comes from to keep: what was read at the edges, or samples of power."""
        if (telemetry := self.telemetry) is None:
            return False
        at_edges = self.gpu_window is not None or self.host_window is not None
        return at_edges or any(telemetry.power(device)[0] for device in telemetry.devices)

    def saw(self, code: WarningCode) -> bool:
        """Whether the meter noted something of this kind."""
        return any(note.code is code for note in self.notes)

    def close(self) -> None:
        """Release the samples of a window that nobody needs any more."""
        if self.telemetry is not None:
            self.telemetry.close()


@dataclass(frozen=True, slots=True)
class TrackingHandle:
    """An open window: when it opened, and what the backend needs to close it."""

    start_s: float
    state: object = None


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


@dataclass(frozen=True, slots=True)
class MeterOptions:
    """How a meter works on this machine and in this process; never from an experiment file.

    Args:
        power_gain_uncertainty_pct: 95 % half-width of the power sensor's gain.
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

    @property
    def poll_interval_s(self) -> float:
        """The same in seconds."""
        return self.poll_interval_ms / 1000
