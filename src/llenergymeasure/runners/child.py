"""A job's process from the inside: take the streams over, import, wait for the word, run, report.

    stdin ──> Go, Open          of a launcher, where there is one (`--attached`)
    stdout ─> Ready, AtBarrier, progress events, and Done or Failed as the last
    stderr ─> whatever is printed or logged, by Python or by a library

An attached process never outlives its launcher: `runners.guardian` stands between them.

Importing this module costs next to nothing; what a run needs is imported after the process has tied itself to its
launcher and redirected its output, so that nothing it does or prints can be lost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final, Literal, NoReturn, TextIO, TypeVar, cast, get_args, get_origin, get_type_hints

from llenergymeasure.constants import VERSION
from llenergymeasure.core.host.streams import say_stderr_is_kept
from llenergymeasure.core.host.threads import started
from llenergymeasure.core.progress import Event
from llenergymeasure.exceptions import ENDINGS
from llenergymeasure.runners.guardian import go_on_guarded
from llenergymeasure.stdout import open_standard_streams

DEFAULT_ENTRY: Final = "llenergymeasure.runners.local:run_job"
"""What a job runs: imported by name, because the runners build on this module."""

DIRECTORY_VARIABLE: Final = "LLEM_JOB_DIR"
"""Environment variable with the job's directory, where the command does not name it."""

RESULT_FILE: Final = "result.json"
ERROR_FILE: Final = "error.json"

PIPE_LIMIT_BYTES: Final = 1_000_000
"""A result above this size goes through a file, also where a launcher listens."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Job: everything is imported; waiting for the word to begin. `version`: its release."""

    version: str = ""


@dataclass(frozen=True, slots=True)
class AtBarrier:
    """Job: waiting for the others; wants to be told `lead_s` ahead, in seconds, when all go on."""

    lead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """Job: the run is over; its result as JSON, or `None` when that lies in `result.json`."""

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Job: it raised an exception of class `error_type`."""

    error_type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Go:
    """Launcher: begin."""


@dataclass(frozen=True, slots=True)
class Open:
    """Launcher: everybody is at the barrier; go on at `at_s` on the machine's monotonic clock, in seconds."""

    at_s: float


Message = Ready | AtBarrier | Done | Failed | Go | Open | Event

_KINDS: Final[dict[str, type]] = {kind.__name__: kind for kind in get_args(Message)}

_Command = TypeVar("_Command", Go, Open)


def to_line(message: Message) -> bytes:
    """A message as one line of JSON."""
    return json.dumps({"is": type(message).__name__, **dataclasses.asdict(message)}).encode("ascii") + b"\n"


