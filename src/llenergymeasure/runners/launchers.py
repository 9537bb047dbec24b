"""The runners there are, by name, and how each job finds its own. Today: a fresh process on this machine per job."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from llenergymeasure.core.backends.registry import preload_modules
from llenergymeasure.core.progress import Observer
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.runners.child import DEFAULT_ENTRY
from llenergymeasure.runners.job import LOCAL_RUNNER, Job, MeasuredRun, run_from_json, write_job
from llenergymeasure.runners.process import ChildTask
from llenergymeasure.runners.supervise import ChildFailedError, ChildGroup, Interrupt, Patience

_log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Runs jobs in isolation, one at a time."""

    def prepare(self, job: Job) -> None:
        """Get ready for `job`, which comes next: imports, say. Returns at once and must not fail."""

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run `job` to its end.

        Raises:
            LLEMError: It failed; nothing of it is left running.
            PersistenceError: Its directory cannot be written to.
            RunInterruptedError: `interrupt` was requested; it has been torn down.
        """

    def discard(self) -> None:
        """End what `prepare` started for a job that will not come; safe to call at any time."""


class ProcessLauncher:
    """Runs each job in a fresh child process on this machine; `preload` gives what to import for a backend before."""

    def __init__(
        self,
        entry: str = DEFAULT_ENTRY,
        preload: Callable[[str], tuple[str, ...]] = preload_modules,
        patience: Patience | None = None,
    ) -> None:
        self._entry = entry
        self._preload = preload
        self._patience = patience or Patience()
        self._prepared: tuple[Job, ChildGroup] | None = None
        self._cwd: Path | None = None
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it
            self._cwd = Path.cwd()  # what a config names is meant from here, wherever this process goes

    def prepare(self, job: Job) -> None:
        """Start the child for `job` and let it import; call it in the thread that will call `run`."""
        self.discard()
        try:
            group = self._group(job)
            group.start()
        except (ChildFailedError, PersistenceError) as error:
            _log.warning("Could not start the next experiment's process ahead of time: %s", error)
            return
        self._prepared = job, group

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Run `job` in the child prepared for it, or else in a new one; see `Launcher.run`.

        Raises:
            ChildFailedError: It raised, crashed or took too long.
            ExperimentError: What it handed back is no result.
        """
        if self._prepared is not None and self._prepared[0] is job:
            group, self._prepared = self._prepared[1], None
        else:
            self.discard()
            group = self._group(job)
        (result,) = group.run(observer, interrupt)
        return run_from_json(MeasuredRun, result, job.work_dir)

    def discard(self) -> None:
        """Kill a prepared child, if there is one."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].kill()

    def _group(self, job: Job) -> ChildGroup:
        write_job(job)
        preload = self._preload(job.config.backend)
        task = ChildTask(job.work_dir, job.work_dir / "child.log", preload, entry=self._entry, cwd=self._cwd)
        return ChildGroup([task], self._patience, job.timeout_s)


LAUNCHERS: Final[Mapping[str, Callable[[], Launcher]]] = {
    LOCAL_RUNNER: ProcessLauncher,
}
"""Who runs jobs, by what stands before the colon where the user's settings name a runner."""


class ChosenLauncher:
    """Hands each job to the runner that the user's settings name for its backend.

    One that this release does not have is a child process, whose pre-flight says so.
    """

    def __init__(self, launchers: Mapping[str, Callable[[], Launcher]] = LAUNCHERS) -> None:
        self._launchers = {name: make() for name, make in launchers.items()}

    def prepare(self, job: Job) -> None:
        """Let the job's runner get ready for it."""
        self._of(job).prepare(job)

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        """Let the job's runner run it; see `Launcher.run`."""
        return self._of(job).run(job, observer, interrupt)

    def discard(self) -> None:
        """End what was prepared and will not come."""
        for launcher in self._launchers.values():
            launcher.discard()

    def _of(self, job: Job) -> Launcher:
        named = job.machine.runners.of(job.config.backend).partition(":")[0]
        return self._launchers.get(named, self._launchers[LOCAL_RUNNER])
