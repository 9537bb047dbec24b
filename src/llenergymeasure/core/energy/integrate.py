"""From sampled power to energy: over a window by the trapezoidal rule, and over parts of a metered window.

    counter   C |<---------------- E(whole), metered ----------------->| C
    samples     o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o--o
    part                    [ <----- T(part) -----> ]                       T: integral of the samples

Counters are read at the window's edges only, so a part of it is told from the samples, scaled to what the meter
counted: E(part) = E(whole) T(part) / T(whole), device by device. The sensor's gain against the counter cancels in that
ratio. What the samples cannot know does so only in part: with the share s = T(part) / T(whole), an error of T(part)
counts 1 - s of itself and one of the rest s. Where the meter integrated the samples itself, or its counter may have
added up what the sensor sees, the errors of T(part) are the budget; with the former also what E(part) and T(part) are
apart: such a meter knows nothing of the edges of a part, and the trace below does.

Two things make a trace that is cut better than one that is only summed:

- A sample shows the mean over a time that is past when it is read: on average, half of the sensor's averaging window
  and half an update. Phases would all seem to begin that much late, so the trace is read that much later. What remains
  is where within an update the samples fall, which nobody knows.
- A phase begins where the load changes. A straight line between the samples on either side of such an edge would give a
  sixth of a sampling interval's worth of the difference to the wrong side; the trace has a step there instead. Where
  samples carry the time at which they were taken, those whose average reaches over an edge are left out.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from llenergymeasure.core.energy.spans import Span, without
from llenergymeasure.core.energy.types import EnergyMeasurement, PowerSampling
from llenergymeasure.core.energy.uncertainty import trace_components
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.domain.energy import BudgetComponent, resized, sum_budgets
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import EnergyError


class TraceTooShortError(EnergyError):
    """A power trace does not reach over the whole window."""


class PartUnknownError(EnergyError):
    """The power samples of a window cannot tell the energy of its parts."""


def integrate_power(times_s: Sequence[float], power_w: Sequence[float], start_s: float, end_s: float) -> float:
    """Energy in joules between two instants of a sampled power signal.

    Piecewise-linear between samples; samples just outside the window fix its edges. Equal neighbours are kept: a
    constant signal is the commonest case, not a duplicate. Two samples at one time make a step. The sum is correctly
    rounded (`math.fsum`), so it does not depend on how the samples were stored or grouped.

    Raises:
        TraceTooShortError: No sample at or before `start_s`, or at or after `end_s`; extrapolating would invent energy.
        ValueError: The two sequences differ in length, the window ends before it starts, or times or powers inside it
            are out of order or not finite.
    """
    if len(times_s) != len(power_w):
        raise ValueError(f"{len(times_s)} times but {len(power_w)} powers")
    if not start_s <= end_s:
        raise ValueError(f"a window cannot end ({end_s} s) before it starts ({start_s} s)")
    if not len(times_s):
        raise TraceTooShortError("no power samples at all")
    first = bisect_right(times_s, start_s) - 1
    last = bisect_left(times_s, end_s)
    if first < 0 or last == len(times_s):
        raise TraceTooShortError(
            f"power samples from {times_s[0]:.3f} s to {times_s[-1]:.3f} s do not reach over the window "
            f"from {start_s:.3f} s to {end_s:.3f} s"
        )
    return math.fsum(_trapezoids(times_s, power_w, first, last, start_s, end_s))


def _trapezoids(
    times_s: Sequence[float], power_w: Sequence[float], first: int, last: int, start_s: float, end_s: float
) -> Iterator[float]:
    """Energy of each stretch between neighbours from sample `first` to `last`, cut at the window's edges."""
    t0, p0 = times_s[first], power_w[first]
    for i in range(first + 1, last + 1):
        t1, p1 = times_s[i], power_w[i]
        if not (t1 >= t0 and math.isfinite(p0) and math.isfinite(p1)):
            raise ValueError(f"power samples must be finite and in order of time; at {t1} s they are not")
        if t1 > t0:
            a, b = max(t0, start_s), min(t1, end_s)
            slope = (p1 - p0) / (t1 - t0)
            yield (p0 + slope * (0.5 * (a + b) - t0)) * (b - a)
        t0, p0 = t1, p1


@dataclass(frozen=True, slots=True)
class PartEnergy:
    """Energy of a part of a window.

    Args:
        traced_j: What the power samples say by themselves, not scaled to the meter.
        per_device_components: The error budget of each device (95 % half-widths).
    """

    total_j: float
    per_device_j: Mapping[DeviceId, float]
    traced_j: float
    per_device_components: Mapping[DeviceId, tuple[BudgetComponent, ...]]

    @property
    def components(self) -> tuple[BudgetComponent, ...]:
        """The error budget of `total_j`."""
        return sum_budgets(self.per_device_components.values())


