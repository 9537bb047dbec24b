"""On request: windows of 30 s on known loads, and decoding at batch 1, 8 and 64, counter against integral."""

from __future__ import annotations

from typing import Any

from gpu_check_parts.counter import LOADS
from gpu_check_parts.lines import Book, Line
from gpu_check_parts.windows import described, figures_of, keep_trace

BATCHES = (1, 8, 64)
WINDOW_S, DECODE_S = 30.0, 12.0
AGREES = "counter and integral agree within their stated uncertainties over"

LINES = (
    *(Line(f"long_windows.{name}", f"{name}: {AGREES} {WINDOW_S:g} s") for name in LOADS),
    *(Line(f"long_windows.decode-{batch}", f"decoding at batch {batch}: {AGREES} {DECODE_S:g} s") for batch in BATCHES),
)


def known_loads(rig: Any, book: Book) -> None:
    """One long window on each."""
    meter = rig.meter()
    for name, running in LOADS.items():
        with running(rig):
            energy = rig.metered(meter, WINDOW_S, 0.5)
        _judge(book, name, energy)


def decoding(rig: Any, book: Book) -> None:
    """The small model, passes over the same prompts until the window is long enough."""
    from llenergymeasure.core.progress import ignore_events
    from llenergymeasure.core.window import measure_window

    most, meter = max(BATCHES), rig.meter()
    with rig.session(rig.config(rig.models.small, n=most, batch=most, input_len=128, output_len=64)) as session:
        for batch in BATCHES:
            requests = session.requests[:batch]
            session.engine.generate(requests)
            least_s = rig.seconds(DECODE_S, 0.5)
            window = measure_window(session.engine, requests, meter, rig.clock, ignore_events, min_duration_s=least_s)
            _judge(book, f"decode-{batch}", window.energy)


STEPS = (known_loads, decoding)


def _judge(book: Book, name: str, energy: Any) -> None:
    keep_trace(book, name, energy)
    window = figures_of(energy)
    energy.close()
    book.judge(f"long_windows.{name}", window["agrees"], described({name: [window]}), window=window)
