"""The two public functions, and the one road both take.

    run_experiment ─┐
                    ├─ _run(StudyConfig, on_result) -> StudyResult
    run_study ──────┘

A single experiment is a study of one: it runs in this process, reaches its caller through `on_result`, and is written
only where an output directory was named. One at a time runs in a process; who comes meanwhile waits.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, overload

from llenergymeasure.config.grid import describe_skipped
from llenergymeasure.config.loader import load_experiment_config, load_study_config, with_overrides
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, experiment_title
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.core.clock import Clock, SteadyClock
from llenergymeasure.core.host.processes import is_forked
from llenergymeasure.core.host.streams import standard_streams_open
from llenergymeasure.core.host.turn import one_at_a_time
from llenergymeasure.core.progress import Observer, SkipKey, ignore_events
from llenergymeasure.domain.experiment import ExperimentResult, compute_measurement_config_hash
from llenergymeasure.domain.study import MeasurementProtocol, StudyResult, StudySummary
from llenergymeasure.exceptions import ConfigError, PersistenceError
from llenergymeasure.security import user_path, validate_path

if TYPE_CHECKING:
    from datetime import datetime

    from llenergymeasure.runners.job import Job, MeasuredRun
    from llenergymeasure.study.execute import StudyPlace

logger = logging.getLogger(__name__)

OnResult = Callable[[ExperimentResult], None]

AnyObserver = Callable[[Any], None]
"""An `Observer` for a single experiment, a `StudyObserver` for a study."""


# `progress` is not spelled out here: a type checker would then refuse `**{"pytorch.batch_size": 8}`.
@overload
def run_experiment(config: str | Path | ExperimentConfig, **kwargs: Any) -> ExperimentResult: ...


@overload
def run_experiment(config: None = None, *, model: str, **kwargs: Any) -> ExperimentResult: ...


def run_experiment(
    config: str | Path | ExperimentConfig | None = None, *, progress: bool = False, **kwargs: Any
) -> ExperimentResult:
    """Measure one experiment in this process.

    Nothing is written to disk unless `output_dir` is set, in the config or as a keyword.

    Args:
        config: A YAML or JSON file, or a config; `None` to give everything by keyword.
        progress: Draw on stderr what goes on, as `llem run` does; by default nothing is printed.
        **kwargs: Fields of `ExperimentConfig`, which override the config; dotted names reach into sections
            (`**{"pytorch.batch_size": 8}`).

    Returns:
        The result. Energy figures are `None` where nothing could measure them; `measurement_warnings` says why.

    Raises:
        TypeError: `config` is something else.
        ConfigError: The file is missing, does not parse, or has unknown keys; or there is neither file nor `model`.
        pydantic.ValidationError: A value is wrong.
        PreFlightError: The experiment cannot run on this machine; lists every reason.
        LLEMError: The engine or the meter failed.
    """
    collected: list[ExperimentResult] = []
    experiment = with_default_backend(resolve_experiment(config, kwargs))
    with _experiment_drawn(experiment) if progress else nullcontext() as observer:
        _run(StudyConfig(experiments=[experiment]), collected.append, observer=observer)
    return collected[0]


def _experiment_drawn(config: ExperimentConfig) -> AbstractContextManager[Observer]:
    """An observer that draws the experiment on stderr, for the length of a `with` block."""
    from llenergymeasure.study.display import ExperimentProgress

    return closing(ExperimentProgress(sys.stderr, f"Experiment: {experiment_title(config)}"))


def _study_drawn(study: StudyConfig) -> AbstractContextManager[AnyObserver]:
    """An observer that draws the study on stderr, for the length of a `with` block."""
    from llenergymeasure.study.display import StudyProgress

    return closing(StudyProgress(sys.stderr, verbose=False, n_cycles=study.execution.n_cycles))


def resolve_experiment(config: str | Path | ExperimentConfig | None, overrides: dict[str, Any]) -> ExperimentConfig:
    """The experiment that a config and the fields overriding it describe.

    Raises:
        ConfigError: See `run_experiment`.
        pydantic.ValidationError: A value is wrong.
    """
    if not isinstance(config, (str, os.PathLike, ExperimentConfig, NoneType)):
        raise _wrong_type("run_experiment", "an ExperimentConfig", config)
    if config is None and "model" not in overrides:
        raise ConfigError('nothing to run: give a config, or at least a model: run_experiment(model="gpt2")')
    if isinstance(config, ExperimentConfig):
        return with_overrides(config, overrides)
    return load_experiment_config(config, overrides)


def _wrong_type(function: str, model: str, config: object) -> TypeError:
    fixes: dict[tuple[str, type], str] = {
        ("run_experiment", dict): " Give its fields as keywords: run_experiment(**fields).",
        ("run_experiment", StudyConfig): " A study is run with run_study.",
        ("run_study", dict): " Write it to a YAML file, or make a StudyConfig(experiments=[…]).",
        ("run_study", ExperimentConfig): " Run it with run_experiment, or as StudyConfig(experiments=[config]).",
    }
    kind = type(config)
    return TypeError(f"{function} takes a file or {model}, not {kind.__name__}.{fixes.get((function, kind), '')}")


def with_default_backend(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the installed engine filled in where nobody named one.

    Raises:
        pydantic.ValidationError: The config does not suit the only engine that is installed.
    """
    from llenergymeasure.core.backends.registry import detect_default_backend, installed_backends

    if "backend" in config.model_fields_set or not installed_backends():
        return config  # with no engine at all, pre-flight says what to install
    backend = detect_default_backend()
    if backend == config.backend:
        return config
    return ExperimentConfig.model_validate({**config.model_dump(exclude_unset=True), "backend": backend})


