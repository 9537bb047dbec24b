"""The life of one experiment, on one page.

    pre-flight → environment snapshot → idle baseline → load model → warm-up → thermal floor
               → [ measurement window ] → metrics, warnings → record

Only the window's energy, time and tokens enter the headline numbers. Every step is a module of its own; nothing here
knows which engine, meter or clock it was given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.assemble import MetricsCollector, Observations, RecordCollector
from llenergymeasure.core.backends.protocol import GenerationRequest, InferenceBackend, LoadedModel, MemoryStats
from llenergymeasure.core.baseline import BaselineCache, measure_baseline
from llenergymeasure.core.clock import Clock, SteadyClock, SystemClock
from llenergymeasure.core.energy.types import EnergyBackend
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.host.marker import OTHERS_MEASURE, alone
from llenergymeasure.core.preflight import Ready
from llenergymeasure.core.progress import (
    WAITING_STEPS,
    Attended,
    Observer,
    SkipKey,
    StepFinished,
    StepStarted,
    ignore_events,
)
from llenergymeasure.core.timeseries import Artefacts, write_artefacts
from llenergymeasure.core.warmup import warm_up
from llenergymeasure.core.window import Barrier, measure_window
from llenergymeasure.datasets.loader import load_prompts
from llenergymeasure.datasets.types import WHOLE, PromptSet, Shard
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import RawProcessResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What an experiment runs on: everything that a test replaces.

    Args:
        preflight: Checks the config against this machine; raises `PreFlightError`.
        environment: Takes a snapshot while a block works, and gives a function that waits for it.
        wait_for_others: The barrier of a run on several processes: passed after the baseline, and at both ends of the
            window; `None`: it is on one.
        skip: Ends a wait when it answers true; `None`: nobody can.
        elsewhere: GPUs of other machines that the engine may use too.
        alongside: Tells others that this process measures, and gives a function that tells whether others do.
    """

    engine: InferenceBackend
    preflight: Callable[[ExperimentConfig, InferenceBackend], Ready]
    meter_for: Callable[[Sequence[DeviceId]], EnergyBackend]
    environment: Callable[[], AbstractContextManager[Callable[[], EnvironmentSnapshot]]]
    collector: MetricsCollector = field(default_factory=RecordCollector)
    baselines: BaselineCache = field(default_factory=BaselineCache)
    clock: Clock = field(default_factory=SystemClock)
    observer: Observer = ignore_events
    shard: Shard = WHOLE
    wait_for_others: Barrier | None = None
    skip: SkipKey | None = None
    elsewhere: tuple[DeviceId, ...] = ()
    alongside: Callable[[], AbstractContextManager[Callable[[], bool]]] = alone


@dataclass(frozen=True, slots=True)
class Measurement:
    """One process's shard of an experiment, measured."""

    record: RawProcessResult
    artefacts: Artefacts


def measure(config: ExperimentConfig, bench: Bench, experiment_id: str, work_dir: Path) -> Measurement:
    """Measure one experiment on this process's devices.

    Raises:
        PreFlightError: The config cannot run on this machine; nothing was loaded.
        BackendError: The engine failed. It has been unloaded, and every meter stopped.
        EnergyError: The meter that was asked for does not work.
        ExperimentError: The slice of the window that counts holds no output token.
    """
    bench = replace(bench, clock=SteadyClock(bench.clock))
    with bench.alongside() as others_measure:
        seen = observe(config, bench)
        if others_measure():
            seen = replace(seen, preflight_warnings=(*seen.preflight_warnings, OTHERS_MEASURE))
    try:
        bench.observer(StepStarted("finish"))
        artefacts = write_artefacts(seen, work_dir)
        record = bench.collector.collect(seen, experiment_id, bench.clock.wall(), bench.shard.index)
    finally:
        seen.window.energy.close()
    return Measurement(record, artefacts)


