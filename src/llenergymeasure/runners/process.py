"""A job's process from the launcher's side: start, tell, hear, stop, kill, and leave no orphans.

Each is a fresh interpreter (not forked, because CUDA does not survive that; not a daemon, because an engine may have
workers of its own), leader of its own process group, on this machine or wherever its `Place` says. Threads drain its
pipes while it runs, so that it never waits for its launcher: messages go to a mailbox, progress events to the observer,
output to a file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol, get_args

from llenergymeasure.constants import VERSION
from llenergymeasure.core.host.processes import descendants_of, is_running, kill_process
from llenergymeasure.core.host.threads import started
from llenergymeasure.core.progress import Event, Observer, ignore_events
from llenergymeasure.domain.readable import counted
from llenergymeasure.exceptions import LLEMError
from llenergymeasure.runners.child import DEFAULT_ENTRY, Go, Message, Open, from_line, to_line
from llenergymeasure.runners.guardian import END_TIMEOUT_S
from llenergymeasure.runners.output import ChildLog

DRAIN_TIMEOUT_S: Final = 5.0
"""How long to wait for the end of a process group that has been killed, and for its last output, in seconds."""

LONGEST_LINE_BYTES: Final = 1 << 29
"""A line of replies longer than this is no message: the largest is a result that no file could be written for."""

MAX_NO_MESSAGES: Final = 1000
"""Lines among the replies that are kept to tell of, when there is no result."""

LONGEST_STEP_S: Final = 1.0
"""Time between two looks at a stopwatch that counts, in seconds; beyond it, this process did not run."""

_BOOT: Final = (
    f"import sys; sys.path[:] = sys.argv.pop(1).split({os.pathsep!r}); "
    "from llenergymeasure.runners.child import main; main()"
)
"""`python -m llenergymeasure.runners.job`, but with the modules that this process would import: with `-m`, files that
happen to lie in the current directory would come before Python's own."""

_SHOWN_BYTES: Final = 80

_EXITS: Final = {
    signal.SIGKILL: "killed by signal 9 (SIGKILL): out of memory? The kernel's log (dmesg) tells",
    signal.SIGSEGV: "segmentation fault (signal 11)",
    signal.SIGABRT: "aborted (signal 6): a failed assertion in a native library",
    signal.SIGBUS: "bus error (signal 7): often a full /dev/shm",
    signal.SIGTERM: "ended by signal 15 (SIGTERM) from outside",
}

_EVENTS: Final = get_args(Event)

_log = logging.getLogger(__name__)


class Place(Protocol):
    """Where a child's interpreter runs."""

    def command(self, task: ChildTask) -> list[str]:
        """What to start here: the job's streams are the streams of this process, and it ends as the job does."""

    def clear(self) -> None:
        """End what may be left when the process that was started here has ended; safe to call at any time."""

    def refusal(self, exit_code: int | None, output: str) -> LLEMError | None:
        """That nothing can run in this place, where the process ended before it said `Ready`; `None`: it may."""

    def other_release(self, version: str) -> str:
        """That a job said that it is of another release, and what to do."""

    def describe_exit(self, exit_code: int | None) -> str:
        """Why the process ended, in words."""


class Here:
    """This machine."""

    def command(self, task: ChildTask) -> list[str]:
        """The interpreter of this process, with its import path."""
        return [sys.executable, "-c", _BOOT, os.pathsep.join(map(str, sys.path)), *job_options(task)]

    def clear(self) -> None:
        """Nothing is left: process groups end with their child."""

    def refusal(self, exit_code: int | None, output: str) -> LLEMError | None:
        """A process that was started did run."""
        return None

    def other_release(self, version: str) -> str:
        """The package has changed since this process imported it."""
        return f"a job of llenergymeasure {VERSION} met release {version}. Use the same release at both ends."

    def describe_exit(self, exit_code: int | None) -> str:
        """See `describe_exit`."""
        return describe_exit(exit_code)


def job_options(task: ChildTask) -> list[str]:
    """What `python -m llenergymeasure.runners.job` is told of a task."""
    return [str(task.directory), "--attached", "--preload", ",".join(task.preload), "--entry", task.entry]


@dataclass(frozen=True, slots=True)
class ChildTask:
    """What a child is to do in its job's directory.

    Args:
        preload: Modules to import before the child says that it is ready.
        environment: Environment variables it gets besides those of this process.
        entry: `module:name` of a `runners.child.Entry`.
        cwd: The directory it works in; `None`: that of this process.
    """

    directory: Path
    log_path: Path
    preload: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    entry: str = DEFAULT_ENTRY
    cwd: Path | None = None
    place: Place = field(default_factory=Here)


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing a child's mailbox gets: its stdout is closed, so it is ending or has ended."""


Mail = tuple["Child", Message | Ended]


