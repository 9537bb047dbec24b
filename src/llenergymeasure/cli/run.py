"""`llem run`: from flags and a file to a summary on stdout and an exit code."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llenergymeasure.cli.devices import device_title
from llenergymeasure.cli.progress import ExperimentProgress
from llenergymeasure.cli.request import RunRequest
from llenergymeasure.cli.terminal import (
    EXIT_OK,
    UsageError,
    configured_logging,
    exit_code_of,
    output_width,
    print_result,
    result_json,
    signals_as_interrupt,
)
from llenergymeasure.config.errors import config_error, is_study_document
from llenergymeasure.config.loader import resolve_experiment
from llenergymeasure.config.models import experiment_title
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.core.host.host import Host
from llenergymeasure.security import validate_path

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig
    from llenergymeasure.domain.experiment import ExperimentResult


def run_command(request: RunRequest) -> int:
    """Carry out `llem run`; returns the exit code."""

    def action() -> int:
        if contradictions := request.contradictions():
            raise UsageError("\n".join(contradictions))
        machine = load_user_config()
        wanted = _with_verbosity(request, machine)

        def run() -> int:
            with configured_logging(verbose=wanted.verbose, quiet=wanted.quiet), signals_as_interrupt():
                return _run(wanted, machine)

        return exit_code_of(run, verbose=wanted.verbose)

    return exit_code_of(action, verbose=request.verbose)


def _with_verbosity(request: RunRequest, machine: UserConfig) -> RunRequest:
    """The request with the user's verbosity where no flag says otherwise."""
    if request.quiet or request.verbose:
        return request
    return replace(request, quiet=machine.ui.verbosity == "quiet", verbose=machine.ui.verbosity == "verbose")


def _run(request: RunRequest, machine: UserConfig) -> int:
    document = _read(request.config) if request.config is not None else None
    if request.resume is not None or (document is not None and is_study_document(document.data)):
        from llenergymeasure.cli.study import run_study_command

        return run_study_command(request, document, machine)
    if request.study_flags():
        raise UsageError(
            f"{', '.join(request.study_flags())}: for studies only (a file with sweep: or experiments:), and this is a "
            "single experiment. Leave it out."
        )
    return _run_experiment(request, document, machine)


def _read(path: Path) -> LoadedDocument:
    """The config file.

    Raises:
        UsageError: There is no such file, and it looks as if a model was meant.
        ConfigError: See `load_document`.
    """
    validate_path(path, what="configuration file")
    if not path.suffix and not path.exists():
        raise UsageError(f"{path}: no such file. To measure a model of that name: llem run --model {path}")
    return load_document(path)


def _run_experiment(request: RunRequest, document: LoadedDocument | None, machine: UserConfig) -> int:
    from llenergymeasure._api import _run as run_study_of
    from llenergymeasure._api import with_default_backend
    from llenergymeasure.config.models import StudyConfig

    config = with_default_backend(_load(request, document, machine))
    if request.dry_run:
        from llenergymeasure.cli.dry_run import dry_run_experiment, render_dry_run

        print_result(render_dry_run(dry_run_experiment(config, machine)))
        return EXIT_OK
    results: list[ExperimentResult] = []
    progress = None if request.quiet else ExperimentProgress(sys.stderr, _title(config))
    saved: Path | None = None
    try:
        study = run_study_of(StudyConfig(experiments=[config]), results.append, machine=machine, observer=progress)
        saved = next(map(Path, study.result_files), None)
    finally:
        if progress is not None:
            progress.end(spaced=bool(results))
        for result in results:  # measured, so shown: also when it could not be saved
            print_result(_shown(result, saved, as_json=request.as_json))
    if request.export_csv and saved is not None:
        _export_csv(results[0], saved.with_suffix(".csv"))
    return EXIT_OK


def _title(config: ExperimentConfig) -> str:
    device = device_title(config, Host())
    return f"Experiment: {experiment_title(config)}{f' on {device}' if device is not None else ''}"


def _load(request: RunRequest, document: LoadedDocument | None, machine: UserConfig) -> ExperimentConfig:
    """The experiment that file, flags and machine describe.

    Raises:
        ConfigError: A key is unknown or a value wrong; every problem with its line, or the flag it came from.
    """
    try:
        return resolve_experiment(document, request.overrides(), {"output_dir": machine.output.results_dir})
    except ValidationError as error:
        raise config_error(error, document, request.sources()) from error


def _shown(result: ExperimentResult, saved: Path | None, *, as_json: bool) -> str:
    if as_json:
        return result_json(result)
    from llenergymeasure.results.summary import render_summary

    return render_summary(result, saved, output_width())


def _export_csv(result: ExperimentResult, path: Path) -> None:
    from llenergymeasure.results.export import to_csv

    to_csv([result], path)
    sys.stderr.write(f"{'CSV':<15}{path}\n")
