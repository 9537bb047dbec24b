"""From what was seen to what is recorded: the arithmetic of one process's record, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol, runtime_checkable

from llenergymeasure.config.models import ExperimentConfig, experiment_title
from llenergymeasure.config.same_work import partial_batch
from llenergymeasure.core.backends.protocol import LoadedModel, MemoryStats
from llenergymeasure.core.baseline import Baseline
from llenergymeasure.core.energy.types import EnergyMeasurement
from llenergymeasure.core.energy.uncertainty import IdleEnergy, stated_uncertainty
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.metrics.device_use import device_memory_mb, device_utilisation_pct
from llenergymeasure.core.metrics.flops import estimate_flops
from llenergymeasure.core.metrics.latency import phase_breakdown, request_timings
from llenergymeasure.core.metrics.request_energy import share_energy
from llenergymeasure.core.metrics.stalls import generation_warnings
from llenergymeasure.core.metrics.throttle import throttle_info
from llenergymeasure.core.metrics.warnings import window_warnings
from llenergymeasure.core.warmup import Warmup
from llenergymeasure.core.window import MeasurementSlice, Window, measurement_slice
from llenergymeasure.datasets.types import DatasetIdentity, PromptSet, PromptTokenizer
from llenergymeasure.domain.energy import EnergyBreakdown, EnergyUncertainty, difference_pct
from llenergymeasure.domain.environment import (
    DatasetInfo,
    DeviceElsewhere,
    EnvironmentSnapshot,
    MeasurementBoundary,
)
from llenergymeasure.domain.experiment import RawProcessResult, Timestamps, compute_measurement_config_hash
from llenergymeasure.domain.latency import RequestTimings
from llenergymeasure.domain.metrics import ComputeMetrics, EnergyMetrics, FlopsResult, InferenceMetrics, PhaseBreakdown
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MACHINE: Final = "machine"
"""What a meter at the machine's supply measures: the scope, and the one device."""

_WHOSE: Final[Mapping[str, str]] = {"cpu_package": "processor", "cpu_package_and_dram": "processor", MACHINE: "machine"}
"""What a scope that holds more than the run holds all of."""

