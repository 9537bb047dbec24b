"""A study from its config to its result: directory, lock, resumption, then the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig, settings_without_effect
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.results.persistence import load_study
from llenergymeasure.runners.job import LOCAL_RUNNER, Launcher
from llenergymeasure.runners.launchers import LAUNCHERS
from llenergymeasure.study.events import (
    RunFinished,
    StudyEvent,
    StudyNotice,
    StudyObserver,
    StudyStarted,
    ignore_study_events,
)
from llenergymeasure.study.gaps import enter_key
from llenergymeasure.study.lock import locked
from llenergymeasure.study.manifest import create_study_dir
from llenergymeasure.study.preflight import check_backends
from llenergymeasure.study.resume import Resumption, check_study_dir, plan_resumption
from llenergymeasure.study.runner import StudyRunner, StudyStoppedError, Surroundings
from llenergymeasure.study.sequence import plan_runs
from llenergymeasure.study.webhook import send_summary


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """Where a study is kept.

    Args:
        parent: Directory in which a new study's own directory is made.
        resume: Directory of an earlier execution to go on with; `None` for a new study.
        export_csv: Also write a CSV of all results at the end.
        interactive: Whether somebody sits at the terminal: Enter then skips a gap.
    """

    parent: Path
    resume: Path | None = None
    export_csv: bool = False
    interactive: bool = False


def execute_study(
    study: StudyConfig | None,
    place: StudyPlace,
    machine: UserConfig,
    on_result: Callable[[ExperimentResult], None],
    observer: StudyObserver | None = None,
    launcher: Launcher | None = None,
) -> StudyResult:
    """Run a study, or what is left of it.

    Args:
        study: The study; `None`: the one in `place.resume`, as its manifest has it.
        place: Where it is kept.
        machine: The user's settings for this machine.
        on_result: Receives each result as soon as it exists.
        observer: Who is told what happens.
        launcher: Runs each experiment in isolation; by default in a child process on this machine.

    Returns:
        What the study yielded; of a finished one that is resumed, what it had yielded.

    Raises:
        PreFlightError: The study cannot run on this machine.
        StudyError: It cannot be resumed, is in use by another process, or gave up.
        StudyInterruptedError: SIGINT or SIGTERM came; what is finished is kept.
        PersistenceError: Nothing can be written.
    """
    observer = observer or ignore_study_events

    def follow(event: StudyEvent) -> None:
        if isinstance(event, RunFinished) and event.result is not None:
            on_result(event.result)
        observer(event)

    if study is not None:
        check_backends(study, machine)
    directory = _directory_for(study, place)
    for path in settings_without_effect(machine):
        follow(StudyNotice(f"{path} is set, and this release does not use it: every run is on this machine."))
    with locked(directory):
        resumption = None
        if place.resume is not None:
            resumption = plan_resumption(directory, study, dataset_hashes())
            for notice in resumption.notices:
                follow(StudyNotice(notice))
            finished = _finished_result(directory, resumption)
            if finished is not None:
                done = finished.summary
                follow(StudyStarted(directory, done.total_experiments, done.completed, done.skipped))
                follow(StudyNotice(f"The study in {directory} is finished; nothing to do."))
                return finished
            study = resumption.study
            check_backends(study, machine)
        around = Surroundings(
            launcher=launcher or LAUNCHERS[LOCAL_RUNNER](),
            observer=follow,
            skip_gap=enter_key() if place.interactive else None,
        )
        runner = StudyRunner(
            _given(study), directory, machine, around, resumption=resumption, export_csv=place.export_csv
        )
        return _run(runner, machine)


def dataset_hashes() -> Callable[[ExperimentConfig], str | None]:
    """A function that tells the SHA-256 of the prompts an experiment would use now, and reads each data set once.

    It raises `DatasetError` where they cannot be read.
    """
    known: dict[tuple[str, int], str] = {}

    def sha256(config: ExperimentConfig) -> str:
        key = (str(config.dataset), config.n)
        if key not in known:
            known[key] = load_raw_prompts(config.dataset, config.n).identity.sha256
        return known[key]

    return sha256


def _directory_for(study: StudyConfig | None, place: StudyPlace) -> Path:
    """The directory to go on in, or a new one."""
    if place.resume is None:
        return create_study_dir(_given(study).name, place.parent)
    check_study_dir(place.resume)
    return place.resume


def _given(study: StudyConfig | None) -> StudyConfig:
    if study is None:
        raise StudyError("nothing to run: give a study, or the directory of one to go on with")
    return study


def _run(runner: StudyRunner, machine: UserConfig) -> StudyResult:
    try:
        result = runner.run()
    except StudyStoppedError as error:
        if error.result is not None:
            _announce(error.result, "failed", machine)
        raise
    _announce(result, "completed", machine)
    return result


def _finished_result(directory: Path, resumption: Resumption) -> StudyResult | None:
    """The summary of a study with nothing left to do; `None` where a run, or the summary itself, is to be made yet."""
    if resumption.started_at is None or len(resumption.kept) < len(plan_runs(resumption.study)):
        return None
    try:
        result = load_study(directory)
    except PersistenceError:  # killed between its last run and its summary
        return None
    return result if result.completed_at is not None and result.summary.completed == len(resumption.kept) else None


def _announce(result: StudyResult, status: str, machine: UserConfig) -> None:
    if machine.output.webhook_url is not None:
        send_summary(machine.output.webhook_url, result, status=status)
