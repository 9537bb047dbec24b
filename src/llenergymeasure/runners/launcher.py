"""What a study asks of whoever runs its experiments, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llenergymeasure.config.models import ExperimentConfig
    from llenergymeasure.config.user_config import UserConfig
    from llenergymeasure.core.baseline import CachedBaseline
    from llenergymeasure.core.progress import Observer
    from llenergymeasure.runners.interrupt import Interrupt
    from llenergymeasure.runners.local import MeasuredRun


@dataclass(frozen=True, slots=True)
class ExperimentJob:
    """One experiment to be run once, in isolation.

    Args:
        config: What to run.
        machine: The user's settings for this machine.
        work_dir: An existing directory for the run's files and logs, on the disk that will hold the result.
        baselines: Idle measurements that may be reused.
        timeout_s: How long it may take, in seconds.
    """

    config: ExperimentConfig
    machine: UserConfig
    work_dir: Path
    baselines: tuple[CachedBaseline, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """A finished job.

    Args:
        run: The result and its files, in the job's work directory.
        baselines: Idle measurements to hand to the next job.
    """

    run: MeasuredRun
    baselines: tuple[CachedBaseline, ...]


class Launcher(Protocol):
    """Runs jobs in isolation, one at a time."""

    def prepare(self, job: ExperimentJob) -> None:
        """Get ready for `job`, which comes next: imports, say. Returns at once and must not fail."""

    def run(self, job: ExperimentJob, observer: Observer, interrupt: Interrupt) -> JobOutcome:
        """Run `job` to its end.

        Raises:
            LLEMError: It failed; nothing of it is left running.
            RunInterruptedError: `interrupt` was requested; it has been torn down.
        """

    def discard(self) -> None:
        """End what `prepare` started for a job that will not come; safe to call at any time."""
