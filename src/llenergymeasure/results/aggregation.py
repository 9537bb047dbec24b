"""From the records of the processes to the one result of the experiment; also with one process, the normal case.

RawProcessResult 0 ─┐  energy      every device once          (attribution.py)
RawProcessResult 1 ─┼─ throughput  tokens of all over first start to last end
...                ─┘  latency     all requests pooled, then statistics
                       the rest    merged record by record    (merging.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from llenergymeasure.domain.base import Record, as_utc
from llenergymeasure.domain.emissions import FootprintFactors
from llenergymeasure.domain.experiment import (
    NVML_REPRODUCIBILITY_NOTE,
    AggregationMetadata,
    ExperimentResult,
    RawProcessResult,
)
from llenergymeasure.domain.latency import pool_latencies
from llenergymeasure.domain.metrics import ExtendedEfficiencyMetrics, MultiGPUMetrics
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results import merging
from llenergymeasure.results.attribution import Attribution, CommonWindow, attribute_energy, common_window
from llenergymeasure.results.process_files import marked_indices


class CompletenessReport(Record):
    """Whether every process of an experiment left its whole record."""

    expected_processes: int = Field(description="Processes that should have taken part.")
    is_complete: bool = Field(description="Whether every check passed.")
    missing_indices: list[int] = Field(default_factory=list, description="Processes without a whole record.")
    duplicate_indices: list[int] = Field(default_factory=list, description="Processes with more than one record.")
    error_message: str | None = Field(default=None, description="What is wrong, in one sentence; null: nothing.")


def validate_process_completeness(
    experiment_id: str,
    raw_results: Sequence[RawProcessResult],
    expected_processes: int,
    state_dir: Path | None = None,
) -> CompletenessReport:
    """Check that nothing is missing before anything is summed.

    Four checks: as many records as processes; their indices run from 0 without a gap; no index twice; each has its
    marker file, which is written after the record.

    Args:
        experiment_id: Identity of the measurement.
        raw_results: The records that were found.
        expected_processes: How many processes were started.
        state_dir: The `.state` directory the records were left in; `None` when they never left this process, and there
            is no marker to look for.
    """
    counts = Counter(record.process_index for record in raw_results)
    expected = set(range(expected_processes))
    duplicates = sorted(index for index, count in counts.items() if count > 1)
    absent = sorted(expected - counts.keys())
    strangers = sorted(counts.keys() - expected)
    unmarked = [] if state_dir is None else sorted(counts.keys() - marked_indices(experiment_id, state_dir))
    problems = [
        text
        for found, text in (
            (len(raw_results) != expected_processes, f"{len(raw_results)} records for {expected_processes} processes"),
            (absent, f"no record of process {_listed(absent)}"),
            (strangers, f"a record of process {_listed(strangers)}, which was never started"),
            (duplicates, f"more than one record of process {_listed(duplicates)}"),
            (unmarked, f"no completion marker of process {_listed(unmarked)}"),
        )
        if found
    ]
    message = f"Experiment {experiment_id} is incomplete: {'; '.join(problems)}." if problems else None
    return CompletenessReport(
        expected_processes=expected_processes,
        is_complete=not problems,
        missing_indices=sorted({*absent, *unmarked}),
        duplicate_indices=duplicates,
        error_message=message,
    )


def aggregate_results(
    experiment_id: str,
    raw_results: Sequence[RawProcessResult],
    *,
    completeness: CompletenessReport | None = None,
    footprint: FootprintFactors | None = None,
) -> ExperimentResult:
    """Put the records of all processes together.

    Args:
        experiment_id: Identity of the measurement.
        raw_results: One record per process, in any order.
        completeness: Outcome of `validate_process_completeness`; by default as many processes are expected as there
            are records.
        footprint: The user's factors for emissions and price; without them there is neither.

    Raises:
        ExperimentError: Records are missing, belong to another experiment or configuration, or hold no output token.
    """
    records = sorted(raw_results, key=lambda record: record.process_index)
    completeness = completeness or validate_process_completeness(experiment_id, records, len(records))
    _refuse_what_cannot_be_summed(experiment_id, records, completeness)
    window = common_window(records)
    attribution = attribute_energy(records)
    totals = _totals(records, attribution.counted or (), window)
    metadata = _metadata(records, completeness, window, attribution)
    warnings = [*(warning for record in records for warning in record.warnings), *metadata.warnings]
    return ExperimentResult(
        experiment_id=experiment_id,
        measurement_warnings=list(dict.fromkeys(warnings)),
        aggregation=metadata,
        process_results=[_without_bulk(record) for record in records] if len(records) > 1 else [],
        steady_state_window=_steady_state_window(records, window),
        start_time=_began_at(records),
        end_time=max((record.ended_at or record.timestamps.end for record in records), key=as_utc),
        **_shared_by_all(records[0]),
        **_headline(totals),
        **_energy_detail(records, attribution, totals),
        **_merged(records),
        **_footprint(footprint, totals.energy_j),
    )


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over processes, each once; `None` where a part is unknown."""

    window_sec: float
    input_tokens: int
    output_tokens: int
    requests: int | None
    energy_j: float | None
    adjusted_j: float | None
    flops: float | None


