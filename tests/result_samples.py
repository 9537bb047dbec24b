"""Results and process records with figures a reader can check in their head, and strategies that draw any of them."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from llenergymeasure.domain.energy import BudgetComponent, EnergyAudit, EnergyBreakdown, combine_budget
from llenergymeasure.domain.environment import (
    CUDAEnvironment,
    DatasetInfo,
    EnvironmentMetadata,
    EnvironmentSnapshot,
    GPUEnvironment,
    MeasurementBoundary,
    ThermalEnvironment,
)
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult, Timestamps
from llenergymeasure.domain.latency import RequestTimings, pool_latencies
from llenergymeasure.domain.metrics import (
    ComputeMetrics,
    EnergyMetrics,
    FlopsResult,
    InferenceMetrics,
    PhaseBreakdown,
    PhaseMetrics,
    WarmupResult,
)

NOON = datetime(2026, 2, 18, 12, 0, 0, tzinfo=timezone.utc)
REQUIRED: dict[str, Any] = {
    "experiment_id": "exp-1",
    "measurement_config_hash": "0123456789abcdef",
    "measurement_methodology": "steady_state",
    "total_tokens": 300,
    "total_energy_j": 100.0,
    "total_inference_time_sec": 10.0,
    "avg_tokens_per_second": 20.0,
    "avg_energy_per_token_j": 0.5,
    "total_flops": 6e9,
    "start_time": NOON,
    "end_time": NOON + timedelta(seconds=60),
}
"""Exactly the fields of a result that have no default: 200 tokens out, 100 in, 10 s, 10 W."""


def make_result(**changes: Any) -> ExperimentResult:
    """A result of the required fields alone, with `changes`."""
    return ExperimentResult(**{**REQUIRED, **changes})


def make_rich_result(**changes: Any) -> ExperimentResult:
    """The run that the command line's documentation shows, with nearly every field filled."""
    timings = RequestTimings(
        input_tokens=[369, 369],
        output_tokens=[2, 2],
        e2e_ms=[166.7, 166.7],
        ttft_ms=[142.0, 142.0],
        itl_ms=[24.7, 24.7],
    )
    fields: dict[str, Any] = {
        "backend_version": "5.23.0",
        "steady_state_window": (100.5, 141.8),
        "total_tokens": 49_700,
        "input_tokens": 36_900,
        "output_tokens": 12_800,
        "total_energy_j": 5273.0,
        "total_inference_time_sec": 41.3,
        "avg_tokens_per_second": 12_800 / 41.3,
        "avg_energy_per_token_j": 5273.0 / 12_800,
        "total_flops": 4.91e13,
        "start_time": datetime(2026, 2, 18, 14, 30, 5, tzinfo=timezone.utc),
        "end_time": datetime(2026, 2, 18, 14, 32, 49, tzinfo=timezone.utc),
        "baseline_power_w": 61.2,
        "energy_adjusted_j": 2745.4,
        "energy_per_device_j": [5273.0],
        "energy_by_device_j": {"GPU-a": 5273.0},
        "energy_breakdown": EnergyBreakdown(
            raw_j=5273.0,
            adjusted_j=2745.4,
            baseline_power_w=61.2,
            baseline_method="fresh",
            baseline_timestamp=NOON,
            meter="nvml",
            method="hardware_counter",
            scope="gpu",
            second_method="power_integration",
            second_method_j=5280.0,
            disagreement_pct=0.13,
        ),
        "energy_audit": EnergyAudit(
            counter_j=5273.0, integral_j=5280.0, disagreement_pct=0.13, bound_pct=1.2, agrees=True
        ),
        "engine_energy_j": 5274.0,
        "uncertainty": combine_budget([BudgetComponent(name="gain", kind="gain", half_width_j=263.65)], 12_800),
        "environment_snapshot": EnvironmentSnapshot(
            python_version="3.11.9",
            tool_version="2.0.0",
            platform="Linux-6.8-x86_64",
            gpu_names=["NVIDIA A100-SXM4-80GB"],
            gpu_uuids=["GPU-a"],
            gpu_vram_mb=[85_899.3],
            pip_freeze=["torch==2.13.0"],
            hardware=EnvironmentMetadata(
                gpu=GPUEnvironment(name="NVIDIA A100-SXM4-80GB", vram_total_mb=85_899.3),
                cuda=CUDAEnvironment(version="12.4", driver_version="535.104"),
                thermal=ThermalEnvironment(temperature_c=42.0),
                collected_at=NOON,
            ),
        ),
        "effective_config": {"model": "Qwen/Qwen2.5-0.5B", "precision": "bf16", "pytorch": {"batch_size": 8}},
        "latency_stats": pool_latencies([timings]),
        "model_name": "Qwen/Qwen2.5-0.5B",
        "config_name": "qwen2.5-0.5b / pytorch / bf16 / batch 8",
        "dataset": DatasetInfo(name="aienergyscore", sha256="ab" * 32, prompt_count=100),
        "num_requests": 100,
        "phases": PhaseBreakdown(
            prefill=PhaseMetrics(time_sec=7.1, tokens=36_900, energy_j=949.1),
            decode=PhaseMetrics(time_sec=34.2, tokens=12_800, energy_j=4323.9),
            residual_j=0.0,
        ),
        "flops": FlopsResult(value=4.91e13, method="palm_formula", confidence="high", precision="bf16"),
        "warmup_result": WarmupResult(
            converged=True,
            final_cv=0.02,
            iterations_completed=5,
            target_cv=0.05,
            max_prompts=20,
            latencies_ms=[10.0, 11.0],
            thermal_floor_wait_s=60.0,
        ),
        "warmup_excluded_samples": 5,
        "peak_memory_mb": 2_100.0,
    }
    return make_result(**{**fields, **changes})


