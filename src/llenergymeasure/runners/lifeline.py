"""What keeps a child process from outliving its parent, also when the parent is killed with SIGKILL.

    parent ── child (leader of its own session and process group) ── engine workers …
                └─ guardian: sleeps until the parent is gone, then kills the whole group

The guardian is a separate process because a thread of the child could wait for the interpreter's lock while an engine
holds it. A measurement that goes on unseen would warm the machine that a resumed study measures on.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_HIGHEST_FD: Final = 4096
"""Beyond any descriptor that an interpreter has open at its start; the system's own limit can be a thousand million."""


def lead_own_group() -> None:
    """Become the leader of a session that ends with the parent; call first thing in a child, before any thread starts.

    Ctrl-C in a terminal reaches the terminal's own session only: the parent decides how this process ends.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("lead_own_group must be called in a process that multiprocessing started")
    os.setsid()
    _ask_kernel_to_kill_with_parent()
    if os.getppid() != parent.pid:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    if os.fork() == 0:
        _guard(parent.sentinel)


def _guard(lifeline: int) -> NoReturn:
    """Kill this process group once `lifeline`, a pipe that only the parent holds open, is closed."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.closerange(0, lifeline)  # an inherited pipe end kept open here would hide the child's end from its parent
        os.closerange(lifeline + 1, _HIGHEST_FD)
        select.select([lifeline], [], [])
    finally:
        os.killpg(0, signal.SIGKILL)
    os._exit(0)  # not reached: the signal ends this process too


def _ask_kernel_to_kill_with_parent() -> None:
    # Note that "parent" is the thread that started this process: it has to stay for as long as the child is wanted.
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without prctl: the guardian alone has to do
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
