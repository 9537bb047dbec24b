"""What token timestamps tell: each request's latencies, and prefill and decode of the whole run.

    started ──── TTFT ────▶ token 1 ── ITL ──▶ token 2 ── ITL ──▶ … last token
    └───────────────────────────── e2e ──────────────────────────────┘

Latencies are in milliseconds on the measurement clock. Waiting inside the engine before the start is beside them, not
in them.

For the phases the window is cut in time. Whenever some request waits for its first token the engine is in prefill; when
none does and some request still produces tokens it is in decode; the rest is neither. With continuous batching a
prefill stretch also holds decode steps of other requests, so tokens are counted where they fell: decode tokens of
prefill stretches belong to no phase's energy and are left out of both.

    request 1    |--prefill--|----decode----|
    request 2                 |--prefill--|------decode------|
    phases       |---- prefill -----------|------decode------|

Joules are cut out of the power trace (energy/integrate.py), so that the parts and the residual make the whole. Where
the stretches of one phase are shorter than the sensor can tell apart, neither has joules: what is missing from the one
would be in the other.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.energy.integrate import (
    PartEnergy,
    PartUnknownError,
    TracedWindow,
    resolution_s,
)
from llenergymeasure.core.energy.spans import Span, merge_spans, without
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.energy.uncertainty import stated_uncertainty
from llenergymeasure.core.metrics.step_spans import step_spans
from llenergymeasure.domain.latency import RequestTimings
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MS_PER_S: Final = 1000.0

MIN_SAMPLES_PER_STRETCH: Final = 3.0
"""A stretch of a phase must last so many samples that differ (`resolution_s`) for its joules to be told: with fewer,
both its edges lie in samples whose power belongs to its neighbours as much as to it."""


def request_timings(outputs: Sequence[RequestOutput]) -> RequestTimings | None:
    """Latencies of every request, for the record of one process; joules are added by whoever has them.

    Returns:
        `None` unless every request's tokens have timestamps: figures for some of them would pass for all of them.
    """
    timed = [(output, output.token_times_s) for output in outputs if output.token_times_s]
    if not timed or len(timed) < len(outputs):
        return None
    return RequestTimings(
        input_tokens=[output.input_tokens for output in outputs],
        output_tokens=[output.output_tokens for output in outputs],
        e2e_ms=array("d", ((times_s[-1] - output.started_s) * MS_PER_S for output, times_s in timed)),
        ttft_ms=array("d", ((times_s[0] - output.started_s) * MS_PER_S for output, times_s in timed)),
        queue_ms=array("d", (output.queued_s * MS_PER_S for output in outputs)),
        itl_ms=array("f", ((late - early) * MS_PER_S for _, times_s in timed for early, late in pairwise(times_s))),
    )


def phase_breakdown(
    outputs: Sequence[RequestOutput], energy: EnergyMeasurement, steps: StepLog | None = None
) -> tuple[PhaseBreakdown | None, tuple[MeasurementWarning, ...]]:
    """Prefill and decode of a window, and warnings about them; `None` where the engine gives no token times."""
    if not outputs or any(output.token_times_s is None for output in outputs):
        return None, ()
    window = (energy.start_s, energy.end_s)
    prefill_spans, decode_spans = phase_spans(outputs, window, steps)
    prefill, decode, reason = _phase_energies(energy, prefill_spans, decode_spans)
    breakdown = PhaseBreakdown(
        prefill=_phase(prefill_spans, _prefill_tokens(outputs, window), prefill),
        decode=_phase(decode_spans, _decode_tokens(outputs, decode_spans), decode),
        residual_j=_residual(energy.total_j, prefill, decode),
        reason=reason,
    )
    notes = () if reason is None else (MeasurementWarning(WarningCode.PHASES_NOT_RESOLVED, reason),)
    return breakdown, notes


def phase_spans(
    outputs: Sequence[RequestOutput], window: Span, steps: StepLog | None = None
) -> tuple[list[Span], list[Span]]:
    """The stretches of the window that are prefill and decode, without overlaps, each list in order of time."""
    if steps is None:
        prefill: Iterable[Span] = ((output.started_s, _times(output)[0]) for output in outputs)
        generating: Iterable[Span] = ((_times(output)[0], _times(output)[-1]) for output in outputs)
    else:
        generating = step_spans(steps, outputs)
        prefill = (span for span, step in zip(generating, steps, strict=True) if step.prefill_tokens)
    prefill_spans = merge_spans(_clip(prefill, window))
    return prefill_spans, without(merge_spans(_clip(generating, window)), prefill_spans)


def typical_stretch_s(spans: Sequence[Span]) -> float:
    """The stretch length that half of a phase's time lies in or above, in seconds; 0 for no spans."""
    lengths = sorted(end_s - start_s for start_s, end_s in spans)
    half, so_far = sum(lengths) / 2, 0.0
    for length in lengths:
        so_far += length
        if so_far >= half:
            return length
    return 0.0


