"""The record of one process and the result of one experiment.

RawProcessResult (one per process, internal) --aggregate--> ExperimentResult (what users see and keep)
"""

from __future__ import annotations

from datetime import datetime
from html import escape
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from llenergymeasure.constants import RESULT_SCHEMA_VERSION, SCHEMA_VERSION
from llenergymeasure.domain import figures
from llenergymeasure.domain.base import (
    Column,
    First,
    Merge,
    Printed,
    Record,
    SchemaVersion,
    as_utc,
    count,
    empty,
    mean,
    of_known,
    optional,
    total,
)
from llenergymeasure.domain.earlier import as_now
from llenergymeasure.domain.energy import (
    NVML_REPRODUCIBILITY_NOTE,
    energies_of_devices,
)
from llenergymeasure.domain.environment import AggregationMetadata as AggregationMetadata
from llenergymeasure.domain.environment import (
    EnvironmentSnapshot,
    merge_environments,
)
from llenergymeasure.domain.environment import Timestamps as Timestamps
from llenergymeasure.domain.identity import compute_measurement_config_hash as compute_measurement_config_hash
from llenergymeasure.domain.latency import LatencyStatistics, RequestEnergy, Requests, pool_latencies
from llenergymeasure.domain.metrics import (
    ComputeMetrics,
    EnergyMetrics,
    ExtendedEfficiencyMetrics,
    InferenceMetrics,
    MultiGPUMetrics,
)
from llenergymeasure.domain.study import StudyResult as StudyResult  # names of this module, kept beside it
from llenergymeasure.domain.study import StudySummary as StudySummary


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

    measurement_config_hash: str | None = optional("Hash of the measured configuration.")
    backend: figures.BackendFigure = "pytorch"
    backend_version: figures.BackendVersionFigure = None
    effective_config: figures.EffectiveConfigFigure = Field(default_factory=dict)
    measurement_methodology: figures.MethodologyFigure = "total"
    steady_state_window: figures.SteadyStateWindowFigure = None
    started_at: datetime | None = optional("When the experiment began (UTC), loading included.")
    ended_at: datetime | None = optional("When the experiment ended (UTC).")
    environment: EnvironmentSnapshot | None = optional("Machine and software.")
    dataset: figures.DatasetFigure = None
    model_revision: figures.ModelRevisionFigure = None
    truncated_prompts: figures.TruncatedPromptsFigure = None
    requests: Requests = None

    energy_per_device_j: dict[str, float | None] = empty(
        dict, "Joules by device UUID (or `cpu`); null: that device could not be read."
    )
    energy_breakdown: figures.EnergyBreakdownFigure = None
    energy_audit: figures.EnergyAuditFigure = None
    engine_energy_j: figures.EngineEnergyFigure = None
    uncertainty: figures.UncertaintyFigure = None
    uncertainty_per_device: figures.UncertaintyPerDeviceFigure = Field(default_factory=dict)
    measurement_boundary: figures.MeasurementBoundaryFigure = None
    reproducibility_notes: str | None = optional("Note of the meter that measured.")
    baseline_power_w: figures.BaselinePowerFigure = None
    idle_resident_power_w: figures.IdleResidentPowerFigure = None
    phases: figures.PhasesFigure = None
    flops: figures.FlopsFigure = None
    kv_cache_mb: figures.KvCacheFigure = None
    thermal_throttle: figures.ThrottleFigure = None
    warmup_result: figures.WarmupFigure = None
    warmup_excluded_samples: figures.ExcludedSamplesFigure = None
    timeseries_path: str | None = optional("Path of the 1 Hz time series.")
    warnings: list[str] = empty(list, "`code: explanation` of each doubt.")


