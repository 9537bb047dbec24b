"""`llem run`: from flags and a file to a summary on stdout and an exit code."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from llenergymeasure._api import _run as run_study_of
from llenergymeasure._api import with_default_backend
from llenergymeasure.cli.request import RunRequest
from llenergymeasure.cli.terminal import (
    EXIT_OK,
    UsageError,
    configured_logging,
    exit_code_of,
    output_width,
    print_result,
    result_json,
    tell_place,
    tell_report,
)
from llenergymeasure.config.errors import config_error, is_study_document
from llenergymeasure.config.loader import resolve_experiment
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, experiment_title
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.core.gpu.driver import GpuDriverError
from llenergymeasure.core.gpu.visible import order_is_certain, visible_gpus
from llenergymeasure.core.host.environment import read_cpu
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.results.export import to_csv
from llenergymeasure.results.persistence import MANIFEST_FILE
from llenergymeasure.results.summary import render_summary
from llenergymeasure.runners.launchers import device_choice_of
from llenergymeasure.security import validate_path
from llenergymeasure.study.display import ExperimentProgress
from llenergymeasure.study.gaps import enter_key

CONFIG_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
"""What a config file is called by; another name that is no file is perhaps a model's."""


def run_command(request: RunRequest) -> int:
    """Carry out `llem run`; returns the exit code."""
    return exit_code_of(lambda: _start(request), verbose=request.verbose)


def _start(request: RunRequest) -> int:
    if contradictions := request.contradictions():
        raise UsageError("\n".join(contradictions))
    machine = load_user_config()
    if not (request.quiet or request.verbose):
        verbosity = machine.ui.verbosity
        request = replace(request, quiet=verbosity == "quiet", verbose=verbosity == "verbose")

    def run() -> int:
        with configured_logging(verbose=request.verbose, quiet=request.quiet):
            return _run(request, machine)

    return exit_code_of(run, verbose=request.verbose)


def _run(request: RunRequest, machine: UserConfig) -> int:
    document = None if request.config is None else _read(request.config)
    if is_study_document(document.data) if document is not None else request.resume is not None:
        from llenergymeasure.cli.study import run_study_command

        return run_study_command(request, document, machine)
    if study_flags := request.study_flags():
        raise UsageError(
            f"{', '.join(study_flags)}: for studies only (a file with sweep: or experiments:), and this is a "
            "single experiment. Leave it out."
        )
    return _run_experiment(request, document, machine)


def _read(path: Path) -> LoadedDocument:
    validate_path(path, what="configuration file")
    if meant := _meant_instead(path):
        raise UsageError(f"{path}: {meant}")
    return load_document(path)


def _meant_instead(path: Path) -> str | None:
    """What is at a place that is no config file's, and what was perhaps meant; `None`: it may be one's."""
    if (path / MANIFEST_FILE).is_file():
        return f"the directory of a study. To go on with it: llem run --resume {path}"
    if (path / "config.json").is_file():
        return f"the directory of a model. To measure it: llem run --model {path}"
    if path.suffix.lower() in CONFIG_SUFFIXES or path.exists():
        return None
    return f"no such file. To measure a model of that name: llem run --model {path}"


def _run_experiment(request: RunRequest, document: LoadedDocument | None, machine: UserConfig) -> int:
    try:
        config = resolve_experiment(document, request.overrides(), {"output_dir": machine.output.results_dir})
    except ValidationError as error:
        raise config_error(error, document, request.sources()) from error
    config = with_default_backend(config)
    if request.dry_run:
        from llenergymeasure.cli.dry_run import dry_run_experiment, meter_here, render_dry_run
        from llenergymeasure.study.preflight import check_here

        print_result(render_dry_run(dry_run_experiment(config, machine, find_meter=meter_here)))
        for warning in check_here([config], machine).notes:  # what its run would refuse is raised, in the same words
            sys.stderr.write(f"{warning}\n")
        return EXIT_OK
    results: list[ExperimentResult] = []
    progress = None if request.quiet else ExperimentProgress(sys.stderr, _title(config, machine))
    skip = enter_key() if progress is not None and progress.live and machine.ui.prompt else None
    saved: Path | None = None
    try:
        study = run_study_of(
            StudyConfig(experiments=[config]), results.append, machine=machine, observer=progress, skip=skip
        )
        saved = next(map(Path, study.result_files), None)
    finally:
        if progress is not None:
            progress.end(spaced=bool(results))
        if request.as_json and saved is not None:
            tell_place("Result", saved)
            tell_report(saved.parent)
        for result in results:  # measured, so shown: also when it could not be saved
            print_result(result_json(result) if request.as_json else render_summary(result, saved, output_width()))
    if request.export_csv and saved is not None:
        path = to_csv(results, saved.with_suffix(".csv"))
        tell_place("CSV", path)
    return EXIT_OK


def _title(config: ExperimentConfig, machine: UserConfig) -> str:
    device = device_title(config, machine, Host())
    return f"Experiment: {experiment_title(config)}{f' on {device}' if device is not None else ''}"


def device_title(config: ExperimentConfig, machine: UserConfig, host: Host) -> str | None:
    """What the run's devices are called, e.g. `2 × NVIDIA A100-SXM4-80GB`, told without an engine.

    `None` where there is none for the run, and where CUDA alone knows which of several unlike boards it will be.
    """
    device = device_choice_of(config, machine)
    if device != "cpu":
        try:
            driver = host.open_driver()
            names = [gpu.name for gpu in visible_gpus(host.environ, driver)]
            if names:
                certain = order_is_certain(host.environ, driver)
                counts = Counter(names[: config.backend_config.gpu_count(len(names))])
                named = " + ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())
                return named if certain else None
        except GpuDriverError:
            pass  # no driver, so no GPU
    return (read_cpu(host.root).model or "the CPU") if device in ("cpu", "auto") else None
