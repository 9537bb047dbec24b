"""The processes in which an engine computes, and what becomes of a call when one of them ends.

MPI starts them, by way of a daemon of its own that has a session to itself. Most versions do not notice that one was
killed (by the system, out of memory): the front waits for its answer for ever, and so does the engine's end. Here their
end is seen by descriptors that the system makes readable then, in the loop that waits for the answers: it costs nothing
meanwhile. That workers do not outlive this process, not even a killed one, is seen to by a process of its own
(`sentinel.py`), beside the guardian of a job and the container that it may run in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from llenergymeasure.core.backends.tensorrt import sentinel
from llenergymeasure.core.host.processes import ProcessIdentity, command_of, descendants_of, kill_process
from llenergymeasure.core.host.threads import started
from llenergymeasure.exceptions import BackendError

SERVER: Final = "mpi4py.futures.server"
"""The module that a worker runs, named by its command line."""

SHUTDOWN_TIMEOUT_S: Final = 10.0
"""How long an engine that has lost a worker may take to end, in seconds; some never do."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class WorkerEndedError(BackendError):
    """A process that the engine computes in has ended."""


MARK: Final = "TRTLLM_LLEM_ENGINE"
"""Names in the environment the engine that a process belongs to; MPI hands on what begins like this."""


class Sentinel:
    """Ends what is started while it is `marking`, once it is closed or this process is gone."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        command = [sys.executable, "-S", sentinel.__file__, f"{MARK}={self._name}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """While this is open, processes that are started belong to the engine."""
        os.environ[MARK] = self._name
        try:
            yield
        finally:
            del os.environ[MARK]

    def close(self) -> None:
        """End what is left."""
        self._process.communicate()


class Workers:
    """The worker processes of the engine that this process has started; none where it computes in this one.

    Args:
        patience_s: How long the engine may take to end without one of them, in seconds.
    """

    def __init__(self, patience_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        self._patience_s = patience_s
        self._found = tuple(worker for worker in descendants_of(os.getpid()) if SERVER in command_of(worker.pid))
        self._ends: dict[int, ProcessIdentity] = {}
        for worker in self._found:
            with suppress(OSError, AttributeError):  # no Linux of these years: nobody notices, as without this
                self._ends[os.pidfd_open(worker.pid)] = worker

    async def while_they_live(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives.

        Raises:
            WorkerEndedError: One has ended before that.
        """
        loop = asyncio.get_running_loop()
        end: asyncio.Future[ProcessIdentity] = loop.create_future()

        def ended(worker: ProcessIdentity) -> None:
            if not end.done():
                end.set_result(worker)

        for descriptor, worker in self._ends.items():
            loop.add_reader(descriptor, ended, worker)
        working = asyncio.ensure_future(work())
        try:
            await asyncio.wait((working, end), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise WorkerEndedError(
                    f"its worker process {end.result().pid} ended in the midst of it, killed or crashed. The system's "
                    "log tells whether memory ran out (dmesg, or the container's limit)"
                )
            return working.result()
        finally:
            for descriptor in self._ends:
                loop.remove_reader(descriptor)
            working.cancel()
            end.cancel()
            with suppress(asyncio.CancelledError, Exception):  # it has been told, or is not what matters
                await working

    def shut_down(self, shutdown: Callable[[], Any]) -> None:
        """Call `shutdown`, and see to it that no worker is left; without one of them it may wait for ever."""
        if not self._have_ended():
            shutdown()
        else:
            for worker in self._found:
                kill_process(worker)
            thread = started(threading.Thread(target=_quietly, args=(shutdown,), name="engine-end", daemon=True))
            thread.join(self._patience_s)
            if thread.is_alive():
                _log.warning("TensorRT-LLM has lost a worker, and did not end within %.0f s", self._patience_s)
        for descriptor in self._ends:
            os.close(descriptor)
        self._ends.clear()

    def _have_ended(self) -> bool:
        heard = select.poll()
        for descriptor in self._ends:
            heard.register(descriptor, select.POLLIN)
        return bool(heard.poll(0))


def _quietly(shutdown: Callable[[], Any]) -> None:
    """Call it where nobody waits for what it says: it misses the worker, and that has been told."""
    with suppress(Exception):
        shutdown()
