from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.config.models import EnergyConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.domain.environment import DatasetInfo
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import BackendError, DatasetError, PersistenceError, StudyError
from llenergymeasure.results.persistence import load_result, load_study
from llenergymeasure.runners.job import Job
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.manifest import load_manifest
from llenergymeasure.study.plan import StudyWarning
from llenergymeasure.study.resume import describe_changes, load_resumable_study, locked, plan_resumption, refuse_changes
from llenergymeasure.study.runner import StudyRunner
from study_fakes import ENVIRONMENT, Stage, result_of, study_of


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def same_prompts(config: ExperimentConfig) -> str:
    return "a" * 64


def interrupted_at(stage: Stage, study: StudyConfig, model: str) -> None:
    stage.interrupt_in(model)
    with pytest.raises(KeyboardInterrupt):
        stage.runner(study).run()


def resume(directory: Path, study: StudyConfig | None = None, **options: Any) -> Stage:
    """Go on with a study whose prompts are the bundled ones; the stage that it happened on."""
    stage = Stage(directory)
    stage.launcher.act = options.pop("act", stage.launcher.act)
    stage.result = execute_study(  # type: ignore[attr-defined]
        study,
        StudyPlace(parent=directory, resume=directory),
        UserConfig(),
        lambda result: None,
        stage.events.append,
        launcher=stage.launcher,
    )
    return stage


def ran(stage: Stage) -> list[str]:
    return [job.config.model for job in stage.launcher.jobs]


def results_on_disk(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.glob("*/result.json")}


@pytest.mark.parametrize("with_file", [True, False])
def test_resume_runs_what_is_left_and_touches_nothing_that_is_done(stage: Stage, with_file: bool) -> None:
    study = study_of("a", "b", "c", cycles=2, cycle_order="interleaved")
    interrupted_at(stage, study, "c")
    before = results_on_disk(stage.directory)
    again = resume(stage.directory, study if with_file else None)
    assert ran(again) == ["c", "a", "b", "c"]
    assert before.items() <= results_on_disk(stage.directory).items()
    result = load_study(stage.directory)
    assert (result.summary.completed, result.summary.total_experiments) == (6, 6)
    assert load_manifest(stage.directory).status == "completed"


def test_the_pause_before_a_resumption_is_no_time_of_the_study(stage: Stage) -> None:
    interrupted_at(stage, study_of("a", "b"), "b")
    assert load_study(stage.directory).summary.total_wall_time_s == 20.0
    stage.clock.sleep(86_400.0)
    resumption = plan_resumption(stage.directory, None, same_prompts)
    host = Stage(stage.directory, stage.clock).host()
    again = StudyRunner(resumption.study, stage.directory, UserConfig(), host, resumption=resumption).run()
    assert again.summary.total_wall_time_s == load_manifest(stage.directory).ran_s == 30.0


def test_what_is_switched_off_stays_off_whether_the_study_is_finished_or_not(stage: Stage) -> None:
    switched_off = {"energy": EnergyConfig(backend=None), "passthrough_kwargs": {"x": None}}
    study = StudyConfig(experiments=[ExperimentConfig(model=model, **switched_off) for model in ("a", "b")])
    interrupted_at(stage, study, "b")
    again = resume(stage.directory)
    assert [job.config for job in again.launcher.jobs] == study.experiments[1:]
    assert ran(resume(stage.directory, study)) == []
    assert ran(resume(stage.directory)) == []


def test_failed_runs_are_tried_again(stage: Stage) -> None:
    def act(job: Job) -> ExperimentResult:
        if job.config.model == "b":
            raise BackendError("out of memory")
        return result_of(job.config)

    stage.launcher.act = act
    stage.runner(study_of("a", "b")).run()
    again = resume(stage.directory)
    assert ran(again) == ["b"]
    assert load_study(stage.directory).failed == []


