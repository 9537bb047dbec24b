from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from llenergymeasure.core.progress import StepStarted
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import BackendError, LLEMError, PersistenceError
from llenergymeasure.results.persistence import load_result, load_study
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.supervise import ChildFailedError, RunInterruptedError
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import RunFinished, RunStarted, StudyFinished, StudyStarted, StudyWarning
from llenergymeasure.study.runner import StudyInterruptedError, StudyStoppedError
from study_fakes import ENVIRONMENT, Stage, result_of, study_of


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def failing_for(*models: str, error: LLEMError | None = None):
    def act(job: Job) -> ExperimentResult:
        if job.config.model in models:
            raise error or BackendError(f"{job.config.model} does not fit")
        return result_of(job.config)

    return act


def test_every_experiment_runs_in_every_cycle_in_order(stage: Stage) -> None:
    result = stage.runner(study_of("a", "b", cycles=2, cycle_order="interleaved")).run()
    assert [job.config.model for job in stage.launcher.jobs] == ["a", "b", "a", "b"]
    assert (result.summary.total_experiments, result.summary.completed, result.summary.failed) == (4, 4, 0)
    saved = [load_result(stage.directory / file) for file in result.result_files]
    assert [(one.model_name, one.cycle) for one in saved] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_summary_table_and_manifest_are_on_disk_at_the_end(stage: Stage) -> None:
    result = stage.runner(study_of("a", "b", cycles=3)).run()
    assert load_study(stage.directory) == result
    assert result.summary.total_energy_j == 600.0
    assert [(row.model_name, row.cycles) for row in result.statistics] == [("a", 3), ("b", 3)]
    assert result.statistics[0].energy_per_token_j is not None
    assert result.statistics[0].energy_per_token_j.mean == 0.5
    manifest = load_manifest(stage.directory)
    assert (manifest.status, manifest.completed, manifest.pending) == ("completed", 6, 0)
    names = {path.name for path in stage.directory.iterdir() if path.is_file()}
    assert names == {"manifest.json", "study_summary.json", "results.parquet"}
    assert not (stage.directory / ".work").exists()


def test_csv_is_written_when_asked_for(stage: Stage) -> None:
    from llenergymeasure.config.user_config import UserConfig
    from llenergymeasure.study.runner import StudyRunner

    StudyRunner(study_of("a", "b"), stage.directory, UserConfig(), stage.host(), export_csv=True).run()
    assert len((stage.directory / "results.csv").read_text().splitlines()) == 3


def test_log_of_the_child_lies_beside_its_result(stage: Stage) -> None:
    result = stage.runner(study_of("a")).run()
    assert (stage.directory / result.result_files[0]).with_name("child.log").read_text() == "log of a\n"


def test_failure_is_recorded_and_the_study_goes_on(stage: Stage) -> None:
    stage.launcher.act = failing_for("b")
    result = stage.runner(study_of("a", "b", "c")).run()
    assert (result.summary.completed, result.summary.failed) == (2, 1)
    (failed,) = result.failed
    assert (failed.config["model"], failed.reason, failed.error_type, failed.cycle) == (
        "b",
        "b does not fit",
        "BackendError",
        1,
    )
    assert load_manifest(stage.directory).experiments[1].error_message == "b does not fit"
    (kept,) = stage.directory.glob("*_failed/child.log")
    assert kept.read_text() == "log of b\n"


def test_error_type_of_a_child_is_the_one_it_raised(stage: Stage) -> None:
    stage.launcher.act = failing_for("a", error=ChildFailedError("PreFlightError", "no GPU", "trace"))
    result = stage.runner(study_of("a", "b")).run()
    assert result.failed[0].error_type == "PreFlightError"


def test_study_gives_up_after_failures_in_a_row_and_names_the_common_reason(stage: Stage) -> None:
    models = [f"m{number}" for number in range(9)]
    stage.launcher.act = failing_for(*models[1:], error=BackendError("CUDA driver is missing"))
    with pytest.raises(StudyStoppedError, match=r"5 experiments.*all for this reason: CUDA driver is missing") as stop:
        stage.runner(study_of(*models)).run()
    assert len(stage.launcher.jobs) == 6
    assert stop.value.result is not None
    assert (stop.value.result.summary.completed, stop.value.result.summary.failed) == (1, 5)
    assert "--resume" in str(stop.value)
    assert load_manifest(stage.directory).status == "failed"
    assert load_study(stage.directory).summary.failed == 5


def test_a_success_in_between_starts_the_count_anew(stage: Stage) -> None:
    stage.launcher.act = failing_for("a", "c", "e")
    result = stage.runner(study_of("a", "b", "c", "d", "e", max_consecutive_failures=2)).run()
    assert (result.summary.completed, result.summary.failed) == (2, 3)


def test_interrupt_keeps_what_is_finished_and_leaves_the_rest_pending(stage: Stage) -> None:
    def act(job: Job) -> ExperimentResult:
        if job.config.model == "b":
            stage.interrupt.request()
            raise RunInterruptedError("interrupted")
        return result_of(job.config)

    stage.launcher.act = act
    with pytest.raises(StudyInterruptedError, match="1 of 3 runs are finished") as stop:
        stage.runner(study_of("a", "b", "c")).run()
    assert isinstance(stop.value, KeyboardInterrupt)
    manifest = load_manifest(stage.directory)
    assert manifest.status == "interrupted"
    assert [entry.status for entry in manifest.experiments] == ["completed", "pending", "pending"]
    assert stage.launcher.discarded == 1


