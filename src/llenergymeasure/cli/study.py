"""`llem run` on a study: flags, the offer to resume, progress, the table at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llenergymeasure._api import _ignore_result, study_parent
from llenergymeasure._api import _run as run_placed
from llenergymeasure.cli.errors import EXIT_FAILED, EXIT_OK, UsageError
from llenergymeasure.cli.output import print_result, result_json
from llenergymeasure.cli.study_progress import study_progress
from llenergymeasure.cli.study_summary import render_study
from llenergymeasure.config.errors import describe_validation_error, problem_report
from llenergymeasure.config.loader import load_study_config
from llenergymeasure.config.models import ExecutionConfig, StudyConfig
from llenergymeasure.exceptions import ConfigError, PersistenceError
from llenergymeasure.study.events import StudyEvent, StudyStarted
from llenergymeasure.study.execute import StudyPlace
from llenergymeasure.study.lock import find_unfinished
from llenergymeasure.study.resume import load_resumable_study
from llenergymeasure.study.runner import StudyStoppedError

if TYPE_CHECKING:
    from llenergymeasure.cli.run import RunRequest
    from llenergymeasure.config.user_config import UserConfig
    from llenergymeasure.config.yaml_io import LoadedDocument
    from llenergymeasure.domain.study import StudyResult

DEFAULT_CYCLES = 3
"""Cycles of a study that names no number, on the command line: the fewest that give an interval."""

DEFAULT_ORDER = "interleaved"
"""Order of a study that names none, on the command line: slow drift then meets every configuration alike."""


def run_study_command(request: RunRequest, document: LoadedDocument | None, machine: UserConfig) -> int:
    """Run, resume or preview a study.

    Args:
        request: What was typed.
        document: The study file; `None` for `--resume` alone.
        machine: The user's settings.

    Returns:
        0 when every run has a result, else 1.
    """
    named = None if request.config is None else load_study(request.config, request, document)
    parent = _parent(named, request, machine)
    asks = machine.ui.prompt and not request.dry_run and sys.stdin.isatty() and sys.stderr.isatty()
    resume = request.resume
    if resume is None and named is not None and asks:
        resume = _offer_to_resume(named, parent)
    study = _complete(named, resume, request)
    if request.dry_run:
        from llenergymeasure.cli.dry_run_study import render_study_preview

        print_result(render_study_preview(study, machine, list_all=request.verbose))
        return EXIT_OK
    place = StudyPlace(parent=parent, resume=resume, export_csv=request.export_csv, interactive=asks)
    return _run(study, place, request, machine)


def _run(study: StudyConfig, place: StudyPlace, request: RunRequest, machine: UserConfig) -> int:
    progress = study_progress(quiet=request.quiet, verbose=request.verbose, n_cycles=study.execution.n_cycles)
    directory = place.parent

    def observer(event: StudyEvent) -> None:
        nonlocal directory
        if isinstance(event, StudyStarted):
            directory = event.directory
        if progress is not None:
            progress(event)

    try:
        result = run_placed(study, _ignore_result, machine=machine, observer=observer, place=place)
    except StudyStoppedError as error:
        if error.result is not None:
            print_result(_shown(error.result, error.study_dir, as_json=request.as_json))
        raise
    finally:
        if progress is not None:
            progress.close()
    print_result(_shown(result, directory, as_json=request.as_json))
    return EXIT_OK if result.summary.failed == 0 else EXIT_FAILED


def load_study(path: Path, request: RunRequest, document: LoadedDocument | None) -> StudyConfig:
    """The study that a file and the flags describe.

    Raises:
        ConfigError: A key is unknown, a value wrong, or no point valid.
    """
    try:
        return load_study_config(path, {**request.overrides(), **execution_overrides(request)})
    except ValidationError as error:
        raise ConfigError(problem_report(describe_validation_error(error, document, request.sources()))) from error


def execution_overrides(request: RunRequest) -> dict[str, Any]:
    """The flags that say how a study is executed, by dotted path."""
    gap = 0.0 if request.no_gaps else None
    return {
        "execution.n_cycles": request.cycles,
        "execution.cycle_order": request.order,
        "execution.config_gap_seconds": gap,
        "execution.cycle_gap_seconds": gap,
    }


def with_command_line_defaults(execution: ExecutionConfig) -> ExecutionConfig:
    """Three interleaved cycles where neither file nor flag says otherwise."""
    defaults = {"n_cycles": DEFAULT_CYCLES, "cycle_order": DEFAULT_ORDER}
    return _filled(execution, defaults)


def _filled(execution: ExecutionConfig, defaults: dict[str, Any]) -> ExecutionConfig:
    missing = {name: value for name, value in defaults.items() if name not in execution.model_fields_set}
    return execution.model_copy(update=missing)


def _complete(named: StudyConfig | None, resume: Path | None, request: RunRequest) -> StudyConfig:
    """The study to run: the file's, or the one that is resumed, with its execution filled in.

    What neither file nor flag says about the execution is as it was in the study that is resumed, and else the command
    line's default.
    """
    if resume is None:
        if named is None:
            raise UsageError("give the study file, or --resume with the directory of a study")
        return named.model_copy(update={"execution": with_command_line_defaults(named.execution)})
    try:
        before = load_resumable_study(resume)
    except PersistenceError:
        if named is None:
            raise
        return named.model_copy(update={"execution": with_command_line_defaults(named.execution)})
    if named is not None:
        return named.model_copy(update={"execution": _filled(named.execution, before.execution.model_dump())})
    flags = {name.split(".")[1]: value for name, value in execution_overrides(request).items() if value is not None}
    try:
        execution = ExecutionConfig.model_validate({**before.execution.model_dump(), **flags})
    except ValidationError as error:
        sources = {field.removeprefix("execution."): flag for field, flag in request.sources().items()}
        raise ConfigError(problem_report(describe_validation_error(error, None, sources))) from error
    return before.model_copy(update={"execution": execution})


def _parent(study: StudyConfig | None, request: RunRequest, machine: UserConfig) -> Path:
    if request.output is not None:
        return request.output
    return Path(machine.output.results_dir) if study is None else study_parent(study, machine)


def _offer_to_resume(study: StudyConfig, parent: Path) -> Path | None:
    """An unfinished study of the same design, if there is one and the user wants to go on with it."""
    unfinished = find_unfinished(parent, study.study_design_hash or "")
    if unfinished is None:
        return None
    sys.stderr.write(f"An unfinished run of this study is in {unfinished}. Go on with it? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower()
    return unfinished if answer in ("", "y", "yes") else None


def _shown(result: StudyResult, directory: Path, *, as_json: bool) -> str:
    return result_json(result) if as_json else render_study(result, directory)