def test_resuming_a_finished_study_does_nothing_and_says_so(stage: Stage) -> None:
    finished = stage.runner(study_of("a", "b")).run()
    before = {path: path.read_bytes() for path in stage.directory.rglob("*") if path.is_file()}
    again = resume(stage.directory)
    assert ran(again) == []
    assert again.result == finished  # type: ignore[attr-defined]
    assert "nothing to do" in again.of(StudyWarning)[-1].message
    after = {path: path.read_bytes() for path in stage.directory.rglob("*") if path.is_file()}
    assert before == {path: content for path, content in after.items() if path.name != ".lock"}


def test_more_cycles_top_a_study_up(stage: Stage) -> None:
    stage.runner(study_of("a", "b")).run()
    again = resume(stage.directory, study_of("a", "b", cycles=3))
    assert ran(again) == ["a", "a", "b", "b"]
    saved = [load_result(stage.directory / file) for file in load_study(stage.directory).result_files]
    assert sorted((one.model_name, one.cycle) for one in saved) == [
        (model, cycle) for model in ("a", "b") for cycle in (1, 2, 3)
    ]


def test_fewer_cycles_than_have_results_are_refused(stage: Stage) -> None:
    stage.runner(study_of("a", cycles=3)).run()
    with pytest.raises(StudyError, match="Cycles can be added"):
        resume(stage.directory, study_of("a", cycles=2))


def test_other_changes_are_refused_with_the_difference(stage: Stage) -> None:
    stage.runner(study_of("a", "b")).run()
    changed = StudyConfig(
        experiments=[ExperimentConfig(model="a", n=50), ExperimentConfig(model="b"), ExperimentConfig(model="c")]
    )
    with pytest.raises(StudyError) as refusal:
        resume(stage.directory, changed)
    assert "a / pytorch / bf16: n: 100 -> 50" in str(refusal.value)
    assert "added: c / pytorch / bf16" in str(refusal.value)


def test_changes_are_described_field_by_field() -> None:
    a, b, c = (ExperimentConfig(model=name) for name in "abc")
    cool = ExperimentConfig.model_validate({"model": "a", "decoder": {"temperature": 0.5}})
    assert list(describe_changes([a, b], [cool, b])) == ["a / pytorch / bf16: decoder.temperature: 1.0 -> 0.5"]
    assert list(describe_changes([a, b, c], [a])) == ["removed: b / pytorch / bf16", "removed: c / pytorch / bf16"]
    assert list(describe_changes([a, b], [b, a])) == ["the experiments are in another order"]


def test_name_and_execution_may_change() -> None:
    refuse_changes(study_of("a", name="one"), study_of("a", name="two", cycles=9, config_gap_seconds=1.0))


@pytest.mark.parametrize("damage", ["", '{"schema_version": "2.0"', "not json"])
def test_result_that_does_not_load_is_run_again(stage: Stage, damage: str) -> None:
    result = stage.runner(study_of("a", "b")).run()
    (stage.directory / result.result_files[0]).write_text(damage)
    again = resume(stage.directory)
    assert ran(again) == ["a"]
    assert "a / pytorch / bf16, cycle 1, runs again" in again.of(StudyWarning)[0].message


def test_result_that_is_gone_is_run_again(stage: Stage) -> None:
    result = stage.runner(study_of("a", "b")).run()
    (stage.directory / result.result_files[1]).unlink()
    assert ran(resume(stage.directory)) == ["b"]


def test_result_of_another_configuration_is_run_again(stage: Stage) -> None:
    result = stage.runner(study_of("a", "b")).run()
    a, b = (stage.directory / file for file in result.result_files)
    a.write_bytes(b.read_bytes())
    again = resume(stage.directory)
    assert ran(again) == ["a"]
    assert "is the result of another configuration" in again.of(StudyWarning)[0].message


