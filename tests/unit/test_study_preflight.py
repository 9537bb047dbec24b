"""What a study is asked once before anything starts, by a run and by its dry run alike; asked in this process."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_line import CommandLine
from llem_process import but_for_the_disk
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Observer, StepStarted
from llenergymeasure.exceptions import BackendError, PreFlightError
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.plan import GapStarted, StudyEvent, StudyWarning
from llenergymeasure.study.preflight import MAX_CHECKED, Outlook, check_here
from llenergymeasure.study.runner import StudyStoppedError
from study_fakes import ScriptedLauncher, Stage, study_of

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="needs the engine")

SOUND = "model: builtin/tiny-llama, n: 2, pytorch: {device: cpu}"

FAULTS = {
    "no GPU": ("model: builtin/tiny-llama, n: 2", "no CUDA GPU is available"),
    "no engine": (
        "model: builtin/tiny-llama, n: 2, backend: tensorrt",
        "needs tensorrt-llm>=1.0,<1.5",
    ),
    "no model": ("model: /no/model, n: 2, pytorch: {device: cpu}", "/no/model"),
    "too few prompts": (f"{SOUND}, dataset: few.jsonl".replace("n: 2", "n: 9"), "9"),
    "no data set": (f"{SOUND}, dataset: none.jsonl", "none.jsonl"),
    "context": (f"{SOUND}, max_input_tokens: 100000", "max_input_tokens (100000)"),
    "meter": (f"{SOUND}, energy: {{backend: nvml}}", "nvml"),
}


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "few.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    return CommandLine(directory, monkeypatch, capsys)


def config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"model": "builtin/tiny-llama", "n": 2, "pytorch": {"device": "cpu"}, **changes}
    )


@pytest.mark.parametrize(("fields", "message"), FAULTS.values(), ids=FAULTS)
def test_a_dry_run_refuses_what_no_run_could_do_with_its_exit_code(
    llem: CommandLine, fields: str, message: str
) -> None:
    said = llem("run", llem.file("s.yaml", f"{{{fields}, sweep: {{random_seed: [1, 2]}}}}\n"), "--dry-run")
    assert said.code == 1
    assert said.err.startswith("Pre-flight failed: 1 issue\n")
    assert message in said.err


@pytest.mark.parametrize(("fields", "message"), FAULTS.values(), ids=FAULTS)
def test_a_single_dry_run_reports_and_then_refuses_in_the_words_of_its_run(
    llem: CommandLine, fields: str, message: str
) -> None:
    experiment = llem.file("e.yaml", f"{{{fields}}}\n")
    preview, run = llem("run", experiment, "--dry-run"), llem("run", experiment, "--quiet")
    assert (preview.code, preview.err) == (run.code, run.err)
    assert preview.code == 1
    assert message in preview.err
    assert preview.out.endswith("Nothing was run.\n")
    assert run.out == ""


def test_a_single_dry_run_of_what_can_run_says_nothing_more(llem: CommandLine) -> None:
    experiment = llem.file("e.yaml", f"{{{SOUND}, energy: {{backend: null}}}}\n")
    preview = llem("run", experiment, "--dry-run")
    assert (preview.code, but_for_the_disk(preview.err)) == (0, "")


def test_a_study_that_can_do_a_part_is_told_of_the_rest(llem: CommandLine) -> None:
    study = llem.file("s.yaml", f"experiments: [{{{SOUND}}}, {{{SOUND.replace('builtin/tiny-llama', '/no/model')}}}]\n")
    said = llem("run", study, "--dry-run")
    assert "Pre-flight failed" not in said.err
    assert "cannot run here: " in said.err
    assert "/no/model" in said.err
    assert said.code == 1  # as of its run, of which a part fails


def test_reasons_that_all_share_come_once_and_first() -> None:
    with pytest.raises(PreFlightError) as caught:
        check_here([config(dataset="none.jsonl"), config(dataset="none.jsonl", model="/no/model")], UserConfig())
    assert len(caught.value.failures) == 2
    assert "none.jsonl" in caught.value.failures[0]
    assert caught.value.failures[1].startswith("model / ")


def test_one_that_can_run_among_many_that_cannot_is_found_where_models_differ() -> None:
    broken = [config(model="/no/model", random_seed=seed) for seed in range(MAX_CHECKED + 5)]
    assert check_here([*broken, config()], UserConfig()).failing


def docker_that_is_lost(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Docker client that has every image, and loses its daemon once a job has begun."""
    ready = '{"is": "Ready", "version": "2.0.0"}'
    image = '[{"Id": "sha256:5", "Config": {"Labels": null}}]'
    program = directory / "docker"
    program.write_text(
        f"#!/bin/sh\ncase $1 in image) echo '{image}';; run) echo '{ready}'; read word; exit 125;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


def test_a_runner_that_cannot_be_asked_costs_no_other_runners_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_that_is_lost(tmp_path, monkeypatch)
    machine = UserConfig.model_validate({"runners": {"vllm": "docker:image"}})
    asked = ExperimentConfig.model_validate({"model": "m", "backend": "vllm"})
    (refused,), (unknown,) = check_here([asked, config(model="/no/model")], machine)
    assert unknown.startswith(
        "Whether experiments can run with the runner docker:image could not be found out: "
        "the Docker client: ended with exit code 125"
    )
    assert "/no/model" in refused


def test_a_single_dry_run_says_what_could_not_be_found_out(
    llem: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_that_is_lost(tmp_path, monkeypatch)
    llem.user_config("runners: {pytorch: 'docker:image'}\n")
    preview = llem("run", llem.file("e.yaml", f"{{{SOUND}}}\n"), "--dry-run")
    assert preview.code == 0
    assert "docker:image could not be found out: the Docker client: ended with exit code 125" in preview.err


def test_what_is_refused_has_no_directory_and_what_is_told_reaches_the_observer(tmp_path: Path) -> None:
    stage, events = Stage(tmp_path), list[StudyEvent]()

    def refuse(configs: object, machine: UserConfig) -> Outlook:
        raise PreFlightError(["no room"])

    study, place = study_of("a"), StudyPlace(tmp_path / "results")
    with pytest.raises(PreFlightError, match="no room"):
        execute_study(study, place, UserConfig(), print, events.append, stage.launcher, refuse)
    assert (events, list(tmp_path.iterdir())) == ([], [])
    outlook = Outlook(["one cannot"], ["mind this"])
    execute_study(study, place, UserConfig(), lambda r: None, events.append, stage.launcher, lambda c, m: outlook)
    assert StudyWarning("one cannot") in events
    assert StudyWarning("mind this") in events


def test_there_is_no_gap_after_a_run_that_loaded_nothing(tmp_path: Path) -> None:
    class Loading(ScriptedLauncher):
        def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
            if job.config.model == "loads":
                observer(StepStarted("load"))
            return super().run(job, observer, interrupt)

    def fail(job: Job) -> None:
        raise BackendError("no")

    stage = Stage(tmp_path)
    stage.launcher = Loading(stage.clock, fail)  # type: ignore[arg-type] # nothing comes of it
    study = study_of("a", "b", "loads", "c", max_consecutive_failures=4, config_gap_seconds=60.0)
    with pytest.raises(StudyStoppedError):
        stage.runner(study).run()
    assert len(stage.of(GapStarted)) == 1
