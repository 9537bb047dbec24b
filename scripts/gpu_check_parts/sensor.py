"""What the driver's readings are: fields, time stamps, update periods, and a calibration of the board."""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from gpu_check_parts.lines import Book, Line, percent

AVERAGE, INSTANT, COUNTER, ENERGY = 185, 186, 83, 191
POWERS, COUNTERS = (AVERAGE, INSTANT), (COUNTER, ENERGY)
FIELDS = (*POWERS, *COUNTERS)
NEEDED = (AVERAGE, INSTANT, COUNTER)
TOTAL_POWER_SAMPLES = 0

LINES = (
    Line("sensor.fields", "fields 185, 186 and 83 answer; 191 is 83 under another name, where it answers at all"),
    Line("sensor.latency", "one call for the power fields takes the host less than 1 ms in the median"),
    Line("sensor.counter-latency", "one read of the counter takes less than 50 ms, also under load", 12),
    Line("sensor.power-period", "the instantaneous power changes every 100 ms ± 5 %"),
    Line("sensor.power-time-stamp", "field 186 is stamped with the moment of the question, not of the update", 3),
    Line("sensor.counter-period", "the counter moves every 100 ms ± 5 %", 12),
    Line(
        "sensor.counter-time-stamp", "field 83 is stamped with the moment of the question: finding a step takes a burst"
    ),
    Line("sensor.average", "field 185 is a smoothed field 186: their means over a steady load differ by less than 2 %"),
    Line(
        "sensor.samples", "the driver's own buffer of samples has the mean of field 186 over the same time, within 2 %"
    ),
    Line("sensor.buffer", "the integral of the driver's buffer over a switched load is the counter's, within 2 %"),
    Line("sensor.calibration", "calibration finds an update of 100 ms ± 5 % and the window published for the board"),
)

POLL_S = 0.001

BUFFER_POLL_S = 0.4
"""The driver's buffer of power samples is emptied so often, in seconds: it holds 120."""


@dataclass(frozen=True)
class Poll:
    """One call for all fields: the host's clocks, and what each field said.

    Args:
        time_s: On the measurement clock, in the middle of the call.
        took_s: How long the call for the power fields took.
        counters_took_s: How long the call for the counters took.
        values: By field: raw value, time stamp in seconds since 1970 (0: none), driver's latency in µs, return code.
    """

    time_s: float
    wall_s: float
    took_s: float
    counters_took_s: float
    values: dict[int, tuple[int, float, int, int]]


def poll_fields(rig: Any, book: Book) -> None:
    """Poll at 1 kHz under a load that never rests for long, so that every update differs."""
    load, draw = rig.load(), random.Random(1)
    polls: list[Poll] = []
    until_s = rig.clock.now() + rig.seconds(6.0, 1.5)
    on = False
    while rig.clock.now() < until_s:
        (load.stop if on else load.start)()
        on = not on
        polls += _poll(rig, rig.clock.now() + draw.uniform(0.15, 0.35))
    load.stop()
    _keep(book, polls)
    _judge_fields(book, polls)
    _judge_updates(book, polls, INSTANT, "sensor.power-period", "sensor.power-time-stamp")
    _judge_updates(book, polls, COUNTER, "sensor.counter-period", "sensor.counter-time-stamp")


def compare_on_steady_load(rig: Any, book: Book) -> None:
    """Field 185, field 186 and the driver's buffer over one steady stretch."""
    import pynvml

    load = rig.load()
    load.start()
    try:
        rig.clock.sleep(rig.seconds(1.2, 1.2))
        since_us = int(time.time() * 1e6)
        polls = _poll(rig, rig.clock.now() + rig.seconds(3.0, 0.6), pause_s=0.02)
        try:
            _, samples = pynvml.nvmlDeviceGetSamples(rig.gpu.handle, TOTAL_POWER_SAMPLES, since_us)
            problem = ""
        except pynvml.NVMLError as error:
            samples, problem = [], str(error)
    finally:
        load.stop()
    instant_w = _mean_w(polls, INSTANT)
    average_w = _mean_w(polls, AVERAGE)
    if instant_w is None:
        return
    if average_w is not None:
        off = percent(average_w - instant_w, instant_w)
        measured = f"{average_w:.1f} W against {instant_w:.1f} W: {off:+.2f} %"
        book.judge("sensor.average", abs(off) < 2.0, measured, average_w=average_w, instant_w=instant_w)
    _judge_samples(book, samples, problem, instant_w)


