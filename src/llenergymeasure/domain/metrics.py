"""What a measurement window yields besides its energy and latencies, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Protocol, get_args

from pydantic import Field

from llenergymeasure.domain.base import (
    AllOf,
    AnyOf,
    Column,
    Confidence,
    Count,
    Largest,
    Merge,
    Record,
    Total,
    complete,
    empty,
    joined,
    merge_records,
    optional,
    total,
)
from llenergymeasure.domain.energy import EnergyBreakdown as EnergyBreakdown  # kept beside it, a name of this one
from llenergymeasure.domain.energy import EnergyUncertainty, merge_uncertainties
from llenergymeasure.domain.latency import LatencyStatistics as LatencyStatistics  # likewise

J_PER_WH: Final = 3600.0


class InferenceMetrics(Record):
    """Tokens and time of one process's window."""

    total_tokens: int = Field(ge=0, description="Input plus output tokens.")
    input_tokens: int = Field(ge=0, description="Input tokens after truncation, padding not counted.")
    output_tokens: int = Field(ge=0, description="Output tokens up to and including each EOS, padding not counted.")
    inference_time_sec: float = Field(ge=0, description="Length of the window in seconds, on a monotonic clock.")
    tokens_per_second: float = Field(ge=0, description="Output tokens per second of the window.")
    latency_per_token_ms: float = Field(ge=0, description="Window length per output token, in ms.")
    num_requests: int | None = optional("Requests answered in the window.", ge=0)


class EnergyMetrics(Record):
    """Energy of one process's window."""

    total_energy_j: float | None = Field(description="Energy over the meter's scope, in joules; null: not measured.")
    duration_sec: float = Field(ge=0, description="Length of the metered window in seconds.")
    gpu_energy_j: float | None = optional("Energy of the GPUs, in joules.")
    cpu_energy_j: float | None = optional("Energy of the CPU packages, in joules.")
    ram_energy_j: float | None = optional("Energy of the DRAM, in joules.")
    gpu_power_w: float | None = optional("Mean power of the GPUs, in watts.")
    cpu_power_w: float | None = optional("Mean power of the CPU packages, in watts.")


class ComputeMetrics(Record):
    """Arithmetic and memory of one process's window."""

    flops_total: float | None = Field(description="Floating-point operations of the window; null: not known.")
    flops_per_token: float | None = optional("Operations per token, input and output alike.")
    peak_memory_mb: float | None = optional("Peak of the engine's own allocations in the window, in MB (10^6 B).")
    device_memory_mb: float | None = optional("Most memory in use on the devices, as the driver tells, in MB (10^6 B).")
    device_utilisation_pct: float | None = optional("Share of the window in which the devices had work, in per cent.")
    model_memory_mb: float | None = optional("Memory of the loaded weights, in MB (10^6 B).")
    flops_method: str | None = optional("How operations were counted, e.g. `palm_formula`.")
    flops_confidence: Confidence | None = optional("How far the count can be trusted.")


class FlopsResult(Record):
    """Floating-point operations of a window: reference metadata, not a measurement."""

    value: float = Field(ge=0, description="Floating-point operations.")
    method: str = Field(description="How they were counted, e.g. `palm_formula` (2 x N x tokens).")
    confidence: Annotated[Confidence, Column(51, "", "How far total_flops can be trusted", "flops_confidence")] = Field(
        description="`high`: N counted on the loaded model; `medium`: from its config; `low`: from its name or size."
    )
    precision: str = Field(description="Number format of the arithmetic, e.g. `bf16`.")
    notes: str | None = optional("What was counted and what was left out.")


def merge_flops(parts: Sequence[FlopsResult]) -> FlopsResult:
    """Operations of all processes, as trustworthy as the least trustworthy count."""
    least = max(parts, key=lambda part: get_args(Confidence).index(part.confidence))
    return least.model_copy(update={"value": math.fsum(part.value for part in parts)})


class WarmupResult(Record):
    """How the warm-up went; none of it is in any headline figure."""

    converged: AllOf[bool] = Field(
        description="Whether `final_cv` is at most `target_cv`; true where convergence was not asked for."
    )
    final_cv: Largest[float | None] = Field(description="Last coefficient of variation seen; null below two latencies.")
    iterations_completed: Count[int] = Field(ge=0, description="Warm-up prompts run.")
    target_cv: float = Field(description="Coefficient of variation that counts as converged.")
    max_prompts: int = Field(ge=0, description="Most warm-up prompts allowed.")
    latencies_ms: Annotated[list[float], Merge(joined)] = empty(list, "Latency of each warm-up prompt, in ms.")
    thermal_floor_wait_s: Largest[float] = Field(default=0.0, ge=0, description="Wait after warm-up, in seconds.")


def _in_order(timestamps: Iterable[Iterable[float]]) -> list[float]:
    return sorted(set(joined(timestamps)))


class ThermalThrottleInfo(Record):
    """Whether the hardware held its clocks back during the window, and why."""

    detected: AnyOf[bool] = Field(default=False, description="Whether any throttling below was seen.")
    thermal: AnyOf[bool] = Field(default=False, description="Throttled by temperature, in software or hardware.")
    power: AnyOf[bool] = Field(default=False, description="Throttled by a power limit.")
    sw_thermal: AnyOf[bool] = Field(default=False, description="Throttled by the driver because of temperature.")
    hw_thermal: AnyOf[bool] = Field(default=False, description="Throttled by the hardware because of temperature.")
    hw_power: AnyOf[bool] = Field(default=False, description="Throttled by the hardware's power brake.")
    throttle_duration_sec: Largest[float] = Field(default=0.0, ge=0, description="Time throttled, in seconds.")
    max_temperature_c: Largest[float | None] = optional("Highest temperature, in degrees Celsius.")
    throttle_timestamps: Annotated[list[float], Merge(_in_order)] = empty(
        list, "Starts of throttling, in seconds from the window's start."
    )


