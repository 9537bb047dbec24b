"""Joules of single requests: shares by a stated rule, which add up to the meter's figure."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nvml.virtual_run import by_nvml, random_board, run_window
from tests.nvml.waveform import steps

from energy_fakes import measured, steady, timed
from llenergymeasure.core.backends.protocol import RequestOutput
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.metrics.request_energy import share_energy
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.latency import RequestTimings, ShareRule, pool_request_energy, pool_requests
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics

END_S = 20.0


def request(started_s: float, first_s: float, last_s: float, tokens: int = 9, input_tokens: int = 100) -> RequestOutput:
    """One whose tokens come evenly from its first to its last."""
    step_s = (last_s - first_s) / max(1, tokens - 1)
    times_s = [first_s + k * step_s for k in range(tokens - 1)] + [last_s]
    return timed(started_s, times_s, input_tokens)


def at_300_w(total_j: float | None = 6000.0) -> EnergyMeasurement:
    return measured({"GPU-0": steady(300.0, 0.0, END_S)}, total_j=total_j)


def phases(prefill_j: float, decode_j: float) -> PhaseBreakdown:
    """So many joules of 100 tokens each."""
    return PhaseBreakdown(
        prefill=PhaseMetrics(time_sec=1.0, tokens=100, energy_j=prefill_j),
        decode=PhaseMetrics(time_sec=1.0, tokens=100, energy_j=decode_j),
    )


def test_like_rows_of_a_batch_share_alike_and_batches_get_what_flowed_in_their_time() -> None:
    trace = [TelemetrySample(i / 10, 600.0 if i < 50 else 200.0) for i in range(-1, 202)]
    energy = measured({"GPU-0": trace}, total_j=6000.0)
    first, second = [request(0.0, 1.0, 5.0)] * 2, [request(5.0, 8.0, 20.0)] * 2
    shares = share_energy([*first, *second], energy, None)
    assert shares.reason is None
    assert shares.energy_j == pytest.approx([1500.0] * 4, rel=0.01)


def test_a_row_that_ends_early_gets_less_and_a_long_prompt_more() -> None:
    early, late = request(0.0, 4.0, 12.0, tokens=5), request(0.0, 4.0, 20.0, tokens=9)
    shares = share_energy([early, late], at_300_w(), None).energy_j
    assert shares is not None
    assert shares[0] == pytest.approx(600.0 + 1200.0, rel=0.01)  # half of prefill and of the eight seconds together
    assert shares[1] == pytest.approx(600.0 + 1200.0 + 2400.0, rel=0.01)
    long, short = request(0.0, 10.0, 20.0, input_tokens=300), request(0.0, 10.0, 20.0, input_tokens=100)
    shares = share_energy([long, short], at_300_w(), None).energy_j
    assert shares == pytest.approx([2250.0 + 1500.0, 750.0 + 1500.0], rel=0.01)


def test_input_that_a_cache_held_weighs_nothing() -> None:
    computed, held = request(0.0, 10.0, 20.0), replace(request(0.0, 10.0, 20.0), cached_tokens=75)
    shares = share_energy([computed, held], at_300_w(), None).energy_j
    assert shares == pytest.approx([2400.0 + 1500.0, 600.0 + 1500.0], rel=0.01)


def test_prefill_beside_decoding_is_weighed_by_the_runs_own_joules_per_token() -> None:
    decoding = request(0.0, 0.0, 20.0, tokens=21)  # one token a second
    prefilling = request(10.0, 20.0, 20.0, tokens=1, input_tokens=100)  # ten tokens a second
    shares = share_energy([decoding, prefilling], at_300_w(), phases(prefill_j=10.0, decode_j=100.0)).energy_j
    assert shares == pytest.approx([3000.0 + 1500.0, 1500.0], rel=0.01)  # 0.1 J x 10 against 1 J x 1
    unknown = share_energy([decoding, prefilling], at_300_w(), None)
    assert unknown.energy_j is None
    assert unknown.reason is not None
    assert "overlap" in unknown.reason


def test_what_flows_while_nobody_is_served_is_shared_by_time() -> None:
    shares = share_energy([request(0.0, 1.0, 5.0), request(15.0, 15.5, 16.0)], at_300_w(), None).energy_j
    assert shares is not None
    idle_j = 300.0 * 14.0
    assert shares == pytest.approx([1500.0 + idle_j * 5 / 6, 300.0 + idle_j / 6], rel=0.01)


@given(st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=300)
def test_the_shares_add_up_to_the_meters_figure_to_the_last_bit(count: int, seed: int) -> None:
    draw = random.Random(seed)
    lives = []
    for _ in range(count):
        started_s, first_s, last_s = sorted(draw.uniform(0.0, END_S) for _ in range(3))
        lives.append(request(started_s, first_s, last_s, draw.randint(1, 50), draw.randint(1, 500)))
    lives.append(request(0.0, 0.5, END_S))
    total_j = draw.uniform(1.0, 1e6)
    shares = share_energy(lives, at_300_w(total_j), phases(draw.uniform(0.1, 10.0), draw.uniform(0.1, 10.0)))
    if shares.energy_j is None:
        assert "apart" in (shares.reason or "")  # all but one of them are short
        return
    assert math.fsum(shares.energy_j) == total_j
    assert min(shares.energy_j) >= 0.0
    assert shares.half_width_j is not None
    assert all(math.isfinite(width) and width >= 0.0 for width in shares.half_width_j)


@pytest.mark.parametrize(
    ("architecture", "dwell_s"), [("a100", 0.37), ("turing", 1.3), ("hopper", 0.1), ("hopper", 0.37), ("hopper", 1.3)]
)
def test_the_intervals_of_requests_hold_the_truth_under_a_load_that_swings(architecture: str, dwell_s: float) -> None:
    """Requests one after the other, so that what flowed in the time of each is known."""
    draw, held, count = random.Random(5), 0, 0
    for _ in range(12):
        switches = [0.0, *accumulate(draw.expovariate(1.0 / dwell_s) for _ in range(200))]
        load = steps(*((time_s, 200.0 if n % 2 else 600.0) for n, time_s in enumerate(switches)))
        board = random_board(architecture, load, draw)
        window = run_window(board, 20.0, draw)
        bounds = [window.start_s + k * (window.end_s - window.start_s) / 8 for k in range(9)]
        lives = [request(a, a + 0.3, b) for a, b in pairwise(bounds)]
        shares = share_energy(lives, by_nvml(window, board, follows=None), None)
        assert shares.energy_j is not None, shares.reason
        assert shares.half_width_j is not None
        for life, share_j, width_j in zip(pairwise(bounds), shares.energy_j, shares.half_width_j, strict=True):
            held += abs(share_j - board.true_energy_j(*life)) <= width_j
            count += 1
    assert held >= 0.95 * count


def test_the_half_width_holds_its_share_of_the_meters_and_what_misplaced_samples_move() -> None:
    gain = BudgetComponent(name="gain", kind="gain", half_width_j=300.0)
    counted = BudgetComponent(name="counter", kind="counter_resolution", half_width_j=60.0)
    shares = share_energy([request(0.0, 1.0, 20.0)], replace(at_300_w(), components=(gain, counted)), None)
    assert shares.half_width_j is not None
    (width_j,) = shares.half_width_j
    assert width_j >= 60.0
    assert width_j == pytest.approx(60.0, rel=0.3)


@pytest.mark.parametrize(
    ("outputs", "energy", "reason"),
    [
        ([request(0.0, 0.01, 0.05)], at_300_w(), "requests take 50 ms; power readings that are 100 ms apart"),
        ([request(0.0, 1.0, 20.0)], at_300_w(None), "no energy was measured"),
        ([request(0.0, 1.0, 20.0)], measured({"GPU-0": []}, total_j=6000.0), "gives no power samples"),
        ([replace(request(0.0, 1.0, 20.0), preemptions=1)], at_300_w(), "were computed again"),
        ([request(-1.0, 1.0, 20.0)], at_300_w(), "only a part of the generation was counted"),
    ],
)
def test_what_cannot_be_told_has_a_reason(outputs: list[RequestOutput], energy: EnergyMeasurement, reason: str) -> None:
    shares = share_energy(outputs, energy, None)
    assert (shares.energy_j, shares.half_width_j) == (None, None)
    assert reason in (shares.reason or "")


def timings(energy_j: list[float] | None, reason: str | None = None, rule: ShareRule | None = None) -> RequestTimings:
    count = 4 if energy_j is None else len(energy_j)
    return RequestTimings(
        input_tokens=[1] * count,
        output_tokens=[1] * count,
        e2e_ms=[1.0] * count,
        energy_j=energy_j,
        energy_half_width_j=None if energy_j is None else [joules / 100 for joules in energy_j],
        energy_rule=rule,
        energy_reason=reason,
    )


def test_requests_of_all_processes_are_pooled_with_the_interval_of_the_nearest() -> None:
    pooled = pool_request_energy([timings([1.0, 2.0]), timings([3.0, 4.0, 10.0])], shared=False)
    assert pooled.energy_j is not None
    assert pooled.half_width_j is not None
    assert (pooled.energy_j.count, pooled.energy_j.mean, pooled.energy_j.p50) == (5, 4.0, 3.0)
    assert (pooled.half_width_j.p50, pooled.half_width_j.max) == (0.03, 0.1)
    assert pooled.stdev_j == pytest.approx(3.5355, abs=1e-4)


def test_a_process_without_joules_leaves_a_reason_and_so_does_a_shared_device() -> None:
    pooled = pool_request_energy([timings([1.0, 2.0]), timings(None, "requests take 3 ms")], shared=False)
    assert (pooled.energy_j, pooled.reason) == (None, "requests take 3 ms")
    shared = pool_request_energy([timings([1.0, 2.0])], shared=True)
    assert shared.reason == "several processes shared a device"
    silent = pool_request_energy([timings([1.0, 2.0]), None], shared=False)
    assert (silent.energy_j, silent.reason) == (None, "there are no instants of the tokens of whole requests")
    assert pool_request_energy([timings(None)], shared=False).reason == "it was not worked out"


def test_a_result_keeps_every_request_of_every_process() -> None:
    by_steps = timings([1.0, 2.0], rule="steps")
    pooled = pool_requests([by_steps, timings([3.0], rule="steps")])
    assert pooled.energy_j is not None
    assert (list(pooled.energy_j), pooled.energy_rule) == ([1.0, 2.0, 3.0], "steps")
    assert (pooled.input_tokens, pooled.itl_ms) == ([1, 1, 1], None)
    assert pool_requests([by_steps, timings([3.0], rule="instants")]).energy_rule is None
    partly = pool_requests([timings([1.0, 2.0]), timings(None, "requests take 3 ms")])
    assert (partly.energy_j, partly.energy_reason, len(partly.e2e_ms)) == (None, "requests take 3 ms", 6)
