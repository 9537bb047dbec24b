"""What vLLM's processes write to standard error: kept off the terminal, and asked for the cause when one of them dies.

Its workers inherit standard error at their start and keep it for life, so it is a file while they are started.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STDERR: Final = 2

_ERROR_LINE: Final = re.compile(
    r"^(?:\(.*?\) )?(?:[\w.]*\.)?(\w*(?:Error|Exception|OutOfMemory\w*): .+)$", re.MULTILINE
)
_ANNOUNCEMENTS: Final = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initialization failed")
"""Errors that only tell of another one."""


class EngineLog:
    """The standard error of one engine's processes."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="llem-")  # noqa: SIM115 (it lives as long as the engine)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this is open, standard error of this process and of those that it starts goes here."""
        sys.stderr.flush()
        before = os.dup(STDERR)
        os.dup2(self._file.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)

    def text(self) -> str:
        """All of it so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def cause(self) -> str | None:
        """The last error in it that does not merely tell of another one; `None`: there is none."""
        errors = [error for error in _ERROR_LINE.findall(self.text()) if not any(it in error for it in _ANNOUNCEMENTS)]
        return errors[-1] if errors else None

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
