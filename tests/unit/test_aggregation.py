from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import BudgetComponent, EmissionFactors, EnergyAudit, EnergyBreakdown, combine_budget
from llenergymeasure.domain.environment import DatasetInfo, MeasurementBoundary
from llenergymeasure.domain.experiment import RawProcessResult, Timestamps
from llenergymeasure.domain.latency import RequestTimings
from llenergymeasure.domain.metrics import (
    ComputeMetrics,
    FlopsResult,
    PhaseBreakdown,
    PhaseMetrics,
    ThermalThrottleInfo,
    WarmupResult,
)
from llenergymeasure.exceptions import ExperimentError, PersistenceError
from llenergymeasure.results.aggregation import aggregate_results, validate_process_completeness
from llenergymeasure.results.attribution import attribute_energy
from llenergymeasure.results.export import flat_row
from llenergymeasure.results.process_records import read_process_results, write_process_result
from result_samples import NOON, make_record


def test_one_process_is_the_normal_case_and_keeps_its_own_figures() -> None:
    record = make_record(
        energy_breakdown=EnergyBreakdown(raw_j=100.0, adjusted_j=40.0, baseline_power_w=6.0, baseline_method="fresh"),
        baseline_power_w=6.0,
        uncertainty=combine_budget([BudgetComponent(name="gain", kind="gain", half_width_j=5.0)], 200),
        dataset=DatasetInfo(name="aienergyscore", sha256="ab", prompt_count=2),
        requests=RequestTimings(input_tokens=[50, 50], output_tokens=[100, 100], e2e_ms=[4000.0, 6000.0]),
        started_at=NOON - timedelta(seconds=90),
        ended_at=NOON + timedelta(seconds=15),
        measurement_methodology="steady_state",
        steady_state_window=(90.0, 100.0),
        warmup_excluded_samples=5,
        warnings=["short_measurement_duration: 10 s"],
    )
    result = aggregate_results("exp-1", [record])
    assert (result.total_tokens, result.input_tokens, result.output_tokens) == (300, 100, 200)
    assert result.total_energy_j == 100.0
    assert result.avg_energy_per_token_j == 0.5
    assert result.avg_tokens_per_second == 20.0
    assert result.energy_adjusted_j == 40.0
    assert result.energy_breakdown == record.energy_breakdown
    assert result.uncertainty == record.uncertainty
    assert result.duration_sec == 105.0
    assert result.steady_state_window == (90.0, 100.0)
    assert result.warmup_excluded_samples == 5
    assert result.num_requests == 2
    assert result.measurement_warnings == ["short_measurement_duration: 10 s"]
    assert result.process_results == [record.model_copy(update={"requests": None, "effective_config": {}})]
    assert result.multi_gpu is None
    assert result.aggregation is not None
    assert result.aggregation.num_processes == 1
    assert result.aggregation.complete
    assert result.aggregation.gpu_attribution_verified
    assert result.aggregation.temporal_overlap_verified
    extended = result.extended_metrics
    assert extended is not None
    assert extended.energy_per_request_j == 50.0
    assert extended.energy_adjusted_per_token_j == 0.2
    assert extended.total_tokens_per_second == 30.0
    assert extended.avg_power_w == 10.0


def test_energies_of_separate_gpus_add_up_and_throughput_is_over_the_common_window() -> None:
    result = aggregate_results(
        "exp-1", [make_record(1, start_s=2.0, duration_s=10.0), make_record(0, start_s=0.0, duration_s=10.0)]
    )
    assert result.total_energy_j == 200.0
    assert result.energy_per_device_j == [100.0, 100.0]
    assert result.multi_gpu is not None
    assert result.multi_gpu.energy_per_gpu_j == [100.0, 100.0]
    assert result.multi_gpu.energy_per_output_token_j == 0.5
    assert result.total_inference_time_sec == 12.0
    assert result.avg_tokens_per_second == pytest.approx(400 / 12)
    assert [record.process_index for record in result.process_results] == [0, 1]


