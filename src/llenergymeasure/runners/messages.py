"""What a job's process and its launcher say to each other: frozen data, one JSON line each, in either direction.

Nothing that comes through a pipe is ever run: a line is one of the types below, or it is not a message.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final, get_args

from llenergymeasure.core.progress import Event


@dataclass(frozen=True, slots=True)
class Ready:
    """Job: everything is imported; waiting for the word to begin."""


@dataclass(frozen=True, slots=True)
class AtBarrier:
    """Job: waiting for the others before the window opens."""


@dataclass(frozen=True, slots=True)
class Done:
    """Job: the run is over.

    Args:
        result: What came of it, as JSON; `None` when it lies in `result.json`.
    """

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Job: it raised an exception.

    Args:
        error_type: Name of the exception's class.
        message: Its text.
        traceback: Rendered traceback, for the log.
    """

    error_type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Go:
    """Launcher: begin."""


@dataclass(frozen=True, slots=True)
class Open:
    """Launcher: everybody is at the barrier.

    Args:
        at_s: When to go on, on the machine's monotonic clock, in seconds.
    """

    at_s: float


Message = Ready | AtBarrier | Done | Failed | Go | Open | Event

_KINDS: Final[dict[str, type]] = {kind.__name__: kind for kind in get_args(Message)}


def to_line(message: Message) -> bytes:
    """A message as one line of JSON."""
    return json.dumps({"is": type(message).__name__, **dataclasses.asdict(message)}).encode("ascii") + b"\n"


def from_line(line: bytes) -> Message | None:
    """The message of a whole line; `None` where it is something else, such as what a library has printed."""
    if not line.endswith(b"\n"):  # its sender died while it wrote
        return None
    try:
        fields = json.loads(line)
        message: Message = _KINDS[fields.pop("is")](**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return message
