"""A study as people see and use it: its table at 80 columns, its own directory, and its one line."""

from __future__ import annotations

import copy
import cProfile
import pickle
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.domain.study import StudyResult, StudySummary
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import load_study, save_result, to_json
from llenergymeasure.results.statistics import summarise_configurations
from llenergymeasure.results.study_table import differing_parts, render_configurations
from result_samples import make_result, make_rich_result

ESTIMATE = EnergyBreakdown(raw_j=1.0, method="model_estimate")
ESTIMATED = "energy_is_estimated: CPU and memory energy come from a model"


def table_of(*results: Any, width: int = 80) -> list[str]:
    return render_configurations(summarise_configurations(results), width)


def result(batch: int, energy_j: float | None, speed: float, **fields: Any) -> Any:
    return make_rich_result(
        measurement_config_hash=str(batch),
        config_name=f"llama-1b / pytorch / bf16 / batch {batch}",
        avg_energy_per_token_j=energy_j,
        avg_tokens_per_second=speed,
        **{"energy_breakdown": ESTIMATE, "measurement_warnings": [ESTIMATED], **fields},
    )


TABLE = """\
Configuration     J/token, estimated  ×     tok/s     TTFT    CV        Runs
batch 8           5.00 ± 0.25 mJ      1.00  400 ± 10  142 ms  2.0 %     3
batch 1           1.1 ± 2.2 J         221   94 ± 327  142 ms  80.5 % !  3
± is the 95 % interval of the mean over the cycles, CV their coefficient of
  variation.
× is energy per token against the best configuration.
! marks a CV above 5 %: these cycles differ a lot; more of them narrow the
  interval.
Warnings: energy_is_estimated (6 runs), thermal_drift_detected (1 run)"""


def test_twice_the_rows_are_twice_the_work() -> None:
    def calls(rows: int) -> int:
        statistics = summarise_configurations(result(batch, 1.0 + batch, 10.0) for batch in range(rows))
        profiled = cProfile.Profile()
        profiled.runcall(render_configurations, statistics)
        return sum(entry.callcount for entry in profiled.getstats())

    assert calls(80) < 2.5 * calls(40)


def test_the_table_fits_80_columns_and_tells_label_best_latency_and_warnings() -> None:
    drift = [ESTIMATED, "thermal_drift_detected: 7 C"]
    lines = table_of(
        result(1, 1.84, 15.2, measurement_warnings=drift),
        result(1, 0.116, 246.0),
        result(1, 1.36, 20.6),
        *(result(8, energy_j, speed) for energy_j, speed in ((0.0049, 396.0), (0.005, 400.0), (0.0051, 404.0))),
    )
    assert "\n".join(lines) == TABLE


def test_measured_figures_have_no_label_and_mixed_ones_have_theirs_each() -> None:
    measured = {"energy_breakdown": None, "measurement_warnings": []}
    assert table_of(result(1, 1.0, 1.0, **measured))[0].split()[1] == "J/token"
    header, first, second = table_of(result(1, 1.0, 1.0, **measured), result(2, 0.5, 1.0))[:3]
    assert "estimated" not in header
    assert ("0.500 J estimated" in first, "estimated" in second) == (True, False)


def test_what_was_not_measured_comes_last_and_by_speed() -> None:
    lines = table_of(result(1, None, 10.0), result(2, None, 20.0), result(4, 1.0, 1.0))
    assert [line.split("  ")[0] for line in lines[1:4]] == ["batch 4", "batch 2", "batch 1"]
    assert "not measured" in lines[2]


def test_a_study_of_nothing_says_so() -> None:
    assert render_configurations([]) == ["No run was completed."]


names = st.lists(st.text("abc-_=./ ", min_size=1, max_size=90), min_size=1, max_size=4, unique=True)


@given(names, st.integers(60, 140), st.booleans())
def test_no_line_is_wider_than_it_may_be(found: list[str], width: int, measured: bool) -> None:
    entries = summarise_configurations(
        make_rich_result(
            measurement_config_hash=name, config_name=name, avg_energy_per_token_j=1.0 if measured else None
        )
        for name in found
    )
    assert max(map(len, render_configurations(entries, width))) <= width


@pytest.mark.parametrize(
    ("found", "short"),
    [
        (["m / pytorch / batch 1", "m / pytorch / batch 8"], ["batch 1", "batch 8"]),
        (["m / pytorch / bf16", "n / pytorch / fp32"], ["m / bf16", "n / fp32"]),
        (["m / pytorch", "m / pytorch / batch 8"], ["m / pytorch", "m / pytorch / batch 8"]),
        (["m / pytorch"], ["m / pytorch"]),
        ([], []),
    ],
)
def test_names_keep_what_tells_them_apart(found: list[str], short: list[str]) -> None:
    assert differing_parts(found) == short


def study(**fields: Any) -> StudyResult:
    summary = StudySummary(total_experiments=3, completed=2, failed=1, skipped=4)
    return StudyResult(
        **{
            "study_id": "s-1",
            "name": "two batches",
            "started_at": datetime(2026, 2, 18, tzinfo=timezone.utc),
            "summary": summary,
            "statistics": summarise_configurations([result(1, 1.0, 10.0), result(8, 0.5, 80.0)]),
            **fields,
        }
    )


def test_a_study_knows_where_it_is_and_reads_its_results(tmp_path: Path) -> None:
    saved = [save_result(make_result(experiment_id=name), tmp_path) for name in ("a", "b")]
    files = [str(path.relative_to(tmp_path)) for path in saved]
    to_json(study(result_files=files), tmp_path / "study_summary.json")
    found = load_study(tmp_path)
    assert found.path == tmp_path
    assert [one.experiment_id for one in found.results()] == ["a", "b"]
    assert load_study(tmp_path / "study_summary.json") == found
    assert study(result_files=files) == found  # where it is kept is no part of what it holds
    assert "place" not in str(found.model_dump())
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found.model_copy()):
        assert again.path == tmp_path


def test_a_study_that_is_nowhere_says_so_instead_of_looking_elsewhere() -> None:
    assert study().path is None
    with pytest.raises(PersistenceError, match="does not know its directory"):
        study(result_files=["a/result.json"]).results()


def test_a_study_prints_as_one_line_and_tells_label_and_warnings(tmp_path: Path) -> None:
    found = study().kept_in(tmp_path)
    line = f"<StudyResult two batches: 2 of 3 runs completed, 1 failed, 4 skipped in {tmp_path}>"
    assert str(found) == repr(found) == line
    assert found.estimated
    assert found.warnings == {"energy_is_estimated": 2}