def test_a_gpu_shared_by_two_processes_is_counted_once() -> None:
    records = [make_record(0, devices={"GPU-a": 100.0}), make_record(1, devices={"GPU-a": 101.0}, duration_s=10.1)]
    result = aggregate_results("exp-1", records)
    assert result.total_energy_j == 101.0  # the wider window, not 201 J
    assert result.output_tokens == 400
    assert result.energy_by_device_j == {"GPU-a": 101.0}
    assert result.aggregation is not None
    assert result.aggregation.shared_devices == {"GPU-a": [0, 1]}
    assert result.aggregation.gpu_attribution_verified
    assert [warning.split(":")[0] for warning in result.measurement_warnings] == ["device_shared_by_processes"]


def test_the_uncertainty_per_token_on_a_shared_gpu_is_over_the_tokens_of_all_processes() -> None:
    own = combine_budget([BudgetComponent(name="sampling", kind="sampling", half_width_j=4.0)], 200)
    records = [make_record(index, devices={"GPU-a": 100.0}, uncertainty=own) for index in range(2)]
    result = aggregate_results("exp-1", records)
    assert result.output_tokens == 400
    assert result.uncertainty is not None
    assert result.uncertainty.absolute_j == 4.0
    assert result.uncertainty.absolute_per_token_j == pytest.approx(0.01)
    assert result.uncertainty.comparative_per_token_j == pytest.approx(0.01)


def test_a_shared_gpu_whose_widest_window_misses_time_says_it_is_a_lower_bound() -> None:
    records = [
        make_record(0, devices={"GPU-a": 100.0}),
        make_record(1, devices={"GPU-a": 100.0}, start_s=5.0),
    ]
    warnings = aggregate_results("exp-1", records).measurement_warnings
    assert any("10.0 s of 15.0 s" in warning and "lower bound" in warning for warning in warnings)


def test_the_processor_of_a_data_parallel_cpu_run_is_counted_once() -> None:
    records = [make_record(i, devices={"cpu": 50.0}, gpu_id=None) for i in range(3)]
    result = aggregate_results("exp-1", records)
    assert result.total_energy_j == 50.0
    assert result.multi_gpu is None


def test_shared_and_separate_devices_mix() -> None:
    records = [
        make_record(0, devices={"GPU-a": 100.0}),
        make_record(1, devices={"GPU-a": 100.0}),
        make_record(2, devices={"GPU-b": 30.0}),
    ]
    assert aggregate_results("exp-1", records).total_energy_j == 130.0


def test_devices_that_overlap_in_part_cannot_be_told_apart() -> None:
    records = [
        make_record(0, devices={"GPU-a": 50.0, "GPU-b": 50.0}),
        make_record(1, devices={"GPU-b": 50.0, "GPU-c": 50.0}),
    ]
    result = aggregate_results("exp-1", records)
    assert result.total_energy_j is None
    assert result.avg_energy_per_token_j is None
    assert result.aggregation is not None
    assert not result.aggregation.gpu_attribution_verified
    assert any(warning.startswith("energy_unavailable: processes 0, 1") for warning in result.measurement_warnings)


def test_joules_of_devices_stand_in_the_order_of_the_boundary_whatever_order_they_were_metered_in() -> None:
    record = make_record(
        devices={"GPU-b": 20.0, "GPU-a": 10.0}, measurement_boundary=MeasurementBoundary(devices=["GPU-a", "GPU-b"])
    )
    result = aggregate_results("exp-1", [record])
    assert result.energy_per_device_j == [10.0, 20.0]
    assert result.multi_gpu is not None
    assert result.multi_gpu.energy_per_gpu_j == [10.0, 20.0]


@pytest.mark.parametrize(
    ("devices", "listed"),
    [({"GPU-a": 100.0, "GPU-b": None}, [100.0, None]), ({"GPU-a": None, "GPU-b": None}, None)],
)
def test_a_board_that_could_not_be_read_keeps_its_place(
    devices: dict[str, float | None], listed: list[float | None] | None
) -> None:
    result = aggregate_results("exp-1", [make_record(devices=devices)])
    assert result.energy_per_device_j == listed
    assert (result.total_energy_j, result.multi_gpu) == (None, None)
    assert flat_row(result)["num_devices"] == (1 if listed else None)


