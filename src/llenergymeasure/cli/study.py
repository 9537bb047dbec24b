"""`llem run` on a study: flags, the offer to resume, progress, the table at the end."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llenergymeasure._api import _run as run_placed
from llenergymeasure._api import study_parent
from llenergymeasure.cli.progress import study_progress
from llenergymeasure.cli.request import RunRequest
from llenergymeasure.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    UsageError,
    output_width,
    print_result,
    result_json,
)
from llenergymeasure.config.errors import config_error
from llenergymeasure.config.loader import resolve_study
from llenergymeasure.config.models import ExecutionConfig, StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.config.yaml_io import LoadedDocument
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics, FailedExperiment, StudyResult
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.summary import duration, joules, one_line, quantity, render_summary, with_half_width
from llenergymeasure.study.execute import StudyPlace
from llenergymeasure.study.plan import RunFinished, StudyEvent, StudyStarted
from llenergymeasure.study.resume import find_unfinished, load_resumable_study
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
    parent, resume = request.output or Path(machine.output.results_dir), request.resume
    if document is not None:
        study = _named(document, request)
        parent = request.output or study_parent(study, machine)
        if resume is None and asks:
            resume = _offer_to_resume(study, parent)
        study = _completed(study, resume)
    elif resume is not None:
        study = _begun(resume, request)
    else:
        raise UsageError("give the study file, or --resume with the directory of a study")
    if request.dry_run:
        from llenergymeasure.cli.dry_run import render_study_preview

        print_result(render_study_preview(study, machine, list_all=request.verbose))
        return EXIT_OK
    place = StudyPlace(parent=parent, resume=resume, export_csv=request.export_csv, interactive=asks)
    return _run(study, place, request, machine)


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
    sys.stderr.write(f"An unfinished run of this study is in {unfinished}. Go on with it? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip().lower()
    return unfinished if answer in ("", "y", "yes") else None


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
        print_result(result_json(result) if request.as_json else render_study(result, directory))

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


def render_study(result: StudyResult, directory: Path) -> str:
    """The summary of a study that is kept in `directory`."""
    lines = [*_table(result.statistics), ""]
    summary = result.summary
    counts = [f"{summary.completed} completed", f"{summary.failed} failed"]
    if summary.skipped:
        counts.append(f"{summary.skipped} skipped (not valid)")
    lines.append(f"{'Runs':<15}{', '.join(counts)}, of {summary.total_experiments} planned")
    lines += [f"{'':<15}{line}" for line in _failures(result.failed)]
    if summary.total_energy_j is not None:
        lines.append(f"{'Energy':<15}{joules(summary.total_energy_j)} in all measurement windows")
    lines.append(f"{'Duration':<15}{duration(summary.total_wall_time_s)}")
    lines.append(f"{'Study':<15}{directory}")
    return "\n".join(lines)


def _table(statistics: list[ConfigurationStatistics]) -> list[str]:
    """Aligned rows, the least energy per token first; what was not measured last."""
    if not statistics:
        return ["No run was completed."]
    ranked = sorted(statistics, key=lambda s: s.energy_per_token_j.mean if s.energy_per_token_j else float("inf"))
    rows = [("Configuration", "Cycles", "Energy per token", "CV", "Tokens per second", "CV")]
    rows += [
        (
            entry.config_name or entry.measurement_config_hash,
            str(entry.cycles),
            _interval(entry.energy_per_token_j, energy=True),
            _variation(entry.energy_per_token_j),
            _interval(entry.tokens_per_second, energy=False),
            _variation(entry.tokens_per_second),
        )
        for entry in ranked
    ]
    shown = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    lines = ["  ".join(row[column].ljust(widths[column]) for column in shown).rstrip() for row in rows]
    return [*lines, *_legend(statistics)]


def _legend(statistics: list[ConfigurationStatistics]) -> Iterator[str]:
    """What the signs in the table mean, as far as it has them."""
    every = (figure for entry in statistics for figure in (entry.energy_per_token_j, entry.tokens_per_second))
    figures = [figure for figure in every if figure is not None]
    if any(figure.ci95_high is not None for figure in figures):
        yield "± is the 95 % interval of the mean over the cycles, CV their coefficient of variation."
    if any(figure.high_variation for figure in figures):
        yield "! marks a CV above 5 %: these cycles differ a lot; more of them narrow the interval."


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


def _interval(figure: CycleStatistics | None, *, energy: bool) -> str:
    if figure is None:
        return "not measured"
    half_width = None if figure.ci95_high is None else figure.ci95_high - figure.mean
    if energy:
        return joules(figure.mean, half_width=half_width)
    return quantity(figure.mean) if half_width is None else with_half_width(figure.mean, half_width)


def _variation(figure: CycleStatistics | None) -> str:
    """The coefficient of variation in per cent, with a mark where it is above 5 %; nothing where there is none."""
    if figure is None or figure.cv_pct is None:
        return ""
    return f"{figure.cv_pct:.1f} %{' !' if figure.high_variation else ''}"
