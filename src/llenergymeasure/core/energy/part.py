"""Energy of parts of a metered window, cut out of its power samples.

    counter   C |<---------------- E(whole), metered ----------------->| C
    samples     o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o
    part                    [ <----- T(part) -----> ]                       T: integral of the samples

Counters are read at the window's edges only, so a part of it is told from the samples, scaled to what the meter
counted: E(part) = E(whole) T(part) / T(whole), device by device. The sensor's gain against the counter cancels in that
ratio. What the samples cannot know does so only in part: with the share s = T(part) / T(whole), an error of T(part)
counts 1 - s of itself and one of the rest s. Where the meter integrated the samples itself, T(part) is the answer and
its own errors are the budget.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llenergymeasure.core.energy.gpu_window import RecordedWindow, power_trace
from llenergymeasure.core.energy.integrate import TraceTooShortError, integrate_power
from llenergymeasure.core.energy.types import DeviceId, EnergyMeasurement, UncertaintyComponent
from llenergymeasure.core.metrics.uncertainty import PowerSampling, combine_boards, trace_components
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError

Span = tuple[float, float]
"""A stretch of time: start and end on the measurement clock, in seconds."""


class PartUnknownError(EnergyError):
    """The power samples of a window cannot tell the energy of its parts."""


@dataclass(frozen=True, slots=True)
class PartEnergy:
    """Energy of a part of a window.

    Args:
        total_j: Over all devices, in joules.
        per_device_j: Of each.
        traced_j: What the power samples say by themselves, not scaled to the meter.
        components: The error budget of `total_j` (95 % half-widths).
    """

    total_j: float
    per_device_j: Mapping[DeviceId, float]
    traced_j: float
    components: tuple[UncertaintyComponent, ...]


@dataclass(frozen=True, slots=True)
class _Trace:
    """The samples of one device and what the meter counted for it."""

    times_s: array[float]
    power_w: array[float]
    sampling: PowerSampling
    whole_j: float
    metered_j: float

    def traced_j(self, spans: Sequence[Span]) -> float:
        return math.fsum(integrate_power(self.times_s, self.power_w, *span) for span in spans)


class TracedWindow:
    """The power traces of a metered window, ready to be cut.

    Args:
        energy: What the meter saw of the window, samples included.

    Raises:
        PartUnknownError: There is no energy to divide, or there are no samples to divide it by.
    """

    def __init__(self, energy: EnergyMeasurement) -> None:
        self._energy = energy
        self._window: Span = (energy.start_s, energy.end_s)
        if energy.total_j is None:
            raise PartUnknownError("no energy was measured")
        if energy.telemetry is None or not energy.telemetry.devices:
            raise PartUnknownError(f"the {energy.meter} meter gives no power samples, and parts are cut out of those")
        self._total_j = energy.total_j
        self._traces = _traces(energy, self._total_j)

    @property
    def sampling_interval_s(self) -> float:
        """Mean time in seconds between two samples of the slowest device; a value read twice counts once."""
        return max(_mean_step_s(trace.times_s, *self._window) for trace in self._traces.values())

    def part(self, spans: Sequence[Span]) -> PartEnergy:
        """Energy of some stretches of the window together.

        Args:
            spans: The stretches, inside the window, in order and without overlaps.
        """
        traced_j = {device: trace.traced_j(spans) for device, trace in self._traces.items()}
        per_device_j = {device: traced_j[device] * t.metered_j / t.whole_j for device, t in self._traces.items()}
        total_j = math.fsum(per_device_j.values())
        return PartEnergy(
            total_j=total_j,
            per_device_j=per_device_j,
            traced_j=math.fsum(traced_j.values()),
            components=self._budget(spans, total_j / self._total_j),
        )

    def _budget(self, spans: Sequence[Span], share: float) -> tuple[UncertaintyComponent, ...]:
        """The meter's own errors shrink with the part; those of cutting it out are added."""
        integrated = self._energy.method == "power_integration"
        metered = (
            replace(component, half_width_j=component.half_width_j * share)
            for component in self._energy.components
            if component.kind not in ("sampling", "aliasing", "sensor")  # of the whole trace; the part has its own
        )
        cut = combine_boards(
            _trace_errors(trace, spans) if integrated else _cutting_errors(trace, spans, self._window)
            for trace in self._traces.values()
        )
        return (*metered, *cut)


