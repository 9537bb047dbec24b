"""From what was read of GPUs around and during a window to joules: one pure function, also used to compute them again.

Per board there are up to two answers: the hardware counter (sharpened at the window's edges by fusion) and the integral
of the power samples. The counter is the answer where every board of the window has a good one; otherwise the integral
is, for every board, so that one method describes the total. Where the two contradict each other so badly that one of
them must be broken, and nothing says which, there is no answer.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from llenergymeasure.core.energy.counter import CounterError, CounterRead, plain_counter_energy
from llenergymeasure.core.energy.fusion import FusedEnergy, Sample, SensorDescription, fuse_energy
from llenergymeasure.core.energy.integrate import TraceTooShortError, integrate_power
from llenergymeasure.core.energy.types import Telemetry, TelemetrySample, UncertaintyComponent
from llenergymeasure.core.energy.uncertainty import PowerSampling, counter_component, integral_components
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.base import EnergyScope

ABSURD_COUNTER_FACTOR: Final = 3.0
"""A counter that implies a mean power above this many power limits has jumped."""

MAX_GAP_S: Final = 2.0
"""Longest stretch without a power sample over which the trace may be taken as straight, in seconds."""

MAX_GAP_INTERVALS: Final = 10.0
"""The same in sampling intervals, for slow sampling."""

FUSION_REACH_S: Final = 60.0
"""How far from the window's edges samples take part in fusion; its estimates rest on the last second or so."""


@dataclass(frozen=True, slots=True)
class BoardRecord:
    """What was read of one board, besides its samples.

    Args:
        device: The device as the run names it: the board's UUID, or that of a MIG instance on it.
        board: UUID of the board.
        has_counter: Whether the board has an energy counter.
        before: Reads of the counter before the window.
        after: Reads after it.
        counter_problem: Why the counter could not be read; `None` when it could.
        includes_module: Whether counter and samples cover a whole superchip.
        power_limit_w: The enforced power limit in watts, where it is known.
        sensor: What is known of its counter.
        sampling: How its power samples came about.
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

    @property
    def is_mig(self) -> bool:
        """Whether the run used only a slice of the board."""
        return self.device != self.board


@dataclass(frozen=True, slots=True)
class GpuWindow:
    """A window on GPUs, ready to be turned into joules.

    Args:
        start_s: Its start on the measurement clock, in seconds.
        end_s: Its end.
        boards: One record per device.
        sampling_interval_s: The sampler's interval.
        gain_uncertainty_pct: 95 % half-width of the sensors' gain, in per cent.
        meter: Name of the meter.
    """

    start_s: float
    end_s: float
    boards: tuple[BoardRecord, ...]
    sampling_interval_s: float
    gain_uncertainty_pct: float
    meter: str


@dataclass(frozen=True, slots=True)
class BoardEnergy:
    """The answers for one board; `None` with a reason where there is none.

    Args:
        device: The device as the run names it.
        counter_j: Plain difference of the counter, in joules.
        counted: The same, sharpened by fusion where a step was found on both sides.
        counter_reason: Why there is no counter figure; empty where there is one, or never was a counter.
        integral_j: Integral of the power samples.
        integral_budget: Its error budget without the gain.
        integral_reason: Why there is none.
    """

    device: DeviceId
    counter_j: float | None
    counted: FusedEnergy | None
    counter_reason: str
    integral_j: float | None
    integral_budget: tuple[UncertaintyComponent, ...]
    integral_reason: str

    @property
    def counted_j(self) -> float | None:
        """Joules by the counter, as sharp as could be had."""
        return None if self.counted is None else self.counted.energy_j

    @property
    def fused_j(self) -> float | None:
        """Joules by counter and samples together; `None` where only the plain difference was to be had."""
        return None if self.counted is None or self.counted.used_fallback else self.counted.energy_j

    @property
    def counter_budget(self) -> tuple[UncertaintyComponent, ...]:
        """The error budget of `counted_j` without the gain."""
        return () if self.counted is None else (counter_component(self.counted),)


def board_energy(record: BoardRecord, telemetry: Telemetry, window: GpuWindow) -> BoardEnergy:
    """Both answers for one board.

    Args:
        record: What was read of it.
        telemetry: The samples.
        window: The window.
    """
    times, power = power_trace(telemetry, record.device)
    integral_j, integral_reason = _integral(times, power, window)
    counter_j: float | None = None
    counted: FusedEnergy | None = None
    counter_reason = record.counter_problem or ""
    if record.has_counter and record.counter_problem is None:
        try:
            counter_j = _believable_counter(record, window)
            near = list(_samples_near_edges(times, power, window))
            counted = fuse_energy(record.before, record.after, near, window.start_s, window.end_s, record.sensor)
        except CounterError as error:
            counter_j, counter_reason = None, str(error)
    budget: tuple[UncertaintyComponent, ...] = ()
    if integral_j is not None:
        budget = integral_components(times, power, window.start_s, window.end_s, record.sampling)
    return BoardEnergy(record.device, counter_j, counted, counter_reason, integral_j, budget, integral_reason)


def power_trace(telemetry: Telemetry, device: DeviceId) -> tuple[array[float], array[float]]:
    """Times in seconds and power in watts of a device's samples, without those that gave no power."""
    times, power = array("d"), array("d")
    if device in telemetry.devices:
        for sample in telemetry.samples(device):
            if sample.power_w is not None:
                times.append(sample.time_s)
                power.append(sample.power_w)
    return times, power