def test_signals_are_ours_during_the_run_only(stage: Stage) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def act(job: Job) -> ExperimentResult:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stage.interrupt.requested
        return result_of(job.config)

    stage.launcher.act = act
    with pytest.raises(StudyInterruptedError):
        stage.runner(study_of("a", "b")).run()
    assert {name: signal.getsignal(name) for name in before} == before
    assert load_manifest(stage.directory).completed == 1


def test_result_that_cannot_be_saved_is_shown_kept_elsewhere_and_ends_the_study(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def act(job: Job) -> ExperimentResult:
        shutil.rmtree(stage.directory)
        stage.directory.mkdir()  # as an unmounted disk leaves its mount point behind
        return result_of(job.config, total_energy_j=42.0)

    stage.launcher.act = act
    with pytest.raises(StudyStoppedError, match="removed or replaced") as stop:
        stage.runner(study_of("a", "b")).run()
    (rescued,) = elsewhere.glob("*/result.json")
    assert json.loads(rescued.read_text())["total_energy_j"] == 42.0
    assert str(rescued) in str(stop.value)
    (shown,) = stage.of(RunFinished)
    assert shown.result.total_energy_j == 42.0


def test_a_job_that_cannot_be_written_stops_the_study_and_stays_to_be_done(stage: Stage) -> None:
    stage.launcher.act = failing_for("b", error=PersistenceError("Cannot write job.json: No space left on device."))
    with pytest.raises(StudyStoppedError, match=r"No space left on device\. 1 of 3 runs are finished"):
        stage.runner(study_of("a", "b", "c")).run()
    assert [entry.status for entry in load_manifest(stage.directory).experiments] == ["completed", "pending", "pending"]


def test_time_limit_is_the_studys_or_grows_with_the_work(stage: Stage) -> None:
    stage.runner(study_of("a", experiment_timeout_seconds=77.0)).run()
    stage.runner(study_of("llama-1b", "llama-70b")).run()
    fixed, small, large = (job.timeout_s for job in stage.launcher.jobs)
    assert fixed == 77.0
    assert 3600 < small < large


def test_baselines_go_from_child_to_child(stage: Stage) -> None:
    from datetime import datetime, timezone

    from llenergymeasure.core.baseline import Baseline, CachedBaseline

    idle = Baseline(power_w=60.0, method="fresh", taken_at=datetime.now(timezone.utc), duration_s=30.0)
    entry = CachedBaseline(frozenset({"GPU-0"}), "nvml", idle)
    run = stage.launcher.run
    stage.launcher.run = lambda job, observer, interrupt: replace(run(job, observer, interrupt), baselines=(entry,))
    stage.runner(study_of("a", "b")).run()
    assert [job.baselines for job in stage.launcher.jobs] == [(), (entry,)]


def test_environment_that_changed_in_between_is_a_warning_in_the_result(stage: Stage) -> None:
    newer = ENVIRONMENT.model_copy(update={"pip_freeze": ["Torch==2.14.0", "transformers==5.23.0"]})
    stage.launcher.act = lambda job: result_of(
        job.config, environment_snapshot=newer if job.config.model == "b" else ENVIRONMENT
    )
    result = stage.runner(study_of("a", "b", "c")).run()
    warnings = [load_result(stage.directory / file).measurement_warnings for file in result.result_files]
    assert warnings[0] == warnings[2] == []
    assert warnings[1] == ["environment_changed: differs from the study's earlier results in torch: 2.13.0 -> 2.14.0"]


def test_memory_left_on_a_gpu_is_said_and_noted_in_the_result(stage: Stage) -> None:
    stage.leftovers = ["GPU 0 (A100) has 12.0 GB in use"]
    result = stage.runner(study_of("a")).run()
    assert [warning.message for warning in stage.of(StudyWarning)] == ["GPU 0 (A100) has 12.0 GB in use"]
    assert load_result(stage.directory / result.result_files[0]).measurement_warnings == [
        "gpu_memory_left_behind: GPU 0 (A100) has 12.0 GB in use"
    ]


def test_observer_hears_of_everything_in_order(stage: Stage) -> None:
    stage.runner(study_of("a", "b")).run()
    kinds = [type(event) for event in stage.events]
    one = [RunStarted, StepStarted, RunFinished]
    assert kinds == [StudyStarted, *one, *one, StudyFinished]
    assert [event.duration_s for event in stage.of(RunFinished)] == [10.0, 10.0]


def test_observer_that_fails_does_not_cost_the_study(stage: Stage) -> None:
    def broken(event: object) -> None:
        raise BrokenPipeError

    assert stage.runner(study_of("a"), observer=broken).run().summary.completed == 1


def test_skipped_points_of_the_grid_are_in_the_summary(stage: Stage) -> None:
    study = study_of("a").model_copy(
        update={"skipped_configs": [{"raw_config": {"model": ""}, "reason": "model is empty", "errors": []}]}
    )
    result = stage.runner(study).run()
    assert result.summary.skipped == 1
    assert (result.skipped[0].config, result.skipped[0].reason) == ({"model": ""}, "model is empty")
