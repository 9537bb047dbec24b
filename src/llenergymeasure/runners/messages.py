"""What a parent and its child process say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ready:
    """Child: everything is imported; waiting for the task."""


@dataclass(frozen=True, slots=True)
class AtBarrier:
    """Child: waiting for the others before the window opens."""


@dataclass(frozen=True, slots=True)
class Done:
    """Child: the task is done.

    Args:
        payload: The pickled result, or `None` when it went to `file`.
        file: Where a large result lies, pickled; the parent removes it.
    """

    payload: bytes | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Child: the task raised an exception.

    Args:
        error_type: Name of the exception's class.
        message: Its text.
        traceback: Rendered traceback, for the log.
    """

    error_type: str
    message: str
    traceback: str = ""


ChildMessage = Ready | AtBarrier | Done | Failed


@dataclass(frozen=True, slots=True)
class Go:
    """Parent: here is the task.

    Args:
        task: The pickled argument of the child's function.
        spill_dir: Where a result goes that is too large for the pipe.
    """

    task: bytes
    spill_dir: Path


@dataclass(frozen=True, slots=True)
class Open:
    """Parent: everybody is at the barrier.

    Args:
        at_s: When to go on, on the machine's monotonic clock, in seconds.
    """

    at_s: float


ParentMessage = Go | Open
