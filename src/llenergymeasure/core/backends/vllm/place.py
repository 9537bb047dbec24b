"""Where vLLM's processes write: standard error, kept off the terminal and asked why one died, and temporary files.

Its workers inherit standard error at their start and keep it for life, so it is a file while they are started. Sockets
and other files, some of which vLLM leaves behind, are in a directory that is removed with the engine.
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
DIRECTORY_VARIABLES: Final = ("VLLM_RPC_BASE_PATH", "TMPDIR")
"""Variables that name the directories of vLLM's sockets and of its processes' temporary files."""

_ERROR_LINE: Final = re.compile(
    r"^(?:\(.*?\) )?(?:[\w.]*\.)?(\w*(?:Error|Exception|OutOfMemory\w*): .+)$", re.MULTILINE
)
_ANNOUNCEMENTS: Final = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initialization failed")
"""Errors that only tell of another one."""


class EnginePlace:
    """Standard error and temporary files of one engine's processes."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="llem-")  # noqa: SIM115 (it lives as long as the engine)
        self._directory = tempfile.TemporaryDirectory(prefix="llem-")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this is open, this process and those that it starts write here."""
        sys.stderr.flush()
        stderr, variables = os.dup(STDERR), {name: os.environ.get(name) for name in DIRECTORY_VARIABLES}
        os.environ.update(dict.fromkeys(DIRECTORY_VARIABLES, self._directory.name))
        os.dup2(self._file.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            os.close(stderr)
            for name, value in variables.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def text(self) -> str:
        """All that was written so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def cause(self) -> str | None:
        """The last error in it that does not merely tell of another one; `None`: there is none."""
        errors = [error for error in _ERROR_LINE.findall(self.text()) if not any(it in error for it in _ANNOUNCEMENTS)]
        return errors[-1] if errors else None

    def close(self) -> None:
        """Remove file and directory."""
        self._file.close()
        self._directory.cleanup()
