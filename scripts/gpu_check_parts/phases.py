"""Prefill and decode joules of one run against runs of prefill alone, and how often a run has phases at all."""

from __future__ import annotations

import math
from typing import Any

from gpu_check_parts.lines import Book, Line, percent, spread

LINES = (
    Line(
        "phases.prefill",
        "prefill joules of a long-prompt run are those of the same run with one token out, within 10 %",
    ),
    Line("phases.decode", "its decode joules are what it took more than the run with one token out, within 10 %"),
    Line("phases.residual", "prefill, decode and the whole agree within 3 %"),
    Line(
        "phases.requests",
        "joules of its requests add up to the meter's figure to the last bit, and like ones differ by less than 2 %",
    ),
    Line("phases.share", "ordinary runs of the small model at batch 1, 8 and 64 have phases", 9),
)

LONG_INPUT, LONG_OUTPUT, BATCH = 1792, 96, 8
REHEARSED = (1792, 96)
"""Long enough on a CPU for both phases to be told apart."""

ORDINARY = ((1, 8), (8, 32), (64, 128))
"""Batch size and prompts of ordinary runs."""


def long_prompts(rig: Any, book: Book) -> None:
    """The large model on long prompts: one token out, and many."""

    def run(output_len: int) -> Any:
        sizes = {"n": rig.count(2 * BATCH, BATCH), "batch": BATCH, "input_len": LONG_INPUT, "output_len": output_len}
        return rig.record(rig.config(rig.models.large, **sizes, rehearsed=REHEARSED))

    alone, long = run(1), run(LONG_OUTPUT)
    alone_j, whole_j = alone.energy_metrics.total_energy_j, long.energy_metrics.total_energy_j
    prefill_j, decode_j = _energy(long, "prefill"), _energy(long, "decode")
    _judge_requests(book, long)
    if None in (alone_j, whole_j, prefill_j, decode_j):
        for key in ("prefill", "decode", "residual"):
            book.judge(f"phases.{key}", None, _described(long))
        return
    off = percent(prefill_j - alone_j, alone_j)
    book.judge("phases.prefill", abs(off) <= 10.0, f"{prefill_j:.1f} J against {alone_j:.1f} J: {off:+.1f} %")
    off = percent(decode_j - (whole_j - alone_j), whole_j - alone_j)
    book.judge("phases.decode", abs(off) <= 10.0, f"{decode_j:.1f} J against {whole_j - alone_j:.1f} J: {off:+.1f} %")
    residual = percent(abs(long.phases.residual_j), whole_j)
    book.judge("phases.residual", residual <= 3.0, _described(long), residual_pct=residual)


def ordinary_runs(rig: Any, book: Book) -> None:
    """128 tokens in and 32 out: who has phases?"""
    told, having = [], 0
    for batch, prompts in ORDINARY:
        n, size = rig.count(prompts, 4), rig.count(batch, 2)
        record = rig.record(rig.config(rig.models.small, n=n, batch=size, input_len=128, output_len=32))
        having += _energy(record, "prefill") is not None
        told.append(f"batch {batch}: {_described(record)}")
        measured = f"{having} of {len(told)}; " + "; ".join(told)
        book.judge("phases.share", having == len(ORDINARY), measured, having=having)


STEPS = (long_prompts, ordinary_runs)


def _judge_requests(book: Book, record: Any) -> None:
    shares_j = list(record.requests.energy_j or ())
    if not shares_j:
        book.judge("phases.requests", None, str(record.requests.energy_reason))
        return
    apart, off_j = spread(shares_j), math.fsum(shares_j) - record.energy_metrics.total_energy_j
    width_j = max(record.requests.energy_half_width_j)
    measured = (
        f"{len(shares_j)} requests of {min(shares_j):.1f} to {max(shares_j):.1f} J, CV {apart:.2f} %, each ± "
        f"{width_j:.2f} J at most; their sum is {off_j:+.1e} J off"
    )
    book.judge("phases.requests", off_j == 0.0 and apart < 2.0, measured, joules=shares_j)


def _energy(record: Any, phase: str) -> float | None:
    found = getattr(record.phases, phase, None) if record.phases is not None else None
    return None if found is None else found.energy_j


def _described(record: Any) -> str:
    prefill_j, decode_j = _energy(record, "prefill"), _energy(record, "decode")
    if prefill_j is None or decode_j is None:
        return f"no joules by phase ({record.phases.reason if record.phases is not None else 'no phases'})"
    whole_j = record.energy_metrics.total_energy_j
    return f"{prefill_j:.1f} + {decode_j:.1f} of {whole_j:.1f} J, residual {record.phases.residual_j:+.2f} J"
