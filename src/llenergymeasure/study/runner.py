"""Runs a study: every experiment in every cycle, each in isolation, one at a time here, or one at a time on each node.

    runs left ──> a worker here, or one for each node of a cluster ──> ledger ──> summary

Nothing finished is ever lost: a result is on disk before the next run begins, and a crash, an interrupt or a full disk
costs at most the experiment in flight.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import Clock, SteadyClock
from llenergymeasure.core.host.leftovers import leftover_gpu_memory
from llenergymeasure.core.progress import SkipKey
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import LLEMError, PersistenceError, StudyError
from llenergymeasure.results.report.write import report_on
from llenergymeasure.runners.cluster import Cluster
from llenergymeasure.runners.isolated import Launcher
from llenergymeasure.runners.supervise import Interrupt, RunInterruptedError, signals_as
from llenergymeasure.study.gaps import gaps_of
from llenergymeasure.study.ledger import Ledger
from llenergymeasure.study.manifest import ManifestWriter
from llenergymeasure.study.placement import Placement, places
from llenergymeasure.study.plan import (
    StudyFinished,
    StudyObserver,
    StudyStarted,
    StudyWarning,
    notes_on,
    plan_runs,
    shared_parts,
)
from llenergymeasure.study.resume import Resumption
from llenergymeasure.study.saving import WORK_DIR, SummaryNotSavedError, write_study
from llenergymeasure.study.spread import Spread, Watch
from llenergymeasure.study.worker import Site, Terms, Worker

_log = logging.getLogger(__name__)


class StudyStoppedError(StudyError):
    """The study gave up, or could not go on; what was finished is kept.

    Args:
        message: Why, and how to go on.
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
        cluster: Spreads the runs over its nodes, one at a time on each; `None`: they run here.
    """

    launcher: Launcher
    clock: Clock = field(default_factory=SteadyClock)
    observer: StudyObserver = field(default=lambda event: None)
    interrupt: Interrupt = field(default_factory=Interrupt)
    leftovers: Callable[[], Sequence[str]] = leftover_gpu_memory
    skip_gap: SkipKey | None = None
    report: Callable[[Path], object] = report_on
    cluster: Cluster | None = None
    watch: Watch = field(default_factory=Watch)


class StudyRunner:
    """Runs what is left of a study.

    Args:
        study_dir: Its directory, which this process has locked.
        resumption: What an earlier execution left; `None` for a new study.
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
        self._hardware = before.hardware
        self._manifest = ManifestWriter(
            study,
            study_dir,
            kept=before.kept,
            started_at=before.started_at,
            ran_s=before.ran_s,
            clock=host.clock,
        )
        self._all = plan_runs(study)
        self._ledger = Ledger(
            study,
            study_dir,
            self._manifest,
            total=len(self._all),
            environments=before.environments,
            clock=host.clock,
            observer=host.observer,
            report=host.report,
        )
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
        for note in notes_on(self._study):
            _log.warning("%s", note)
        shared = shared_parts([run.title for run in self._all])
        self._ledger.tell(StudyStarted(self._dir, total, total - left, len(self._study.skipped_configs), shared))
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
        if unlike := sorted({entry.hardware for entry in result.statistics if entry.hardware is not None}):
            kinds = "; ".join(unlike)
            told = f"Some configurations ran on unlike hardware ({kinds}); each kind has statistics of its own."
            self._ledger.tell(StudyWarning(told))
        self._ledger.tell(StudyFinished(result, self._dir))
        return result

    def _run_all(self) -> None:
        host = self._host
        terms = Terms(self._machine, self._study.execution, self._gaps, self._dir / WORK_DIR, host.clock)
        if host.cluster is not None:
            placement = Placement(self._left, self._machine, self._hardware)
            cluster = places(host.cluster, (run.config for run in self._left), self._machine)
            Spread(cluster, placement, terms, self._ledger, host.interrupt, host.watch).run()
            return
        site = Site(host.launcher, host.leftovers, skip_gap=host.skip_gap)
        worker = Worker(site, terms, self._ledger, host.interrupt)
        for run in self._left:
            worker.do(run)

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
            ran_s=self._manifest.ran_s,
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
