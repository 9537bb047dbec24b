"""What a measurement window yields besides its energy, and every metric record under one name."""

from __future__ import annotations

from pydantic import Field

from llenergymeasure.domain.base import Confidence, Record
from llenergymeasure.domain.energy import (
    BaselineMethod,
    BudgetComponent,
    EnergyAudit,
    EnergyBreakdown,
    EnergyUncertainty,
    combine_budget,
)
from llenergymeasure.domain.latency import Histogram, LatencyStatistics, Percentiles, RequestTimings

__all__ = [
    "BaselineMethod",
    "BudgetComponent",
    "ComputeMetrics",
    "EnergyAudit",
    "EnergyBreakdown",
    "EnergyMetrics",
    "EnergyUncertainty",
    "ExtendedEfficiencyMetrics",
    "FlopsResult",
    "Histogram",
    "InferenceMetrics",
    "LatencyStatistics",
    "MultiGPUMetrics",
    "Percentiles",
    "PhaseBreakdown",
    "PhaseMetrics",
    "RequestTimings",
    "ThermalThrottleInfo",
    "WarmupResult",
    "combine_budget",
]


class InferenceMetrics(Record):
    """Tokens and time of one process's window."""

    total_tokens: int = Field(ge=0, description="Input plus output tokens.")
    input_tokens: int = Field(ge=0, description="Input tokens after truncation, padding not counted.")
    output_tokens: int = Field(ge=0, description="Output tokens up to and including each EOS, padding not counted.")
    inference_time_sec: float = Field(ge=0, description="Length of the window in seconds, on a monotonic clock.")
    tokens_per_second: float = Field(ge=0, description="Output tokens per second of the window.")
    latency_per_token_ms: float = Field(ge=0, description="Window length per output token, in ms.")
    num_requests: int | None = Field(default=None, ge=0, description="Requests answered in the window.")


class EnergyMetrics(Record):
    """Energy of one process's window."""

    total_energy_j: float | None = Field(description="Energy over the meter's scope, in joules; null: not measured.")
    duration_sec: float = Field(ge=0, description="Length of the metered window in seconds.")
    gpu_energy_j: float | None = Field(default=None, description="Energy of the GPUs, in joules.")
    cpu_energy_j: float | None = Field(default=None, description="Energy of the CPU packages, in joules.")
    ram_energy_j: float | None = Field(default=None, description="Energy of the DRAM, in joules.")
    gpu_power_w: float | None = Field(default=None, description="Mean power of the GPUs, in watts.")
    cpu_power_w: float | None = Field(default=None, description="Mean power of the CPU packages, in watts.")


class ComputeMetrics(Record):
    """Arithmetic and memory of one process's window."""

    flops_total: float | None = Field(description="Floating-point operations of the window; null: not known.")
    flops_per_token: float | None = Field(default=None, description="Operations per token, input and output alike.")
    peak_memory_mb: float | None = Field(default=None, description="Peak device memory of the window, in MB (10^6 B).")
    model_memory_mb: float | None = Field(default=None, description="Memory of the loaded weights, in MB (10^6 B).")
    flops_method: str | None = Field(default=None, description="How operations were counted, e.g. `palm_formula`.")
    flops_confidence: Confidence | None = Field(default=None, description="How far the count can be trusted.")


class FlopsResult(Record):
    """Floating-point operations of a window: reference metadata, not a measurement."""

    value: float = Field(ge=0, description="Floating-point operations.")
    method: str = Field(description="How they were counted, e.g. `palm_formula` (2 x N x tokens).")
    confidence: Confidence = Field(
        description="`high`: N counted on the loaded model; `medium`: from its config; `low`: from its name or size."
    )
    precision: str = Field(description="Number format of the arithmetic, e.g. `bf16`.")
    notes: str | None = Field(default=None, description="What was counted and what was left out.")


class WarmupResult(Record):
    """How the warm-up went; none of it is in any headline figure."""

    converged: bool = Field(description="Whether latencies settled; true in fixed mode and when warm-up is off.")
    final_cv: float | None = Field(description="Last coefficient of variation seen; null below two latencies.")
    iterations_completed: int = Field(ge=0, description="Warm-up prompts run.")
    target_cv: float = Field(description="Coefficient of variation that counts as converged.")
    max_prompts: int = Field(ge=0, description="Most warm-up prompts allowed.")
    latencies_ms: list[float] = Field(default_factory=list, description="Latency of each warm-up prompt, in ms.")
    thermal_floor_wait_s: float = Field(default=0.0, ge=0, description="Wait after warm-up, in seconds.")


class ThermalThrottleInfo(Record):
    """Whether the hardware held its clocks back during the window, and why."""

    detected: bool = Field(default=False, description="Whether any throttling below was seen.")
    thermal: bool = Field(default=False, description="Throttled by temperature, in software or hardware.")
    power: bool = Field(default=False, description="Throttled by a power limit.")
    sw_thermal: bool = Field(default=False, description="Throttled by the driver because of temperature.")
    hw_thermal: bool = Field(default=False, description="Throttled by the hardware because of temperature.")
    hw_power: bool = Field(default=False, description="Throttled by the hardware's power brake.")
    throttle_duration_sec: float = Field(default=0.0, ge=0, description="Time throttled, in seconds.")
    max_temperature_c: float | None = Field(default=None, description="Highest temperature, in degrees Celsius.")
    throttle_timestamps: list[float] = Field(
        default_factory=list, description="Starts of throttling, in seconds from the window's start."
    )


class MultiGPUMetrics(Record):
    """Energy of a run that used several GPUs."""

    num_gpus: int = Field(ge=1, description="Number of GPUs metered.")
    energy_per_gpu_j: list[float] = Field(
        description="Energy of each GPU in joules, in the order of `energy_per_device_j`."
    )
    energy_total_j: float = Field(description="Their sum, in joules.")
    energy_per_output_token_j: float | None = Field(default=None, description="Joules per output token over all GPUs.")


class PhaseMetrics(Record):
    """One phase of generation, prefill or decode."""

    time_sec: float = Field(ge=0, description="Time in this phase, in seconds; summed over processes.")
    tokens: int = Field(ge=0, description="Tokens processed (prefill) or produced (decode).")
    energy_j: float | None = Field(default=None, description="Energy in joules; null: too short for the sensor.")
    uncertainty: EnergyUncertainty | None = Field(default=None, description="95 % half-widths of `energy_j`.")


class PhaseBreakdown(Record):
    """Prefill and decode of one run, from token timestamps and the power trace."""

    prefill: PhaseMetrics | None = Field(default=None, description="Input processing up to the first token.")
    decode: PhaseMetrics | None = Field(default=None, description="Generation after the first token.")
    residual_j: float | None = Field(
        default=None, description="Energy of the window that belongs to neither phase, in joules; signed."
    )
    reason: str | None = Field(default=None, description="Why a figure is missing.")


class ExtendedEfficiencyMetrics(Record):
    """Further figures derived from the headline ones; null where an input was not measured."""

    energy_adjusted_per_token_j: float | None = Field(
        default=None, description="Baseline-adjusted energy per output token, in joules."
    )
    energy_per_request_j: float | None = Field(default=None, description="Raw energy per request, in joules.")
    total_tokens_per_second: float | None = Field(
        default=None, description="Input and output tokens per second of the window."
    )
    requests_per_second: float | None = Field(default=None, description="Requests per second of the window.")
    avg_power_w: float | None = Field(default=None, description="Raw energy over window length, in watts.")
    flops_per_joule: float | None = Field(default=None, description="Counted operations per joule of raw energy.")
