"""From tokens with timestamps to each request's latencies.

    started ──── TTFT ────▶ token 1 ── ITL ──▶ token 2 ── ITL ──▶ … last token
    └───────────────────────────── e2e ──────────────────────────────┘

All figures are in milliseconds on the measurement clock. Waiting inside the engine before the start is beside them, not
in them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.domain.latency import RequestTimings

MS_PER_S: Final = 1000.0


def request_timings(outputs: Sequence[RequestOutput]) -> RequestTimings | None:
    """Latencies of every request, for the record of one process.

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
