"""What a running study tells the world, besides the events of the experiments themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llenergymeasure.core.progress import Event
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.study.sequence import PlannedRun

GapKind = Literal["config", "cycle"]


@dataclass(frozen=True, slots=True)
class StudyStarted:
    """The study begins, or goes on.

    Args:
        kept: Runs that an earlier execution has completed.
        skipped: Points of the grid that are no valid experiments.
    """

    directory: Path
    total: int
    kept: int
    skipped: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run begins."""

    run: PlannedRun
    total: int


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run has ended.

    Args:
        result: Its result; `None` when it failed.
        error: Why it failed, or why its result could not be saved.
        duration_s: How long it took, in seconds.
        logs: Where the log of a run that failed is kept; `None` when there is none.
    """

    run: PlannedRun
    total: int
    result: ExperimentResult | None
    error: str | None
    duration_s: float
    logs: Path | None = None


@dataclass(frozen=True, slots=True)
class GapStarted:
    """The machine is given time to cool down; `skippable`: Enter ends it."""

    kind: GapKind
    duration_s: float
    skippable: bool


@dataclass(frozen=True, slots=True)
class GapTick:
    """A gap goes on; sent about once a second."""

    kind: GapKind
    remaining_s: float


@dataclass(frozen=True, slots=True)
class GapEnded:
    """A gap is over."""

    kind: GapKind
    skipped: bool


@dataclass(frozen=True, slots=True)
class StudyWarning:
    """Something the user should know now."""

    message: str


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Everything is on disk."""

    result: StudyResult
    directory: Path


StudyEvent = (
    StudyStarted | RunStarted | RunFinished | GapStarted | GapTick | GapEnded | StudyWarning | StudyFinished | Event
)
StudyObserver = Callable[[StudyEvent], None]


def ignore_study_events(event: StudyEvent) -> None:
    """The observer of a caller who asked for none."""
