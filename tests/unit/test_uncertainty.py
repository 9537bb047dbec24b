"""The error budget: each component's size by hand, and how they combine."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy.stats import t as student

from llenergymeasure.core.energy.fusion import FusedEnergy
from llenergymeasure.core.energy.integrate import integrate_power
from llenergymeasure.core.energy.types import PowerSampling
from llenergymeasure.core.energy.uncertainty import (
    counter_component,
    coverage_factor,
    gain_component,
    integral_components,
)
from llenergymeasure.domain.energy import (
    BudgetComponent,
    absolute_half_width,
    combine_budget,
    comparative_half_width,
    sum_budgets,
)

FULL = PowerSampling(averaging_window_s=0.1, update_s=0.1)
PART_TIME = PowerSampling(averaging_window_s=0.025, update_s=0.1)


def _grid(power: list[float], step_s: float = 0.1) -> tuple[list[float], list[float]]:
    return [i * step_s for i in range(len(power))], power


def _by_name(parts: tuple[BudgetComponent, ...]) -> dict[str, float]:
    return {part.name: part.half_width_j for part in parts}


def test_the_gain_is_proportional_to_the_energy() -> None:
    part = gain_component(2000.0, 5.0)
    assert (part.half_width_j, part.kind) == (100.0, "gain")


def test_the_counter_component_is_what_the_fusion_stated_and_names_its_fallback() -> None:
    assert counter_component(FusedEnergy(100.0, 2.5)).half_width_j == 2.5
    fallback = counter_component(FusedEnergy(100.0, 25.0, "no step was found"))
    assert "no step was found" in fallback.note


def test_constant_power_has_no_sampling_error() -> None:
    times, power = _grid([300.0] * 50)
    assert comparative_half_width(integral_components(times, power, 0.5, 4.0, PART_TIME)) == 0.0


def test_a_single_change_of_power_is_uncertain_by_its_moment() -> None:
    """100 W more somewhere within 0.1 s: a rectangle 10 J wide, of which a sensor with 25 % sight misses 3/4."""
    times, power = _grid([200.0] * 20 + [300.0] * 20)
    sampling_j = _by_name(integral_components(times, power, 0.0, 3.9, PART_TIME))["sampling"]
    assert sampling_j == pytest.approx(coverage_factor(38) * 10.0 * math.sqrt(0.75 / 12.0), rel=1e-6)


def test_fluctuations_count_with_their_own_variance() -> None:
    """White noise of 20 W over 400 samples 0.1 s apart: 1.96 x 20 W x 0.1 s x sqrt(400) = 78 J, seen to 1/4."""
    draw = random.Random(1)
    times, power = _grid([300.0 + draw.gauss(0.0, 20.0) for _ in range(401)])
    sampling_j = _by_name(integral_components(times, power, 0.0, 40.0, PART_TIME))["sampling"]
    assert sampling_j == pytest.approx(78.0 * math.sqrt(0.75), rel=0.2)


@pytest.mark.parametrize("slope_w", [0.0, 5.0])
def test_the_scatter_of_few_readings_is_covered_whether_or_not_the_power_rises(slope_w: float) -> None:
    """Seven readings that scatter by 1 W: 95 % of the intervals hold the truth, or all but that."""
    draw, draws, held = random.Random(3), 1000, 0
    for _ in range(draws):
        times, power = _grid([300.0 + slope_w * i + draw.gauss(0.0, 1.0) for i in range(7)])
        error_j = integrate_power(times, power, 0.0, 0.6) - (300.0 + 3.0 * slope_w) * 0.6
        held += abs(error_j) <= _by_name(integral_components(times, power, 0.0, 0.6, FULL))["sampling"]
    assert held / draws >= 0.94


@pytest.mark.parametrize(
    ("mean_w", "noise_w", "calibrated_w"), [(690.0, 10.0, None), (60.0, 4.0, 4.0), (60.0, 1.0, 0.1)]
)
@pytest.mark.parametrize("sensor", [FULL, PART_TIME])
def test_the_scatter_of_many_readings_is_covered_as_far_as_the_board_or_its_kind_is_known_to_scatter(
    sensor: PowerSampling, mean_w: float, noise_w: float, calibrated_w: float | None
) -> None:
    draw, draws, held = random.Random(5), 400, 0
    for _ in range(draws):
        times, power = _grid([draw.gauss(mean_w, noise_w) for _ in range(100)])
        error_j = integrate_power(times, power, 0.0, 9.9) - mean_w * 9.9
        parts = integral_components(times, power, 0.0, 9.9, replace(sensor, noise_w=calibrated_w))
        held += abs(error_j) <= _by_name(parts)["sampling"]
    assert held / draws >= 0.92


def test_a_sensor_that_sees_all_the_time_misses_less() -> None:
    times, power = _grid([200.0, 200.0, 300.0, 300.0] * 10 + [200.0])
    part_time = comparative_half_width(integral_components(times, power, 0.5, 3.5, PART_TIME))
    assert comparative_half_width(integral_components(times, power, 0.5, 3.5, FULL)) < part_time


def test_reading_faster_than_the_sensor_updates_tells_nothing_more() -> None:
    times, power = _grid([200.0] * 20 + [300.0] * 20)
    often = [t + 0.01 * i for t in times for i in range(10)], [w for w in power for _ in range(10)]
    slow = _by_name(integral_components(times, power, 0.0, 3.9, PART_TIME))["sampling"]
    assert _by_name(integral_components(*often, 0.0, 3.9, PART_TIME))["sampling"] == pytest.approx(slow, rel=0.05)


def test_a_load_in_step_with_the_sampling_repeats_its_error() -> None:
    pattern = [120.0] * 3 + [500.0] * 4
    in_step = _by_name(integral_components(*_grid(pattern * 20), 0.1, 13.8, PART_TIME))
    draw = random.Random(2)
    jittered = [w for _ in range(20) for w in [120.0] * draw.randint(2, 4) + [500.0] * draw.randint(3, 5)]
    out_of_step = _by_name(integral_components(*_grid(jittered), 0.1, 11.0, PART_TIME))
    assert in_step["aliasing"] == pytest.approx(
        in_step["sampling"] * math.sqrt(18.0)
    )  # 19 whole patterns in the window
    assert out_of_step["aliasing"] == 0.0


def test_samples_lag_where_the_power_at_the_edges_differs() -> None:
    """60 W before, 600 W inside: up to 0.125 s of 540 W is missing at the start."""
    times, power = _grid([60.0] * 10 + [600.0] * 40)
    lag_j = _by_name(integral_components(times, power, 1.0, 4.5, PART_TIME))["sensor lag"]
    assert lag_j == pytest.approx(0.125 * 540.0)


def test_components_add_in_quadrature_and_the_gain_cancels_in_comparisons() -> None:
    parts = (gain_component(1000.0, 4.0), BudgetComponent(name="a", kind="counter_resolution", half_width_j=3.0))
    assert comparative_half_width(parts) == 3.0
    assert absolute_half_width(parts) == pytest.approx(math.hypot(40.0, 3.0))
    stated = combine_budget(
        [BudgetComponent(name=p.name, kind=p.kind, half_width_j=p.half_width_j, note=p.note) for p in parts]
    )
    assert (stated.absolute_j, stated.comparative_j) == (absolute_half_width(parts), comparative_half_width(parts))


def test_boards_have_independent_time_errors_and_a_common_gain() -> None:
    budget = (
        gain_component(1000.0, 4.0),
        BudgetComponent(name="counter resolution", kind="counter_resolution", half_width_j=3.0),
    )
    assert _by_name(sum_budgets([budget, budget])) == {
        "sensor gain": 80.0,
        "counter resolution": pytest.approx(3.0 * math.sqrt(2.0)),
    }


@pytest.mark.parametrize("freedom", [3, 4, 9, 30, 200])
def test_the_coverage_factor_is_students(freedom: int) -> None:
    assert coverage_factor(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=0.02)
