"""The process between a launcher and its job: it sees to it that nothing of the job outlives either of them.

    launcher ── guardian (leader of its own session and process group) ── job ── engine workers …

When the job ends, the guardian kills and reaps what the job has left, and ends as the job did. When the launcher is
gone, also by SIGKILL, its end of the job's stdin is closed, and the guardian kills everything. Linux hands it every
process that has lost its parent below it, those in sessions of their own included; elsewhere its group has to do.

The guardian is a process because a thread could wait for the interpreter's lock while an engine holds it. A measurement
that goes on unseen would warm the machine that a resumed study measures on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import signal
import time
from typing import Final, NoReturn

from llenergymeasure.core.host.parent import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, end_with_parent, prctl

END_TIMEOUT_S: Final = 5.0
"""How long to wait for the end of what has been killed, in seconds."""

_HIGHEST_FD: Final = 4096
"""Beyond any descriptor that an interpreter has open at its start; the system's own limit can be a thousand million."""

_WATCHED: Final = (signal.SIGCHLD, signal.SIGTERM)
_IGNORED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)


def go_on_guarded(lifeline: int) -> None:
    """Return in a process of its own, whose parent guards it; call it before any thread starts.

    Args:
        lifeline: The reading end of a pipe whose other end only the launcher holds.
    """
    # Both ends of a pair that signals are written to: nothing that comes before the guardian listens can be missed.
    signals, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    for name in _WATCHED:
        signal.signal(name, lambda number, frame: None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    job = os.fork()
    if job != 0:
        _guard(job, lifeline, signals, signalled)
    end_with_parent(guardian)  # which may be killed itself
    signal.set_wakeup_fd(-1)
    for name in _WATCHED:
        signal.signal(name, signal.SIG_DFL)
    os.close(signals)
    os.close(signalled)


def _guard(job: int, lifeline: int, signals: int, signalled: int) -> NoReturn:
    status: int | None = None
    try:
        for name in _IGNORED:
            signal.signal(name, signal.SIG_IGN)
        # A guardian that somebody has stopped goes on when the launcher is gone.
        prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
        _close_all_but(lifeline, signals, signalled)
        status = _end_of(job, lifeline, signals)
        _end_children()
    finally:
        if status is None:  # the launcher is gone, or this process in trouble
            os.killpg(0, signal.SIGKILL)
        _end_as(status or 0)


def _end_of(job: int, lifeline: int, signals: int) -> int | None:
    """Wait for the job's end and give its status; `None` when the launcher is gone before."""
    heard = select.poll()
    heard.register(signals, select.POLLIN)
    heard.register(lifeline, 0)  # no events: commands are for the job, and a hang-up is always told
    while True:
        events = dict(heard.poll())
        if signals in events:
            numbers = os.read(signals, 512)
            if signal.SIGTERM in numbers:
                os.kill(job, signal.SIGTERM)
            if (status := _reap().get(job)) is not None:
                return status
        if lifeline in events:
            return None


def _reap() -> dict[int, int]:
    """The status of every child that has ended, by its process id."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0] != 0:
            ended[found[0]] = found[1]
    return ended


def _end_children() -> None:
    """Kill what is left below this process, generation by generation: orphans become its children."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while (children := _children()) and time.monotonic() < deadline_s:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
        _reap()


def _children() -> list[int]:
    """Children of this process, where the system lists them in `/proc` (proc_pid_stat(5), fields 1 and 4)."""
    me, found = os.getpid(), []
    with contextlib.suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


def _end_as(status: int) -> NoReturn:
    """End with a child's status, so that whoever waits for this process learns what became of that one."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's own dump is the one to keep
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _close_all_but(*kept: int) -> None:
    """An inherited end of a pipe that stays open here would hide the end of the job from the launcher."""
    low = 0
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, _HIGHEST_FD)
