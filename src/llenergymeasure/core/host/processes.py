"""Processes of this machine: which one it is, who belongs to its family, and who is a stranger."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

MAX_PID: Final = 2**31 - 1
"""What a process number has room for (`pid_t`)."""

_PF_FORKNOEXEC: Final = 0x40  # linux/sched.h


class ProcessIdentity(BaseModel):
    """A process that is not mistaken for a later one with the same number; `None` where this system does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int = Field(gt=0, le=MAX_PID, description="Process number.")
    started_ticks: int | None = Field(default=None, description="When it began, in clock ticks since the boot.")
    boot_id: str | None = Field(default=None, description="The boot it ran under.")
    host: str | None = Field(default=None, description="Name of the machine or container.")


def current_process() -> ProcessIdentity:
    """This process."""
    return identify_process(os.getpid())


def identify_process(pid: int) -> ProcessIdentity:
    """The process that has the number `pid` now, on this machine."""
    return ProcessIdentity(pid=pid, started_ticks=_started_ticks(pid), boot_id=_boot_id(), host=socket.gethostname())


def is_running(process: ProcessIdentity) -> bool:
    """Whether `process` is still there; one that has ended and waits for its parent to notice is not.

    A process of another machine cannot be looked at and counts as running: a directory may be shared.
    """
    import psutil  # it costs some milliseconds, and few commands ask

    if process.host is not None and process.host != socket.gethostname():
        return True
    if process.boot_id is not None and process.boot_id != _boot_id():
        return False
    try:
        if psutil.Process(process.pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody else's process
        return True
    return process.started_ticks in (None, _started_ticks(process.pid))


def kill_process(process: ProcessIdentity) -> None:
    """Kill a process if it still is the one it was."""
    if is_running(process):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(process.pid, signal.SIGKILL)


def descendants_of(pid: int) -> tuple[ProcessIdentity, ...]:
    """All living descendants of a process, those in sessions of their own included; none where it cannot be told."""
    import psutil

    try:
        return tuple(identify_process(child.pid) for child in psutil.Process(pid).children(recursive=True))
    except (psutil.Error, OSError):  # it is gone, or this process has no descriptor left to look with
        return ()


def command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; none where it is not told."""
    import psutil

    try:
        return tuple(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ()


def relatives(pid: int | None = None) -> frozenset[int]:
    """Numbers of a process (or of this one), its ancestors and its descendants, the system's first one left out."""
    import psutil

    me = os.getpid() if pid is None else pid
    try:
        process = psutil.Process(me)
        family = [*process.parents(), *process.children(recursive=True)]
    except psutil.Error:
        family = []
    return frozenset({me, *(relative.pid for relative in family if relative.pid > 1)})


def process_exists(pid: int) -> bool:
    """Whether a process with this number is visible here."""
    import psutil

    return bool(psutil.pid_exists(pid))


def foreign_pids(listed: Sequence[int], own: Collection[int], is_visible: Callable[[int], bool]) -> tuple[int, ...]:
    """Those of `listed` that belong to somebody else.

    Inside a container a driver may list numbers of the host's namespace, which mean nothing here. Such hidden ones are
    taken for others' only where that is certain; where it is not, nothing is said.

    Args:
        listed: Process ids that the driver lists for a device.
        is_visible: Whether a process with this id exists in this process's view.
    """
    hidden = [pid for pid in listed if not is_visible(pid)]
    foreign = [pid for pid in listed if pid not in own and pid not in hidden]
    same_namespace = any(pid in own for pid in listed)
    if same_namespace or len(hidden) > len(own):  # otherwise the hidden ones may be ours, seen from outside
        foreign += hidden
    return tuple(foreign)


def is_forked() -> bool:
    """Whether this process was forked from a running program and goes on in it, without that one's threads.

    Linux tells by the flag PF_FORKNOEXEC (proc_pid_stat(5), field 9); elsewhere nobody does, and the answer is no.
    """
    try:
        flags = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & _PF_FORKNOEXEC)


def _started_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: no clock that is set in between changes that."""
    import psutil

    try:
        boot_s = psutil.boot_time()  # first, because older releases of psutil keep it for what follows
        started_s: float = psutil.Process(pid).create_time() - boot_s
    except (psutil.Error, OSError):
        return None
    return round(started_s * os.sysconf("SC_CLK_TCK"))


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