class MultiGPUMetrics(Record):
    """Energy of a run that used several GPUs."""

    num_gpus: int = Field(ge=1, description="Number of GPUs metered.")
    energy_per_gpu_j: list[float] = Field(
        description="Energy of each GPU in joules, in the order of `energy_per_device_j`."
    )
    energy_total_j: float = Field(description="Their sum, in joules.")
    energy_per_output_token_j: float | None = optional("Joules per output token over all GPUs.")


class PhaseMetrics(Record):
    """One phase of generation, prefill or decode."""

    time_sec: Total[float] = Field(ge=0, description="Time in this phase, in seconds; summed over processes.")
    tokens: Count[int] = Field(ge=0, description="Tokens processed (prefill) or produced (decode).")
    energy_j: Total[float | None] = optional("Energy in joules; null: too short for the sensor.")
    uncertainty: EnergyUncertainty | None = optional("95 % half-widths of `energy_j`.")


class PhaseBreakdown(Record):
    """Prefill and decode of one run, from token timestamps and the power trace."""

    prefill: Annotated[PhaseMetrics | None, Column(32, "J", "Energy of prefill", "prefill_energy_j", at="energy_j")] = (
        optional("Input processing up to the first token.")
    )
    decode: Annotated[PhaseMetrics | None, Column(33, "J", "Energy of decode", "decode_energy_j", at="energy_j")] = (
        optional("Generation after the first token.")
    )
    residual_j: float | None = optional("Energy of the window that belongs to neither phase, in joules; signed.")
    reason: str | None = optional("Why a figure is missing.")


def merge_phases(parts: Sequence[PhaseBreakdown | None], devices_are_shared: bool) -> PhaseBreakdown | None:
    """Prefill and decode of all processes; on a shared device nobody can say whose phase took a joule."""
    known = complete(parts)
    if known is None:
        return None
    if len(known) == 1:
        return known[0]
    reasons = dict.fromkeys(part.reason for part in known if part.reason)
    if devices_are_shared:
        reasons["processes share a device, whose energy cannot be split between their phases"] = None
    return PhaseBreakdown(
        prefill=_merge_phase([part.prefill for part in known], devices_are_shared),
        decode=_merge_phase([part.decode for part in known], devices_are_shared),
        residual_j=None if devices_are_shared else total(part.residual_j for part in known),
        reason="; ".join(reasons) or None,
    )


def _merge_phase(parts: Sequence[PhaseMetrics | None], devices_are_shared: bool) -> PhaseMetrics | None:
    known = complete(parts)
    if known is None:
        return None
    merged = merge_records(known)
    energy_j = None if devices_are_shared else merged.energy_j
    uncertainty = None if energy_j is None else merge_uncertainties([part.uncertainty for part in known], energy_j)
    return merged.model_copy(update={"energy_j": energy_j, "uncertainty": uncertainty})


class ExtendedEfficiencyMetrics(Record):
    """Further figures derived from the headline ones; null where an input was not measured."""

    energy_adjusted_per_token_j: float | None = optional("Baseline-adjusted energy per output token, in joules.")
    energy_per_request_j: Annotated[float | None, Column(31, "J", "Raw energy per request")] = optional(
        "Raw energy per request, in joules."
    )
    energy_per_1000_requests_wh: Annotated[
        float | None, Column(68, "Wh", "Raw energy of 1,000 requests, the unit of the AI Energy Score")
    ] = optional("Raw energy of 1,000 requests, in Wh: the unit of the AI Energy Score.")
    total_tokens_per_second: float | None = optional("Input and output tokens per second of the window.")
    requests_per_second: float | None = optional("Requests per second of the window.")
    avg_power_w: Annotated[float | None, Column(30, "W", "Raw energy over window length")] = optional(
        "Raw energy over window length, in watts."
    )
    flops_per_joule: float | None = optional("Counted operations per joule of raw energy.")


class Measured(Protocol):
    """What further figures are derived from: a result, as far as it was measured."""

    total_inference_time_sec: float
    total_tokens: int
    output_tokens: int | None
    num_requests: int | None
    total_energy_j: float | None
    energy_adjusted_j: float | None
    total_flops: float | None


def extended_metrics(of: Measured) -> ExtendedEfficiencyMetrics:
    """The figures that follow from the measured ones."""
    return ExtendedEfficiencyMetrics(
        energy_adjusted_per_token_j=ratio(of.energy_adjusted_j, of.output_tokens),
        energy_per_request_j=ratio(of.total_energy_j, of.num_requests),
        energy_per_1000_requests_wh=wh_per_1000(ratio(of.total_energy_j, of.num_requests)),
        total_tokens_per_second=of.total_tokens / of.total_inference_time_sec,
        requests_per_second=ratio(of.num_requests, of.total_inference_time_sec),
        avg_power_w=ratio(of.total_energy_j, of.total_inference_time_sec),
        flops_per_joule=ratio(of.total_flops, of.total_energy_j),
    )


def wh_per_1000(energy_j: float | None) -> float | None:
    """Watt-hours of 1,000 things that take so many joules each."""
    return None if energy_j is None else 1000.0 * energy_j / J_PER_WH


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Quotient, or `None` where a part is unknown or the denominator is 0."""
    return numerator / denominator if numerator is not None and denominator else None
