"""A study from its config to its result, and the search for one that was not finished."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from fakes import VirtualClock
from llenergymeasure.config.grid import compute_study_design_hash
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import ignore_events
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import BackendError, DatasetError, StudyError
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.launchers import ChosenLauncher
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.execute import StudyPlace, dataset_hashes, execute_study
from llenergymeasure.study.plan import StudyEvent, StudyStarted
from llenergymeasure.study.resume import find_unfinished, locked
from llenergymeasure.study.runner import StudyStoppedError
from study_fakes import ScriptedLauncher, result_of, study_of


def launcher() -> ScriptedLauncher:
    return ScriptedLauncher(VirtualClock())


def failing(job: Job) -> ExperimentResult:
    raise BackendError("it does not fit")


def begin(parent: Path, study: StudyConfig, *, gives_up: bool = False) -> Path:
    """Run `study` in `parent`, to its end or until it gives up; returns its directory."""
    runs = launcher()
    if not gives_up:
        return parent / execute_study(study, StudyPlace(parent), UserConfig(), lambda result: None, None, runs).study_id
    runs.act = failing
    with pytest.raises(StudyStoppedError) as caught:
        execute_study(study, StudyPlace(parent), UserConfig(), lambda result: None, None, runs)
    return caught.value.study_dir


def design(study: StudyConfig) -> str:
    return compute_study_design_hash(study.experiments)


GIVES_UP = study_of("a", "b", max_consecutive_failures=1)


def test_every_result_reaches_its_receiver_and_the_observer_is_told(tmp_path: Path) -> None:
    results: list[ExperimentResult] = []
    events: list[StudyEvent] = []
    study = execute_study(
        study_of("a", "b"), StudyPlace(tmp_path), UserConfig(), results.append, events.append, launcher()
    )
    assert [result.model_name for result in results] == ["a", "b"]
    assert isinstance(events[0], StudyStarted)
    assert study.summary.completed == 2
    assert (tmp_path / study.study_id / "manifest.json").is_file()


def test_none_keeps_a_study_on_this_machine_whatever_the_settings_say(tmp_path: Path) -> None:
    machine = UserConfig.model_validate({"cluster": {"address": "auto"}})
    place = StudyPlace(tmp_path, cluster="none")
    assert execute_study(study_of("a"), place, machine, lambda result: None, None, launcher()).summary.completed == 1


@pytest.mark.parametrize(("named", "kind"), [("local", "local"), ("docker:image", "docker"), ("docker:x", "local")])
def test_each_job_goes_to_the_runner_that_the_settings_name_for_its_backend(
    tmp_path: Path, named: str, kind: str
) -> None:
    runners = {"local": launcher(), "docker": launcher()}
    known = {name: partial(runners.__getitem__, name) for name in {"local", kind}}
    chosen = ChosenLauncher(known)
    machine = UserConfig.model_validate({"runners": {"pytorch": named}})
    job = Job(ExperimentConfig(model="a"), machine, tmp_path)
    chosen.prepare(job)
    chosen.run(job, ignore_events, Interrupt())
    chosen.discard()
    expected = runners.pop(kind)
    assert (len(expected.prepared), len(expected.jobs), expected.discarded) == (1, 1, 1)
    assert [other.jobs for other in runners.values()] == [[]]


@pytest.mark.parametrize("with_config", [True, False])
def test_a_study_without_anything_to_run_or_go_on_with_is_an_error(tmp_path: Path, with_config: bool) -> None:
    place = StudyPlace(tmp_path, resume=tmp_path / "gone" if with_config else None)
    with pytest.raises(StudyError, match=r"is not a directory" if with_config else r"nothing to run"):
        execute_study(None, place, UserConfig(), lambda result: None, None, launcher())
    assert list(tmp_path.iterdir()) == []


def test_a_study_killed_before_its_summary_gets_one_and_runs_nothing(tmp_path: Path) -> None:
    directory = begin(tmp_path, study_of("a"))
    (directory / "study_summary.json").unlink()
    runs = launcher()
    result = execute_study(None, StudyPlace(tmp_path, resume=directory), UserConfig(), lambda result: None, None, runs)
    assert (result.summary.completed, runs.jobs) == (1, [])
    assert json.loads((directory / "study_summary.json").read_text())["summary"]["completed"] == 1


def test_what_a_finished_study_could_not_remove_is_removed_by_going_on(tmp_path: Path) -> None:
    directory = begin(tmp_path, study_of("a"))
    (directory / ".work" / "run-00001").mkdir(parents=True)
    execute_study(None, StudyPlace(tmp_path, resume=directory), UserConfig(), lambda result: None, None, launcher())
    assert not (directory / ".work").exists()


def test_a_study_whose_docker_half_is_finished_goes_on_without_docker(tmp_path: Path) -> None:
    def all_but_vllm_fail(job: Job) -> ExperimentResult:
        return result_of(job.config) if job.config.backend == "vllm" else failing(job)

    study = study_of("a", max_consecutive_failures=1)
    in_docker = ExperimentConfig.model_validate({"model": "a", "backend": "vllm"})
    study = study.model_copy(update={"experiments": [in_docker, *study.experiments]})
    runs = launcher()
    runs.act = all_but_vllm_fail
    apart = UserConfig.model_validate({"runners": {"vllm": "docker:image"}})
    with pytest.raises(StudyStoppedError) as stopped:
        execute_study(study, StudyPlace(tmp_path), apart, lambda result: None, None, runs)
    place = StudyPlace(tmp_path, resume=stopped.value.study_dir)
    runs = launcher()
    result = execute_study(study, place, UserConfig(), lambda result: None, None, runs)
    assert result.summary.completed == 2
    assert [job.config.backend for job in runs.jobs] == ["pytorch"]


def test_each_data_set_is_read_once_and_one_that_is_gone_is_an_error(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    sha256 = dataset_hashes()
    config = ExperimentConfig(model="a", dataset=str(prompts), n=2)
    first = sha256(config)
    prompts.unlink()
    assert sha256(config) == first
    with pytest.raises(DatasetError):
        sha256(config.model_copy(update={"n": 1}))


def test_the_unfinished_study_of_a_design_is_found(tmp_path: Path) -> None:
    directory = begin(tmp_path, GIVES_UP, gives_up=True)
    begin(tmp_path, study_of("other", max_consecutive_failures=1), gives_up=True)
    assert find_unfinished(tmp_path, design(GIVES_UP)) == directory


def test_the_latest_of_several_is_found(tmp_path: Path) -> None:
    begin(tmp_path, GIVES_UP, gives_up=True)
    latest = begin(tmp_path, GIVES_UP, gives_up=True)
    assert find_unfinished(tmp_path, design(GIVES_UP)) == latest


def test_a_finished_study_is_not_offered(tmp_path: Path) -> None:
    begin(tmp_path, GIVES_UP)
    assert find_unfinished(tmp_path, design(GIVES_UP)) is None


def test_a_study_that_somebody_runs_is_not_offered(tmp_path: Path) -> None:
    directory = begin(tmp_path, GIVES_UP, gives_up=True)
    with locked(directory):
        assert find_unfinished(tmp_path, design(GIVES_UP)) is None
    assert find_unfinished(tmp_path, design(GIVES_UP)) == directory


def test_a_damaged_manifest_hides_no_other_study(tmp_path: Path) -> None:
    directory = begin(tmp_path, GIVES_UP, gives_up=True)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text(f'{{"study_design_hash": "{design(GIVES_UP)}", ')
    assert find_unfinished(tmp_path, design(GIVES_UP)) == directory


def test_where_no_study_was_ever_kept_there_is_none(tmp_path: Path) -> None:
    assert find_unfinished(tmp_path / "never", "0" * 16) is None
