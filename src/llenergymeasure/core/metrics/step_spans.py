"""When the steps of an engine ran: it tells when each was over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.energy.spans import Span


def step_spans(steps: StepLog, outputs: Sequence[RequestOutput]) -> list[Span]:
    """Start and end of each step, in order.

    A step follows the one before it where some request was being served when that ended; otherwise it starts with the
    first request that started since. One that gave nobody a token (begun before the end of a text was known) after all
    others are served has no length; an engine in a process of its own may tell of one from before the window.
    """
    starts_s = sorted(output.started_s for output in outputs)
    ends_s = sorted(output.token_times_s[-1] for output in outputs if output.token_times_s)
    spans: list[Span] = []
    before_s = float("-inf")
    for step in steps:
        begun = bisect_right(starts_s, before_s)
        is_serving = begun > bisect_right(ends_s, before_s)
        next_s = starts_s[begun] if begun < len(starts_s) else step.ended_s
        spans.append((before_s if is_serving else min(next_s, step.ended_s), step.ended_s))
        before_s = step.ended_s
    return spans
