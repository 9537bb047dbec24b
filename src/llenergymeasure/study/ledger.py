"""What becomes of a study's runs: results saved, the manifest's transitions, failures counted, the world told.

Workers on several nodes share one ledger, each in a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.core.clock import Clock
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import LLEMError, PersistenceError, ResultRescuedError, StudyError
from llenergymeasure.results.persistence import REPORT_FILE, refuge, save_result, save_result_or_rescue
from llenergymeasure.results.report.write import write_page
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import ChildFailedError
from llenergymeasure.study.gaps import environment_changes
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.plan import PlannedRun, RunFinished, RunStarted, StudyEvent, StudyObserver
from llenergymeasure.study.saving import keep_failure

_GONE: Final = "it has been removed or replaced while the study was running."

_log = logging.getLogger(__name__)

EnvironmentKey = tuple[str | None, str]
"""Node and backend: each node may differ from the others, and each backend may have an image of its own."""


class Ledger:
    """Writes down what becomes of each run.

    Args:
        total: Runs of the whole study.
        environments: Those of results that are there already.
        report: Makes the report of the result in a directory; never fails.
    """

    def __init__(
        self,
        study: StudyConfig,
        study_dir: Path,
        manifest: ManifestWriter,
        *,
        total: int,
        environments: Mapping[EnvironmentKey, EnvironmentSnapshot],
        clock: Clock,
        observer: StudyObserver,
        report: Callable[[Path], object],
    ) -> None:
        self._dir = study_dir
        self._manifest = manifest
        self._total = total
        self._limit = study.execution.max_consecutive_failures
        self._environments = dict(environments)
        self._clock = clock
        self._observer = observer
        self._report = report
        self._failures_in_a_row: list[str] = []
        self._counting = threading.Lock()
        self._telling = threading.RLock()
        self._reporting = threading.Lock()
        self._dir_status = os.stat(study_dir)

    def tell(self, event: StudyEvent) -> None:
        """Tell the observer, one event at a time; one that fails must not cost the study."""
        with self._telling:
            try:
                self._observer(event)
            except Exception:  # noqa: BLE001 (whoever looks on must not cost the study)
                _log.exception("The study's observer failed on %s", type(event).__name__)

    def check_directory(self) -> None:
        """Make sure that the directory is the one it was: writing on would scatter results over two places.

        Raises:
            PersistenceError: It is not.
        """
        if not self._directory_is_ours():
            raise PersistenceError(f"Cannot write to {self._dir}: {_GONE}")

    def begin(self, run: PlannedRun, node: str | None) -> None:
        """A run begins."""
        self._manifest.mark_running(*run.key)
        self.tell(RunStarted(run, self._total, node))

    def succeed(
        self,
        run: PlannedRun,
        job: Job,
        measured: MeasuredRun,
        *,
        notes: Sequence[str],
        duration_s: float,
        node: str | None,
    ) -> Path:
        """A run has a result; gives the directory that it is kept in.

        Raises:
            PersistenceError: It could not be saved; who looks on has its figures.
        """
        result = self._annotated(measured.result, run, notes, node)
        files = measured.artefacts
        try:
            if not self._directory_is_ours():  # nor are the run's files, which lay in it
                raise ResultRescuedError(self._dir, save_result(result, refuge()), _GONE)
            beside = [*files.beside_timeseries, *logs_of(job)]
            path = save_result_or_rescue(result, self._dir, files.timeseries, beside)
        except PersistenceError as error:
            # The figures reach whoever looks on, whatever became of the files.
            self.tell(RunFinished(run, self._total, result, str(error), duration_s, node=node))
            self._mark_failed(run, error)
            raise
        sha256 = None if result.dataset is None else result.dataset.sha256
        try:
            self._manifest.mark_completed(*run.key, path.relative_to(self._dir).as_posix(), sha256)
        finally:  # it is measured and saved, whatever becomes of the checkpoint
            self.tell(RunFinished(run, self._total, result, None, duration_s, node=node))
        with self._counting:
            self._failures_in_a_row.clear()
        remove(job.work_dir)
        return path.parent

    def report(self, directory: Path, page: str | None) -> None:
        """Make the report of a result; one at a time, because what draws it is not made for threads.

        Args:
            page: The report, where it was drawn elsewhere.
        """
        if page is not None:
            with contextlib.suppress(PersistenceError):  # what is said of that is said by whoever draws it here
                write_page(directory / REPORT_FILE, page)
                return
        with self._reporting:
            self._report(directory)

    def lost(self, run: PlannedRun, job: Job) -> None:
        """A run was lost with its node, and is tried once more; what is known of its output is kept."""
        self._keep_logs(run, job)
        remove(job.work_dir)

    def fail(self, run: PlannedRun, job: Job, error: LLEMError, *, duration_s: float, node: str | None) -> None:
        """A run has failed.

        Raises:
            StudyError: It was one too many in a row.
        """
        kept = self._keep_logs(run, job)
        _log.info("%s, cycle %d failed: %s", run.title, run.cycle, error)
        try:
            self._mark_failed(run, error)
        finally:
            self.tell(RunFinished(run, self._total, None, str(error), duration_s, kept, node=node))
        remove(job.work_dir)
        with self._counting:
            self._failures_in_a_row.append(str(error))
            reasons = Counter(self._failures_in_a_row)
        if reasons.total() >= self._limit:
            (reason, count), *_ = reasons.most_common(1)
            what = "all for this reason" if count == reasons.total() else f"{count} of them for this reason"
            raise StudyError(f"{reasons.total()} experiments failed one after the other, {what}: {reason}")

    def interrupted(self, run: PlannedRun, job: Job) -> None:
        """A run was stopped; what its processes said is kept."""
        self._keep_logs(run, job)

    def now(self) -> datetime:
        """The present (UTC)."""
        return self._clock.wall()

    def _keep_logs(self, run: PlannedRun, job: Job) -> Path | None:
        return keep_failure(run, self._dir, logs_of(job), self.now())

    def _annotated(
        self, result: ExperimentResult, run: PlannedRun, notes: Sequence[str], node: str | None
    ) -> ExperimentResult:
        """The result with its place in the study and the warnings that only the study can give."""
        environment = result.environment_snapshot
        if environment is not None:
            earlier = self._environments.setdefault((node, result.backend), environment)
            if changes := environment_changes(earlier, environment):
                message = "differs from the study's earlier results in " + "; ".join(changes)
                notes = [*notes, str(MeasurementWarning(WarningCode.ENVIRONMENT_CHANGED, message))]
        warnings = [*result.measurement_warnings, *notes]
        return result.model_copy(update={"cycle": run.cycle, "node": node, "measurement_warnings": warnings})

    def _mark_failed(self, run: PlannedRun, error: LLEMError) -> None:
        error_type = error.error_type if isinstance(error, ChildFailedError) else type(error).__name__
        try:
            self._manifest.mark_failed(*run.key, error_type, str(error))
        except PersistenceError as second:
            if not isinstance(error, PersistenceError):
                raise
            _log.warning("The manifest could not be written either: %s", second)

    def _directory_is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._dir), self._dir_status)
        except OSError:
            return False


def logs_of(job: Job) -> list[Path]:
    """What a run's processes said."""
    return sorted(job.work_dir.glob("*.log"))


def remove(work_dir: Path) -> None:
    """Remove a run's own directory; that it cannot be removed costs nothing."""
    shutil.rmtree(work_dir, onerror=lambda function, path, info: _log.warning("Could not remove %s: %s", path, info[1]))
