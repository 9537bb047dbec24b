"""Seeing child processes through their tasks: hand over, barrier, result, time-out, interrupt, crash.

Whatever happens, no process of a group is left when a function of this module returns or raises.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from llenergymeasure.constants import VERSION
from llenergymeasure.core.progress import Observer
from llenergymeasure.exceptions import ExperimentError, PreFlightError
from llenergymeasure.runners.child import RESULT_FILE, AtBarrier, Done, Failed, Go, Message, Open, Ready
from llenergymeasure.runners.process import Child, ChildTask, Ended, Mail, Stopwatch

POLL_INTERVAL_S: Final = 0.25
"""How often whoever waits looks at an `Interrupt`, in seconds."""

LAST_WORDS_S: Final = 1.0
"""How long a reply may take from the pipe to the mailbox after its sender's end, in seconds."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_log = logging.getLogger(__name__)


class Interrupt:
    """How often the user asked to stop: the first time for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self._requests = 0

    def request(self) -> None:
        """Ask once more; safe in a signal handler and in any thread."""
        self._requests += 1

    @property
    def requested(self) -> bool:
        """Whether to tear down and end."""
        return self._requests >= 1

    @property
    def urgent(self) -> bool:
        """Whether to end without tearing down."""
        return self._requests >= 2


@contextlib.contextmanager
def signals_as(interrupt: Interrupt) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests to `interrupt` for the length of a `with` block.

    A signal that is ignored stays so: that is how `nohup` works. Outside the main thread Python cannot install
    handlers; there the block runs without them, and whoever owns the main thread keeps its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        interrupt.request()

    heard = [name for name in _SIGNALS if signal.getsignal(name) != signal.SIG_IGN]
    previous: dict[signal.Signals, Any] = {name: signal.signal(name, on_signal) for name in heard}
    try:
        yield
    finally:
        for name, handler in previous.items():
            # None: installed by something other than Python, which cannot be put back from here.
            signal.signal(name, signal.SIG_DFL if handler is None else handler)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds.

    Args:
        imports_s: From the start of the interpreter to `Ready`.
        teardown_s: From SIGTERM to SIGKILL.
        exit_s: From the result to the end of the process; an engine's threads may hang there.
    """

    imports_s: float = 600.0
    teardown_s: float = 20.0
    exit_s: float = 20.0


class ChildFailedError(ExperimentError):
    """A child ended without a result; `error_type` is the name of an exception's class, or `Crash` or `Timeout`."""

    def __init__(self, error_type: str, message: str, traceback: str = "") -> None:
        self.error_type = error_type
        self.traceback = traceback
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ChildFailedError], tuple[str, str, str]]:
        return (type(self), (self.error_type, str(self), self.traceback))


class RunInterruptedError(ExperimentError):
    """The user asked to stop while a child was at work."""


