"""Where an engine's processes write: standard error, kept off the terminal and asked why one died, and temporary files.

Its workers inherit standard error at their start and keep it for life, so it is a file while they are started. In a job
that file is repeated on the job's own standard error as it grows: a download is a sign of life, and what was written is
kept when the job is killed. (A pipe would do with less, and block an engine that writes while it holds the
interpreter's lock.) Temporary files, some of which engines leave behind, and sockets are in directories that go with
the engine; sockets in one whose path is short, because Linux takes no long one for them.
"""

from __future__ import annotations

import faulthandler
import logging
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
from llenergymeasure.exceptions import BackendError

STDERR: Final = 2
FILES_VARIABLE: Final = "TMPDIR"
"""Names the directory of temporary files."""

MOST_OF_SOCKETS: Final = 107 - len("/llem-abcdefgh") - len("/94046c1b-12ce-42f7-9d48-e1630dd163f8")
"""Longest path in bytes of a directory in which ours can hold an engine's sockets, named by UUIDs: a socket's has 107
at most (unix(7))."""

SHORT: Final = ("/tmp", "/var/tmp", "/dev/shm")
"""Where sockets are if the path of the directory for temporary files is too long; the first that can be written."""

REPEAT_INTERVAL_S: Final = 1.0
"""Time between two looks at whether the file has grown, in seconds."""

LOADING_INTERVAL_S: Final = 0.05
"""The same while the engine loads, when most is written and nothing is measured: what a sudden end can lose."""

_ERROR_LINE: Final = re.compile(
    r"^(?:\(.*?\) )?(?:[\w.]*\.)?(\w*(?:Error|Exception|OutOfMemory\w*): .+)$", re.MULTILINE
)


logger = logging.getLogger(__name__)


def _short_directory() -> str:
    """Where a directory of sockets can be made.

    Raises:
        BackendError: Nowhere.
    """
    usual = tempfile.gettempdir()
    for directory in (usual, *SHORT):
        if len(os.fsencode(directory)) <= MOST_OF_SOCKETS and os.access(directory, os.W_OK | os.X_OK):
            return directory
    raise BackendError(
        f"TMPDIR: {usual} is too long for the sockets of engines, and neither of {', '.join(SHORT)} can be written. "
        f"Name a directory whose path has {MOST_OF_SOCKETS} characters at most."
    )


class EnginePlace:
    """Standard error and temporary files of one engine's processes.

    Args:
        engine: What people call it.
        socket_variables: Variables that name directories of the engine's sockets.
        announcements: Parts of errors that only tell of another one.
    """

    def __init__(self, engine: str, socket_variables: Sequence[str] = (), announcements: Sequence[str] = ()) -> None:
        self._engine = engine
        self._announcements = tuple(announcements)
        self._file = tempfile.TemporaryFile(prefix="llem-")  # noqa: SIM115 (it lives as long as the engine)
        self._files = tempfile.TemporaryDirectory(prefix="llem-")
        self._sockets = tempfile.TemporaryDirectory(prefix="llem-", dir=_short_directory())
        self._directories = {**dict.fromkeys(socket_variables, self._sockets.name), FILES_VARIABLE: self._files.name}
        self._loaded, self._ended = threading.Event(), threading.Event()
        self._repeater: threading.Thread | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this is open, this process and those that it starts write here."""
        sys.stderr.flush()
        stderr, variables = os.dup(STDERR), {name: os.environ.get(name) for name in self._directories}
        os.environ.update(self._directories)
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
            self._loaded.set()
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            if stderr_is_kept():
                faulthandler.enable(file=STDERR)
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
        errors = _ERROR_LINE.findall(self.text())
        causes = [error for error in errors if not any(it in error for it in self._announcements)]
        return causes[-1] if causes else None

    def close(self) -> None:
        """Remove file and directories; what was written is in the log then, unless standard error has had it."""
        self._ended.set()
        if self._repeater is None:
            logger.info("What %s wrote to standard error:\n%s", self._engine, self.text())
        else:
            self._repeater.join()
        self._file.close()
        self._sockets.cleanup()
        self._files.cleanup()

    def _repeat(self, stderr: int) -> None:
        """Write on `stderr`, and close it in the end, what is written to the file."""
        done = 0
        with suppress(OSError), os.fdopen(stderr, "wb", buffering=0) as kept:  # nobody listens any more
            is_last = False
            while not is_last:
                is_last = self._ended.wait(REPEAT_INTERVAL_S if self._loaded.is_set() else LOADING_INTERVAL_S)
                size = os.fstat(self._file.fileno()).st_size
                kept.write(os.pread(self._file.fileno(), size - done, done))
                done = size