def observe(config: ExperimentConfig, bench: Bench) -> Observations:
    """Run one experiment on this process's devices and tell everything that was seen.

    Raises:
        PreFlightError: The config cannot run on this machine; nothing was loaded.
        BackendError: The engine failed. It has been unloaded, and every meter stopped.
        EnergyError: The meter that was asked for does not work.
    """
    engine, clock = bench.engine, bench.clock
    observer = bench.observer if bench.skip is None else Attended(bench.observer, bench.skip)
    began_s, began_at = clock.now(), clock.wall()
    observer(StepStarted("preflight"))
    ready = bench.preflight(config, engine)
    observer(StepFinished("preflight", "ok"))
    with bench.environment() as environment:
        tokenizer = engine.tokenizer(config)
        prompts = bench.shard.of(load_prompts(config, tokenizer, ready.prompts))
        snapshot = environment()
    planned = (*engine.plan_devices(config), *bench.elsewhere)
    meter = ready.meter or bench.meter_for(planned)
    baseline = measure_baseline(config.baseline, meter, planned, bench.baselines, clock, observer)
    requests = _requests(prompts, config)
    if bench.wait_for_others is not None:
        bench.wait_for_others(0.0)  # one process's loading must not be in another's idle power
    with _loaded(engine, config, observer) as model:
        devices = engine.devices()
        if set(devices) != set(planned):
            meter, baseline = bench.meter_for(devices), baseline.restricted_to(devices)
        warmup = warm_up(engine, requests, config.warmup, model.specialisation, meter, clock, observer)
        window = measure_window(
            engine,
            requests,
            meter,
            clock,
            observer,
            min_duration_s=config.measurement.min_duration_seconds or 0.0,
            wait_for_others=bench.wait_for_others,
        )
        memory = _memory(engine)
    return Observations(
        config=config,
        engine=(engine.name, engine.version()),
        began_s=began_s,
        began_at=began_at,
        environment=snapshot,
        prompts=prompts,
        baseline=baseline,
        warmup=warmup,
        window=window,
        model=model,
        memory=memory,
        devices=devices,
        tokenizer=tokenizer,
        preflight_warnings=(*ready.warnings, *_skipped_waits(observer)),
    )


def _memory(engine: InferenceBackend) -> MemoryStats:
    """What the engine tells of its memory after the window; nothing where asking fails: what was measured stands."""
    try:
        return engine.memory()
    except Exception:
        logger.warning("The %s engine could not tell its memory", engine.name, exc_info=True)
        return MemoryStats()


def _skipped_waits(observer: Observer) -> Iterator[MeasurementWarning]:
    for step, left_s in observer.skipped.items() if isinstance(observer, Attended) else ():
        said = WAITING_STEPS[step]
        text = f"a wait was ended by hand with {left_s:.0f} s of {said.field} left; {said.cut_short}"
        yield MeasurementWarning(WarningCode.WAIT_SKIPPED, text)


def _requests(prompts: PromptSet, config: ExperimentConfig) -> list[GenerationRequest]:
    """The engine's requests: every prompt with its output limits, in order."""
    requests = []
    for prompt in prompts.prompts:
        most = min(prompt.max_new_tokens or config.max_output_tokens, config.max_output_tokens)
        least = min(config.decoder.min_new_tokens or 0, most)
        requests.append(GenerationRequest(prompt.index, prompt.token_ids, most, least))
    return requests


@contextmanager
def _loaded(engine: InferenceBackend, config: ExperimentConfig, observer: Observer) -> Iterator[LoadedModel]:
    """Load the model for the length of a `with` block; yields what was really loaded."""
    observer(StepStarted("load"))
    try:
        engine.load(config)
        model = engine.describe()
        names = ", ".join(dict.fromkeys(model.device_names or engine.devices()))
        observer(StepFinished("load", f"{config.model} on {names}"))
        yield model
    finally:
        try:
            engine.unload()
        except Exception:  # it leaves memory behind, but what it has measured stands
            message = "The %s engine could not be unloaded; memory may still be in use"
            logger.warning(message, engine.name, exc_info=True)
