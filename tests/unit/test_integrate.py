"""Truths about the energy under a sampled power signal."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml.waveform import square

from llenergymeasure.core.energy.integrate import TraceTooShortError, integrate_power

POWER = st.floats(0.0, 1000.0)
GAPS = st.lists(st.floats(0.001, 2.0), min_size=3, max_size=60)


@st.composite
def traces_with_window(draw: st.DrawFn) -> tuple[list[float], list[float], float, float]:
    times = [0.0]
    for gap in draw(GAPS):
        times.append(times[-1] + gap)
    power = [draw(POWER) for _ in times]
    inside = st.floats(0.01 * times[-1], 0.99 * times[-1])
    start, end = sorted((draw(inside), draw(inside)))
    return times, power, start, end


@given(traces_with_window(), st.floats(1.0, 1000.0))
def test_constant_power_is_power_times_duration(trace: tuple[list[float], list[float], float, float], p: float) -> None:
    times, _, start, end = trace
    assert integrate_power(times, [p] * len(times), start, end) == pytest.approx(p * (end - start), rel=1e-9, abs=1e-9)


@given(traces_with_window(), st.floats(0.0, 1.0))
def test_neighbouring_windows_add_up(trace: tuple[list[float], list[float], float, float], share: float) -> None:
    times, power, start, end = trace
    middle = start + share * (end - start)
    parts = integrate_power(times, power, start, middle) + integrate_power(times, power, min(middle, end), end)
    assert parts == pytest.approx(integrate_power(times, power, start, end), rel=1e-9, abs=1e-6)


@given(traces_with_window(), st.floats(-1e5, 1e5))
def test_shifting_time_changes_nothing(trace: tuple[list[float], list[float], float, float], shift: float) -> None:
    times, power, start, end = trace
    shifted = integrate_power([t + shift for t in times], power, start + shift, end + shift)
    assert shifted == pytest.approx(integrate_power(times, power, start, end), rel=1e-5, abs=1e-5)


@given(traces_with_window(), st.floats(0.0, 10.0))
def test_energy_scales_with_power(trace: tuple[list[float], list[float], float, float], factor: float) -> None:
    times, power, start, end = trace
    scaled = integrate_power(times, [factor * p for p in power], start, end)
    assert scaled == pytest.approx(factor * integrate_power(times, power, start, end), rel=1e-9, abs=1e-9)


@given(traces_with_window(), st.integers(2, 7))
def test_more_samples_of_a_piecewise_linear_signal_change_nothing(
    trace: tuple[list[float], list[float], float, float], parts: int
) -> None:
    times, power, start, end = trace
    fine_t, fine_p = [times[0]], [power[0]]
    for (t0, p0), (t1, p1) in pairwise(zip(times, power, strict=True)):
        for k in range(1, parts):
            fine_t.append(t0 + (t1 - t0) * k / parts)
            fine_p.append(p0 + (p1 - p0) * k / parts)
        fine_t.append(t1)
        fine_p.append(p1)
    exact = integrate_power(times, power, start, end)
    assert integrate_power(fine_t, fine_p, start, end) == pytest.approx(exact, rel=1e-9, abs=1e-6)


@given(traces_with_window())
def test_power_above_zero_is_never_zero_energy(trace: tuple[list[float], list[float], float, float]) -> None:
    times, power, start, end = trace
    assert integrate_power(times, [p + 1e-3 for p in power], start, end + 1e-6) > 0.0


def test_a_ramp_is_exact_between_samples() -> None:
    times = [0.0, 10.0]
    assert integrate_power(times, [100.0, 200.0], 2.0, 4.0) == pytest.approx(2.0 * 130.0)


def test_two_samples_at_one_time_make_a_step() -> None:
    times, power = [0.0, 1.0, 1.0, 2.0], [100.0, 100.0, 500.0, 500.0]
    assert integrate_power(times, power, 0.0, 2.0) == 600.0
    assert integrate_power(times, power, 0.0, 1.0) == 100.0
    assert integrate_power(times, power, 1.0, 2.0) == 500.0


def _square_error(sample_s: float, phase: float) -> float:
    wave = square(120.0, 500.0, 0.7, phase_s=phase)
    times = [i * sample_s for i in range(round(10.0 / sample_s) + 20)]
    power = [(wave.cumulative_j(t + 1e-6) - wave.cumulative_j(t)) / 1e-6 for t in times]
    truth = wave.energy_j(0.05, 10.05)
    return abs(integrate_power(times, power, 0.05, 10.05) / truth - 1.0)


def test_a_square_wave_is_within_0_3_per_cent_from_10_ms_samples() -> None:
    draw = random.Random(1)
    assert max(_square_error(0.010, draw.uniform(0.0, 0.7)) for _ in range(100)) <= 0.003


def test_the_same_wave_is_several_per_cent_off_from_100_ms_samples() -> None:
    draw = random.Random(2)
    errors = [_square_error(0.100, draw.uniform(0.0, 0.7)) for _ in range(100)]
    assert 0.03 < max(errors) < 0.12


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.5, 2.1), (-1.0, 3.0)])
def test_a_window_beyond_the_samples_is_refused(start: float, end: float) -> None:
    with pytest.raises(TraceTooShortError, match="do not reach over the window"):
        integrate_power([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], start, end)


def test_no_samples_are_refused() -> None:
    with pytest.raises(TraceTooShortError, match="no power samples"):
        integrate_power([], [], 0.0, 1.0)


@pytest.mark.parametrize(
    ("times", "power", "message"),
    [
        ([0.0, 1.0], [1.0], "2 times but 1 powers"),
        ([0.0, 2.0, 1.5, 3.0], [1.0] * 4, "in order of time"),
        ([0.0, 1.0, 3.0], [1.0, float("nan"), 1.0], "finite"),
    ],
)
def test_broken_traces_are_refused(times: list[float], power: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integrate_power(times, power, 0.5, 2.5)


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot end"):
        integrate_power([0.0, 1.0], [1.0, 1.0], 0.8, 0.2)
