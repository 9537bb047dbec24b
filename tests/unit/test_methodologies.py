"""The three methodologies, each reached through a whole experiment: what is inside the figures, and what is not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from fakes import StepEngine, VirtualClock
from llenergymeasure.core.backends.protocol import GenerationOutput, GenerationRequest, RequestOutput
from llenergymeasure.domain.experiment import ExperimentResult
from scripted_experiments import run_virtual_experiment

STEP_S, TOKENS, POWER_W = 0.1, 128, 100.0


def run(directory: Path, **fields: object) -> ExperimentResult:
    """One prompt of 128 output tokens at 0.1 s each."""
    return run_virtual_experiment(directory, **fields)


def test_steady_state_leaves_out_warm_up_and_says_where_the_window_lay(tmp_path: Path) -> None:
    result = run(tmp_path, warmup={"n_warmup": 3, "thermal_floor_seconds": 30.0})
    warmup_s = 4 * 16 * STEP_S + 30.0  # one batch of 16 tokens more after the floor
    assert result.measurement_methodology == "steady_state"
    assert result.steady_state_window == pytest.approx((warmup_s, warmup_s + TOKENS * STEP_S))
    assert result.warmup_excluded_samples == 4
    assert result.output_tokens == TOKENS
    assert result.total_energy_j == pytest.approx(POWER_W * TOKENS * STEP_S)


def test_total_is_everything_that_was_generated_because_nothing_came_before(tmp_path: Path) -> None:
    result = run(tmp_path, warmup={"enabled": False})
    assert result.measurement_methodology == "total"
    assert (result.steady_state_window, result.warmup_excluded_samples) == (None, None)
    assert result.total_energy_j == pytest.approx(POWER_W * TOKENS * STEP_S)


def test_windowed_is_the_middle_of_the_generation_in_time_tokens_and_joules(tmp_path: Path) -> None:
    skipped = {"skip_first_seconds": 2.05, "skip_last_seconds": 3.0}
    result = run(tmp_path, warmup={"n_warmup": 1, "thermal_floor_seconds": 0.0}, measurement=skipped)
    counted_s = TOKENS * STEP_S - 5.05
    assert result.measurement_methodology == "windowed"
    assert result.total_inference_time_sec == pytest.approx(counted_s)
    assert result.output_tokens == 78  # those that appeared after 2.05 s and up to 9.8 s
    assert result.input_tokens == 0  # the prompt was processed before
    assert result.total_energy_j == pytest.approx(POWER_W * counted_s)
    assert result.avg_tokens_per_second == pytest.approx(78 / counted_s)
    assert result.steady_state_window is not None
    assert result.steady_state_window[1] - result.steady_state_window[0] == pytest.approx(counted_s)


class ContinuousEngine(StepEngine):
    """Takes requests one after the other, a second apart, and generates for all of them together."""

    name: str = "vllm"

    def generate(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        began_s = self.clock.now()
        outputs = []
        for place, request in enumerate(requests):
            started_s = began_s + place
            times = array("d", (started_s + (i + 1) * self.step_s for i in range(request.max_new_tokens)))
            outputs.append(
                RequestOutput(request.index, 3, [7] * request.max_new_tokens, "length", started_s, token_times_s=times)
            )
        self.clock.sleep(len(requests) - 1 + self.step_s * max(r.max_new_tokens for r in requests))
        return GenerationOutput(tuple(outputs))


def test_windowed_may_be_the_time_in_which_a_continuous_batch_is_full(tmp_path: Path) -> None:
    """Four requests of 12.8 s that begin at 0, 1, 2 and 3 s: full from 3 s on, until the first ends."""
    prompts = tmp_path / "four.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 4)
    clock = VirtualClock()
    result = run(
        tmp_path,
        engine=ContinuousEngine(clock, step_s=STEP_S, batch_size=None),
        clock=clock,
        backend="vllm",
        dataset=str(prompts),
        n=4,
        measurement={"full_batch_only": True},
    )
    assert result.measurement_methodology == "windowed"
    assert result.total_inference_time_sec == pytest.approx(12.8 - 3.0)
    assert result.output_tokens == pytest.approx(4 * 98, abs=4)
    assert result.total_energy_j == pytest.approx(POWER_W * 9.8)
