"""The life of one experiment, on one page.

    pre-flight → environment snapshot → idle baseline → load model → warm-up → thermal floor
               → [ measurement window ] → metrics, warnings → record

Only the window's energy, time and tokens enter the headline numbers. Every step is a module of its own; nothing here
knows which engine, meter or clock it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest, InferenceBackend, LoadedModel, MemoryStats
from llenergymeasure.core.baseline import Baseline, BaselineCache, measure_baseline
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.energy.types import DeviceId
from llenergymeasure.core.progress import Observer, StepFinished, StepStarted, ignore_events
from llenergymeasure.core.warmup import Warmup, warm_up
from llenergymeasure.core.window import Window, measure_window
from llenergymeasure.datasets.loader import load_prompts
from llenergymeasure.datasets.types import PromptSet
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.warnings import MeasurementWarning
from llenergymeasure.protocols import EnergyBackend


class PendingEnvironment(Protocol):
    """An environment snapshot that is being taken in the background."""

    def result(self) -> EnvironmentSnapshot:
        """The snapshot; waits until it is complete."""


@dataclass(frozen=True)
class Bench:
    """What an experiment runs on: everything that a test replaces.

    Args:
        engine: The inference engine, not yet loaded.
        preflight: Checks the config against this machine; returns warnings, raises `PreFlightError`.
        meter_for: Gives the meter for a set of devices.
        environment: Starts the environment snapshot.
        baselines: This session's idle measurements.
        clock: The measurement clock.
        observer: Who is told what happens.
        wait_for_others: Called right before the window opens: the barrier of a run on several processes.
    """

    engine: InferenceBackend
    preflight: Callable[[ExperimentConfig, InferenceBackend], Sequence[MeasurementWarning]]
    meter_for: Callable[[Sequence[DeviceId]], EnergyBackend]
    environment: Callable[[], AbstractContextManager[PendingEnvironment]]
    baselines: BaselineCache = field(default_factory=BaselineCache)
    clock: Clock = field(default_factory=SystemClock)
    observer: Observer = ignore_events
    wait_for_others: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything that was seen of one experiment on one process, before any arithmetic.

    Args:
        config: The experiment.
        engine: Name and version of the inference engine.
        began_s: Start of the experiment on the measurement clock, in seconds.
        began_at: The same moment for people (UTC).
        environment: The machine and its software.
        prompts: What was generated from.
        baseline: Idle power.
        warmup: What warm-up did.
        window: What happened in the measurement window.
        model: What was loaded, read back from the engine.
        memory: Device memory of the window.
        devices: The devices the engine really used.
        preflight_warnings: Doubts found before anything ran.
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
    preflight_warnings: tuple[MeasurementWarning, ...] = ()


def observe(config: ExperimentConfig, bench: Bench) -> Observations:
    """Run one experiment on this process's devices and tell everything that was seen.

    Args:
        config: What to run.
        bench: What to run it on.

    Raises:
        PreFlightError: The config cannot run on this machine; nothing was loaded.
        BackendError: The engine failed. It has been unloaded, and every meter stopped.
        EnergyError: The meter that was asked for does not work.
    """
    engine, clock, observer = bench.engine, bench.clock, bench.observer
    began_s, began_at = clock.now(), clock.wall()
    preflight_warnings = _run_preflight(config, bench)
    with bench.environment() as environment:
        prompts = load_prompts(config, engine.tokenizer(config))
        snapshot = environment.result()
    planned = engine.plan_devices(config)
    meter = bench.meter_for(planned)
    baseline = measure_baseline(config.baseline, meter, planned, bench.baselines, clock, observer)
    requests = make_requests(prompts, config)
    with loaded(engine, config, observer) as devices:
        if set(devices) != set(planned):
            meter, baseline = bench.meter_for(devices), baseline.restricted_to(devices)
        warmup = warm_up(engine, requests, config.warmup, meter, clock, observer)
        window = measure_window(
            engine,
            requests,
            meter,
            clock,
            observer,
            min_duration_s=config.measurement.min_duration_seconds or 0.0,
            wait_for_others=bench.wait_for_others,
        )
        model, memory = engine.describe(), engine.memory()
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
        preflight_warnings=preflight_warnings,
    )


def make_requests(prompts: PromptSet, config: ExperimentConfig) -> list[GenerationRequest]:
    """The engine's requests: every prompt with its output limits, in order."""
    requests = []
    for prompt in prompts.prompts:
        most = min(prompt.max_new_tokens or config.max_output_tokens, config.max_output_tokens)
        least = min(config.decoder.min_new_tokens or 0, most)
        requests.append(GenerationRequest(prompt.index, prompt.token_ids, most, least))
    return requests


@contextmanager
def loaded(engine: InferenceBackend, config: ExperimentConfig, observer: Observer) -> Iterator[tuple[DeviceId, ...]]:
    """Load the model for the length of a `with` block; yields the devices it really uses."""
    observer(StepStarted("load"))
    try:
        engine.load(config)
        devices = engine.devices()
        names = ", ".join(dict.fromkeys(engine.describe().device_names)) or ", ".join(devices)
        observer(StepFinished("load", f"{config.model} on {names}"))
        yield devices
    finally:
        engine.unload()


def _run_preflight(config: ExperimentConfig, bench: Bench) -> tuple[MeasurementWarning, ...]:
    bench.observer(StepStarted("preflight"))
    warnings = tuple(bench.preflight(config, bench.engine))
    bench.observer(StepFinished("preflight", "ok"))
    return warnings