def scope_of(boards: Sequence[BoardRecord]) -> EnergyScope:
    """What the joules of these boards include."""
    if any(record.is_mig for record in boards):
        return "gpu_board"
    return "gpu_module" if any(record.includes_module for record in boards) else "gpu"


def _believable_counter(record: BoardRecord, window: GpuWindow) -> float:
    counter_j = plain_counter_energy(record.before, record.after)
    spanned_s = record.after[0].answered_s - record.before[-1].asked_s + 0.2  # a counter may be two updates behind
    if record.power_limit_w and counter_j > ABSURD_COUNTER_FACTOR * record.power_limit_w * spanned_s:
        raise CounterError(
            f"the energy counter moved by {counter_j:.0f} J in {window.end_s - window.start_s:.2f} s, which is more "
            f"than a board limited to {record.power_limit_w:.0f} W can draw: it jumped"
        )
    return counter_j


def _integral(times: Sequence[float], power: Sequence[float], window: GpuWindow) -> tuple[float | None, str]:
    gap_s = _longest_gap_s(times, window.start_s, window.end_s)
    if gap_s > max(MAX_GAP_S, MAX_GAP_INTERVALS * window.sampling_interval_s):
        return None, f"for {gap_s:.1f} s of the window there is no power sample"
    try:
        return integrate_power(times, power, window.start_s, window.end_s), ""
    except TraceTooShortError as error:
        return None, str(error)


def _longest_gap_s(times: Sequence[float], start_s: float, end_s: float) -> float:
    longest, before_s = 0.0, -math.inf
    for time_s in times:
        if time_s > start_s and before_s < end_s and math.isfinite(before_s):
            longest = max(longest, time_s - before_s)
        before_s = time_s
    return longest


def _samples_near_edges(times: Sequence[float], power: Sequence[float], window: GpuWindow) -> Iterator[Sample]:
    for time_s, power_w in zip(times, power, strict=True):
        if time_s <= window.start_s + FUSION_REACH_S or time_s >= window.end_s - FUSION_REACH_S:
            yield time_s, power_w


@dataclass(frozen=True, slots=True)
class RecordedWindow:
    """A window with its samples: everything that its joules were computed from (a `Telemetry`).

    Args:
        window: What was read besides the samples.
        telemetry: The samples.
    """

    window: GpuWindow
    telemetry: Telemetry

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Devices with at least one sample."""
        return self.telemetry.devices

    def samples(self, device: DeviceId) -> Iterator[TelemetrySample]:
        """All samples of one device in order of time."""
        return self.telemetry.samples(device)

    def close(self) -> None:
        """Release the samples."""
        self.telemetry.close()