def calibrate_board(rig: Any, book: Book) -> None:
    """The project's own calibration, with fewer stretches than usual."""
    from llenergymeasure.core.energy.boards import known_sampling
    from llenergymeasure.core.energy.calibrate import calibrate, describe

    load, buffer = SwitchLog(rig.load(), rig.clock), BufferLog(rig)
    with buffer:
        found = calibrate(
            rig.gpu,
            load,
            rig.clock,
            draw=random.Random(2),
            long_stretches=4,
            short_stretches=rig.count(24, 12),
            counter_stretches=rig.count(26, 24),
        )
    _judge_buffer(book, load, buffer)
    published = known_sampling(rig.gpu, found.power_source)
    holds = abs(found.update_s - published.update_s) <= 0.05 * published.update_s
    holds = holds and abs(found.averaging_window_s - published.averaging_window_s) <= 0.6 * published.averaging_window_s
    measured = "; ".join(line.strip() for line in describe(found).splitlines()[1:-1])
    book.judge("sensor.calibration", holds, measured, **asdict(found))


STEPS = (poll_fields, compare_on_steady_load, calibrate_board)


def _poll(rig: Any, until_s: float, pause_s: float = POLL_S) -> list[Poll]:
    import pynvml

    polls = []
    while (asked_s := rig.clock.now()) < until_s:
        wall_s = time.time()
        powers = pynvml.nvmlDeviceGetFieldValues(rig.gpu.handle, list(POWERS))
        answered_s = rig.clock.now()
        counters = pynvml.nvmlDeviceGetFieldValues(rig.gpu.handle, list(COUNTERS))
        counted_s = rig.clock.now()
        values = {
            field.fieldId: (_value(field), field.timestamp / 1e6, field.latencyUsec, field.nvmlReturn)
            for field in (*powers, *counters)
        }
        polls.append(Poll(0.5 * (asked_s + answered_s), wall_s, answered_s - asked_s, counted_s - answered_s, values))
        rig.clock.sleep(pause_s)
    return polls


def _value(field: Any) -> int:
    """The raw number, by its type: fields of power are 32 bits wide, counters 64."""
    return int(field.value.uiVal if field.valueType == 1 else field.value.ullVal)


def _answers(polls: Sequence[Poll], field: int) -> list[tuple[Poll, tuple[int, float, int, int]]]:
    return [(poll, poll.values[field]) for poll in polls if field in poll.values and poll.values[field][3] == 0]


def _mean_w(polls: Sequence[Poll], field: int) -> float | None:
    values = [answer[0] / 1000.0 for _, answer in _answers(polls, field)]
    return statistics.fmean(values) if values else None


def _keep(book: Book, polls: Sequence[Poll]) -> None:
    names = [f"{field} {what}" for field in FIELDS for what in ("value", "stamp (s)", "latency (us)", "code")]
    rows = ([p.time_s, p.wall_s, p.took_s, p.counters_took_s, *(x for f in FIELDS for x in p.values[f])] for p in polls)
    book.trace("fields", ["time (s)", "wall (s)", "took (s)", "counters took (s)", *names], rows)
    first_s = polls[0].time_s
    curves = {}
    for field in (AVERAGE, INSTANT):
        answers = _answers(polls, field)
        curves[f"field {field}"] = ([p.time_s - first_s for p, _ in answers], [a[0] / 1000 for _, a in answers])
    book.series("Power by both fields, polled at 1 kHz under a switched load", "s", "W", curves)