def test_entry_that_points_out_of_the_directory_is_not_believed(stage: Stage) -> None:
    stage.runner(study_of("a")).run()
    path = stage.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["experiments"][0]["result_file"] = "../elsewhere/result.json"
    path.write_text(json.dumps(manifest))
    assert plan_resumption(stage.directory, None, same_prompts).kept == ()


def with_known_prompts(job: Job) -> ExperimentResult:
    return result_of(job.config, dataset=DatasetInfo(name="aienergyscore", sha256="a" * 64, prompt_count=100))


def test_result_of_other_prompts_is_run_again(stage: Stage) -> None:
    stage.launcher.act = with_known_prompts
    stage.runner(study_of("a")).run()
    assert len(plan_resumption(stage.directory, None, same_prompts).kept) == 1
    resumption = plan_resumption(stage.directory, None, lambda config: "b" * 64)
    assert resumption.kept == ()
    assert "data set has changed" in resumption.warnings[0]


def test_data_set_that_cannot_be_read_now_does_not_cost_results(stage: Stage) -> None:
    def missing(config: ExperimentConfig) -> str:
        raise DatasetError("prompts.jsonl: no such file")

    stage.launcher.act = with_known_prompts
    stage.runner(study_of("a")).run()
    resumption = plan_resumption(stage.directory, None, missing)
    assert len(resumption.kept) == 1
    assert "no such file" in resumption.warnings[0]


def test_result_saved_an_instant_before_the_end_counts(stage: Stage) -> None:
    study = study_of("a", "b")
    interrupted_at(stage, study, "b")
    result_of(study.experiments[1], cycle=1).save(stage.directory)
    again = resume(stage.directory)
    assert ran(again) == []
    assert load_study(stage.directory).summary.completed == 2


def test_damaged_manifest_needs_the_study_file_and_nothing_else(stage: Stage) -> None:
    study = study_of("a", "b", "c")
    interrupted_at(stage, study, "c")
    (stage.directory / "manifest.json").write_text('{"schema_version": "2.0", "exper')
    with pytest.raises(PersistenceError, match="Give the study file"):
        resume(stage.directory)
    again = resume(stage.directory, study)
    assert ran(again) == ["c"]
    assert load_manifest(stage.directory).completed == 3


@pytest.mark.parametrize("name", ["", "gone"])
def test_directory_without_a_study_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    for study in (None, study_of("a")):
        with pytest.raises(StudyError, match=str(tmp_path / name)):
            resume(tmp_path / name, study)
    with pytest.raises(StudyError, match=str(tmp_path / name)):
        load_resumable_study(tmp_path / name)


def test_study_that_is_running_cannot_be_resumed(stage: Stage) -> None:
    stage.runner(study_of("a")).run()
    with locked(stage.directory), pytest.raises(StudyError, match="in use by process"):
        resume(stage.directory)


def test_study_survives_the_manifest_unchanged(stage: Stage) -> None:
    study = StudyConfig(
        experiments=[
            ExperimentConfig.model_validate(
                {
                    "model": "a",
                    "dataset": {"synthetic": {"n": 5, "input_len": 16, "output_len": 4}},
                    "pytorch": {"batch_size": 2, "device": "cpu"},
                    "passthrough_kwargs": {"nested": {"list": [1, 2.5, None, "x"]}},
                }
            )
        ],
        name="näme",
    )
    stage.runner(study).run()
    assert load_resumable_study(stage.directory) == study


def test_environment_that_changed_since_is_a_warning_in_the_new_result(stage: Stage) -> None:
    interrupted_at(stage, study_of("a", "b"), "b")
    newer = ENVIRONMENT.model_copy(update={"cuda_driver_version": "570.86"})
    resume(stage.directory, act=lambda job: result_of(job.config, environment_snapshot=newer))
    last = load_result(stage.directory / load_study(stage.directory).result_files[1])
    assert last.measurement_warnings == [
        "environment_changed: differs from the study's earlier results in NVIDIA driver: 535.104 -> 570.86"
    ]
