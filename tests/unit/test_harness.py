from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from fakes import ConstantMeter, StepEngine, VirtualClock
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.assemble import _energy_per_device
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.energy.types import EnergyMeasurement, TrackingHandle
from llenergymeasure.core.harness import Bench, measure
from llenergymeasure.core.preflight import Ready
from llenergymeasure.core.progress import Event, StepStarted, Waiting
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.results.aggregation import aggregate_results


@contextmanager
def snapshot() -> Iterator[Callable[[], EnvironmentSnapshot]]:
    yield lambda: EnvironmentSnapshot(
        python_version="3.11", tool_version="2.0.0", platform="Linux", gpu_uuids=["GPU-0"]
    )


def no_warnings(config: ExperimentConfig, engine: InferenceBackend) -> Ready:
    return Ready()


class Setup:
    """One experiment's bench of fakes: a GPU that draws 300 W, idle power included."""

    def __init__(self, tmp_path: Path, clock: VirtualClock | None = None, **engine: object) -> None:
        self.clock = clock or VirtualClock()
        self.engine = StepEngine(self.clock, **engine)  # type: ignore[arg-type]
        self.meters: list[ConstantMeter] = []
        self.events: list[Event] = []
        self.work_dir = tmp_path
        self.bench = Bench(
            engine=self.engine,
            preflight=no_warnings,
            meter_for=self.meter_for,
            environment=snapshot,
            clock=self.clock,
            observer=self.events.append,
        )

    def meter_for(self, devices: Sequence[str]) -> ConstantMeter:
        self.meters.append(ConstantMeter(self.clock, power_w=300.0, devices=tuple(devices)))
        return self.meters[-1]

    def config(self, tmp_path: Path, **fields: object) -> ExperimentConfig:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "abc"}\n{"prompt": "a longer prompt"}\n')
        base = {"model": "m", "dataset": str(prompts), "n": 2, "max_output_tokens": 50}
        return ExperimentConfig.model_validate({**base, **fields})


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_the_life_of_an_experiment_has_its_steps_in_order(setup: Setup, tmp_path: Path) -> None:
    measure(setup.config(tmp_path), setup.bench, "id", tmp_path)
    steps = [event.step for event in setup.events if isinstance(event, StepStarted)]
    assert steps == ["preflight", "baseline", "load", "warmup", "thermal_floor", "measure", "finish"]
    assert setup.engine.calls[0] == "load"
    assert setup.engine.calls[-1] == "unload"


def keys(*pressed_after_s: float, clock: VirtualClock) -> Callable[[], bool]:
    """A key that is pressed after so many seconds, and once each time."""
    due = [clock.now() + after_s for after_s in pressed_after_s]

    def pressed() -> bool:
        return bool(due) and due[0] <= clock.now() and due.pop(0) > 0

    return pressed


def test_a_wait_that_is_ended_by_hand_is_short_and_says_so(setup: Setup, tmp_path: Path) -> None:
    began_s = setup.clock.now()
    bench = replace(setup.bench, skip=keys(0.0, 5.0, 20.0, clock=setup.clock))  # the first one before the waits
    record = measure(setup.config(tmp_path), bench, "id", tmp_path).record
    assert record.baseline_power_w == pytest.approx(300.0)  # of the seconds that there were
    warnings = [text for text in record.warnings if text.startswith("wait_skipped:")]
    assert [text.partition(" with ")[2].partition(" left")[0] for text in warnings] == [
        "25 s of baseline.duration_seconds",
        "45 s of warmup.thermal_floor_seconds",
    ]
    assert all(event.skippable for event in setup.events if isinstance(event, Waiting))
    assert setup.clock.now() - began_s < 60.0


def test_nobody_can_end_a_wait_where_nobody_looks_on(setup: Setup, tmp_path: Path) -> None:
    record = measure(setup.config(tmp_path), setup.bench, "id", tmp_path).record
    assert not any(text.startswith("wait_skipped") for text in record.warnings)
    assert not any(event.skippable for event in setup.events if isinstance(event, Waiting))


def test_headline_figures_are_those_of_the_window_alone(setup: Setup, tmp_path: Path) -> None:
    record = measure(setup.config(tmp_path), setup.bench, "id", tmp_path).record
    # two prompts of 50 tokens at 10 ms each, one after the other: 1 s at 300 W
    assert record.inference_metrics.output_tokens == 100
    assert record.inference_metrics.input_tokens == len(b"abc") + len(b"a longer prompt") + 2
    assert record.inference_metrics.inference_time_sec == pytest.approx(1.0)
    assert record.inference_metrics.tokens_per_second == pytest.approx(100.0)
    assert record.energy_metrics.total_energy_j == pytest.approx(300.0)
    assert record.compute_metrics.flops_total == pytest.approx(2 * 1_000_000 * record.inference_metrics.total_tokens)