def make_record(
    index: int = 0,
    *,
    devices: dict[str, float | None] | None = None,
    start_s: float = 0.0,
    duration_s: float = 10.0,
    output_tokens: int = 200,
    input_tokens: int = 100,
    **changes: Any,
) -> RawProcessResult:
    """One process's record: by default 100 J on a GPU of its own in a 10 s window that opens at noon.

    Args:
        index: Process index.
        devices: Joules by device; the process's total is their sum.
        start_s: Start of the window in seconds after noon.
        duration_s: Length of the window in seconds.
        output_tokens: Output tokens.
        input_tokens: Input tokens.
        changes: Other fields.
    """
    devices = {f"GPU-{index}": 100.0} if devices is None else devices
    joules = list(devices.values())
    total_j = None if None in joules else sum(joule for joule in joules if joule is not None)
    start = NOON + timedelta(seconds=start_s)
    timings: RequestTimings | None = changes.get("requests")
    fields: dict[str, Any] = {
        "experiment_id": "exp-1",
        "process_index": index,
        "gpu_id": index,
        "config_name": "tiny / pytorch / bf16",
        "model_name": "builtin/tiny-llama",
        "measurement_config_hash": "0123456789abcdef",
        "timestamps": Timestamps(start=start, end=start + timedelta(seconds=duration_s), duration_sec=duration_s),
        "inference_metrics": InferenceMetrics(
            total_tokens=input_tokens + output_tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            inference_time_sec=duration_s,
            tokens_per_second=output_tokens / duration_s,
            latency_per_token_ms=1000 * duration_s / output_tokens if output_tokens else 0.0,
            num_requests=None if timings is None else len(timings.output_tokens),
        ),
        "energy_metrics": EnergyMetrics(total_energy_j=total_j, duration_sec=duration_s),
        "compute_metrics": ComputeMetrics(flops_total=1e9),
        "energy_per_device_j": devices,
        "measurement_boundary": MeasurementBoundary(devices=list(devices), scope="gpu"),
    }
    return RawProcessResult(**{**fields, **changes})


texts = (
    st.text()
    if sys.version_info >= (3, 11)
    else st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
"""Before Python 3.11 the csv module writes no NUL."""

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.just(timezone.utc))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
results = st.builds(
    make_rich_result,
    experiment_id=texts.filter(bool),
    total_energy_j=st.none() | finite,
    avg_energy_per_token_j=st.none() | finite,
    total_inference_time_sec=positive,
    steady_state_window=st.none() | st.tuples(finite, finite),
    energy_adjusted_j=st.none() | finite,
    energy_per_device_j=st.none() | st.lists(st.none() | finite, max_size=3),
    measurement_warnings=st.lists(texts, max_size=3),
    effective_config=st.dictionaries(texts, json_values, max_size=4),
    start_time=moments,
    end_time=moments,
    process_results=st.lists(st.builds(make_record, start_s=st.floats(0, 1e6)), max_size=2),
    latency_stats=st.none()
    | st.builds(
        lambda e2e_ms: pool_latencies(
            [RequestTimings(input_tokens=[1] * len(e2e_ms), output_tokens=[2] * len(e2e_ms), e2e_ms=e2e_ms)]
        ),
        st.lists(st.floats(0, 1e9), max_size=5),
    ),
)
"""Results that differ in what a JSON file could get wrong: text, floats, times, nesting, absence."""
