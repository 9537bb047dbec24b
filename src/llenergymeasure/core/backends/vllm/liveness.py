"""An engine core that is killed in its own process, told to whoever waits for it: vLLM's offline client does not."""

from __future__ import annotations

import threading
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from llenergymeasure.core.host.threads import started


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
