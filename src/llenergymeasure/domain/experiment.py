"""The record of one process and the result of one experiment.

RawProcessResult (one per process, internal) --aggregate--> ExperimentResult (what users see and keep)
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, Field

from llenergymeasure.constants import RESULT_SCHEMA_VERSION, SCHEMA_VERSION
from llenergymeasure.domain.base import EnergyScope, JsonDict, Record, as_utc
from llenergymeasure.domain.energy import EnergyAudit, EnergyBreakdown, EnergyUncertainty
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.latency import LatencyStatistics, RequestTimings
from llenergymeasure.domain.metrics import (
    ComputeMetrics,
    EnergyMetrics,
    ExtendedEfficiencyMetrics,
    FlopsResult,
    InferenceMetrics,
    MultiGPUMetrics,
    PhaseBreakdown,
    ThermalThrottleInfo,
    WarmupResult,
)
from llenergymeasure.domain.study import StudyResult, StudySummary  # part of this module's names, kept beside it

__all__ = [
    "NVML_REPRODUCIBILITY_NOTE",
    "AggregatedResult",
    "AggregationMetadata",
    "DatasetInfo",
    "ExperimentResult",
    "MeasurementBoundary",
    "Methodology",
    "RawProcessResult",
    "StudyResult",
    "StudySummary",
    "Timestamps",
    "compute_measurement_config_hash",
]

Methodology = Literal["total", "steady_state", "windowed"]
"""Warm-up off; warm-up run and excluded; only part of the generation counted."""

NVML_REPRODUCIBILITY_NOTE: Final = (
    "Energy measured via NVML. Accuracy ±5 %; it varies with thermal state and system load. "
    "The same measurement_config_hash means the same workload, not the same joules."
)


class Timestamps(Record):
    """A stretch of time."""

    start: datetime = Field(description="Start on the wall clock (UTC).")
    end: datetime = Field(description="End on the wall clock (UTC).")
    duration_sec: float = Field(ge=0, description="Length in seconds, on a monotonic clock.")


class DatasetInfo(Record):
    """Which prompts were used."""

    name: str = Field(description="Name or path as configured.")
    sha256: str | None = Field(default=None, description="SHA-256 of the prompts; null: not known.")
    prompt_count: int = Field(ge=0, description="Prompts used in the window.")
    revision: str | None = Field(default=None, description="Revision of a data set from the Hub.")


class MeasurementBoundary(Record):
    """What the energy of the window includes, in space and in time."""

    devices: list[str] = Field(description="Metered devices: GPU UUIDs, or `cpu`.")
    device_names: list[str] = Field(default_factory=list, description="Their marketing names, in the same order.")
    scope: EnergyScope | None = Field(default=None, description="What of each device is metered; null: nothing.")
    includes: list[str] = Field(default_factory=list, description="Work inside the window.")
    excludes: list[str] = Field(default_factory=list, description="Work outside the window.")


class RawProcessResult(Record):
    """Everything one process knows about its measurement; internal, kept under `.state/` where several take part."""

    schema_version: str = Field(default=SCHEMA_VERSION, description="Schema of this internal record.")
    experiment_id: str = Field(description="Experiment this process belongs to.")
    process_index: int = Field(ge=0, description="Index among the experiment's processes.")
    gpu_id: int | None = Field(description="Index of the process's (first) GPU; null on the CPU.")
    config_name: str = Field(description="Short name of the configuration, for people.")
    model_name: str = Field(description="Model as configured.")
    timestamps: Timestamps = Field(description="The measurement window.")
    inference_metrics: InferenceMetrics = Field(description="Tokens and time of the window.")
    energy_metrics: EnergyMetrics = Field(description="Energy of the window.")
    compute_metrics: ComputeMetrics = Field(description="Arithmetic and memory of the window.")

    measurement_config_hash: str | None = Field(default=None, description="Hash of the measured configuration.")
    backend: str = Field(default="pytorch", description="Inference engine.")
    backend_version: str | None = Field(default=None, description="Version of the inference engine.")
    effective_config: JsonDict = Field(default_factory=dict, description="Resolved config, engine defaults filled in.")
    measurement_methodology: Methodology = Field(default="total", description="What part of the run the window is.")
    steady_state_window: tuple[float, float] | None = Field(
        default=None, description="Start and end of the window, in seconds since the experiment began."
    )
    started_at: datetime | None = Field(default=None, description="When the experiment began (UTC), loading included.")
    ended_at: datetime | None = Field(default=None, description="When the experiment ended (UTC).")
    environment: EnvironmentSnapshot | None = Field(default=None, description="Machine and software.")
    dataset: DatasetInfo | None = Field(default=None, description="The prompts.")
    model_revision: str | None = Field(default=None, description="Commit of the loaded weights.")
    truncated_prompts: int | None = Field(default=None, ge=0, description="Prompts cut to the input limit.")
    requests: RequestTimings | None = Field(default=None, description="Per-request tokens and latencies.")

    energy_per_device_j: dict[str, float | None] = Field(
        default_factory=dict, description="Joules by device UUID (or `cpu`); null: that device could not be read."
    )
    energy_breakdown: EnergyBreakdown | None = Field(default=None, description="Raw and adjusted energy.")
    energy_audit: EnergyAudit | None = Field(default=None, description="Counter against integral.")
    uncertainty: EnergyUncertainty | None = Field(default=None, description="95 % half-widths of the energy.")
    uncertainty_per_device: dict[str, EnergyUncertainty] = Field(
        default_factory=dict, description="The same for the energy of each device."
    )
    measurement_boundary: MeasurementBoundary | None = Field(default=None, description="What the energy includes.")
    reproducibility_notes: str | None = Field(default=None, description="Note of the meter that measured.")
    baseline_power_w: float | None = Field(default=None, description="Idle power of this process's devices, in watts.")
    idle_resident_power_w: float | None = Field(
        default=None, description="Idle power with the model in memory, in watts."
    )
    phases: PhaseBreakdown | None = Field(default=None, description="Prefill and decode.")
    flops: FlopsResult | None = Field(default=None, description="Floating-point operations of the window.")
    kv_cache_mb: float | None = Field(default=None, description="Memory of the key-value cache, in MB (10^6 B).")
    thermal_throttle: ThermalThrottleInfo | None = Field(default=None, description="Throttling in the window.")
    warmup_result: WarmupResult | None = Field(default=None, description="How the warm-up went.")
    warmup_excluded_samples: int | None = Field(default=None, ge=0, description="Warm-up prompts left out.")
    timeseries_path: str | None = Field(default=None, description="Path of the 1 Hz time series.")
    warnings: list[str] = Field(default_factory=list, description="`code: explanation` of each doubt.")


class AggregationMetadata(Record):
    """How the records of the processes became one result, and whether they fit together."""

    num_processes: int = Field(ge=1, description="Processes aggregated.")
    expected_processes: int | None = Field(default=None, description="Processes that should have taken part.")
    complete: bool | None = Field(default=None, description="Whether every check of completeness passed.")
    completeness_error: str | None = Field(default=None, description="What the checks found missing.")
    gpu_attribution_verified: bool = Field(
        default=False, description="Whether every joule was traced to a device and counted once."
    )
    shared_devices: dict[str, list[int]] = Field(
        default_factory=dict, description="Devices used by several processes, and the indices of those."
    )
    temporal_overlap_verified: bool = Field(
        default=False, description="Whether the processes' windows ran side by side."
    )
    overlap_pct: float | None = Field(
        default=None, description="Time common to all windows, in per cent of the common window."
    )
    common_window_sec: float | None = Field(
        default=None, description="First start to last end of the windows, in seconds."
    )
    warnings: list[str] = Field(default_factory=list, description="`code: explanation` of each failed check.")


class ExperimentResult(Record):
    """One experiment, measured once. Figures are of the measurement window; null means not measured or not known."""

    schema_version: str = Field(
        default=RESULT_SCHEMA_VERSION, pattern=r"^2\.\d+$", description="Schema of this record."
    )
    experiment_id: str = Field(description="Identity of this measurement.")
    measurement_config_hash: str = Field(description="First 16 hex digits of SHA-256 over the configuration.")
    backend: str = Field(default="pytorch", description="Inference engine.")
    backend_version: str | None = Field(default=None, description="Version of the inference engine.")
    measurement_methodology: Methodology = Field(
        description="`total`: warm-up off; `steady_state`: warm-up excluded; `windowed`: part of the generation only."
    )
    steady_state_window: tuple[float, float] | None = Field(
        default=None, description="Start and end of the window, in seconds since the experiment began."
    )

    total_tokens: int = Field(ge=0, description="Input plus output tokens.")
    total_energy_j: float | None = Field(description="Raw energy in joules; null: not measured.")
    total_inference_time_sec: float = Field(ge=0, description="Length of the window in seconds.")
    avg_tokens_per_second: float = Field(ge=0, description="Output tokens per second of the window.")
    avg_energy_per_token_j: float | None = Field(description="Raw joules per output token; null: not measured.")
    total_flops: float | None = Field(description="Floating-point operations; null: not known.")
    input_tokens: int | None = Field(default=None, ge=0, description="Input tokens after truncation.")
    output_tokens: int | None = Field(default=None, ge=0, description="Output tokens up to and including each EOS.")

    baseline_power_w: float | None = Field(default=None, description="Idle power of the devices, in watts.")
    energy_adjusted_j: float | None = Field(
        default=None, description="Raw energy minus idle power x window length, in joules; signed."
    )
    energy_per_device_j: dict[str, float] | None = Field(
        default=None, description="Raw joules by device UUID (or `cpu`)."
    )
    energy_breakdown: EnergyBreakdown | None = Field(
        default=None, description="Raw and adjusted energy with their provenance."
    )
    multi_gpu: MultiGPUMetrics | None = Field(default=None, description="Energy per GPU where several were used.")
    environment_snapshot: EnvironmentSnapshot | None = Field(default=None, description="Machine and software.")
    measurement_warnings: list[str] = Field(
        default_factory=list, description="`code: explanation` of each doubt about these figures."
    )
    warmup_excluded_samples: int | None = Field(
        default=None, ge=0, description="Warm-up prompts left out; null when methodology is `total`."
    )
    reproducibility_notes: str = Field(
        default=NVML_REPRODUCIBILITY_NOTE, description="What to expect of a second measurement with this meter."
    )
    timeseries: str | None = Field(default=None, description="File name of the 1 Hz time series beside the result.")
    start_time: datetime = Field(description="When the experiment began (UTC), loading included.")
    end_time: datetime = Field(description="When the experiment ended (UTC).")
    effective_config: JsonDict = Field(default_factory=dict, description="Resolved config, engine defaults filled in.")
    process_results: list[RawProcessResult] = Field(
        default_factory=list, description="One record per process where there were several, without per-request data."
    )
    aggregation: AggregationMetadata | None = Field(default=None, description="How processes were put together.")
    thermal_throttle: ThermalThrottleInfo | None = Field(default=None, description="Throttling in the window.")
    warmup_result: WarmupResult | None = Field(default=None, description="How the warm-up went.")
    latency_stats: LatencyStatistics | None = Field(default=None, description="Latencies over all requests.")
    extended_metrics: ExtendedEfficiencyMetrics | None = Field(default=None, description="Further derived figures.")

    model_name: str | None = Field(default=None, description="Model as configured.")
    model_revision: str | None = Field(default=None, description="Commit of the loaded weights.")
    config_name: str | None = Field(default=None, description="Short name of the configuration, for people.")
    cycle: int | None = Field(default=None, ge=1, description="Which repetition in a study, from 1.")
    runner: str | None = Field(default=None, description="Where it ran: `local` or `docker:<image>`.")
    image_digest: str | None = Field(default=None, description="Digest of the container image.")
    node: str | None = Field(default=None, description="Cluster node that measured.")
    dataset: DatasetInfo | None = Field(default=None, description="The prompts.")
    num_requests: int | None = Field(default=None, ge=0, description="Requests answered in the window.")
    truncated_prompts: int | None = Field(default=None, ge=0, description="Prompts cut to the input limit.")
    measurement_boundary: MeasurementBoundary | None = Field(default=None, description="What the energy includes.")
    uncertainty: EnergyUncertainty | None = Field(default=None, description="95 % half-widths of the energy.")
    uncertainty_per_device: dict[str, EnergyUncertainty] = Field(
        default_factory=dict, description="The same for the energy of each device."
    )
    energy_audit: EnergyAudit | None = Field(default=None, description="Hardware counter against power integral.")
    idle_resident_power_w: float | None = Field(
        default=None, description="Idle power with the model in memory, in watts."
    )
    phases: PhaseBreakdown | None = Field(default=None, description="Prefill and decode.")
    flops: FlopsResult | None = Field(default=None, description="How `total_flops` was counted.")
    peak_memory_mb: float | None = Field(default=None, description="Peak device memory of the window, in MB (10^6 B).")
    model_memory_mb: float | None = Field(default=None, description="Memory of the loaded weights, in MB (10^6 B).")
    kv_cache_mb: float | None = Field(default=None, description="Memory of the key-value cache, in MB (10^6 B).")
    co2_g: float | None = Field(default=None, description="Emissions in g CO2e, from the user's own factors.")
    carbon_intensity_gco2_kwh: float | None = Field(default=None, description="Grid intensity used, in g CO2e/kWh.")
    pue: float | None = Field(default=None, description="Power usage effectiveness used.")
    cost: float | None = Field(default=None, description="Price of the energy, in `currency`.")
    electricity_price_kwh: float | None = Field(default=None, description="Price used, in `currency` per kWh.")
    currency: str | None = Field(default=None, description="Currency of cost and price.")
    trace: str | None = Field(default=None, description="File name of the raw power samples beside the result.")
    outputs: str | None = Field(default=None, description="File name of the generated texts beside the result.")

    @property
    def duration_sec(self) -> float:
        """Length of the whole experiment in seconds, loading and warm-up included."""
        return (as_utc(self.end_time) - as_utc(self.start_time)).total_seconds()

    @property
    def tokens_per_joule(self) -> float | None:
        """Input and output tokens per joule; 0.0 for 0 J, `None` where energy was not measured."""
        return _per_joule(self.total_tokens, self.total_energy_j)

    @property
    def output_tokens_per_joule(self) -> float | None:
        """Output tokens per joule; 0.0 for 0 J, `None` where either was not measured."""
        return _per_joule(self.output_tokens, self.total_energy_j)

    def summary(self, path: Path | None = None) -> str:
        """The result as text for people.

        Args:
            path: Where the result was saved, named in the last line.
        """
        from llenergymeasure.results.summary import render_summary

        return render_summary(self, path)

    def to_json(self, path: str | Path) -> Path:
        """Write this result to a JSON file, see `results.persistence.to_json`."""
        from llenergymeasure.results import persistence

        return persistence.to_json(self, path)

    @classmethod
    def from_json(cls, path: str | Path) -> ExperimentResult:
        """Read a result, see `results.persistence.from_json`."""
        from llenergymeasure.results import persistence

        return persistence.from_json(path)

    def to_parquet(self, path: str | Path) -> Path:
        """Write this result as one flat row, see `results.persistence.to_parquet`."""
        from llenergymeasure.results import persistence

        return persistence.to_parquet(self, path)

    def save(self, output_dir: str | Path, timeseries_source: str | Path | None = None) -> Path:
        """Save this result in a directory of its own under `output_dir`, see `results.persistence.save_result`."""
        from llenergymeasure.results import persistence

        return persistence.save_result(self, output_dir, timeseries=timeseries_source)


AggregatedResult = ExperimentResult
"""The same class under the name it has where several processes are put together."""


def compute_measurement_config_hash(config: BaseModel) -> str:
    """Identity of what a configuration measures: the same on every machine, process and Python version.

    Unset fields do not count, so that a release which adds an optional field keeps the hashes of old configurations;
    `output_dir` says where results go, not what is measured.

    Args:
        config: An `ExperimentConfig`.

    Returns:
        The first 16 hex digits of SHA-256 over the configuration's JSON with sorted keys.
    """
    fields = config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _per_joule(tokens: int | None, energy_j: float | None) -> float | None:
    if tokens is None or energy_j is None:
        return None
    return tokens / energy_j if energy_j else 0.0
