"""Prefill and decode of one run: time, tokens and joules of each, from token timestamps and the power trace.

The window is cut in time. Whenever some request waits for its first token the engine is in prefill; when none does and
some request still produces tokens it is in decode; the rest is neither. With continuous batching a prefill stretch
also holds decode steps of other requests, so tokens are counted where they fell: decode tokens of prefill stretches
belong to no phase's energy and are left out of both.

    request 1    |--prefill--|----decode----|
    request 2                 |--prefill--|------decode------|
    phases       |---- prefill -----------|------decode------|

Joules are the integral of the power trace over each phase, scaled by what the meter counted over the whole window, so
that the parts and the residual make the whole. A phase whose stretches are shorter than the sensor can tell apart has
no joules.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.energy.integrate import TraceTooShortError, integrate_power
from llenergymeasure.core.energy.types import DeviceId, EnergyMeasurement, Telemetry
from llenergymeasure.core.metrics.throttle import merge_spans
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MIN_SAMPLES_PER_STRETCH: Final = 3.0
"""Sampling intervals that a stretch of a phase must last for its joules to be told: with fewer, both its edges lie in
intervals whose power belongs to its neighbours as much as to it."""

Span = tuple[float, float]


def phase_breakdown(
    outputs: Sequence[RequestOutput], energy: EnergyMeasurement
) -> tuple[PhaseBreakdown | None, tuple[MeasurementWarning, ...]]:
    """Prefill and decode of a window.

    Args:
        outputs: What the window's requests produced.
        energy: What the meter saw of it.

    Returns:
        The breakdown (`None` where the engine gives no token times) and the doubts about it.
    """
    if not outputs or any(output.token_times_s is None for output in outputs):
        return None, ()
    window = (energy.start_s, energy.end_s)
    prefill_spans, decode_spans = phase_spans(outputs, window)
    prefill_j, decode_j, reason = _phase_energies(energy, prefill_spans, decode_spans)
    breakdown = PhaseBreakdown(
        prefill=PhaseMetrics(
            time_sec=_length(prefill_spans), tokens=sum(o.input_tokens for o in outputs), energy_j=prefill_j
        ),
        decode=PhaseMetrics(
            time_sec=_length(decode_spans), tokens=_decode_tokens(outputs, decode_spans), energy_j=decode_j
        ),
        residual_j=_residual(energy.total_j, prefill_j, decode_j),
        reason=reason,
    )
    notes = () if reason is None else (MeasurementWarning(WarningCode.PHASES_NOT_RESOLVED, reason),)
    return breakdown, notes


def phase_spans(outputs: Sequence[RequestOutput], window: Span) -> tuple[list[Span], list[Span]]:
    """The stretches of the window that are prefill and decode, without overlaps, each list in order of time.

    Args:
        outputs: Requests with token times.
        window: Start and end on the measurement clock, in seconds.
    """
    prefill = list(merge_spans(_clip(((o.started_s, _first_token_s(o)) for o in outputs), window)))
    generating = list(merge_spans(_clip(((_first_token_s(o), _last_token_s(o)) for o in outputs), window)))
    return prefill, list(_without(generating, prefill))


def typical_stretch_s(spans: Sequence[Span]) -> float:
    """The stretch length that half of a phase's time lies in or above, in seconds; 0 for no spans."""
    lengths = sorted(end_s - start_s for start_s, end_s in spans)
    half, so_far = sum(lengths) / 2, 0.0
    for length in lengths:
        so_far += length
        if so_far >= half:
            return length
    return 0.0