def test_processes_that_do_not_name_their_devices_are_summed_with_a_warning() -> None:
    records = [
        make_record(i, gpu_id=None, energy_per_device_j={}, measurement_boundary=None, devices={"x": 100.0})
        for i in range(2)
    ]
    result = aggregate_results("exp-1", records)
    assert result.total_energy_j == 200.0
    assert result.aggregation is not None
    assert not result.aggregation.gpu_attribution_verified
    assert any(warning.startswith("energy_attribution_unverified") for warning in result.measurement_warnings)


def test_one_unknown_energy_makes_the_sum_unknown_and_keeps_throughput() -> None:
    result = aggregate_results("exp-1", [make_record(0), make_record(1, devices={"GPU-1": None})])
    assert result.total_energy_j is None
    assert result.avg_tokens_per_second == 40.0
    assert result.energy_per_device_j == [100.0, None]
    assert result.energy_by_device_j == {"GPU-0": 100.0, "GPU-1": None}
    assert result.multi_gpu is None


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.1, 1e4), st.floats(0, 5), st.floats(5.5, 20)), min_size=1, max_size=8
    )
)
def test_no_joule_is_counted_twice(processes: list[tuple[int, float, float, float]]) -> None:
    records = [
        make_record(i, devices={f"GPU-{gpu}": energy_j}, start_s=start_s, duration_s=duration_s)
        for i, (gpu, energy_j, start_s, duration_s) in enumerate(processes)
    ]
    result = aggregate_results("exp-1", records)
    largest: dict[int, float] = {}
    for gpu, energy_j, _, _ in processes:
        largest[gpu] = max(largest.get(gpu, 0.0), energy_j)
    assert result.total_energy_j is not None
    assert result.total_energy_j <= sum(largest.values()) * (1 + 1e-12)
    assert result.energy_by_device_j is not None
    assert set(result.energy_by_device_j) == {f"GPU-{gpu}" for gpu in largest}
    assert result.measurement_boundary is not None
    assert result.energy_per_device_j == [result.energy_by_device_j[d] for d in result.measurement_boundary.devices]
    assert result.total_energy_j == pytest.approx(sum(joules or 0.0 for joules in result.energy_per_device_j))
    assert result.total_inference_time_sec >= max(duration_s for *_, duration_s in processes) - 1e-6


def test_processes_that_hardly_overlap_are_reported() -> None:
    result = aggregate_results("exp-1", [make_record(0), make_record(1, start_s=9.0)])
    assert result.aggregation is not None
    assert result.aggregation.overlap_pct == pytest.approx(100 / 19)
    assert not result.aggregation.temporal_overlap_verified
    assert any(warning.startswith("processes_not_concurrent") for warning in result.measurement_warnings)


def test_a_step_of_the_wall_clock_cannot_shorten_the_window() -> None:
    stepped = Timestamps(start=NOON, end=NOON - timedelta(seconds=3600), duration_sec=10.0)
    result = aggregate_results("exp-1", [make_record(0, timestamps=stepped), make_record(1, timestamps=stepped)])
    assert result.total_inference_time_sec == 10.0


def test_a_windowed_measurement_counts_from_its_own_offsets() -> None:
    records = [
        make_record(
            i,
            measurement_methodology="windowed",
            started_at=NOON - timedelta(seconds=60),
            steady_state_window=(62.0, 68.0 + i),
            duration_s=6.0 + i,
        )
        for i in range(2)
    ]
    result = aggregate_results("exp-1", records)
    assert result.total_inference_time_sec == pytest.approx(7.0)
    assert result.steady_state_window == pytest.approx((62.0, 69.0))


def test_latencies_of_all_processes_are_pooled() -> None:
    records = [
        make_record(0, requests=RequestTimings(input_tokens=[1] * 9, output_tokens=[1] * 9, e2e_ms=[10.0] * 9)),
        make_record(1, requests=RequestTimings(input_tokens=[1], output_tokens=[1], e2e_ms=[1000.0])),
    ]
    result = aggregate_results("exp-1", records)
    assert result.latency_stats is not None
    assert result.latency_stats.e2e_ms is not None
    assert result.latency_stats.e2e_ms.mean == pytest.approx(109.0)
    assert result.num_requests == 10
    assert all(record.requests is None for record in result.process_results)


