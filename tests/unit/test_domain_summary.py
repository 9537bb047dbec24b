from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.domain.metrics import PhaseBreakdown
from llenergymeasure.results.summary import duration, joules, quantity, render_summary
from result_samples import make_result, make_rich_result, results

GOLDEN = """\
Energy         0.412 ± 0.021 J/token   5,273 J raw, 2,745 J above idle (61.2 W)
Throughput     310 output tok/s        12,800 tokens out, 36,900 in
Latency        TTFT 142 ms (p95 142)   ITL 24.7 ms (p95 24.7)
Phases         prefill 18 % of energy, decode 82 %
Duration       41.3 s window, 2 m 44 s in all
FLOPs          4.9e+13 (palm_formula, high confidence)
Warnings       none
Result         results/run/result.json"""

WITHOUT_ENERGY = """\
Energy         not measured            see the warning below
Throughput     20.0 output tok/s       300 tokens in and out
Duration       10.0 s window, 1 m 00 s in all
FLOPs          6.0e+09
Warnings       energy_unavailable: no sensor can be read here
               short_measurement_duration: 4 s"""


def test_the_summary_is_the_documented_one() -> None:
    assert make_rich_result().summary(Path("results/run/result.json")) == GOLDEN


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    result = make_result(
        total_energy_j=None,
        avg_energy_per_token_j=None,
        measurement_warnings=[
            "energy_unavailable: no sensor can be read here",
            "short_measurement_duration: 4 s",
        ],
    )
    assert result.summary() == WITHOUT_ENERGY


def test_an_estimate_is_called_one_and_the_cpus_scope_is_named() -> None:
    estimated = EnergyBreakdown(raw_j=100.0, method="model_estimate", scope="machine_model")
    assert "100 J raw, CPU and RAM, estimated" in make_result(energy_breakdown=estimated).summary()
    metered = EnergyBreakdown(raw_j=100.0, method="hardware_counter", scope="cpu_package_and_dram")
    assert "100 J raw, CPU packages and DRAM\n" in make_result(energy_breakdown=metered).summary()


def test_phases_that_were_not_resolved_give_the_reason_and_no_share() -> None:
    phases = PhaseBreakdown(reason="prefill lasted 12 ms, the sensor updates every 100 ms")
    lines = make_rich_result(phases=phases).summary().splitlines()
    assert "Phases         not resolved            prefill lasted 12 ms, the sensor updates every 100 ms" in lines


def test_a_footprint_is_shown_with_the_factors_it_came_from() -> None:
    result = make_result(co2_g=0.586, carbon_intensity_gco2_kwh=400.0, cost=0.000293, currency="EUR", pue=1.2)
    assert "Footprint      0.586 g CO2e, 400 g/kWh, 0.000293 EUR, PUE 1.20" in result.summary().splitlines()


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (0.412, 0.0206, "0.412 ± 0.021 J/token"),
        (0.0042, 0.0002, "4.20 ± 0.20 mJ/token"),
        (5273.4, 264.0, "5,273 ± 264 J/token"),
        (0.412, 0.00001, "0.412 ± 1e-05 J/token"),
        (0.0, None, "0 J/token"),
        (-12.34, None, "-12.3 J/token"),
    ],
)
def test_energies_keep_sensible_digits_and_units(value: float, half_width: float | None, text: str) -> None:
    assert joules(value, "/token", half_width) == text


@pytest.mark.parametrize(
    ("value", "text"), [(9.996, "10.0"), (999.7, "1,000"), (1234.5, "1,234"), (0.001, "0.00100"), (1e12, "1e+12")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.34, "41.3 s"), (59.96, "1 m 00 s"), (164, "2 m 44 s"), (3599.6, "1 h 00 m"), (3780, "1 h 03 m")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


WRAPPED = """\
Warnings       thermal_floor_disabled: no wait between warm-up and measurement
                 (warmup.thermal_floor_seconds is 0); the device's temperature
                 at the start depends on what ran before
               short_measurement_duration: 4 s
Result         results/a-directory-with-a-name-that-is-longer-than-a-line/result.json"""


def test_long_warnings_are_wrapped_at_the_terminals_edge_and_a_path_is_never_broken() -> None:
    warnings = [
        "thermal_floor_disabled: no wait between warm-up and measurement (warmup.thermal_floor_seconds is 0); "
        "the device's temperature at the start depends on what ran before",
        "short_measurement_duration: 4 s",
    ]
    path = Path("results/a-directory-with-a-name-that-is-longer-than-a-line/result.json")
    text = render_summary(make_rich_result(measurement_warnings=warnings), path, width=78)
    assert text.endswith(WRAPPED), text


@given(results, st.integers(min_value=1, max_value=200))
def test_wrapping_moves_words_and_changes_none(result, width) -> None:  # type: ignore[no-untyped-def]
    assert render_summary(result, width=width).split() == render_summary(result).split()


@given(results, st.booleans())
def test_every_result_can_be_shown(result, saved) -> None:  # type: ignore[no-untyped-def]
    text = result.summary(Path("result.json") if saved else None)
    assert text.startswith("Energy")
    assert ("Result" in text.splitlines()[-1]) >= saved
