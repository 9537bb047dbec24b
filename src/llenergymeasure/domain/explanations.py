"""When each warning is raised and what to do about it: what reports and the documentation say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llenergymeasure.domain.warnings import WarningCode


@dataclass(frozen=True, slots=True)
class Explanation:
    """One warning for its reader. Names of settings stand in backquotes."""

    raised_when: str
    remedy: str


EXPLANATIONS: Final[Mapping[WarningCode, Explanation]] = {
    WarningCode.SHORT_MEASUREMENT_DURATION: Explanation(
        "the window is shorter than 10 s, of which one update of the energy counter is 1 %",
        "more prompts, or `measurement.min_duration_seconds`; 60 s to publish",
    ),
    WarningCode.NVML_LOW_SAMPLE_COUNT: Explanation(
        "fewer than 10 power samples lie in the window",
        "measure for longer, or lower `advanced.nvml_poll_interval_ms`",
    ),
    WarningCode.GPU_PERSISTENCE_MODE_OFF: Explanation(
        "persistence mode of a board is off: the driver may unload between runs, which changes idle power",
        "`sudo nvidia-smi -pm 1`",
    ),
    WarningCode.THERMAL_DRIFT_DETECTED: Explanation(
        "temperature moved by more than 5 °C within the window",
        "warm up for longer, so that the window is in thermal balance",
    ),
    WarningCode.THERMAL_THROTTLING: Explanation(
        "heat held the clocks back",
        "better cooling, longer gaps between runs",
    ),
    WarningCode.POWER_THROTTLING: Explanation(
        "a power limit held the clocks back",
        "report the limit with the result: it belongs to it",
    ),
    WarningCode.ENERGY_METHODS_DISAGREE: Explanation(
        "counter and integral differ by more than their uncertainties allow",
        "trust neither before the cause is found; compare with another board or an external meter",
    ),
    WarningCode.BASELINE_NOT_IDLE: Explanation(
        "something ran, or the board was still settling, while idle power was measured",
        "stop the other work or wait, and repeat; adjusted energy is too low",
    ),
    WarningCode.BASELINE_EXCEEDS_ENERGY: Explanation(
        "idle power × window length is more than the energy",
        "use raw energy; see why the device was busy before the run",
    ),
    WarningCode.BASELINE_UNAVAILABLE: Explanation(
        "idle power was not measured, or over something else than the window",
        "use raw energy; the explanation says what was missing",
    ),
    WarningCode.THERMAL_FLOOR_DISABLED: Explanation(
        "`warmup.thermal_floor_seconds` is 0",
        "allow at least 30 s between warm-up and window",
    ),
    WarningCode.WAIT_SKIPPED: Explanation(
        "Enter ended the baseline or the thermal floor before its time",
        "let the waits run for figures that others compare with",
    ),
    WarningCode.WARMUP_NOT_CONVERGED: Explanation(
        "latencies still varied at `warmup.max_prompts`",
        "raise it; look for other work on the machine",
    ),
    WarningCode.FOREIGN_GPU_PROCESS: Explanation(
        "another process used the board when the window opened or closed",
        "have the board to yourself; its energy is in the figures",
    ),
    WarningCode.OTHER_MEASUREMENT: Explanation(
        "another `llem` measured on this machine during the run",
        "measure one after the other; two runs share processor, memory and power supply even on separate boards",
    ),
    WarningCode.ENERGY_IS_ESTIMATED: Explanation(
        "joules come from a model of the machine",
        "use them to compare runs on this machine only",
    ),
    WarningCode.ENERGY_UNAVAILABLE: Explanation(
        "nothing could measure energy, or what measured failed",
        "the explanation says why; throughput and latency still hold",
    ),
    WarningCode.PARTIAL_LAST_BATCH: Explanation(
        "`n` is no multiple of the batch size (times the processes): the last batch is part empty, and a token in "
        "it costs more",
        "the `n` that it names",
    ),
    WarningCode.PROMPTS_TRUNCATED: Explanation(
        "prompts were cut to `max_input_tokens`",
        "raise it, if the cut was not meant",
    ),
    WarningCode.MIG_PARENT_ENERGY: Explanation(
        "a MIG slice was used: the energy is the whole board's",
        "nothing else may run on the board",
    ),
    WarningCode.CLOCKS_DRIFTED: Explanation(
        "the SM clock of the last quarter differs by more than 5 % from the first",
        "lock the clocks, or warm up for longer",
    ),
    WarningCode.SAMPLER_DEADLINES_MISSED: Explanation(
        "more than 1 % of the sampler's readings were late",
        "relieve the machine; the integral and the phases are coarser",
    ),
    WarningCode.PHASES_NOT_RESOLVED: Explanation(
        "a phase is too short for the sensor, or there are no samples",
        "longer prompts or larger batches; a shorter sampling interval helps only where the sensor updates more "
        "often than it is read",
    ),
    WarningCode.TELEMETRY_UNAVAILABLE: Explanation(
        "a sensor or a method failed and was done without",
        "read which; the figures that rest on it are missing or wider",
    ),
    WarningCode.ENVIRONMENT_CHANGED: Explanation(
        "a resumed study went on with another driver, GPU, power limit or package",
        "compare within one environment only",
    ),
    WarningCode.GPU_MEMORY_LEFT_BEHIND: Explanation(
        "much memory of a GPU was in use before a study's run",
        "stop whoever holds it",
    ),
    WarningCode.PROCESSES_NOT_CONCURRENT: Explanation(
        "the processes of an experiment did not measure at the same time, or energy is of less than the common window",
        "look for a process that started late; throughput and idle power are over the whole time",
    ),
    WarningCode.DEVICE_SHARED_BY_PROCESSES: Explanation(
        "several processes used one device",
        "its energy counts once; expected with several copies per GPU",
    ),
    WarningCode.ENERGY_ATTRIBUTION_UNVERIFIED: Explanation(
        "a process did not name its devices",
        "a device may be counted twice; report the engine",
    ),
    WarningCode.COMPILED_IN_WINDOW: Explanation(
        "the engine compiled a program or recorded a graph within the window, and that is in the figures",
        "prompts of equal length, another cache kind, or no compilation",
    ),
    WarningCode.BATCH_CHANGES_TEXTS: Explanation(
        "a model whose rows are not independent in the engine (RWKV in transformers) ran in batches",
        "batch size 1, or compare within one batch size",
    ),
    WarningCode.GENERATION_STALLED: Explanation(
        "gaps between tokens of more than 20 times their median took more than 5 % of the window",
        "warm up for longer; look for other work on the machine",
    ),
    WarningCode.REQUESTS_PREEMPTED: Explanation(
        "the key-value cache was full, and the engine computed requests again that had lost their part of it",
        "fewer requests at once, or more memory for the cache; the work done twice is in every figure",
    ),
}


def explanation_of(code: str) -> Explanation | None:
    """The explanation of a code as a result holds it; `None` for one of another release."""
    return next((text for known, text in EXPLANATIONS.items() if known.value == code), None)