class TracedWindow:
    """The power traces of a metered window, cut where somebody said that its load changes.

    Args:
        edges_s: Edges of all parts that will be asked for, on the measurement clock in seconds.

    Raises:
        PartUnknownError: There is no energy to divide, or there are no samples to divide it by.
    """

    def __init__(self, energy: EnergyMeasurement, edges_s: Sequence[float]) -> None:
        if energy.total_j is None:
            raise PartUnknownError("no energy was measured")
        self._energy = energy
        self._window: Span = (energy.start_s, energy.end_s)
        self._traces: dict[DeviceId, _Trace] = {}
        edges = sorted({*edges_s, *self._window})
        samples = _samples(energy)
        traced_j = {device: _whole_j(self._window, *trace) for device, trace in samples.items()}
        for device, (times_s, power_w) in samples.items():
            sampling, lag_s = _sampling(energy, device, _mean_step_s(times_s, self._window))
            shown_s = [edge_s + lag_s for edge_s in edges]
            if sampling.stamped_at_update:
                times_s, power_w = _unmixed(times_s, power_w, shown_s, 0.5 * sampling.averaging_window_s)
            stepped = _with_steps(times_s, power_w, shown_s)
            metered_j = energy.per_gpu_j.get(device)
            if metered_j is None:  # a meter that tells the sum only
                metered_j = energy.total_j * traced_j[device] / math.fsum(traced_j.values())
            self._traces[device] = _Trace(*stepped, sampling, lag_s, metered_j, _sees_more(energy, device))
        self._whole_j = {device: trace.traced_j([self._window]) for device, trace in self._traces.items()}

    @property
    def samples(self) -> int:
        """How many samples all traces have."""
        return sum(len(trace.times_s) for trace in self._traces.values())

    def part(self, spans: Sequence[Span]) -> PartEnergy:
        """Energy of some stretches of the window together; inside it, in order and without overlaps."""
        traced_j = {device: trace.traced_j(spans) for device, trace in self._traces.items()}
        # A part is no more than the whole, whatever the rounding of both.
        shares = {device: min(1.0, traced_j[device] / self._whole_j[device]) for device in self._traces}
        per_device_j = {device: shares[device] * trace.metered_j for device, trace in self._traces.items()}
        return PartEnergy(
            total_j=math.fsum(per_device_j.values()),
            per_device_j=per_device_j,
            traced_j=math.fsum(traced_j.values()),
            per_device_components={device: self._budget(device, spans, share) for device, share in shares.items()},
        )

    def split(self, instants_s: Sequence[float]) -> list[float]:
        """Energy of each gap between neighbours of some instants of the window, in joules by the meter."""
        scales = ((trace, trace.metered_j / self._whole_j[device]) for device, trace in self._traces.items())
        gaps_j: list[float] = sum(scale * trace.gaps_j(instants_s) for trace, scale in scales).tolist()
        return gaps_j

    def _budget(self, device: DeviceId, spans: Sequence[Span], share: float) -> tuple[BudgetComponent, ...]:
        """The meter's own errors shrink with the part; those of cutting it out are added."""
        # A meter that tells only the sum has one device, or one budget for all of them.
        metered = self._energy.per_gpu_components.get(device) or self._energy.components
        shrunk = [
            component if component.kind == "clock" else resized(component, component.half_width_j * share)
            for component in metered
            if component.kind not in ("sampling", "aliasing")  # of the whole trace; the part has its own
        ]
        trace = self._traces[device]
        if trace.sees_more:
            rest = without([self._window], spans)
            cut = trace.cutting_errors(spans, rest, share, trace.metered_j / self._whole_j[device])
        else:
            cut = trace.errors(spans)
        if self._energy.method == "power_integration":
            apart_j = share * abs(trace.metered_j - self._whole_j[device])
            cut = tuple(resized(c, c.half_width_j + apart_j) if c.kind == "sampling" else c for c in cut)
        return sum_budgets([shrunk, cut])


