"""Joules of single requests where the engine tells its steps, against a scheduler whose every step is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_fakes import measured, steady
from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.backends.steps import StepLog
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.metrics.counting import full_batch_interval
from llenergymeasure.core.metrics.latency import phase_breakdown, phase_spans
from llenergymeasure.core.metrics.request_energy import share_energy
from llenergymeasure.core.metrics.step_spans import step_spans
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics
from llenergymeasure.domain.warnings import WarningCode

PREFILL_J, DECODE_J, POWER_W = 0.5, 3.0, 300.0
"""What a token costs on the scripted engine, which takes as long as the joules need at its power."""

ROUNDING_J = 1e-6


@dataclass
class Row:
    """A request in the scripted engine."""

    prompt: int
    texts: int
    cached: int = 0
    computed: int = 0
    started_s: float = math.nan
    times_s: list[float] = field(default_factory=list)
    cost_j: float = 0.0

    def output(self) -> RequestOutput:
        return RequestOutput(
            0, self.prompt, (7,) * self.texts, "length", self.started_s, self.times_s, cached_tokens=self.cached
        )


@dataclass
class ContinuousBatching:
    """Steps of at most `budget` tokens and `places` rows: decoding rows first, then prompts in order, cut to fit.

    Args:
        ahead: Each step is put together while the one before it runs, as asynchronous schedulers do.
    """

    places: int
    budget: int
    ahead: bool = False
    log: StepLog = field(default_factory=StepLog)
    now_s: float = 0.0

    def run(self, rows: Sequence[Row]) -> None:
        waiting, running = list(rows), list[Row]()
        before_s = self.now_s
        while waiting or running:
            left = self.budget
            decoding = [row for row in running if row.times_s]
            left -= len(decoding)
            parts: list[tuple[Row, int]] = []
            for row in [row for row in running if not row.times_s] + waiting[: self.places - len(running)]:
                tokens = min(left, row.prompt - row.cached - row.computed)
                if tokens <= 0:
                    break
                left -= tokens
                parts.append((row, tokens))
                if row in waiting:
                    waiting.remove(row)
                    running.append(row)
                    row.started_s = before_s + (0.5 * (self.now_s - before_s) if self.ahead else self.now_s - before_s)
            before_s, prefill = self.now_s, sum(tokens for _, tokens in parts)
            self.now_s += (PREFILL_J * prefill + DECODE_J * len(decoding)) / POWER_W
            self.log.add(self.now_s, len(parts) + len(decoding), prefill, len(decoding))
            for row, tokens in parts:
                row.computed += tokens
                row.cost_j += PREFILL_J * tokens
            for row in decoding:
                row.cost_j += DECODE_J
            for row in decoding + [row for row, _ in parts if row.computed == row.prompt - row.cached]:
                row.times_s.append(self.now_s)
            running = [row for row in running if len(row.times_s) < row.texts]


def metered(engine: ContinuousBatching, total_j: float | None = None) -> EnergyMeasurement:
    trace = steady(POWER_W, 0.0, engine.now_s)
    total_j = POWER_W * engine.now_s if total_j is None else total_j
    return measured({"GPU-0": trace}, end_s=engine.now_s, total_j=total_j)


def known(log: StepLog) -> PhaseBreakdown:
    """Phases in which a token costs what it does."""
    prefill = sum(step.prefill_tokens for step in log)
    alone = sum(step.decode_tokens for step in log if not step.prefill_tokens)
    return PhaseBreakdown(
        prefill=PhaseMetrics(time_sec=1.0, tokens=1, energy_j=PREFILL_J * prefill),
        decode=PhaseMetrics(time_sec=1.0, tokens=1, energy_j=DECODE_J * alone),
    )


def drawn(draw: random.Random, count: int, *, cached: bool = False) -> list[Row]:
    return [
        Row(prompt := draw.randint(1, 400), draw.randint(1, 60), draw.randrange(prompt) if cached else 0)
        for _ in range(count)
    ]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(8, 300), st.booleans(), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_every_request_gets_what_its_tokens_cost(
    count: int, places: int, budget: int, ahead: bool, cached: bool, seed: int
) -> None:
    engine = ContinuousBatching(places, budget, ahead)
    rows = [Row(400, 300), *drawn(random.Random(seed), count, cached=cached)]  # one long enough for the sensor
    engine.run(rows)
    shares = share_energy([row.output() for row in rows], metered(engine), known(engine.log), engine.log)
    if shares.energy_j is None:
        assert "apart" in (shares.reason or "") or "not known" in (shares.reason or "")
        return
    assert shares.energy_j == pytest.approx([row.cost_j for row in rows], rel=1e-3, abs=0.1)


@given(st.integers(1, 30), st.floats(1.0, 1e6), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_shares_add_up_to_the_meters_figure_to_the_last_bit(count: int, total_j: float, seed: int) -> None:
    engine, draw = ContinuousBatching(places=4, budget=128), random.Random(seed)
    rows = [Row(400, 300), *drawn(draw, count)]
    engine.run(rows[:2])
    engine.now_s += draw.uniform(0.0, 3.0)  # nobody is served
    engine.run(rows[2:])
    engine.now_s += draw.uniform(0.0, 3.0)
    shares = share_energy([row.output() for row in rows], metered(engine, total_j), known(engine.log), engine.log)
    assert shares.energy_j is not None, shares.reason
    assert math.fsum(shares.energy_j) == total_j
    assert min(shares.energy_j) >= 0.0


def test_a_row_that_decodes_beside_a_long_prefill_pays_for_its_own_tokens() -> None:
    """By the requests' instants alone its tokens would seem to come evenly, and its share would be another one."""
    engine = ContinuousBatching(places=2, budget=2001)
    rows = [Row(10, 100), Row(10, 50), Row(2000, 1)]  # the third takes the place of the second
    engine.run(rows)
    outputs, energy, phases = [row.output() for row in rows], metered(engine), known(engine.log)
    shares = [share_energy(outputs, energy, phases, log) for log in (engine.log, None)]
    assert [share.rule for share in shares] == ["steps", "instants"]
    by_steps, by_times = (share.energy_j for share in shares)
    assert by_times is not None
    true_j = 10 * PREFILL_J + 99 * DECODE_J
    assert by_steps == pytest.approx([true_j, 10 * PREFILL_J + 49 * DECODE_J, 2000 * PREFILL_J], rel=1e-3)
    assert abs(by_times[0] - true_j) > 0.1 * true_j


