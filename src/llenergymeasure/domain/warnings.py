"""What can be wrong with a measurement without making it fail: one code each, explained in one line.

Results carry a warning as the text `code: explanation`, so that a reader can search for the code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class WarningCode(str, Enum):
    """Stable identifiers of the warnings a result can carry."""

    SHORT_MEASUREMENT_DURATION = "short_measurement_duration"
    NVML_LOW_SAMPLE_COUNT = "nvml_low_sample_count"
    GPU_PERSISTENCE_MODE_OFF = "gpu_persistence_mode_off"
    THERMAL_DRIFT_DETECTED = "thermal_drift_detected"
    THERMAL_THROTTLING = "thermal_throttling"
    POWER_THROTTLING = "power_throttling"
    ENERGY_METHODS_DISAGREE = "energy_methods_disagree"
    BASELINE_NOT_IDLE = "baseline_not_idle"
    BASELINE_EXCEEDS_ENERGY = "baseline_exceeds_energy"
    BASELINE_UNAVAILABLE = "baseline_unavailable"
    THERMAL_FLOOR_DISABLED = "thermal_floor_disabled"
    WAIT_SKIPPED = "wait_skipped"
    WARMUP_NOT_CONVERGED = "warmup_not_converged"
    FOREIGN_GPU_PROCESS = "foreign_gpu_process"
    OTHER_MEASUREMENT = "other_measurement"
    ENERGY_IS_ESTIMATED = "energy_is_estimated"
    ENERGY_UNAVAILABLE = "energy_unavailable"
    PARTIAL_LAST_BATCH = "partial_last_batch"
    PROMPTS_TRUNCATED = "prompts_truncated"
    MIG_PARENT_ENERGY = "mig_parent_energy"
    CLOCKS_DRIFTED = "clocks_drifted"
    SAMPLER_DEADLINES_MISSED = "sampler_deadlines_missed"
    PHASES_NOT_RESOLVED = "phases_not_resolved"
    TELEMETRY_UNAVAILABLE = "telemetry_unavailable"
    ENVIRONMENT_CHANGED = "environment_changed"
    GPU_MEMORY_LEFT_BEHIND = "gpu_memory_left_behind"
    PROCESSES_NOT_CONCURRENT = "processes_not_concurrent"
    DEVICE_SHARED_BY_PROCESSES = "device_shared_by_processes"
    ENERGY_ATTRIBUTION_UNVERIFIED = "energy_attribution_unverified"
    COMPILED_IN_WINDOW = "compiled_in_window"
    BATCH_CHANGES_TEXTS = "batch_changes_texts"
    GENERATION_STALLED = "generation_stalled"
    REQUESTS_PREEMPTED = "requests_preempted"


def codes_of(warnings: Iterable[str]) -> list[str]:
    """The code of each warning of a result, every one once, in the order of first appearance."""
    return list(dict.fromkeys(warning.partition(":")[0] for warning in warnings))


@dataclass(frozen=True, slots=True)
class MeasurementWarning:
    """One thing a reader must know before trusting a figure: what was seen, with units, and what to do about it."""

    code: WarningCode
    message: str

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"
