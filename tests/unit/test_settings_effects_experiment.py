"""Where each field of an experiment acts: two runs that differ in that field alone, and what differs in their outcome.

The engine, the meter and the clock are fakes; what only a real engine can show is in tests/integration/test_pytorch_*.
docs/settings.md lists every field with its test.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from pydantic import ValidationError

from effects_bench import POWER_W, STEP_S, ExperimentBench
from fakes import ConstantMeter, StepEngine, VirtualClock
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.same_work import ineffective_settings
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.gpu.driver import CPU_DEVICE
from llenergymeasure.core.preflight import run_preflight
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.results.aggregation import aggregate_results


@dataclass
class SettlingEngine(StepEngine):
    """An engine whose batches get faster until they settle."""

    step_times_s: Iterator[float] = field(default_factory=lambda: chain((0.08, 0.04, 0.02, 0.012), repeat(STEP_S)))

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        self.step_s = next(self.step_times_s)
        return super().generate(requests)


@pytest.fixture
def bench(tmp_path: Path) -> ExperimentBench:
    return ExperimentBench(tmp_path)


# --- what is run -------------------------------------------------------------------------------------------------


def test_model_and_backend_name_the_record(bench: ExperimentBench) -> None:
    record = bench.run(model="somebody/other").record
    assert (record.model_name, record.backend) == ("somebody/other", "pytorch")
    assert record.measurement_config_hash != bench.run().record.measurement_config_hash


def test_n_is_the_number_of_prompts_in_the_window(bench: ExperimentBench) -> None:
    for n in (1, 3):
        run = bench.run(n=n)
        assert [request.index for batch in run.batches for request in batch] == list(range(n))
        assert run.record.dataset is not None
        assert run.record.dataset.prompt_count == n


def test_dataset_is_where_the_prompts_come_from(bench: ExperimentBench, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "hello"}\n')
    run = bench.run(dataset=str(other), n=1)
    assert bytes(run.batches[0][0].token_ids[1:]) == b"hello"
    assert run.record.dataset is not None
    assert run.record.dataset.name != bench.run().record.dataset.name  # type: ignore[union-attr]


def test_synthetic_prompts_have_the_number_and_the_lengths_asked_for(bench: ExperimentBench) -> None:
    def run(**dataset: int) -> list[GenerationRequest]:
        synthetic = {"n": 3, "input_len": 20, "output_len": 6, **dataset}
        config = {"dataset": synthetic, "n": synthetic["n"], "max_output_tokens": synthetic["output_len"]}
        return [request for batch in bench.run(**config).batches for request in batch]

    requests = run()
    assert [(len(r.token_ids), r.max_new_tokens) for r in requests] == [(20, 6)] * 3
    assert len(run(n=5)) == 5
    assert {len(r.token_ids) for r in run(input_len=30)} == {30}
    assert {r.max_new_tokens for r in run(output_len=9)} == {9}
    assert [r.token_ids for r in run(seed=1)] != [r.token_ids for r in requests]
    assert [r.token_ids for r in run()] == [r.token_ids for r in requests]


def test_max_input_tokens_cuts_prompts_and_counts_the_cut_ones(bench: ExperimentBench) -> None:
    run = bench.run(max_input_tokens=6)  # BOS counts: the prompts are 4, 6, 8 and 10 tokens long
    assert [len(batch[0].token_ids) for batch in run.batches] == [4, 6, 6, 6]
    assert run.record.truncated_prompts == 2
    assert WarningCode.PROMPTS_TRUNCATED.value in run.warning_codes
    assert bench.run(max_input_tokens=10).record.truncated_prompts == 0


def test_max_output_tokens_bounds_every_request(bench: ExperimentBench) -> None:
    run = bench.run(max_output_tokens=25)
    assert {request.max_new_tokens for batch in run.batches for request in batch} == {25}
    assert run.record.inference_metrics.output_tokens == 4 * 25


def test_min_new_tokens_is_asked_of_the_engine_for_every_request(bench: ExperimentBench) -> None:
    run = bench.run(decoder={"min_new_tokens": 10})
    assert {request.min_new_tokens for batch in run.batches for request in batch} == {10}
    assert {request.min_new_tokens for batch in bench.run().batches for request in batch} == {0}


# --- warm-up -----------------------------------------------------------------------------------------------------

WARM = {"enabled": True, "thermal_floor_seconds": 0.0}


def test_warmup_enabled_runs_prompts_before_the_window_and_names_the_methodology(bench: ExperimentBench) -> None:
    on, off = bench.run(warmup=WARM), bench.run(warmup={"enabled": False})
    assert (on.record.measurement_methodology, off.record.measurement_methodology) == ("steady_state", "total")
    assert (on.record.warmup_excluded_samples, off.record.warmup_excluded_samples) == (5, None)
    assert len(on.batches) == len(off.batches) + 5
    assert (on.record.steady_state_window is None, off.record.steady_state_window is None) == (False, True)


@pytest.mark.parametrize("n_warmup", [1, 7])
def test_n_warmup_is_the_number_of_iterations(bench: ExperimentBench, n_warmup: int) -> None:
    run = bench.run(warmup={**WARM, "n_warmup": n_warmup})
    assert run.record.warmup_result is not None
    assert run.record.warmup_result.iterations_completed == n_warmup
    assert len(run.batches) == n_warmup + 4


def test_thermal_floor_seconds_are_waited_before_the_window(bench: ExperimentBench) -> None:
    cold, held = bench.run(warmup=WARM), bench.run(warmup={"thermal_floor_seconds": 45.0})
    assert "thermal_floor" not in cold.steps
    assert "thermal_floor" in held.steps
    assert held.record.warmup_result is not None
    assert held.record.warmup_result.thermal_floor_wait_s == pytest.approx(45.0)
    assert held.took_s - cold.took_s == pytest.approx(45.0 + 10 * STEP_S)  # and the batch that wakes the clocks
    assert held.record.idle_resident_power_w == pytest.approx(POWER_W)
    assert cold.warning_codes - held.warning_codes == {WarningCode.THERMAL_FLOOR_DISABLED.value}


def iterations(bench: ExperimentBench, **warmup: Any) -> int:
    """Warm-up iterations of an engine whose batches get faster and settle with the fifth."""
    run = bench.run(engine=SettlingEngine, warmup={**WARM, "convergence_detection": True, "n_warmup": 1, **warmup})
    assert run.record.warmup_result is not None
    return run.record.warmup_result.iterations_completed


def test_convergence_detection_goes_on_until_latency_has_settled(bench: ExperimentBench) -> None:
    assert iterations(bench, convergence_detection=False) == 1
    assert iterations(bench) == 9  # the first five latencies that agree are the fifth to the ninth


def test_cv_threshold_decides_what_counts_as_settled(bench: ExperimentBench) -> None:
    assert iterations(bench, cv_threshold=0.5) < iterations(bench, cv_threshold=0.01)


def test_window_size_is_how_many_latencies_must_agree(bench: ExperimentBench) -> None:
    assert iterations(bench, window_size=3) == 7
    assert iterations(bench, window_size=8) == 12


def test_min_prompts_is_the_least(bench: ExperimentBench) -> None:
    assert iterations(bench, min_prompts=15) == 15


def test_max_prompts_is_the_most_and_giving_up_is_told(bench: ExperimentBench) -> None:
    assert iterations(bench, max_prompts=6, window_size=5) == 6
    run = bench.run(engine=SettlingEngine, warmup={**WARM, "convergence_detection": True, "max_prompts": 6})
    assert WarningCode.WARMUP_NOT_CONVERGED.value in run.warning_codes


# --- baseline ----------------------------------------------------------------------------------------------------


def test_baseline_enabled_gives_energy_above_idle(bench: ExperimentBench) -> None:
    on, off = bench.run(baseline={"enabled": True}), bench.run(baseline={"enabled": False})
    assert on.record.baseline_power_w == pytest.approx(POWER_W)
    assert on.record.energy_breakdown is not None
    assert on.record.energy_breakdown.adjusted_j == pytest.approx(0.0, abs=1e-6)
    assert off.record.baseline_power_w is None
    assert off.record.energy_breakdown is not None
    assert off.record.energy_breakdown.adjusted_j is None


@pytest.mark.parametrize("seconds", [5.0, 80.0])
def test_baseline_duration_seconds_are_spent_idling(bench: ExperimentBench, seconds: float) -> None:
    without = bench.run(baseline={"enabled": False}).took_s
    assert bench.run(baseline={"duration_seconds": seconds}).took_s - without == pytest.approx(seconds)


# --- the window --------------------------------------------------------------------------------------------------


def test_min_duration_seconds_goes_through_the_prompts_again(bench: ExperimentBench) -> None:
    one_pass_s = 4 * 10 * STEP_S
    run = bench.run(measurement={"min_duration_seconds": 2.5 * one_pass_s})
    assert [batch[0].index for batch in run.batches] == [0, 1, 2, 3] * 3
    assert run.record.timestamps.duration_sec == pytest.approx(3 * one_pass_s)


def test_skip_first_seconds_leaves_out_the_beginning(bench: ExperimentBench) -> None:
    run = bench.run(measurement={"skip_first_seconds": 0.1})
    assert run.record.measurement_methodology == "windowed"
    assert run.record.inference_metrics.output_tokens == 30
    assert run.record.energy_metrics.total_energy_j == pytest.approx(POWER_W * 0.3)


def test_skip_last_seconds_leaves_out_the_end(bench: ExperimentBench) -> None:
    run = bench.run(measurement={"skip_last_seconds": 0.2})
    assert run.record.measurement_methodology == "windowed"
    assert run.record.inference_metrics.output_tokens == 20
    assert run.record.energy_metrics.total_energy_j == pytest.approx(POWER_W * 0.2)


def test_joules_per_request_of_a_part_are_over_the_requests_answered_in_it(bench: ExperimentBench) -> None:
    run = bench.run(measurement={"skip_last_seconds": 0.2})
    result = aggregate_results(run.record.experiment_id, [run.record])
    assert result.num_requests == 2  # of four, a tenth of a second each
    assert result.extended_metrics is not None
    assert result.extended_metrics.energy_per_request_j == pytest.approx(POWER_W * 0.1)
    assert result.extended_metrics.requests_per_second == pytest.approx(10.0)


@dataclass
class ContinuousEngine(StepEngine):
    """An engine that batches by itself: two requests at a time, the next one starts as soon as a place is free."""

    batch_size: int | None = None

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        free_at_s = [self.clock.now()] * 2
        outputs = []
        for output in super().generate(requests).requests:
            begin_s = min(free_at_s)
            length = output.output_tokens + 5 * output.index
            times_s = array("d", (begin_s + (step + 1) * self.step_s for step in range(length)))
            free_at_s[free_at_s.index(begin_s)] = times_s[-1]
            outputs.append(
                replace(output, started_s=begin_s, token_times_s=times_s, token_ids=array("i", [7] * length))
            )
        self.clock.sleep(max(free_at_s) - self.clock.now())
        return GenerationOutput(tuple(outputs))


def test_full_batch_only_counts_while_the_batch_is_full(bench: ExperimentBench) -> None:
    common: dict[str, Any] = {"engine": ContinuousEngine, "engine_name": "vllm", "backend": "vllm"}
    whole = bench.run(**common)
    full = bench.run(**common, measurement={"full_batch_only": True})
    assert whole.record.inference_metrics.output_tokens == 10 + 15 + 20 + 25
    assert full.record.measurement_methodology == "windowed"
    # two at a time: 0 and 1, then 2, then 3; the place that 2 leaves (after 30 steps) stays empty
    assert full.record.inference_metrics.inference_time_sec == pytest.approx(30 * STEP_S)
    assert full.record.inference_metrics.output_tokens == 60
    assert full.record.inference_metrics.tokens_per_second > whole.record.inference_metrics.tokens_per_second


def test_save_outputs_keeps_prompts_and_texts(bench: ExperimentBench) -> None:
    assert bench.run().artefacts.outputs is None
    outputs = bench.run(measurement={"save_outputs": True}).artefacts.outputs
    assert outputs is not None
    rows = [json.loads(line) for line in outputs.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["xxx", "xxxxx", "xxxxxxx", "xxxxxxxxx"]
    assert {row["output_tokens"] for row in rows} == {10}


def test_save_trace_keeps_every_power_sample(bench: ExperimentBench) -> None:
    assert bench.run().artefacts.trace is None
    trace = bench.run(measurement={"save_trace": True}).artefacts.trace
    assert trace is not None
    samples = pyarrow.parquet.read_table(trace)
    assert samples.num_rows == pytest.approx(4 * 10 * STEP_S * 100, abs=3)
    assert set(samples["power_w"].to_pylist()) == {POWER_W}


def test_save_trace_without_power_samples_is_told(bench: ExperimentBench) -> None:
    run = bench.run(meter=ConstantMeter, measurement={"save_trace": True})
    assert run.artefacts.trace is None
    assert WarningCode.TELEMETRY_UNAVAILABLE.value in run.warning_codes
    assert WarningCode.TELEMETRY_UNAVAILABLE.value not in bench.run(meter=ConstantMeter).warning_codes


def test_save_trace_of_energy_that_is_switched_off_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"measurement\.save_trace: True keeps power samples"):
        ExperimentConfig.model_validate(
            {"model": "m", "energy": {"backend": None}, "measurement": {"save_trace": True}}
        )


# --- switches ----------------------------------------------------------------------------------------------------


def unmetered(clock: VirtualClock, **_: object) -> NoEnergyBackend:
    return NoEnergyBackend(clock)


def test_energy_that_is_switched_off_is_not_waited_for(bench: ExperimentBench) -> None:
    run = bench.run(meter=unmetered, energy={"backend": None}, baseline={"enabled": True})  # type: ignore[arg-type]
    assert run.record.energy_metrics.total_energy_j is None
    assert run.took_s == pytest.approx(4 * 10 * STEP_S)
    assert WarningCode.BASELINE_UNAVAILABLE.value not in run.warning_codes


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"warmup": {"cv_threshold": 0.02}}, ["warmup.cv_threshold", "warmup.convergence_detection is false"]),
        ({"warmup": {"enabled": False, "n_warmup": 9}}, ["warmup.n_warmup", "warmup.enabled is false"]),
        ({"baseline": {"enabled": False, "duration_seconds": 9}}, ["baseline.duration_seconds", "baseline.enabled is"]),
        (
            {"energy": {"backend": None}, "baseline": {"duration_seconds": 9}},
            ["baseline.dur", "energy.backend is null"],
        ),
    ],
)
def test_a_setting_whose_switch_is_off_is_told(fields: dict[str, Any], told: list[str]) -> None:
    (message,) = ineffective_settings(ExperimentConfig.model_validate({"model": "m", **fields}))
    assert [part in message for part in told] == [True, True]


def test_pre_flight_tells_settings_whose_switch_is_off() -> None:
    config = ExperimentConfig.model_validate(
        {"model": "m", "dataset": {"synthetic": {"n": 1}}, "warmup": {"window_size": 7}}
    )
    engine = StepEngine(VirtualClock(), used_devices=(CPU_DEVICE,))
    advice = run_preflight(config, engine, UserConfig(), None).logged
    assert any("warmup.window_size" in text for text in advice)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"warmup": {"convergence_detection": True, "cv_threshold": 0.02, "max_prompts": 9}},
        {"warmup": {"enabled": False}, "baseline": {"enabled": False}},
        {"warmup": {"cv_threshold": 0.05}, "baseline": {"duration_seconds": 60}},
    ],
)
def test_a_setting_that_acts_is_passed_over_in_silence(fields: dict[str, Any]) -> None:
    assert ineffective_settings(ExperimentConfig.model_validate({"model": "m", **fields})) == []
