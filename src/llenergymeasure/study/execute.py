"""A study from its config to its result: directory, lock, resumption, the runner, and word to a webhook at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from llenergymeasure.config.grid import refuse_too_many_runs
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, SyntheticDatasetConfig
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.config.user_config import UserConfig, get_user_config_path
from llenergymeasure.core.backends.registry import installed_backends
from llenergymeasure.core.host.docker import default_image
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import PersistenceError, PreFlightError, StudyError
from llenergymeasure.results.persistence import load_study
from llenergymeasure.runners.cluster import Cluster
from llenergymeasure.runners.isolated import Launcher
from llenergymeasure.runners.launchers import ChosenLauncher, runs_here
from llenergymeasure.runners.ray import ray_cluster
from llenergymeasure.study.gaps import enter_key
from llenergymeasure.study.manifest import create_study_dir
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyObserver, StudyStarted, StudyWarning, plan_runs
from llenergymeasure.study.preflight import StudyCheck, check_in_child, check_on
from llenergymeasure.study.resume import Resumption, check_study_dir, experiments_left, locked, plan_resumption
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError
from llenergymeasure.study.saving import CSV_FILE, clear_leftovers
from llenergymeasure.study.webhook import send_summary

NO_CLUSTER: Final = "none"
"""What stands for an address where a study is to stay on this machine, whatever the user's settings say."""

Connect = Callable[[str], AbstractContextManager[Cluster]]


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """Where a study is kept.

    Args:
        parent: Directory in which a new study's own directory is made.
        resume: Directory of an earlier execution to go on with; `None` for a new study.
        export_csv: Also write a CSV of all results at the end.
        interactive: Whether somebody sits at the terminal: Enter then skips a gap.
        cluster: Address of the cluster it is spread over, or `NO_CLUSTER`; `None`: what the user's settings say.
    """

    parent: Path
    resume: Path | None = None
    export_csv: bool = False
    interactive: bool = False
    cluster: str | None = None


