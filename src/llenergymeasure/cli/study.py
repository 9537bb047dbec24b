"""`llem run` on a study: flags, the offer to resume, progress, the table at the end."""

from __future__ import annotations

import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llenergymeasure._api import _run as run_placed
from llenergymeasure._api import study_parent
from llenergymeasure.cli.request import RunRequest
from llenergymeasure.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    UsageError,
    output_width,
    print_result,
    result_json,
    tell_place,
    tell_report,
)
from llenergymeasure.config.errors import config_error
from llenergymeasure.config.grid import StudyTooLargeError
from llenergymeasure.config.loader import resolve_study
from llenergymeasure.config.models import ExecutionConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.config.yaml_io import LoadedDocument
from llenergymeasure.core.host.threads import share_one_heap
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import FailedExperiment, StudyResult
from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.results.persistence import REPORT_FILE
from llenergymeasure.results.study_table import estimate_mark, render_configurations
from llenergymeasure.results.summary import duration, joules, one_line, render_summary
from llenergymeasure.security import for_display, user_path
from llenergymeasure.study.display import study_progress
from llenergymeasure.study.execute import StudyPlace, check_backends, connected, dataset_hashes
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyStarted, notes_on, shared_parts
from llenergymeasure.study.preflight import check_here, check_on
from llenergymeasure.study.resume import (
    Resumption,
    check_study_dir,
    experiments_left,
    find_unfinished,
    load_resumable_study,
    plan_resumption,
)
from llenergymeasure.study.runner import StudyStoppedError

DEFAULT_CYCLES = 3
"""Cycles of a study that names no number, on the command line: the fewest that give an interval."""

DEFAULT_ORDER = "interleaved"
"""Order of a study that names none, on the command line: slow drift then meets every configuration alike."""

MAX_FAILURES: Final = 20
"""Failures that are listed; `study_summary.json` has them all."""


def run_study_command(request: RunRequest, document: LoadedDocument | None, machine: UserConfig) -> int:
    """Run, resume or preview a study; returns 0 when every run has a result, else 1.

    Args:
        document: The study file; `None` for `--resume` alone.
    """
    asks = machine.ui.prompt and not request.dry_run and sys.stdin.isatty() and sys.stderr.isatty()
    resume = None if request.resume is None else _directory_to_resume(request.resume, request)
    parent = request.output or user_path(machine.output.results_dir)
    if document is not None:
        try:
            study = _named(document, request)
        except StudyTooLargeError as error:
            if request.dry_run:
                from llenergymeasure.cli.large_study import print_preview

                print_preview(error.plan, list_all=request.verbose)
            raise
        parent = request.output or study_parent(study, machine)
        if resume is None and asks:
            resume = _offer_to_resume(study, parent)
        study = _completed(study, resume)
    elif resume is not None:
        study = _begun(resume, request)
    else:
        raise UsageError("give the study file, or --resume with the directory of a study")
    if request.dry_run:
        for warning in _preview(study, resume, request, machine):
            sys.stderr.write(f"{warning}\n")
        return EXIT_OK
    if study.skipped_configs and not request.quiet:
        from llenergymeasure.cli.dry_run import skipped_lines

        told = "\n".join(["Skipped points of the grid, because not valid:", *skipped_lines(study), ""])
        sys.stderr.write(for_display(told))
    place = StudyPlace(parent, resume, export_csv=request.export_csv, interactive=asks, cluster=request.cluster)
    share_one_heap()  # each node of a cluster has a thread here
    return _run(study, place, request, machine)


def _preview(study: StudyConfig, resume: Path | None, request: RunRequest, machine: UserConfig) -> list[str]:
    """Print what a study would do; what to know besides.

    Raises:
        PreFlightError: It would be refused.
    """
    from llenergymeasure.cli.dry_run import render_study_preview

    begun = None if resume is None else plan_resumption(resume, study, dataset_hashes())
    left = experiments_left(begun or Resumption(study))
    lines: list[str] = []
    try:
        with connected(request.cluster, machine) as cluster:
            nodes = None if cluster is None else cluster.nodes()
            lines.append(render_study_preview(study, machine, list_all=request.verbose, begun=begun, nodes=nodes))
            if cluster is not None:
                return [*notes_on(study), *check_on(cluster)(left, machine)]
            check_backends(left, machine)
            return [*notes_on(study), *check_here(left, machine)]
    finally:
        for line in lines:  # not before: while a cluster is connected, stdout is not for results
            print_result(line)


def with_command_line_defaults(execution: ExecutionConfig) -> ExecutionConfig:
    """Three interleaved cycles where neither file nor flag says otherwise."""
    return _filled(execution, {"n_cycles": DEFAULT_CYCLES, "cycle_order": DEFAULT_ORDER})


def _filled(execution: ExecutionConfig, defaults: dict[str, Any]) -> ExecutionConfig:
    missing = {name: value for name, value in defaults.items() if name not in execution.model_fields_set}
    return execution.model_copy(update=missing)


def _named(document: LoadedDocument, request: RunRequest) -> StudyConfig:
    """The study that a file and the flags describe."""
    try:
        return resolve_study(document, request.overrides())
    except ValidationError as error:
        raise config_error(error, document, request.sources()) from error


