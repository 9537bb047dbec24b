from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import BudgetComponent, EmissionFactors, combine_budget
from llenergymeasure.domain.environment import (
    ContainerEnvironment,
    CUDAEnvironment,
    EnvironmentMetadata,
    GPUEnvironment,
    ThermalEnvironment,
)


def component(kind: str, half_width_j: float) -> BudgetComponent:
    return BudgetComponent(name=kind, kind=kind, half_width_j=half_width_j)


def test_independent_errors_add_in_quadrature() -> None:
    found = combine_budget([component("sampling", 3.0), component("aliasing", 4.0)], output_tokens=10)
    assert found.absolute_j == 5.0
    assert found.absolute_per_token_j == 0.5


def test_the_gain_cancels_between_runs_on_one_board() -> None:
    found = combine_budget([component("gain", 12.0), component("sampling", 5.0)])
    assert found.absolute_j == 13.0
    assert found.comparative_j == 5.0
    assert found.absolute_per_token_j is None


def test_the_baseline_makes_only_the_adjusted_figure_less_certain() -> None:
    found = combine_budget([component("sampling", 3.0), component("baseline", 4.0)])
    assert found.absolute_j == 3.0
    assert found.absolute_adjusted_j == 5.0
    assert combine_budget([component("sampling", 3.0)]).absolute_adjusted_j is None


def test_the_gain_of_energy_above_idle_is_that_of_what_is_left() -> None:
    """5 % of 1,000 J is 50 J; of the 100 J above 900 J idle, read with the same gain, it is 5 J."""
    found = combine_budget([component("gain", 50.0), component("baseline", 0.0)], above_idle=0.1)
    assert found.absolute_j == 50.0
    assert found.absolute_adjusted_j == pytest.approx(5.0)
    assert found.comparative_adjusted_j == 0.0


@given(st.lists(st.tuples(st.sampled_from(["gain", "sampling", "sensor", "baseline"]), st.floats(0, 1e6)), max_size=6))
def test_a_comparison_is_never_less_certain_than_a_publication(lines: list[tuple[str, float]]) -> None:
    found = combine_budget([component(kind, size) for kind, size in lines])
    assert found.comparative_j <= found.absolute_j
    assert found.absolute_j >= max((size for kind, size in lines if kind != "baseline"), default=0.0)


def test_the_environment_fits_on_one_line() -> None:
    environment = EnvironmentMetadata(
        gpu=GPUEnvironment(name="A100", vram_total_mb=81_920),
        cuda=CUDAEnvironment(version="12.4", driver_version="535.104"),
        thermal=ThermalEnvironment(temperature_c=42.0),
        container=ContainerEnvironment(detected=True, runtime="docker"),
    )
    assert environment.summary_line == "A100 80GB | CUDA 12.4 | Driver 535.104 | 42C | container"


def test_the_environment_line_leaves_out_what_is_not_known() -> None:
    bare = EnvironmentMetadata(gpu=GPUEnvironment(name="NVIDIA H100 80GB HBM3", vram_total_mb=81_559))
    assert bare.summary_line == "H100 80GB HBM3"


def test_a_kilowatt_hour_costs_and_emits_what_the_user_said() -> None:
    factors = EmissionFactors(carbon_intensity_gco2_kwh=400.0, pue=1.5, electricity_price_kwh=0.2, currency="EUR")
    assert factors.co2_g(3.6e6) == pytest.approx(600.0)
    assert factors.cost(3.6e6) == pytest.approx(0.3)


def test_no_grid_is_ever_guessed() -> None:
    assert EmissionFactors().co2_g(3.6e6) is None
    assert EmissionFactors().cost(3.6e6) is None
    assert EmissionFactors(carbon_intensity_gco2_kwh=400.0).co2_g(None) is None
