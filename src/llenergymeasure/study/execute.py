"""A study from its config to its result: directory, lock, resumption, the runner, and telling somebody at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from llenergymeasure.config.models import ExperimentConfig, StudyConfig, SyntheticDatasetConfig
from llenergymeasure.config.user_config import UserConfig, get_user_config_path, settings_without_effect
from llenergymeasure.constants import VERSION
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import PersistenceError, PreFlightError, StudyError
from llenergymeasure.resilience import retry_on_error
from llenergymeasure.results.persistence import load_study
from llenergymeasure.runners.launchers import ChosenLauncher, Launcher
from llenergymeasure.study.gaps import enter_key
from llenergymeasure.study.manifest import create_study_dir
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyObserver, StudyStarted, StudyWarning, plan_runs
from llenergymeasure.study.resume import Resumption, check_study_dir, locked, plan_resumption
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError

POST_TIMEOUT_S: Final = 10.0
POST_RETRIES: Final = 2

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

    def follow(event: StudyEvent) -> None:
        if isinstance(event, RunFinished) and event.result is not None:
            on_result(event.result)
        if observer is not None:
            observer(event)

    if study is not None:
        check_backends(study, machine)
    if place.resume is not None:
        check_study_dir(place.resume)
        directory = place.resume
    elif study is not None:
        directory = create_study_dir(study.name, place.parent)
    else:
        raise StudyError("nothing to run: give a study, or the directory of one to go on with")
    for path in settings_without_effect(machine):
        follow(StudyWarning(f"{path} is set, and this release does not use it: every run is on this machine."))
    with locked(directory):
        if study is None or place.resume is not None:
            resumption = plan_resumption(directory, study, dataset_hashes())
            for warning in resumption.warnings:
                follow(StudyWarning(warning))
            finished = _finished_result(directory, resumption)
            if finished is not None:
                done = finished.summary
                follow(StudyStarted(directory, done.total_experiments, done.completed, done.skipped))
                follow(StudyWarning(f"The study in {directory} is finished; nothing to do."))
                return finished
            check_backends(resumption.study, machine)
        else:
            resumption = Resumption(study)
        skip_gap = enter_key() if place.interactive else None
        host = StudyHost(launcher or ChosenLauncher(), observer=follow, skip_gap=skip_gap)
        runner = StudyRunner(
            resumption.study, directory, machine, host, resumption=resumption, export_csv=place.export_csv
        )
        return _run(runner, machine.output.webhook_url)


def check_backends(study: StudyConfig, machine: UserConfig) -> None:
    """Refuse several backends in one Python environment: their engines need different releases of the same packages.

    Raises:
        PreFlightError: More than one backend would run here; shows the settings that mend it.
    """
    backends = list(dict.fromkeys(config.backend for config in study.experiments))
    here = [backend for backend in backends if getattr(machine.runners, backend) == "local"]
    if len(here) < 2:
        return
    settings = "\n".join(f"      {backend}: docker:llenergymeasure/{backend}:{VERSION}-cuda12" for backend in backends)
    raise PreFlightError(
        [
            f"the study uses several backends ({', '.join(backends)}), and {', '.join(here)} would run in this Python "
            f"environment, where they cannot live side by side. Run them in Docker: put this into "
            f"{get_user_config_path()}\n    runners:\n{settings}\n    or make one study per backend."
        ]
    )


def dataset_hashes() -> Callable[[ExperimentConfig], str]:
    """A function that tells the SHA-256 of the prompts an experiment would use now, and reads each data set once.

    It raises `DatasetError` where they cannot be read.
    """

    @cache
    def sha256(dataset: str | SyntheticDatasetConfig, n: int) -> str:
        return load_raw_prompts(dataset, n).identity.sha256

    return lambda config: sha256(config.dataset, config.n)


def send_summary(
    url: str,
    result: StudyResult,
    *,
    status: str,
    post: Callable[[str, bytes], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """POST a study's result as JSON, `{"event": "study", "status": …, "study": …}`.

    Args:
        url: Where to; it may hold a secret, so only its host is ever logged.
        status: How it ended: `completed`, `failed`.
        post: Sends a body to a URL, and is tried again when the connection fails; `None`: over HTTP with a time-out.
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


def _finished_result(directory: Path, resumption: Resumption) -> StudyResult | None:
    """The summary of a study with nothing left to do; `None` where a run, or the summary itself, is to be made yet."""
    if resumption.started_at is None or len(resumption.kept) < len(plan_runs(resumption.study)):
        return None
    try:
        result = load_study(directory)
    except PersistenceError:  # killed between its last run and its summary
        return None
    return result if result.completed_at is not None and result.summary.completed == len(resumption.kept) else None


def _run(runner: StudyRunner, webhook_url: str | None) -> StudyResult:
    """Run a study, and tell whoever asked for it how it ended."""
    try:
        result = runner.run()
    except StudyStoppedError as error:
        if error.result is not None and webhook_url is not None:
            send_summary(webhook_url, error.result, status="failed")
        raise
    if webhook_url is not None:
        send_summary(webhook_url, result, status="completed")
    return result


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
