"""Which processes a process has started, directly or not, those in sessions of their own included."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that is not mistaken for a later one with the same id.

    Args:
        pid: Process id.
        start_ticks: When it started, in clock ticks since the machine did.
    """

    pid: int
    start_ticks: int


def descendants_of(pid: int, proc: Path = _PROC) -> tuple[ProcessIdentity, ...]:
    """All living descendants of `pid`, as far as the kernel tells; empty where there is no `/proc`.

    Args:
        pid: The ancestor, not part of the answer.
        proc: Where the kernel shows its processes.
    """
    children: dict[int, list[ProcessIdentity]] = {}
    for directory in proc.glob("[0-9]*"):
        fields = _stat_fields(directory)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(ProcessIdentity(int(directory.name), int(fields[19])))
    found: list[ProcessIdentity] = []
    pending = [pid]
    while pending:
        born = children.get(pending.pop(), [])
        found += born
        pending += [process.pid for process in born]
    return tuple(found)


def is_alive(process: ProcessIdentity, proc: Path = _PROC) -> bool:
    """Whether a process still is the one it was and has not ended; one that waits to be reaped has ended."""
    fields = _stat_fields(proc / str(process.pid))
    return fields is not None and int(fields[19]) == process.start_ticks and fields[0] not in "ZX"


def kill_process(process: ProcessIdentity, proc: Path = _PROC) -> None:
    """Kill a process if it still is the one it was."""
    if is_alive(process, proc):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(process.pid, signal.SIGKILL)


def _stat_fields(directory: Path) -> list[str] | None:
    """Fields of a process's `stat` from the third on (`man 5 proc`); `None` when it is gone.

    The second field, the name in parentheses, may hold anything, so the others are counted from its end.
    """
    try:
        return (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