def test_gains_add_linearly_and_the_rest_in_quadrature() -> None:
    records = [
        make_record(
            i,
            uncertainty=combine_budget(
                [
                    BudgetComponent(name="sensor gain", kind="gain", half_width_j=5.0),
                    BudgetComponent(name="sampling", kind="sampling", half_width_j=size),
                ],
                200,
            ),
        )
        for i, size in enumerate((3.0, 4.0))
    ]
    uncertainty = aggregate_results("exp-1", records).uncertainty
    assert uncertainty is not None
    assert uncertainty.comparative_j == 5.0
    assert uncertainty.absolute_j == pytest.approx((10.0**2 + 5.0**2) ** 0.5)
    assert uncertainty.absolute_per_token_j == pytest.approx(uncertainty.absolute_j / 400)
    assert [line.relative_pct for line in uncertainty.budget] == [5.0, 2.5]


def test_breakdowns_sum_and_keep_the_worst_baseline() -> None:
    def breakdown(method: str, age: float | None) -> EnergyBreakdown:
        return EnergyBreakdown(
            raw_j=100.0,
            adjusted_j=40.0,
            baseline_power_w=6.0,
            baseline_method=method,
            baseline_cache_age_sec=age,
            method="hardware_counter",
            scope="gpu",
            second_method="power_integration",
            second_method_j=102.0,
            disagreement_pct=2.0,
            cpu_j=30.0 if age is None else 31.0,
        )

    records = [
        make_record(0, energy_breakdown=breakdown("fresh", None), baseline_power_w=6.0),
        make_record(1, energy_breakdown=breakdown("cached", 120.0), baseline_power_w=6.0),
    ]
    result = aggregate_results("exp-1", records)
    found = result.energy_breakdown
    assert found is not None
    assert (found.raw_j, found.adjusted_j, found.baseline_power_w) == (200.0, 80.0, 12.0)
    assert (found.baseline_method, found.baseline_cache_age_sec) == ("cached", 120.0)
    assert (found.second_method_j, found.disagreement_pct) == (204.0, 2.0)
    assert found.cpu_j == 31.0  # one machine's packages, seen by both
    assert (found.method, found.scope) == ("hardware_counter", "gpu")
    assert result.baseline_power_w == 12.0
    assert result.energy_adjusted_j == 80.0


def test_energy_above_idle_follows_from_baseline_and_window_where_no_breakdown_says_it() -> None:
    assert aggregate_results("exp-1", [make_record(baseline_power_w=12.0)]).energy_adjusted_j == -20.0


def test_energy_above_idle_of_unlike_windows_follows_from_the_figures_beside_it_and_says_what_it_lacks() -> None:
    records = [
        make_record(0, devices={"GPU-0": 4000.0}, duration_s=10.0, baseline_power_w=100.0),
        make_record(1, devices={"GPU-1": 2400.0}, duration_s=6.0, baseline_power_w=100.0),
    ]
    result = aggregate_results("exp-1", records)
    assert result.energy_adjusted_j == 6400.0 - 200.0 * 10.0 == 4400.0
    (warning,) = result.measurement_warnings
    assert warning.startswith("processes_not_concurrent: ")
    assert "process 1: 6.0 s of 10.0 s" in warning
    assert "lower bound" in warning


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.0, 5.0), st.floats(0.1, 20.0), st.floats(1.0, 1e4)),
        min_size=1,
        max_size=6,
    )
)
def test_energy_above_idle_is_always_raw_energy_less_idle_power_over_the_window(
    processes: list[tuple[int, float, float, float]],
) -> None:
    records = [
        make_record(
            index,
            devices={f"GPU-{gpu}": energy_j},
            start_s=start_s,
            duration_s=duration_s,
            baseline_power_w=8.0,
            energy_breakdown=EnergyBreakdown(raw_j=energy_j, adjusted_j=0.0, baseline_power_w=8.0),
        )
        for index, (gpu, start_s, duration_s, energy_j) in enumerate(processes)
    ]
    result = aggregate_results("exp-1", records)
    assert result.total_energy_j is not None
    assert result.baseline_power_w is not None
    formula_j = result.total_energy_j - result.baseline_power_w * result.total_inference_time_sec
    assert result.energy_adjusted_j == pytest.approx(formula_j)
    assert result.energy_breakdown is not None
    if len(records) > 1:
        assert result.energy_breakdown.adjusted_j == result.energy_adjusted_j
    covered = min(record.energy_metrics.duration_sec for record in attribute_energy(records).counted)
    is_said = any("lower bound" in warning for warning in result.measurement_warnings)
    assert is_said == (covered < 0.99 * result.total_inference_time_sec)


