"""What goes to stdout: the result, and nothing but the result."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

from llenergymeasure.exceptions import PersistenceError

if TYPE_CHECKING:
    from pydantic import BaseModel

FALLBACK_WIDTH: Final = 100
"""Columns of a summary that goes to a file or a pipe."""


def print_result(text: str) -> None:
    """Write `text` and a line's end to stdout; a reader who has left (`| head`) is nobody's fault.

    Raises:
        PersistenceError: It cannot be written: the disk that stdout goes to is full.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again as it ends
        if not isinstance(error, BrokenPipeError):
            raise PersistenceError(f"Cannot write to stdout: {error.strerror}.") from error


def result_json(result: BaseModel) -> str:
    """A result as JSON for stdout, in plain ASCII: whatever its encoding, it stays valid."""
    return json.dumps(json.loads(result.model_dump_json()), indent=2)


def output_width() -> int:
    """Columns to wrap a summary at: the terminal's, or `COLUMNS`."""
    return shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns
