"""Counter and power samples fused: finer than the counter's steps, and honest about how much."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from tests.nvml.virtual import CounterEvent
from tests.nvml.virtual_run import VirtualWindow, quantile, random_board, run_window
from tests.nvml.waveform import Waveform, constant, ramp, square

from llenergymeasure.core.energy.fusion import CounterError, counter_steps, fuse_energy
from llenergymeasure.core.energy.types import CounterRead, SensorDescription

DRAWS = 60


def _windows(
    architecture: str, waveform: Callable[[random.Random], Waveform], lengths: tuple[float, float], seed: int
) -> list[VirtualWindow]:
    draw = random.Random(seed)
    return [
        run_window(random_board(architecture, waveform(draw), draw), draw.uniform(*lengths), draw) for _ in range(DRAWS)
    ]


def _square(draw: random.Random) -> Waveform:
    return square(120.0, 500.0, 0.7, phase_s=draw.uniform(0.0, 0.7))


def _fused_errors_j(windows: Sequence[VirtualWindow]) -> list[float]:
    return [abs(window.fused().energy_j - window.true_j) for window in windows]


def _plain_errors_j(windows: Sequence[VirtualWindow]) -> list[float]:
    return [abs(window.plain_j - window.true_j) for window in windows]


@pytest.mark.parametrize("architecture", ["volta", "turing", "a100", "ampere", "hopper"])
def test_it_halves_the_plain_counters_error_for_windows_of_half_a_second_to_three(architecture: str) -> None:
    windows = _windows(architecture, _square, (0.5, 3.0), seed=11)
    assert quantile(_fused_errors_j(windows), 0.95) <= 0.5 * quantile(_plain_errors_j(windows), 0.95)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_beyond_three_seconds_it_is_never_worse(share: float) -> None:
    windows = _windows("hopper", _square, (3.0, 20.0), seed=12)
    assert quantile(_fused_errors_j(windows), share) <= quantile(_plain_errors_j(windows), share)


def test_every_waveform_gains_and_the_stated_intervals_cover_the_truth() -> None:
    kinds: list[Callable[[random.Random], Waveform]] = [
        lambda draw: constant(draw.uniform(80.0, 600.0)),
        lambda draw: square(100.0, 400.0, 0.23, duty=0.3, phase_s=draw.uniform(0.0, 0.23)),
        lambda draw: square(100.0, 500.0, 5.0, phase_s=draw.uniform(0.0, 5.0)),
        lambda _: ramp(100.0, 600.0, 12.0, 20.0),
    ]
    covered = 0
    for seed, kind in enumerate(kinds):
        windows = _windows("hopper", kind, (0.5, 6.0), seed)
        assert quantile(_fused_errors_j(windows), 0.95) <= 0.5 * quantile(_plain_errors_j(windows), 0.95)
        covered += sum(abs(w.fused().energy_j - w.true_j) <= w.fused().half_width_j for w in windows)
    assert covered >= 0.95 * DRAWS * len(kinds)


def test_a_load_that_ends_with_the_window_is_met_within_one_per_cent() -> None:
    draw = random.Random(3)
    boards = [random_board("hopper", constant(60.0), draw) for _ in range(DRAWS)]
    windows = [run_window(board, draw.uniform(1.0, 3.0), draw, load_w=600.0, idle_w=60.0) for board in boards]
    errors = [abs(w.fused().energy_j / w.true_j - 1.0) for w in windows]
    assert quantile(errors, 0.95) <= 0.01


def test_it_costs_at_most_a_fifth_of_a_second_outside_the_window() -> None:
    assert max(window.outside_s for window in _windows("hopper", _square, (0.5, 1.0), seed=5)) <= 0.2005


def test_the_window_starts_on_a_step() -> None:
    window = _windows("hopper", _square, (1.0, 1.0), seed=6)[0]
    started, ended = counter_steps(window.before)[-1], counter_steps(window.after)[0]
    assert 0.0 <= window.start_s - started.time_s < 0.001
    assert window.end_s < ended.time_s < window.end_s + 0.11


def test_without_a_step_it_falls_back_to_the_plain_counter_and_says_so() -> None:
    draw = random.Random(7)
    board = random_board("hopper", constant(300.0), draw)
    fused = run_window(board, 2.0, draw, find_start=False).fused()
    assert fused.fallback_reason == "no step of the counter was found before the window"
    assert fused.half_width_j > 10.0


@pytest.mark.parametrize("seen", [True, False])
def test_what_flows_between_late_reads_and_the_window_is_not_the_windows(seen: bool) -> None:
    """The last of eight boards, each of which takes 15 ms to read: 300 W in the window, 100 W around it."""
    idle_w, busy_w, gap_s = 100.0 if seen else 300.0, 300.0, 0.12
    power = [*((t / 100, idle_w) for t in range(-30, 1)), *((0.01 + t / 10, busy_w) for t in range(50))]
    after = [(5.001 + t / 100, idle_w) for t in range(13)]
    total_j = 2 * gap_s * idle_w + 5.0 * busy_w
    before, later = CounterRead(-gap_s, -gap_s, 1000.0), CounterRead(5.0 + gap_s, 5.0 + gap_s, 1000.0 + total_j)
    samples = [*power, *after] if seen else []
    fused = fuse_energy([before], [later], samples, 0.0, 5.0, SensorDescription())
    assert fused.energy_j == pytest.approx(5.0 * busy_w, rel=0.001)
    assert fused.half_width_j > 0.05 * busy_w  # what steps of a tenth of a second leave open


def test_the_fallbacks_interval_covers_the_truth() -> None:
    draw = random.Random(8)
    boards = [random_board("hopper", _square(draw), draw) for _ in range(DRAWS)]
    windows = [run_window(board, draw.uniform(0.5, 6.0), draw, find_start=False) for board in boards]
    assert sum(abs(w.fused().energy_j - w.true_j) <= w.fused().half_width_j for w in windows) >= 0.95 * DRAWS


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.09, 0.11])
def test_it_learns_the_counters_period_instead_of_supposing_it(period_s: float) -> None:
    draw = random.Random(9)
    windows = []
    for _ in range(DRAWS):
        board = random_board("hopper", _square(draw), draw)
        assert board.counter is not None
        board.counter = replace(board.counter, period_s=period_s)
        windows.append(run_window(board, draw.uniform(0.5, 3.0), draw))
    assert sum(abs(w.fused().energy_j - w.true_j) <= w.fused().half_width_j for w in windows) >= 0.95 * DRAWS


def test_an_unknown_period_widens_the_interval_and_still_covers() -> None:
    windows = _windows("hopper", _square, (0.5, 3.0), seed=10)
    blind = [w.fused(replace(w.sensor, counter_period_s=None)) for w in windows]
    covered = sum(abs(f.energy_j - w.true_j) <= f.half_width_j for f, w in zip(blind, windows, strict=True))
    assert covered >= 0.95 * DRAWS
    assert sum(f.half_width_j for f in blind) > sum(w.fused().half_width_j for w in windows)


@pytest.mark.parametrize("samples_w", [None, 1.0])
def test_missing_or_smoothed_samples_leave_the_steps_as_bounds(samples_w: float | None) -> None:
    for window in _windows("hopper", _square, (0.5, 3.0), seed=13)[:40]:
        blind = replace(window, samples=()) if samples_w is None else window
        sensor = window.sensor if samples_w is None else replace(window.sensor, averaging_window_s=samples_w)
        fused = blind.fused(sensor)
        assert abs(fused.energy_j - window.true_j) <= fused.half_width_j


def test_a_gain_error_scales_the_result_and_does_not_disturb_the_fusion() -> None:
    draw = random.Random(14)
    board = random_board("hopper", constant(300.0), draw, gain=1.08)
    window = run_window(board, 2.0, draw)
    assert window.fused().energy_j / window.true_j == pytest.approx(1.08, rel=1e-3)


def test_slow_reads_widen_the_interval_and_it_still_covers() -> None:
    draw = random.Random(15)
    windows = [run_window(random_board("hopper", _square(draw), draw), 2.0, draw, read_s=0.01) for _ in range(DRAWS)]
    assert sum(abs(w.fused().energy_j - w.true_j) <= w.fused().half_width_j for w in windows) >= 0.95 * DRAWS


def test_a_counter_that_was_reset_inside_the_window_is_an_error() -> None:
    draw = random.Random(16)
    board = random_board("hopper", constant(300.0), draw)
    board.counter_events = [CounterEvent("reset", at_s=21.5)]
    window = run_window(board, 12.0, draw)
    with pytest.raises(CounterError, match="went backwards"):
        window.fused()


def test_steady_power_by_hand() -> None:
    """100 W, a counter that steps every 0.1 s at ..., 1.0, 1.1, ...: a window from 1.0 s to 2.05 s holds 105 J."""
    before = [CounterRead(0.999, 0.999, 10.0), CounterRead(1.0, 1.0, 20.0)]
    after = [CounterRead(2.05, 2.05, 120.0), CounterRead(2.0999, 2.0999, 120.0), CounterRead(2.1, 2.1, 130.0)]
    samples = [(0.9 + 0.1 * i, 100.0) for i in range(13)]
    sensor = SensorDescription(counter_period_s=0.1, counter_period_tolerance_s=0.001, averaging_window_s=0.025)
    fused = fuse_energy(before, after, samples, 1.0, 2.05, sensor)
    assert fused.energy_j == pytest.approx(105.0, abs=0.2)
    assert fused.half_width_j < 0.6


def _reads(*seen: tuple[float, float]) -> list[CounterRead]:
    return [CounterRead(time_s, time_s + 1e-5, energy_j) for time_s, energy_j in seen]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([(0.0, 100.0), (0.01, 130.0)], [(0.0101, 130.0), (0.11, 160.0)], id="steps on both sides"),
        pytest.param([(0.0, 100.0), (0.01, 130.0)], [(0.0101, 130.0), (0.02, 130.0)], id="a step before"),
        pytest.param([(0.0, 130.0), (0.01, 130.0)], [(0.0101, 130.0), (0.02, 160.0)], id="a step after"),
    ],
)
@pytest.mark.parametrize("power_w", [(300.0, 300.0), (60.0, 700.0)])
@pytest.mark.parametrize("window_s", [1e-6, 3e-5])
def test_a_window_that_is_too_short_for_the_counter_is_refused_or_told_with_a_half_width(
    before: list[tuple[float, float]], after: list[tuple[float, float]], power_w: tuple[float, float], window_s: float
) -> None:
    """Never 0 J or less, and never a half-width below 0."""
    start_s = 0.01003
    samples = [(start_s - 0.02, power_w[0]), (start_s - 0.01, power_w[1]), (start_s + 0.09, power_w[0])]
    reads, sensor = (_reads(*before), _reads(*after)), SensorDescription(0.1, 0.001)
    with suppress(CounterError):
        fused = fuse_energy(*reads, samples, start_s, start_s + window_s, sensor)
        assert fused.energy_j > 0
        assert fused.half_width_j > 0


def test_a_counter_that_did_not_move_within_a_short_window_tells_no_energy_of_it() -> None:
    before, after = _reads((0.0, 130.0), (0.01, 130.0)), _reads((0.0101, 130.0), (0.02, 160.0))
    with pytest.raises(CounterError, match="cannot tell the energy of a window"):
        fuse_energy(before, after, [], 0.01002, 0.01005, SensorDescription(0.1, 0.001))
