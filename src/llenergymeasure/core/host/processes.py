"""Telling a process from a later one that got the same number."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ProcessIdentity(BaseModel):
    """A process, for as long as machines can be told apart; `None` where this system does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int = Field(gt=0, description="Process number.")
    started_ticks: int | None = Field(default=None, description="When it began, in clock ticks since the boot.")
    boot_id: str | None = Field(default=None, description="The boot it ran under.")
    host: str | None = Field(default=None, description="Name of the machine or container.")


def current_process() -> ProcessIdentity:
    """This process."""
    return identify_process(os.getpid())


def identify_process(pid: int) -> ProcessIdentity:
    """The process that has the number `pid` now, on this machine."""
    return ProcessIdentity(
        pid=pid, started_ticks=_start_time(_stat(pid)), boot_id=_boot_id(), host=socket.gethostname()
    )


def is_running(process: ProcessIdentity) -> bool:
    """Whether `process` is still there.

    A process of another machine cannot be looked at and counts as running: a directory may be shared.
    """
    if process.host is not None and process.host != socket.gethostname():
        return True
    if process.boot_id is not None and process.boot_id != _boot_id():
        return False
    if not _exists(process.pid):
        return False
    fields = _stat(process.pid)
    if not fields:
        return True
    is_zombie = fields[0] in ("Z", "X")
    return not is_zombie and process.started_ticks in (None, _start_time(fields))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _stat(pid: int) -> list[str]:
    """Fields of `/proc/<pid>/stat` from the third one on; the second, the command, may hold spaces and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _start_time(fields: list[str]) -> int | None:
    """Field 22, `starttime` (proc_pid_stat(5))."""
    return int(fields[19]) if len(fields) > 19 else None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