def _totals(records: Sequence[RawProcessResult], counted: Sequence[RawProcessResult], window: CommonWindow) -> _Totals:
    return _Totals(
        window_sec=window.length_sec,
        input_tokens=sum(record.inference_metrics.input_tokens for record in records),
        output_tokens=sum(record.inference_metrics.output_tokens for record in records),
        requests=_sum_counts([record.inference_metrics.num_requests for record in records]),
        energy_j=merging.sum_known(record.energy_metrics.total_energy_j for record in counted),
        adjusted_j=merging.sum_known(merging.adjusted_energy(record) for record in counted),
        flops=merging.sum_known(record.compute_metrics.flops_total for record in records),
    )


def _headline(totals: _Totals) -> dict[str, Any]:
    energy_j, tokens = totals.energy_j, totals.input_tokens + totals.output_tokens
    return {
        "total_tokens": tokens,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "num_requests": totals.requests,
        "total_inference_time_sec": totals.window_sec,
        "avg_tokens_per_second": totals.output_tokens / totals.window_sec,
        "total_energy_j": energy_j,
        "energy_adjusted_j": totals.adjusted_j,
        "avg_energy_per_token_j": _ratio(energy_j, totals.output_tokens),
        "total_flops": totals.flops,
        "extended_metrics": ExtendedEfficiencyMetrics(
            energy_adjusted_per_token_j=_ratio(totals.adjusted_j, totals.output_tokens),
            energy_per_request_j=_ratio(energy_j, totals.requests),
            total_tokens_per_second=tokens / totals.window_sec,
            requests_per_second=_ratio(totals.requests, totals.window_sec),
            avg_power_w=_ratio(energy_j, totals.window_sec),
            flops_per_joule=_ratio(totals.flops, energy_j),
        ),
    }


def _energy_detail(records: Sequence[RawProcessResult], attribution: Attribution, totals: _Totals) -> dict[str, Any]:
    counted = attribution.counted or ()
    per_device_j = {
        device: energy_j
        for record in counted
        for device, energy_j in record.energy_per_device_j.items()
        if energy_j is not None
    }
    return {
        "baseline_power_w": merging.sum_known(record.baseline_power_w for record in counted),
        "idle_resident_power_w": merging.sum_known(record.idle_resident_power_w for record in counted),
        "energy_per_device_j": per_device_j or None,
        "multi_gpu": _multi_gpu(per_device_j, totals),
        "energy_breakdown": merging.merge_breakdowns(counted, records),
        "energy_audit": merging.merge_audits([record.energy_audit for record in counted]),
        "uncertainty": merging.merge_uncertainties(
            [record.uncertainty for record in counted], totals.energy_j, totals.adjusted_j, totals.output_tokens
        ),
        "uncertainty_per_device": {
            device: uncertainty for record in counted for device, uncertainty in record.uncertainty_per_device.items()
        },
        "phases": merging.merge_phases([record.phases for record in records], bool(attribution.shared_devices)),
    }


def _merged(records: Sequence[RawProcessResult]) -> dict[str, Any]:
    compute = [record.compute_metrics for record in records]
    return {
        "environment_snapshot": merging.merge_environments([record.environment for record in records]),
        "measurement_boundary": merging.merge_boundaries([record.measurement_boundary for record in records]),
        "thermal_throttle": merging.merge_throttling([record.thermal_throttle for record in records]),
        "warmup_result": merging.merge_warmups([record.warmup_result for record in records]),
        "warmup_excluded_samples": _sum_counts([record.warmup_excluded_samples for record in records]),
        "truncated_prompts": _sum_counts([record.truncated_prompts for record in records]),
        "latency_stats": pool_latencies(record.requests for record in records if record.requests is not None),
        "flops": merging.merge_flops([record.flops for record in records]),
        "peak_memory_mb": merging.sum_known(part.peak_memory_mb for part in compute),
        "model_memory_mb": merging.sum_known(part.model_memory_mb for part in compute),
        "kv_cache_mb": merging.sum_known(record.kv_cache_mb for record in records),
    }