def _phase(spans: Sequence[Span], tokens: int, energy: PartEnergy | None) -> PhaseMetrics:
    return PhaseMetrics(
        time_sec=math.fsum(end_s - start_s for start_s, end_s in spans),
        tokens=tokens,
        energy_j=None if energy is None else energy.total_j,
        uncertainty=None if energy is None else stated_uncertainty(energy.total_j, energy.components),
    )


def _phase_energies(
    energy: EnergyMeasurement, prefill: Sequence[Span], decode: Sequence[Span]
) -> tuple[PartEnergy | None, PartEnergy | None, str | None]:
    """Energy of prefill and decode, both or neither, and why they are missing."""
    try:
        traced = TracedWindow(energy, [edge_s for span in (*prefill, *decode) for edge_s in span])
    except PartUnknownError as error:
        return None, None, str(error)
    blur_s = resolution_s(energy) or energy.duration_sec
    stretches_s = {"prefill": typical_stretch_s(prefill), "decode": typical_stretch_s(decode)}
    too_short = [
        f"{name} comes in stretches of {1000 * stretch_s:.0f} ms"
        for name, stretch_s in stretches_s.items()
        if 0.0 < stretch_s < MIN_SAMPLES_PER_STRETCH * blur_s
    ]
    if too_short:
        sensor = f"power readings that are {1000 * blur_s:.0f} ms apart or averages over that"
        return None, None, f"{' and '.join(too_short)}; {sensor} cannot tell the joules of the phases apart"
    return traced.part(prefill), traced.part(decode), None


def _residual(total_j: float | None, prefill: PartEnergy | None, decode: PartEnergy | None) -> float | None:
    if total_j is None or prefill is None or decode is None:
        return None
    return total_j - prefill.total_j - decode.total_j


def _prefill_tokens(outputs: Sequence[RequestOutput], window: Span) -> int:
    """Input tokens of the requests whose first output token, and so the end of their prefill, lies in the window."""
    return sum(output.input_tokens for output in outputs if window[0] < _times(output)[0] <= window[1])


def _decode_tokens(outputs: Sequence[RequestOutput], decode: Sequence[Span]) -> int:
    """Tokens after each request's first that appeared in a decode stretch.

    They lie in (start, end] of it: the step that made a token ran before that appeared.
    """
    ends_s, tokens = [end_s for _, end_s in decode], 0
    for times_s in map(_times, outputs):
        for index in range(bisect_left(ends_s, times_s[0]), len(decode)):
            start_s, end_s = decode[index]
            if start_s >= times_s[-1]:
                break
            tokens += bisect_right(times_s, end_s, 1) - bisect_right(times_s, start_s, 1)
    return tokens


def _times(output: RequestOutput) -> Sequence[float]:
    """When its tokens were there; of one without any, when it started."""
    return output.token_times_s or (output.started_s,)


def _clip(spans: Iterable[Span], window: Span) -> Iterator[Span]:
    for start_s, end_s in spans:
        clipped = (max(start_s, window[0]), min(end_s, window[1]))
        if clipped[0] < clipped[1]:
            yield clipped
