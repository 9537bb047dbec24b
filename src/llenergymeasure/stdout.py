"""Standard streams, which a daemon may have closed, and output, which a full disk or a leaving reader may take away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Final, NoReturn

_STANDARD: Final = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def run_program(main: Callable[[], int]) -> NoReturn:
    """End this process with what `main` returns, whichever streams it was started with; after Ctrl-C with 130."""
    open_standard_streams()
    replace_what_streams_cannot_say()
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def open_standard_streams() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Put the null device where a standard stream is closed: the descriptors opened, and the names in `sys` filled."""
    opened = tuple(descriptor for descriptor, _, _ in _STANDARD if _open_null_device(descriptor))
    filled = []
    for descriptor, name, mode in _STANDARD:
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (stays open)
            filled.append(name)
    return opened, tuple(filled)


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
