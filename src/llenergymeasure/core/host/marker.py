"""Whether another llem measures on this machine: a shared lock on an empty file in the temporary directory.

Whoever measures holds the lock together with all others that do; whoever gets it alone is alone. The file belongs to
everybody: it is never written to, read or removed, so that it does not matter who made it, and a lock that somebody
holds is never waited for. One that is a link, or no plain file, is left alone. Each run also sets the file's time, if
the file is its user's, so that a longer run learns of a shorter one that came and went.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode

logger = logging.getLogger(__name__)

NAME: Final = "llenergymeasure-measuring.lock"

OTHERS_MEASURE: Final = MeasurementWarning(
    WarningCode.OTHER_MEASUREMENT,
    "another llem measured on this machine at the same time, and each has the other's load in its figures; measure one "
    "after the other",
)

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def alone() -> Iterator[Callable[[], bool]]:
    """`measuring` of one that nobody is told of and that looks for nobody."""
    yield lambda: False


@contextmanager
def measuring(directory: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Be known as measuring for the length of a `with` block; yields whether others are, or were meanwhile.

    Args:
        directory: Where the marker lies; `None`: the system's temporary directory.
    """
    try:
        file = _open_marker(directory)
    except OSError as error:
        logger.debug("Nobody can be told that this process measures: %s", error)
        yield lambda: False
        return
    try:
        at_first = not _alone(file)
        with suppress(OSError):  # another user's
            os.utime(file)
        began = os.fstat(file).st_mtime_ns
        yield lambda: at_first or not _alone(file) or os.fstat(file).st_mtime_ns != began
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # not left to the end of processes that were forked meanwhile
        os.close(file)


def shared_marker() -> Path | None:
    """The marker's place on this machine, for a container to share; `None`: there can be none."""
    try:
        os.close(_open_marker(None))
    except OSError:
        return None
    return Path(tempfile.gettempdir()) / NAME


def _alone(file: int) -> bool:
    """Whether nobody else holds the lock; afterwards it is held together with whoever does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:
        alone = False
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return alone


def _open_marker(directory: Path | None) -> int:
    path = Path(tempfile.gettempdir() if directory is None else directory) / NAME
    with suppress(FileExistsError):
        file = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(file, 0o644)  # whatever the umask, other users must be able to open it
        return file
    file = os.open(path, _OPEN)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(file)
        raise OSError(f"{path} is not a plain file of its own")
    return file
