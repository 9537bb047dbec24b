"""Experiments on fakes, for tests of what a setting changes: one call runs one, and tells everything that was seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from energy_fakes import listed
from fakes import ConstantMeter, StepEngine, VirtualClock
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest, InferenceBackend
from llenergymeasure.core.energy.telemetry import TelemetrySample
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.harness import Bench, measure
from llenergymeasure.core.preflight import Ready
from llenergymeasure.core.progress import Event, StepStarted
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import RawProcessResult

POWER_W = 200.0
STEP_S = 0.01


@dataclass
class SampledMeter(ConstantMeter):
    """A meter that also keeps a power sample every 10 ms, a little beyond the window at both ends."""

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        energy = super().stop_tracking(handle)
        count = round(energy.duration_sec * 100) + 3
        times_s = [energy.start_s + (index - 1) / 100 for index in range(count)]
        samples = [TelemetrySample(time_s, self.power_w) for time_s in times_s]
        return replace(energy, telemetry=listed(dict.fromkeys(self.devices, samples)))


@dataclass(frozen=True)
class Run:
    """One measured experiment and everything that was asked of the engine."""

    record: RawProcessResult
    artefacts: Artefacts
    events: list[Event]
    batches: list[list[GenerationRequest]]
    took_s: float

    @property
    def steps(self) -> list[str]:
        return [event.step for event in self.events if isinstance(event, StepStarted)]

    @property
    def warning_codes(self) -> set[str]:
        return {warning.partition(":")[0] for warning in self.record.warnings}


@contextmanager
def ready_snapshot() -> Iterator[Callable[[], EnvironmentSnapshot]]:
    """An environment that is known already."""
    yield lambda: EnvironmentSnapshot(python_version="3.11", tool_version="2.0.0", platform="Linux")


def no_warnings(config: ExperimentConfig, engine: InferenceBackend) -> Ready:
    """A pre-flight that finds nothing."""
    return Ready()


class ExperimentBench:
    """Runs experiments on four prompts of 3, 5, 7 and 9 bytes, without warm-up and baseline unless asked for.

    Args:
        directory: An existing directory for the prompts and the runs' files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prompts = directory / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps({"prompt": "x" * length}) + "\n" for length in (3, 5, 7, 9)))

    def config(self, **fields: Any) -> ExperimentConfig:
        """The experiment with these fields."""
        defaults = {
            "model": "somebody/model",
            "dataset": str(self.prompts),
            "n": 4,
            "max_output_tokens": 10,
            "warmup": {"enabled": False},
            "baseline": {"enabled": False},
        }
        return ExperimentConfig.model_validate({**defaults, **fields})

    def run(
        self,
        *,
        engine: type[StepEngine] = StepEngine,
        engine_name: str = "pytorch",
        meter: type[ConstantMeter] = SampledMeter,
        **fields: Any,
    ) -> Run:
        """Measure the experiment with these fields on a virtual clock."""
        clock = VirtualClock()
        fake = engine(clock, step_s=STEP_S, name=engine_name)
        events: list[Event] = []
        bench = Bench(
            engine=fake,
            preflight=no_warnings,
            meter_for=lambda devices: meter(clock, power_w=POWER_W, devices=tuple(devices)),
            environment=ready_snapshot,
            clock=clock,
            observer=events.append,
        )
        before_s = clock.now()
        measured = measure(self.config(**fields), bench, "id", self.directory)
        return Run(measured.record, measured.artefacts, events, fake.batches, clock.now() - before_s)