def energy_between(energy: EnergyMeasurement, start_s: float, end_s: float) -> EnergyMeasurement:
    """Energy of a part of a metered window.

    Args:
        energy: What the meter saw of the whole window. Its audit is kept: it is about the trace that the part is cut
            out of.
        start_s: Start of the part on the measurement clock, in seconds.
        end_s: End of the part, likewise.
    """
    part = replace(
        energy, start_s=start_s, end_s=end_s, method="power_integration", counter_j=None, fused_j=None,
        cpu_j=None, dram_j=None,
    )  # fmt: skip
    if energy.total_j is None:
        return part
    try:
        cut = TracedWindow(energy).part([(start_s, end_s)])
    except PartUnknownError as error:
        note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, f"energy of the counted part is unknown: {error}")
        return replace(
            part, total_j=None, method=None, per_gpu_j={}, integral_j=None, components=(), notes=(*part.notes, note)
        )
    return replace(
        part,
        total_j=cut.total_j,
        per_gpu_j={device: cut.per_device_j[device] for device in energy.per_gpu_j},
        integral_j=cut.traced_j,
        components=cut.components,
    )


def _traces(energy: EnergyMeasurement, total_j: float) -> dict[DeviceId, _Trace]:
    telemetry = energy.telemetry
    devices = () if telemetry is None else telemetry.devices
    if silent := set(energy.per_gpu_j) - set(devices):
        raise PartUnknownError(f"there are no power samples of {', '.join(sorted(silent))}")
    samples = {} if telemetry is None else {device: power_trace(telemetry, device) for device in devices}
    try:
        whole_j = {device: integrate_power(*trace, energy.start_s, energy.end_s) for device, trace in samples.items()}
    except TraceTooShortError as error:
        raise PartUnknownError(str(error)) from error
    if any(traced_j <= 0 for traced_j in whole_j.values()):
        raise PartUnknownError("the power samples of the window add up to nothing")
    all_j = math.fsum(whole_j.values())
    traces = {}
    for device, (times_s, power_w) in samples.items():
        metered_j = energy.per_gpu_j.get(device)
        if metered_j is None:  # a meter that tells the sum only
            metered_j = total_j * whole_j[device] / all_j
        sampling = _sampling(energy, device, times_s)
        traces[device] = _Trace(times_s, power_w, sampling, whole_j[device], metered_j)
    return traces


def _sampling(energy: EnergyMeasurement, device: DeviceId, times_s: Sequence[float]) -> PowerSampling:
    """How the samples came about: as recorded, or each a mean since the one before, as RAPL's are."""
    if isinstance(energy.telemetry, RecordedWindow):
        return next(board.sampling for board in energy.telemetry.window.boards if board.device == device)
    step_s = _mean_step_s(times_s, energy.start_s, energy.end_s)
    return PowerSampling(averaging_window_s=step_s, update_s=0.0)


def _trace_errors(trace: _Trace, spans: Sequence[Span]) -> tuple[UncertaintyComponent, ...]:
    return trace_components(trace.times_s, trace.power_w, spans, trace.sampling)


def _cutting_errors(trace: _Trace, spans: Sequence[Span], window: Span) -> tuple[UncertaintyComponent, ...]:
    """Errors of the ratio T(part) / T(whole), in joules by the meter."""
    scale = trace.metered_j / trace.whole_j
    share = trace.traced_j(spans) / trace.whole_j
    inside = _trace_errors(trace, spans)
    outside = _trace_errors(trace, list(_rest(spans, window)))
    cut = []
    for own, other in zip(inside, outside, strict=True):
        if own.kind == "aliasing":  # the same error again and again, inside and outside: it cancels
            continue
        own_j, other_j = (1.0 - share) * own.half_width_j, share * other.half_width_j
        # What lags over an inner edge is missing on one side and added on the other; the rest is independent.
        half_width_j = own_j + other_j if own.kind == "sensor" else math.hypot(own_j, other_j)
        cut.append(replace(own, half_width_j=scale * half_width_j))
    return tuple(cut)


def _rest(spans: Sequence[Span], window: Span) -> Iterator[Span]:
    """The window without `spans`."""
    left_s = window[0]
    for start_s, end_s in spans:
        if start_s > left_s:
            yield left_s, start_s
        left_s = end_s
    if left_s < window[1]:
        yield left_s, window[1]


def _mean_step_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """Mean time between two samples around a window; equal times (one sensor update read twice) count once."""
    first, last = bisect_right(times_s, start_s) - 1, bisect_left(times_s, end_s)
    distinct = len(set(times_s[first : last + 1]))
    return (times_s[last] - times_s[first]) / (distinct - 1) if distinct > 1 else end_s - start_s
