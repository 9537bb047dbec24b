"""The energy counter against the integral of power samples, on loads that are known; and what the counter sees."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any

from gpu_check_parts.lines import Book, Line, percent, spread
from gpu_check_parts.loads import Pulses
from gpu_check_parts.windows import described, figures_of, keep_trace, watts

LINES = (
    Line(
        "counter.phases",
        "25 ms of load in every counter period: joules depend on the pulses' phase by less than 2 %",
        2,
    ),
    Line("counter.idle", "counter and integral agree within their stated uncertainties on an idle board"),
    Line("counter.constant", "likewise on a constant load"),
    Line("counter.square", "likewise on a 0.7 s square wave"),
    Line("counter.repeats", "A/A: windows of 1 s on a constant load vary by less than 1 %"),
    Line("counter.intervals", "A/A: at least 9 of 10 of those windows hold their common mean in the stated interval"),
    Line("counter.fallback", "of 20 windows, fusion falls back to the plain counter in 1 at most", 12),
    Line("counter.zeus", "Zeus beside it, on a constant load: mean power within 2 %"),
)

PHASES = 8
PHASE_S = 3.0
DUTY = 0.25
COUNTER_POLL_S = 0.0005
SQUARE_PERIOD_S = 0.7
LENGTHS_S = {"idle": (0.5, 2.0), "constant": (0.5, 2.0, 5.0), "square": (0.5, 2.0, 5.0)}
REPEATS = 8

_windows: list[dict[str, Any]] = []
"""Every window of this part, for the count of those that fell back."""


def phases(rig: Any, book: Book) -> None:
    """Pulses in step with the counter, at eight phases. A counter that sees all the time cannot tell them apart."""
    steps_s = _counter_steps_s(rig, 21, timeout_s=2.5)
    if len(steps_s) < 3:
        book.judge("counter.phases", None, f"the counter moved {len(steps_s)} times in 2.5 s")
        return
    period_s = (steps_s[-1] - steps_s[0]) / (len(steps_s) - 1)
    meter, load = rig.meter(), rig.load()
    load.start()
    load.stop()
    rig.clock.sleep(rig.seconds(0.5))
    off = rig.metered(meter, 1.0, 0.5)
    off_w = watts(figures_of(off))
    off.close()
    rows, count = [], rig.count(PHASES, 4)
    for number in range(count):
        (step_s,) = _counter_steps_s(rig, 1, timeout_s=0.5) or (rig.clock.now(),)
        first_s = step_s + (2 + number / count) * period_s
        pulses = Pulses(load, rig.clock, period_s, DUTY)
        pulses.start(first_s)
        try:
            rig.clock.sleep(max(0.0, first_s - rig.clock.now()) + period_s)
            energy = rig.metered(meter, PHASE_S, 0.5)
        finally:
            pulses.stop()
        keep_trace(book, f"phase-{number}", energy)
        window = figures_of(energy)
        energy.close()
        _windows.append(window)
        share = pulses.share(energy.start_s, energy.end_s)
        rows.append({"phase": number / count, "on_share": share, **window})
    _judge_phases(book, rows, period_s, off_w)


def known_loads(rig: Any, book: Book) -> None:
    """Windows of several lengths on an idle board, a constant load and a square wave."""
    meter = rig.meter()
    for name, running in LOADS.items():
        found = []
        with running(rig):
            for length_s in LENGTHS_S[name]:
                energy = rig.metered(meter, length_s)
                keep_trace(book, f"{name}-{length_s:g}s", energy)
                found.append(figures_of(energy))
                energy.close()
        _windows.extend(found)
        told = [window["agrees"] for window in found if window["agrees"] is not None]
        book.judge(f"counter.{name}", all(told) if told else None, described({name: found}), windows=found)


def repeats(rig: Any, book: Book) -> None:
    """The same window over and over: what this board and method can resolve."""
    meter, found = rig.meter(), []
    with _constant(rig):
        for _ in range(rig.count(REPEATS, 4)):
            energy = rig.metered(meter, 1.0, 0.3)
            found.append(figures_of(energy))
            energy.close()
    _windows.extend(found)
    powers = [watts(window) for window in found if window["total_j"] is not None]
    if len(powers) < 3:
        return
    mean_w = math.fsum(powers) / len(powers)
    measured = f"{spread(powers):.3f} % over {len(powers)} windows around {mean_w:.1f} W"
    book.judge("counter.repeats", spread(powers) < 1.0, measured, watts=powers)
    held = sum(
        abs(watts(w) - mean_w) * w["seconds"] <= w["half_width_j"] for w in found if w["half_width_j"] is not None
    )
    states = [percent(w["half_width_j"], w["total_j"]) for w in found if w["half_width_j"] is not None]
    measured = f"{held} of {len(states)}; they state ±{math.fsum(states) / len(states):.3f} % on average"
    book.judge("counter.intervals", held >= 0.9 * len(states), measured, half_widths_pct=states)


def fallbacks(rig: Any, book: Book) -> None:
    """How often fusion had to do without a step, over every window of this part."""
    told = [window for window in _windows if window["fell_back"] is not None]
    fell_back = [window for window in told if window["fell_back"]]
    reasons = "; ".join(sorted({str(window["reason"]) for window in fell_back}))
    measured = f"{len(fell_back)} of {len(told)}" + (f" ({reasons})" if reasons else "")
    book.judge("counter.fallback", len(fell_back) * 20 <= len(told) if told else None, measured)


def zeus_beside(rig: Any, book: Book) -> None:
    """The same load by another package."""
    from llenergymeasure.exceptions import EnergyError

    own = rig.meter()
    with _constant(rig):
        first = rig.metered(own, 3.0, 1.0)
        try:
            theirs = rig.metered(rig.meter("zeus"), 3.0, 1.0)
        except EnergyError as error:
            book.judge("counter.zeus", None, str(error))
            return
        last = rig.metered(own, 3.0, 1.0)
    ours_w = 0.5 * (watts(figures_of(first)) + watts(figures_of(last)))
    theirs_w = watts(figures_of(theirs))
    off = percent(theirs_w - ours_w, ours_w)
    measured = f"{theirs_w:.2f} W against {ours_w:.2f} W before and after: {off:+.2f} %"
    book.judge("counter.zeus", abs(off) < 2.0, measured, zeus_w=theirs_w, nvml_w=ours_w)


def _counter_steps_s(rig: Any, wanted: int, timeout_s: float) -> list[float]:
    """When the counter moved, until it has moved so often or the time is up."""
    driver, handle, clock = rig.gpu.driver, rig.gpu.handle, rig.clock
    steps_s: list[float] = []
    last_j, until_s = driver.total_energy_j(handle), clock.now() + timeout_s
    while len(steps_s) < wanted and clock.now() < until_s:
        clock.sleep(COUNTER_POLL_S)
        asked_s = clock.now()
        energy_j = driver.total_energy_j(handle)
        if energy_j != last_j:
            steps_s.append(asked_s)
            last_j = energy_j
    return steps_s


STEPS = (phases, known_loads, repeats, fallbacks, zeus_beside)


def _judge_phases(book: Book, rows: list[dict[str, Any]], period_s: float, off_w: float) -> None:
    """`off_w`: power with the load off; what is above it is put in relation to the time that the load was on."""
    counted = [row["fused_j"] or row["counter_j"] for row in rows]  # samples cannot follow this load; no audit here
    if None in counted:
        book.judge("counter.phases", None, "windows without a difference of the counter", rows=rows)
        return
    shares = [row["on_share"] for row in rows]
    mean_share = math.fsum(shares) / len(shares)
    powers = [
        off_w + (joules / row["seconds"] - off_w) * mean_share / row["on_share"]
        for joules, row in zip(counted, rows, strict=True)
    ]
    mean_w = math.fsum(powers) / len(powers)
    swing = percent(max(powers) - min(powers), mean_w)
    integrals = [row["integral_j"] / row["seconds"] for row in rows if row["integral_j"] is not None]
    seen = f"{min(integrals):.0f} to {max(integrals):.0f} W" if integrals else "nothing"
    measured = (
        f"counter {min(powers):.1f} to {max(powers):.1f} W ({swing:.2f} % of the mean), samples {seen}; "
        f"pulses every {1000 * period_s:.2f} ms, on for {100 * min(shares):.1f} to {100 * max(shares):.1f} %"
    )
    book.judge("counter.phases", swing < 2.0, measured, rows=rows)
    places = [row["phase"] for row in rows]
    curves = {"counter": (places, powers), "integral of samples": (places[: len(integrals)], integrals)}
    book.series("A pulse in every counter period, by its phase", "phase", "W", curves)


@contextmanager
def _nothing(rig: Any) -> Any:
    rig.clock.sleep(rig.seconds(1.0))
    yield


@contextmanager
def _constant(rig: Any) -> Any:
    yield from _while_running(rig, rig.load())


@contextmanager
def _square(rig: Any) -> Any:
    yield from _while_running(rig, Pulses(rig.load(), rig.clock, SQUARE_PERIOD_S, 0.5))


LOADS = {"idle": _nothing, "constant": _constant, "square": _square}
"""Known loads, each a context in which it runs."""


def _while_running(rig: Any, load: Any) -> Any:
    load.start()
    try:
        rig.clock.sleep(rig.seconds(1.0))
        yield
    finally:
        load.stop()
