"""Idle power of the devices under test, measured before the model loads.

It is what the machine would have drawn anyway, and is subtracted to give the *adjusted* energy. Raw energy is never
touched by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from llenergymeasure.config.models import BaselineConfig
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.telemetry import Telemetry, answered
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId
from llenergymeasure.core.gpu.visible import cuda_is_up
from llenergymeasure.core.host.load import CpuTimes, read_cpu_times
from llenergymeasure.core.progress import Observer, Step, StepFinished, StepStarted, wait
from llenergymeasure.domain.base import complete
from llenergymeasure.domain.energy import BaselineMethod, BudgetComponent, comparative_half_width
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

CACHE_TTL_S = 3600.0
"""How long an idle measurement of a device set stays good within one session, in seconds."""

BUSY_UTILISATION_PCT = 5.0
"""Mean SM utilisation above which a device cannot be called idle."""

BUSY_CPU_PCT = 10.0
"""Share of a processor's time in the hands of others above which it was not idle."""

BUSY_POWER_CV = 0.10
"""Coefficient of variation of idle power above which something was running. An idle board's readings stay within a
few per cent of their mean; a job that comes and goes does not."""

SETTLING_SHARE = 0.05
"""Change of idle power from the first to the last third of the baseline above which the device was not at rest: a board
that cools down after a run draws less and less."""

SETTLING_W = 2.0
"""The same in watts, so that a sensor's noise at low power is not taken for a change."""