def test_one_process_aggregates_to_the_same_figures(setup: Setup, tmp_path: Path) -> None:
    record = measure(setup.config(tmp_path), setup.bench, "id", tmp_path).record
    result = aggregate_results("id", [record])
    assert result.avg_energy_per_token_j == pytest.approx(3.0)
    assert result.avg_tokens_per_second == pytest.approx(100.0)
    assert result.measurement_methodology == "steady_state"
    assert result.baseline_power_w == pytest.approx(300.0)
    assert result.energy_adjusted_j == pytest.approx(0.0, abs=1e-6)
    assert result.latency_stats is not None
    assert result.latency_stats.itl_ms is not None
    assert result.latency_stats.itl_ms.p50 == pytest.approx(10.0)
    assert result.warmup_excluded_samples == 6
    assert result.dataset is not None
    assert result.dataset.prompt_count == 2


def test_doubling_the_prompts_leaves_joules_per_token_alone(tmp_path: Path) -> None:
    per_token = []
    for passes in (1, 2):
        setup = Setup(tmp_path)
        seconds = 0.5 if passes == 1 else 1.5
        config = setup.config(tmp_path, measurement={"min_duration_seconds": seconds})
        result = aggregate_results("id", [measure(config, setup.bench, "id", tmp_path).record])
        assert result.output_tokens == 100 * passes
        per_token.append(result.avg_energy_per_token_j)
    assert per_token[0] == pytest.approx(per_token[1])


def test_a_failing_engine_is_unloaded_and_every_meter_stopped(tmp_path: Path) -> None:
    setup = Setup(tmp_path, fail_on=lambda _: BackendError("out of memory; lower pytorch.batch_size"))
    with pytest.raises(BackendError, match="lower pytorch"):
        measure(setup.config(tmp_path), setup.bench, "id", tmp_path)
    assert setup.engine.calls[-1] == "unload"
    assert [meter.open_windows for meter in setup.meters] == [0]


