"""How the inner records of several processes become one. Each function takes what is there, and gives `None` for what
is not known of every process: a sum with an unknown part is unknown.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from llenergymeasure.domain.energy import (
    BaselineMethod,
    BudgetComponent,
    EnergyAudit,
    EnergyBreakdown,
    EnergyUncertainty,
    combine_budget,
)
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import MeasurementBoundary, RawProcessResult
from llenergymeasure.domain.metrics import (
    FlopsResult,
    PhaseBreakdown,
    PhaseMetrics,
    ThermalThrottleInfo,
    WarmupResult,
)

ValueT = TypeVar("ValueT")

_LEAST_TRUSTED_FIRST = ("low", "medium", "high")
_WORST_BASELINE_FIRST: tuple[BaselineMethod, ...] = ("unavailable", "cached", "fresh")


def sum_known(values: Iterable[float | None]) -> float | None:
    """Sum of all values, or `None` when one is unknown or there are none."""
    collected = list(values)
    known = [value for value in collected if value is not None]
    return math.fsum(known) if collected and len(known) == len(collected) else None


def adjusted_energy(record: RawProcessResult) -> float | None:
    """Energy of one process above idle, in joules; signed."""
    if record.energy_breakdown is not None:
        return record.energy_breakdown.adjusted_j
    total_j, idle_w = record.energy_metrics.total_energy_j, record.baseline_power_w
    return None if total_j is None or idle_w is None else total_j - idle_w * record.energy_metrics.duration_sec


def merge_breakdowns(
    counted: Sequence[RawProcessResult], everyone: Sequence[RawProcessResult]
) -> EnergyBreakdown | None:
    """One breakdown of the records whose energy counts.

    CPU packages and DRAM belong to the machine: every process saw all of them, and the largest figure is that of the
    widest window.
    """
    parts = [record.energy_breakdown for record in counted if record.energy_breakdown is not None]
    if not parts or len(parts) < len(counted):
        return None
    if len(everyone) == 1:
        return parts[0]
    raw_j = math.fsum(part.raw_j for part in parts)
    second_j = sum_known(part.second_method_j for part in parts)
    beside = [record.energy_breakdown for record in everyone if record.energy_breakdown is not None]
    methods = {part.baseline_method for part in parts}
    return EnergyBreakdown(
        raw_j=raw_j,
        adjusted_j=sum_known(part.adjusted_j for part in parts),
        baseline_power_w=sum_known(part.baseline_power_w for part in parts),
        baseline_method=next((method for method in _WORST_BASELINE_FIRST if method in methods), None),
        baseline_timestamp=min((p.baseline_timestamp for p in parts if p.baseline_timestamp), default=None),
        baseline_cache_age_sec=_largest(part.baseline_cache_age_sec for part in parts),
        meter=_only(part.meter for part in parts),
        method=_only(part.method for part in parts),
        scope=_only(part.scope for part in parts),
        second_method=_only(part.second_method for part in parts),
        second_method_j=second_j,
        disagreement_pct=100 * (second_j - raw_j) / raw_j if second_j is not None and raw_j else None,
        cpu_j=_largest(part.cpu_j for part in beside),
        dram_j=_largest(part.dram_j for part in beside),
    )


def merge_audits(audits: Sequence[EnergyAudit | None]) -> EnergyAudit | None:
    """Counter against integral, summed over devices; the bound is the widest of the single ones."""
    known = [audit for audit in audits if audit is not None]
    if not known or len(known) < len(audits):
        return None
    if len(known) == 1:
        return known[0]
    counter_j = math.fsum(audit.counter_j for audit in known)
    integral_j = math.fsum(audit.integral_j for audit in known)
    disagreement_pct = 100 * (integral_j - counter_j) / counter_j if counter_j else 0.0
    bound_pct = max(audit.bound_pct for audit in known)
    return EnergyAudit(
        counter_j=counter_j,
        integral_j=integral_j,
        fused_j=sum_known(audit.fused_j for audit in known),
        disagreement_pct=disagreement_pct,
        bound_pct=bound_pct,
        agrees=all(audit.agrees for audit in known) and abs(disagreement_pct) <= bound_pct,
    )


def merge_uncertainties(
    parts: Sequence[EnergyUncertainty | None],
    energy_j: float | None,
    adjusted_j: float | None = None,
    output_tokens: int | None = None,
) -> EnergyUncertainty | None:
    """Half-widths of the sum of several boards' energies.

    Lines of one name and kind are put together first: gains linearly, because boards of one kind may be wrong in the
    same direction; everything else in quadrature.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    above_idle = abs(adjusted_j) / energy_j if adjusted_j is not None and energy_j else 1.0
    if len(known) == 1:  # also where several processes share a device: its joules are divided by the tokens of all
        return combine_budget(known[0].budget, output_tokens, above_idle)
    lines: dict[tuple[str, str], list[BudgetComponent]] = defaultdict(list)
    for part in known:
        for component in part.budget:
            lines[component.name, component.kind].append(component)
    return combine_budget([_merge_line(line, energy_j) for line in lines.values()], output_tokens, above_idle)