def energy_between(energy: EnergyMeasurement, start_s: float, end_s: float) -> EnergyMeasurement:
    """Energy of a part of a metered window; the audit is kept: it is about the trace that the part is cut out of."""
    part = replace(
        energy, start_s=start_s, end_s=end_s, method="power_integration", counter_j=None, fused_j=None,
        cpu_j=None, dram_j=None,
    )  # fmt: skip
    if energy.total_j is None:
        return part
    try:
        cut = TracedWindow(energy, (start_s, end_s)).part([(start_s, end_s)])
    except PartUnknownError as error:
        note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, f"energy of the counted part is unknown: {error}")
        return replace(
            part,
            total_j=None,
            method=None,
            per_gpu_j={},
            integral_j=None,
            components=(),
            per_gpu_components={},
            notes=(*part.notes, note),
        )
    return replace(
        part,
        total_j=cut.total_j,
        per_gpu_j={device: cut.per_device_j[device] for device in energy.per_gpu_j},
        integral_j=cut.traced_j,
        components=cut.components,
        per_gpu_components={device: cut.per_device_components[device] for device in energy.per_gpu_j},
    )


def sampling_interval_s(energy: EnergyMeasurement) -> float | None:
    """Mean time in seconds between two power samples of the slowest device; `None`: there are none.

    Equal times (one update of a sensor that was read twice) count once.
    """
    return max(_intervals_s(energy).values(), default=None)


def resolution_s(energy: EnergyMeasurement) -> float | None:
    """Time in seconds within which power samples cannot be told apart, of the slowest device; `None`: there are none.

    However often a sensor is read, it tells nothing new before its next update, and nothing finer than it averages.
    """
    blurred_s = []
    for device, interval_s in _intervals_s(energy).items():
        sampling, _ = _sampling(energy, device, interval_s)
        blurred_s.append(max(interval_s, sampling.update_s, sampling.averaging_window_s))
    return max(blurred_s, default=None)


def _intervals_s(energy: EnergyMeasurement) -> dict[DeviceId, float]:
    """Mean time between two samples of each device, in seconds."""
    telemetry = energy.telemetry
    if telemetry is None:
        return {}
    window: Span = (energy.start_s, energy.end_s)
    return {device: _mean_step_s(telemetry.power(device)[0], window) for device in telemetry.devices}


@dataclass(frozen=True, slots=True)
class _Trace:
    """The samples of one device with a step at each edge, and what the meter counted for it.

    Args:
        lag_s: How much earlier, on average, it was true.
        sees_more: Whether the meter is known to have counted what the samples miss.
    """

    times_s: Sequence[float]
    power_w: Sequence[float]
    sampling: PowerSampling
    lag_s: float
    metered_j: float
    sees_more: bool

    def traced_j(self, spans: Sequence[Span]) -> float:
        """Integral over `spans`, in joules."""
        return math.fsum(integrate_power(self.times_s, self.power_w, *span) for span in self._shown(spans))

    def gaps_j(self, instants_s: Sequence[float]) -> Any:
        """Integrals between neighbours of many instants at once, in joules: an array of numpy's."""
        import numpy as np

        shown_s = np.asarray(instants_s) + self.lag_s
        knots_s = np.union1d(shown_s, self.times_s)
        knots_s = knots_s[(knots_s >= shown_s[0]) & (knots_s <= shown_s[-1])]
        pieces_j = np.interp(0.5 * (knots_s[:-1] + knots_s[1:]), self.times_s, self.power_w) * np.diff(knots_s)
        gaps = np.searchsorted(shown_s, knots_s[:-1], side="right") - 1
        return np.bincount(gaps, weights=pieces_j, minlength=len(shown_s) - 1)

    def errors(self, spans: Sequence[Span]) -> tuple[BudgetComponent, ...]:
        """95 % half-widths of `traced_j`."""
        misplaced_s = self.sampling.unknown_lag_s
        return trace_components(self.times_s, self.power_w, self._shown(spans), self.sampling, misplaced_s)

    def cutting_errors(
        self, spans: Sequence[Span], rest: Sequence[Span], share: float, scale: float
    ) -> tuple[BudgetComponent, ...]:
        """Errors of the ratio T(part) / T(whole), in joules by the meter.

        Args:
            rest: What the window has besides `spans`.
            share: T(part) / T(whole), 0..1.
            scale: Joules by the meter for each joule of the trace.
        """
        cut = []
        for own, other in zip(self.errors(spans), self.errors(rest), strict=True):
            if own.kind == "aliasing":  # the same error again and again, inside and outside: it cancels
                continue
            own_j, other_j = (1.0 - share) * own.half_width_j, share * other.half_width_j
            # What lags over an inner edge is missing on one side and added on the other; the rest is independent.
            half_width_j = own_j + other_j if own.kind == "sensor" else math.hypot(own_j, other_j)
            cut.append(resized(own, scale * half_width_j))
        return tuple(cut)

    def _shown(self, spans: Sequence[Span]) -> list[Span]:
        """When the samples show what happened in `spans`."""
        return [(start_s + self.lag_s, end_s + self.lag_s) for start_s, end_s in spans]


