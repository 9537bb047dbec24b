"""Descriptors 0, 1 and 2, which programs take for granted and a daemon or a scheduler may have closed.

Where one is closed, the next file that anybody opens gets its number, and is read as input or written to as a log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_STANDARD: Final = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def open_standard_streams() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Put the null device where a standard stream is closed: the descriptors opened, and the names in `sys` filled."""
    opened = tuple(descriptor for descriptor, _, _ in _STANDARD if _open_null_device(descriptor))
    filled = []
    for descriptor, name, mode in _STANDARD:
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (stays open)
            filled.append(name)
    return opened, tuple(filled)


class _Stderr:
    """What is known of this process's standard error."""

    is_kept = False


def stderr_is_kept() -> bool:
    """Whether whoever started this process keeps its standard error in a file and listens to it for signs of life."""
    return _Stderr.is_kept


def say_stderr_is_kept() -> None:
    """Make it known, for the rest of this process."""
    _Stderr.is_kept = True


@contextmanager
def standard_streams_open() -> Iterator[None]:
    """The same for the length of a `with` block, for a library: its caller's process is left as it was found."""
    opened, filled = open_standard_streams()
    try:
        yield
    finally:
        for name in filled:
            setattr(sys, name, None)
        for descriptor in opened:
            os.close(descriptor)


def _open_null_device(descriptor: int) -> bool:
    """Open the null device as `descriptor`; whether that one was closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:  # somebody else's thread has closed a lower one in between
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)
        return True
    return False
