"""What is on disk when a run ends, and when the study does."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from llenergymeasure.atomic import is_unfinished, make_unique_directory
from llenergymeasure.config.base import portable_data
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import (
    ExperimentManifestEntry,
    FailedExperiment,
    MeasurementProtocol,
    SkippedExperiment,
    StudyResult,
    StudySummary,
)
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.export import ColumnSurvey, to_csv
from llenergymeasure.results.persistence import (
    STUDY_FILE,
    TABLE_FILE,
    goes_beside_result,
    is_result_directory,
    load_result,
    model_slug,
    timestamp_slug,
    to_json,
    to_parquet,
)
from llenergymeasure.results.statistics import summarise_configurations
from llenergymeasure.study.gaps import Gaps
from llenergymeasure.study.plan import PlannedRun, RunKey, design_hash_of, plan_runs

CSV_FILE: Final = "results.csv"

WORK_DIR: Final = ".work"
"""Where running experiments keep their files; empty between runs."""

_log = logging.getLogger(__name__)


class SummaryNotSavedError(PersistenceError):
    """A file that a study ends with could not be written; its summary is in `result`."""

    def __init__(self, result: StudyResult, message: str) -> None:
        self.result = result
        super().__init__(message)

    def __reduce__(self) -> tuple[type[SummaryNotSavedError], tuple[StudyResult, str]]:
        return (type(self), (self.result, str(self)))


def keep_failure(run: PlannedRun, study_dir: Path, logs: Sequence[Path], moment: datetime) -> Path | None:
    """Keep the logs of a run that failed, in a directory named like those of results.

    Args:
        logs: Its log files; they are moved.
        moment: When it failed (UTC).

    Returns:
        The directory; `None` when there was nothing to keep, or it could not be kept.
    """
    name = f"{model_slug(run.config.model)}_{run.config.backend}_{timestamp_slug(moment)}_failed"
    try:
        if not any(log.stat().st_size for log in logs):
            return None
        directory = make_unique_directory(study_dir, name)
        for log in logs:
            shutil.move(log, directory / log.name)
    except (OSError, PersistenceError) as error:
        _log.warning("Could not keep the log of %s, cycle %d: %s", run.title, run.cycle, error)
        return None
    return directory


def clear_leftovers(study_dir: Path) -> None:
    """Remove what a killed execution of a study left: its runs' own files, unfinished ones, results that are not whole.

    A directory that holds anything that we do not write stays as it is.
    """
    try:
        for path in [path for path in study_dir.iterdir() if is_unfinished(path)]:
            path.unlink()
        for directory in [path for path in study_dir.iterdir() if path.is_dir() and not path.is_symlink()]:
            if directory.name == WORK_DIR:
                shutil.rmtree(directory)
            elif is_result_directory(directory.name):
                _clear_result_directory(directory)
    except OSError as error:
        _log.warning("What an earlier execution left in %s could not be removed: %s", study_dir, error)


def _clear_result_directory(directory: Path) -> None:
    for path in [path for path in directory.iterdir() if is_unfinished(path)]:
        path.unlink()
    if all(goes_beside_result(path.name) for path in directory.iterdir()):
        shutil.rmtree(directory)


def write_study(
    study: StudyConfig,
    study_dir: Path,
    entries: Sequence[ExperimentManifestEntry],
    *,
    gaps: Gaps,
    started_at: datetime,
    ran_s: float,
    completed_at: datetime | None,
    export_csv: bool = False,
) -> StudyResult:
    """Write what a study yielded: `study_summary.json`, `results.parquet`, and on request `results.csv`.

    Args:
        entries: Every run, in order of execution.
        ran_s: Seconds for which it ran, in all its executions.
        completed_at: When it ended; `None` when it was stopped before its end.

    Raises:
        SummaryNotSavedError: A file cannot be written; names it, and holds the summary.
        PersistenceError: A result cannot be read; names it.
    """
    files = [entry.result_file for entry in entries if entry.status == "completed" and entry.result_file]
    planned = {run.key: run for run in plan_runs(study)}
    results = _Results([study_dir / file for file in files], {run.config_hash: run.title for run in planned.values()})
    statistics = summarise_configurations(results.surveyed())
    execution = study.execution
    result = StudyResult(
        study_id=study_dir.name,
        name=study.name,
        study_design_hash=design_hash_of(study),
        started_at=started_at,
        completed_at=completed_at,
        measurement_protocol=MeasurementProtocol(
            n_cycles=execution.n_cycles,
            cycle_order=execution.cycle_order,
            config_gap_seconds=gaps.config_s,
            cycle_gap_seconds=gaps.cycle_s,
            shuffle_seed=execution.shuffle_seed,
        ),
        summary=StudySummary(
            total_experiments=len(entries),
            completed=len(files),
            failed=sum(entry.status == "failed" for entry in entries),
            skipped=len(study.skipped_configs),
            total_wall_time_s=ran_s,
            total_energy_j=results.total_energy_j,
        ),
        skipped=[
            SkippedExperiment(config=point.get("raw_config", point), reason=str(point.get("reason", "not valid")))
            for point in study.skipped_configs
        ],
        failed=list(_failures(planned, entries)),
        result_files=files,
        statistics=statistics,
    ).kept_in(study_dir)
    try:
        to_json(result, study_dir / STUDY_FILE)
        if files:
            to_parquet(results, study_dir / TABLE_FILE, results.survey.columns())
        if files and export_csv:
            to_csv(results, study_dir / CSV_FILE, results.survey.columns())
    except PersistenceError as error:
        raise SummaryNotSavedError(result, str(error)) from error
    return result


@dataclass(slots=True)
class _Results:
    """The results of a study, each read when its turn has come: a large study must fit in memory.

    Args:
        titles: What configurations are called in the study, by their hashes.
        total_energy_j: Of those that were surveyed; `None` where none has joules.
    """

    files: Sequence[Path]
    titles: Mapping[str, str]
    survey: ColumnSurvey = field(default_factory=ColumnSurvey)
    total_energy_j: float | None = None

    def __iter__(self) -> Iterator[ExperimentResult]:
        for file in self.files:
            result = load_result(file)
            title = self.titles.get(result.measurement_config_hash, result.config_name)
            yield result.model_copy(update={"config_name": title})

    def surveyed(self) -> Iterator[ExperimentResult]:
        """All of them, looked at as they pass."""
        for result in self:
            self.survey.add(result)
            if result.total_energy_j is not None:
                self.total_energy_j = (self.total_energy_j or 0.0) + result.total_energy_j
            yield result


def _failures(
    planned: Mapping[RunKey, PlannedRun], entries: Iterable[ExperimentManifestEntry]
) -> Iterator[FailedExperiment]:
    for entry in entries:
        if entry.status == "failed":
            run = planned[entry.config_hash, entry.cycle]
            yield FailedExperiment(
                config_name=run.title,
                config=portable_data(run.config),
                reason=entry.error_message or "unknown",
                cycle=entry.cycle,
                error_type=entry.error_type,
            )
