"""Runners of jobs by name, and the one there is: a fresh process on this machine for each job."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping
from typing import Final

from llenergymeasure.core.progress import Event, Observer, ignore_events
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.runners.child import DEFAULT_ENTRY
from llenergymeasure.runners.interrupt import Interrupt
from llenergymeasure.runners.job import LOCAL_RUNNER, Job, Launcher, MeasuredRun, run_from_json, write_job
from llenergymeasure.runners.process import Child, ChildTask, Mail
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Patience

ENGINE_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "pytorch": ("torch", "transformers"),
    "vllm": ("vllm",),
    "tensorrt": ("tensorrt_llm",),
}
"""What takes long to import, by backend."""

_log = logging.getLogger(__name__)


class ProcessLauncher:
    """Runs each job in a fresh child process on this machine.

    Args:
        entry: What the child runs, see `ChildTask`.
        preload: Modules to import while waiting for the job, by backend.
        patience: How long to wait for imports and for ends; the job itself says how long it may take.
    """

    def __init__(
        self,
        entry: str = DEFAULT_ENTRY,
        preload: Mapping[str, tuple[str, ...]] = ENGINE_MODULES,
        patience: Patience | None = None,
    ) -> None:
        self._entry = entry
        self._preload = preload
        self._patience = patience or Patience()
        self._prepared: _Launch | None = None

    def prepare(self, job: Job) -> None:
        """Start the child for `job` and let it import; call it in the thread that will call `run`."""
        self.discard()
        try:
            launch = self._launch(job)
            launch.group.start()
        except (ChildFailedError, PersistenceError) as error:
            _log.warning("Could not start the next experiment's process ahead of time: %s", error)
            return
        self._prepared = launch

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run `job` in the child prepared for it, or else in a new one.

        Raises:
            ChildFailedError: It raised, crashed or took too long.
            PersistenceError: The job's directory cannot be written to.
            RunInterruptedError: `interrupt` was requested.
        """
        launch, self._prepared = self._prepared, None
        if launch is None or launch.job is not job:
            if launch is not None:
                launch.group.kill()
            launch = self._launch(job)
        launch.observer = observer
        (result,) = launch.group.run(interrupt)
        try:
            return run_from_json(MeasuredRun, result, job.work_dir)
        except ValueError as error:
            raise ChildFailedError(type(error).__name__, f"the child's result is not one: {error}") from error

    def discard(self) -> None:
        """Kill a prepared child, if there is one."""
        launch, self._prepared = self._prepared, None
        if launch is not None:
            launch.group.kill()

    def _launch(self, job: Job) -> _Launch:
        write_job(job)
        task = ChildTask(
            job.work_dir, job.work_dir / "child.log", self._preload.get(job.config.backend, ()), entry=self._entry
        )
        return _Launch(job, task, self._patience)


class _Launch:
    """A job and its child; the observer arrives after the child has been started."""

    def __init__(self, job: Job, task: ChildTask, patience: Patience) -> None:
        self.job = job
        self.observer: Observer = ignore_events
        mailbox: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.group = ChildGroup([Child(task, mailbox, self._observe)], mailbox, patience, task_s=job.timeout_s)

    def _observe(self, event: Event) -> None:
        self.observer(event)


LAUNCHERS: Final[Mapping[str, Callable[[], Launcher]]] = {
    LOCAL_RUNNER: ProcessLauncher,
}
"""Who runs the jobs of a study, by the name that the user's settings give a runner."""