def from_line(line: bytes) -> Message | None:
    """The message of a whole line; `None` where it is something else, such as what a library has printed."""
    if not line.endswith(b"\n"):  # its sender died while it wrote
        return None
    try:
        fields = json.loads(line, parse_constant=_no_number)
        kind = _KINDS[fields.pop("is")]
        message: Message = kind(**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return message if all(isinstance(getattr(message, name), _TYPES[kind][name]) for name in _TYPES[kind]) else None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _types_of(hint: object) -> tuple[type, ...]:
    """What JSON may hold where a field of a message is annotated with `hint`."""
    if get_origin(hint) is Literal:
        return (str,)
    if hint is float:
        return (float, int)
    return tuple(chain.from_iterable(map(_types_of, get_args(hint)))) if get_args(hint) else (cast("type", hint),)


_TYPES: Final = {
    kind: {name: _types_of(hint) for name, hint in get_type_hints(kind).items()} for kind in _KINDS.values()
}


class ParentLink:
    """What a run can tell its launcher, and ask of it.

    Args:
        launcher_pid: Its process id.
    """

    def __init__(self, commands: BinaryIO, replies: BinaryIO, launcher_pid: int) -> None:
        self.launcher_pid = launcher_pid
        self._commands = commands
        self._replies = replies
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._sender = started(threading.Thread(target=self._send, name="llem-events", daemon=True))

    def observe(self, event: Event) -> None:
        """Pass a progress event on. Never blocks: a thread does the sending, whatever the launcher is busy with."""
        self._outbox.put(event)

    def wait_for_others(self, lead_s: float = 0.0) -> None:
        """Return when every process of this run has come here, see `core.window.Barrier`."""
        self.reply(AtBarrier(lead_s))
        time.sleep(max(0.0, self.expect(Open).at_s - time.monotonic()))

    def reply(self, message: Message) -> None:
        """Send a message, behind every event so far."""
        self._outbox.put(message)

    def expect(self, kind: type[_Command]) -> _Command:
        """The launcher's next message; waits for it.

        Raises:
            RuntimeError: There is nobody to send it, or it is another one.
        """
        message = from_line(self._commands.readline())
        if not isinstance(message, kind):
            raise RuntimeError(f"expected {kind.__name__} on stdin, got {message}")
        return message

    def flush(self) -> None:
        """Wait until everything is sent."""
        self._outbox.put(None)
        self._sender.join()

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._replies.write(to_line(message))
                self._replies.flush()
            except (TypeError, ValueError):  # an event with something in it that is no text and no number
                _log.exception("Could not send %r", message)
            except OSError:  # nobody listens any more
                return


Entry = Callable[[Path, ParentLink], str]
"""What a process runs: takes the job's directory and the link to the launcher, returns the result as JSON."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the job of a directory and leave what came of it there; of an attached one, send it to the launcher."""
    options = _parse(arguments)
    open_standard_streams()
    commands, replies = _take_over_streams()
    say_stderr_is_kept()
    launcher_pid = os.getppid()
    if not os.access(options.directory, os.R_OK | os.W_OK | os.X_OK):  # whoever started it learns so before it is ready
        sys.exit(f"a job of user {os.getuid()} cannot use its directory")
    if options.attached:
        go_on_guarded(commands.fileno())
    signal.signal(signal.SIGTERM, _on_sigterm)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    link = ParentLink(commands, replies, launcher_pid)
    outcome: Done | Failed
    try:
        run = resolve(options.entry)
        for name in filter(None, options.preload.split(",")):
            _preload(name)
        if options.attached:
            link.reply(Ready(VERSION))
            link.expect(Go)
        outcome = _delivered(run(options.directory, link), options.directory, attached=options.attached)
    except BaseException as error:  # noqa: BLE001 (whatever it was, the launcher must hear of it)
        outcome = _failure(error)
        if not options.attached:
            _leave(options.directory / ERROR_FILE, to_line(outcome))
    link.reply(outcome)
    link.flush()
    sys.exit(1 if isinstance(outcome, Failed) else 0)


def resolve(entry: str) -> Entry:
    """Import the function that `module:name` stands for.

    Raises:
        ImportError: There is no such module, or it has no such name.
    """
    module, _, name = entry.partition(":")
    try:
        run: Entry = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}") from error
    return run


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llenergymeasure.runners.job", description="Run a job.")
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=os.environ.get(DIRECTORY_VARIABLE),
        help=f"holds job.json, and then what came of it (${DIRECTORY_VARIABLE} where it is not given)",
    )
    parser.add_argument(
        "--attached", action="store_true", help="wait for the launcher's word on stdin, and end when that is closed"
    )
    parser.add_argument("--preload", default="", help="modules to import before that, separated by commas")
    parser.add_argument("--entry", default=DEFAULT_ENTRY, help="what to run, module:function")
    options = parser.parse_args(arguments)
    if options.directory is None:
        parser.error(f"give the job's directory, or set {DIRECTORY_VARIABLE}")
    return options


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for messages, out of the reach of libraries; what these print goes to stderr."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    commands, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # New streams: the old ones remember what kind of file the descriptors were.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout, sys.stderr = _line_writer(1), _line_writer(2)
    faulthandler.enable(file=sys.stderr)
    return commands, replies


def _line_writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except ENDINGS:
        raise
    except BaseException as error:  # noqa: BLE001 (an engine's import can fail in any way; the run will say it properly)
        _log.info("Could not import %s ahead of time: %s", name, error)


def _delivered(result: str, directory: Path, *, attached: bool) -> Done:
    """Leave the result in the directory where it is large or nobody listens; a pipe is slower, but needs no disk."""
    content = result.encode()
    if attached and len(content) <= PIPE_LIMIT_BYTES:
        return Done(result)
    return Done(None) if _leave(directory / RESULT_FILE, content) else Done(result)


def _leave(path: Path, content: bytes) -> bool:
    """Write a file; whether it is there."""
    try:
        path.write_bytes(content)
    except OSError as error:
        _log.warning("Could not leave %s (%s); sending it instead", path, error)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True


def _failure(error: BaseException) -> Failed:
    try:
        rendered = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        sys.stderr.write(rendered)
        message = str(error) or type(error).__name__
    except MemoryError:
        return Failed("MemoryError", "out of memory")
    return Failed(type(error).__name__, message, rendered)


class _Terminated(SystemExit):
    """SIGTERM: unwinds the stack, so that engines unload and meters stop."""


def _on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated("ended by SIGTERM")
