"""What measuring costs the measured: our generation loop against the library's own, hooks, sampler, seeds."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gpu_check_parts.lines import Book, Line, percent
from gpu_check_parts.windows import figures_of, keep_trace

BATCHES = (1, 8, 64)

LINES = (
    *(
        Line(
            f"harness.throughput-{batch}", f"batch {batch}: our loop makes at least 0.98 of plain `generate`'s tokens/s"
        )
        for batch in BATCHES
    ),
    Line("harness.control", "A/A: plain `generate` against itself is within 1 %, else the ratios tell nothing"),
    Line(
        "harness.host-bound", "batch 1: hooks and sampler at 100 and at 10 ms keep at least 0.98 of plain tokens/s", 6
    ),
    Line(
        "harness.step-times",
        "step times by CUDA events are those of a loop that synchronises at every step, within 5 %",
    ),
    Line("harness.hook", "a hook takes the host less than 20 us per step", 6),
    Line("harness.sampler-cpu", "the sampler takes less than 1 % of a core at 100 ms", 6),
    Line("harness.sampler-watts", "sampling an idle board at 10 ms raises its power by less than 1 W"),
    Line("harness.reseeding", "seeding before each batch takes less than 1 ms with CUDA up", 13),
    Line("harness.passes", "in a window, the first pass over the prompts takes at most 2 % longer than the second", 4),
    Line("harness.spans", "batches from start to last token fill at least 98 % of the window", 10),
    Line("harness.last-token", "the last token's time is that of the synchronised device, within 1 ms", 10),
    Line("harness.decode", "on decoding at batch 8, counter and integral agree within their stated uncertainties"),
)

NEW_TOKENS = 32
ROUNDS = 3
HOOK_STEPS = 2000


def throughput(rig: Any, book: Book) -> None:
    """Plain, ours, plain, at every batch size; who goes first changes from round to round."""
    controls = []
    most = max(BATCHES)
    config = rig.config(rig.models.small, n=most, batch=most, input_len=128, output_len=NEW_TOKENS)
    with rig.session(config) as whole:
        for batch in BATCHES:
            session = replace(whole, requests=whole.requests[:batch])
            ways = {"plain": partial(_plain, session), "ours": partial(_ours, session)}
            ratios, control, seconds = _interleaved(ways, rig.count(ROUNDS, 1))
            controls += control
            measured = (
                f"{ratios['ours']:.4f} ({_tokens(session) / seconds['plain']:.0f} tokens/s plain); {_told(control)}"
            )
            holds = _at_least(ratios.values(), control)
            book.judge(f"harness.throughput-{batch}", holds, measured, seconds=seconds)
            if batch == 1:
                _host_bound(rig, book, session)
            if batch == 8:
                _events_against_synchronised(rig, book, session)
    worst = max(abs(ratio - 1.0) for ratio in controls)
    book.judge("harness.control", worst <= 0.01, f"{_told(controls)}, {len(controls)} rounds", ratios=controls)


def hooks_and_seeds(rig: Any, book: Book) -> None:
    """Microseconds of what runs in every step, and of what runs before every batch."""
    import torch

    from llenergymeasure.core.backends.pytorch.generation import StepHook
    from llenergymeasure.core.backends.shared import seeded

    ids = torch.zeros((8, 100), dtype=torch.long, device=rig.device)
    timer = rig.step_timer()
    timer.start()
    hook = StepHook(timer, [10 * HOOK_STEPS] * 8, prompt_width=99)
    hook(ids, None)
    took_us = 1e6 * _mean_s(lambda: hook(ids, None), rig.count(HOOK_STEPS, 200))
    book.judge("harness.hook", took_us < 20.0, f"{took_us:.2f} us a step", us=took_us)

    def seed() -> None:
        with seeded(42, stream=1):
            pass

    took_ms = 1e3 * _mean_s(seed, 50)
    book.judge("harness.reseeding", took_ms < 1.0, f"{took_ms:.3f} ms a batch", ms=took_ms)


def last_step(rig: Any, book: Book) -> None:
    """Steps for longer than a batch, and the moment at which the host sees the device idle after the last one."""
    import torch

    matrix = torch.randn(512, 512, device=rig.device)
    timer = rig.step_timer()
    until_s = timer.start() + rig.seconds(1.5)
    while rig.clock.now() < until_s:
        torch.matmul(matrix, matrix)
        timer.step()
        rig.synchronize()
        idle_s = rig.clock.now()
    late_ms = 1000 * (idle_s - timer.finish()[-1])
    measured = f"the host sees the device idle {late_ms:.3f} ms after the last step's time, {rig.seconds(1.5):.1f} s on"
    book.judge("harness.last-token", abs(late_ms) <= 1.0, measured, late_ms=late_ms)


def sampler(rig: Any, book: Book) -> None:
    """Its processor time, and what it adds to the power of a board that does nothing else."""
    energy = rig.metered(rig.meter(), 2.0, 0.5)
    report = energy.telemetry.report
    share = percent(report.cpu_s, report.duration_s)
    each_us = 1e6 * report.cpu_s / report.ticks
    measured = f"{share:.2f} % of a core, {each_us:.0f} us a round, longest {1e3 * report.longest_tick_s:.1f} ms"
    book.judge("harness.sampler-cpu", share < 1.0, measured, share_pct=share)
    energy.close()
    powers: dict[str, list[float]] = {"unwatched": [], "watched": []}
    for name in ("unwatched", "watched", "watched", "unwatched"):
        powers[name].append(_counted_w(rig, watched=name == "watched"))
    more_w = statistics.fmean(powers["watched"]) - statistics.fmean(powers["unwatched"])
    measured = f"{more_w:+.2f} W at 10 ms ({_range(powers['watched'])} against {_range(powers['unwatched'])} W)"
    book.judge("harness.sampler-watts", more_w < 1.0, measured, watts=powers)


def window_by_batch(rig: Any, book: Book) -> None:
    """A window of two passes and more, batch by batch."""
    from llenergymeasure.core.progress import ignore_events
    from llenergymeasure.core.window import measure_window

    config = rig.config(
        rig.models.small, n=rig.count(24, 4), batch=rig.count(8, 2), input_len=128, output_len=NEW_TOKENS
    )
    with rig.session(config) as session:
        _ours(session)
        least_s = rig.seconds(6.0, 1.0)
        meter = rig.meter()
        window = measure_window(
            session.engine, session.requests, meter, rig.clock, ignore_events, min_duration_s=least_s
        )
    keep_trace(book, "decode", window.energy)
    spans = _spans(window.outputs, config.pytorch.batch_size)
    per_pass = math.ceil(len(session.requests) / config.pytorch.batch_size)
    passes = len(window.outputs) // len(session.requests)
    if passes >= 2:
        first, second = sum(spans[:per_pass]), sum(spans[per_pass : 2 * per_pass])
        slowest = max(a / b for a, b in zip(spans[:per_pass], spans[per_pass : 2 * per_pass], strict=True))
        measured = f"{first / second:.4f} in all, {slowest:.4f} for the slowest batch, {passes} passes"
        book.judge("harness.passes", first <= 1.02 * second, measured, spans_s=spans)
    share = percent(sum(spans), window.energy.duration_sec)
    book.judge("harness.spans", share >= 98.0, f"{share:.2f} % of {window.energy.duration_sec:.2f} s", share_pct=share)
    figures = figures_of(window.energy)
    window.energy.close()
    audit = figures["disagreement_pct"]
    measured = "no audit" if audit is None else f"{audit:+.2f} % (allowed {figures['bound_pct']:.2f} %)"
    book.judge("harness.decode", figures["agrees"], f"{measured}, {figures['seconds']:.1f} s", window=figures)


STEPS = (throughput, hooks_and_seeds, last_step, window_by_batch, sampler)


def _plain(session: Any) -> float:
    """Seconds that the library alone takes for the same batch and lengths."""
    session.engine.synchronize()
    start_s = time.perf_counter()
    plain_generate(session)
    session.engine.synchronize()
    return time.perf_counter() - start_s


def plain_generate(session: Any) -> list[list[int]]:
    """Token ids that the library's own `generate` makes of the same batch."""
    import torch

    from llenergymeasure.core.backends.pytorch.generation import pad_left

    engine = session.engine
    model, decoding = engine.parts.model, engine.parts.decoding
    most = max(request.max_new_tokens for request in session.requests)
    generation = decoding.generation_config(most)
    generation.min_new_tokens = most
    ids, mask = pad_left(session.requests, decoding.pad_token_id, model.device)
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=generation).sequences
    return made[:, ids.shape[1] :].tolist()


