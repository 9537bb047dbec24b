"""Whole experiments on scripted boards: harness, meter, sampler and binding are real; engine and GPU are played."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from tests.nvml.scripted import ScriptedGpu

from energy_fakes import listed, steady
from fakes import ConstantMeter, StepEngine, VirtualClock
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.assemble import Observations, RecordCollector
from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    InferenceBackend,
    RequestOutput,
)
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DeviceId
from llenergymeasure.core.harness import Bench, measure
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.host.marker import alone
from llenergymeasure.core.preflight import Ready
from llenergymeasure.core.progress import SkipKey
from llenergymeasure.core.timeseries import Artefacts
from llenergymeasure.core.window import Window
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult
from llenergymeasure.results.aggregation import aggregate_results

NO_CPU_COUNTERS = Host(root=Path("/no/powercap/tree"))
PREFILL_W, DECODE_W = 600.0, 300.0


@dataclass
class BoardEngine(StepEngine):
    """An engine in real time: a stretch of prefill, then steps; a board that it drives draws power accordingly.

    Args:
        prefill_s: Seconds until the first token.
        drives: The board whose power follows the phases; `None`: power is whatever the board's script says.
        idle_w: What it draws when nothing is generated.
        resident_w: What it draws from loading on; `None`: no change.
    """

    clock: SystemClock = field(default_factory=SystemClock)  # type: ignore[assignment]
    prefill_s: float = 0.2
    drives: ScriptedGpu | None = None
    idle_w: float = 100.0
    resident_w: float | None = None

    def load(self, config: ExperimentConfig) -> None:
        super().load(config)
        if self.drives is not None and self.resident_w is not None:
            self.drives.set_power_now(self.resident_w)

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        self.calls.append("generate")
        tokens = max(request.max_new_tokens for request in requests)
        started_s = self._draw(PREFILL_W)
        self.clock.sleep(self.prefill_s)
        first_s = self._draw(DECODE_W)
        self.clock.sleep(self.step_s * (tokens - 1))
        step_s = (self._draw(self.idle_w) - first_s) / max(1, tokens - 1)
        times_s = array("d", (first_s + i * step_s for i in range(tokens)))
        return GenerationOutput(
            tuple(
                RequestOutput(
                    index=request.index,
                    input_tokens=len(request.token_ids),
                    token_ids=array("i", [7] * request.max_new_tokens),
                    finish_reason="length",
                    started_s=started_s,
                    token_times_s=times_s[: request.max_new_tokens],
                )
                for request in requests
            )
        )

    def _draw(self, power_w: float) -> float:
        """Set the board's power; returns when that was."""
        if self.drives is not None and self.resident_w is None:
            self.drives.set_power_now(power_w)
        return self.clock.now()


@dataclass(frozen=True)
class ScriptedRun:
    """A finished experiment, with what was seen on the way."""

    result: ExperimentResult
    record: RawProcessResult
    artefacts: Artefacts
    seen: Observations

    @property
    def window(self) -> Window:
        return self.seen.window

    @property
    def codes(self) -> set[str]:
        return {warning.partition(":")[0] for warning in self.result.measurement_warnings}

    def true_j(self, *gpus: ScriptedGpu) -> float:
        """What really flowed in the window."""
        energy = self.window.energy
        return sum(gpu.energy_between_j(energy.start_s, energy.end_s) for gpu in gpus)


class _Keeping(RecordCollector):
    """Keeps what it was given."""

    seen: Observations | None = None

    def collect(
        self, seen: Observations, experiment_id: str, ended_at: datetime, process_index: int = 0
    ) -> RawProcessResult:
        self.seen = seen
        return super().collect(seen, experiment_id, ended_at, process_index)


@contextmanager
def _snapshot() -> Iterator[Callable[[], EnvironmentSnapshot]]:
    yield lambda: EnvironmentSnapshot(python_version="3.11", tool_version="2.0.0", platform="Linux")


def _ready(config: ExperimentConfig, engine: InferenceBackend) -> Ready:
    return Ready()


def experiment(directory: Path, *, prompts: int = 2, **fields: object) -> ExperimentConfig:
    """A config with waits so short that the schema, which means real boards, would not have them.

    Half a second of baseline, one warm-up prompt, a tenth of a second of thermal floor, unless `fields` say otherwise.
    """
    file = directory / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "prompt {i}"}}\n' for i in range(100)))
    base = {"model": "m", "dataset": str(file), "n": prompts, "max_output_tokens": 50}
    config = ExperimentConfig.model_validate({**base, **fields})
    shorter = {}
    if "baseline" not in fields:
        shorter["baseline"] = config.baseline.model_copy(update={"duration_seconds": 0.5})
    if "warmup" not in fields:
        shorter["warmup"] = config.warmup.model_copy(update={"n_warmup": 1, "thermal_floor_seconds": 0.1})
    return config.model_copy(update=shorter)


def run_experiment(
    config: ExperimentConfig,
    engine: StepEngine,
    work_dir: Path,
    *,
    meter: BackendName = "nvml",
    poll_interval_ms: int = 100,
) -> ScriptedRun:
    """Measure `config` on the boards that are being played."""
    collector, clock = _Keeping(), SystemClock()

    def meter_for(devices: Sequence[DeviceId]) -> EnergyBackend:
        options = MeterOptions(poll_interval_ms=poll_interval_ms, spill_dir=work_dir)
        return select_energy_backend(meter, devices, options, replace(NO_CPU_COUNTERS, clock=clock))

    bench = Bench(
        engine=engine,
        preflight=_ready,
        meter_for=meter_for,
        environment=_snapshot,
        collector=collector,
        clock=clock,
    )
    measurement = measure(config, bench, "id", work_dir)
    if collector.seen is None:
        raise RuntimeError("nothing was collected")
    result = aggregate_results("id", [measurement.record])
    return ScriptedRun(result, measurement.record, measurement.artefacts, collector.seen)


class SampledMeter(ConstantMeter):
    """A meter of constant power with a sampler beside it."""

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        energy = super().stop_tracking(handle)
        samples = steady(self.power_w, energy.start_s, energy.end_s, 0.02)
        return replace(energy, telemetry=listed(dict.fromkeys(self.devices, samples)))


def run_virtual_experiment(
    directory: Path,
    *,
    clock: VirtualClock | None = None,
    engine: StepEngine | None = None,
    alongside: Callable[[], AbstractContextManager[Callable[[], bool]]] = alone,
    skip: SkipKey | None = None,
    **fields: object,
) -> ExperimentResult:
    """An experiment without hardware or baseline: a meter that sees constant power, a clock that only work moves."""
    clock = clock or VirtualClock()
    directory.mkdir(exist_ok=True)
    prompts = directory / "prompts.jsonl"
    prompts.write_text('{"prompt": "a prompt"}\n')
    base = {"model": "m", "dataset": str(prompts), "n": 1, "baseline": {"enabled": False}}
    config = ExperimentConfig.model_validate({**base, **fields})
    bench = Bench(
        engine=engine or StepEngine(clock, step_s=0.1),
        preflight=_ready,
        meter_for=lambda devices: SampledMeter(clock, devices=tuple(devices)),
        environment=_snapshot,
        clock=clock,
        alongside=alongside,
        skip=skip,
    )
    return aggregate_results("id", [measure(config, bench, "id", directory).record])
