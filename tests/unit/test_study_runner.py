from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import StepStarted
from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import BackendError, LLEMError, PersistenceError
from llenergymeasure.results.persistence import load_result, load_study
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.supervise import ChildFailedError
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.manifest import JOURNAL_FILE, load_manifest
from llenergymeasure.study.plan import RunFinished, RunStarted, StudyFinished, StudyStarted, StudyWarning
from llenergymeasure.study.runner import StudyInterruptedError, StudyStoppedError
from result_samples import make_rich_result
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


def test_an_experiment_that_is_given_twice_runs_once_and_that_is_said_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    assert stage.runner(study_of("a", "b", "a")).run().summary.completed == 2
    assert caplog.text.count("1 of 3 experiments repeat an earlier one and run once") == 1


@pytest.mark.parametrize(("order", "told"), [("interleaved", 1), ("shuffled", 0)])
def test_a_seed_without_shuffling_is_said_to_have_no_effect(
    order: str, told: int, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.runner(study_of("a", cycle_order=order, shuffle_seed=7)).run()
    words = "execution.shuffle_seed is set and has no effect while execution.cycle_order is interleaved"
    assert caplog.text.count(words) == told


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
    assert names == {"manifest.json", "study_summary.json", "results.parquet", "report.html"}
    assert not (stage.directory / ".work").exists()


def test_what_a_study_swept_is_in_its_table_and_its_summary_says_what_its_figures_are(stage: Stage) -> None:
    study = study_of("a", cycles=2)
    hot = [ExperimentConfig(model="a", decoder={"temperature": heat}) for heat in (0.5, 0.9)]
    guess = EnergyBreakdown(raw_j=1.0, method="model_estimate")
    stage.launcher.act = lambda job: result_of(
        job.config,
        effective_config=job.config.model_dump(mode="json"),
        energy_breakdown=guess,
        measurement_warnings=["energy_is_estimated: by a model"],
        latency_stats=make_rich_result().latency_stats,
    )
    result = stage.runner(study.model_copy(update={"experiments": hot})).run()
    rows = pq.read_table(stage.directory / "results.parquet").to_pylist()
    assert [row["decoder.temperature"] for row in rows] == [0.5, 0.5, 0.9, 0.9]
    assert rows[0]["config_name"] == "a / pytorch / bf16 / decoder.temperature=0.5"
    assert [entry.config_name for entry in result.statistics] == [rows[0]["config_name"], rows[2]["config_name"]]
    written = json.loads((stage.directory / "study_summary.json").read_text())["statistics"][0]
    assert (written["estimated"], written["warnings"], written["energy_vs_best"]) == (
        True,
        {"energy_is_estimated": 2},
        1,
    )
    assert written["ttft_ms"]["mean"] == 142.0
    assert result.path == stage.directory
    assert [one.cycle for one in result.results()] == [1, 2, 1, 2]


def test_csv_is_written_when_asked_for(stage: Stage) -> None:
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
    stage.interrupt_in("b")
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


def journal_in(study_dir: Path) -> int:
    """The descriptor by which this process writes the journal of a study."""
    descriptors = {int(link.name): link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    return next(n for n, link in descriptors.items() if os.path.realpath(link) == str(study_dir / JOURNAL_FILE))


def go_on(stage: Stage, study: StudyConfig) -> StudyResult:
    place = StudyPlace(stage.directory, resume=stage.directory)
    return execute_study(study, place, UserConfig(), lambda result: None, launcher=stage.launcher)


def full_device(size: int) -> int:
    return os.open("/dev/full", os.O_WRONLY)


def file_that_cannot_grow(size: int) -> int:
    descriptor = os.memfd_create("journal", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


def with_journal_replaced(stage: Stage, model: str, replacement: Callable[[int], int]):
    def act(job: Job) -> ExperimentResult:
        if job.config.model == model:
            journal = journal_in(stage.directory)
            new = replacement(os.fstat(journal).st_size)
            os.dup2(new, journal)
            os.close(new)
        return result_of(job.config)

    return act


def test_a_journal_that_takes_no_more_costs_nothing_while_the_manifest_does(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.launcher.act = with_journal_replaced(stage, "b", file_that_cannot_grow)
    result = stage.runner(study_of("a", "b", "c")).run()
    assert (result.summary.completed, load_manifest(stage.directory).status) == (3, "completed")
    assert f"Cannot write {stage.directory / JOURNAL_FILE}: Operation not permitted." in caplog.text
    assert "The manifest is written whole instead." in caplog.text


def test_a_run_that_is_saved_counts_and_is_told_also_where_its_checkpoint_fails(stage: Stage) -> None:
    stage.launcher.act = with_journal_replaced(stage, "b", full_device)
    study = study_of("a", "b", "c")
    with pytest.raises(StudyStoppedError, match=r"jsonl: No space left on device\..* 2 of 3 runs are finished") as stop:
        stage.runner(study).run()
    assert [(event.result.model_name, event.error) for event in stage.of(RunFinished)] == [("a", None), ("b", None)]
    assert stop.value.result is not None
    assert len(stop.value.result.result_files) == load_manifest(stage.directory).completed == 2
    again = go_on(stage, study)
    assert again.summary.completed == 3


def test_a_failed_run_is_told_also_where_its_checkpoint_fails(stage: Stage) -> None:
    replacing = with_journal_replaced(stage, "a", full_device)

    def act(job: Job) -> ExperimentResult:
        raise BackendError(f"{replacing(job).model_name} does not fit")

    stage.launcher.act = act
    with pytest.raises(StudyStoppedError, match="0 of 2 runs are finished"):
        stage.runner(study_of("a", "b")).run()
    assert [event.error for event in stage.of(RunFinished)] == ["a does not fit"]


def test_a_summary_that_cannot_be_written_comes_with_the_error_and_is_made_by_going_on(stage: Stage) -> None:
    (stage.directory / "study_summary.json").mkdir()
    study = study_of("a", "b")
    with pytest.raises(StudyStoppedError, match="2 of 2 runs are finished") as stop:
        stage.runner(study).run()
    assert "Not saved, and made anew by going on: Cannot write" in str(stop.value)
    assert stop.value.result is not None
    assert [entry.model_name for entry in stop.value.result.statistics] == ["a", "b"]
    assert load_manifest(stage.directory).completed == 2
    (stage.directory / "study_summary.json").rmdir()
    go_on(stage, study)
    assert load_study(stage.directory).summary.completed == 2


def test_a_manifest_that_cannot_be_written_at_the_end_does_not_cost_the_summary(stage: Stage) -> None:
    manifest, aside = stage.directory / "manifest.json", stage.directory / "aside.json"

    def act(job: Job) -> ExperimentResult:
        manifest.rename(aside)
        manifest.mkdir()
        return result_of(job.config)

    stage.launcher.act = act
    study = study_of("a")
    with pytest.raises(StudyStoppedError, match=r"1 of 1 runs .*\n.*Cannot write .*manifest\.json"):
        stage.runner(study).run()
    assert load_study(stage.directory).summary.completed == 1
    manifest.rmdir()
    aside.rename(manifest)
    go_on(stage, study)
    assert load_manifest(stage.directory).status == "completed"


def test_a_journal_that_cannot_be_removed_is_told_and_costs_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def act(job: Job) -> ExperimentResult:
        (stage.directory / JOURNAL_FILE).unlink()
        (stage.directory / JOURNAL_FILE).mkdir()
        return result_of(job.config)

    stage.launcher.act = act
    study = study_of("a")
    assert stage.runner(study).run().summary.completed == 1
    assert f"Cannot remove {stage.directory / JOURNAL_FILE}" in caplog.text
    (stage.directory / JOURNAL_FILE).rmdir()
    (stage.directory / JOURNAL_FILE).touch()
    go_on(stage, study)
    assert not (stage.directory / JOURNAL_FILE).exists()


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
