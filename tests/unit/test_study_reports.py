"""When a study makes its reports, and what they may cost it: nothing."""

from __future__ import annotations

import logging
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.persistence import REPORT_FILE, load_study
from llenergymeasure.runners.job import Job
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import GapStarted, RunFinished
from llenergymeasure.study.runner import StudyInterruptedError
from study_fakes import Stage, result_of, study_of


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_every_run_has_its_report_as_soon_as_its_result_is_safe_and_the_study_one_at_the_end(stage: Stage) -> None:
    told: list[tuple[str, int, int]] = []

    def report(directory: Path) -> None:
        told.append((directory.name, load_manifest(stage.directory).completed, len(stage.of(RunFinished))))

    result = stage.runner(study_of("a", "b"), report=report).run()
    runs = [Path(file).parent.name for file in result.result_files]
    assert told == [(runs[0], 1, 1), (runs[1], 2, 2), (stage.directory.name, 2, 2)]


def test_the_gap_after_a_report_is_shorter_by_what_it_took(stage: Stage) -> None:
    began_s: list[float] = []

    def act(job: Job) -> ExperimentResult:
        began_s.append(stage.clock.now())
        return result_of(job.config)

    stage.launcher.act, stage.launcher.duration_s = act, 0.0
    study = study_of("a", "b", "c", config_gap_seconds=60.0)
    stage.runner(study, report=lambda directory: stage.clock.sleep(2.5)).run()
    assert [later - earlier for earlier, later in pairwise(began_s)] == pytest.approx([60.0, 60.0])
    assert [gap.duration_s for gap in stage.of(GapStarted)] == [60.0, 60.0]


def test_a_study_whose_reports_fail_has_every_result(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Something else is in the place of the study's report."""
    (stage.directory / REPORT_FILE).mkdir()
    with caplog.at_level(logging.WARNING):
        result = stage.runner(study_of("a", "b")).run()
    assert (result.summary.completed, result.summary.failed) == (2, 0)
    assert load_study(stage.directory) == result
    assert f"python -m llenergymeasure.results.report {shlex.quote(str(stage.directory))}" in caplog.text


def test_an_interrupted_study_has_a_summary_and_a_report_of_what_is_finished(stage: Stage) -> None:
    stage.interrupt_in("b")
    with pytest.raises(StudyInterruptedError):
        stage.runner(study_of("a", "b")).run()
    summary = load_study(stage.directory)
    assert (summary.summary.completed, summary.completed_at) == (1, None)
    page = (stage.directory / REPORT_FILE).read_text()
    assert "1 of 2 runs have a result; the study was stopped before its end" in page
    assert "1 of 2 runs were not tried." in page
