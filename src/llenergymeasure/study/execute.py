"""A study from its config to its result: directory, lock, resumption, then the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import StudyError
from llenergymeasure.runners.worker import ProcessLauncher
from llenergymeasure.study.events import RunFinished, StudyEvent, StudyNotice, StudyObserver, ignore_study_events
from llenergymeasure.study.gaps import enter_key
from llenergymeasure.study.lock import locked
from llenergymeasure.study.manifest import create_study_dir
from llenergymeasure.study.preflight import check_backends
from llenergymeasure.study.resume import Resumption, plan_resumption
from llenergymeasure.study.runner import StudyRunner, StudyStoppedError, Surroundings
from llenergymeasure.study.webhook import send_summary

if TYPE_CHECKING:
    from llenergymeasure.config.user_config import UserConfig


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
) -> StudyResult:
    """Run a study, or what is left of it.

    Args:
        study: The study; `None`: the one in `place.resume`, as its manifest has it.
        place: Where it is kept.
        machine: The user's settings for this machine.
        on_result: Receives each result as soon as it exists.
        observer: Who is told what happens.

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
    directory = place.resume
    if directory is None:
        if study is None:
            raise StudyError("nothing to run: give a study, or the directory of one to go on with")
        directory = create_study_dir(study.name, place.parent)
    elif not directory.is_dir():
        raise StudyError(f"there is no study to go on with: {directory} is not a directory")
    with locked(directory):
        if place.resume is None and study is not None:
            result = _run(study, directory, place, machine, follow, None)
        else:
            resumption = plan_resumption(directory, study, dataset_sha256)
            for notice in resumption.notices:
                follow(StudyNotice(notice))
            result = _run(resumption.study, directory, place, machine, follow, resumption)
    return result


def dataset_sha256(config: ExperimentConfig) -> str | None:
    """SHA-256 that identifies the prompts of an experiment, as the data set is now.

    Raises:
        DatasetError: They cannot be read.
    """
    return load_raw_prompts(config.dataset, config.n).identity.sha256


def _run(
    study: StudyConfig,
    directory: Path,
    place: StudyPlace,
    machine: UserConfig,
    observer: StudyObserver,
    resumption: Resumption | None,
) -> StudyResult:
    around = Surroundings(
        launcher=ProcessLauncher(),
        observer=observer,
        skip_gap=enter_key() if place.interactive else None,
    )
    runner = StudyRunner(study, directory, machine, around, resumption=resumption, export_csv=place.export_csv)
    try:
        result = runner.run()
    except StudyStoppedError as error:
        if error.result is not None:
            _announce(error.result, "failed", machine)
        raise
    _announce(result, "completed", machine)
    return result


def _announce(result: StudyResult, status: str, machine: UserConfig) -> None:
    if machine.output.webhook_url is not None:
        send_summary(machine.output.webhook_url, result, status=status)
