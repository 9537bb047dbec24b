"""Why a process ended, in words."""

from __future__ import annotations

import signal
from typing import Final

_KNOWN: Final = {
    signal.SIGKILL: "killed by signal 9 (SIGKILL): out of memory? The kernel's log (dmesg) tells",
    signal.SIGSEGV: "segmentation fault (signal 11)",
    signal.SIGABRT: "aborted (signal 6): a failed assertion in a native library",
    signal.SIGBUS: "bus error (signal 7): often a full /dev/shm",
    signal.SIGTERM: "ended by signal 15 (SIGTERM) from outside",
}


def describe_exit(exit_code: int | None) -> str:
    """Words for an exit code as `multiprocessing` gives it: negative for a signal.

    Args:
        exit_code: The code; `None` where it is not known.
    """
    if exit_code is None:
        return "ended in an unknown way"
    if exit_code >= 0:
        return f"ended with exit code {exit_code} and without a result"
    number = -exit_code
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"killed by signal {number}"
    return _KNOWN.get(known, f"killed by signal {number} ({known.name})")