CONTEXT_IS_UP = MeasurementWarning(
    WarningCode.BASELINE_NOT_IDLE,
    "this process had a CUDA context already, with which a board idles higher (38 W more on an H200); energy above "
    "idle is lower than that of a run in a process of its own. Use `llem run` (on a machine of unlike boards with "
    "CUDA_DEVICE_ORDER=PCI_BUS_ID), or measure before other GPU work.",
)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Idle power, and how far it can be trusted.

    Args:
        power_w: Summed over the devices; `None` when it was not measured.
        method: `fresh`, `cached` from an earlier run of this session, or `unavailable`; `None`: switched off.
        half_width_w: 95 % half-width of `power_w`, without the sensor's gain; how far it drifted is in it.
        taken_at: When it was measured (UTC).
        taken_s: The same on the machine's monotonic clock, which all of its processes share.
        age_s: Between the measurement and its use.
        scope: What the power includes; it must match the measurement's.
        is_estimate: Whether a model tells it, and no sensor.
        beside_others: Whether a process of somebody else was on a device meanwhile.
        per_device_w: Of each GPU, by UUID; empty where the meter does not tell them apart.
        per_device_half_width_w: Likewise of each; empty where the meter states one of all together only.
    """

    power_w: float | None
    method: BaselineMethod | None
    half_width_w: float | None = None
    taken_at: datetime | None = None
    taken_s: float | None = None
    age_s: float | None = None
    duration_s: float | None = None
    scope: str | None = None
    is_estimate: bool = False
    beside_others: bool = False
    per_device_w: Mapping[DeviceId, float] = field(default_factory=dict)
    per_device_half_width_w: Mapping[DeviceId, float] = field(default_factory=dict)
    warnings: tuple[MeasurementWarning, ...] = ()

    def restricted_to(self, devices: Sequence[DeviceId]) -> Baseline:
        """The part of this baseline that belongs to `devices`: an engine may use fewer than were planned."""
        if self.power_w is None or set(devices) == set(self.per_device_w) or not self.per_device_w:
            return self
        if not set(devices) <= set(self.per_device_w):
            return unavailable("the engine uses devices on which idle power was not measured", self.taken_at)
        kept = {device: self.per_device_w[device] for device in devices}
        own_w = complete([self.per_device_half_width_w.get(device) for device in devices])
        return replace(
            self,
            power_w=sum(kept.values()),
            per_device_w=kept,
            half_width_w=self.half_width_w if own_w is None else math.hypot(*own_w),
        )


@dataclass(frozen=True, slots=True)
class CachedBaseline:
    """A fresh baseline kept for later runs on the same devices with the same meter."""

    devices: frozenset[DeviceId]
    meter: str
    baseline: Baseline


class BaselineCache:
    """Baselines of this session, by device set and meter. Holds nothing on disk.

    Args:
        entries: Baselines measured elsewhere, e.g. by an earlier child process of the same study.
    """

    def __init__(self, entries: Iterable[CachedBaseline] = ()) -> None:
        self._entries = {(entry.devices, entry.meter): entry for entry in entries}

    def get(self, devices: Sequence[DeviceId], meter: str, duration_s: float, clock: Clock) -> Baseline | None:
        """The cached baseline, if it is young enough and was measured for at least `duration_s`."""
        entry = self._entries.get((frozenset(devices), meter))
        if entry is None or (entry.baseline.duration_s or 0.0) < duration_s:
            return None
        age_s = _age_s(entry.baseline, clock)
        return replace(entry.baseline, method="cached", age_s=age_s) if age_s <= CACHE_TTL_S else None

    def put(self, devices: Sequence[DeviceId], meter: str, baseline: Baseline) -> None:
        """Keep a fresh baseline; one that found the device busy or in use, or found nothing, is not kept."""
        doubtful = bool(baseline.warnings) or baseline.beside_others
        if baseline.method == "fresh" and baseline.power_w is not None and not doubtful:
            key = (frozenset(devices), meter)
            self._entries[key] = CachedBaseline(key[0], meter, baseline)

    def entries(self) -> tuple[CachedBaseline, ...]:
        """Everything in the cache, to hand to another process."""
        return tuple(self._entries.values())


def _age_s(baseline: Baseline, clock: Clock) -> float:
    """Seconds since a baseline was taken; infinite where that is not known.

    A monotonic clock stands still while a machine sleeps, and begins anew when it is started; a wall clock may be set.
    """
    if baseline.taken_s is None or baseline.taken_at is None or clock.now() < baseline.taken_s:
        return math.inf
    return max(clock.now() - baseline.taken_s, (clock.wall() - baseline.taken_at).total_seconds())


def measure_baseline(
    config: BaselineConfig,
    meter: EnergyBackend,
    devices: Sequence[DeviceId],
    cache: BaselineCache,
    clock: Clock,
    observer: Observer,
    cpu_times: Callable[[], CpuTimes | None] = read_cpu_times,
    holds_context: Callable[[], bool] = cuda_is_up,
) -> Baseline:
    """Idle power of `devices`: from the cache, or measured for `config.duration_seconds`.

    Args:
        meter: The meter that will also measure the window, so that both see the same thing.
        cache: This session's baselines; a fresh one is added.
        cpu_times: The processor's account of its time, asked before and after where it is the device.
        holds_context: Whether this process has a CUDA context already, which raises the idle power of a board.
    """
    if not config.enabled or isinstance(meter, NoEnergyBackend):  # without a meter there is nothing to wait for
        return Baseline(power_w=None, method=None)
    observer(StepStarted("baseline", config.duration_seconds))
    baseline = cache.get(devices, meter.name, config.duration_seconds, clock)
    if baseline is None:
        before = cpu_times() if CPU_DEVICE in devices else None
        baseline = measure_idle_power(config.duration_seconds, "baseline", meter, clock, observer)
        after = cpu_times()
        busy_pct = None if before is None or after is None else after.busy_pct_since(before)
        if busy_pct is not None and busy_pct > BUSY_CPU_PCT:
            baseline = replace(baseline, warnings=(*baseline.warnings, _busy_cpu(busy_pct)))
        if baseline.power_w is not None and set(devices) != {CPU_DEVICE} and holds_context():
            baseline = replace(baseline, warnings=(*baseline.warnings, CONTEXT_IS_UP))
        cache.put(devices, meter.name, baseline)
    observer(StepFinished("baseline", _describe(baseline)))
    return baseline


def measure_idle_power(seconds: float, step: Step, meter: EnergyBackend, clock: Clock, observer: Observer) -> Baseline:
    """Power of the meter's devices while nothing is asked of them for `seconds`, which belong to `step`."""
    taken_at = clock.wall()
    handle = meter.start_tracking()
    try:
        wait(seconds, step, clock, observer)
    finally:
        idle = meter.stop_tracking(handle)  # also on Ctrl-C: the sampler's thread must end
        try:
            baseline = baseline_from(idle, taken_at)
        finally:
            idle.close()
    return baseline


