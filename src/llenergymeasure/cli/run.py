"""`llem run`: from flags and a file to a summary on stdout and an exit code."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from llenergymeasure.cli.devices import device_title
from llenergymeasure.cli.errors import EXIT_OK, UsageError, exit_code_of
from llenergymeasure.cli.logs import configured_logging
from llenergymeasure.cli.output import output_width, print_result, result_json
from llenergymeasure.cli.progress import experiment_observer
from llenergymeasure.cli.signals import signals_as_interrupt
from llenergymeasure.config.errors import describe_validation_error, problem_report
from llenergymeasure.config.loader import is_study_document, load_experiment_config
from llenergymeasure.config.naming import experiment_title
from llenergymeasure.config.ssot import BATCH_SIZE_FIELD
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.core.host.host import Host
from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import validate_path

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig
    from llenergymeasure.domain.experiment import ExperimentResult

SHORTEST_RUN: Final = "llem run --model builtin/tiny-llama --device cpu -n 20"
"""The shortest command that works on any machine; shown to whoever typed too little."""

FLAGS: Final = {
    "model": "--model",
    "backend": "--backend",
    "pytorch.device": "--device",
    "dataset": "--dataset",
    "n": "-n",
    "precision": "--precision",
    "output_dir": "--output",
    "execution.n_cycles": "--cycles",
    "execution.cycle_order": "--order",
    **dict.fromkeys(BATCH_SIZE_FIELD.values(), "--batch-size"),
}
"""Config field → the flag that sets it."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What was typed after `llem run`; `None` and `False` mean "not given"."""

    config: Path | None = None
    model: str | None = None
    backend: str | None = None
    device: str | None = None
    dataset: str | None = None
    n: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    output: Path | None = None
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    export_csv: bool = False
    cycles: int | None = None
    order: str | None = None
    no_gaps: bool = False
    resume: Path | None = None

    def contradictions(self) -> list[str]:
        """What cannot be meant, found before any file is read."""
        found = []
        if self.config is None and self.model is None and self.resume is None:
            found.append(
                f"Nothing to run: give a config file or --model. The shortest command that works:\n  {SHORTEST_RUN}"
            )
        if self.quiet and self.verbose:
            found.append("--quiet and --verbose contradict each other. Give one of them.")
        of_results = [flag for flag, given in (("--json", self.as_json), ("--export-csv", self.export_csv)) if given]
        if self.dry_run and of_results:
            found.append(f"{', '.join(of_results)}: for results, and --dry-run has none. Leave one of the two out.")
        return found

    def study_flags(self) -> list[str]:
        """The flags given that only a study understands."""
        given = {
            "--cycles": self.cycles is not None,
            "--order": self.order is not None,
            "--no-gaps": self.no_gaps,
            "--resume": self.resume is not None,
        }
        return [flag for flag, is_given in given.items() if is_given]

    def overrides(self) -> dict[str, Any]:
        """The flags that set config fields, by dotted path; `None` overrides nothing."""
        return {
            "model": self.model,
            "backend": self.backend,
            "pytorch.device": self.device,
            "dataset": self.dataset,
            "n": self.n,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "output_dir": None if self.output is None else str(self.output),
        }

    def sources(self) -> dict[str, str]:
        """The flags given, by the config field each sets."""
        execution = {"execution.n_cycles": self.cycles, "execution.cycle_order": self.order}
        given = {name for name, value in {**self.overrides(), **execution}.items() if value is not None}
        if "batch_size" in given:
            given |= set(BATCH_SIZE_FIELD.values())
        sources = {field: flag for field, flag in FLAGS.items() if field in given}
        if self.device is not None and self.config is None:
            sources["pytorch"] = "--device"  # a section that nobody else wrote
        return sources


def run_command(request: RunRequest) -> int:
    """Carry out `llem run`.

    Args:
        request: What was typed.

    Returns:
        The exit code.
    """

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
    observer, progress = experiment_observer(_title(config), quiet=request.quiet)
    saved: Path | None = None
    try:
        study = run_study_of(StudyConfig(experiments=[config]), results.append, machine=machine, observer=observer)
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
        return load_experiment_config(request.config, request.overrides(), {"output_dir": machine.output.results_dir})
    except ValidationError as error:
        raise ConfigError(problem_report(describe_validation_error(error, document, request.sources()))) from error


def _shown(result: ExperimentResult, saved: Path | None, *, as_json: bool) -> str:
    if as_json:
        return result_json(result)
    from llenergymeasure.results.summary import render_summary

    return render_summary(result, saved, output_width())


def _export_csv(result: ExperimentResult, path: Path) -> None:
    from llenergymeasure.results.export import to_csv

    to_csv([result], path)
    sys.stderr.write(f"{'CSV':<15}{path}\n")