class Child:
    """One child process. Starting it returns at once; it imports, says `Ready` and waits for the word.

    The process that is started is the job's guardian, see `runners.guardian`. Its replies go to `mailbox`, its progress
    events to `observer`, in a thread of this object.
    """

    def __init__(self, task: ChildTask, mailbox: queue.SimpleQueue[Mail]) -> None:
        self.task = task
        self.observer: Observer = ignore_events
        self._mailbox = mailbox
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._log = ChildLog(task.log_path)
        self._no_messages: list[bytes] = []
        self._lines = 0

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        if self._process is None:
            raise RuntimeError("the child has not been started")
        return self._process.pid

    @property
    def heard(self) -> int:
        """Grows with everything it says, on whichever stream."""
        return self._lines + self._log.bytes_read

    def start(self) -> None:
        """Start the interpreter.

        Raises:
            OSError: The system refuses another process.
            ExperimentError: It refuses another thread; the process is there and wants to be killed.
        """
        task = self.task
        process = self._process = subprocess.Popen(
            task.place.command(task),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **task.environment},
            cwd=task.cwd,
            start_new_session=True,  # Ctrl-C reaches the terminal's own session only: this process decides
        )
        # The last one ends with the first.
        sources = (self._read_messages, process.stdout), (self._log.drain, process.stderr), (self._tell_events,)
        for work, *source in sources:
            self._threads.append(started(threading.Thread(target=work, args=source, name="llem-child", daemon=True)))

    def send(self, message: Go | Open) -> None:
        """Tell the child to begin, or to pass the barrier."""
        # One that died a moment ago: its end is in the mailbox and says more than a broken pipe does.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(to_line(message))
                self._process.stdin.flush()

    def has_exited(self) -> bool:
        """Whether the process has ended. It stays a zombie until `kill_group`, so that its id is not used again."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else has reaped it
            return True

    def wait(self, timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the process to end, at most `timeout_s` and until `give_up` says so; whether it has ended."""
        return _wait_until(self.has_exited, timeout_s, give_up)

    def terminate(self) -> None:
        """Ask for an orderly end: SIGTERM to the job, which unloads its engine and with it the engine's workers."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
                os.killpg(self.pid, signal.SIGCONT)  # whoever was stopped could not hear it

    def kill_group(self) -> None:
        """Kill the child and everything it has started, then wait for its end and its last output; safe to repeat."""
        if self._process is None or self._process.returncode is not None:
            return
        offspring = descendants_of(self.pid)
        self._hang_up()
        self.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # a guardian that was killed, or that does not get through
            os.killpg(self.pid, signal.SIGKILL)
        for process in offspring:
            kill_process(process)
        self._process.wait()
        self.task.place.clear()
        if not _wait_until(lambda: not any(map(is_running, offspring)), DRAIN_TIMEOUT_S):
            # What engine workers hold on a GPU is free only when they are gone.
            left = [process.pid for process in offspring if is_running(process)]
            _log.warning("%s has left processes that do not end: %s", self.task.log_path.stem, left)
        _reap_group(self.pid)
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            _log.warning("%s has left a process that still has its output open", self.task.log_path.stem)

    def _hang_up(self) -> None:
        """Close the job's stdin: its guardian then kills all there is."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a last word that it did not hear
                self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    def refusal(self) -> LLEMError | None:
        """That its place can run nothing; after `kill_group` of one that ended by itself and before `Ready`."""
        exit_code = None if self._process is None else self._process.returncode
        return self.task.place.refusal(exit_code, self._log.recent())

    def describe_end(self) -> str:
        """Why the process ended without a result, in words; after `kill_group` of one that ended by itself."""
        cause = self.task.place.describe_exit(None if self._process is None else self._process.returncode)
        if self._no_messages:
            lines = counted(len(self._no_messages), "line")
            cause += f"; {lines} among its replies were no messages, the first: {self._no_messages[0]!r}"
        last_line = self._log.last_line()
        return f"{cause} (last output: {last_line})" if last_line else cause

    def _read_messages(self, source: IO[bytes]) -> None:
        try:
            with source:
                while line := source.readline(LONGEST_LINE_BYTES):
                    self._take_line(line)
        except (OSError, MemoryError) as error:
            _log.warning("Cannot read what %s replies: %s", self.task.log_path.stem, error or "out of memory")
        finally:
            self._events.put(None)
            self._mailbox.put((self, Ended()))

    def _take_line(self, line: bytes) -> None:
        self._lines += 1
        message = from_line(line)
        if isinstance(message, _EVENTS):
            self._events.put(message)
        elif message is not None:
            self._mailbox.put((self, message))
        elif len(self._no_messages) < MAX_NO_MESSAGES:
            self._no_messages.append(line[:_SHOWN_BYTES])

    def _tell_events(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self.observer(event)
            except Exception:  # noqa: BLE001 (an observer that cannot draw must not cost the measurement)
                _log.exception("The observer of progress events failed on %r", event)


def _reap_group(group: int) -> None:
    """Reap orphans of a process group that were handed to this process: as the first one of a container, say."""

    def all_reaped() -> bool:
        try:
            while os.waitpid(-group, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return True
        return False

    _wait_until(all_reaped, DRAIN_TIMEOUT_S)


def _wait_until(condition: Callable[[], bool], timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> bool:
    stopwatch = Stopwatch()
    while not condition():
        if give_up() or stopwatch.elapsed_s() >= timeout_s:
            return False
        time.sleep(0.02)
    return True


class Stopwatch:
    """How long this process has waited; time in which it was stopped (Ctrl-Z) or slept with its machine does not count.

    Whoever waits has to look at it all the time.
    """

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self._seen_s = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since it was made, as far as they count."""
        now_s = time.monotonic()
        self._elapsed_s += min(now_s - self._seen_s, LONGEST_STEP_S)
        self._seen_s = now_s
        return self._elapsed_s


def describe_exit(exit_code: int | None) -> str:
    """Why a process ended, in words; an exit code is negative for a signal."""
    if exit_code is None:
        return "ended in an unknown way"
    if exit_code >= 0:
        return f"ended with exit code {exit_code} and without a result"
    number = -exit_code
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"killed by signal {number}"
    return _EXITS.get(known, f"killed by signal {number} ({known.name})")