def _ours(session: Any) -> float:
    session.engine.synchronize()
    start_s = time.perf_counter()
    session.engine.generate(session.requests)
    session.engine.synchronize()
    return time.perf_counter() - start_s


def _interleaved(
    ways: Mapping[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """Ratios of throughput to `plain`, plain against plain, and median seconds of each way."""
    for way in ways.values():
        way()  # warm
    ratios: dict[str, list[float]] = {name: [] for name in ways if name != "plain"}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    control = []
    for number in range(rounds):
        before = ways["plain"]()
        names = list(ratios) if number % 2 == 0 else list(reversed(ratios))
        took = {name: ways[name]() for name in names}
        after = ways["plain"]()
        for name, took_s in took.items():
            ratios[name].append((before + after) / 2 / took_s)
            seconds[name].append(took_s)
        control.append(before / after if number % 2 else after / before)
        seconds["plain"] += [before, after]
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    return medians, control, {name: statistics.median(values) for name, values in seconds.items()}


def _host_bound(rig: Any, book: Book, session: Any) -> None:
    def sampled(interval_s: float) -> float:
        with _Sampling(rig, interval_s):
            return _ours(session)

    ways = {
        "plain": partial(_plain, session),
        "hooks": partial(_ours, session),
        "hooks, 100 ms": partial(sampled, 0.1),
        "hooks, 10 ms": partial(sampled, 0.01),
    }
    ratios, control, seconds = _interleaved(ways, rig.count(ROUNDS, 1))
    told = ", ".join(f"{name}: {ratio:.4f}" for name, ratio in ratios.items())
    holds = _at_least(ratios.values(), control)
    book.judge("harness.host-bound", holds, f"{told}; {_told(control)}", seconds=seconds)


def _at_least(ratios: Iterable[float], control: Sequence[float], least: float = 0.98) -> bool | None:
    """Whether all ratios are high enough; nobody can tell where the control is off by as much as is asked about."""
    return min(ratios) >= least if abs(statistics.median(control) - 1.0) <= 1.0 - least else None


def _told(control: Sequence[float]) -> str:
    return f"control {min(control):.4f} to {max(control):.4f}"


class _Sampling:
    """The power sampler beside whatever runs in a `with` block."""

    def __init__(self, rig: Any, interval_s: float) -> None:
        from llenergymeasure.core.energy.sampler import GpuReader, PowerSampler

        self._sampler = PowerSampler([GpuReader(rig.gpu, rig.clock)], interval_s=interval_s, clock=rig.clock)

    def __enter__(self) -> None:
        self._sampler.start()

    def __exit__(self, *exc: object) -> None:
        self._sampler.abort()


class _SynchronisedTimer:
    """A step timer that waits for the device at every step: slow, and beyond doubt."""

    def __init__(self, rig: Any) -> None:
        self._rig = rig
        self._times_s = array("d")

    def start(self) -> float:
        self._times_s = array("d")
        self._rig.synchronize()
        return self._rig.clock.now()

    def step(self) -> None:
        self._rig.synchronize()
        self._times_s.append(self._rig.clock.now())

    def finish(self) -> array:
        return self._times_s


def _events_against_synchronised(rig: Any, book: Book, session: Any) -> None:
    from llenergymeasure.core.backends.pytorch.generation import generate_batch

    parts, gaps = session.engine.parts, {}
    for name, timer in (("events", rig.step_timer()), ("synchronised", _SynchronisedTimer(rig))):
        output = generate_batch(parts.model, session.requests, parts.decoding, timer).outputs[0]
        times_s = list(output.token_times_s or ())
        gaps[name] = [1000 * (late - early) for early, late in itertools.pairwise(times_s)]
    medians = {name: statistics.median(values) for name, values in gaps.items()}
    off = percent(medians["events"] - medians["synchronised"], medians["synchronised"])
    measured = f"median gap {medians['events']:.3f} ms against {medians['synchronised']:.3f} ms: {off:+.1f} %"
    book.judge("harness.step-times", abs(off) <= 5.0, measured, gaps_ms=gaps)
    curves = {name: (list(range(1, len(values) + 1)), values) for name, values in gaps.items()}
    book.series("Time of each decoding step, batch 8", "step", "ms", curves)


def _counted_w(rig: Any, *, watched: bool) -> float:
    """Mean power by the counter alone, read once on each side."""
    driver, handle = rig.gpu.driver, rig.gpu.handle

    def window() -> float:
        start_s, start_j = rig.clock.now(), driver.total_energy_j(handle)
        rig.clock.sleep(rig.seconds(1.5, 0.5))
        return (driver.total_energy_j(handle) - start_j) / (rig.clock.now() - start_s)

    if not watched:
        return window()
    with _Sampling(rig, 0.01):
        return window()


def _spans(outputs: Sequence[Any], batch: int) -> list[float]:
    """Seconds of every batch, from its start to its last token."""
    batches = [outputs[at : at + batch] for at in range(0, len(outputs), batch)]
    return [max(output.token_times_s[-1] for output in one) - one[0].started_s for one in batches]


def _tokens(session: Any) -> int:
    return sum(request.max_new_tokens for request in session.requests)


def _mean_s(work: Callable[[], Any], times: int) -> float:
    start_s = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start_s) / times


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
