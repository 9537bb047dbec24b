"""How busy the processor is, from the kernel's own account of its time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = 100.0
"""Unit of /proc/stat as user space sees it (proc_stat(5), `USER_HZ`)."""

SHORTEST_S: Final = 0.2
"""The account is too coarse for less processor time than this."""

IDLE_COLUMNS: Final = (3, 4)
"""Idle, and waiting for a disk."""

COLUMNS: Final = 8
"""Up to time stolen by other virtual machines; what follows is in the others already."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor time by some moment, in seconds, over all hardware threads."""

    total_s: float
    idle_s: float
    own_s: float

    def busy_pct_since(self, earlier: CpuTimes) -> float | None:
        """Share of the processor that others used between two moments, 0..100; `None`: too short to tell."""
        total_s = self.total_s - earlier.total_s
        if total_s < SHORTEST_S:
            return None
        others_s = total_s - (self.idle_s - earlier.idle_s) - (self.own_s - earlier.own_s)
        return max(0.0, 100.0 * others_s / total_s)


def read_cpu_times(root: Path = Path("/")) -> CpuTimes | None:
    """The account now; `None` where the kernel keeps none that can be read."""
    try:
        label, *columns = (root / "proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        times_s = [int(ticks) / TICKS_PER_S for ticks in columns[:COLUMNS]]
        idle_s = sum(times_s[column] for column in IDLE_COLUMNS)
    except (OSError, ValueError, IndexError):
        return None
    return CpuTimes(sum(times_s), idle_s, time.process_time()) if label == "cpu" else None