def merge_phases(parts: Sequence[PhaseBreakdown | None], devices_are_shared: bool) -> PhaseBreakdown | None:
    """Prefill and decode of all processes; on a shared device nobody can say whose phase took a joule."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    if len(known) == 1:
        return known[0]
    reasons = dict.fromkeys(part.reason for part in known if part.reason)
    if devices_are_shared:
        reasons["processes share a device, whose energy cannot be split between their phases"] = None
    return PhaseBreakdown(
        prefill=_merge_phase([part.prefill for part in known], devices_are_shared),
        decode=_merge_phase([part.decode for part in known], devices_are_shared),
        residual_j=None if devices_are_shared else sum_known(part.residual_j for part in known),
        reason="; ".join(reasons) or None,
    )


def merge_flops(parts: Sequence[FlopsResult | None]) -> FlopsResult | None:
    """Operations of all processes, as trustworthy as the least trustworthy count."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    least = min(known, key=lambda part: _LEAST_TRUSTED_FIRST.index(part.confidence))
    return least.model_copy(update={"value": math.fsum(part.value for part in known)})


def merge_throttling(parts: Sequence[ThermalThrottleInfo | None]) -> ThermalThrottleInfo | None:
    """Throttling of any device; its duration is that of the device throttled longest."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return ThermalThrottleInfo(
        detected=any(part.detected for part in known),
        thermal=any(part.thermal for part in known),
        power=any(part.power for part in known),
        sw_thermal=any(part.sw_thermal for part in known),
        hw_thermal=any(part.hw_thermal for part in known),
        hw_power=any(part.hw_power for part in known),
        throttle_duration_sec=max(part.throttle_duration_sec for part in known),
        max_temperature_c=_largest(part.max_temperature_c for part in known),
        throttle_timestamps=sorted({stamp for part in known for stamp in part.throttle_timestamps}),
    )


def merge_warmups(parts: Sequence[WarmupResult | None]) -> WarmupResult | None:
    """Warm-up of all processes: converged when all did, as unsteady as the unsteadiest."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return WarmupResult(
        converged=all(part.converged for part in known),
        final_cv=_largest(part.final_cv for part in known),
        iterations_completed=sum(part.iterations_completed for part in known),
        target_cv=known[0].target_cv,
        max_prompts=known[0].max_prompts,
        latencies_ms=[latency for part in known for latency in part.latencies_ms],
        thermal_floor_wait_s=max(part.thermal_floor_wait_s for part in known),
    )


def merge_boundaries(parts: Sequence[MeasurementBoundary | None]) -> MeasurementBoundary | None:
    """One boundary around the devices of all processes, each named once."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    names: dict[str, str] = {}
    for part in known:
        names.update(zip(part.devices, part.device_names or part.devices, strict=False))
    return known[0].model_copy(
        update={
            "devices": list(dict.fromkeys(device for part in known for device in part.devices)),
            "device_names": list(names.values()) if any(part.device_names for part in known) else [],
            "scope": _only(part.scope for part in known),
        }
    )


def merge_environments(parts: Sequence[EnvironmentSnapshot | None]) -> EnvironmentSnapshot | None:
    """The first process's snapshot with the GPUs of all."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    per_gpu = (
        "gpu_uuids",
        "gpu_names",
        "gpu_vram_mb",
        "gpu_persistence_mode",
        "gpu_power_limit_w",
        "gpu_max_sm_clock_mhz",
    )
    merged: dict[str, list[object]] = {name: list(getattr(known[0], name)) for name in per_gpu}
    for part in known[1:]:
        for index, uuid in enumerate(part.gpu_uuids):
            if uuid not in merged["gpu_uuids"]:
                for name in per_gpu:
                    merged[name] += getattr(part, name)[index : index + 1]
    return known[0].model_copy(update=merged)


def _merge_line(line: Sequence[BudgetComponent], total_energy_j: float | None) -> BudgetComponent:
    sizes = [component.half_width_j for component in line]
    half_width_j = math.fsum(sizes) if line[0].kind == "gain" else math.hypot(*sizes)
    relative_pct = 100 * half_width_j / total_energy_j if total_energy_j else None
    return line[0].model_copy(update={"half_width_j": half_width_j, "relative_pct": relative_pct})


def _merge_phase(parts: Sequence[PhaseMetrics | None], devices_are_shared: bool) -> PhaseMetrics | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    energy_j = None if devices_are_shared else sum_known(part.energy_j for part in known)
    return PhaseMetrics(
        time_sec=math.fsum(part.time_sec for part in known),
        tokens=sum(part.tokens for part in known),
        energy_j=energy_j,
        uncertainty=None if energy_j is None else merge_uncertainties([part.uncertainty for part in known], energy_j),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _only(values: Iterable[ValueT | None]) -> ValueT | None:
    """The value that all share, or `None` when they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