def test_audits_are_compared_again_after_summing() -> None:
    audit = EnergyAudit(counter_j=100.0, integral_j=101.0, disagreement_pct=1.0, bound_pct=2.0, agrees=True)
    found = aggregate_results("exp-1", [make_record(i, energy_audit=audit) for i in range(2)]).energy_audit
    assert found is not None
    assert (found.counter_j, found.integral_j, found.disagreement_pct, found.agrees) == (200.0, 202.0, 1.0, True)


@pytest.mark.parametrize("fused_j", [100.0, None])  # none: a board of several, or all, had no step to be found
def test_a_sum_of_audits_compares_what_each_compared_the_counter_sharpened_at_its_edges(fused_j: float | None) -> None:
    audit = EnergyAudit(
        counter_j=95.0, fused_j=fused_j, integral_j=100.5, disagreement_pct=0.5, bound_pct=1.1, agrees=True
    )
    found = aggregate_results("exp-1", [make_record(i, energy_audit=audit) for i in range(2)]).energy_audit
    assert found is not None
    assert (found.disagreement_pct, found.agrees) == (pytest.approx(0.5), True)


def test_power_samples_of_0_w_can_be_summed_too() -> None:
    audit = EnergyAudit(counter_j=95.0, integral_j=0.0, disagreement_pct=-100.0, bound_pct=1.1, agrees=False)
    found = aggregate_results("exp-1", [make_record(i, energy_audit=audit) for i in range(2)]).energy_audit
    assert found is not None
    assert (found.disagreement_pct, found.agrees) == (-100.0, False)


def test_phases_add_up_on_separate_gpus_and_lose_their_energy_on_a_shared_one() -> None:
    phases = PhaseBreakdown(
        prefill=PhaseMetrics(time_sec=2.0, tokens=100, energy_j=20.0),
        decode=PhaseMetrics(time_sec=8.0, tokens=200, energy_j=79.0),
        residual_j=1.0,
    )
    apart = aggregate_results("exp-1", [make_record(i, phases=phases) for i in range(2)]).phases
    assert apart is not None
    assert apart.prefill == PhaseMetrics(time_sec=4.0, tokens=200, energy_j=40.0)
    assert apart.residual_j == 2.0
    shared = aggregate_results(
        "exp-1", [make_record(i, phases=phases, devices={"GPU-a": 100.0}) for i in range(2)]
    ).phases
    assert shared is not None
    assert shared.decode == PhaseMetrics(time_sec=16.0, tokens=400, energy_j=None)
    assert shared.reason is not None
    assert "share a device" in shared.reason


def test_memory_operations_throttling_and_warm_up_are_merged() -> None:
    records = [
        make_record(
            i,
            compute_metrics=ComputeMetrics(flops_total=1e9, peak_memory_mb=1000.0),
            flops=FlopsResult(value=1e9, method="palm_formula", confidence=confidence, precision="bf16"),
            thermal_throttle=ThermalThrottleInfo(
                detected=bool(i), power=bool(i), throttle_duration_sec=float(i), max_temperature_c=60.0 + i
            ),
            warmup_result=WarmupResult(
                converged=not i, final_cv=0.01 * (i + 1), iterations_completed=5, target_cv=0.05, max_prompts=20
            ),
            warmup_excluded_samples=5,
            truncated_prompts=i,
        )
        for i, confidence in enumerate(("high", "medium"))
    ]
    result = aggregate_results("exp-1", records)
    assert result.total_flops == 2e9
    assert result.flops is not None
    assert (result.flops.value, result.flops.confidence) == (2e9, "medium")
    assert result.peak_memory_mb == 2000.0
    assert result.thermal_throttle is not None
    assert (result.thermal_throttle.power, result.thermal_throttle.max_temperature_c) == (True, 61.0)
    assert result.warmup_result is not None
    assert (result.warmup_result.converged, result.warmup_result.final_cv) == (False, 0.02)
    assert (result.warmup_excluded_samples, result.truncated_prompts) == (10, 1)


