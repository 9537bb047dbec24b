"""Threads: an error of ours where the system refuses one, and what many of them take of memory."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Final

from llenergymeasure.exceptions import ExperimentError

_M_ARENA_MAX: Final = -8
"""Of glibc's `malloc.h`: how many heaps there may be."""


def started(thread: threading.Thread) -> threading.Thread:
    """Start `thread`, and give it back.

    Raises:
        ExperimentError: The system refuses another thread.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise ExperimentError(
            f"the thread {thread.name} could not be started: {error}. The limit on processes and threads of this user "
            "or container (ulimit -u, pids.max) or its memory is used up."
        ) from error
    return thread


def share_one_heap() -> None:
    """Let the threads of this process share one heap from now on: for a process that is ours alone.

    By default glibc gives many threads heaps of their own, and each keeps the most that it ever held. Whoever has said
    how many there may be (`MALLOC_ARENA_MAX`) has them, and another C library is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)
