"""A study whose experiments measure nothing: `python -m tests.faults.victim DIRECTORY`, to be killed or failed.

Says `begun`, then a line per result that it was told of. Ends with 0, or with 1 and the name of a typed error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from fakes import VirtualClock
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.progress import Observer
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import LLEMError, PersistenceError
from llenergymeasure.runners.job import Job, MeasuredRun
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.execute import StudyPlace, execute_study
from study_fakes import ScriptedLauncher, result_of, study_of

RUNS = 6


def victim_study() -> StudyConfig:
    return study_of("a", "b", cycles=RUNS // 2, cycle_order="interleaved")


class Launcher(ScriptedLauncher):
    """Tells of files that fail as the real one does."""

    def run(self, job: Job, observer: Observer, interrupt: Interrupt) -> MeasuredRun:
        try:
            return super().run(job, observer, interrupt)
        except OSError as error:
            raise PersistenceError(f"Cannot write {error.filename}: {error.strerror}.") from error


def run(
    parent: Path,
    directory: Path | None = None,
    pause_s: float = 0.0,
    on_result: Callable[[ExperimentResult], None] = lambda result: None,
) -> StudyResult:
    """Run the study in a new directory below `parent`, or go on with the one in `directory`."""

    def act(job: Job) -> ExperimentResult:
        time.sleep(pause_s)
        return result_of(job.config)

    place = StudyPlace(parent=parent, resume=directory, export_csv=True)
    return execute_study(victim_study(), place, UserConfig(), on_result, launcher=Launcher(VirtualClock(), act))


def tell(result: ExperimentResult) -> None:
    say(f"result {result.model_name} {result.cycle}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    say("begun")
    try:
        run(Path(sys.argv[1]), pause_s=float(sys.argv[2]), on_result=tell)
    except LLEMError as error:
        sys.exit(f"{type(error).__name__}: {error}")