def test_idle_time_is_shared_by_the_time_that_requests_took() -> None:
    engine = ContinuousBatching(places=1, budget=4096)
    rows = [Row(600, 1), Row(1800, 1)]  # 1 s and 3 s
    engine.run(rows[:1])
    engine.now_s += 4.0
    engine.run(rows[1:])
    shares = share_energy([row.output() for row in rows], metered(engine), None, engine.log).energy_j
    assert shares == pytest.approx([300.0 + 300.0, 900.0 + 900.0], rel=1e-3)


def test_mixed_steps_without_joules_per_token_have_a_reason_and_pure_ones_need_none() -> None:
    mixed = ContinuousBatching(places=2, budget=4096)
    rows = [Row(100, 100), Row(100, 1), Row(100, 100)]
    mixed.run(rows)
    outputs = [row.output() for row in rows]
    assert "overlap" in (share_energy(outputs, metered(mixed), None, mixed.log).reason or "")
    pure = ContinuousBatching(places=2, budget=4096)
    rows = [Row(100, 100), Row(100, 100)]
    pure.run(rows)
    assert share_energy([row.output() for row in rows], metered(pure), None, pure.log).energy_j == pytest.approx(
        [50.0 + 297.0] * 2, rel=1e-3
    )


def test_where_phases_have_no_joules_their_times_weigh_and_the_interval_holds_every_weighting() -> None:
    engine = ContinuousBatching(places=3, budget=4096)
    rows = [Row(40, 200), Row(40, 150), Row(40, 90), Row(100, 150), Row(20, 60)]  # prefill of 0.2 s at most
    engine.run(rows)
    outputs, energy = [row.output() for row in rows], metered(engine)
    phases, notes = phase_breakdown(outputs, energy, engine.log)
    assert [note.code for note in notes] == [WarningCode.PHASES_NOT_RESOLVED]
    by_time, resolved = (share_energy(outputs, energy, each, engine.log) for each in (phases, known(engine.log)))
    assert by_time.energy_j is not None
    assert resolved.energy_j is not None
    assert by_time.half_width_j is not None
    assert math.fsum(by_time.energy_j) == energy.total_j
    assert max(by_time.half_width_j) > 1.0
    for share_j, width_j, row in zip(by_time.energy_j, by_time.half_width_j, rows, strict=True):
        assert abs(share_j - row.cost_j) <= width_j + ROUNDING_J


