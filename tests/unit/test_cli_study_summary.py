"""The table at the end of a study, to the letter, and the names that tell its configurations apart."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.cli.study import MAX_FAILURES, render_study
from llenergymeasure.config.models import ExperimentConfig, study_titles
from llenergymeasure.domain.study import ConfigurationStatistics, FailedExperiment, StudyResult, StudySummary
from llenergymeasure.results.statistics import cycle_statistics
from llenergymeasure.results.summary import one_line, with_half_width

TABLE = """\
Configuration     J/token, estimated  ×     tok/s       CV        Runs
bf16 / batch 8    5.00 ± 0.25 mJ      1.00  400 ± 10    2.0 %     3
bf16 / batch 1    1.1 ± 2.2 J         221   94 ± 327    80.5 % !  3
fp32 / batch 1    not measured              15.0 ± 3.7  10.0 % !  3
± is the 95 % interval of the mean over the cycles, CV their coefficient of
  variation.
× is energy per token against the best configuration.
! marks a CV above 5 %: these cycles differ a lot; more of them narrow the
  interval.

All rows       llama-1b / pytorch
Runs           9 completed, 3 failed, 2 skipped (not valid), of 12 planned
               ✗ llama-1b / pytorch / fp32 / batch 8, cycles 1, 3: Pre-flight
                 failed: 1 issue - model: gone
               ✗ llama-1b / pytorch / fp32 / batch 8, cycle 2: killed by signal
                 9 (SIGKILL): out of memory?
Energy         526 J in all measurement windows, estimated
Duration       3 m 03 s
Study          results/grid"""


def row(
    name: str, energy_j: list[float | None], rates: list[float | None], vs_best: float | None = None
) -> ConfigurationStatistics:
    return ConfigurationStatistics(
        measurement_config_hash=f"hash of {name}",
        config_name=f"llama-1b / pytorch / {name}",
        backend="pytorch",
        cycles=len(rates),
        energy_per_token_j=cycle_statistics(energy_j),
        tokens_per_second=cycle_statistics(rates),
        energy_vs_best=vs_best,
        estimated=True,
    )


def failure(cycle: int, reason: str, name: str | None = "llama-1b / pytorch / fp32 / batch 8") -> FailedExperiment:
    return FailedExperiment(config={"model": "x/llama-1b"}, config_name=name, cycle=cycle, reason=reason)


def study(**fields: Any) -> StudyResult:
    summary = StudySummary(
        total_experiments=12, completed=9, failed=3, skipped=2, total_wall_time_s=183.0, total_energy_j=526.4
    )
    return StudyResult(
        **{"study_id": "s", "started_at": datetime(2026, 2, 18, tzinfo=timezone.utc), "summary": summary, **fields}
    )


def test_the_summary_fits_80_columns_the_least_energy_first_and_what_was_not_measured_last() -> None:
    result = study(
        statistics=[
            row("fp32 / batch 1", [None, None, None], [13.5, 15.0, 16.5]),
            row("bf16 / batch 1", [1.84, 0.116, 1.36], [15.2, 246.0, 20.6], 221.1),
            row("bf16 / batch 8", [0.0049, 0.005, 0.0051], [396.0, 400.0, 404.0], 1.0),
        ],
        failed=[
            failure(1, "Pre-flight failed: 1 issue\n  - model: gone"),
            failure(2, "killed by signal 9 (SIGKILL): out of memory?"),
            failure(3, "Pre-flight failed: 1 issue\n  - model: gone"),
        ],
    )
    assert render_study(result, Path("results/grid"), 80) == TABLE
    assert max(map(len, TABLE.splitlines())) <= 80


def test_one_cycle_claims_no_interval_and_explains_none() -> None:
    lines = render_study(study(statistics=[row("bf16", [0.412], [310.0], 1.0)]), Path("d"), 80).splitlines()
    assert lines[0].split() == ["Configuration", "J/token,", "estimated", "×", "tok/s", "Runs"]
    assert lines[1].split()[-5:] == ["0.412", "J", "1.00", "310", "1"]
    assert lines[2] == ""


def test_a_study_of_nothing_says_so() -> None:
    assert render_study(study(), Path("d"), 80).splitlines()[0] == "No run was completed."


def test_thousands_of_failures_do_not_bury_the_rest() -> None:
    failed = [failure(1, "gone", name=f"configuration {number}") for number in range(MAX_FAILURES + 5)]
    text = render_study(study(failed=failed), Path("d"), 80)
    assert text.count("✗") == MAX_FAILURES
    assert "… and 5 more, all in study_summary.json" in text


def test_a_summary_of_an_earlier_release_names_the_model() -> None:
    assert "✗ x/llama-1b, cycle 2: gone" in render_study(study(failed=[failure(2, "gone", name=None)]), Path("d"), 80)


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (0.412, 0.0206, "0.412 ± 0.021"),
        (1.105, 2.21, "1.1 ± 2.2"),
        (93.8, 326.0, "94 ± 326"),
        (4.18, 10.46, "4 ± 10"),
        (310.0, 0.4, "310 ± 0.4"),
        (310.0, 0.0, "310 ± 0"),
        (39.6, 0.0, "39.6 ± 0"),
        (12_345.0, 678.0, "12,345 ± 678"),
        (0.5, 0.00002, "0.500 ± 2e-05"),
        (2.5e10, 1.2e9, "2.5e+10 ± 1.2e+09"),
    ],
)
def test_digits_end_where_the_interval_ends_them(value: float, half_width: float, text: str) -> None:
    assert with_half_width(value, half_width) == text


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line("failed: 1 issue\n  - model: gone\n") == "failed: 1 issue - model: gone"


def config(model: str = "x/llama-1b", **fields: Any) -> ExperimentConfig:
    return ExperimentConfig(model=model, **fields)


@pytest.mark.parametrize(
    ("experiments", "titles"),
    [
        (
            [config(decoder={"temperature": 0.5}), config(decoder={"temperature": 0.7})],
            [
                "llama-1b / pytorch / bf16 / decoder.temperature=0.5",
                "llama-1b / pytorch / bf16 / decoder.temperature=0.7",
            ],
        ),
        (
            [config(pytorch={"batch_size": 1}), config(pytorch={"batch_size": 8})],
            ["llama-1b / pytorch / bf16 / batch 1", "llama-1b / pytorch / bf16 / batch 8"],
        ),
        (
            [config(), config(pytorch={"torch_compile": True})],
            ["llama-1b / pytorch / bf16", "llama-1b / pytorch / bf16 / pytorch.torch_compile=true"],
        ),
        (
            [config(pytorch={"device": "cpu"}), config(backend="vllm", vllm={"enforce_eager": True})],
            ["llama-1b / pytorch / bf16", "llama-1b / vllm / bf16"],
        ),
        (
            [config("x/llama-1b"), config("y/llama-1b")],
            ["llama-1b / pytorch / bf16 / model=x/llama-1b", "llama-1b / pytorch / bf16 / model=y/llama-1b"],
        ),
        ([config()], ["llama-1b / pytorch / bf16"]),
    ],
    ids=["swept field", "field of every title", "unset beside set", "two backends", "same short name", "one"],
)
def test_titles_tell_the_experiments_of_a_study_apart(experiments: list[ExperimentConfig], titles: list[str]) -> None:
    assert study_titles(experiments) == titles
