"""Between two runs: the machine cools down, and somebody looks at what it has left and whether it still is the same.

Within a cycle the shorter `config_gap_seconds` holds, from one cycle to the next the longer `cycle_gap_seconds`.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

from packaging.utils import canonicalize_name

from llenergymeasure.config.models import ExecutionConfig
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.clock import Clock
from llenergymeasure.core.progress import SkipKey
from llenergymeasure.domain.environment import EnvironmentSnapshot
from llenergymeasure.runners.supervise import POLL_INTERVAL_S, Interrupt
from llenergymeasure.study.plan import GapEnded, GapKind, GapStarted, GapTick, PlaceEvent, PlannedRun

PREPARATION_S: Final = 10.0
"""How long before the end of a gap the next child starts its imports: long enough for an engine, too short to heat."""

TICK_S: Final = 1.0

WATCHED_PACKAGES: Final = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "flash-attn",
    "vllm",
    "tensorrt-llm",
    "tensorrt",
    "triton",
)
"""Packages whose version changes what is measured."""


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
    observer: Callable[[PlaceEvent], None],
    interrupt: Interrupt,
    prepare_next: Callable[[], None],
    skip: SkipKey | None,
    gone_s: float = 0.0,
) -> None:
    """Wait for the length of a gap, or until somebody wants to stop or to go on.

    Args:
        duration_s: Its length in seconds; nothing happens for 0.
        observer: Told the remaining time about once a second.
        prepare_next: Called once, `PREPARATION_S` before the end.
        skip: Ends the wait when it answers true; `None`: nobody can.
        gone_s: How much of it has gone by already, in seconds.
    """
    if duration_s <= 0:
        return
    while skip is not None and skip():  # what was typed before the gap was told is not about it
        pass
    observer(GapStarted(kind, duration_s, skippable=skip is not None))
    end_s = clock.now() + duration_s - gone_s
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
        if _in_background(descriptor):  # reading would stop this process
            return False
        readable, _, _ = select.select([descriptor], [], [], 0)
        return bool(readable) and source.readline() != ""

    return pressed


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # it is not the one that this process belongs to
        return False


def environment_changes(before: EnvironmentSnapshot, now: EnvironmentSnapshot) -> tuple[str, ...]:
    """What differs between two environments that may move a figure, as `name: old -> new`."""
    packages_before, packages_now = _packages(before), _packages(now)
    pairs: list[tuple[str, object, object]] = [
        ("GPUs", before.gpu_names, now.gpu_names),
        ("GPU UUIDs", before.gpu_uuids, now.gpu_uuids),
        ("GPU power limits (W)", before.gpu_power_limit_w, now.gpu_power_limit_w),
        ("NVIDIA driver", before.cuda_driver_version, now.cuda_driver_version),
        ("CUDA", before.cuda_version, now.cuda_version),
        ("CPU", before.cpu and before.cpu.model, now.cpu and now.cpu.model),
        ("platform", before.platform, now.platform),
        ("Python", before.python_version, now.python_version),
        ("llenergymeasure", before.tool_version, now.tool_version),
        *((name, packages_before.get(name), packages_now.get(name)) for name in WATCHED_PACKAGES),
    ]
    return tuple(f"{name}: {_shown(old)} -> {_shown(new)}" for name, old, new in pairs if old != new)


def _packages(environment: EnvironmentSnapshot) -> dict[str, str]:
    """Versions by normalised name."""
    pairs = (line.partition("==") for line in environment.pip_freeze)
    return {canonicalize_name(name): version for name, found, version in pairs if found}


def _shown(value: object) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