def run_study(
    config: str | Path | StudyConfig,
    *,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    cluster: str | None = None,
    progress: bool = False,
) -> StudyResult:
    """Run a study: every experiment in every cycle, each in a process of its own.

    Its directory, with the manifest and every result, is always written; results are named by path, not returned.

    Args:
        config: A YAML or JSON file, or a resolved study.
        output_dir: Where the study's directory is made; by default what the study's experiments say, else the user
            configuration's `output.results_dir`.
        resume: Directory of an earlier execution to go on with; `config` must be the same study, more cycles allowed.
        cluster: Address of a Ray cluster to spread it over, `auto` for the one of this machine, or `none`; by default
            what the user configuration's `cluster.address` says.
        progress: Draw on stderr what goes on, as `llem run` does; by default nothing is printed.

    Returns:
        What the study yielded. Runs that failed are in `failed`, and do not raise.

    Raises:
        TypeError: `config` is something else.
        ConfigError: The file is missing, does not parse, has unknown keys, or yields no valid experiment.
        pydantic.ValidationError: A value under `execution:` is wrong.
        PreFlightError: The study cannot run on this machine, or on that cluster.
        StudyError: It cannot be resumed, or gave up because experiment after experiment failed.
        PersistenceError: Nothing can be written.
    """
    if not isinstance(config, (str, os.PathLike, StudyConfig)):
        raise _wrong_type("run_study", "a StudyConfig", config)
    study = config if isinstance(config, StudyConfig) else load_study_config(config)
    machine = load_user_config()
    for skipped in describe_skipped(study.skipped_configs):
        logger.warning("Skipped, because not valid: %s", skipped)
    from llenergymeasure.study.execute import StudyPlace

    parent = _place(output_dir) if output_dir is not None else study_parent(study, machine)
    # Absolute, because somebody may change the current directory while the study runs.
    left_off = None if resume is None else user_path(resume).absolute()
    place = StudyPlace(parent=parent.absolute(), resume=left_off, cluster=cluster)
    with _study_drawn(study) if progress else nullcontext() as observer:
        return _run(study, lambda result: None, machine=machine, observer=observer, place=place)


def study_parent(study: StudyConfig, machine: UserConfig) -> Path:
    """Where the study's directory goes: what all its experiments say, else the machine's own place.

    Raises:
        ConfigError: The experiments name different directories; a study is kept in one.
    """
    named = sorted({config.output_dir or "" for config in study.experiments})
    if len(named) > 1:
        shown = ", ".join(directory or "(none)" for directory in named)
        raise ConfigError(
            f"output_dir: the study's experiments name different directories ({shown}), but a study is kept in one. "
            "Name it once, at the top of the file, or pass --output."
        )
    return _place(named[0] or machine.output.results_dir)


def _place(directory: str | Path) -> Path:
    """A directory as the user wrote it, with `~` expanded.

    Raises:
        ConfigError: It cannot be the name of one.
    """
    validate_path(directory, what="output_dir")
    return user_path(directory)


