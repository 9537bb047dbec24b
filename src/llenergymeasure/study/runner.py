"""Runs a study: every experiment in every cycle, one at a time, each in isolation, with gaps in between.

    look for leftovers -> run in isolation -> save -> checkpoint -> report -> gap (the next child starts near its end)

Nothing finished is ever lost: a result is on disk before the next run begins, and a crash, an interrupt or a full disk
costs at most the experiment in flight.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llenergymeasure.atomic import naming_the_path
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.baseline import CachedBaseline
from llenergymeasure.core.clock import Clock, SteadyClock
from llenergymeasure.core.progress import Event, SkipKey, StepStarted
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import LLEMError, PersistenceError, ResultRescuedError, StudyError
from llenergymeasure.results.persistence import refuge, save_result, save_result_or_rescue
from llenergymeasure.results.report.write import report_on
from llenergymeasure.runners.isolated import Launcher
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import ChildFailedError, Interrupt, RunInterruptedError, signals_as
from llenergymeasure.study.gaps import environment_changes, gaps_of, leftover_gpu_memory, wait_out
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.plan import (
    PlannedRun,
    RunFinished,
    RunStarted,
    StudyEvent,
    StudyFinished,
    StudyObserver,
    StudyStarted,
    StudyWarning,
    plan_runs,
    shared_parts,
    silence_s,
    timeout_s,
)
from llenergymeasure.study.resume import Resumption
from llenergymeasure.study.saving import WORK_DIR, SummaryNotSavedError, keep_failure, write_study

_GONE: Final = "it has been removed or replaced while the study was running."

_log = logging.getLogger(__name__)


class StudyStoppedError(StudyError):
    """The study gave up, or could not go on; what was finished is kept.

    Args:
        message: Why, and how to go on.
        study_dir: Directory of the study.
        result: What it yielded until then; `None` where even that could not be written.
    """

    def __init__(self, message: str, study_dir: Path, result: StudyResult | None = None) -> None:
        self.study_dir = study_dir
        self.result = result
        super().__init__(message)

    def __reduce__(self) -> tuple[type[StudyStoppedError], tuple[str, Path, StudyResult | None]]:
        return (type(self), (str(self), self.study_dir, self.result))


class StudyInterruptedError(KeyboardInterrupt):
    """The user stopped the study, finished results are kept: an interrupt, as whoever pressed Ctrl-C expects."""


@dataclass(frozen=True)
class StudyHost:
    """What a study runs on: everything that a test replaces.

    Args:
        leftovers: Finds GPU memory that somebody left behind, one sentence each.
        skip_gap: Whether the user wants to skip the gap; `None`: there is nobody to ask.
        report: Makes the report of the result or the study in a directory; never fails.
    """

    launcher: Launcher
    clock: Clock = field(default_factory=SteadyClock)
    observer: StudyObserver = field(default=lambda event: None)
    interrupt: Interrupt = field(default_factory=Interrupt)
    leftovers: Callable[[], Sequence[str]] = leftover_gpu_memory
    skip_gap: SkipKey | None = None
    report: Callable[[Path], object] = report_on


class StudyRunner:
    """Runs what is left of a study.

    Args:
        study_dir: Its directory, which this process has locked.
        resumption: What an earlier execution left; `None` for a new study.
        export_csv: Also write a CSV of all results at the end.
    """

    def __init__(
        self,
        study: StudyConfig,
        study_dir: Path,
        machine: UserConfig,
        host: StudyHost,
        *,
        resumption: Resumption | None = None,
        export_csv: bool = False,
    ) -> None:
        before = resumption or Resumption(study)
        self._study = study
        self._dir = study_dir
        self._machine = machine
        self._host = host
        self._export_csv = export_csv
        self._gaps = gaps_of(study.execution, machine)
        self._environments = dict(before.environments)
        self._baselines: tuple[CachedBaseline, ...] = ()
        self._failures_in_a_row: list[str] = []
        self._machine_is_cool = True
        self._reporting_s = 0.0
        self._manifest = ManifestWriter(
            study, study_dir, kept=before.kept, started_at=before.started_at, clock=host.clock
        )
        self._dir_status = os.stat(study_dir)
        self._all = plan_runs(study)
        self._left = [run for run in self._all if self._manifest.entry(*run.key).status != "completed"]

    def run(self) -> StudyResult:
        """Run every run that is left.

        Returns:
            What the study yielded, failed runs included; it is on disk as `study_summary.json`.

        Raises:
            StudyInterruptedError: SIGINT or SIGTERM came; the manifest says `interrupted`.
            StudyStoppedError: Too many runs failed one after the other, or results cannot be saved any more.
        """
        total, left = len(self._all), len(self._left)
        shared = shared_parts([run.title for run in self._all])
        self._tell(StudyStarted(self._dir, total, total - left, len(self._study.skipped_configs), shared))
        try:
            with signals_as(self._host.interrupt), self._work_place():
                self._run_all()
        except RunInterruptedError as error:
            self._mark_interrupted()
            raise StudyInterruptedError(self._how_to_go_on("Interrupted")) from error
        except (StudyError, PersistenceError) as error:
            raise self._stopped(error) from error
        except BaseException:
            self._mark_interrupted()
            raise
        result = self._ended()
        self._tell(StudyFinished(result, self._dir))
        return result

    def _run_all(self) -> None:
        for index, run in enumerate(self._left):
            job = self._wait_before(run, self._left[index - 1]) if index > 0 else None
            if self._host.interrupt.requested:
                raise RunInterruptedError("interrupted between two experiments")
            self._machine_is_cool = True  # until a run loads something, or has a result
            self._run_one(run, job or self._make_job(run))

    def _wait_before(self, following: PlannedRun, previous: PlannedRun) -> Job | None:
        """Let the gap between two runs pass; returns the job whose child was started near its end, if one was."""
        job = None

        def prepare() -> None:
            nonlocal job
            job = self._make_job(following)
            self._host.launcher.prepare(job)

        if self._machine_is_cool:
            return None
        kind, duration_s = self._gaps.between(previous, following)
        wait_out(
            kind,
            max(0.0, duration_s - self._reporting_s),  # the machine has cooled meanwhile
            clock=self._host.clock,
            observer=self._tell,
            interrupt=self._host.interrupt,
            prepare_next=prepare,
            skip=self._host.skip_gap,
        )
        return job

    @contextmanager
    def _work_place(self) -> Iterator[None]:
        """Where runs keep their files, made anew: what is there is of an execution that was killed."""
        work_dir = self._dir / WORK_DIR
        try:
            if os.path.lexists(work_dir):
                shutil.rmtree(work_dir)  # refuses a link, which somebody else has put there
            work_dir.mkdir()
        except OSError as error:
            raise PersistenceError(f"Cannot make {work_dir} anew: {error.strerror or error}. Remove it.") from error
        try:
            yield
        finally:
            self._host.launcher.discard()
            shutil.rmtree(work_dir, ignore_errors=True)

    def _make_job(self, run: PlannedRun) -> Job:
        work_dir = self._dir / WORK_DIR / f"run-{run.position:05d}"
        if not self._directory_is_ours():
            raise PersistenceError(f"Cannot write to {self._dir}: {_GONE}")
        with naming_the_path(work_dir, "create"):
            work_dir.mkdir()
        execution = self._study.execution
        return Job(
            config=run.config,
            machine=self._machine,
            work_dir=work_dir,
            baselines=self._baselines,
            timeout_s=timeout_s(run.config, self._machine, execution),
            silence_s=silence_s(run.config, self._machine, execution),
        )

    def _run_one(self, run: PlannedRun, job: Job) -> None:
        clock = self._host.clock
        notes = self._leftovers()
        self._manifest.mark_running(*run.key)
        self._tell(RunStarted(run, len(self._all)))
        began_s = clock.now()
        self._reporting_s = 0.0
        try:
            measured = self._host.launcher.run(job, self._follow, self._host.interrupt)
        except RunInterruptedError:
            keep_failure(run, self._dir, _logs(job), clock.wall())
            raise
        except PersistenceError:  # the job's own directory cannot be written to: no run would fare better
            raise
        except LLEMError as error:
            self._record_failure(run, job, error, clock.now() - began_s)
        else:
            self._record_success(run, job, measured, notes, clock.now() - began_s)

    def _record_success(
        self, run: PlannedRun, job: Job, measured: MeasuredRun, notes: list[str], duration_s: float
    ) -> None:
        self._machine_is_cool = False
        result = self._annotated(measured.result, run, notes)
        try:
            if not self._directory_is_ours():  # nor are the run's files, which lay in it
                raise ResultRescuedError(self._dir, save_result(result, refuge()), _GONE)
            beside = [*measured.artefacts.beside_timeseries, *_logs(job)]
            path = save_result_or_rescue(result, self._dir, measured.artefacts.timeseries, beside)
        except PersistenceError as error:
            # The figures reach whoever looks on, whatever became of the files.
            self._tell(RunFinished(run, len(self._all), result, str(error), duration_s))
            self._mark_failed(run, error)
            raise
        sha256 = None if result.dataset is None else result.dataset.sha256
        try:
            self._manifest.mark_completed(*run.key, path.relative_to(self._dir).as_posix(), sha256)
        finally:  # it is measured and saved, whatever becomes of the checkpoint
            self._tell(RunFinished(run, len(self._all), result, None, duration_s))
        self._baselines = measured.baselines
        self._failures_in_a_row.clear()
        _remove(job.work_dir)
        began_s = self._host.clock.now()
        self._host.report(path.parent)
        self._reporting_s = self._host.clock.now() - began_s

    def _record_failure(self, run: PlannedRun, job: Job, error: LLEMError, duration_s: float) -> None:
        kept = keep_failure(run, self._dir, _logs(job), self._host.clock.wall())
        _log.info("%s, cycle %d failed: %s", run.title, run.cycle, error)
        try:
            self._mark_failed(run, error)
        finally:
            self._tell(RunFinished(run, len(self._all), None, str(error), duration_s, kept))
        _remove(job.work_dir)
        self._failures_in_a_row.append(str(error))
        limit = self._study.execution.max_consecutive_failures
        if len(self._failures_in_a_row) >= limit:
            (reason, count), *_ = Counter(self._failures_in_a_row).most_common(1)
            what = "all for this reason" if count == limit else f"{count} of them for this reason"
            raise StudyError(f"{limit} experiments failed one after the other, {what}: {reason}")

    def _annotated(self, result: ExperimentResult, run: PlannedRun, notes: list[str]) -> ExperimentResult:
        """The result with its place in the study and the warnings that only the study can give."""
        environment = result.environment_snapshot
        if environment is not None:  # of one backend: each may have an image of its own
            changes = environment_changes(self._environments.setdefault(result.backend, environment), environment)
            if changes:
                message = "differs from the study's earlier results in " + "; ".join(changes)
                notes = [*notes, str(MeasurementWarning(WarningCode.ENVIRONMENT_CHANGED, message))]
        notes = [*result.measurement_warnings, *notes]
        return result.model_copy(update={"cycle": run.cycle, "measurement_warnings": notes})

    def _leftovers(self) -> list[str]:
        notes = []
        for message in self._host.leftovers():
            self._tell(StudyWarning(message))
            _log.warning("%s", message)
            notes.append(str(MeasurementWarning(WarningCode.GPU_MEMORY_LEFT_BEHIND, message)))
        return notes

    def _mark_failed(self, run: PlannedRun, error: LLEMError) -> None:
        error_type = error.error_type if isinstance(error, ChildFailedError) else type(error).__name__
        try:
            self._manifest.mark_failed(*run.key, error_type, str(error))
        except PersistenceError as second:
            if not isinstance(error, PersistenceError):
                raise
            _log.warning("The manifest could not be written either: %s", second)

    def _ended(self) -> StudyResult:
        """The summary of a study whose every run has been tried; it is on disk, or the error says what is not."""
        result, unsaved = self._end(self._manifest.mark_study_completed, finished=True)
        if unsaved or result is None:
            raise StudyStoppedError(self._how_to_go_on("Every run was tried", unsaved), self._dir, result)
        return result

    def _stopped(self, error: LLEMError) -> StudyStoppedError:
        """The error to raise when the study cannot go on, with everything on disk that can be."""
        result, unsaved = self._end(self._manifest.mark_study_failed, finished=False)
        return StudyStoppedError(self._how_to_go_on(str(error), unsaved), self._dir, result)

    def _end(
        self, mark: Callable[[], None], *, finished: bool
    ) -> tuple[StudyResult | None, Sequence[PersistenceError]]:
        """Write manifest and summary, the one also without the other.

        Returns:
            The summary, also where it is not on disk; `None` where results cannot be read. And what could not be done.
        """
        problems: list[PersistenceError] = []
        try:
            mark()
        except PersistenceError as error:
            problems.append(error)
        try:
            return self._write_study(finished=finished), problems
        except PersistenceError as error:
            return error.result if isinstance(error, SummaryNotSavedError) else None, [*problems, error]

    def _write_study(self, *, finished: bool) -> StudyResult:
        result = write_study(
            self._study,
            self._dir,
            self._manifest.entries(),
            gaps=self._gaps,
            started_at=self._manifest.started_at,
            completed_at=self._host.clock.wall() if finished else None,
            export_csv=self._export_csv,
        )
        self._host.report(self._dir)
        return result

    def _how_to_go_on(self, reason: str, unsaved: Sequence[PersistenceError] = ()) -> str:
        told = "".join(f"\nNot saved, and made anew by going on: {error}" for error in unsaved)
        finished = f"{self._manifest.completed} of {len(self._all)} runs are finished and kept in {self._dir}"
        return f"{reason.rstrip('.')}. {finished}. Go on with: llem run --resume {self._dir}{told}"

    def _mark_interrupted(self) -> None:
        try:
            self._manifest.mark_interrupted()
            self._write_study(finished=False)
        except PersistenceError as error:  # the journal still tells what is finished
            _log.warning("Manifest or summary could not be written: %s", error)

    def _directory_is_ours(self) -> bool:
        """Whether the directory is the one it was: writing on would scatter results over two places."""
        try:
            return os.path.samestat(os.stat(self._dir), self._dir_status)
        except OSError:
            return False

    def _follow(self, event: Event) -> None:
        if isinstance(event, StepStarted) and event.step != "preflight":
            self._machine_is_cool = False
        self._tell(event)

    def _tell(self, event: StudyEvent) -> None:
        try:
            self._host.observer(event)
        except Exception:  # noqa: BLE001 (whoever looks on must not cost the study)
            _log.exception("The study's observer failed on %s", type(event).__name__)


def _logs(job: Job) -> list[Path]:
    return sorted(job.work_dir.glob("*.log"))


def _remove(work_dir: Path) -> None:
    shutil.rmtree(work_dir, onerror=lambda function, path, info: _log.warning("Could not remove %s: %s", path, info[1]))