INSIDE_THE_WINDOW: Final = (
    "transfer of token ids to the device",
    "prefill and decode of every request, batch by batch",
    "sampling of tokens and the engine's own scheduling",
)
OUTSIDE_THE_WINDOW: Final = (
    "loading and compiling the model",
    "tokenising the prompts and decoding the texts",
    "idle baseline, warm-up and thermal floor",
    "building and writing the result",
)


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything that was seen of one experiment on one process, before any arithmetic.

    Args:
        engine: Name and version of the inference engine.
        began_s: Start of the experiment on the measurement clock, in seconds.
        began_at: The same moment for people (UTC).
        model: Read back from the engine after loading.
        devices: Those the engine really used.
        tokenizer: Turns ids into text where that was asked for.
    """

    config: ExperimentConfig
    engine: tuple[str, str]
    began_s: float
    began_at: datetime
    environment: EnvironmentSnapshot
    prompts: PromptSet
    baseline: Baseline
    warmup: Warmup
    window: Window
    model: LoadedModel
    memory: MemoryStats
    devices: tuple[DeviceId, ...]
    tokenizer: PromptTokenizer
    preflight_warnings: tuple[MeasurementWarning, ...] = ()


@runtime_checkable
class MetricsCollector(Protocol):
    """Turns what was seen of an experiment into a record."""

    def collect(
        self, seen: Observations, experiment_id: str, ended_at: datetime, process_index: int = 0
    ) -> RawProcessResult:
        """The record of one process of an experiment that ended at `ended_at` (UTC).

        Raises:
            ExperimentError: The slice of the window that counts holds no output token.
        """


class RecordCollector:
    """The `MetricsCollector` of this package."""

    def collect(
        self, seen: Observations, experiment_id: str, ended_at: datetime, process_index: int = 0
    ) -> RawProcessResult:
        """The record of one process; see `MetricsCollector.collect`."""
        window = seen.window
        counted = measurement_slice(seen.config, window)
        warmed_up = counted.methodology != "total"
        tokens, energy = counted.tokens, counted.energy
        name, version = seen.engine
        flops = estimate_flops(seen.model.parameters, tokens, seen.config.precision, seen.model.passes)
        phases, phase_notes = phase_breakdown(window.outputs, energy, window.steps)
        baseline = _fitting_baseline(seen.baseline, energy)
        breakdown, uncertainty = _breakdown(energy, baseline), _uncertainty(energy, baseline, tokens.output_tokens)
        return RawProcessResult(
            experiment_id=experiment_id,
            process_index=process_index,
            gpu_id=_gpu_index(seen),
            config_name=experiment_title(seen.config),
            model_name=seen.config.model,
            measurement_config_hash=compute_measurement_config_hash(seen.config),
            backend=name,
            backend_version=version,
            effective_config=effective_config(seen.config, seen.model.settings),
            timestamps=Timestamps(start=window.started_at, end=window.ended_at, duration_sec=counted.duration_s),
            measurement_methodology=counted.methodology,
            steady_state_window=(counted.start_s - seen.began_s, counted.end_s - seen.began_s) if warmed_up else None,
            started_at=seen.began_at,
            ended_at=ended_at,
            inference_metrics=_inference_metrics(counted),
            energy_metrics=_energy_metrics(energy),
            compute_metrics=_compute_metrics(seen, counted, flops),
            environment=seen.environment,
            dataset=_dataset(seen.prompts.identity),
            model_revision=seen.model.revision,
            truncated_prompts=seen.prompts.truncated_count,
            requests=_requests(seen, counted, phases),
            energy_per_device_j=_energy_per_device(energy, seen.devices),
            energy_breakdown=breakdown,
            energy_audit=energy.audit,
            engine_energy_j=window.engine_j,
            uncertainty=uncertainty,
            uncertainty_per_device=_uncertainty_per_device(energy),
            measurement_boundary=_boundary(seen, energy),
            reproducibility_notes=reproducibility_note(energy),
            baseline_power_w=baseline.power_w,
            idle_resident_power_w=seen.warmup.idle_resident_power_w,
            phases=phases,
            flops=flops,
            kv_cache_mb=seen.memory.kv_cache_mb,
            thermal_throttle=throttle_info(energy),
            warmup_result=seen.warmup.result,
            warmup_excluded_samples=seen.warmup.prompts_run if warmed_up else None,
            warnings=_texts(
                seen.preflight_warnings,
                seen.model.warnings,
                baseline.warnings,
                seen.warmup.warnings,
                energy.notes,
                window_warnings(energy),
                generation_warnings(window.outputs, window.compilations, (energy.start_s, energy.end_s)),
                phase_notes,
                _record_warnings(seen, breakdown, uncertainty),
            ),
        )


def _requests(seen: Observations, counted: MeasurementSlice, phases: PhaseBreakdown | None) -> RequestTimings | None:
    """Latencies of the requests that count, and their joules where these can be told."""
    outputs = seen.window.outputs
    timings = request_timings(counted.whole_requests(outputs))
    if timings is None:
        return None
    shares = share_energy(outputs, counted.energy, phases, seen.window.steps)
    return timings.model_copy(
        update={
            "energy_j": shares.energy_j,
            "energy_half_width_j": shares.half_width_j,
            "energy_rule": shares.rule,
            "energy_reason": shares.reason,
        }
    )


def effective_config(config: ExperimentConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the engine says it used, by dotted config path, filled in."""
    effective = config.model_dump(mode="json")
    for path, value in settings.items():
        section = effective
        *parents, leaf = path.split(".")
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        section[leaf] = value
    return effective


def reproducibility_note(energy: EnergyMeasurement) -> str:
    """What to expect of a second measurement with the meter that measured this one."""
    same = "The same measurement_config_hash means the same workload, not the same joules."
    if energy.total_j is None:
        return f"No energy was measured. {same}"
    if energy.method == "model_estimate":
        return (
            f"Energy estimated by {energy.meter}'s model, not measured; do not compare it with measured figures. {same}"
        )
    if energy.scope is not None and energy.scope in _WHOSE:
        return (
            f"Energy measured via {energy.meter} over everything that ran on the {_WHOSE[energy.scope]}; it varies "
            f"with thermal state and system load. {same}"
        )
    gain_j = sum(part.half_width_j for part in energy.components if part.kind == "gain")
    accuracy = f"Accuracy ±{100.0 * gain_j / energy.total_j:.3g} % (the sensor's gain); it" if gain_j else "It"
    return f"Energy measured via {energy.meter}. {accuracy} varies with thermal state and system load. {same}"