def _offer_to_resume(study: StudyConfig, parent: Path) -> Path | None:
    """An unfinished study of the same design, if there is one and the user wants to go on with it."""
    unfinished = find_unfinished(parent, study.study_design_hash or "")
    if unfinished is None:
        return None
    sys.stderr.write(f"An unfinished run of this study is in {for_display(str(unfinished))}. Go on with it? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower()
    return unfinished if answer in ("", "y", "yes") else None


def _directory_to_resume(directory: Path, request: RunRequest) -> Path:
    """The study directory that `--resume` names, with `~` expanded.

    Raises:
        UsageError: It holds no study, or there are flags that cannot change the study in it.
    """
    try:
        found = check_study_dir(directory)
    except StudyError as error:
        raise UsageError(f"--resume: {error}") from error
    if flags := request.fixed_by_resuming():
        raise UsageError(
            f"{', '.join(flags)}: cannot change a study that was begun, which stays in {found}. "
            "Leave it out, or start a new study."
        )
    return found


def _completed(study: StudyConfig, resume: Path | None) -> StudyConfig:
    """The study with what it leaves open of its execution as it was before, and else the command line's default."""
    execution = with_command_line_defaults(study.execution)
    if resume is not None:
        with suppress(PersistenceError):  # nobody knows how it was before
            execution = _filled(study.execution, load_resumable_study(resume).execution.model_dump())
    return study.model_copy(update={"execution": execution})


def _begun(resume: Path, request: RunRequest) -> StudyConfig:
    """The study in a directory, its execution changed as the flags say."""
    study = load_resumable_study(resume)
    try:
        execution = ExecutionConfig.model_validate(
            {**study.execution.model_dump(), **_below_execution(request.overrides())}
        )
    except ValidationError as error:
        raise config_error(error, None, _below_execution(request.sources())) from error
    return study.model_copy(update={"execution": execution})


def _below_execution(fields: dict[str, Any]) -> dict[str, Any]:
    section = "execution."
    return {path.removeprefix(section): value for path, value in fields.items() if path.startswith(section)}


def _run(study: StudyConfig, place: StudyPlace, request: RunRequest, machine: UserConfig) -> int:
    progress = study_progress(quiet=request.quiet, verbose=request.verbose, n_cycles=study.execution.n_cycles)
    directory = place.parent
    unsaved: list[ExperimentResult] = []

    def observer(event: StudyEvent) -> None:
        nonlocal directory
        if isinstance(event, StudyStarted):
            directory = event.directory
        elif isinstance(event, RunFinished) and event.result is not None and event.error is not None:
            unsaved.append(event.result)
        if progress is not None:
            progress(event)

    def show(result: StudyResult) -> None:
        if request.as_json:
            tell_place("Study", directory)
            tell_report(directory)
            print_result(result_json(result))
        else:
            print_result(render_study(result, directory, output_width()))

    try:
        result = run_placed(study, lambda result: None, machine=machine, observer=observer, place=place)
    except StudyStoppedError as error:
        if error.result is not None:
            show(error.result)
        raise
    finally:
        if progress is not None:
            progress.close()
        for measured in unsaved:  # measured, so shown
            print_result(result_json(measured) if request.as_json else render_summary(measured, None, output_width()))
    show(result)
    return EXIT_OK if result.summary.failed == 0 else EXIT_FAILED


def render_study(result: StudyResult, directory: Path, width: int) -> str:
    """The summary of a study that is kept in `directory`, for a terminal of `width` columns."""
    lines = [*render_configurations(result.statistics, width), ""]
    if shared := shared_parts([entry.config_name or "" for entry in result.statistics]):
        lines.append(f"{'All rows':<15}{shared}")
    summary = result.summary
    counts = [f"{summary.completed} completed", f"{summary.failed} failed"]
    if summary.skipped:
        counts.append(f"{summary.skipped} skipped (not valid)")
    lines.append(f"{'Runs':<15}{', '.join(counts)}, of {summary.total_experiments} planned")
    lines += [line for failure in _failures(result.failed) for line in _indented(failure, width)]
    if summary.total_energy_j is not None:
        label = estimate_mark(result.statistics)
        lines.append(f"{'Energy':<15}{joules(summary.total_energy_j)} in all measurement windows{label}")
    lines.append(f"{'Duration':<15}{duration(summary.total_wall_time_s)}")
    lines.append(f"{'Study':<15}{directory}")
    if (report := directory / REPORT_FILE).is_file():
        lines.append(f"{'Report':<15}{report}")
    return "\n".join(lines)


def _indented(text: str, width: int) -> list[str]:
    """Lines below a label; a path is never broken."""
    indent = " " * 15
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _failures(failed: list[FailedExperiment]) -> Iterator[str]:
    """What failed and why; the cycles of one configuration that failed alike together."""
    cycles: dict[tuple[str, str], list[int]] = defaultdict(list)
    for failure in failed:
        name = failure.config_name or str(failure.config.get("model", ""))
        cycles[name, one_line(failure.reason)] += [] if failure.cycle is None else [failure.cycle]
    for (name, reason), numbers in list(cycles.items())[:MAX_FAILURES]:
        where = f", cycle{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" if numbers else ""
        yield f"✗ {name}{where}: {reason}"
    if len(cycles) > MAX_FAILURES:
        yield f"… and {len(cycles) - MAX_FAILURES} more, all in study_summary.json"
