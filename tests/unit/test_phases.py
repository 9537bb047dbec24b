from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml.virtual import ARCHITECTURES
from tests.nvml.virtual_run import by_nvml, random_board, run_window
from tests.nvml.waveform import square

from energy_fakes import measured, steady, timed
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import BoardRecord, GpuWindow, PowerSampling
from llenergymeasure.core.metrics.latency import (
    MIN_SAMPLES_PER_STRETCH,
    phase_breakdown,
    phase_spans,
    typical_stretch_s,
)
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.warnings import WarningCode


def two_level_trace(prefill_w: float, decode_w: float, switch_s: float, end_s: float) -> list[TelemetrySample]:
    """10 ms samples of a step, with a knot on each side of it."""
    times = [i / 100 for i in range(-1, round(end_s * 100) + 2)]
    return [TelemetrySample(t, prefill_w if t < switch_s else decode_w) for t in times]


def test_prefill_and_decode_of_one_batch_get_their_own_time_tokens_and_joules() -> None:
    batch = [timed(0.0, [4.0, 8.0, 12.0, 20.0]), timed(0.0, [4.0, 8.0, 12.0, 20.0])]
    energy = measured({"GPU-0": two_level_trace(600.0, 300.0, 4.0, 20.0)}, total_j=7200.0)
    breakdown, notes = phase_breakdown(batch, energy)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.decode is not None
    assert (breakdown.prefill.time_sec, breakdown.prefill.tokens) == (4.0, 200)
    assert (breakdown.decode.time_sec, breakdown.decode.tokens) == (16.0, 6)
    assert breakdown.prefill.energy_j == pytest.approx(2400.0, rel=0.002)
    assert breakdown.decode.energy_j == pytest.approx(4800.0, rel=0.002)
    assert breakdown.residual_j == pytest.approx(0.0, abs=1e-6)
    assert not notes


def test_time_in_which_nothing_is_generated_is_residual() -> None:
    energy = measured({"GPU-0": steady(100.0, 0.0, 20.0, 0.01)}, total_j=2000.0)
    breakdown, _ = phase_breakdown([timed(5.0, [10.0, 15.0])], energy)
    assert breakdown is not None
    assert breakdown.residual_j == pytest.approx(1000.0)


@given(st.floats(0.5, 2.0))
def test_the_parts_and_the_residual_make_what_the_meter_counted(ratio: float) -> None:
    energy = measured({"GPU-0": steady(100.0, 0.0, 20.0, 0.05)}, total_j=2000.0 * ratio)
    breakdown, _ = phase_breakdown([timed(0.0, [5.0, 18.0])], energy)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.decode is not None
    parts = (breakdown.prefill.energy_j, breakdown.decode.energy_j, breakdown.residual_j)
    assert sum(part for part in parts if part is not None) == pytest.approx(2000.0 * ratio)


def test_boards_are_added() -> None:
    trace = steady(100.0, 0.0, 20.0, 0.05)
    breakdown, _ = phase_breakdown([timed(0.0, [5.0, 20.0])], measured({"a": trace, "b": trace}, total_j=4000.0))
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.prefill.energy_j == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("times_s", "short"),
    [
        ([0.05, 10.0, 20.0], "prefill comes in stretches of 50 ms"),
        ([19.9, 20.0], "decode comes in stretches of 100 ms"),
    ],
    ids=["prefill", "decode"],
)
def test_phases_of_which_one_is_too_short_for_the_sensor_have_time_and_tokens_but_no_joules(
    times_s: list[float], short: str
) -> None:
    """What the trace does not show of the short one it shows of the other, which would be too high."""
    energy = measured({"GPU-0": steady(100.0, 0.0, 20.0, 0.1)}, total_j=2000.0)
    breakdown, (note,) = phase_breakdown([timed(0.0, times_s)], energy)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.decode is not None
    assert (breakdown.prefill.energy_j, breakdown.decode.energy_j, breakdown.residual_j) == (None, None, None)
    assert (breakdown.prefill.uncertainty, breakdown.decode.uncertainty) == (None, None)
    assert breakdown.prefill.time_sec == pytest.approx(times_s[0])
    assert breakdown.decode.tokens == len(times_s) - 1
    assert note.code is WarningCode.PHASES_NOT_RESOLVED
    assert short in note.message
    assert note.message == breakdown.reason