def _inference_metrics(counted: MeasurementSlice) -> InferenceMetrics:
    tokens = counted.tokens
    return InferenceMetrics(
        total_tokens=tokens.input_tokens + tokens.output_tokens,
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        inference_time_sec=counted.duration_s,
        tokens_per_second=tokens.output_tokens / counted.duration_s,
        latency_per_token_ms=1000.0 * counted.duration_s / tokens.output_tokens,
        num_requests=tokens.requests,
    )


def _compute_metrics(seen: Observations, counted: MeasurementSlice, flops: FlopsResult | None) -> ComputeMetrics:
    tokens, energy = counted.tokens, seen.window.energy
    return ComputeMetrics(
        flops_total=flops.value if flops else None,
        flops_per_token=flops.value / (tokens.input_tokens + tokens.output_tokens) if flops else None,
        peak_memory_mb=seen.memory.peak_mb,
        device_memory_mb=device_memory_mb(energy.telemetry, energy.start_s, energy.end_s),
        device_utilisation_pct=device_utilisation_pct(energy.telemetry, counted.start_s, counted.end_s),
        model_memory_mb=seen.memory.model_mb,
        flops_method=flops.method if flops else None,
        flops_confidence=flops.confidence if flops else None,
    )


def _dataset(identity: DatasetIdentity) -> DatasetInfo:
    return DatasetInfo(
        name=identity.name, sha256=identity.sha256, prompt_count=identity.prompt_count, revision=identity.revision
    )


def _boundary(seen: Observations, energy: EnergyMeasurement) -> MeasurementBoundary:
    return MeasurementBoundary(
        devices=list(seen.devices),
        device_names=list(seen.model.device_names),
        elsewhere={device: DeviceElsewhere.model_validate(asdict(place)) for device, place in energy.elsewhere.items()},
        scope=energy.scope,
        includes=list(INSIDE_THE_WINDOW),
        excludes=list(OUTSIDE_THE_WINDOW),
    )


def _energy_metrics(energy: EnergyMeasurement) -> EnergyMetrics:
    seconds = energy.duration_sec
    on_gpu = energy.scope in ("gpu", "gpu_module", "gpu_board")
    gpu_j = energy.total_j if on_gpu else None
    return EnergyMetrics(
        total_energy_j=energy.total_j,
        duration_sec=seconds,
        gpu_energy_j=gpu_j,
        cpu_energy_j=energy.cpu_j,
        ram_energy_j=energy.dram_j,
        gpu_power_w=None if gpu_j is None else gpu_j / seconds,
        cpu_power_w=None if energy.cpu_j is None else energy.cpu_j / seconds,
    )


def _energy_per_device(energy: EnergyMeasurement, devices: Sequence[DeviceId]) -> dict[DeviceId, float | None]:
    """Joules by device; a GPU that the meter does not tell of could not be read.

    The processor is a device, and so is a whole machine: all processes on it share one.
    """
    if energy.scope == MACHINE:
        return {MACHINE: energy.total_j}
    if tuple(devices) == (CPU_DEVICE,):
        return {CPU_DEVICE: energy.total_j}
    return {**dict.fromkeys(devices), **energy.per_gpu_j}


_OTHERS_LEFT: Final = MeasurementWarning(
    WarningCode.BASELINE_NOT_IDLE,
    "another process was on the GPU while idle power was measured, and none in the window: what it drew is missing "
    "from the energy above idle. Repeat without it.",
)


def _fitting_baseline(baseline: Baseline, energy: EnergyMeasurement) -> Baseline:
    """The baseline, unless it includes something else than the energy it would be subtracted from."""
    if baseline.power_w is None or energy.total_j is None:
        return baseline
    if baseline.scope == energy.scope:
        is_over = baseline.beside_others and not energy.saw(WarningCode.FOREIGN_GPU_PROCESS)
        return replace(baseline, warnings=(*baseline.warnings, _OTHERS_LEFT)) if is_over else baseline
    note = MeasurementWarning(
        WarningCode.BASELINE_UNAVAILABLE,
        f"idle power was measured over {baseline.scope}, the window over {energy.scope}; no energy above idle is given",
    )
    return replace(baseline, power_w=None, method="unavailable", warnings=(*baseline.warnings, note))


