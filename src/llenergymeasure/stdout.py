"""Standard output, which a full disk or a reader who has left (`| head`) may take away."""

from __future__ import annotations

import io
import os
import sys


def write_stdout(text: str) -> bool:
    """Write `text` to stdout at once; a reader who has left (`| head`) is nobody's fault.

    Returns:
        Whether somebody still reads.

    Raises:
        OSError: The disk that it goes to is full, or fails. What is written later is lost without another error, of
            which the interpreter's end would be the last.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        if not isinstance(error, BrokenPipeError):
            raise
        return False
    return True


def discard_stdout() -> None:
    """Put the null device in the place of stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def replace_what_streams_cannot_say() -> None:
    """Let no figure be lost to an encoding that has no `±`, or to a path that is no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_or_complain(text: str) -> bool:
    """Write `text` to stdout; whether nothing went wrong, of which stderr tells otherwise."""
    replace_what_streams_cannot_say()
    try:
        write_stdout(text)
    except OSError as error:
        sys.stderr.write(f"Cannot write to stdout: {error.strerror}.\n")
        return False
    return True
