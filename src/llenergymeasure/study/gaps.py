"""Cooling down between runs, so that each starts on a machine like the one before it found.

Within a cycle the shorter `config_gap_seconds` holds, from one cycle to the next the longer `cycle_gap_seconds`.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

from llenergymeasure.config.models import ExecutionConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import Clock
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, Interrupt
from llenergymeasure.study.events import GapEnded, GapKind, GapStarted, GapTick, StudyObserver
from llenergymeasure.study.sequence import PlannedRun

PREPARATION_S: Final = 10.0
"""How long before the end of a gap the next child starts its imports: long enough for an engine, too short to heat."""

TICK_S: Final = 1.0

SkipKey = Callable[[], bool]
"""Whether the user has asked to skip the gap since the last call."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Length of the gaps of a study, in seconds."""

    config_s: float
    cycle_s: float

    def between(self, previous: PlannedRun, following: PlannedRun) -> tuple[GapKind, float]:
        """The gap between two runs: a cycle ends where the number of the cycle goes up."""
        if following.cycle > previous.cycle:
            return "cycle", self.cycle_s
        return "config", self.config_s


def gaps_of(execution: ExecutionConfig, machine: UserConfig) -> Gaps:
    """The study's own gaps, and the machine's where the study names none."""
    return Gaps(
        machine.execution.config_gap_seconds if execution.config_gap_seconds is None else execution.config_gap_seconds,
        machine.execution.cycle_gap_seconds if execution.cycle_gap_seconds is None else execution.cycle_gap_seconds,
    )


def wait_out(
    kind: GapKind,
    duration_s: float,
    *,
    clock: Clock,
    observer: StudyObserver,
    interrupt: Interrupt,
    prepare_next: Callable[[], None],
    skip: SkipKey | None = None,
) -> None:
    """Wait for the length of a gap, or until somebody wants to stop or to go on.

    Args:
        duration_s: Its length in seconds; nothing happens for 0.
        observer: Told the remaining time about once a second.
        prepare_next: Called once, `PREPARATION_S` before the end.
        skip: Ends the wait when it answers true; `None`: nobody can.
    """
    if duration_s <= 0:
        return
    observer(GapStarted(kind, duration_s, skippable=skip is not None))
    while skip is not None and skip():  # what was typed before the gap is not about it
        pass
    end_s = clock.now() + duration_s
    next_tick_s = clock.now()
    prepared = skipped = False
    while (remaining_s := end_s - clock.now()) > 0 and not interrupt.requested:
        if not prepared and remaining_s <= PREPARATION_S:
            prepare_next()
            prepared = True
        if clock.now() >= next_tick_s:
            observer(GapTick(kind, remaining_s))
            next_tick_s += TICK_S
        if skip is not None and skip():
            skipped = True
            break
        clock.sleep(min(POLL_INTERVAL_S, remaining_s))
    observer(GapEnded(kind, skipped))


def enter_key(stream: TextIO | None = None) -> SkipKey | None:
    """Looks for Enter on a terminal, stdin by default; `None` where the input is not one."""
    source = stream if stream is not None else sys.stdin
    try:
        descriptor = source.fileno()
        if not source.isatty():
            return None
    except (AttributeError, OSError, ValueError):  # no input at all, a notebook's, or a closed one
        return None

    def pressed() -> bool:
        readable, _, _ = select.select([descriptor], [], [], 0)
        return bool(readable) and source.readline() != ""

    return pressed