def _breakdown(energy: EnergyMeasurement, baseline: Baseline) -> EnergyBreakdown | None:
    if energy.total_j is None:
        return None
    idle_w = baseline.power_w
    by_counter = energy.method == "hardware_counter"
    second_j = energy.integral_j if by_counter else energy.counter_j
    return EnergyBreakdown(
        raw_j=energy.total_j,
        adjusted_j=None if idle_w is None else energy.total_j - idle_w * energy.duration_sec,
        baseline_power_w=idle_w,
        baseline_method=baseline.method,
        baseline_timestamp=baseline.taken_at,
        baseline_cache_age_sec=baseline.age_s,
        meter=energy.meter,
        meter_version=energy.meter_version or None,
        method=energy.method,
        scope=energy.scope,
        second_method=None if second_j is None else ("power_integration" if by_counter else "hardware_counter"),
        second_method_j=second_j,
        disagreement_pct=difference_pct(second_j, energy.total_j),
        cpu_j=energy.cpu_j,
        dram_j=energy.dram_j,
    )


def _uncertainty(energy: EnergyMeasurement, baseline: Baseline, output_tokens: int) -> EnergyUncertainty | None:
    if energy.total_j is None:
        return None
    idle = None
    if baseline.power_w is not None and baseline.half_width_w is not None:
        idle = IdleEnergy(baseline.power_w * energy.duration_sec, baseline.half_width_w * energy.duration_sec)
    return stated_uncertainty(energy.total_j, energy.components, output_tokens, idle)


def _uncertainty_per_device(energy: EnergyMeasurement) -> dict[str, EnergyUncertainty]:
    energies_j, budgets = energy.per_gpu_j, energy.per_gpu_components
    if not energies_j:
        device = MACHINE if energy.scope == MACHINE else CPU_DEVICE
        energies_j, budgets = {device: energy.total_j}, {device: energy.components}
    stated = {device: stated_uncertainty(energies_j[device] or 0.0, budget) for device, budget in budgets.items()}
    return {device: uncertainty for device, uncertainty in stated.items() if uncertainty is not None}


def _record_warnings(
    seen: Observations, breakdown: EnergyBreakdown | None, uncertainty: EnergyUncertainty | None
) -> Iterator[MeasurementWarning]:
    cut, total = seen.prompts.truncated_count, len(seen.prompts.prompts)
    if cut > 0:
        yield MeasurementWarning(
            WarningCode.PROMPTS_TRUNCATED,
            f"{cut} of {total} prompts were longer than max_input_tokens = {seen.config.max_input_tokens} and were cut",
        )
    partial = partial_batch(seen.config)
    if partial is not None:
        yield MeasurementWarning(WarningCode.PARTIAL_LAST_BATCH, partial)
    if seen.config.measurement.save_trace and not seen.window.energy.has_trace:
        yield MeasurementWarning(
            WarningCode.TELEMETRY_UNAVAILABLE,
            "no trace was saved (measurement.save_trace): what measured this run takes no power samples",
        )
    if breakdown is not None and breakdown.adjusted_j is not None and breakdown.adjusted_j < 0:
        doubt_j = (uncertainty.comparative_adjusted_j if uncertainty else None) or 0.0
        cause = (
            "the baseline was not idle, or the device slept in the window"
            if breakdown.adjusted_j < -doubt_j
            else f"the two cannot be told apart (energy above idle is known to ±{doubt_j:.2g} J)"
        )
        yield MeasurementWarning(
            WarningCode.BASELINE_EXCEEDS_ENERGY,
            f"idle power ({breakdown.baseline_power_w:.1f} W) exceeds the mean power of the window; {cause}. "
            "The negative figure is kept.",
        )


def _gpu_index(seen: Observations) -> int | None:
    """Position of the first device among the snapshot's GPUs, for people; UUIDs are what identifies."""
    uuids = seen.environment.gpu_uuids
    return uuids.index(seen.devices[0]) if seen.devices and seen.devices[0] in uuids else None


def _texts(*groups: Iterable[MeasurementWarning]) -> list[str]:
    return list(dict.fromkeys(str(warning) for group in groups for warning in group))
