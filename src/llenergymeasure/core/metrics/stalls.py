"""Work in the window that no token needed: programs compiled, requests computed again, or seen as a stall.

The compiler's count names the cause. What it does not see (a lazy kernel, an allocator that grows, another process)
shows as a gap between two tokens, or before the first, that is far longer than the gaps of its kind usually are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.energy.spans import Span, merge_spans
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

STALL_FACTOR: Final = 20.0
"""Times the median gap from which a gap between tokens is a stall."""

STALL_SHARE: Final = 0.05
"""Share of the window that stalls must take to be worth a warning."""


def generation_warnings(
    outputs: Sequence[RequestOutput], compilations: int, window: Span
) -> Iterator[MeasurementWarning]:
    """Warnings about a window, its edges in seconds on the measurement clock, in which not all was generation."""
    if compilations > 0:
        yield MeasurementWarning(
            WarningCode.COMPILED_IN_WINDOW,
            f"the engine compiled or recorded {compilations} times within the window, and its time and energy are in "
            "the figures; use prompts of equal length (synthetic data), or do without compilation",
        )
    preempted = [output.preemptions for output in outputs if output.preemptions]
    if preempted:
        yield MeasurementWarning(
            WarningCode.REQUESTS_PREEMPTED,
            f"{len(preempted)} of {len(outputs)} requests lost their key-value cache, {sum(preempted)} times, "
            "and were computed again; that work is in energy, throughput and decode. Run fewer at once, or give the "
            "cache more memory",
        )
    stalls = list(find_stalls(outputs))
    stalled_s = math.fsum(end_s - start_s for start_s, end_s in stalls)
    if stalled_s > STALL_SHARE * (window[1] - window[0]):
        yield MeasurementWarning(
            WarningCode.GENERATION_STALLED,
            f"generation stood still {len(stalls)} times for {stalled_s:.2f} s of the {window[1] - window[0]:.2f} s "
            f"window, at least {STALL_FACTOR:g} times the median gap each; something was prepared for the first time, "
            "or other work took the device: warm up for longer, and look for other processes",
        )


def find_stalls(outputs: Sequence[RequestOutput]) -> Sequence[Span]:
    """Stretches in which a token took far longer than such tokens do, without overlaps, in order of time.

    First tokens are compared with first tokens, later ones with later ones; without time stamps nothing is found.
    """
    timed = [(output.started_s, output.token_times_s) for output in outputs if output.token_times_s]
    first = {(started_s, times_s[0]) for started_s, times_s in timed}
    later = {gap for _, times_s in timed for gap in pairwise(times_s) if gap[0] < gap[1]}  # a batch's share theirs
    return merge_spans([*_far_beyond_the_median(first), *_far_beyond_the_median(later)])


def _far_beyond_the_median(gaps: set[Span]) -> list[Span]:
    if not gaps:
        return []
    limit_s = STALL_FACTOR * statistics.median(end_s - start_s for start_s, end_s in gaps)
    return [(start_s, end_s) for start_s, end_s in gaps if end_s - start_s > limit_s]