class ExperimentResult(Printed):
    """One experiment, measured once. Figures are of the measurement window; null means not measured or not known."""

    schema_version: SchemaVersion = RESULT_SCHEMA_VERSION
    experiment_id: Annotated[str, Column(1, "", "Identity of the measurement")] = Field(
        description="Identity of this measurement."
    )
    measurement_config_hash: Annotated[str, Column(2, "", "Identity of what was measured")] = Field(
        description="First 16 hex digits of SHA-256 over the configuration."
    )
    backend: figures.BackendFigure = "pytorch"
    backend_version: figures.BackendVersionFigure = None
    measurement_methodology: figures.MethodologyFigure
    steady_state_window: figures.SteadyStateWindowFigure = None

    total_tokens: Annotated[int, Column(19, "tokens", "Input and output tokens")] = Field(
        ge=0, description="Input plus output tokens."
    )
    total_energy_j: Annotated[
        float | None,
        Merge(total, "energy_metrics.total_energy_j", counted=True),
        Column(24, "J", "Raw energy of the window"),
    ] = Field(description="Raw energy in joules; null: not measured.")
    total_inference_time_sec: Annotated[float, Column(16, "s", "Length of the measurement window", "window_sec")] = (
        Field(ge=0, description="Length of the window in seconds.")
    )
    avg_tokens_per_second: Annotated[float, Column(20, "tokens/s", "Output tokens per second", "tokens_per_second")] = (
        Field(ge=0, description="Output tokens per second of the window.")
    )
    avg_energy_per_token_j: Annotated[
        float | None, Column(21, "J/token", "Raw energy per output token", "energy_per_token_j")
    ] = Field(description="Raw joules per output token; null: not measured.")
    total_flops: Annotated[
        float | None,
        Merge(total, "compute_metrics.flops_total"),
        Column(50, "FLOP", "Floating-point operations (reference)"),
    ] = Field(description="Floating-point operations; null: not known.")
    input_tokens: Annotated[
        int | None, Merge(count, "inference_metrics.input_tokens"), Column(17, "tokens", "Input tokens")
    ] = optional("Input tokens after truncation.", ge=0)
    output_tokens: Annotated[
        int | None, Merge(count, "inference_metrics.output_tokens"), Column(18, "tokens", "Output tokens")
    ] = optional("Output tokens up to and including each EOS.", ge=0)

    baseline_power_w: figures.BaselinePowerFigure = None
    energy_adjusted_j: Annotated[
        float | None, Column(25, "J", "Raw energy minus idle power over the window; signed")
    ] = optional("Raw energy minus idle power x window length, in joules; signed.")
    energy_per_device_j: list[float | None] | None = optional(
        "Raw joules of each device in the order of `measurement_boundary.devices`; null: that one could not be read."
    )
    energy_by_device_j: Annotated[
        dict[str, float | None] | None, Merge(energies_of_devices, "energy_per_device_j", counted=True)
    ] = optional("The same joules by device UUID (or `cpu`).")
    energy_breakdown: figures.EnergyBreakdownFigure = None
    multi_gpu: MultiGPUMetrics | None = optional("Energy per GPU where several were used.")
    environment_snapshot: Annotated[EnvironmentSnapshot | None, Merge(of_known(merge_environments), "environment")] = (
        optional("Machine and software.")
    )
    measurement_warnings: list[str] = empty(list, "`code: explanation` of each doubt about these figures.")
    warmup_excluded_samples: figures.ExcludedSamplesFigure = None
    reproducibility_notes: str = Field(
        default=NVML_REPRODUCIBILITY_NOTE, description="What to expect of a second measurement with this meter."
    )
    timeseries: str | None = optional("File name of the 1 Hz time series beside the result.")
    start_time: Annotated[datetime, Column(13, "UTC", "Beginning of the experiment")] = Field(
        description="When the experiment began (UTC), loading included."
    )
    end_time: Annotated[datetime, Column(14, "UTC", "End of the experiment")] = Field(
        description="When the experiment ended (UTC)."
    )
    effective_config: figures.EffectiveConfigFigure = Field(default_factory=dict)
    process_results: list[RawProcessResult] = empty(
        list, "One record per process, without per-request data and without what the result itself holds."
    )
    aggregation: AggregationMetadata | None = optional("How processes were put together.")
    thermal_throttle: figures.ThrottleFigure = None
    warmup_result: figures.WarmupFigure = None
    latency_stats: Annotated[LatencyStatistics | None, Merge(of_known(pool_latencies), "requests")] = optional(
        "Latencies over all requests."
    )
    requests: Requests = None
    request_energy: RequestEnergy | None = optional("Joules of single requests, in figures.")
    extended_metrics: ExtendedEfficiencyMetrics | None = optional("Further derived figures.")

    model_name: First[str | None] = optional("Model as configured.")
    model_revision: figures.ModelRevisionFigure = None
    config_name: Annotated[First[str | None], Column(63)] = optional("Short name of the configuration, for people.")
    cycle: Annotated[int | None, Column(3)] = optional("Which repetition in a study, from 1.", ge=1)
    runner: Annotated[str | None, Column(59, "", "Where it ran")] = optional(
        "Where it ran: `local` or `docker:<image>`."
    )
    image_digest: str | None = optional("Digest of the container image.")
    node: Annotated[str | None, Column(60)] = optional("Cluster node that measured.")
    dataset: figures.DatasetFigure = None
    num_requests: Annotated[int | None, Merge(count, "inference_metrics.num_requests"), Column(11, "requests")] = (
        optional("Requests answered in the window.", ge=0)
    )
    truncated_prompts: figures.TruncatedPromptsFigure = None
    measurement_boundary: figures.MeasurementBoundaryFigure = None
    uncertainty: figures.UncertaintyFigure = None
    uncertainty_per_device: figures.UncertaintyPerDeviceFigure = Field(default_factory=dict)
    energy_audit: figures.EnergyAuditFigure = None
    engine_energy_j: figures.EngineEnergyFigure = None
    idle_resident_power_w: figures.IdleResidentPowerFigure = None
    phases: figures.PhasesFigure = None
    flops: figures.FlopsFigure = None
    peak_memory_mb: Annotated[
        float | None,
        Merge(total, "compute_metrics.peak_memory_mb"),
        Column(52, "MB", "Peak device memory of the window"),
    ] = optional(
        "Peak of the engine's own allocations in the window, in MB (10^6 B), without CUDA context, graphs, libraries."
    )
    device_memory_mb: Annotated[float | None, Merge(total, "compute_metrics.device_memory_mb")] = optional(
        "Most memory in use on the devices in the window, whoever uses it, as the driver tells, in MB (10^6 B)."
    )
    device_utilisation_pct: Annotated[
        float | None,
        Merge(mean, "compute_metrics.device_utilisation_pct", counted=True),
        Column(69, "%", "Share of the window in which a kernel ran"),
    ] = optional(
        "Share of the window in which a kernel ran on the devices, as the driver tells, in per cent; null below 1 s."
    )
    model_memory_mb: Annotated[float | None, Merge(total, "compute_metrics.model_memory_mb")] = optional(
        "Memory of the loaded weights, in MB (10^6 B)."
    )
    kv_cache_mb: figures.KvCacheFigure = None
    co2_g: Annotated[float | None, Column(53, "g", "Emissions, from the user's own factors")] = optional(
        "Emissions in g CO2e, from the user's own factors."
    )
    carbon_intensity_gco2_kwh: float | None = optional("Grid intensity used, in g CO2e/kWh.")
    pue: float | None = optional("Power usage effectiveness used.")
    cost: Annotated[float | None, Column(54, "currency")] = optional("Price of the energy.")
    electricity_price_kwh: float | None = optional("Price used, in `currency` per kWh.")
    currency: Annotated[str | None, Column(55, "", "Currency of cost")] = optional("Currency of cost and price.")
    trace: str | None = optional("File name of the raw power samples beside the result.")
    outputs: str | None = optional("File name of the generated texts beside the result.")

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_files(cls, data: Any) -> Any:
        return as_now(data)

    @property
    def duration_sec(self) -> float:
        """Length of the whole experiment in seconds, loading and warm-up included."""
        return (as_utc(self.end_time) - as_utc(self.start_time)).total_seconds()

    @property
    def is_estimate(self) -> bool:
        """Whether the joules come from a model of the machine, not from a sensor."""
        return self.energy_breakdown is not None and self.energy_breakdown.method == "model_estimate"

    @property
    def tokens_per_joule(self) -> float | None:
        """Input and output tokens per joule; 0.0 for 0 J, `None` where energy was not measured."""
        return _per_joule(self.total_tokens, self.total_energy_j)

    @property
    def output_tokens_per_joule(self) -> float | None:
        """Output tokens per joule; 0.0 for 0 J, `None` where either was not measured."""
        return _per_joule(self.output_tokens, self.total_energy_j)

    def headline(self) -> str:
        """The result in one line, see `results.summary`."""
        from llenergymeasure.results.summary import headline

        return headline(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"

    def summary(self, path: Path | None = None) -> str:
        """The result as text for people, `path` in its last line; see `results.summary`."""
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


AggregatedResult = ExperimentResult  # under the name it has where several processes are put together


def _per_joule(tokens: int | None, energy_j: float | None) -> float | None:
    return None if tokens is None or energy_j is None else tokens / energy_j if energy_j else 0.0