def _run(
    study: StudyConfig,
    on_result: OnResult,
    *,
    machine: UserConfig | None = None,
    observer: AnyObserver | None = None,
    place: StudyPlace | None = None,
    skip: SkipKey | None = None,
) -> StudyResult:
    """Run a study: in this process if it is a single experiment, in isolation and on disk if it has a place there.

    Args:
        study: What to run.
        on_result: Receives each result as soon as it exists, also when it then cannot be saved.
        machine: `None`: the user's settings, loaded from their place.
        place: Where the study is kept; `None` for a single experiment, which is kept only where its config says.
        skip: Ends a single experiment's wait when it answers true; `None`: nobody can.

    Raises:
        LLEMError: The experiment failed, or the study cannot go on.
    """
    machine = machine or load_user_config()
    with one_at_a_time(), standard_streams_open():
        if place is None:
            return _run_here(study, on_result, machine, observer or ignore_events, skip)
        from llenergymeasure.study.execute import execute_study

        return execute_study(study, place, machine, on_result, observer)


def _run_here(
    study: StudyConfig, on_result: OnResult, machine: UserConfig, observer: Observer, skip: SkipKey | None
) -> StudyResult:
    from llenergymeasure.core.state import tracked
    from llenergymeasure.results.persistence import DirectoryRepository, ResultsRepository
    from llenergymeasure.results.report.write import report_on
    from llenergymeasure.runners.job import Job
    from llenergymeasure.runners.local import new_experiment_id  # the engines' side: only when one runs
    from llenergymeasure.study.plan import silence_s

    (config,) = study.experiments
    clock = SteadyClock()
    began = clock.now(), clock.wall()
    experiment_id = new_experiment_id(config, began[1])
    output_dir = None if config.output_dir is None else _place(config.output_dir)
    kept_in = None if output_dir is None else output_dir.absolute()  # also when the current directory changes
    path: Path | None = None
    problem: PersistenceError | None = None
    with (
        _work_dir() as work_dir,
        tracked(kept_in, experiment_id, compute_measurement_config_hash(config), observer) as follow,
    ):
        job = Job(config, machine, work_dir, silence_s=silence_s(config, machine), experiment_id=experiment_id)
        run = _measured(job, follow, skip)
        on_result(run.result)  # before anything else that can fail
        try:
            if output_dir is not None and kept_in is not None:
                repository: ResultsRepository = DirectoryRepository(kept_in)
                path = repository.save(run.result, run.artefacts.timeseries, run.artefacts.beside_timeseries)
        except PersistenceError as error:
            problem = error
    if problem is not None:
        raise problem
    saved = None
    if path is not None and output_dir is not None and kept_in is not None:
        report_on(path.parent)
        saved = output_dir / path.relative_to(kept_in)
    return _study_of_one(study, run.result, saved, began, clock)


def _measured(job: Job, observer: Observer, skip: SkipKey | None) -> MeasuredRun:
    """Run a job here, or elsewhere where the settings say so or this process cannot: a fork has no engine's threads."""
    from llenergymeasure.runners.launchers import ChosenLauncher, runs_here

    if not runs_here(job.machine, job.config.backend) or (is_forked() and "torch" in sys.modules):
        from llenergymeasure.runners.supervise import Interrupt

        return ChosenLauncher().run(job, observer, Interrupt())
    from llenergymeasure.runners.local import run_local

    return run_local(job, observer, skip=skip)


@contextmanager
def _work_dir() -> Iterator[Path]:
    """A directory for the files of a run, removed afterwards; that it cannot be removed costs nothing.

    Raises:
        PersistenceError: It cannot be made.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix="llem-"))
    except OSError as error:
        raise PersistenceError(
            f"Cannot create a directory for temporary files: {error.strerror or error}. "
            "Free some space, or set TMPDIR to a directory you may write to."
        ) from error
    try:
        yield directory
    finally:
        shutil.rmtree(
            directory, onerror=lambda function, path, info: logger.warning("Could not remove %s: %s", path, info[1])
        )


def _study_of_one(
    study: StudyConfig, result: ExperimentResult, saved: Path | None, began: tuple[float, datetime], clock: Clock
) -> StudyResult:
    began_s, started_at = began
    return StudyResult(
        study_id=result.experiment_id,
        name=study.name,
        study_design_hash=study.study_design_hash,
        started_at=started_at,
        completed_at=clock.wall(),
        measurement_protocol=MeasurementProtocol(),
        summary=StudySummary(
            total_experiments=1,
            completed=1,
            total_wall_time_s=clock.now() - began_s,
            total_energy_j=result.total_energy_j,
        ),
        result_files=[] if saved is None else [str(saved)],
    )
