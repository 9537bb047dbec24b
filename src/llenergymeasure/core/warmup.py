"""Warm-up: run the model until caches, clocks and compilers have settled, outside every figure.

The rehearsal comes first, also where warm-up is off: every shape of the window is met (backends/rehearsal.py). Fixed
mode then runs `n_warmup` iterations; convergence mode goes on until the last latencies agree. Then the thermal floor: a
wait in which the device cools to a repeatable state; its end also tells the idle power with the model in memory.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llenergymeasure.config.models import WarmupConfig
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest, InferenceBackend, Specialisation
from llenergymeasure.core.backends.rehearsal import Batch, rehearse, rehearsed_batches, shortened
from llenergymeasure.core.baseline import Baseline, measure_idle_power
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.types import EnergyBackend
from llenergymeasure.core.progress import Event, Observer, PromptsDone, StepFinished, StepStarted, Waiting, wait
from llenergymeasure.domain.metrics import WarmupResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

MIN_RESIDENT_IDLE_S = 5.0
"""Shortest thermal-floor wait from which a resident idle power is taken; the settling after warm-up needs its time."""

SETTLED_SHARE = 1 / 3
SETTLED_MAX_S = 10.0
"""The end of that wait over which it is measured, as a share of the wait, and at most so many seconds: before, the
device still cools down from warm-up."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """What warm-up did.

    Args:
        result: The record that goes into the result; `None` when warm-up was off.
        prompts_run: Prompts generated for, all of them excluded from every figure.
        idle_resident_power_w: Idle power with the model in memory, from the settled end of the thermal floor's wait.
    """

    result: WarmupResult | None
    prompts_run: int = 0
    idle_resident_power_w: float | None = None
    warnings: tuple[MeasurementWarning, ...] = ()


def warm_up(
    engine: InferenceBackend,
    requests: Sequence[GenerationRequest],
    config: WarmupConfig,
    specialisation: Specialisation,
    meter: EnergyBackend,
    clock: Clock,
    observer: Observer,
) -> Warmup:
    """Rehearse the window's shapes, warm `engine` up on the experiment's own prompts, then hold the thermal floor.

    Every iteration is one batch of the experiment's size with short outputs.

    Args:
        requests: Those of the window; iterations go through them in order, again from the start when they end.
        specialisation: What the engine says it prepares for a shape.
        meter: Measures the thermal floor's wait.
    """
    rehearsed = rehearsed_batches(requests, engine.batch_size, specialisation)
    if not (config.enabled or rehearsed):
        return Warmup(result=None)
    wanted = config.max_prompts if config.convergence_detection else config.n_warmup
    iterations = prompts = 0
    observer(StepStarted("warmup", wanted if config.enabled else len(rehearsed)))

    def generate(batch: Batch) -> GenerationOutput:
        nonlocal prompts
        output = engine.generate(batch)
        engine.synchronize()
        prompts += len(batch)
        return output

    rehearse(rehearsed, generate, specialisation.meetings)
    if not config.enabled:
        observer(StepFinished("warmup", f"off; {len(rehearsed)} shapes rehearsed"))
        return Warmup(result=None)
    size = min(engine.batch_size or specialisation.rows, len(requests))
    short = itertools.cycle([shortened(request) for request in requests])
    started_s = clock.now()

    def run_one() -> float:
        """Latency of one iteration in milliseconds."""
        nonlocal iterations
        before_s = clock.now()
        generate(list(itertools.islice(short, size)))
        after_s = clock.now()
        iterations += 1
        observer(PromptsDone("warmup", iterations, wanted, 0, after_s - started_s))
        return (after_s - before_s) * 1000.0

    result = warmup_until_converged(run_one, config)
    floor_s, resident = config.thermal_floor_seconds, None
    floor = f", then {floor_s:g} s thermal floor" if floor_s > 0 else ""
    observer(StepFinished("warmup", f"{result.iterations_completed}/{wanted} prompts{floor}"))
    if floor_s > 0:
        waited_s, resident = _hold_thermal_floor(floor_s, meter, clock, observer)
        result = result.model_copy(update={"thermal_floor_wait_s": waited_s})
        run_one()  # wakes clocks that went to sleep during the wait
    idle_w = None if resident is None else resident.power_w
    return Warmup(result, prompts, idle_w, tuple(_warnings(result, config, resident)))


def warmup_until_converged(run_one: Callable[[], float], config: WarmupConfig) -> WarmupResult:
    """Run warm-up iterations: a fixed number, then, if asked, until their latencies agree.

    Converged means that the coefficient of variation (sample standard deviation over mean) of the last
    `window_size` latencies is at most `cv_threshold`, after at least `min_prompts` iterations; where nobody asked for
    that, a fixed number is all there was to reach.

    Args:
        run_one: Runs one iteration and returns its latency in milliseconds.
        config: Counts and thresholds. `max_prompts` bounds the convergence mode, the fixed count included.
    """
    latencies_ms: list[float] = []
    if config.enabled and not config.convergence_detection:
        latencies_ms.extend(run_one() for _ in range(config.n_warmup))
    elif config.enabled:
        first = max(config.n_warmup, config.min_prompts, config.window_size)
        while len(latencies_ms) < config.max_prompts:
            latencies_ms.append(run_one())
            if len(latencies_ms) >= first and _agree(_last_cv(latencies_ms, config), config):
                break
    cv = _last_cv(latencies_ms, config)
    return WarmupResult(
        converged=not (config.enabled and config.convergence_detection) or _agree(cv, config),
        final_cv=cv,
        iterations_completed=len(latencies_ms),
        target_cv=config.cv_threshold,
        max_prompts=config.max_prompts,
        latencies_ms=latencies_ms,
    )


def _last_cv(latencies_ms: Sequence[float], config: WarmupConfig) -> float | None:
    return coefficient_of_variation(latencies_ms[-config.window_size :])


def _agree(cv: float | None, config: WarmupConfig) -> bool:
    """Whether the latencies agree, as far as there are any to compare."""
    return cv is None or cv <= config.cv_threshold


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Sample standard deviation over mean; `None` for fewer than two values or a mean of 0."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean > 0 else None


def _hold_thermal_floor(
    seconds: float, meter: EnergyBackend, clock: Clock, observer: Observer
) -> tuple[float, Baseline | None]:
    """Wait; returns for how many seconds, and the idle power that was measured at the end."""
    observer(StepStarted("thermal_floor", seconds))
    before_s = clock.now()
    resident = None
    if seconds >= MIN_RESIDENT_IDLE_S and not isinstance(meter, NoEnergyBackend):
        settled_s = min(SETTLED_SHARE * seconds, SETTLED_MAX_S)

        def count_down(event: Event) -> None:
            """Tell the time until the end of the whole wait."""
            observer(replace(event, remaining_s=event.remaining_s + settled_s) if isinstance(event, Waiting) else event)

        wait(seconds - settled_s, "thermal_floor", clock, count_down)
        resident = measure_idle_power(settled_s, "thermal_floor", meter, clock, observer)
    else:
        wait(seconds, "thermal_floor", clock, observer)
    waited_s = clock.now() - before_s
    observer(StepFinished("thermal_floor", f"{waited_s:.0f} s"))
    return waited_s, resident


def _warnings(result: WarmupResult, config: WarmupConfig, resident: Baseline | None) -> Iterator[MeasurementWarning]:
    if config.convergence_detection and not result.converged:
        yield MeasurementWarning(
            WarningCode.WARMUP_NOT_CONVERGED,
            f"latencies still varied after {result.iterations_completed} warm-up prompts "
            f"(CV {result.final_cv:.3f}, wanted {result.target_cv:g}); raise warmup.max_prompts",
        )
    if config.thermal_floor_seconds <= 0:
        yield MeasurementWarning(
            WarningCode.THERMAL_FLOOR_DISABLED,
            "no wait between warm-up and measurement (warmup.thermal_floor_seconds is 0); "
            "the device's temperature at the start depends on what ran before",
        )
    if resident is not None and resident.power_w is None:
        reasons = "; ".join(warning.message for warning in resident.warnings)
        yield MeasurementWarning(
            WarningCode.TELEMETRY_UNAVAILABLE, f"no idle power with the model in memory: {reasons}"
        )
