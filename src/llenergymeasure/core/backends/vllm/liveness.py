"""An engine core in a process of its own, and the process that uses it: what becomes of one when the other is killed.

vLLM's offline client waits for ever for a core that was killed, and a core waits for ever for a client that was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Final

from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.exceptions import EngineDeadError

from llenergymeasure.core.host.parent import end_with_parent
from llenergymeasure.core.host.threads import started

_RUN_CORE: Final = EngineCoreProc.run_engine_core


@contextmanager
def cores_end_with_this_process() -> Iterator[None]:
    """While this is open, cores that are started are killed with this process, also in the midst of loading.

    More exactly with the thread that starts them, which has to live as long as they do.
    """
    EngineCoreProc.run_engine_core = staticmethod(partial(run_core, os.getpid()))
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(_RUN_CORE)


def run_core(parent_pid: int, *args: Any, **kwargs: Any) -> None:
    """What such a core's process runs; found by its name in a fresh interpreter."""
    end_with_parent(parent_pid)
    _RUN_CORE(*args, **kwargs)


def watch_core(core: Any) -> None:
    """See to it that calls of `core` (an `EngineCoreClient`) fail once its process has ended.

    The client waits for an answer of the process on a queue, or for a result that the process owes; both would be
    waited for for ever (`SyncMPClient`, 0.30 to 0.33).

    Raises:
        ExperimentError: The system refuses another thread.
    """
    resources = getattr(core, "resources", None)
    if resources is None:  # it is in this process
        return
    ended = DefaultSelector()
    for process in resources.engine_manager.processes:
        ended.register(process.sentinel, EVENT_READ)  # a descriptor that is readable once the process is gone

    def tell() -> None:
        ended.select()
        ended.close()
        resources.engine_dead = True
        core.outputs_queue.put_nowait(EngineDeadError())
        for owed in list(core.utility_results.values()):
            with suppress(Exception):  # it was answered in the last moment
                owed.set_exception(EngineDeadError())

    started(threading.Thread(target=tell, name="vllm-liveness", daemon=True))