def _judge_fields(book: Book, polls: Sequence[Poll]) -> None:
    codes = {field: sorted({poll.values[field][3] for poll in polls}) for field in FIELDS}
    energy = [answer[0] for _, answer in _answers(polls, ENERGY)]
    bounds = [answer[0] for _, answer in _answers(polls, COUNTER)]
    bounds.append(math.inf)  # 191 is read after 83: it may have moved on to what the next call finds in 83
    same = sum(low <= told <= high for told, (low, high) in zip(energy, pairwise(bounds), strict=False))
    measured = ", ".join(
        f"{field}: {'answers' if codes[field] == [0] else f'codes {codes[field]}'}" for field in FIELDS
    )
    measured += f"; 191 is 83, as far as calls can tell, in {same} of {len(energy)} calls"
    holds = all(codes[field] == [0] for field in NEEDED) and same == len(energy)
    book.judge("sensor.fields", holds, measured, codes=codes)
    median_ms, most_ms = _median_and_most_ms([poll.took_s for poll in polls])
    measured = f"median {median_ms:.3f} ms, 99 % below {most_ms:.3f} ms"
    book.judge("sensor.latency", median_ms < 1.0, measured, median_ms=median_ms, p99_ms=most_ms)
    each_s = [poll.counters_took_s / len(COUNTERS) for poll in polls]
    median_ms, most_ms = _median_and_most_ms(each_s)
    measured = f"median {median_ms:.2f} ms, 99 % below {most_ms:.2f} ms, longest {1000 * max(each_s):.1f} ms"
    book.judge("sensor.counter-latency", max(each_s) < 0.05, measured, median_ms=median_ms, p99_ms=most_ms)


