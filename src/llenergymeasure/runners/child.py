"""The child's side of an isolated run: a fresh interpreter that does one task and tells its parent how it went.

Importing this module costs next to nothing; the task's own module is imported after the child has tied itself to its
parent and redirected its output, so that nothing it does or prints can be lost.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

from llenergymeasure.runners.lifeline import lead_own_group
from llenergymeasure.runners.messages import AtBarrier, ChildMessage, Done, Failed, Go, Open, ParentMessage, Ready

PIPE_LIMIT_BYTES: Final = 1_000_000
"""A pickled result above this size goes through a file."""

EVENT_FLUSH_S: Final = 2.0
"""How long a finished child waits for its last progress events to be taken, in seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Channels:
    """The child's ends of the pipes to its parent.

    Args:
        commands: Messages from the parent.
        replies: Messages to the parent.
        events: Progress events to the parent.
        log: Takes everything that is printed, by Python or by a library.
    """

    commands: Connection[Any, Any]
    replies: Connection[Any, Any]
    events: Connection[Any, Any]
    log: Connection[Any, Any]


class ParentLink:
    """What the function of a child can tell its parent, and ask of it."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_events, name="llem-events", daemon=True)
        self._sender.start()

    def observe(self, event: object) -> None:
        """Pass a progress event on. Never blocks: a thread does the sending, whatever the parent is busy with."""
        self._events.put(event)

    def wait_for_others(self) -> None:
        """Return when every child of this run has come here: at the same instant in all of them."""
        self.reply(AtBarrier())
        message = self.next_command()
        if not isinstance(message, Open):
            raise RuntimeError(f"expected the barrier to open, got {type(message).__name__}")
        time.sleep(max(0.0, message.at_s - time.monotonic()))

    def reply(self, message: ChildMessage) -> None:
        """Send a message to the parent."""
        self._channels.replies.send(message)

    def next_command(self) -> ParentMessage:
        """The parent's next message; waits for it."""
        message: ParentMessage = self._channels.commands.recv()
        return message

    def flush(self) -> None:
        """Wait until the parent has taken every event, but not for ever."""
        self._events.put(_END)
        self._sender.join(EVENT_FLUSH_S)

    def _send_events(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, and this process with it
            while (event := self._events.get()) is not _END:
                self._channels.events.send(event)


ChildFunction = Callable[[Any, ParentLink], Any]
"""What a child runs: takes the task and the link to the parent, returns the result. Both must be picklable."""


class _Terminated(SystemExit):
    """SIGTERM: unwinds the stack, so that engines unload and meters stop."""


_END: Final = object()


def child_main(
    function: str,
    preload: Sequence[str],
    environment: Sequence[tuple[str, str]],
    log_level: int,
    channels: Channels,
) -> None:
    """Life of a child: tie to the parent, import, say so, take the task, do it, report.

    Args:
        function: `module:name` of a `ChildFunction`.
        preload: Modules that the task will need; one that is missing is the task's to complain about.
        environment: Variables to set before these are imported.
        log_level: Level of the log kept for this run.
        channels: Pipes to the parent.
    """
    lead_own_group()
    _redirect_output(channels.log)
    signal.signal(signal.SIGTERM, _on_sigterm)
    logging.basicConfig(
        stream=sys.stderr, level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    os.environ.update(environment)
    link = ParentLink(channels)
    outcome: Done | Failed
    try:
        run = resolve(function)
        for name in preload:
            _preload(name)
        link.reply(Ready())
        go = link.next_command()
        if not isinstance(go, Go):
            raise RuntimeError(f"expected a task, got {type(go).__name__}")
        outcome = _packed(run(pickle.loads(go.task), link), go.spill_dir)
    except BaseException as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        outcome = _failure(error)
    link.reply(outcome)
    link.flush()
    if isinstance(outcome, Failed):
        sys.exit(1)


def resolve(function: str) -> ChildFunction:
    """Import the function that `module:name` stands for.

    Raises:
        ImportError: There is no such module, or it has no such name.
    """
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ImportError(f"{module} has no {name}") from error
    run: ChildFunction = found
    return run


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 (an engine's import can fail in any way; the run will say it properly)
        _log.info("Could not import %s ahead of time: %s", name, error)


def _redirect_output(log: Connection[Any, Any]) -> None:
    """Send everything printed from here on into `log`, what libraries print below Python included."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    log.close()
    # New streams: the old ones remember what kind of file the descriptors were.
    sys.stdout, sys.stderr = _line_writer(1), _line_writer(2)
    faulthandler.enable(file=sys.stderr)


def _line_writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _packed(result: object, spill_dir: Path) -> Done:
    payload = pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
    if len(payload) <= PIPE_LIMIT_BYTES:
        return Done(payload=payload)
    try:
        descriptor, name = tempfile.mkstemp(prefix="result-", suffix=".pickle", dir=spill_dir)
        with open(descriptor, "wb") as file:
            file.write(payload)
    except OSError as error:  # the pipe is slower, but it needs no disk
        _log.warning("Could not leave the result in %s (%s); sending it through the pipe", spill_dir, error)
        return Done(payload=payload)
    return Done(file=Path(name))


def _failure(error: BaseException) -> Failed:
    try:
        rendered = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        sys.stderr.write(rendered)
        message = str(error) or type(error).__name__
    except MemoryError:
        return Failed("MemoryError", "out of memory")
    return Failed(type(error).__name__, message, rendered)


def _on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated("ended by SIGTERM")