def _phase_energies(
    energy: EnergyMeasurement, prefill: Sequence[Span], decode: Sequence[Span]
) -> tuple[float | None, float | None, str | None]:
    """Joules of prefill and decode, and why one is missing."""
    if energy.total_j is None:
        return None, None, "no energy was measured"
    if energy.telemetry is None or not energy.telemetry.devices:
        return None, None, f"the {energy.meter} meter gives no power samples, and phases are cut out of those"
    traces = [_trace(energy.telemetry, device) for device in energy.telemetry.devices]
    try:
        whole_j = math.fsum(integrate_power(*trace, energy.start_s, energy.end_s) for trace in traces)
    except TraceTooShortError as error:
        return None, None, str(error)
    if whole_j <= 0:
        return None, None, "the power samples of the window add up to nothing"
    interval_s = max(_sampling_interval_s(times, energy.start_s, energy.end_s) for times, _ in traces)
    scale = energy.total_j / whole_j
    figures: list[float | None] = []
    reasons = []
    for name, spans in (("prefill", prefill), ("decode", decode)):
        stretch_s = typical_stretch_s(spans)
        if spans and stretch_s < MIN_SAMPLES_PER_STRETCH * interval_s:
            figures.append(None)
            reasons.append(f"{name} comes in stretches of {1000 * stretch_s:.0f} ms")
        else:
            figures.append(scale * math.fsum(integrate_power(*trace, *span) for trace in traces for span in spans))
    reason = None
    if reasons:
        reason = f"{' and '.join(reasons)}; power samples every {1000 * interval_s:.0f} ms cannot tell its joules apart"
    return figures[0], figures[1], reason


def _trace(telemetry: Telemetry, device: DeviceId) -> tuple[array[float], array[float]]:
    times, power = array("d"), array("d")
    for sample in telemetry.samples(device):
        if sample.power_w is not None:
            times.append(sample.time_s)
            power.append(sample.power_w)
    return times, power


def _sampling_interval_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """Mean time between two samples around the window; equal times (one sensor update read twice) count once."""
    first, last = bisect_right(times_s, start_s) - 1, bisect_left(times_s, end_s)
    distinct = len(set(times_s[first : last + 1]))
    return (times_s[last] - times_s[first]) / (distinct - 1) if distinct > 1 else end_s - start_s


def _residual(total_j: float | None, prefill_j: float | None, decode_j: float | None) -> float | None:
    if total_j is None or prefill_j is None or decode_j is None:
        return None
    return total_j - prefill_j - decode_j


def _decode_tokens(outputs: Sequence[RequestOutput], decode: Sequence[Span]) -> int:
    """Tokens after each request's first that appeared in a decode stretch."""
    starts = [start_s for start_s, _ in decode]
    return sum(_falls_into(decode, starts, time_s) for output in outputs for time_s in _times(output)[1:])


def _falls_into(spans: Sequence[Span], starts: Sequence[float], time_s: float) -> bool:
    """Whether a token's time lies in (start, end] of a span: the step that made it ran before it appeared."""
    index = bisect_left(starts, time_s) - 1
    return index >= 0 and time_s <= spans[index][1]


def _times(output: RequestOutput) -> Sequence[float]:
    return output.token_times_s if output.token_times_s is not None else ()


def _first_token_s(output: RequestOutput) -> float:
    times = _times(output)
    return times[0] if len(times) else output.started_s


def _last_token_s(output: RequestOutput) -> float:
    times = _times(output)
    return times[-1] if len(times) else output.started_s


def _clip(spans: Iterator[Span], window: Span) -> Iterator[Span]:
    for start_s, end_s in spans:
        clipped = (max(start_s, window[0]), min(end_s, window[1]))
        if clipped[0] < clipped[1]:
            yield clipped


def _without(spans: Sequence[Span], holes: Sequence[Span]) -> Iterator[Span]:
    """`spans` minus `holes`; both in order and without overlaps of their own."""
    ends = [end_s for _, end_s in holes]
    for start_s, end_s in spans:
        left_s = start_s
        for hole_start_s, hole_end_s in holes[bisect_right(ends, start_s) :]:
            if hole_start_s >= end_s:
                break
            if hole_start_s > left_s:
                yield left_s, hole_start_s
            left_s = max(left_s, hole_end_s)
        if left_s < end_s:
            yield left_s, end_s


def _length(spans: Sequence[Span]) -> float:
    return math.fsum(end_s - start_s for start_s, end_s in spans)
