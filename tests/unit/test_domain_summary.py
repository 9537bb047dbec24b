from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.domain.environment import CPUEnvironment, EnvironmentSnapshot, MeasurementBoundary
from llenergymeasure.domain.metrics import PhaseBreakdown, PhaseMetrics
from llenergymeasure.results.summary import duration, joules, quantity, render_summary
from result_samples import make_record, make_result, make_rich_result, results

GOLDEN = """\
Model          Qwen/Qwen2.5-0.5B       pytorch 5.23.0, bf16, batch 8
Measured       2026-02-18 14:30 UTC    NVIDIA A100-SXM4-80GB, meter: nvml
Energy         0.412 ± 0.021 J/token   5,273 J raw, 2,745 J above idle (61.2 W)
Throughput     310 output tok/s        12,800 tokens out, 36,900 in
Latency        TTFT 142 ms (p95 142)   ITL 24.7 ms (p95 24.7)
Phases         prefill 18 % of energy, decode 82 %
At scale       14.6 Wh per 1,000 requests
Duration       41.3 s window, 2 m 44 s in all
FLOPs          4.9e+13 (palm_formula, high confidence)
Warnings       none
Result         results/run/result.json"""

WITHOUT_ENERGY = """\
Model          not known               pytorch
Measured       2026-02-18 12:00 UTC
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
    assert "0.500 J/token (estimated)" in repr(make_result(energy_breakdown=estimated))
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
    ("methodology", "said"),
    [("steady_state", ""), ("total", " without warm-up"), ("windowed", " of part of the generation (windowed)")],
)
def test_a_window_that_is_not_the_whole_warmed_up_run_says_so(methodology: str, said: str) -> None:
    lines = make_result(measurement_methodology=methodology).summary().splitlines()
    assert f"Duration       10.0 s window{said}, 1 m 00 s in all" in lines


def test_energy_and_cost_are_told_at_scale_as_far_as_they_are_known() -> None:
    dear = make_rich_result(cost=1.18e-07, currency="EUR")
    assert "At scale       14.6 Wh per 1,000 requests, 0.00000922 EUR per 1 M output tokens" in dear.summary()
    assert "0.000000118 EUR" in dear.summary()
    without_requests = make_result(cost=2e-6, output_tokens=200, currency="EUR")
    assert "At scale       0.0100 EUR per 1 M output tokens\n" in without_requests.summary()
    assert "At scale" not in make_result().summary()


def test_boards_of_one_kind_are_counted_and_processes_are_told() -> None:
    boundary = MeasurementBoundary(devices=["a", "b", "c"], device_names=["H100", "H100", "L40S"])
    text = make_rich_result(measurement_boundary=boundary, process_results=[make_record(0), make_record(1)]).summary()
    assert "2 × H100, L40S, meter: nvml\n" in text
    assert "pytorch 5.23.0, bf16, batch 8, 2 processes\n" in text


def test_a_processor_is_named_by_its_model_where_that_is_known() -> None:
    boundary = MeasurementBoundary(devices=["cpu"], device_names=["CPU"])
    known = EnvironmentSnapshot(
        python_version="3", tool_version="2", platform="Linux", cpu=CPUEnvironment(model="AMD EPYC 9354")
    )
    for snapshot, name in ((known, "AMD EPYC 9354"), (known.model_copy(update={"cpu": None}), "CPU")):
        text = make_rich_result(measurement_boundary=boundary, environment_snapshot=snapshot).summary()
        assert f"Measured       2026-02-18 14:30 UTC    {name}, meter: nvml\n" in text


def test_a_small_share_is_not_called_nothing() -> None:
    phases = PhaseBreakdown(
        prefill=PhaseMetrics(time_sec=0.1, tokens=1, energy_j=10.0),
        decode=PhaseMetrics(time_sec=9.0, tokens=1, energy_j=5263.0),
    )
    assert "prefill < 1 % of energy, decode 100 %" in make_rich_result(phases=phases).summary()


def test_a_result_prints_as_one_line_and_shows_its_summary_in_a_notebook() -> None:
    result = make_rich_result(measurement_warnings=["a: <b>", "c: d"])
    assert (
        str(result)
        == repr(result)
        == (
            "<ExperimentResult qwen2.5-0.5b / pytorch / bf16 / batch 8: 0.412 ± 0.021 J/token, 310 output tok/s, "
            "2026-02-18 14:30 UTC, 2 warnings>"
        )
    )
    assert result._repr_html_().startswith("<pre>Model ")
    assert "a: &lt;b&gt;" in result._repr_html_()


@given(results)
def test_every_result_prints_as_one_short_line(result) -> None:  # type: ignore[no-untyped-def]
    assert len(repr(result.model_copy(update={"config_name": "name"}))) < 200


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (0.412, 0.0206, "0.412 ± 0.021 J/token"),
        (0.0042, 0.0002, "4.20 ± 0.20 mJ/token"),
        (5273.4, 264.0, "5,273 ± 264 J/token"),
        (0.412, 0.00001, "0.412 ± 1e-05 J/token"),
        (0.0, None, "0 J/token"),
        (4.2e-06, None, "4.20 µJ/token"),
        (3.1e-12, None, "0.00310 nJ/token"),
        (-12.34, None, "-12.3 J/token"),
    ],
)
def test_energies_keep_sensible_digits_and_units(value: float, half_width: float | None, text: str) -> None:
    assert joules(value, "/token", half_width) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.996, "10.0"),
        (999.7, "1,000"),
        (1234.5, "1,234"),
        (0.001, "0.00100"),
        (1.18e-07, "0.000000118"),
        (0.0, "0"),
        (1e12, "1e+12"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.000412, "0.412 ms"),
        (0.0382, "38.2 ms"),
        (0.9996, "1.0 s"),
        (41.34, "41.3 s"),
        (59.96, "1 m 00 s"),
        (164, "2 m 44 s"),
        (3599.6, "1 h 00 m"),
        (3780, "1 h 03 m"),
    ],
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
    assert text.startswith("Model")
    assert ("Result" in text.splitlines()[-1]) >= saved
