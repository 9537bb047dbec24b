"""A study from its config to its result: directory, lock, resumption, the runner, and telling somebody at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig, settings_without_effect
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.resilience import retry_on_error
from llenergymeasure.results.persistence import load_study
from llenergymeasure.runners.launchers import ChosenLauncher, Launcher
from llenergymeasure.study.environment import check_backends
from llenergymeasure.study.events import (
    RunFinished,
    StudyEvent,
    StudyObserver,
    StudyStarted,
    StudyWarning,
    ignore_study_events,
)
from llenergymeasure.study.gaps import enter_key
from llenergymeasure.study.lock import locked
from llenergymeasure.study.manifest import create_study_dir
from llenergymeasure.study.resume import Resumption, check_study_dir, plan_resumption
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError
from llenergymeasure.study.sequence import plan_runs

POST_TIMEOUT_S: Final = 10.0
POST_RETRIES: Final = 2

Post = Callable[[str, bytes], None]
"""Sends JSON to a URL; raises `OSError` when the server cannot be reached or does not want it."""

_log = logging.getLogger(__name__)


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
        on_result: Receives each result as soon as it exists.
        launcher: Runs each experiment in isolation; `None`: the one that `machine` names for its backend.

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
        follow(StudyWarning(f"{path} is set, and this release does not use it: every run is on this machine."))
    with locked(directory):
        resumption = None
        if place.resume is not None:
            resumption = plan_resumption(directory, study, dataset_hashes())
            for warning in resumption.warnings:
                follow(StudyWarning(warning))
            finished = _finished_result(directory, resumption)
            if finished is not None:
                done = finished.summary
                follow(StudyStarted(directory, done.total_experiments, done.completed, done.skipped))
                follow(StudyWarning(f"The study in {directory} is finished; nothing to do."))
                return finished
            study = resumption.study
            check_backends(study, machine)
        host = StudyHost(
            launcher=launcher or ChosenLauncher(),
            observer=follow,
            skip_gap=enter_key() if place.interactive else None,
        )
        runner = StudyRunner(
            _given(study), directory, machine, host, resumption=resumption, export_csv=place.export_csv
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


def send_summary(
    url: str,
    result: StudyResult,
    *,
    status: str,
    post: Post | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """POST a study's result as JSON, `{"event": "study", "status": …, "study": …}`.

    Args:
        url: Where to; it may hold a secret, so only its host is ever logged.
        status: How it ended: `completed`, `failed`.
        post: Sends it, and is tried again when the connection fails; `None`: over HTTP with a time-out.
        sleep: Waits before that, for a number of seconds.

    Returns:
        Whether it arrived. Nothing is raised: the study is over and on disk.
    """
    host = urlsplit(url).hostname or "the webhook"
    message = {"event": "study", "status": status, "study": result.model_dump(mode="json")}
    retrying = retry_on_error(POST_RETRIES, sleep=sleep)
    try:
        retrying(post or _http_post)(url, json.dumps(message, ensure_ascii=False).encode())
    except Exception as error:  # noqa: BLE001 (whatever a far server does, the study has succeeded)
        _log.warning("The study's summary did not reach %s: %s", host, str(error).replace(url, host))
        return False
    _log.info("Sent the study's summary to %s", host)
    return True


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


def _http_post(url: str, body: bytes) -> None:
    try:
        import httpx
    except ImportError as error:
        raise OSError('httpx is not installed; install it with: pip install "llenergymeasure[webhooks]"') from error
    try:
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=POST_TIMEOUT_S)
    except httpx.TransportError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    if answer.status_code >= 500:
        raise ConnectionError(f"the server answered {answer.status_code}")
    if answer.status_code >= 400:
        raise OSError(f"the server answered {answer.status_code}")