def _median_and_most_ms(values_s: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, in ms."""
    ordered = sorted(values_s)
    return 1000 * statistics.median(ordered), 1000 * ordered[int(0.99 * (len(ordered) - 1))]


def _judge_updates(book: Book, polls: Sequence[Poll], field: int, period_key: str, stamp_key: str) -> None:
    answers = _answers(polls, field)
    changes_s = [late[0].time_s for early, late in pairwise(answers) if early[1][0] != late[1][0]]
    gaps_ms = [1000 * (b - a) for a, b in pairwise(changes_s)]
    if len(gaps_ms) < 3:
        book.judge(period_key, None, f"field {field} changed {len(changes_s)} times in {len(answers)} calls")
        return
    period_ms = statistics.median(gaps_ms)
    measured = f"median {period_ms:.2f} ms, {min(gaps_ms):.1f} to {max(gaps_ms):.1f} ms, {len(gaps_ms)} gaps"
    book.judge(period_key, abs(period_ms - 100.0) <= 5.0, measured, period_ms=period_ms, gaps_ms=gaps_ms)
    stamps = [answer[1] for _, answer in answers if answer[1] > 0]
    if not stamps:
        book.judge(stamp_key, None, f"field {field} carries no time stamp")
        return
    share = len(set(stamps)) / len(stamps)
    ages_ms = [1000 * (poll.wall_s - answer[1]) for poll, answer in answers if answer[1] > 0]
    measured = (
        f"{len(set(stamps))} stamps in {len(stamps)} calls, {len(changes_s)} values; "
        f"a stamp is {statistics.median(ages_ms):.2f} ms old in the median, {max(ages_ms):.1f} ms at most"
    )
    book.judge(stamp_key, share > 0.5, measured, share_of_new_stamps=share, median_age_ms=statistics.median(ages_ms))


class SwitchLog:
    """A load that remembers when it was switched, on the measurement clock and the wall's."""

    def __init__(self, load: Any, clock: Any) -> None:
        self._load, self._clock = load, clock
        self.switches: list[tuple[float, float, int]] = []

    def start(self) -> None:
        """On."""
        self._load.start()
        self.switches.append((self._clock.now(), time.time(), 1))

    def stop(self) -> None:
        """Off."""
        self._load.stop()
        self.switches.append((self._clock.now(), time.time(), 0))


class BufferLog:
    """Collects the driver's own buffer of power samples while a block runs, and what the counter moves by."""

    def __init__(self, rig: Any) -> None:
        self._rig, self._ending = rig, threading.Event()
        self._thread = threading.Thread(target=self._collect, name="gpu-check-buffer", daemon=True)
        self.samples: list[tuple[int, float]] = []
        self.calls_s: list[float] = []
        self.counted: list[tuple[int, float]] = []
        self.problem = ""

    def __enter__(self) -> None:
        self._count()
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()
        self._count()

    def _count(self) -> None:
        driver, handle = self._rig.gpu.driver, self._rig.gpu.handle
        total_j, until_s = driver.total_energy_j(handle), time.monotonic() + 0.5
        while (moved_j := driver.total_energy_j(handle)) == total_j and time.monotonic() < until_s:
            time.sleep(0.001)
        self.counted.append((int(time.time() * 1e6), moved_j))

    def _collect(self) -> None:
        import pynvml

        since_us = int(time.time() * 1e6)
        while not self._ending.wait(BUFFER_POLL_S):
            asked_s = time.perf_counter()
            try:
                _, found = pynvml.nvmlDeviceGetSamples(self._rig.gpu.handle, TOTAL_POWER_SAMPLES, since_us)
            except pynvml.NVMLError as error:
                self.problem = str(error)
                continue
            self.calls_s.append(time.perf_counter() - asked_s)
            self.samples += [(int(s.timeStamp), s.sampleValue.uiVal / 1000.0) for s in found if s.timeStamp > since_us]
            since_us = max((since_us, *(at_us for at_us, _ in self.samples[-1:])))


def _judge_buffer(book: Book, load: SwitchLog, buffer: BufferLog) -> None:
    (first_us, first_j), (last_us, last_j) = buffer.counted
    book.trace("switches", ["time (s)", "wall (s)", "on"], load.switches)
    book.trace("buffer-counter", ["time stamp (us)", "J"], buffer.counted)
    if len(buffer.samples) < 3:
        book.judge("sensor.buffer", None, buffer.problem or "the driver's buffer holds nothing for the time")
        return
    book.trace("buffer", ["time stamp (us)", "W"], buffer.samples)
    inside = [(at_us, watts) for at_us, watts in buffer.samples if first_us <= at_us <= last_us]
    integral_j = math.fsum(0.5 * (a[1] + b[1]) * (b[0] - a[0]) / 1e6 for a, b in pairwise(inside))
    mean_w = integral_j / ((inside[-1][0] - inside[0][0]) / 1e6)
    counted_w = (last_j - first_j) / ((last_us - first_us) / 1e6)
    off = percent(mean_w - counted_w, counted_w)
    every_ms = statistics.median((b[0] - a[0]) / 1000 for a, b in pairwise(inside))
    most_ms = max((b[0] - a[0]) / 1000 for a, b in pairwise(inside))
    call_ms = 1000 * statistics.median(buffer.calls_s)
    measured = (
        f"{mean_w:.2f} W against {counted_w:.2f} W counted: {off:+.2f} % over {(last_us - first_us) / 1e6:.0f} s; "
        f"a sample every {every_ms:.1f} ms, at most {most_ms:.0f}, {call_ms:.2f} ms a call"
    )
    book.judge("sensor.buffer", abs(off) <= 2.0, measured, off_pct=off, calls_s=buffer.calls_s)


def _judge_samples(book: Book, samples: Sequence[Any], problem: str, instant_w: float) -> None:
    if not samples:
        book.judge("sensor.samples", None, problem or "the driver's buffer holds nothing for the time")
        return
    watts = [sample.sampleValue.uiVal / 1000.0 for sample in samples]
    gaps_ms = [(b.timeStamp - a.timeStamp) / 1000.0 for a, b in pairwise(samples)]
    every = f", one every {statistics.median(gaps_ms):.1f} ms" if gaps_ms else ""
    off = percent(statistics.fmean(watts) - instant_w, instant_w)
    measured = (
        f"{len(watts)} samples{every}; mean {statistics.fmean(watts):.1f} W against {instant_w:.1f} W: {off:+.2f} %"
    )
    book.trace(
        "driver-samples", ["time stamp (us)", "W"], ([s.timeStamp, w] for s, w in zip(samples, watts, strict=True))
    )
    book.judge("sensor.samples", abs(off) < 2.0, measured, off_pct=off)
