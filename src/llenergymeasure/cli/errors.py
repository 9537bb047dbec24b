"""Exit codes, and errors as people read them: what, where, how to mend it, and no traceback unless asked for."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""An experiment, its pre-flight or a study failed."""

EXIT_USAGE: Final = 2
"""Usage or configuration."""

EXIT_INTERRUPTED: Final = 130
"""Ctrl-C, as shells count it: 128 + SIGINT."""


class UsageError(Exception):
    """Flags that do not go together."""


def exit_code_of(action: Callable[[], int], *, verbose: bool, stream: TextIO | None = None) -> int:
    """Run `action`; turn what it raises into a message on `stream` and an exit code.

    Args:
        action: The command's work; returns an exit code.
        verbose: Print the traceback too.
        stream: Where messages go; stderr by default.
    """
    stream = stream or sys.stderr
    try:
        return action()
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "Interrupted. Finished results are kept; nothing half-written is left."
        return _report(stream, message, EXIT_INTERRUPTED)
    except UsageError as error:
        return _report(stream, str(error), EXIT_USAGE)
    except Exception as error:  # noqa: BLE001 -- the last line of defence
        message, code = _explained(error)
        return _report(stream, message, code, error if verbose else None)


def _explained(error: Exception) -> tuple[str, int]:
    """What to tell about an error, and the exit code it stands for."""
    from pydantic import ValidationError

    from llenergymeasure.config.errors import describe_validation_error, problem_report
    from llenergymeasure.exceptions import ConfigError, LLEMError

    if isinstance(error, ValidationError):
        return problem_report(describe_validation_error(error)), EXIT_USAGE
    if isinstance(error, LLEMError):
        return str(error), EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error}.", EXIT_FAILED
    return (
        f"Internal error, {type(error).__name__}: {error}\n"
        "This is a fault of llenergymeasure. Run again with --verbose for the traceback, and please report it."
    ), EXIT_FAILED


def _report(stream: TextIO, message: str, code: int, traced: Exception | None = None) -> int:
    """Tell `message`, after the traceback of `traced`."""
    with suppress(OSError):  # the terminal may be gone, and with it whoever would read this
        if traced is not None:
            traceback.print_exception(traced, file=stream)
        stream.write(f"{message}\n")
        stream.flush()
    return code