def _with_steps(
    times_s: Sequence[float], power_w: Sequence[float], edges_s: Sequence[float]
) -> tuple[array[float], array[float]]:
    """The same trace with a step at each edge, so that what is on one side of it is not taken for the other."""
    samples = list(zip(times_s, power_w, strict=True))
    if edges_s[-1] >= samples[-1][0]:  # the sampler stops soon after the window; its last value is held
        samples.append((math.nextafter(edges_s[-1], math.inf), samples[-1][1]))
    knots = []
    for (t0, p0), (t1, p1) in pairwise(samples):
        knots.append((t0, p0))
        inner_s = edges_s[bisect_right(edges_s, t0) : bisect_left(edges_s, t1)]
        levels_w = [p0, *[0.5 * (p0 + p1)] * (len(inner_s) - 1), p1]
        for edge_s, (before_w, after_w) in zip(inner_s, pairwise(levels_w), strict=False):
            knots += [(edge_s, before_w), (edge_s, after_w)]
    knots.append(samples[-1])
    stepped_s, stepped_w = zip(*knots, strict=True)
    return array("d", stepped_s), array("d", stepped_w)


def _unmixed(
    times_s: Sequence[float], power_w: Sequence[float], edges_s: Sequence[float], reach_s: float
) -> tuple[array[float], array[float]]:
    """The samples that are farther from every edge than `reach_s`; between edges that leave none, all there are."""
    kept_s, kept_w = array("d"), array("d")
    limits_s = [-math.inf, *edges_s, math.inf]
    for begins_s, ends_s in pairwise(limits_s):
        first, last = bisect_left(times_s, begins_s), bisect_left(times_s, ends_s)
        inner = bisect_right(times_s, begins_s + reach_s), bisect_left(times_s, ends_s - reach_s)
        first, last = inner if inner[0] < inner[1] else (first, last)
        kept_s.extend(times_s[first:last])
        kept_w.extend(power_w[first:last])
    return kept_s, kept_w


def _samples(energy: EnergyMeasurement) -> dict[DeviceId, tuple[array[float], array[float]]]:
    """Times and power of every device in the figures."""
    telemetry = energy.telemetry
    traces = {} if telemetry is None else {device: telemetry.power(device) for device in telemetry.devices}
    if not any(times_s for times_s, _ in traces.values()):
        raise PartUnknownError(f"the {energy.meter} meter gives no power samples, and parts are cut out of those")
    if silent := set(energy.per_gpu_j) - set(traces):
        raise PartUnknownError(f"there are no power samples of {', '.join(sorted(silent))}")
    if energy.gpu_window is not None and energy.integral_j is None:
        raise PartUnknownError("the power samples do not cover the window")
    return traces


def _whole_j(window: Span, times_s: Sequence[float], power_w: Sequence[float]) -> float:
    try:
        traced_j = integrate_power(times_s, power_w, *window)
    except TraceTooShortError as error:
        raise PartUnknownError(str(error)) from error
    if traced_j <= 0:
        raise PartUnknownError("the power samples of the window add up to nothing")
    return traced_j


def _sampling(energy: EnergyMeasurement, device: DeviceId, interval_s: float) -> tuple[PowerSampling, float]:
    """How the samples came about, and their mean age in seconds.

    As recorded; otherwise each is the exact mean since the one before, at the middle of that time, as RAPL's are.
    """
    if energy.gpu_window is not None:
        sampling = next(board.sampling for board in energy.gpu_window.boards if board.device == device)
        return sampling, sampling.lag_s
    return PowerSampling(averaging_window_s=interval_s, update_s=0.0, noise_w=0.0), 0.0


def _sees_more(energy: EnergyMeasurement, device: DeviceId) -> bool:
    """Whether a device's meter is known to have counted what its power samples miss."""
    if energy.method == "power_integration":
        return False
    boards = () if energy.gpu_window is None else energy.gpu_window.boards
    return all(board.sensor.counter_follows_sensor is False for board in boards if board.device == device)


def _mean_step_s(times_s: Sequence[float], window: Span) -> float:
    """Mean time between the samples around a window; equal times count once. With less than two: the window's length.

    Samples may begin late or stop early.
    """
    start_s, end_s = window
    around = times_s[max(0, bisect_right(times_s, start_s) - 1) : bisect_left(times_s, end_s) + 1]
    distinct = len(set(around))
    return (around[-1] - around[0]) / (distinct - 1) if distinct > 1 else end_s - start_s
