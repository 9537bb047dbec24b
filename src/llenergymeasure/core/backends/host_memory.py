"""Peak of this process's resident memory, where the model is on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from llenergymeasure.core.model.memory import MB

PROC: Final = Path("/proc/self")
RESET_PEAK_RSS: Final = "5"
"""Written to `/proc/self/clear_refs`, it makes the kernel start a new peak of the resident set (proc(5))."""


def start_rss_peak() -> bool:
    """Start a new peak; whether the kernel lets a process do that."""
    try:
        (PROC / "clear_refs").write_text(RESET_PEAK_RSS)
    except OSError:
        return False
    return True


def peak_rss_mb() -> float | None:
    """Highest resident memory of this process in MB since `start_rss_peak`; `None` where the kernel hides it."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 / MB if match else None
