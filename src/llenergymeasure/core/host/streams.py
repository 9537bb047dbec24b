"""Descriptors 0, 1 and 2, which programs take for granted and a daemon or a scheduler may have closed.

Where one is closed, the next file that anybody opens gets its number, and is read as input or written to as a log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llenergymeasure.stdout import open_standard_streams


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