@pytest.mark.parametrize(
    ("sampling", "prefill_s", "resolved"),
    [
        (PowerSampling(0.025, 0.1), 0.25, False),
        (PowerSampling(0.025, 0.1), 0.35, True),
        (PowerSampling(1.0, 0.1), 2.9, False),
        (PowerSampling(1.0, 0.1), 3.1, True),
        (PowerSampling(0.01, 0.02), 0.05, False),
        (PowerSampling(0.01, 0.02), 0.07, True),
    ],
)
def test_what_can_be_resolved_is_a_matter_of_the_sensor_and_not_of_how_often_it_is_read(
    sampling: PowerSampling, prefill_s: float, resolved: bool
) -> None:
    """All are read every 10 ms."""
    board = BoardRecord("GPU-0", "GPU-0", has_counter=True, sampling=sampling)
    window = GpuWindow(0.0, 20.0, (board,), 0.01, 5.0, "nvml")
    seen = measured({"GPU-0": steady(100.0, 0.0, 20.0, 0.01)}, total_j=2000.0)
    energy = replace(seen, gpu_window=window, integral_j=2000.0)
    breakdown, notes = phase_breakdown([timed(0.0, [prefill_s, 20.0])], energy)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.decode is not None
    assert (breakdown.prefill.energy_j is not None) is (breakdown.decode.energy_j is not None) is resolved
    assert (not notes) is resolved


@pytest.mark.parametrize("architecture", ["volta", "turing", "hopper"])
def test_the_shortest_phases_that_are_told_hold_the_truth_in_their_interval(architecture: str) -> None:
    """600 W for as long as the sensor just resolves, 300 W for longer, read five times as fast as it updates."""
    kind, draw, covered = ARCHITECTURES[architecture], random.Random(8), 0
    sensor = kind.buffer or kind.instant
    prefill_s = 1.01 * MIN_SAMPLES_PER_STRETCH * max(sensor.update_s, sensor.window_s)
    for _ in range(40):
        period_s = prefill_s + draw.uniform(1.0, 2.0)
        phase_s = draw.uniform(0.5, period_s)
        board = random_board(architecture, square(300.0, 600.0, period_s, prefill_s / period_s, phase_s), draw)
        window = run_window(board, 6.0, draw, sampler_interval_s=sensor.update_s / 5)
        rises_s = (phase_s + k * period_s for k in range(60))
        inside = [t for t in rises_s if window.start_s < t and t + period_s < window.end_s]
        outputs = [timed(t, [t + prefill_s, t + period_s]) for t in inside]
        breakdown, notes = phase_breakdown(outputs, by_nvml(window, board))
        assert breakdown is not None
        assert breakdown.prefill is not None
        assert breakdown.prefill.energy_j is not None, notes
        assert breakdown.prefill.uncertainty is not None
        true_j = sum(board.true_energy_j(t, t + prefill_s) for t in inside)
        covered += abs(breakdown.prefill.energy_j - true_j) <= breakdown.prefill.uncertainty.comparative_j
    assert covered >= 0.95 * 40


