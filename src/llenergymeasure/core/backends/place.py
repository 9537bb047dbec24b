"""Where an engine's processes write: standard error, kept off the terminal and asked why one died, and temporary files.

Its workers inherit standard error at their start and keep it for life, so it is a file while they are started. In a job
that file is repeated on the job's own standard error as it grows: a download is a sign of life, and what was written is
kept when the job is killed. (A pipe would do with less, and block an engine that writes while it holds the
interpreter's lock.) Sockets and other files, some of which engines leave behind, are in a directory that goes with the
engine.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from llenergymeasure.core.host.streams import stderr_is_kept
from llenergymeasure.core.host.threads import started

STDERR: Final = 2
DIRECTORY_VARIABLES: Final = ("TMPDIR",)
"""Variables that name the directories of temporary files."""

REPEAT_INTERVAL_S: Final = 1.0
"""Time between two looks at whether the file has grown, in seconds."""

_ERROR_LINE: Final = re.compile(
    r"^(?:\(.*?\) )?(?:[\w.]*\.)?(\w*(?:Error|Exception|OutOfMemory\w*): .+)$", re.MULTILINE
)


class EnginePlace:
    """Standard error and temporary files of one engine's processes.

    Args:
        directory_variables: Variables that name directories of the engine's own, beside `DIRECTORY_VARIABLES`.
        announcements: Parts of errors that only tell of another one.
    """

    def __init__(self, directory_variables: Sequence[str] = (), announcements: Sequence[str] = ()) -> None:
        self._variables = (*directory_variables, *DIRECTORY_VARIABLES)
        self._announcements = tuple(announcements)
        self._file = tempfile.TemporaryFile(prefix="llem-")  # noqa: SIM115 (it lives as long as the engine)
        self._directory = tempfile.TemporaryDirectory(prefix="llem-")
        self._ended = threading.Event()
        self._repeater: threading.Thread | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this is open, this process and those that it starts write here."""
        sys.stderr.flush()
        stderr, variables = os.dup(STDERR), {name: os.environ.get(name) for name in self._variables}
        os.environ.update(dict.fromkeys(self._variables, self._directory.name))
        os.dup2(self._file.fileno(), STDERR)
        try:
            if stderr_is_kept():
                faulthandler.enable(file=stderr)  # a crash here would be the end of the repetition too
                repeat = threading.Thread(
                    target=self._repeat, args=(os.dup(stderr),), name="engine-stderr", daemon=True
                )
                self._repeater = started(repeat)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            if stderr_is_kept():
                faulthandler.enable(file=STDERR)
            os.close(stderr)
            for name, value in variables.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    @property
    def is_repeated(self) -> bool:
        """Whether all that is written appears on standard error."""
        return self._repeater is not None

    def text(self) -> str:
        """All that was written so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def cause(self) -> str | None:
        """The last error in it that does not merely tell of another one; `None`: there is none."""
        errors = _ERROR_LINE.findall(self.text())
        causes = [error for error in errors if not any(it in error for it in self._announcements)]
        return causes[-1] if causes else None

    def close(self) -> None:
        """Remove file and directory."""
        self._ended.set()
        if self._repeater is not None:
            self._repeater.join()
        self._file.close()
        self._directory.cleanup()

    def _repeat(self, stderr: int) -> None:
        """Write on `stderr`, and close it in the end, what is written to the file."""
        done = 0
        with suppress(OSError), os.fdopen(stderr, "wb", buffering=0) as kept:  # nobody listens any more
            is_last = False
            while not is_last:
                is_last = self._ended.wait(REPEAT_INTERVAL_S)
                size = os.fstat(self._file.fileno()).st_size
                kept.write(os.pread(self._file.fileno(), size - done, done))
                done = size
