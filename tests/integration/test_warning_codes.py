"""Every warning code, raised by the situation it is for and by no other.

Situations that a meter sees are played all at once, each in a thread of its own, over windows of more than ten seconds;
the rest needs no hardware and runs on a virtual clock. What each situation raises is compared as a whole: its own code,
what follows from it by necessity, and nothing else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from tests.nvml.scripted import (
    NVML_GPU_IS_LOST,
    NVML_UNKNOWN,
    Fault,
    MigSlice,
    Process,
    ScriptedGpu,
    ScriptedNvml,
    have_compiler,
)
from tests.nvml.virtual import Counter, CounterEvent
from tests.nvml.waveform import steps

from fakes import StepEngine, VirtualClock
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.core.host.marker import measuring
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.results.aggregation import aggregate_results
from llenergymeasure.results.persistence import load_result
from result_samples import make_record
from scripted_experiments import BoardEngine, ScriptedRun, experiment, run_experiment, run_virtual_experiment
from study_fakes import ENVIRONMENT, Stage, result_of, study_of

IDLE_W, LOADED_W = 100.0, 300.0
LOADED_FROM_S = 5.2
"""Script time at which boards begin to draw more: every baseline is over by then, and no window open."""

OPEN_S, STILL_OPEN_S = 11.0, 13.0
"""Script times between which every window is open."""

NO_PROCESS = 4_194_303
"""The highest process id there can be on Linux."""


@dataclass(frozen=True)
class Situation:
    """What is different from a board in good order, and what follows from that besides the code in question."""

    board: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    engine: Mapping[str, object] = field(default_factory=dict)
    poll_interval_ms: int = 100
    implies: frozenset[WarningCode] = frozenset()
    uses_mig: bool = False
    plans_another: bool = False


def from_inside(before: float, after: float) -> list[tuple[float, float]]:
    """A value that changes inside every window."""
    return [(0.0, before), (0.5 * (OPEN_S + STILL_OPEN_S), after)]


def failing(function: str, code: int, from_s: float = 0.0) -> Mapping[str, object]:
    return {"faults": (Fault(function, "error", code, from_s),)}


ON_BOARDS: Mapping[WarningCode, Situation] = {
    WarningCode.SHORT_MEASUREMENT_DURATION: Situation(config={"measurement": {}}, engine={"step_s": 0.02}),
    WarningCode.NVML_LOW_SAMPLE_COUNT: Situation(
        {"buffer": None}, poll_interval_ms=1500, implies=frozenset({WarningCode.PHASES_NOT_RESOLVED})
    ),
    WarningCode.GPU_PERSISTENCE_MODE_OFF: Situation({"persistence_mode": False}),
    WarningCode.THERMAL_DRIFT_DETECTED: Situation({"temperature_c": from_inside(50.0, 58.0)}),
    WarningCode.THERMAL_THROTTLING: Situation({"throttle_reasons": from_inside(0.0, 0x40)}),
    WarningCode.POWER_THROTTLING: Situation({"throttle_reasons": from_inside(0.0, 0x04)}),
    WarningCode.CLOCKS_DRIFTED: Situation({"sm_clock_mhz": from_inside(1980.0, 1500.0)}),
    WarningCode.ENERGY_METHODS_DISAGREE: Situation({"counter_events": (CounterEvent("jump", OPEN_S, amount_j=200.0),)}),
    WarningCode.BASELINE_NOT_IDLE: Situation({"utilisation_pct": 80.0}),
    WarningCode.BASELINE_EXCEEDS_ENERGY: Situation({"waveform": steps((0.0, 400.0), (LOADED_FROM_S, LOADED_W))}),
    WarningCode.BASELINE_UNAVAILABLE: Situation(plans_another=True),
    WarningCode.FOREIGN_GPU_PROCESS: Situation({"processes": (Process(os.getpid()), Process(NO_PROCESS))}),
    WarningCode.MIG_PARENT_ENERGY: Situation({"mig_slices": (MigSlice("MIG-0000-slice"),)}, uses_mig=True),
    WarningCode.SAMPLER_DEADLINES_MISSED: Situation({"faults": (Fault("nvmlDeviceGetTemperature", "sleep", 0.15),)}),
    WarningCode.TELEMETRY_UNAVAILABLE: Situation(failing("nvmlDeviceGetTemperature", NVML_UNKNOWN)),
    WarningCode.ENERGY_UNAVAILABLE: Situation(
        failing("*", NVML_GPU_IS_LOST, OPEN_S),
        implies=frozenset({WarningCode.TELEMETRY_UNAVAILABLE, WarningCode.PHASES_NOT_RESOLVED}),
    ),
    WarningCode.PHASES_NOT_RESOLVED: Situation(engine={"prefill_s": 0.02}),
}

IN_GOOD_ORDER = Situation()

LONG_ENOUGH = {"measurement": {"min_duration_seconds": 10.2}}


def board_for(index: int, situation: Situation) -> ScriptedGpu:
    described = {
        "waveform": steps((0.0, IDLE_W), (LOADED_FROM_S, LOADED_W)),
        "counter": Counter(0.1, phase_s=0.005 * index),
        "utilisation_pct": 0.0,
        "name": "H",
        **situation.board,
    }
    return ScriptedGpu.of("hopper", **described)  # type: ignore[arg-type]


def run_on_board(situation: Situation, gpu: ScriptedGpu, other: ScriptedGpu, directory: Path) -> ScriptedRun:
    device = gpu.mig_slices[0].uuid if situation.uses_mig else gpu.uuid
    engine = BoardEngine(
        **{
            "used_devices": (device,),
            "planned_devices": (other.uuid,) if situation.plans_another else None,
            "prefill_s": 1.0,
            "step_s": 0.05,
            **situation.engine,
        }
    )
    config = experiment(directory, **{"prompts": 1, "max_output_tokens": 90, **LONG_ENOUGH, **situation.config})
    longer = config.warmup.model_copy(update={"n_warmup": 2})
    config = config.model_copy(update={"warmup": longer})
    return run_experiment(config, engine, directory, poll_interval_ms=situation.poll_interval_ms)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[WarningCode | None, ScriptedRun]:
    """Every situation on a board of its own; `None`: the board in good order. One after the other begins."""
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    situations: dict[WarningCode | None, Situation] = {None: IN_GOOD_ORDER, **ON_BOARDS}
    shared = [
        code for code, situation in situations.items() if not situation.board
    ]  # boards in good order can be shared
    boards = {code: board_for(i, s) for i, (code, s) in enumerate(situations.items()) if code not in shared[1:]}
    found: dict[WarningCode | None, ScriptedRun] = {}
    errors: list[BaseException] = []
    spare = board_for(15, IN_GOOD_ORDER)
    with ScriptedNvml([*boards.values(), spare], tmp_path_factory.mktemp("script")) as nvml:
        clock = SystemClock()

        def run(code: WarningCode | None, begin_s: float, directory: Path) -> None:
            clock.sleep(nvml.origin_s + begin_s - clock.now())
            try:
                found[code] = run_on_board(situations[code], boards.get(code, boards[None]), spare, directory)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=run, args=(code, 0.1 + 0.15 * i, tmp_path_factory.mktemp("run")))
            for i, code in enumerate(situations)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return found


def virtual(directory: Path, **fields: object) -> set[str]:
    """Codes of an experiment on a virtual clock, whose window is longer than ten seconds."""
    return codes_of(run_virtual_experiment(directory, **{**LONG_ENOUGH, **fields}))


def codes_of(result: ExperimentResult) -> set[str]:
    return {warning.partition(":")[0] for warning in result.measurement_warnings}


class RestlessEngine(StepEngine):
    """Each batch takes longer than the one before."""

    def generate(self, requests):  # type: ignore[no-untyped-def]
        self.step_s *= 1.5
        return super().generate(requests)


def warmup_that_does_not_settle(directory: Path) -> set[str]:
    clock = VirtualClock()
    warmup = {"n_warmup": 1, "convergence_detection": True, "max_prompts": 6}
    engine = RestlessEngine(clock, step_s=0.1)
    return codes_of(run_virtual_experiment(directory, engine=engine, clock=clock, warmup=warmup, **LONG_ENOUGH))


def estimate_of_a_model(directory: Path) -> set[str]:
    """The real CodeCarbon, for a processor without readable counters; its window is as short as it may be."""
    pytest.importorskip("codecarbon")
    config = experiment(directory, prompts=1, baseline={"enabled": False})
    run = run_experiment(config, BoardEngine(used_devices=(CPU_DEVICE,)), directory, meter="codecarbon")
    return run.codes - {"short_measurement_duration", "phases_not_resolved"}


def processes(*records: RawProcessResult) -> set[str]:
    return codes_of(aggregate_results(records[0].experiment_id, list(records)))


def study_with(stage: Stage) -> set[str]:
    result = stage.runner(study_of("a", "b")).run()
    return set.union(*(codes_of(load_result(stage.directory / file)) for file in result.result_files))


def study_on_another_driver(directory: Path) -> set[str]:
    stage = Stage(directory)
    newer = ENVIRONMENT.model_copy(update={"cuda_driver_version": "570.86"})
    stage.launcher.act = lambda job: result_of(
        job.config, environment_snapshot=newer if job.config.model == "b" else ENVIRONMENT
    )
    return study_with(stage)


class UnsettledEngine(StepEngine):
    """Something is compiled in every batch."""

    def generate(self, requests):  # type: ignore[no-untyped-def]
        return replace(super().generate(requests), compilations=1)


class StallingEngine(StepEngine):
    """Stands still in the middle of each text."""

    def generate(self, requests):  # type: ignore[no-untyped-def]
        output = super().generate(requests)
        self.clock.sleep(self.step_s * 100)
        for request in output.requests:
            for i in range(len(request.token_times_s) // 2, len(request.token_times_s)):
                request.token_times_s[i] += self.step_s * 100
        return output


class CrowdedEngine(StepEngine):
    """Has to compute each request again."""

    def generate(self, requests):  # type: ignore[no-untyped-def]
        output = super().generate(requests)
        return replace(output, requests=tuple(replace(request, preemptions=1) for request in output.requests))


class BatchDependentEngine(StepEngine):
    """Says of its model that rows reach into each other."""

    def describe(self):  # type: ignore[no-untyped-def]
        warning = MeasurementWarning(WarningCode.BATCH_CHANGES_TEXTS, "rows reach into each other")
        return replace(super().describe(), warnings=(warning,))


def on_engine(directory: Path, kind: type[StepEngine]) -> set[str]:
    clock = VirtualClock()
    engine = kind(clock, step_s=0.1)
    return codes_of(run_virtual_experiment(directory, engine=engine, clock=clock, **LONG_ENOUGH))


def beside_another(directory: Path) -> set[str]:
    """Somebody else holds the marker."""
    with measuring(directory):
        return codes_of(run_virtual_experiment(directory, alongside=partial(measuring, directory), **LONG_ENOUGH))


def impatient(directory: Path) -> set[str]:
    """Somebody presses the key once, near the end of the wait, when the idle power of then is known already."""
    looks = count()
    return codes_of(run_virtual_experiment(directory, skip=lambda: next(looks) == 57, **LONG_ENOUGH))


ELSEWHERE: Mapping[WarningCode, Callable[[Path], set[str]]] = {
    WarningCode.OTHER_MEASUREMENT: beside_another,
    WarningCode.WAIT_SKIPPED: impatient,
    WarningCode.THERMAL_FLOOR_DISABLED: lambda path: virtual(path, warmup={"thermal_floor_seconds": 0}),
    WarningCode.WARMUP_NOT_CONVERGED: warmup_that_does_not_settle,
    WarningCode.COMPILED_IN_WINDOW: lambda path: on_engine(path, UnsettledEngine),
    WarningCode.BATCH_CHANGES_TEXTS: lambda path: on_engine(path, BatchDependentEngine),
    WarningCode.GENERATION_STALLED: lambda path: on_engine(path, StallingEngine),
    WarningCode.REQUESTS_PREEMPTED: lambda path: on_engine(path, CrowdedEngine),
    WarningCode.PARTIAL_LAST_BATCH: lambda path: virtual(path, pytorch={"batch_size": 3}),
    WarningCode.PROMPTS_TRUNCATED: lambda path: virtual(path, max_input_tokens=3),
    WarningCode.ENERGY_IS_ESTIMATED: estimate_of_a_model,
    WarningCode.ENVIRONMENT_CHANGED: study_on_another_driver,
    WarningCode.GPU_MEMORY_LEFT_BEHIND: lambda path: study_with(Stage(path, leftovers=["GPU 0 has 12.0 GB in use"])),
    WarningCode.PROCESSES_NOT_CONCURRENT: lambda _: processes(
        make_record(0, devices={"GPU-0": 100.0}), make_record(1, devices={"GPU-1": 100.0}, start_s=60.0)
    ),
    WarningCode.DEVICE_SHARED_BY_PROCESSES: lambda _: processes(
        make_record(0, devices={"GPU-0": 100.0}), make_record(1, devices={"GPU-0": 100.0})
    ),
    WarningCode.ENERGY_ATTRIBUTION_UNVERIFIED: lambda _: processes(
        *(make_record(i, gpu_id=None, energy_per_device_j={}, measurement_boundary=None) for i in (0, 1))
    ),
}


def test_every_code_has_its_situation() -> None:
    assert {*ON_BOARDS, *ELSEWHERE} == set(WarningCode)


def test_a_board_in_good_order_raises_nothing(runs: dict[WarningCode | None, ScriptedRun]) -> None:
    assert runs[None].codes == set()


@pytest.mark.parametrize("code", ON_BOARDS, ids=lambda code: code.value)
def test_a_situation_on_a_board_raises_its_code_and_no_other(
    code: WarningCode, runs: dict[WarningCode | None, ScriptedRun]
) -> None:
    assert runs[code].codes == {code.value, *(implied.value for implied in ON_BOARDS[code].implies)}


def test_without_a_board_nothing_is_raised_either(tmp_path: Path) -> None:
    assert virtual(tmp_path) == set()
    assert study_with(Stage(tmp_path)) == set()
    assert processes(make_record(0, devices={"GPU-0": 100.0}), make_record(1, devices={"GPU-1": 100.0})) == set()


@pytest.mark.parametrize("code", ELSEWHERE, ids=lambda code: code.value)
def test_a_situation_raises_its_code_and_no_other(code: WarningCode, tmp_path: Path) -> None:
    assert ELSEWHERE[code](tmp_path) == {code.value}


def test_counter_and_integral_are_both_stored_and_agree_closely_on_a_smooth_load(
    runs: dict[WarningCode | None, ScriptedRun],
) -> None:
    result = runs[None].result
    audit, true_j = result.energy_audit, LOADED_W * result.total_inference_time_sec
    assert audit is not None
    assert audit.agrees
    assert audit.bound_pct <= 2.0
    assert result.total_energy_j == pytest.approx(true_j, rel=0.01)
    assert audit.counter_j == pytest.approx(true_j, rel=0.01)
    assert audit.integral_j == pytest.approx(true_j, rel=0.005)


def test_every_warning_says_what_was_seen_with_figures(runs: dict[WarningCode | None, ScriptedRun]) -> None:
    for code in (WarningCode.THERMAL_DRIFT_DETECTED, WarningCode.CLOCKS_DRIFTED, WarningCode.ENERGY_METHODS_DISAGREE):
        (warning,) = runs[code].result.measurement_warnings
        assert sum(character.isdigit() for character in warning) >= 4


def test_throttling_has_its_cause_time_and_temperature(runs: dict[WarningCode | None, ScriptedRun]) -> None:
    thermal, power, none = (
        runs[code].result.thermal_throttle
        for code in (WarningCode.THERMAL_THROTTLING, WarningCode.POWER_THROTTLING, None)
    )
    assert thermal is not None
    assert power is not None
    assert none is not None
    assert (thermal.detected, thermal.thermal, thermal.hw_thermal, thermal.power) == (True, True, True, False)
    assert (power.detected, power.power, power.thermal) == (True, True, False)
    assert not none.detected
    duration_s = runs[WarningCode.THERMAL_THROTTLING].result.total_inference_time_sec
    assert 0.0 < thermal.throttle_duration_sec < duration_s
    assert len(thermal.throttle_timestamps) == 1
    assert thermal.max_temperature_c == 45.0
