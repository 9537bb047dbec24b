"""From the records of the processes to the one result of the experiment; also with one process, the normal case.

RawProcessResult 0 ─┐  window      first start to last end, for throughput and idle power alike
RawProcessResult 1 ─┼─ energy      every device once          (attribution.py)
...                ─┘  latency     all requests pooled, then statistics
                       the rest    each figure as it declares     (domain/base.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import Field

from llenergymeasure.domain.base import Record, as_utc, complete, distinct, empty, merge_figures, optional
from llenergymeasure.domain.energy import (
    NVML_REPRODUCIBILITY_NOTE,
    EmissionFactors,
    energies_in_order,
    merge_breakdowns,
    merge_uncertainties,
)
from llenergymeasure.domain.environment import AggregationMetadata, MeasurementBoundary
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult
from llenergymeasure.domain.latency import pool_request_energy
from llenergymeasure.domain.metrics import MultiGPUMetrics, extended_metrics, merge_phases, ratio
from llenergymeasure.domain.readable import duration
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ExperimentError
from llenergymeasure.results.attribution import Attribution, CommonWindow, attribute_energy, common_window, energy_gaps
from llenergymeasure.results.process_records import marked_indices

_WITHOUT_BULK: Final[dict[str, object]] = {"requests": None, "environment": None, "effective_config": {}}
"""Left out of the records in a result: what it holds already, and what grows with the number of tokens."""


class CompletenessReport(Record):
    """Whether every process of an experiment left its whole record."""

    expected_processes: int = Field(description="Processes that should have taken part.")
    is_complete: bool = Field(description="Whether every check passed.")
    missing_indices: list[int] = empty(list, "Processes without a whole record.")
    duplicate_indices: list[int] = empty(list, "Processes with more than one record.")
    error_message: str | None = optional("What is wrong, in one sentence; null: nothing.")


def validate_process_completeness(
    experiment_id: str,
    raw_results: Sequence[RawProcessResult],
    expected_processes: int,
    state_dir: Path | None = None,
    handed_over: Collection[int] = (),
) -> CompletenessReport:
    """Check that nothing is missing before anything is summed.

    Four checks: as many records as processes; their indices run from 0 without a gap; no index twice; each has its
    marker file, which is written after the record.

    Args:
        state_dir: The `.state` directory the records were left in; `None` when they never left this process, and there
            is no marker to look for.
        handed_over: Indices of processes that gave their record directly, without a file, and so without a marker.
    """
    counts = Counter(record.process_index for record in raw_results)
    expected = set(range(expected_processes))
    duplicates = sorted(index for index, count in counts.items() if count > 1)
    absent = sorted(expected - counts.keys())
    strangers = sorted(counts.keys() - expected)
    marked = counts.keys() if state_dir is None else {*marked_indices(experiment_id, state_dir), *handed_over}
    unmarked = sorted(counts.keys() - marked)
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
    return CompletenessReport(
        expected_processes=expected_processes,
        is_complete=not problems,
        missing_indices=sorted({*absent, *unmarked}),
        duplicate_indices=duplicates,
        error_message=f"Experiment {experiment_id} is incomplete: {'; '.join(problems)}." if problems else None,
    )


def aggregate_results(
    experiment_id: str,
    raw_results: Sequence[RawProcessResult],
    *,
    completeness: CompletenessReport | None = None,
    factors: EmissionFactors | None = None,
) -> ExperimentResult:
    """Put the records of all processes together.

    Args:
        raw_results: One record per process, in any order.
        completeness: Outcome of `validate_process_completeness`; by default as many processes are expected as there
            are records.
        factors: The user's, for emissions and cost; without them there is neither.

    Raises:
        ExperimentError: Records are missing, belong to another experiment or configuration, or hold no output token.
    """
    records = sorted(raw_results, key=lambda record: record.process_index)
    completeness = completeness or validate_process_completeness(experiment_id, records, len(records))
    _refuse_what_cannot_be_summed(experiment_id, records, completeness)
    window = common_window(records)
    attribution = attribute_energy(records)
    counted = attribution.counted
    metadata = _metadata(records, completeness, window, attribution)
    figures = merge_figures(ExperimentResult, records, counted)
    output_tokens: int = figures["output_tokens"]
    adjusted_j = _above_idle(figures["total_energy_j"], figures["baseline_power_w"], window)
    boundary: MeasurementBoundary | None = figures["measurement_boundary"]
    path = records[0].timeseries_path
    measured = ExperimentResult(
        experiment_id=experiment_id,
        measurement_config_hash=records[0].measurement_config_hash or "",
        steady_state_window=_steady_state_window(records, window),
        total_tokens=figures["input_tokens"] + output_tokens,
        total_inference_time_sec=window.length_sec,
        avg_tokens_per_second=output_tokens / window.length_sec,
        avg_energy_per_token_j=ratio(figures["total_energy_j"], output_tokens),
        energy_per_device_j=energies_in_order(
            figures["energy_by_device_j"], boundary.devices if boundary is not None else ()
        ),
        energy_adjusted_j=adjusted_j,
        energy_breakdown=merge_breakdowns(
            [record.energy_breakdown for record in counted], [record.energy_breakdown for record in records], adjusted_j
        ),
        measurement_warnings=distinct([*(record.warnings for record in records), metadata.warnings]),
        reproducibility_notes=records[0].reproducibility_notes or NVML_REPRODUCIBILITY_NOTE,
        timeseries=Path(path).name if path else None,
        start_time=_began_at(records),
        end_time=max((record.ended_at or record.timestamps.end for record in records), key=as_utc),
        process_results=[record.model_copy(update=_WITHOUT_BULK) for record in records],
        aggregation=metadata,
        phases=merge_phases([record.phases for record in records], bool(attribution.shared_devices)),
        request_energy=pool_request_energy([record.requests for record in records], bool(attribution.shared_devices)),
        **figures,
    )
    uncertainty = merge_uncertainties(
        [record.uncertainty for record in counted], measured.total_energy_j, adjusted_j, output_tokens
    )
    derived = {
        "multi_gpu": _multi_gpu(measured),
        "extended_metrics": extended_metrics(measured),
        "uncertainty": uncertainty,
        **(factors.emissions_and_cost(measured.total_energy_j) if factors is not None else {}),
    }
    return measured.model_copy(update=derived)


def _above_idle(energy_j: float | None, idle_w: float | None, window: CommonWindow) -> float | None:
    return None if energy_j is None or idle_w is None else energy_j - idle_w * window.length_sec


def _multi_gpu(result: ExperimentResult) -> MultiGPUMetrics | None:
    per_device_j = complete(result.energy_per_device_j or ())
    if per_device_j is None or len(per_device_j) < 2 or result.total_energy_j is None:
        return None
    return MultiGPUMetrics(
        num_gpus=len(per_device_j),
        energy_per_gpu_j=per_device_j,
        energy_total_j=result.total_energy_j,
        energy_per_output_token_j=result.avg_energy_per_token_j,
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
    gaps = energy_gaps(attribution.counted, window)
    if gaps or not window.side_by_side:
        text = (
            f"all processes ran at once for {window.overlap_pct:.0f} % of the {duration(window.length_sec)} from first "
            "start to last end, over which throughput and idle power are counted"
        )
        if gaps:
            text += f"; energy was metered for less of it ({gaps}), so it is a lower bound, above idle even more so"
        warnings.append(MeasurementWarning(WarningCode.PROCESSES_NOT_CONCURRENT, text))
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


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
