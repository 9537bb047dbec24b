"""Each experiment to the runner that the user's settings name for its backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llenergymeasure.runners.launcher import ExperimentJob, JobOutcome, Launcher

if TYPE_CHECKING:
    from llenergymeasure.core.progress import Observer
    from llenergymeasure.runners.interrupt import Interrupt


class RunnerRouter:
    """A launcher that hands each job to another one, made when it is first needed.

    Args:
        make: Makes the launcher for a runner's name: `local`, `docker:<image>`.
    """

    def __init__(self, make: Callable[[str], Launcher]) -> None:
        self._make = make
        self._launchers: dict[str, Launcher] = {}

    def prepare(self, job: ExperimentJob) -> None:
        """Let the job's launcher get ready."""
        self._of(job).prepare(job)

    def run(self, job: ExperimentJob, observer: Observer, interrupt: Interrupt) -> JobOutcome:
        """Run the job where its backend's runner says.

        Raises:
            LLEMError: See `Launcher.run`.
        """
        return self._of(job).run(job, observer, interrupt)

    def discard(self) -> None:
        """End whatever was prepared."""
        for launcher in self._launchers.values():
            launcher.discard()

    def _of(self, job: ExperimentJob) -> Launcher:
        runner = str(getattr(job.machine.runners, job.config.backend))
        if runner not in self._launchers:
            self._launchers[runner] = self._make(runner)
        return self._launchers[runner]