def test_a_step_that_gave_nobody_a_token_takes_no_time() -> None:
    engine = ContinuousBatching(places=1, budget=4096)
    row = Row(600, 3)
    engine.run([row])
    engine.log.add(engine.now_s + 0.5, 1, 0, 1)  # it was begun before the end of the text was known
    assert step_spans(engine.log, [row.output()]) == [
        (0.0, 1.0),
        (1.0, pytest.approx(1.01)),
        (pytest.approx(1.01), pytest.approx(1.02)),
        (pytest.approx(1.52), pytest.approx(1.52)),
    ]


@pytest.mark.parametrize("stray_s", [-30.0, 30.0], ids=["of the batch before", "after the last text"])
def test_a_step_that_is_told_outside_the_window_takes_part_in_nothing(stray_s: float) -> None:
    """An engine in a process of its own tells of the step that it had begun too late to be asked for."""
    engine, alone = ContinuousBatching(places=2, budget=4096), ContinuousBatching(places=2, budget=4096)
    rows = [Row(600, 100), Row(300, 60), Row(200, 80)]
    if stray_s < 0:
        engine.log.add(stray_s, 2, 0, 2)
    engine.run(rows)
    if stray_s > 0:
        engine.log.add(engine.now_s + stray_s, 2, 0, 2)
    outputs, energy = [row.output() for row in rows], metered(engine)
    alone.run([Row(row.prompt, row.texts) for row in rows])
    shares = share_energy(outputs, energy, known(alone.log), engine.log)
    assert shares == share_energy(outputs, energy, known(alone.log), alone.log)
    assert shares.energy_j is not None
    assert phase_breakdown(outputs, energy, engine.log) == phase_breakdown(outputs, energy, alone.log)
    assert full_batch_interval(outputs, engine.log) == full_batch_interval(outputs, alone.log)


def test_a_batch_that_grows_again_once_it_can_no_longer_be_kept_full_is_not_the_full_one() -> None:
    """Requests that were pushed out come back while the first of the others has ended."""
    outputs = [
        RequestOutput(0, 9, (7,) * 4, "length", 0.0, [1.0, 2.0, end_s - 1.0, end_s]) for end_s in (4.0, 9.0, 9.0)
    ]
    log = StepLog()
    for ended_s, requests in ((1.0, 2), (2.0, 2), (3.0, 2), (4.0, 2), (8.0, 3), (9.0, 3)):
        log.add(ended_s, requests, 0, requests)
    assert full_batch_interval(outputs, log) == (0.0, 4.0)


def test_phases_and_the_full_batch_are_those_of_the_steps() -> None:
    """A request that is taken up half a step ahead is in prefill, and in the batch, once its step begins."""
    engine = ContinuousBatching(places=2, budget=4096, ahead=True)
    rows = [Row(600, 1), Row(600, 101), Row(300, 101)]
    engine.run(rows)
    outputs = [row.output() for row in rows]
    assert outputs[2].started_s == pytest.approx(1.0)
    first, second = list(step_spans(engine.log, outputs))[:2]
    prefill, decode = phase_spans(outputs, (0.0, engine.now_s), engine.log)
    assert prefill == [(first[0], second[1])]
    assert decode == [(second[1], engine.now_s)]
    assert full_batch_interval(outputs, engine.log)[0] == first[0]
    breakdown, _ = phase_breakdown(outputs, metered(engine), engine.log)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.prefill.energy_j == pytest.approx(POWER_W * second[1], rel=0.01)
