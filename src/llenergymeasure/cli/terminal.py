"""How a command deals with its terminal.

stdout gets the result and nothing else; stderr the log and errors as people read them: what, where, how to mend it, and
no traceback unless asked for.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, TextIO

from pydantic import BaseModel, ValidationError

from llenergymeasure.config.errors import describe_validation_error, problem_report
from llenergymeasure.exceptions import ConfigError, LLEMError, PersistenceError
from llenergymeasure.results.persistence import REPORT_FILE
from llenergymeasure.security import for_display
from llenergymeasure.stdout import write_stdout

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
"""An experiment, its pre-flight or a study failed."""

EXIT_USAGE: Final = 2
"""Usage or configuration."""

EXIT_INTERRUPTED: Final = 130
"""Ctrl-C, as shells count it: 128 + SIGINT."""

FALLBACK_WIDTH: Final = 100
"""Columns of a summary that goes to a file or a pipe."""

PACKAGE_LOGGER = "llenergymeasure"


class UsageError(Exception):
    """Flags that do not go together."""


def print_result(text: str) -> bool:
    """Write `text` and a line's end to stdout; whether somebody still reads, for nobody need (`| head`).

    Raises:
        PersistenceError: The disk that stdout goes to is full, or fails; the text is on stderr then.
    """
    line = for_display(text) + "\n"
    try:
        return write_stdout(line)
    except OSError as error:
        with suppress(OSError):
            sys.stderr.write(line)
        raise PersistenceError(f"Cannot write to stdout: {error.strerror}. What it was to get is above.") from error


def result_json(result: BaseModel) -> str:
    """A result as JSON for stdout, in plain ASCII: whatever its encoding, it stays valid."""
    return json.dumps(json.loads(result.model_dump_json()), indent=2)


def tell_place(label: str, path: Path) -> None:
    """Say on stderr where something lies, beside a stdout that holds other things."""
    with suppress(OSError):  # a terminal that is gone; what was told of is there
        sys.stderr.write(f"{label:<15}{path}\n")


def tell_report(directory: Path) -> None:
    """Say on stderr where the report in a directory lies, if there is one."""
    if (report := directory / REPORT_FILE).is_file():
        tell_place("Report", report)


def output_width() -> int:
    """Columns to wrap a summary at: the terminal's, or `COLUMNS`."""
    return shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns


def exit_code_of(action: Callable[[], int], *, verbose: bool, stream: TextIO | None = None) -> int:
    """Run `action`, which returns an exit code; what it raises becomes a message on `stream`, by default stderr.

    `verbose` prints the traceback too.
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


@contextmanager
def configured_logging(*, verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Send the package's log messages to stderr for the length of a `with` block, then take the handler away.

    `verbose` shows everything, with times and modules; `quiet` errors only.
    """
    logger = logging.getLogger(PACKAGE_LOGGER)
    handler = _BesideBars(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s")
    )
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _explained(error: Exception) -> tuple[str, int]:
    """What to tell about an error, and the exit code it stands for."""
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
            stream.write(for_display("".join(traceback.format_exception(traced))))
        stream.write(f"{for_display(message)}\n")
        stream.flush()
    return code


class _BesideBars(logging.StreamHandler):  # type: ignore[type-arg] # not generic before Python 3.11
    """Writes above a progress bar instead of into it."""

    def format(self, record: logging.LogRecord) -> str:
        return for_display(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # not loaded: no bar was ever drawn
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)