def baseline_from(idle: EnergyMeasurement, taken_at: datetime) -> Baseline:
    """What an energy measurement of idle devices, begun at `taken_at` (UTC), says of their power."""
    if idle.total_j is None or idle.duration_sec <= 0:
        reasons = "; ".join(note.message for note in idle.notes) or "the meter gave no figure"
        return unavailable(reasons, taken_at)
    telemetry = idle.telemetry or Telemetry({})
    seen = {device: _restlessness(device, telemetry) for device in telemetry.devices}
    drift_w = {device: abs(moved_w) for device, (moved_w, _) in seen.items()}

    def half_width_w(components: Iterable[BudgetComponent], moved_w: float) -> float:
        return math.hypot(comparative_half_width(components) / idle.duration_sec, moved_w)

    return Baseline(
        power_w=idle.total_j / idle.duration_sec,
        method="fresh",
        half_width_w=half_width_w(idle.components, math.fsum(drift_w.values())),
        taken_at=taken_at,
        taken_s=idle.start_s,
        age_s=0.0,
        duration_s=idle.duration_sec,
        scope=idle.scope,
        is_estimate=idle.method == "model_estimate",
        beside_others=idle.saw(WarningCode.FOREIGN_GPU_PROCESS),
        per_device_w={
            device: energy_j / idle.duration_sec for device, energy_j in idle.per_gpu_j.items() if energy_j is not None
        },
        per_device_half_width_w={
            device: half_width_w(budget, drift_w.get(device, 0.0)) for device, budget in idle.per_gpu_components.items()
        },
        warnings=tuple(warning for _, warning in seen.values() if warning is not None),
    )


def unavailable(reason: str, taken_at: datetime | None = None) -> Baseline:
    """A baseline that could not be had."""
    note = MeasurementWarning(
        WarningCode.BASELINE_UNAVAILABLE, f"idle power was not measured ({reason}); no energy above idle is given"
    )
    return Baseline(power_w=None, method="unavailable", taken_at=taken_at, warnings=(note,))


def _restlessness(device: DeviceId, telemetry: Telemetry) -> tuple[float, MeasurementWarning | None]:
    """How far a device's power moved, from the mean of the first third to that of the last, and what that means."""
    utilisation = answered(telemetry.column(device, "sm_utilisation_pct"))
    power = answered(telemetry.column(device, "power_w"))
    busy_pct = statistics.fmean(utilisation) if utilisation else 0.0
    mean_w = statistics.fmean(power) if power else 0.0
    power_cv = statistics.pstdev(power) / mean_w if mean_w > 0 else 0.0
    third = len(power) // 3
    drift_w = statistics.fmean(power[-third:]) - statistics.fmean(power[:third]) if third else 0.0
    if busy_pct > BUSY_UTILISATION_PCT or power_cv > BUSY_POWER_CV:
        busy = f"{busy_pct:.0f} % utilisation, " if utilisation else ""
        text = (
            f"{device} was not idle during the baseline ({busy}power varied by {100 * power_cv:.0f} %); energy above "
            "idle is too low. Stop other work on it and repeat."
        )
    elif abs(drift_w) > max(SETTLING_W, SETTLING_SHARE * mean_w):
        text = (
            f"idle power of {device} moved by {drift_w:+.1f} W during the baseline, around "
            f"{mean_w:.1f} W: the device was not at rest yet. Wait for longer before a run."
        )
    else:
        return drift_w, None
    return drift_w, MeasurementWarning(WarningCode.BASELINE_NOT_IDLE, text)


def _busy_cpu(busy_pct: float) -> MeasurementWarning:
    return MeasurementWarning(
        WarningCode.BASELINE_NOT_IDLE,
        f"other programs used {busy_pct:.0f} % of the processor during the baseline; they take time from the run, and "
        "energy above idle is too low. Stop them and repeat.",
    )


def _describe(baseline: Baseline) -> str:
    if baseline.power_w is None:
        return "not measured"
    origin = f"{baseline.duration_s:.0f} s" if baseline.method == "fresh" else f"cached, {baseline.age_s:.0f} s old"
    estimated = ", estimated" if baseline.is_estimate else ""
    return f"{baseline.power_w:.1f} W idle{estimated} ({origin})"
