"""Child processes from the parent's side: start, watch, stop, kill, and leave no orphans.

Each child is a fresh interpreter (spawned, not forked, because CUDA does not survive a fork; not a daemon, because an
engine may have workers of its own), leader of its own process group. Three threads drain its pipes while it runs, so
that it never waits for its parent: replies go to a mailbox, progress events to the observer, output to a file.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from llenergymeasure.core.host.processes import ProcessIdentity, descendants_of, is_running, kill_process
from llenergymeasure.runners.child import Channels, ChildFunction, child_main
from llenergymeasure.runners.childlog import ChildLog
from llenergymeasure.runners.exits import describe_exit
from llenergymeasure.runners.messages import ChildMessage, Go, Open, ParentMessage

DRAIN_TIMEOUT_S: Final = 5.0
"""How long to wait for the end of a process group that has been killed, and for its last output, in seconds."""

_log = logging.getLogger(__name__)
_start_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ChildTask:
    """What a child is to do.

    Args:
        function: `module:name` of a `ChildFunction`; never something of the user's main module.
        argument: Its first argument; anything that can be pickled.
        work_dir: Existing directory for the child's log, and for a result too large for the pipe.
        name: Names the process and its log file.
        preload: Modules to import before the task is handed over.
        environment: Environment variables to set before anything of the task is imported.
    """

    function: str
    argument: object
    work_dir: Path
    name: str = "child"
    preload: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def log_path(self) -> Path:
        """File that keeps what the child prints and logs."""
        return self.work_dir / f"{self.name}.log"


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing a child's mailbox gets: its reply pipe is closed, so it is ending or has ended."""


Mail = tuple["Child", ChildMessage | Ended]


class Child:
    """One child process. Starting it returns at once; it imports, says `Ready` and waits for its task.

    The thread that starts it must live as long as the child: the kernel ends the child with that thread.

    Args:
        task: What it will do, when told to.
        mailbox: Takes the child's replies.
        observer: Takes its progress events, in a thread of this object.
    """

    def __init__(self, task: ChildTask, mailbox: queue.SimpleQueue[Mail], observer: Callable[[Any], None]) -> None:
        self.task = task
        self._mailbox = mailbox
        self._observer = observer
        context = multiprocessing.get_context("spawn")
        commands_in, self._commands = context.Pipe(duplex=False)
        self._replies, replies_out = context.Pipe(duplex=False)
        self._events, events_out = context.Pipe(duplex=False)
        log_in, log_out = context.Pipe(duplex=False)
        self._childs_ends = (commands_in, replies_out, events_out, log_out)
        self._child_log = ChildLog(log_in, task.log_path)
        self._process = context.Process(
            target=child_main,
            args=(task.function, task.preload, task.environment, logging.INFO, Channels(*self._childs_ends)),
            name=f"llem-{task.name}",
            daemon=False,
        )
        self._reaped = False
        self._offspring: set[ProcessIdentity] = set()
        self._readers = (
            threading.Thread(target=self._read_replies, name="llem-replies", daemon=True),
            threading.Thread(target=self._read_events, name="llem-events", daemon=True),
        )

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        if self._process.pid is None:
            raise RuntimeError("the child has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start the interpreter."""
        with _main_module_hidden():
            self._process.start()
        for end in self._childs_ends:
            end.close()  # otherwise the pipes would stay open after the child's end
        self._child_log.start()
        for reader in self._readers:
            reader.start()

    def go(self) -> None:
        """Hand over the task to a child that is ready."""
        payload = pickle.dumps(self.task.argument, protocol=pickle.HIGHEST_PROTOCOL)
        self._send(Go(payload, self.task.work_dir))

    def open_barrier(self, at_s: float) -> None:
        """Let a child that waits at the barrier go on at `at_s` on the machine's monotonic clock."""
        self._send(Open(at_s))

    def has_exited(self) -> bool:
        """Whether the process has ended. It stays a zombie until `reap`, so that its group id is not used again."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else has reaped it
            return True

    def wait(self, timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the process to end, at most `timeout_s` and until `give_up` says so; whether it has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not self.has_exited():
            if give_up() or time.monotonic() >= deadline_s:
                return False
            time.sleep(0.02)
        return True

    def terminate(self) -> None:
        """Ask for an orderly end: SIGTERM to the child, which unloads its engine and with it the engine's workers."""
        if self._process.pid is not None and not self._reaped:
            self._offspring.update(descendants_of(self.pid))  # once it has ended, nobody knows which were its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """Kill the child and everything it has started, then wait for its end and its last output; safe to repeat."""
        if self._process.pid is None or self._reaped:
            return
        self._offspring.update(descendants_of(self.pid))
        with contextlib.suppress(ProcessLookupError):  # no group: it had not come far enough to make one
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for process in self._offspring:
            kill_process(process)
        self._process.join()
        self._wait_for_offspring()
        self._reaped = True
        self._commands.close()
        self._child_log.finish(DRAIN_TIMEOUT_S)
        for reader in self._readers:
            reader.join(DRAIN_TIMEOUT_S)

    def describe_end(self) -> str:
        """Why the process ended without a result, in words; after `kill_group` of one that ended by itself."""
        cause = describe_exit(self._process.exitcode)
        last_line = self._child_log.last_line()
        return f"{cause} (last output: {last_line})" if last_line else cause

    def _wait_for_offspring(self) -> None:
        """Wait for engine workers to be gone: what they hold on a GPU is free only then."""
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while left := [process.pid for process in self._offspring if is_running(process)]:
            if time.monotonic() >= deadline_s:
                _log.warning("%s has left processes that do not end: %s", self.task.name, left)
                return
            time.sleep(0.02)

    def _send(self, message: ParentMessage) -> None:
        # A child that died a moment ago: its end is in the mailbox and says more than a broken pipe does.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._commands.send(message)

    def _read_replies(self) -> None:
        for message in _messages(self._replies):
            self._mailbox.put((self, message))
        self._mailbox.put((self, Ended()))

    def _read_events(self) -> None:
        for event in _messages(self._events):
            try:
                self._observer(event)
            except Exception:  # noqa: BLE001 (an observer that cannot draw must not cost the measurement)
                _log.exception("The observer of progress events failed on %r", event)


def function_path(function: ChildFunction) -> str:
    """`module:name` of a function, for a child to import.

    Raises:
        ValueError: A fresh interpreter could not import it: it lives in the main module, in another function, or has
            no name.
    """
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "<" in name:
        raise ValueError(
            f"{module}.{name} cannot run in a child: only a function at the top level of an importable module can"
        )
    return f"{module}:{name}"


def _messages(source: Connection[Any, Any]) -> Iterator[Any]:
    """Everything that comes through a pipe until its other end is closed, a half message at the end left out."""
    with source:
        while True:
            try:
                yield source.recv()
            except (EOFError, OSError):
                return


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep the user's main module out of a child that is started inside this block.

    `multiprocessing` would have the child import it again to unpickle what lives there, and so run an unguarded script
    a second time. A spec named `__main__` is how `multiprocessing.spawn` recognises a package's `__main__.py`, which it
    leaves alone; nothing of the main module itself changes but that attribute, for some milliseconds.
    """
    main: ModuleType = sys.modules["__main__"]
    with _start_lock:
        spec = main.__spec__
        main.__spec__ = ModuleSpec("__main__", loader=None)
        try:
            yield
        finally:
            main.__spec__ = spec
