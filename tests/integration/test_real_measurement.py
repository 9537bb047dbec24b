"""What `measurement:`, `warmup:` and `baseline:` ask for, done by the real engine and read in the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import ExperimentConfig, ExperimentResult, run_experiment

pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")
pytest.importorskip("codecarbon", reason="the energy backend that works on any machine")

from pytorch_models import save_model

PROMPTS = ["Heat flows from warm to cold.", "Name three rivers.", "x" * 100, "One more."]
MAX_INPUT = 64


class Bench:
    """A small model and four prompts, one of them too long."""

    def __init__(self, directory: Path) -> None:
        self.prompts = directory / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        self.model = save_model(directory / "model")

    def run(self, **fields: Any) -> ExperimentResult:
        """Run the experiment with these fields changed."""
        usual: dict[str, Any] = {
            "model": str(self.model),
            "precision": "fp32",
            "n": 4,
            "dataset": str(self.prompts),
            "max_input_tokens": MAX_INPUT,
            "max_output_tokens": 16,
            "decoder": {"preset": "deterministic", "min_new_tokens": 16},
            "pytorch": {"device": "cpu", "batch_size": 2},
            "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0.0},
            "baseline": {"enabled": False},
            "energy": {"backend": None},
        }
        return run_experiment(ExperimentConfig(**{**usual, **fields}))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_the_second_experiment_of_a_session_takes_the_baseline_of_the_first_and_says_how_old_it_is(
    bench: Bench,
) -> None:
    measured = {"energy": {"backend": "codecarbon"}, "baseline": {"duration_seconds": 5.0}}
    first, second = bench.run(**measured), bench.run(**measured)
    one, two = first.energy_breakdown, second.energy_breakdown
    assert one is not None
    assert two is not None
    busy = any(warning.startswith("baseline_not_idle") for warning in first.measurement_warnings)
    assert two.baseline_method == ("fresh" if busy else "cached")  # one of a busy machine is not kept
    assert two.baseline_power_w == second.baseline_power_w
    if not busy:
        assert two.baseline_power_w == one.baseline_power_w
        assert two.baseline_timestamp == one.baseline_timestamp
        assert two.baseline_cache_age_sec is not None
        assert one.baseline_cache_age_sec is not None
        assert two.baseline_cache_age_sec > one.baseline_cache_age_sec
    assert second.total_energy_j is not None
    assert second.baseline_power_w is not None
    assert second.energy_adjusted_j == pytest.approx(
        second.total_energy_j - second.baseline_power_w * second.total_inference_time_sec
    )


def test_warm_up_goes_on_until_latencies_agree_and_is_in_no_figure(bench: Bench) -> None:
    asked = {"convergence_detection": True, "n_warmup": 2, "min_prompts": 4, "window_size": 3, "max_prompts": 6}
    result = bench.run(warmup={**asked, "cv_threshold": 0.5, "thermal_floor_seconds": 0.0})
    warmup = result.warmup_result
    assert warmup is not None
    assert warmup.iterations_completed == len(warmup.latencies_ms)
    assert 4 <= warmup.iterations_completed <= 6
    assert warmup.final_cv is not None
    assert warmup.converged == (warmup.final_cv <= 0.5)
    assert result.warmup_excluded_samples == 2 * (1 + warmup.iterations_completed)  # batches of two, one rehearsed
    assert result.output_tokens == 4 * 16
    without = bench.run(warmup={"enabled": False})
    assert without.measurement_methodology == "total"
    assert result.measurement_methodology == "steady_state"
    assert without.total_flops == result.total_flops  # 2 × N × the window's tokens, warm-up or not


def test_a_least_duration_is_reached_by_whole_passes(bench: Bench) -> None:
    result = bench.run(measurement={"min_duration_seconds": 0.5})
    assert result.total_inference_time_sec >= 0.5
    assert result.output_tokens is not None
    assert result.output_tokens % (4 * 16) == 0
    assert result.input_tokens is not None
    assert result.input_tokens * 64 == result.output_tokens * sum(min(len(prompt), MAX_INPUT) for prompt in PROMPTS)


def test_skipped_ends_are_in_no_figure(bench: Bench) -> None:
    ends = {"min_duration_seconds": 0.6, "skip_first_seconds": 0.2, "skip_last_seconds": 0.2}
    result = bench.run(measurement=ends)
    assert result.measurement_methodology == "windowed"
    assert result.steady_state_window is not None
    start_s, end_s = result.steady_state_window
    assert end_s - start_s == pytest.approx(result.total_inference_time_sec)
    assert result.output_tokens is not None
    assert result.avg_tokens_per_second == pytest.approx(result.output_tokens / (end_s - start_s))


def test_saved_outputs_hold_what_went_in_and_came_out(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(measurement={"save_outputs": True}, output_dir=str(tmp_path))
    (file,) = tmp_path.rglob("outputs.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["truncated"] for row in rows] == [False, False, True, False]
    assert [row["input_tokens"] for row in rows] == [min(len(prompt), MAX_INPUT) for prompt in PROMPTS]
    assert sum(row["output_tokens"] for row in rows) == result.output_tokens
    assert all(row["output"] and row["finish_reason"] == "length" for row in rows)
    assert any(warning.startswith("prompts_truncated") for warning in result.measurement_warnings)