def test_emissions_and_price_come_from_the_users_factors_or_not_at_all() -> None:
    factors = EmissionFactors(carbon_intensity_gco2_kwh=360.0, pue=2.0)
    result = aggregate_results("exp-1", [make_record(devices={"GPU-a": 3.6e6})], factors=factors)
    assert (result.co2_g, result.carbon_intensity_gco2_kwh, result.pue) == (720.0, 360.0, 2.0)
    assert (result.cost, result.currency) == (None, None)
    assert aggregate_results("exp-1", [make_record()]).co2_g is None


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([], "no process record"),
        ([make_record(0), make_record(0)], "more than one record of process 0"),
        ([make_record(0), make_record(2)], "no record of process 1"),
        ([make_record(0), make_record(1, experiment_id="other")], "Records of other"),
        ([make_record(0), make_record(1, measurement_config_hash="f" * 16)], "different configurations"),
        ([make_record(0, output_tokens=0)], "no output token"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(records: list[RawProcessResult], complaint: str) -> None:
    with pytest.raises(ExperimentError, match=complaint):
        aggregate_results("exp-1", records)


def test_a_complete_set_passes_all_four_checks(tmp_path: Path) -> None:
    for index in (1, 0, 2):
        write_process_result(make_record(index), tmp_path)
    records = read_process_results("exp-1", tmp_path)
    assert [record.process_index for record in records] == [0, 1, 2]
    report = validate_process_completeness("exp-1", records, 3, tmp_path)
    assert report.is_complete
    assert report.error_message is None
    assert aggregate_results("exp-1", records, completeness=report).output_tokens == 600


def test_a_record_without_its_marker_is_not_whole(tmp_path: Path) -> None:
    for index in range(2):
        write_process_result(make_record(index), tmp_path)
    (tmp_path / "exp-1" / "process_1.done").unlink()
    records = read_process_results("exp-1", tmp_path)
    report = validate_process_completeness("exp-1", records, 2, tmp_path)
    assert not report.is_complete
    assert report.missing_indices == [1]
    assert report.error_message == "Experiment exp-1 is incomplete: no completion marker of process 1."
    with pytest.raises(ExperimentError, match="no completion marker of process 1"):
        aggregate_results("exp-1", records, completeness=report)
    assert validate_process_completeness("exp-1", records, 2, tmp_path, handed_over={1}).is_complete


@pytest.mark.parametrize(
    ("indices", "missing", "duplicates", "complaint"),
    [
        ([0, 1], [2], [], "2 records for 3 processes; no record of process 2"),
        ([0, 2], [1], [], "no record of process 1"),
        ([0, 1, 1], [2], [1], "more than one record of process 1"),
        ([0, 1, 2, 3], [], [], "4 records for 3 processes; a record of process 3, which was never started"),
        ([], [0, 1, 2], [], "no record of process 0, 1, 2"),
    ],
)
def test_what_is_missing_or_too_much_is_named(
    indices: list[int], missing: list[int], duplicates: list[int], complaint: str
) -> None:
    report = validate_process_completeness("exp-1", [make_record(index) for index in indices], 3)
    assert not report.is_complete
    assert report.missing_indices == missing
    assert report.duplicate_indices == duplicates
    assert report.error_message is not None
    assert complaint in report.error_message


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 6))
def test_a_set_is_complete_exactly_when_it_is_every_index_once(indices: list[int], expected: int) -> None:
    report = validate_process_completeness("exp-1", [make_record(index) for index in indices], expected)
    assert report.is_complete == (sorted(indices) == list(range(expected)))


def test_a_record_survives_its_file_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    record = make_record(requests=RequestTimings(input_tokens=[1], output_tokens=[3], e2e_ms=[3.0], itl_ms=[1.0, 1.5]))
    path = write_process_result(record, tmp_path)
    assert read_process_results("exp-1", tmp_path) == [record]
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PersistenceError, match=r"process_0\.json is not valid JSON"):
        read_process_results("exp-1", tmp_path)
    assert read_process_results("never ran", tmp_path) == []
