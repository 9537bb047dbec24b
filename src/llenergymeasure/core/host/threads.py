"""Starting a thread, with an error of ours where the system refuses one."""

from __future__ import annotations

import threading

from llenergymeasure.exceptions import ExperimentError


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