def execute_study(
    study: StudyConfig | None,
    place: StudyPlace,
    machine: UserConfig,
    on_result: Callable[[ExperimentResult], None],
    observer: StudyObserver | None = None,
    launcher: Launcher | None = None,
    check: StudyCheck | None = None,
    connect: Connect = ray_cluster,
) -> StudyResult:
    """Run a study, or what is left of it.

    Args:
        study: The study; `None`: the one in `place.resume`, as its manifest has it.
        on_result: Receives each result as soon as it exists.
        launcher: Runs each experiment in isolation; `None`: the one that `machine` names for its backend.
        check: Finds out beforehand whether they can run; `None`: this machine's pre-flight, where the launcher is its.
        connect: Gives the cluster at an address, where the study is spread over one.

    Returns:
        What the study yielded; of a finished one that is resumed, what it had yielded.

    Raises:
        ConfigError: It has more runs than can be held.
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

    def warn(*warnings: str) -> None:
        for warning in warnings:
            follow(StudyWarning(warning))

    if study is not None:
        refuse_too_many_runs(len(study.experiments), study.execution.n_cycles)
    with connected(place.cluster, machine, connect) as cluster:
        if check is None:
            check = check_locally if cluster is None else check_on(cluster)
            check = check if launcher is None else lambda configs, machine: []
        if place.resume is not None:
            directory = check_study_dir(place.resume)
        elif study is not None:
            warn(*check(study.experiments, machine))
            directory = create_study_dir(study.name, place.parent)
        else:
            raise StudyError("nothing to run: give a study, or the directory of one to go on with")
        with locked(directory):
            if study is not None and place.resume is None:
                resumption = Resumption(study)
            else:
                resumption = plan_resumption(directory, study, dataset_hashes())
                clear_leftovers(directory)
                warn(*resumption.warnings)
                finished = _finished_result(directory, resumption, export_csv=place.export_csv)
                if finished is not None:
                    done = finished.summary
                    follow(StudyStarted(directory, done.total_experiments, done.completed, done.skipped))
                    warn(f"The study in {directory} is finished; nothing to do.")
                    return finished
                warn(*check(experiments_left(resumption), machine))
            skip_gap = enter_key() if place.interactive else None
            host = StudyHost(launcher or ChosenLauncher(), observer=follow, skip_gap=skip_gap, cluster=cluster)
            runner = StudyRunner(
                resumption.study, directory, machine, host, resumption=resumption, export_csv=place.export_csv
            )
            return _run(runner, machine.output.webhook_url)


@contextmanager
def connected(asked: str | None, machine: UserConfig, connect: Connect = ray_cluster) -> Iterator[Cluster | None]:
    """The cluster that a study is spread over, for the length of a `with` block; `None`: it stays here.

    Args:
        asked: See `StudyPlace.cluster`.

    Raises:
        PreFlightError: There is no such cluster.
    """
    address = (machine.cluster.address or NO_CLUSTER) if asked is None else asked
    if address == NO_CLUSTER:
        yield None
    else:
        with connect(address) as cluster:
            yield cluster


def check_locally(configs: Sequence[ExperimentConfig], machine: UserConfig) -> list[str]:
    """What to know before these experiments run on this machine.

    Raises:
        PreFlightError: They cannot.
    """
    check_backends(configs, machine)
    return check_in_child(configs, machine)


def check_backends(
    experiments: Sequence[ExperimentConfig],
    machine: UserConfig,
    installed: Callable[[], Sequence[str]] = installed_backends,
) -> None:
    """Refuse several backends in one Python environment: their engines need different releases of the same packages.

    Args:
        installed: Tells the engines that are here: one of them stays.

    Raises:
        PreFlightError: More than one backend would run here; shows the settings that mend it.
    """
    backends = list(dict.fromkeys(config.backend for config in experiments))
    here = [backend for backend in backends if runs_here(machine, backend)]
    if len(here) < 2:
        return
    movable = [backend for backend in here if backend in BACKENDS]
    staying = [backend for backend in here if backend not in BACKENDS]
    kept = [] if staying else [backend for backend in movable if backend in installed()][:1]
    raise PreFlightError(
        [
            f"the study uses several backends ({', '.join(backends)}), and {', '.join(here)} would run in this Python "
            f"environment, where they cannot live side by side. "
            f"{_apart([backend for backend in movable if backend not in kept], staying)}"
        ]
    )


def _apart(movable: Sequence[str], staying: Sequence[str]) -> str:
    """How to keep backends apart: those that can go to Docker, and those that run locally alone."""
    advice = []
    if len(staying) > 1:
        advice.append(f"Only one of {', '.join(staying)} can be in a study: there is no image of them.")
    elif staying and movable:
        advice.append(f"{staying[0]} stays: there is no image of it.")
    if movable:
        settings = "\n".join(f"      {backend}: docker:{default_image(backend)}" for backend in movable)
        builds = "; ".join(f"docker/build {backend}" for backend in movable)
        advice.append(
            f"This in {get_user_config_path()} keeps them apart, "
            f"once the images are there (in a checkout: {builds}):\n    runners:\n{settings}"
        )
    return " ".join(advice)


def dataset_hashes() -> Callable[[ExperimentConfig], str]:
    """A function that tells the SHA-256 of the prompts an experiment would use now, and reads each data set once.

    It raises `DatasetError` where they cannot be read.
    """

    @cache
    def sha256(dataset: str | SyntheticDatasetConfig, n: int) -> str:
        return load_raw_prompts(dataset, n).identity.sha256

    return lambda config: sha256(config.dataset, config.n)


def _finished_result(directory: Path, resumption: Resumption, *, export_csv: bool) -> StudyResult | None:
    """The summary of a study with nothing left to do; `None` where a run or one of its files is to be made yet."""
    if not resumption.is_closed or len(resumption.kept) < len(plan_runs(resumption.study)):
        return None
    try:
        result = load_study(directory)
    except PersistenceError:  # killed between its last run and its summary
        return None
    is_whole = result.completed_at is not None and result.summary.completed == len(resumption.kept)
    return result if is_whole and not (export_csv and not (directory / CSV_FILE).exists()) else None


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