def _shared_by_all(record: RawProcessResult) -> dict[str, Any]:
    """What every process of an experiment has in common, from any of them."""
    return {
        "measurement_config_hash": record.measurement_config_hash or "",
        "backend": record.backend,
        "backend_version": record.backend_version,
        "measurement_methodology": record.measurement_methodology,
        "reproducibility_notes": record.reproducibility_notes or NVML_REPRODUCIBILITY_NOTE,
        "timeseries": Path(record.timeseries_path).name if record.timeseries_path else None,
        "effective_config": record.effective_config,
        "model_name": record.model_name,
        "model_revision": record.model_revision,
        "config_name": record.config_name,
        "dataset": record.dataset,
    }


def _footprint(factors: FootprintFactors | None, energy_j: float | None) -> dict[str, Any]:
    if factors is None:
        return {}
    co2_g, cost = factors.co2_g(energy_j), factors.cost(energy_j)
    return {
        "co2_g": co2_g,
        "carbon_intensity_gco2_kwh": factors.carbon_intensity_gco2_kwh,
        "cost": cost,
        "electricity_price_kwh": factors.electricity_price_kwh,
        "currency": None if factors.electricity_price_kwh is None else factors.currency,
        "pue": None if co2_g is None and cost is None else factors.pue,
    }


def _multi_gpu(per_device_j: Mapping[str, float], totals: _Totals) -> MultiGPUMetrics | None:
    if len(per_device_j) < 2 or totals.energy_j is None:
        return None
    return MultiGPUMetrics(
        num_gpus=len(per_device_j),
        energy_per_gpu_j=list(per_device_j.values()),
        energy_total_j=totals.energy_j,
        energy_per_output_token_j=totals.energy_j / totals.output_tokens,
    )


def _refuse_what_cannot_be_summed(
    experiment_id: str, records: Sequence[RawProcessResult], completeness: CompletenessReport
) -> None:
    if not records:
        raise ExperimentError(f"Experiment {experiment_id} has no process record: nothing was measured.")
    if not completeness.is_complete:
        raise ExperimentError(str(completeness.error_message))
    if strangers := sorted({r.experiment_id for r in records} - {experiment_id}):
        raise ExperimentError(f"Records of {', '.join(strangers)} are among those of experiment {experiment_id}.")
    if len({record.measurement_config_hash for record in records}) > 1:
        raise ExperimentError(f"The processes of experiment {experiment_id} ran different configurations.")
    if not any(record.inference_metrics.output_tokens for record in records):
        raise ExperimentError(f"Experiment {experiment_id} produced no output token, so there is nothing to measure.")
    if not any(record.inference_metrics.inference_time_sec for record in records):
        raise ExperimentError(f"The measurement window of experiment {experiment_id} has no length.")


def _metadata(
    records: Sequence[RawProcessResult],
    completeness: CompletenessReport,
    window: CommonWindow,
    attribution: Attribution,
) -> AggregationMetadata:
    warnings = list(attribution.warnings)
    if not window.side_by_side:
        warnings.append(
            MeasurementWarning(
                WarningCode.PROCESSES_NOT_CONCURRENT,
                f"all processes ran at once for only {window.overlap_pct:.0f} % of the {window.length_sec:.1f} s from "
                "first start to last end; throughput is over that whole time",
            )
        )
    return AggregationMetadata(
        num_processes=len(records),
        expected_processes=completeness.expected_processes,
        complete=completeness.is_complete,
        completeness_error=completeness.error_message,
        gpu_attribution_verified=attribution.verified,
        shared_devices=attribution.shared_devices,
        temporal_overlap_verified=window.side_by_side,
        overlap_pct=window.overlap_pct,
        common_window_sec=window.length_sec,
        warnings=[str(warning) for warning in warnings],
    )


def _steady_state_window(records: Sequence[RawProcessResult], window: CommonWindow) -> tuple[float, float] | None:
    if len(records) == 1 or any(record.steady_state_window is None for record in records):
        return records[0].steady_state_window
    start_sec = (window.start - as_utc(_began_at(records))).total_seconds()
    return start_sec, start_sec + window.length_sec


def _began_at(records: Sequence[RawProcessResult]) -> datetime:
    return min((record.started_at or record.timestamps.start for record in records), key=as_utc)


def _without_bulk(record: RawProcessResult) -> RawProcessResult:
    """A record without what the result holds already, or what grows with the number of tokens."""
    return record.model_copy(update={"requests": None, "environment": None, "effective_config": {}})


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def _sum_counts(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