def test_a_sensor_read_faster_than_it_updates_resolves_no_more() -> None:
    """Twenty reads of each of a 1 s sensor's values do not make 300 ms visible."""
    samples = [TelemetrySample(float(i // 20) - 1, 100.0) for i in range(460)]
    breakdown, notes = phase_breakdown([timed(0.0, [0.3, 20.0])], measured({"GPU-0": samples}, total_j=2000.0))
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.prefill.energy_j is None
    assert notes


@pytest.mark.parametrize("total_j", [None, 2000.0])
def test_without_energy_or_samples_the_reason_is_told(total_j: float | None) -> None:
    breakdown, notes = phase_breakdown([timed(0.0, [5.0, 20.0])], measured(None, total_j=total_j))
    assert breakdown is not None
    assert breakdown.reason
    assert notes


def test_an_engine_without_token_times_has_no_phases() -> None:
    assert phase_breakdown([timed(0.0, None)], measured(None)) == (None, ())


def test_decode_steps_inside_another_requests_prefill_belong_to_no_phase() -> None:
    first = timed(0.0, [2.0, 4.0, 6.0, 8.0])
    second = timed(3.0, [7.0, 9.0])
    prefill, decode = phase_spans([first, second], (0.0, 20.0))
    assert prefill == [(0.0, 2.0), (3.0, 7.0)]
    assert decode == [(2.0, 3.0), (7.0, 9.0)]
    breakdown, _ = phase_breakdown([first, second], measured({"g": steady(1.0, 0.0, 20.0, 0.01)}, total_j=20.0))
    assert breakdown is not None
    assert breakdown.decode is not None
    assert breakdown.decode.tokens == 2  # those at 8 s and 9 s; the ones at 4 s and 6 s fell into a prefill


def test_requests_that_the_window_cuts_off_count_where_their_first_token_lies() -> None:
    """Of a part of the generation only what was processed in it counts: here the second of two batches."""
    before, inside = timed(0.0, [2.0, 9.0], input_tokens=300), timed(10.0, [13.0, 19.0], input_tokens=40)
    part = measured({"g": steady(100.0, 0.0, 20.0, 0.05)}, start_s=9.5, end_s=20.0, total_j=1050.0)
    breakdown, _ = phase_breakdown([before, inside], part)
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert (breakdown.prefill.tokens, breakdown.prefill.time_sec) == (40, 3.0)


def test_each_phase_states_how_far_its_joules_can_be_trusted() -> None:
    """The step from 600 to 300 W lies somewhere within a sensor's lag of the edge between the phases."""
    energy = measured({"GPU-0": two_level_trace(600.0, 300.0, 4.0, 20.0)}, total_j=7200.0)
    gain = BudgetComponent(name="sensor gain", kind="gain", half_width_j=360.0)
    breakdown, _ = phase_breakdown([timed(0.0, [4.0, 8.0, 20.0])], replace(energy, components=(gain,)))
    assert breakdown is not None
    assert breakdown.prefill is not None
    assert breakdown.prefill.uncertainty is not None
    budget = {line.kind: line.half_width_j for line in breakdown.prefill.uncertainty.budget}
    assert budget["gain"] == pytest.approx(120.0, rel=0.01)
    assert 0.0 < budget["sensor"] < 0.01 * 300.0
    assert breakdown.prefill.uncertainty.comparative_j < breakdown.prefill.uncertainty.absolute_j


requests = st.lists(
    st.tuples(st.integers(0, 15), st.lists(st.integers(0, 6), min_size=1, max_size=6)), min_size=1, max_size=8
)


@given(requests)
def test_no_moment_is_in_two_phases(drawn: list[tuple[int, list[int]]]) -> None:
    outputs = []
    for started_s, gaps in drawn:
        times, now_s = [], float(started_s)
        for gap in gaps:
            now_s += gap
            times.append(now_s)
        outputs.append(timed(float(started_s), times))
    prefill, decode = phase_spans(outputs, (0.0, 20.0))
    spans = sorted([*prefill, *decode])
    assert all(start_s < end_s for start_s, end_s in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert all(start_s >= 0.0 and end_s <= 20.0 for start_s, end_s in spans)


def test_the_typical_stretch_is_where_half_of_the_time_lies() -> None:
    assert typical_stretch_s([(0, 1), (2, 3), (4, 14)]) == 10
    assert typical_stretch_s([]) == 0.0
