"""Experiments in child processes on this machine: the launcher in the parent, and the work in the child."""

from __future__ import annotations

import logging
import queue
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llenergymeasure.runners.child import ChildFunction, ParentLink
from llenergymeasure.runners.launcher import ExperimentJob, JobOutcome
from llenergymeasure.runners.process import Child, ChildTask, Mail, function_path
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Patience

if TYPE_CHECKING:
    from llenergymeasure.core.progress import Event, Observer
    from llenergymeasure.runners.interrupt import Interrupt

_log = logging.getLogger(__name__)


def run_job(job: ExperimentJob, link: ParentLink) -> JobOutcome:
    """Measure one experiment in this child process.

    Args:
        job: What to run.
        link: Takes the progress events.

    Raises:
        LLEMError: See `runners.local.run_local`.
    """
    from llenergymeasure.core.baseline import BaselineCache
    from llenergymeasure.runners.local import run_local

    baselines = BaselineCache(job.baselines)
    run = run_local(job.config, job.machine, job.work_dir, observer=link.observe, baselines=baselines)
    return JobOutcome(run, baselines.entries())


class ProcessLauncher:
    """Runs each job in a fresh child process on this machine.

    Args:
        function: What the child runs; takes an `ExperimentJob`, returns a `JobOutcome`.
        preload: Modules to import while waiting for the job, by backend; `None`: those the engines name.
        patience: How long to wait for imports and for ends; the job itself says how long it may take.
    """

    def __init__(
        self,
        function: ChildFunction = run_job,
        preload: Mapping[str, tuple[str, ...]] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._function = function_path(function)
        self._preload = preload
        self._patience = patience or Patience()
        self._prepared: _Launch | None = None

    def prepare(self, job: ExperimentJob) -> None:
        """Start the child for `job` and let it import; call it in the thread that will call `run`."""
        self.discard()
        launch = self._launch(job)
        try:
            launch.group.start()
        except ChildFailedError as error:
            _log.warning("Could not start the next experiment's process ahead of time: %s", error)
            return
        self._prepared = launch

    def run(self, job: ExperimentJob, observer: Observer, interrupt: Interrupt) -> JobOutcome:
        """Run `job` in the child prepared for it, or else in a new one.

        Raises:
            ChildFailedError: It raised, crashed or took too long.
            RunInterruptedError: `interrupt` was requested.
        """
        launch, self._prepared = self._prepared, None
        if launch is None or launch.job is not job:
            if launch is not None:
                launch.group.kill()
            launch = self._launch(job)
        launch.observer = observer
        (outcome,) = launch.group.run(interrupt)
        return _checked(outcome)

    def discard(self) -> None:
        """Kill a prepared child, if there is one."""
        launch, self._prepared = self._prepared, None
        if launch is not None:
            launch.group.kill()

    def _launch(self, job: ExperimentJob) -> _Launch:
        from llenergymeasure.core.backends.registry import preload_modules

        backend = job.config.backend
        preload = preload_modules(backend) if self._preload is None else self._preload.get(backend, ())
        return _Launch(job, self._function, preload, self._patience)


class _Launch:
    """A job and its child; the observer arrives after the child has been started."""

    def __init__(self, job: ExperimentJob, function: str, preload: tuple[str, ...], patience: Patience) -> None:
        self.job = job
        self.observer: Observer | None = None
        mailbox: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        child = Child(ChildTask(function, job, job.work_dir, preload=preload), mailbox, self._observe)
        self.group = ChildGroup([child], mailbox, patience, task_s=job.timeout_s)

    def _observe(self, event: Event) -> None:
        if self.observer is not None:
            self.observer(event)


def _checked(outcome: Any) -> JobOutcome:
    if not isinstance(outcome, JobOutcome):
        raise ChildFailedError("TypeError", f"the child returned a {type(outcome).__name__} instead of a JobOutcome")
    return outcome
