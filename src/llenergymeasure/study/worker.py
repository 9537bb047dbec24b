"""Runs at one place, one after the other, with gaps in between: this machine, or a node of a cluster.

gap (the next child starts near its end) -> look for leftovers -> run in isolation -> ledger -> report
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llenergymeasure.atomic import naming_the_path
from llenergymeasure.config.models import ExecutionConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.baseline import CachedBaseline
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.progress import Event, SkipKey, StepStarted
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import LLEMError, PersistenceError
from llenergymeasure.runners.cluster import NodeLostError
from llenergymeasure.runners.isolated import Launcher
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.supervise import Interrupt, RunInterruptedError
from llenergymeasure.study.gaps import Gaps, wait_out
from llenergymeasure.study.ledger import Ledger
from llenergymeasure.study.plan import OnNode, PlaceEvent, PlannedRun, StudyWarning, silence_s, timeout_s

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """Where runs are run.

    Args:
        leftovers: Finds GPU memory that somebody left behind there, one sentence each.
        page: Draws the report of the last run's result there, see `NodeLauncher.page`; `None`: it is drawn here.
        node: Its name in a cluster; `None`: this machine.
        skip_gap: Whether the user wants to skip the gap; `None`: there is nobody to ask.
    """

    launcher: Launcher
    leftovers: Callable[[], Sequence[str]]
    page: Callable[[Path], str | None] | None = None
    node: str | None = None
    skip_gap: SkipKey | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every run of a study, wherever it is.

    Args:
        work_dir: Where runs keep their files.
    """

    machine: UserConfig
    execution: ExecutionConfig
    gaps: Gaps
    work_dir: Path
    clock: Clock


class Worker:
    """Does run after run at one place."""

    def __init__(self, site: Site, terms: Terms, ledger: Ledger, interrupt: Interrupt) -> None:
        self._site = site
        self._terms = terms
        self._ledger = ledger
        self._interrupt = interrupt
        self._baselines: tuple[CachedBaseline, ...] = ()
        self._previous: PlannedRun | None = None
        self._is_cool = True
        self._reporting_s = 0.0

    def do(self, run: PlannedRun, *, last_try: bool = True) -> bool:
        """Let the gap after the run before pass, then do this one; whether it has a result.

        Args:
            last_try: Whether it fails where its node is lost.

        Raises:
            RunInterruptedError: The user asked to stop.
            NodeLostError: The node is lost; what comes of the run is for whoever asked, unless it was the last try.
            PersistenceError: Nothing can be written any more.
            StudyError: Too many runs failed one after the other.
        """
        job = None if self._previous is None else self._wait_before(run, self._previous)
        self._previous = run
        if self._interrupt.requested:
            raise RunInterruptedError("interrupted between two experiments")
        self._is_cool = True  # until a run loads something, or has a result
        return self._run(run, job or self._make_job(run), last_try=last_try)

    def _wait_before(self, following: PlannedRun, previous: PlannedRun) -> Job | None:
        """Let the gap between two runs pass; returns the job whose child was started near its end, if one was."""
        job = None

        def prepare() -> None:
            nonlocal job
            job = self._make_job(following)
            self._site.launcher.prepare(job)

        if self._is_cool:
            return None
        kind, duration_s = self._terms.gaps.between(previous, following)
        wait_out(
            kind,
            duration_s,
            clock=self._terms.clock,
            observer=self._tell,
            interrupt=self._interrupt,
            prepare_next=prepare,
            skip=self._site.skip_gap,
            gone_s=self._reporting_s,
        )
        return job

    def _make_job(self, run: PlannedRun) -> Job:
        work_dir = self._terms.work_dir / f"run-{run.position:05d}"
        self._ledger.check_directory()
        with naming_the_path(work_dir, "create"):
            work_dir.mkdir()
        machine, execution = self._terms.machine, self._terms.execution
        return Job(
            config=run.config,
            machine=machine,
            work_dir=work_dir,
            baselines=self._baselines,
            timeout_s=timeout_s(run.config, machine, execution),
            silence_s=silence_s(run.config, machine, execution),
        )

    def _run(self, run: PlannedRun, job: Job, *, last_try: bool) -> bool:
        clock, node = self._terms.clock, self._site.node
        notes = self._leftovers()
        self._ledger.begin(run, node)
        began_s = clock.now()
        self._reporting_s = 0.0
        try:
            measured = self._site.launcher.run(job, self._follow, self._interrupt)
        except RunInterruptedError:
            self._ledger.interrupted(run, job)
            raise
        except PersistenceError:  # the job's own directory cannot be written to: no run would fare better
            raise
        except LLEMError as error:
            lost = isinstance(error, NodeLostError)
            if lost and not last_try:
                self._ledger.lost(run, job)
            else:
                self._ledger.fail(run, job, error, duration_s=clock.now() - began_s, node=node)
            if lost:
                raise
            return False
        self._is_cool = False
        duration_s = clock.now() - began_s
        kept_in = self._ledger.succeed(run, job, measured, notes=notes, duration_s=duration_s, node=node)
        self._baselines = measured.baselines
        began_s = clock.now()
        self._ledger.report(kept_in, None if self._site.page is None else self._site.page(kept_in))
        self._reporting_s = clock.now() - began_s
        return True

    def _leftovers(self) -> list[str]:
        notes = []
        for message in self._site.leftovers():
            self._tell(StudyWarning(message))
            _log.warning("%s", message)
            notes.append(str(MeasurementWarning(WarningCode.GPU_MEMORY_LEFT_BEHIND, message)))
        return notes

    def _follow(self, event: Event) -> None:
        if isinstance(event, StepStarted) and event.step != "preflight":
            self._is_cool = False
        self._tell(event)

    def _tell(self, event: PlaceEvent) -> None:
        """Tell what happens here; of a node, whose it is."""
        self._ledger.tell(event if self._site.node is None else OnNode(self._site.node, event))