class ChildGroup:
    """Children that work on one run together, most often just one.

    Args:
        task_s: How long it may take, in seconds; `None`: for ever.
        silence_s: How long none of them may say anything at its task, in seconds: no event, and no line of output.
    """

    def __init__(
        self,
        tasks: Sequence[ChildTask],
        patience: Patience,
        task_s: float | None = None,
        silence_s: float | None = None,
    ) -> None:
        self._mailbox: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.children = tuple(Child(task, self._mailbox) for task in tasks)
        self._patience = patience
        self._task_s = task_s
        self._silence_s = silence_s
        self._heard = 0
        self._silent = Stopwatch()
        self._waited: Stopwatch | None = None
        self._ready: set[Child] = set()
        self._at_barrier: dict[Child, AtBarrier] = {}
        self._results: dict[Child, str] = {}
        self._reported: set[Child] = set()
        self._exit_seen_s: dict[Child, float] = {}

    def start(self) -> None:
        """Start the interpreters, so that their imports are done when `run` is called; calling it again does nothing.

        Raises:
            ChildFailedError: The system refuses another process or thread; nothing is left running.
        """
        if self._waited is not None:
            return
        self._waited = Stopwatch()
        try:
            for child in self.children:
                child.start()
        except (OSError, ExperimentError) as error:  # no process, no descriptor or no thread to be had
            self.kill()
            raise ChildFailedError("Crash", f"a child process could not be started: {error}") from error

    def run(self, observer: Observer, interrupt: Interrupt) -> list[str]:
        """Let every child do its task; their results as JSON, in order.

        Args:
            observer: Told what the first of them does; the others do the same.

        Raises:
            PreFlightError: Where a child was to run nothing can run, or another release does.
            ChildFailedError: A child raised, crashed or took too long. The others have been stopped.
            RunInterruptedError: The user asked to stop. All have been stopped.
        """
        self.children[0].observer = observer
        self.start()
        try:
            self._see_through(interrupt)
        except BaseException as error:  # also Ctrl-C and SIGTERM, where this process is a child itself
            self._tear_down(interrupt)
            self.kill()
            if not isinstance(error, ExperimentError) or not self._arrived_after_all():
                raise
        finally:
            self.kill()
        return [self._results[child] for child in self.children]

    def _see_through(self, interrupt: Interrupt) -> None:
        while len(self._results) < len(self.children):
            with contextlib.suppress(queue.Empty):
                self._take(*self._mailbox.get(timeout=POLL_INTERVAL_S))
            if interrupt.requested:
                raise RunInterruptedError("interrupted")
            self._check_time()
            self._check_alive()
        for child in self.children:
            if not child.wait(self._patience.exit_s, lambda: interrupt.requested):
                _log.warning("%s gave its result and did not end; killing it", child.task.log_path.stem)

    def _arrived_after_all(self) -> bool:
        """Whether every result has come while this process was busy giving up: what was measured counts."""
        with contextlib.suppress(queue.Empty):
            while True:
                child, message = self._mailbox.get_nowait()
                if isinstance(message, Done):
                    self._results[child] = _result_of(child, message)
        return len(self._results) == len(self.children)

    def kill(self) -> None:
        """Kill what is left of all children, at once."""
        for child in self.children:
            child.kill_group()

    def _take(self, child: Child, message: Message | Ended) -> None:
        if isinstance(message, Ready):
            if message.version != VERSION:
                raise PreFlightError([child.task.place.other_release(message.version or "unknown")])
            self._ready.add(child)
            if len(self._ready) == len(self.children):  # one child's imports must not disturb another's baseline
                self._waited = Stopwatch()
                for each in self.children:
                    each.send(Go())
        elif isinstance(message, AtBarrier):
            self._at_barrier[child] = message
            if len(self._at_barrier) == len(self.children):
                opening = Open(time.monotonic() + max(waiting.lead_s for waiting in self._at_barrier.values()))
                self._at_barrier.clear()
                for each in self.children:
                    each.send(opening)
        elif isinstance(message, Done):
            self._reported.add(child)
            self._results[child] = _result_of(child, message)
        elif isinstance(message, Failed):
            self._reported.add(child)
            raise ChildFailedError(str(message.error_type), str(message.message), str(message.traceback))
        elif isinstance(message, Ended) and child not in self._results:
            self._fail_as_crashed(child)

    def _check_time(self) -> None:
        waited_s = 0.0 if self._waited is None else self._waited.elapsed_s()
        if len(self._ready) < len(self.children):
            if waited_s > self._patience.imports_s:
                raise ChildFailedError("Timeout", f"its imports took longer than {self._patience.imports_s:.0f} s")
            return  # imports say nothing, however well they go
        if self._task_s is not None and waited_s > self._task_s:
            raise ChildFailedError(
                "Timeout",
                f"took longer than {self._task_s:.0f} s and was stopped. "
                "Raise execution.experiment_timeout_seconds if it needs more.",
            )
        self._check_silence()

    def _check_silence(self) -> None:
        heard = sum(child.heard for child in self.children)
        if heard != self._heard:
            self._heard, self._silent = heard, Stopwatch()
        elif self._silence_s is not None and self._silent.elapsed_s() > self._silence_s:
            raise ChildFailedError(
                "Timeout",
                f"gave no sign of progress for {self._silence_s:.0f} s and was stopped. "
                "Raise a study's execution.silence_timeout_seconds if it may be silent for longer.",
            )

    def _check_alive(self) -> None:
        # A process that an engine forked may hold the reply pipe open after the child's death: then no `Ended` comes.
        now_s = time.monotonic()
        for child in self.children:
            if child in self._reported or not child.has_exited():
                continue
            if now_s - self._exit_seen_s.setdefault(child, now_s) > LAST_WORDS_S:
                self._fail_as_crashed(child)

    def _fail_as_crashed(self, child: Child) -> None:
        child.wait(self._patience.exit_s)
        child.kill_group()
        refusal = None if child in self._ready else child.refusal()
        raise refusal or ChildFailedError("Crash", child.describe_end())

    def _tear_down(self, interrupt: Interrupt) -> None:
        for child in self.children:
            if child not in self._reported:
                child.terminate()
        deadline_s = time.monotonic() + self._patience.teardown_s
        for child in self.children:
            child.wait(deadline_s - time.monotonic(), lambda: interrupt.urgent)


def _result_of(child: Child, message: Done) -> str:
    """The result that a child sent, or left in its directory."""
    if message.result is not None:
        return message.result
    path = child.task.directory / RESULT_FILE
    try:
        result = path.read_text(encoding="utf-8")
        path.unlink()
    except (OSError, UnicodeError) as error:
        raise ChildFailedError("Crash", f"its result, left in {path}, could not be read: {error}") from error
    return result
