"""Exit codes, and errors as people read them: what, where, how to mend it, and no traceback unless asked for."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
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
    from pydantic import ValidationError

    from llenergymeasure.config.errors import describe_validation_error
    from llenergymeasure.exceptions import ConfigError, LLEMError

    stream = stream or sys.stderr
    try:
        return action()
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "Interrupted. Finished results are kept; nothing half-written is left."
        return _report(stream, message, EXIT_INTERRUPTED)
    except (UsageError, ConfigError) as error:
        message, code = str(error), EXIT_USAGE
    except ValidationError as error:
        problems = describe_validation_error(error)
        noun = "problem" if len(problems) == 1 else "problems"
        message, code = "\n".join([*problems, f"{len(problems)} {noun}; nothing was run."]), EXIT_USAGE
    except LLEMError as error:
        message, code = str(error), EXIT_FAILED
    except OSError as error:
        message, code = f"{error.strerror or error}: {error.filename}" if error.filename else str(error), EXIT_FAILED
    except Exception as error:  # noqa: BLE001 -- the last line of defence: a fault of ours, told as one
        message = (
            f"Internal error, {type(error).__name__}: {error}\n"
            "This is a fault of llenergymeasure. Run again with --verbose for the traceback, and please report it."
        )
        code = EXIT_FAILED
    if verbose:
        traceback.print_exc(file=stream)
    return _report(stream, message, code)


def _report(stream: TextIO, message: str, code: int) -> int:
    stream.write(f"{message}\n")
    return code