def test_an_engine_that_cannot_tell_its_memory_costs_no_measured_figure(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise RuntimeError("the worker does not answer")

    monkeypatch.setattr(setup.engine, "memory", refuse)
    record = measure(setup.config(tmp_path), setup.bench, "id", tmp_path).record
    assert record.energy_metrics.total_energy_j is not None
    assert record.compute_metrics.peak_memory_mb is None


def test_a_failed_preflight_loads_nothing(setup: Setup, tmp_path: Path) -> None:
    def refuse(config: ExperimentConfig, engine: InferenceBackend) -> Sequence[MeasurementWarning]:
        raise PreFlightError(["no GPU. Run on the CPU with --device cpu."])

    bench = Bench(setup.engine, refuse, setup.meter_for, snapshot, clock=setup.clock)
    with pytest.raises(PreFlightError, match="1 issue"):
        measure(setup.config(tmp_path), bench, "id", tmp_path)
    assert setup.engine.calls == []


def test_the_meter_follows_the_devices_the_engine_really_uses(tmp_path: Path) -> None:
    setup = Setup(tmp_path, planned_devices=("GPU-0", "GPU-1"), used_devices=("GPU-1",))
    record = measure(setup.config(tmp_path), setup.bench, "id", tmp_path).record
    assert [meter.devices for meter in setup.meters] == [("GPU-0", "GPU-1"), ("GPU-1",)]
    assert record.energy_per_device_j == {"GPU-1": pytest.approx(300.0)}
    assert record.baseline_power_w == pytest.approx(300.0)


def test_the_tokens_of_warm_up_enter_no_figure(tmp_path: Path) -> None:
    figures = []
    for n_warmup in (1, 20):
        setup = Setup(tmp_path)
        config = setup.config(tmp_path, warmup={"n_warmup": n_warmup, "thermal_floor_seconds": 0})
        record = measure(config, setup.bench, "id", tmp_path).record
        figures.append((record.inference_metrics, record.energy_metrics.total_energy_j, record.compute_metrics))
    assert figures[0] == figures[1]


def test_saved_outputs_hold_prompt_text_and_counts(setup: Setup, tmp_path: Path) -> None:
    config = setup.config(tmp_path, measurement={"save_outputs": True})
    artefacts = measure(config, setup.bench, "id", tmp_path).artefacts
    assert artefacts.outputs is not None
    first, second = artefacts.outputs.read_text().splitlines()
    assert '"prompt": "abc"' in first
    assert '"output_tokens": 50' in second
    assert artefacts.timeseries is None  # nothing was sampled


def test_a_file_beside_the_result_that_cannot_be_written_does_not_cost_the_result(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = setup.config(tmp_path, measurement={"save_outputs": True})
    measurement = measure(config, setup.bench, "id", tmp_path / "a directory that is not there")
    assert measurement.record.inference_metrics.output_tokens == 100
    assert measurement.artefacts.outputs is None
    assert "outputs.jsonl could not be written, so the result goes without it" in caplog.text


def test_an_engine_that_cannot_be_unloaded_does_not_cost_the_measurement(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(StepEngine):
        def unload(self) -> None:
            raise RuntimeError("CUDA error")

    bench = replace(setup.bench, engine=Stubborn(setup.clock))
    record = measure(setup.config(tmp_path), bench, "id", tmp_path).record
    assert record.inference_metrics.output_tokens == 100
    assert "could not be unloaded" in caplog.text


def test_gpus_that_nothing_metered_are_named_with_nothing_and_never_taken_for_the_processor() -> None:
    nothing = EnergyMeasurement(0.0, 1.0, None, None, None)
    assert _energy_per_device(nothing, ("GPU-a", "GPU-b")) == {"GPU-a": None, "GPU-b": None}
    assert _energy_per_device(replace(nothing, total_j=5.0), ("cpu",)) == {"cpu": 5.0}


class DimmingMeter(ConstantMeter):
    """Reads less in every window after the first, each with the same half-width."""

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        energy = super().stop_tracking(handle)
        self.power_w = 299.0
        half_width_j = 0.6 * energy.duration_sec
        part = BudgetComponent(name="counter", kind="counter_resolution", half_width_j=half_width_j)
        return replace(energy, components=(part,))


@pytest.mark.parametrize(
    ("idle_w", "said"), [(298.5, None), (299.5, "cannot be told apart"), (300.5, "the baseline was not idle")]
)
def test_idle_power_that_exceeds_the_energy_is_told_with_what_that_may_mean(
    tmp_path: Path, idle_w: float, said: str | None
) -> None:
    """Two half-widths of 0.6 W make 0.85 W for the difference."""
    setup = Setup(tmp_path)
    bench = replace(setup.bench, meter_for=lambda _: DimmingMeter(setup.clock, power_w=idle_w))
    config = setup.config(tmp_path, warmup={"enabled": False})
    record = measure(config, bench, "id", tmp_path).record
    assert record.energy_breakdown is not None
    assert record.energy_breakdown.adjusted_j is not None
    assert (record.energy_breakdown.adjusted_j < 0) is (said is not None)
    told = [text for text in record.warnings if text.startswith("baseline_exceeds_energy")]
    assert len(told) == (said is not None)
    assert all(str(said) in text for text in told)


class SharedBoard(ConstantMeter):
    """Meets somebody else's process in some windows: the baseline's, and the measurement's."""

    def __init__(self, clock: VirtualClock, others: Sequence[bool]) -> None:
        super().__init__(clock, power_w=300.0)
        self._others = iter(others)

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        note = MeasurementWarning(WarningCode.FOREIGN_GPU_PROCESS, "another process (4711)")
        return replace(super().stop_tracking(handle), notes=(note,) if next(self._others) else ())


@pytest.mark.parametrize(
    ("others", "said"),
    [
        pytest.param((False, False), set(), id="nobody"),
        pytest.param((True, True), {"foreign_gpu_process"}, id="all along, so that it is in neither difference"),
        pytest.param((False, True), {"foreign_gpu_process"}, id="came later"),
        pytest.param((True, False), {"baseline_not_idle"}, id="left"),
    ],
)
def test_a_process_beside_the_baseline_that_is_gone_in_the_window_spoils_energy_above_idle(
    tmp_path: Path, others: Sequence[bool], said: set[str]
) -> None:
    setup = Setup(tmp_path)
    bench = replace(setup.bench, meter_for=lambda _: SharedBoard(setup.clock, others))
    record = measure(setup.config(tmp_path, warmup={"enabled": False}), bench, "id", tmp_path).record
    codes = {text.partition(":")[0] for text in record.warnings}
    assert codes & {"foreign_gpu_process", "baseline_not_idle"} == said


class SetClock(VirtualClock):
    """A wall clock that somebody sets back, or forward, by an hour between any two looks at it."""

    def __init__(self, step: timedelta) -> None:
        super().__init__()
        self._step, self._looks = step, 0

    def wall(self) -> datetime:
        self._looks += 1
        return super().wall() + self._looks * self._step


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1)])
def test_dates_of_a_record_follow_the_monotonic_clock(tmp_path: Path, step: timedelta) -> None:
    setup = Setup(tmp_path, SetClock(step))
    record = measure(setup.config(tmp_path, baseline={"enabled": False}), setup.bench, "id", tmp_path).record
    assert record.started_at is not None
    assert record.ended_at is not None
    assert record.started_at <= record.timestamps.start < record.timestamps.end <= record.ended_at
    assert (record.ended_at - record.started_at).total_seconds() == pytest.approx(setup.clock.now() - 1000.0)
